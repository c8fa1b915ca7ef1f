//! Whatever is read of a body names bytes of it, and another reader finds the same tool and
//! payload there.
#![no_main]

use authz_service::relay::envelope::{Form, read};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let declared = read(body, true);
    let Ok(call) = read(body, false) else {
        assert!(declared.is_err());
        return;
    };
    let payload = body.get(call.payload.clone()).expect("bytes of the body");
    if call.form == Form::Bare {
        assert_eq!(payload, body);
        assert_eq!(call.tool.as_str(), "echo");
        return;
    }
    assert_eq!(declared, Ok(call.clone()));
    let whole: Value = serde_json::from_slice(body).expect("JSON");
    assert_eq!(whole["tool"], call.tool.as_str());
    let payload: Value = serde_json::from_slice(payload).expect("JSON");
    assert_eq!(whole["payload"], payload);
    assert_eq!(whole.as_object().map(serde_json::Map::len), Some(2));
});
