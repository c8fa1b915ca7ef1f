//! No bytes make the certificate reader panic, and what it accepts is consistent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use permission::{Identity, IdentitySource, Leaf, Spki};

fuzz_target!(|bytes: &[u8]| {
    let sources = [
        IdentitySource::default(),
        IdentitySource::SpiffeId,
        IdentitySource::CommonName,
    ];
    for source in sources {
        let _ = Leaf::from_pem(bytes, &source);
        if let Ok(leaf) = Leaf::from_der(bytes, &source) {
            assert_eq!(Identity::parse(leaf.identity.as_str()).as_ref(), Ok(&leaf.identity));
            assert_eq!(Spki::from_der(leaf.spki.as_der()).as_ref(), Ok(&leaf.spki));
            assert!(leaf.identity.header_value().is_ascii());
        }
    }
});
