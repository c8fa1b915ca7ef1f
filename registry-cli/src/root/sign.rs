//! `root sign`: a root's signature for keys and scopes that stand in the registry, made here, on
//! another machine, or by another program.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;

use permission::{Claim, Statement, Timestamp, TrustRoots};
use registry::StatementRow;
use serde_json::{Value, json};

use super::Endorser;
use super::unsigned::{Which, unsigned};
use crate::arguments::{destination, id};
use crate::cli::RootSignArgs;
use crate::confirm::{ask, must_be_askable};
use crate::database::{self, within};
use crate::failure::{Failure, RootFailure};
use crate::signed_row;
use crate::signing::elsewhere::{self, ElsewhereError};
use crate::terminal::{Report, escape, tell, to_the_second, write};
use crate::trust::Trust;

/// What --dry-run wrote, of some ten thousand keys and scopes.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Runs the command; `None` if it wrote its result itself.
pub(crate) async fn run(args: &RootSignArgs, trust: &Trust) -> Result<Option<Report>, Failure> {
    if let (Some(text), Some(signature)) = (&args.text, &args.signature) {
        return signed_elsewhere(text, signature, trust).await.map(Some);
    }
    if !args.yes && !args.dry_run {
        must_be_askable()?;
    }
    if let Some(file) = &args.offline {
        return offline(file, args, trust).map(|()| None);
    }
    let which = which(args)?;
    let registry_id = trust.signs_for()?;
    let mut registry = database::open(trust).await?;
    let now = within(registry.now()).await?;
    for key_id in &which.keys {
        let signer = within(registry.signer(key_id)).await?;
        signer.ok_or_else(|| Failure::KeyUnknown(key_id.clone()))?;
    }
    if args.dry_run {
        let roots = trust.roots.as_ref();
        let found = unsigned(&mut registry, registry_id, &which, roots, now).await?;
        return Ok(Some(texts(&found)));
    }
    let endorser = Endorser::open(&args.root, trust)?;
    // Where nobody says which roots count, this one does.
    let own = TrustRoots::new(registry_id.clone(), vec![endorser.root.clone()])
        .map_err(RootFailure::from)?;
    let roots = trust.roots.as_ref().unwrap_or(&own);
    let found = unsigned(&mut registry, registry_id, &which, Some(roots), now).await?;
    agree(&found, args.yes)?;
    let signed = signed(found, &endorser)?;
    store(&mut registry, &signed).await?;
    Ok(Some(report(&signed)))
}

fn which(args: &RootSignArgs) -> Result<Which, Failure> {
    let keys = args.keys.iter().map(|text| id("key id", text));
    Ok(Which {
        keys: keys.collect::<Result<_, _>>()?,
        keys_only: args.keys_only,
        destination: args.destination.as_deref().map(destination).transpose()?,
    })
}

