//! The reader of what roots sign accepts exactly what the writer writes, one or many.
#![no_main]

use libfuzzer_sys::fuzz_target;
use permission::Statement;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(statements) = Statement::all_from_canonical(bytes) {
        let written: Vec<u8> = statements.iter().flat_map(Statement::canonical_bytes).collect();
        assert_eq!(written, bytes);
        assert_eq!(Statement::from_canonical(bytes).is_ok(), statements.len() == 1);
    }
});
