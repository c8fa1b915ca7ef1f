//! No bytes make the certificate reader panic, and what it accepts is consistent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use permission::{ExtensionOid, Identity, Leaf, Spki};

fuzz_target!(|bytes: &[u8]| {
    let oid = ExtensionOid::default();
    let _ = Leaf::from_pem(bytes, &oid);
    if let Ok(leaf) = Leaf::from_der(bytes, &oid) {
        assert_eq!(Identity::parse(leaf.identity.as_str()).as_ref(), Ok(&leaf.identity));
        assert_eq!(Spki::from_der(leaf.spki.as_der()).as_ref(), Ok(&leaf.spki));
        assert!(leaf.identity.header_value().is_ascii());
    }
});
