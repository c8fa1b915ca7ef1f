//! `root init`: a root's key, and its public half for the service's configuration.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use p256::PublicKey;
use p256::pkcs8::{EncodePublicKey as _, LineEnding};
use serde_json::json;

use super::{place, root_key};
use crate::cli::RootInitArgs;
use crate::failure::{Failure, RootFailure};
use crate::principal::Place;
use crate::terminal::{Report, escape, say};

/// Runs the command.
pub(crate) fn run(args: &RootInitArgs) -> Result<Report, Failure> {
    let place = place(&args.root)?;
    let (key, origin) = match place.open()? {
        Some(key) => (key, "found"),
        None => (place.create(args.new_pin())?, "made"),
    };
    if let Place::File(path) = &place {
        let path = path.display();
        say(
            "warning",
            &format!("{path} is a software key: whoever can read the file is a root of trust"),
        );
    }
    let root = root_key(&key)?;
    if let Some(path) = &args.public {
        write_public(path, key.locked().public_key())?;
    }
    let (spki, fingerprint) = (root.spki().to_hex(), root.fingerprint());
    Ok(Report {
        text: format!(
            "root        {} ({origin})\nfingerprint {fingerprint}\nspki        {spki}\n",
            escape(&place.to_string()),
        ),
        json: json!({
            "key": origin,
            "place": place.to_string(),
            "fingerprint": fingerprint,
            "spki": spki,
        }),
    })
}

fn write_public(path: &Path, key: &PublicKey) -> Result<(), Failure> {
    let failed = |source| RootFailure::PublicKeyFile {
        path: path.to_owned(),
        source,
    };
    let pem = key
        .to_public_key_pem(LineEnding::LF)
        .map_err(|_| permission::KeyError::NotP256)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .map_err(failed)?;
    Ok(file.write_all(pem.as_bytes()).map_err(failed)?)
}
