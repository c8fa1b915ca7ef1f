//! The reader of signed text accepts exactly what the writer writes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use permission::Permission;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(permission) = Permission::from_canonical(bytes) {
        assert_eq!(permission.canonical_bytes(), bytes);
    }
});