/// Signs without the registry what --dry-run wrote there.
fn offline(file: &Path, args: &RootSignArgs, trust: &Trust) -> Result<(), Failure> {
    let registry_id = trust.signs_for()?;
    let failed = |source| RootFailure::Texts {
        path: file.to_owned(),
        source,
    };
    let bytes = contents(file).map_err(|source| failed(source.into()))?;
    let statements =
        Statement::all_from_canonical(&bytes).map_err(|source| failed(source.into()))?;
    if let Some(other) = statements
        .iter()
        .find(|text| text.registry_id != *registry_id)
    {
        return Err(RootFailure::OtherRegistry {
            found: other.registry_id.to_string(),
            expected: registry_id.clone(),
        }
        .into());
    }
    let endorser = Endorser::open(&args.root, trust)?;
    agree(&statements, args.yes)?;
    let lines: String = signed(statements, &endorser)?
        .into_iter()
        .map(|(statement, signature)| {
            signed_row::statement(&StatementRow {
                statement,
                root_signature: Some(signature),
                revoked_at: None,
            })
        })
        .collect();
    write(&lines).map(drop)
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(MAX_BYTES).read_to_end(&mut bytes)?;
    } else {
        File::open(path)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Takes a signature that a token, an HSM or openssl made.
async fn signed_elsewhere(text: &Path, signature: &Path, trust: &Trust) -> Result<Report, Failure> {
    let failed = |path: &Path, source| RootFailure::Texts {
        path: path.to_owned(),
        source,
    };
    let roots = trust.roots.as_ref().ok_or(RootFailure::NoTrustRoot)?;
    let bytes = elsewhere::read(text).map_err(|source| failed(text, source))?;
    let statement =
        Statement::from_canonical(&bytes).map_err(|source| failed(text, source.into()))?;
    let signature_der = elsewhere::read(signature).map_err(|source| failed(signature, source))?;
    if statement.registry_id != *roots.registry_id() {
        return Err(RootFailure::OtherRegistry {
            found: statement.registry_id.to_string(),
            expected: roots.registry_id().clone(),
        }
        .into());
    }
    if !roots.vouch_for(&statement, &signature_der) {
        return Err(failed(signature, ElsewhereError::NoRoot).into());
    }
    let mut registry = database::open(trust).await?;
    let signed = [(statement, signature_der)];
    store(&mut registry, &signed).await?;
    Ok(report(&signed))
}

async fn store(
    registry: &mut registry::Writer,
    signed: &[(Statement, Vec<u8>)],
) -> Result<(), Failure> {
    match within(registry.endorse(signed)).await? {
        None => Ok(()),
        Some(gone) => Err(RootFailure::StatementGone(gone.key_id).into()),
    }
}

fn signed(
    statements: Vec<Statement>,
    endorser: &Endorser,
) -> Result<Vec<(Statement, Vec<u8>)>, Failure> {
    let sign = |statement| {
        let signature = endorser.sign(&statement)?;
        Ok((statement, signature))
    };
    statements.into_iter().map(sign).collect()
}

/// Shows what would be signed, and returns once that is agreed to.
fn agree(statements: &[Statement], yes: bool) -> Result<(), Failure> {
    if let Some(Statement { registry_id, .. }) = statements.first() {
        tell(&format!("registry    {}\n", escape(registry_id.as_str())));
    }
    tell(&statements.iter().map(line).collect::<String>());
    if yes || statements.is_empty() {
        Ok(())
    } else {
        ask(&format!("sign these {}?", statements.len()))
    }
}

fn line(statement: &Statement) -> String {
    let (from, to) = (statement.window.not_before(), statement.window.not_after());
    let key_id = escape(statement.key_id.as_str());
    let (from, to) = (to_the_second(from), to_the_second(to));
    match &statement.claim {
        Claim::Signs => {
            let spki = statement.key.spki().to_hex();
            format!("key         {key_id}  {from} to {to}\n            {spki}\n")
        }
        Claim::Delegates(destination) => {
            format!("scope       {key_id}  {from} to {to}  {destination}\n")
        }
    }
}

fn object(statement: &Statement) -> Value {
    let window = |time: Timestamp| time.to_string();
    json!({
        "key_id": statement.key_id.as_str(),
        "spki": statement.key.spki().to_hex(),
        "destination": match &statement.claim {
            Claim::Signs => None,
            Claim::Delegates(destination) => Some(destination.to_string()),
        },
        "not_before": window(statement.window.not_before()),
        "not_after": window(statement.window.not_after()),
    })
}

/// The exact texts that would be signed; on a terminal they can't move the cursor.
fn texts(statements: &[Statement]) -> Report {
    let mut text = String::new();
    let mut json = Vec::new();
    for statement in statements {
        // Made of text alone.
        let canonical = String::from_utf8_lossy(&statement.canonical_bytes()).into_owned();
        let mut fields = object(statement);
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("text".to_owned(), canonical.as_str().into());
        }
        json.push(fields);
        text += &canonical;
    }
    if io::stdout().is_terminal() {
        text = text.lines().map(|line| escape(line) + "\n").collect();
    }
    Report {
        text,
        json: json.into(),
    }
}

fn report(signed: &[(Statement, Vec<u8>)]) -> Report {
    let (mut keys, mut scopes) = (0, 0);
    for (statement, _) in signed {
        match statement.claim {
            Claim::Signs => keys += 1,
            Claim::Delegates(_) => scopes += 1,
        }
    }
    let mut text = String::new();
    // Writing to a String can't fail.
    let _ = writeln!(text, "signed      keys {keys}, scopes {scopes}");
    let json: Vec<_> = signed
        .iter()
        .map(|(statement, _)| object(statement))
        .collect();
    Report {
        text,
        json: json!({"signed": json}),
    }
}
