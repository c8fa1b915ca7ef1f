//! Manifests that are nearly good, field by field: the first rule that is broken gives the reason,
//! and where none is they are accepted.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use permission::{Identity, Timestamp};
use poca::{Expected, Headers, PublicKey, Reason, verify};

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[7; 32]));
static STRANGERS: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[8; 32]));
const NOW: &str = "2026-05-01T00:00:00Z";
const SKEW: i64 = 60_000_000;
const DAY: i64 = 86_400_000_000;

#[derive(Debug, Arbitrary)]
enum Field<'a> {
    Good,
    Missing,
    Null,
    /// Another type than text.
    Number(i8),
    Text(&'a str),
    /// Text, and then the good one under the same name.
    Twice(&'a str),
}

#[derive(Debug, Arbitrary)]
enum Exp<'a> {
    /// So many seconds from now, in a zone of so many quarters of an hour.
    At { seconds: i32, zone: i8, quarter: bool },
    Field(Field<'a>),
    /// A good one with more behind it.
    Followed(&'a str),
}

#[derive(Debug, Arbitrary)]
enum Signature {
    Good,
    Strangers,
    NotBase64,
    Short,
}

#[derive(Debug, Arbitrary)]
struct Claims<'a> {
    ver: Field<'a>,
    caller_id: Field<'a>,
    tool: Field<'a>,
    intent: Field<'a>,
    scopes: Option<Vec<&'a str>>,
    payload_sha256: Field<'a>,
    nonce: Field<'a>,
    exp: Exp<'a>,
    /// Of a field that there isn't.
    more: Option<&'a str>,
    signature: Signature,
}

/// The JSON so far, and what is to be said of it.
struct Written {
    members: Vec<String>,
    broken: bool,
    missing: bool,
}

impl Written {
    /// Writes a field; returns its text, if it is one.
    fn field(&mut self, name: &str, field: &Field<'_>, good: &str, max: usize, needed: bool) -> String {
        let mut value = |value: &str| self.members.push(format!("{}:{value}", quoted(name)));
        let text = match field {
            Field::Good => good,
            Field::Missing => "",
            Field::Null => {
                value("null");
                ""
            }
            Field::Number(number) => {
                value(&number.to_string());
                self.broken = true;
                return String::new();
            }
            Field::Text(text) => text,
            Field::Twice(text) => {
                value(&quoted(text));
                good
            }
        };
        if !matches!(field, Field::Missing | Field::Null) {
            value(&quoted(text));
        }
        self.broken |= matches!(field, Field::Twice(_)) || !fits(text, max);
        self.missing |= needed && text.is_empty();
        text.to_owned()
    }
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

fn fits(text: &str, max: usize) -> bool {
    text.len() <= max && !text.chars().any(char::is_control)
}

/// Text for a moment, as Go writes it.
fn rfc3339(moment: Timestamp, zone: i64, quarter: bool) -> String {
    let local = moment.saturating_add_micros(zone * 900_000_000).to_string();
    let minutes = (zone * 15).unsigned_abs();
    let sign = if zone < 0 { '-' } else { '+' };
    let fraction = if quarter { ".25" } else { "" };
    let zone = match minutes {
        0 => "Z".to_owned(),
        _ => format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60),
    };
    format!("{}{fraction}{zone}", &local[..19])
}

fuzz_target!(|claims: Claims<'_>| {
    let now: Timestamp = NOW.parse().unwrap();
    let mut written = Written { members: Vec::new(), broken: false, missing: false };
    let ver = written.field("ver", &claims.ver, "poca-1", 256, false);
    written.broken |= !matches!(ver.as_str(), "" | "poca-1");
    let caller = written.field("caller_id", &claims.caller_id, "agent", 256, true);
    let tool = written.field("tool", &claims.tool, "echo", 256, true);
    written.field("intent", &claims.intent, "a test", 1024, false);
    if let Some(scopes) = &claims.scopes {
        let json = serde_json::to_string(scopes).unwrap();
        written.members.push(format!("\"scopes\":{json}"));
        written.broken |= scopes.len() > 32 || !scopes.iter().all(|scope| fits(scope, 256));
    }
    let body = "aa".repeat(32);
    let hash = written.field("payload_sha256", &claims.payload_sha256, &body, 256, true);
    let nonce = written.field("nonce", &claims.nonce, "0f", 256, true);
    // In microseconds from now; none where it can't be read.
    let (exp, ends) = match &claims.exp {
        Exp::At { seconds, zone, quarter } => {
            let micros = i64::from(*seconds % 200_000) * 1_000_000;
            let zone = i64::from(*zone % 92);
            let text = rfc3339(now.saturating_add_micros(micros), zone, *quarter);
            let text = written.field("exp", &Field::Text(&text), "", 256, true);
            (text, Some(micros + if *quarter { 250_000 } else { 0 }))
        }
        Exp::Field(field) => {
            let text = written.field("exp", field, NOW, 256, true);
            let ends = text.parse::<Timestamp>().ok();
            let ends = ends.map(|ends| ends.as_unix_micros() - now.as_unix_micros());
            (text, ends)
        }
        Exp::Followed(more) => {
            let text = format!("{NOW}{more}");
            let text = written.field("exp", &Field::Text(&text), "", 256, true);
            (text, more.is_empty().then_some(0))
        }
    };
    if let Some(more) = claims.more {
        written.members.push(format!("\"more\":{}", quoted(more)));
        written.broken = true;
    }
    let manifest = URL_SAFE_NO_PAD.encode(format!("{{{}}}", written.members.join(",")));
    let sign = |key: &SigningKey| URL_SAFE_NO_PAD.encode(key.sign(manifest.as_bytes()).to_bytes());

    let expected = if manifest.len() > 8192 {
        Err(Reason::ManifestBase64)
    } else if written.broken {
        Err(Reason::ManifestJson)
    } else if written.missing {
        Err(Reason::ManifestMissingFields)
    } else if caller != "agent" {
        Err(Reason::CallerMismatch)
    } else if tool != "echo" {
        Err(Reason::ToolMismatch)
    } else {
        match ends {
            None => Err(Reason::ExpiryUnparseable),
            Some(ends) if ends + SKEW < 0 => Err(Reason::Expired),
            Some(ends) if ends > DAY + SKEW => Err(Reason::ExpiryTooFar),
            Some(_) if hash != body => Err(Reason::PayloadHashMismatch),
            Some(_) => match claims.signature {
                Signature::Good => Ok(nonce.as_str()),
                Signature::NotBase64 => Err(Reason::SignatureBase64),
                Signature::Strangers | Signature::Short => Err(Reason::SignatureInvalid),
            },
        }
    };
    // Only where it is looked at: signing takes longer than all else.
    let is_looked_at = expected.is_ok() || expected == Err(Reason::SignatureInvalid);
    let signature = match claims.signature {
        Signature::NotBase64 => "!".to_owned(),
        Signature::Good if is_looked_at => sign(&KEY),
        Signature::Strangers if is_looked_at => sign(&STRANGERS),
        _ => "AAAA".to_owned(),
    };
    let headers = Headers { manifest: Some(&manifest), signature: Some(&signature) };
    let found = verify(
        &headers,
        &Expected {
            caller: &Identity::parse("agent").unwrap(),
            tool: "echo",
            payload_sha256: [0xaa; 32],
            keys: &[PublicKey::from_bytes(KEY.verifying_key().as_bytes()).unwrap()],
            now,
            max_ttl: Duration::from_micros(DAY.unsigned_abs()),
        },
    );
    // Of RFC 3339 only what Go reads too is taken; here the field was any text.
    if matches!(claims.exp, Exp::Field(_)) && found == Err(Reason::ExpiryUnparseable) && ends.is_some() {
        assert!(exp.as_bytes()[10] != b'T' || !exp.ends_with('Z') || exp.contains(":60"), "{exp}");
        return;
    }
    assert_eq!(found.as_ref().map(|proof| proof.nonce()), expected.as_ref().map(|nonce| *nonce));
});
