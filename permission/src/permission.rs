//! A permission, and the bytes that a principal signs.

use crate::canonical::{CanonicalError, Lines};
use crate::destination::Destination;
use crate::identity::Identity;
use crate::spki::Spki;
use crate::text::Id;
use crate::time::Window;

/// First line of the signed text.
const V1: &str = "agent-gateway-permission-v1";

/// One agent key may reach one destination for a while, says one principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// Names the row.
    pub permission_id: Id,
    /// Names the principal's key.
    pub signing_key_id: Id,
    /// The agent.
    pub subject_identity: Identity,
    /// The agent's exact key.
    pub subject_spki: Spki,
    /// What may be reached.
    pub destination: Destination,
    /// When.
    pub window: Window,
}

impl Permission {
    /// The signed bytes, version 1: eight lines of UTF-8, each ended by LF.
    ///
    /// No field can hold a line feed and all but the free texts have one spelling, so different
    /// permissions have different bytes.
    pub fn canonical_bytes(&self) -> Vec<u8> {
        format!(
            "{V1}\n\
             permission_id={}\n\
             signing_key_id={}\n\
             subject_identity={}\n\
             subject_public_key_spki_der={}\n\
             destination={}\n\
             not_before={}\n\
             not_after={}\n",
            self.permission_id,
            self.signing_key_id,
            self.subject_identity,
            self.subject_spki.to_hex(),
            self.destination,
            self.window.not_before(),
            self.window.not_after(),
        )
        .into_bytes()
    }

    /// Reads signed bytes back; accepts exactly what [`Permission::canonical_bytes`] writes.
    pub fn from_canonical(bytes: &[u8]) -> Result<Self, CanonicalError> {
        let mut lines = Lines::new(bytes, V1)?;
        lines.version(&[V1])?;
        let permission = Self {
            permission_id: lines.id("permission_id")?,
            signing_key_id: lines.id("signing_key_id")?,
            subject_identity: lines.field("subject_identity", |text| Identity::parse(text).ok())?,
            subject_spki: lines.spki("subject_public_key_spki_der")?,
            destination: lines.destination()?,
            window: lines.window()?,
        };
        lines.end()?;
        Ok(permission)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::{ECDSA_P256_SHA256, PrincipalKey, SignatureInvalid, Verified};
    use crate::time::Timestamp;

    /// Made by openssl alone (testdata/make), so nothing of ours vouches for it.
    const TEXT: &[u8] = include_bytes!("../testdata/permission-v1.txt");
    const SIGNATURE: &[u8] = include_bytes!("../testdata/permission-v1.sig");
    const KEY: &[u8] = include_bytes!("../testdata/principal.spki.der");

    fn bad_line(line: usize) -> CanonicalError {
        CanonicalError { version: V1, line }
    }

    fn golden() -> Permission {
        Permission::from_canonical(TEXT).unwrap()
    }

    #[test]
    fn golden_text_round_trips_and_its_signature_verifies() {
        let permission = golden();
        assert_eq!(permission.permission_id.as_str(), "perm-1");
        assert_eq!(permission.destination.to_string(), "api.example.com:443");
        assert_eq!(permission.canonical_bytes(), TEXT);
        let key = PrincipalKey::from_stored(ECDSA_P256_SHA256, KEY).unwrap();
        assert_eq!(
            Verified::new(permission.clone(), SIGNATURE, &key)
                .unwrap()
                .get(),
            &permission
        );
    }

    #[test]
    fn any_changed_field_breaks_the_signature() {
        let key = PrincipalKey::from_stored(ECDSA_P256_SHA256, KEY).unwrap();
        let other = |change: &dyn Fn(&mut Permission)| {
            let mut permission = golden();
            change(&mut permission);
            permission
        };
        let later = golden().window.not_after().saturating_add_micros(1);
        let earlier = golden().window.not_before().saturating_add_micros(-1);
        for changed in [
            other(&|p| p.permission_id = Id::parse("perm-2").unwrap()),
            other(&|p| p.signing_key_id = Id::parse("org-bob").unwrap()),
            other(&|p| p.subject_identity = Identity::parse("Agent-alpha").unwrap()),
            other(&|p| p.subject_spki = key.spki().clone()),
            other(&|p| p.destination = "api.example.com:444".parse().unwrap()),
            other(&|p| p.window = Window::new(p.window.not_before(), later).unwrap()),
            other(&|p| p.window = Window::new(earlier, p.window.not_after()).unwrap()),
        ] {
            assert_ne!(changed, golden());
            assert_eq!(
                Verified::new(changed, SIGNATURE, &key),
                Err(SignatureInvalid)
            );
        }
    }

    #[test]
    fn a_text_that_is_not_canonical_is_refused_with_its_line() {
        let text = std::str::from_utf8(TEXT).unwrap();
        for (from, to, line) in [
            ("-v1\n", "-v2\n", 1),
            ("-v1\n", "-v1\r\n", 1),
            ("permission_id=", "permission_id = ", 2),
            ("perm-1", "", 2),
            ("signing_key_id", "key_id", 3),
            ("agent-alpha", "agent\u{7}alpha", 4),
            ("=30593013", "=3059301G", 5),
            ("a", "A", 1),
            ("api.example.com:443", "api.example.com", 6),
            ("api.example.com", "API.example.com", 6),
            ("2026-05-01T00:00:00.000000Z", "2026-05-01T00:00:00Z", 7),
            (
                "2026-05-01T00:00:00.000000Z",
                "2026-05-01T00:00:00.000000+00:00",
                7,
            ),
            ("not_after=2026", "not_after=2025", 8),
            ("06-01T00:00:00.000000Z\n", "06-01T00:00:00.000000Z", 8),
            ("06-01T00:00:00.000000Z\n", "06-01T00:00:00.000000Z\n\n", 9),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from:?} is not in the text");
            let read = Permission::from_canonical(changed.as_bytes());
            assert_eq!(read, Err(bad_line(line)), "{from:?} -> {to:?}");
        }
        assert_eq!(Permission::from_canonical(&[]), Err(bad_line(1)));
        assert_eq!(Permission::from_canonical(b"\xff"), Err(bad_line(1)));
    }

