use proptest::prelude::*;

use super::*;
use crate::key::SecretKey;
use crate::manifest::{
    MAX_HEADER_BYTES, MAX_INTENT_BYTES, MAX_SCOPES, MAX_TEXT_BYTES, Manifest, ManifestError,
    SignedHeaders, sign,
};

/// Made by openssl alone (testdata/make), so nothing of ours vouches for them.
const OURS: [&str; 2] = [
    include_str!("../../testdata/ours.manifest"),
    include_str!("../../testdata/ours.signature"),
];
const EXISTING: [&str; 2] = [
    include_str!("../../testdata/existing.manifest"),
    include_str!("../../testdata/existing.signature"),
];
const PEM: &str = include_str!("../../testdata/agent.pem");
/// Of testdata/body.json.
const BODY: &str = "a172de5a3d8d0800dea5f1bedacb8136b5ac1d6f38ac564b469b4ad6cdd7c40e";

fn secret() -> SecretKey {
    SecretKey::from_pem(PEM).unwrap()
}

fn other() -> SecretKey {
    SecretKey::from_seed(&[7; 32])
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn body() -> [u8; 32] {
    hex::decode(BODY).unwrap().try_into().unwrap()
}

fn agent() -> Identity {
    Identity::parse("agent-Ω").unwrap()
}

fn manifest() -> Manifest {
    Manifest {
        caller: agent(),
        tool: "echo".to_owned(),
        intent: "echo_payload".to_owned(),
        scopes: vec!["read".to_owned()],
        payload_sha256: body(),
        nonce: "000102030405060708090a0b0c0d0e0f".to_owned(),
        expires: at("2026-05-01T00:05:00Z"),
    }
}

/// The JSON of [`manifest`], for what [`sign`] would not write.
fn json() -> String {
    let json = URL_SAFE_NO_PAD.decode(OURS[0]).unwrap();
    String::from_utf8(json).unwrap()
}

fn signed(json: impl AsRef<[u8]>) -> SignedHeaders {
    let manifest = URL_SAFE_NO_PAD.encode(json);
    let signature = URL_SAFE_NO_PAD.encode(secret().sign(manifest.as_bytes()));
    SignedHeaders {
        manifest,
        signature,
    }
}

/// What a verifier goes by.
struct Call {
    caller: Identity,
    tool: String,
    payload_sha256: [u8; 32],
    now: Timestamp,
    max_ttl: Duration,
}

/// What a verifier at midnight that knows `keys` makes of the call that [`manifest`] describes.
fn verified(
    headers: [&str; 2],
    keys: &[PublicKey],
    change: impl FnOnce(&mut Call),
) -> Result<Proof, Reason> {
    verified_if_present(headers.map(Some), keys, change)
}

fn verified_if_present(
    [manifest, signature]: [Option<&str>; 2],
    keys: &[PublicKey],
    change: impl FnOnce(&mut Call),
) -> Result<Proof, Reason> {
    let mut call = Call {
        caller: agent(),
        tool: "echo".to_owned(),
        payload_sha256: body(),
        now: at("2026-05-01T00:00:00Z"),
        max_ttl: Duration::from_hours(1),
    };
    change(&mut call);
    let expected = Expected {
        caller: &call.caller,
        tool: &call.tool,
        payload_sha256: call.payload_sha256,
        keys,
        now: call.now,
        max_ttl: call.max_ttl,
    };
    verify(
        &Headers {
            manifest,
            signature,
        },
        &expected,
    )
}

fn check(signed: &SignedHeaders) -> Result<Proof, Reason> {
    let keys = [secret().public_key()];
    verified([&signed.manifest, &signed.signature], &keys, |_| {})
}

#[test]
fn golden_headers_are_accepted_and_made() {
    let key = secret().public_key();
    let proof = verified(OURS, &[key], |_| {}).unwrap();
    assert_eq!(proof.caller(), &agent());
    assert_eq!(proof.nonce(), "000102030405060708090a0b0c0d0e0f");
    assert_eq!(proof.intent(), "echo_payload");
    assert_eq!(proof.scopes(), ["read"]);
    assert_eq!(proof.key(), key);
    assert_eq!(proof.expires_at(), at("2026-05-01T00:06:00.000001Z"));
    let proof = verified(EXISTING, &[key], |_| {}).unwrap();
    assert_eq!(proof.nonce(), "a172de5a3d8d0800");
    let made = sign(&secret(), &manifest()).unwrap();
    assert_eq!([made.manifest, made.signature], OURS);
}

#[test]
fn absent_and_empty_headers_are_missing() {
    let [manifest, signature] = OURS.map(Some);
    for headers in [
        [None, None],
        [manifest, None],
        [None, signature],
        [Some(""), signature],
        [manifest, Some("")],
    ] {
        let found = verified_if_present(headers, &[secret().public_key()], |_| {});
        assert_eq!(found, Err(Reason::MissingHeaders), "{headers:?}");
    }
}

#[test]
fn a_manifest_must_be_base64url_of_bounded_length() {
    let keys = [secret().public_key()];
    let [manifest, signature] = OURS;
    for bad in [
        "%".to_owned(),
        format!("{manifest}="),
        format!(" {manifest}"),
        format!("{manifest}\n"),
        format!("{manifest},{manifest}"),
        "Ω".to_owned(),
        "e+/=".to_owned(),
        // Bits beyond the last byte.
        "e31".to_owned(),
        "A".repeat(MAX_HEADER_BYTES + 4),
    ] {
        let found = verified([&bad, signature], &keys, |_| {});
        assert_eq!(found, Err(Reason::ManifestBase64), "{bad}");
    }
    let longest = "A".repeat(MAX_HEADER_BYTES);
    let found = verified([&longest, signature], &keys, |_| {});
    assert_eq!(found, Err(Reason::ManifestJson));
}

#[test]
fn a_manifest_must_be_one_object_of_known_fields() {
    let json = json();
    let nested = "[".repeat(MAX_HEADER_BYTES / 2);
    let with = |from: &str, to: &str| {
        let changed = json.replacen(from, to, 1);
        assert_ne!(changed, json, "{from:?} is not in the manifest");
        changed
    };
    for bad in [
        "{".to_owned(),
        "null".to_owned(),
        "[]".to_owned(),
        // The fields by their order, as serde would read them.
        format!(r#"["poca-1","agent-Ω","echo","i",[],"{BODY}","n","2026-05-01T00:05:00Z"]"#),
        format!("{json}{json}"),
        format!("{json}x"),
        with("poca-1", "poca-2"),
        with("\"poca-1\"", "1"),
        with("\"tool\":", "\"tool\":\"todos\",\"tool\":"),
        with("\"tool\":", "\"tool\":null,\"tool\":"),
        with("\"tool\":", "\"to\\u006fl\":\"echo\",\"tool\":"),
        with("\"tool\":", "\"Tool\":\"todos\",\"tool\":"),
        with("\"tool\":", "\"use\":1,\"tool\":"),
        with("\"echo\"", "[\"echo\"]"),
        with("[\"read\"]", "\"read\""),
        with("[\"read\"]", "[1]"),
        with("echo_payload", "echo\\npayload"),
        with("echo_payload", "\\u0000"),
        with("echo_payload", "\\ud800"),
        with("echo_payload", &"i".repeat(MAX_INTENT_BYTES + 1)),
        with("echo_payload", &nested),
        with("\"read\"", &nested),
        with("read", &"r".repeat(MAX_TEXT_BYTES + 1)),
        with("read", "re\\tad"),
        with("\"read\"", &vec!["\"r\""; MAX_SCOPES + 1].join(",")),
        with("0001", &"0".repeat(MAX_TEXT_BYTES)),
        with("0001", "\\u0085"),
    ] {
        assert_eq!(check(&signed(&bad)), Err(Reason::ManifestJson), "{bad}");
    }
    let mut not_utf8 = json.clone().into_bytes();
    let at = json.find("echo_payload").unwrap();
    not_utf8[at] = 0xff;
    assert_eq!(check(&signed(not_utf8)), Err(Reason::ManifestJson));
}

#[test]
fn what_the_existing_verifier_takes_is_taken() {
    let json = json();
    for (from, to) in [
        ("\"ver\":\"poca-1\",", ""),
        ("\"poca-1\"", "\"\""),
        ("\"intent\":\"echo_payload\",", ""),
        ("\"scopes\":[\"read\"],", ""),
        ("[\"read\"]", "null"),
        ("[\"read\"]", "[]"),
        (":\"echo\"", ": \"\\u0065cho\" "),
        ("{", " \n{"),
        ("000102030405060708090a0b0c0d0e0f", "n"),
        ("echo_payload", "für Ω"),
        ("echo_payload", &"i".repeat(MAX_INTENT_BYTES)),
        ("read", &"r".repeat(MAX_TEXT_BYTES)),
        ("\"read\"", &vec!["\"r\""; MAX_SCOPES].join(",")),
    ] {
        let changed = json.replacen(from, to, 1);
        assert_ne!(changed, json, "{from:?} is not in the manifest");
        assert!(check(&signed(&changed)).is_ok(), "{changed}");
    }
}

#[test]
fn fields_that_are_needed_must_be_there() {
    let json: serde_json::Value = serde_json::from_str(&json()).unwrap();
    for field in ["caller_id", "tool", "payload_sha256", "nonce", "exp"] {
        for value in [None, Some("".into()), Some(serde_json::Value::Null)] {
            let mut json = json.clone();
            let fields = json.as_object_mut().unwrap();
            match value {
                None => fields.remove(field),
                Some(value) => fields.insert(field.to_owned(), value),
            };
            let found = check(&signed(json.to_string()));
            assert_eq!(found, Err(Reason::ManifestMissingFields), "{json}");
        }
    }
    assert_eq!(check(&signed("{}")), Err(Reason::ManifestMissingFields));
}

#[test]
fn another_call_than_the_signed_one_is_refused_with_its_reason() {
    let keys = [secret().public_key()];
    let [alpha, upper, omega] =
        ["agent-alpha", "Agent-Ω", "agent-\u{2126}"].map(|text| Identity::parse(text).unwrap());
    // The last is the ohm sign: it looks the same, and is somebody else.
    for caller in [alpha, upper, omega] {
        let found = verified(OURS, &keys, |call| call.caller = caller.clone());
        assert_eq!(found, Err(Reason::CallerMismatch), "{caller}");
    }
    for tool in ["todos", "Echo", "echo ", ""] {
        let found = verified(OURS, &keys, |call| call.tool = tool.to_owned());
        assert_eq!(found, Err(Reason::ToolMismatch), "{tool:?}");
    }
    let found = verified(OURS, &keys, |call| call.payload_sha256[31] ^= 1);
    assert_eq!(found, Err(Reason::PayloadHashMismatch));
    let upper = signed(json().replace(BODY, &BODY.to_uppercase()));
    assert_eq!(check(&upper), Err(Reason::PayloadHashMismatch));
}

#[test]
fn expiry_counts_with_the_skew_of_both_clocks() {
    let keys = [secret().public_key()];
    let found = |now: &str| verified(OURS, &keys, |call| call.now = at(now)).map(|_| ());
    // It expires at 00:05, and may be made 1 h ahead.
    for (now, expected) in [
        ("2026-05-01T00:06:00Z", Ok(())),
        ("2026-05-01T00:06:00.000001Z", Err(Reason::Expired)),
        ("2027-05-01T00:00:00Z", Err(Reason::Expired)),
        ("2026-04-30T23:04:00Z", Ok(())),
        ("2026-04-30T23:03:59.999999Z", Err(Reason::ExpiryTooFar)),
        ("2025-05-01T00:00:00Z", Err(Reason::ExpiryTooFar)),
    ] {
        assert_eq!(found(now), expected, "{now}");
    }
    let never = verified(OURS, &keys, |call| call.now = Timestamp::MAX);
    assert_eq!(never, Err(Reason::Expired));
    let ever = verified(OURS, &keys, |call| call.max_ttl = Duration::MAX);
    assert!(ever.is_ok());
}

#[test]
fn a_proof_ends_at_the_moment_from_which_its_headers_are_refused() {
    let keys = [secret().public_key()];
    let end = verified(OURS, &keys, |_| {}).unwrap().expires_at();
    let found = |now| verified(OURS, &keys, |call| call.now = now).map(|_| ());
    assert_eq!(found(end.saturating_add_micros(-1)), Ok(()));
    assert_eq!(found(end), Err(Reason::Expired));
}

#[test]
fn expiry_is_written_as_go_writes_it() {
    for (exp, end) in [
        ("2026-05-01T00:05:00Z", "2026-05-01T00:06:00.000001Z"),
        ("2026-05-01T02:05:00+02:00", "2026-05-01T00:06:00.000001Z"),
        ("2026-04-30T18:35:00-05:30", "2026-05-01T00:06:00.000001Z"),
        ("2026-05-01T00:05:00.25Z", "2026-05-01T00:06:00.250001Z"),
        (
            "2026-05-01T00:05:00.123456789Z",
            "2026-05-01T00:06:00.123457Z",
        ),
    ] {
        let proof = check(&signed(json().replace("2026-05-01T00:05:00Z", exp))).unwrap();
        assert_eq!(proof.expires_at(), at(end), "{exp}");
    }
    for bad in [
        "tomorrow",
        "1777593900",
        "2026-05-01",
        "2026-05-01T00:05:00",
        "2026-05-01 00:05:00Z",
        "2026-05-01t00:05:00Z",
        "2026-05-01T00:05:00z",
        "2026-05-01T00:05:00+0200",
        "2026-05-01T00:05:00+02",
        "2026-05-01T00:05:00.Z",
        "2026-05-01T00:05:00,5Z",
        "2026-05-01T00:05:60Z",
        "2026-05-01T24:00:00Z",
        "2026-05-01T00:05:00+24:00",
        "2026-02-30T00:05:00Z",
        "2026-13-01T00:05:00Z",
        "+2026-05-01T00:05:00Z",
        " 2026-05-01T00:05:00Z",
        "2026-05-01T00:05:00Z ",
        "2026-05-01T00:05:0\u{661}Z",
        "0000-01-01T00:00:00Z",
    ] {
        let found = check(&signed(json().replace("2026-05-01T00:05:00Z", bad)));
        assert_eq!(found, Err(Reason::ExpiryUnparseable), "{bad}");
    }
}

#[test]
fn only_an_active_key_of_the_caller_vouches() {
    let (key, another) = (secret().public_key(), other().public_key());
    assert_eq!(verified(OURS, &[], |_| {}), Err(Reason::UnknownCallerKey));
    let found = verified(OURS, &[another], |_| {});
    assert_eq!(found, Err(Reason::SignatureInvalid));
    for keys in [[another, key], [key, another]] {
        let proof = verified(OURS, &keys, |_| {}).unwrap();
        assert_eq!(proof.key(), key);
    }
}

#[test]
fn a_signature_must_be_the_keys_over_this_very_text() {
    let keys = [secret().public_key()];
    let [manifest, signature] = OURS;
    for bad in ["%", &format!("{signature}=="), &format!("{signature}\n")] {
        let found = verified([manifest, bad], &keys, |_| {});
        assert_eq!(found, Err(Reason::SignatureBase64), "{bad}");
        // Also where no key is known: the order of the checks is fixed.
        let found = verified([manifest, bad], &[], |_| {});
        assert_eq!(found, Err(Reason::SignatureBase64), "{bad}");
    }
    let over_json = URL_SAFE_NO_PAD.encode(secret().sign(json().as_bytes()));
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let longer = URL_SAFE_NO_PAD.encode([bytes.as_slice(), b"\0"].concat());
    for bad in ["AAAA", &signature[..84], &over_json, &longer, EXISTING[1]] {
        let found = verified([manifest, bad], &keys, |_| {});
        assert_eq!(found, Err(Reason::SignatureInvalid), "{bad}");
    }
}

/// S and S + L are the same number to a lax verifier: a second signature without the key.
#[test]
fn a_signature_has_one_form() {
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut bytes = URL_SAFE_NO_PAD.decode(OURS[1]).unwrap();
    let mut carry = 0;
    for (byte, add) in bytes[32..].iter_mut().zip(L) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    let found = verified(
        [OURS[0], &URL_SAFE_NO_PAD.encode(bytes)],
        &[secret().public_key()],
        |_| {},
    );
    assert_eq!(found, Err(Reason::SignatureInvalid));
}

#[test]
fn codes_are_stable_and_none_is_twice() {
    let codes = Reason::ALL.map(Reason::code);
    assert_eq!(codes[0], "poca_missing_headers");
    assert_eq!(codes[8], "poca_exp_too_far");
    assert_eq!(Reason::Replay.to_string(), "poca_replay");
    assert!(Reason::ALL.is_sorted());
    let distinct: std::collections::HashSet<_> = codes.iter().collect();
    assert_eq!(distinct.len(), codes.len());
}

#[test]
fn nothing_is_signed_that_would_be_refused() {
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest();
        change(&mut manifest);
        sign(&secret(), &manifest).unwrap_err().field
    };
    assert_eq!(refused(&|m| m.tool.clear()), "tool");
    assert_eq!(refused(&|m| m.nonce.clear()), "nonce");
    assert_eq!(refused(&|m| m.tool = "a\nb".to_owned()), "tool");
    assert_eq!(
        refused(&|m| m.intent = "i".repeat(MAX_INTENT_BYTES + 1)),
        "intent"
    );
    assert_eq!(
        refused(&|m| m.scopes = vec!["s".to_owned(); MAX_SCOPES + 1]),
        "scopes"
    );
    let scope = "s".repeat(MAX_TEXT_BYTES);
    let error = ManifestError { field: "manifest" };
    let mut large = manifest();
    large.scopes = vec![scope; MAX_SCOPES];
    assert_eq!(sign(&secret(), &large), Err(error));
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let text = "[^\\p{Cc}]{1,20}";
    (
        text,
        text,
        "[^\\p{Cc}]{0,40}",
        prop::collection::vec(text, 0..4),
        any::<[u8; 32]>(),
        text,
        0i64..3_600,
    )
        .prop_map(
            |(caller, tool, intent, scopes, payload_sha256, nonce, seconds)| Manifest {
                caller: Identity::parse(&caller).unwrap(),
                tool,
                intent,
                scopes,
                payload_sha256,
                nonce,
                expires: at("2026-05-01T00:00:00Z").saturating_add_micros(seconds * 1_000_000),
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_signed_verifies_and_says_what_was_said(manifest in manifests(), seed: [u8; 32]) {
        let key = SecretKey::from_seed(&seed);
        let made = sign(&key, &manifest).unwrap();
        let keys = [key.public_key()];
        let headers = [made.manifest.as_str(), &made.signature];
        let proof = verified(headers, &keys, |call| {
            call.caller = manifest.caller.clone();
            call.tool.clone_from(&manifest.tool);
            call.payload_sha256 = manifest.payload_sha256;
        }).unwrap();
        prop_assert_eq!(proof.nonce(), manifest.nonce);
        prop_assert_eq!(proof.intent(), manifest.intent);
        prop_assert_eq!(proof.scopes(), manifest.scopes);
        let skew = i64::try_from(CLOCK_SKEW.as_micros()).unwrap();
        prop_assert_eq!(proof.expires_at(), manifest.expires.saturating_add_micros(skew + 1));
    }

    /// Whatever is changed on the way, the call is not the one that was signed.
    #[test]
    fn a_changed_byte_of_either_header_is_refused(at: prop::sample::Index, to in "[A-Za-z0-9_-]", second: bool) {
        let mut headers = OURS.map(str::to_owned);
        let header = &mut headers[usize::from(second)];
        let at = at.index(header.len());
        prop_assume!(header[at..=at] != to);
        header.replace_range(at..=at, &to);
        let [manifest, signature] = &headers;
        let found = verified([manifest, signature], &[secret().public_key()], |_| {});
        prop_assert!(found.is_err());
    }

    #[test]
    fn no_headers_make_it_panic(manifest: String, signature: String, json: String) {
        let keys = [secret().public_key()];
        let found = verified([&manifest, &signature], &keys, |_| {});
        prop_assert!(found.is_err());
        prop_assert!(check(&signed(&json)).is_err());
    }
}
