//! The readers of what principals sign accept exactly what the writers write.
#![no_main]

use libfuzzer_sys::fuzz_target;
use permission::{Permission, PocaKey};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(permission) = Permission::from_canonical(bytes) {
        assert_eq!(permission.canonical_bytes(), bytes);
    }
    if let Ok(key) = PocaKey::from_canonical(bytes) {
        assert_eq!(key.canonical_bytes(), bytes);
    }
});