    fn permissions() -> impl Strategy<Value = Permission> {
        let text = "[a-c=\\-: ]{1,4}";
        let spki = prop::sample::select(vec![golden().subject_spki, Spki::from_der(KEY).unwrap()]);
        (
            text,
            text,
            text,
            spki,
            "[a-c]{1,2}(:[1-9])?",
            0i64..4,
            1i64..4,
        )
            .prop_map(
                |(id, key, identity, subject_spki, destination, start, length)| Permission {
                    permission_id: Id::parse(&id).unwrap(),
                    signing_key_id: Id::parse(&key).unwrap(),
                    subject_identity: Identity::parse(&identity).unwrap(),
                    subject_spki,
                    destination: destination.parse().unwrap(),
                    window: Window::new(
                        Timestamp::from_unix_micros(start).unwrap(),
                        Timestamp::from_unix_micros(start + length).unwrap(),
                    )
                    .unwrap(),
                },
            )
    }

    proptest! {
        #[test]
        fn canonical_bytes_are_injective(a in permissions(), b in permissions()) {
            prop_assert_eq!(a == b, a.canonical_bytes() == b.canonical_bytes());
            prop_assert_eq!(Permission::from_canonical(&a.canonical_bytes()).unwrap(), a);
        }

        #[test]
        fn whatever_is_read_is_written_back(bytes in prop::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index) {
            let mut text = TEXT.to_vec();
            let at = at.index(text.len());
            text.splice(at..(at + bytes.len()).min(TEXT.len()), bytes);
            if let Ok(permission) = Permission::from_canonical(&text) {
                prop_assert_eq!(permission.canonical_bytes(), text);
            }
        }
    }
}
