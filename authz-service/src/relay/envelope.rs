//! What a request's body asks for: which tool, and which of its bytes are the payload.
//!
//! The tool gets exactly the bytes that were looked at here; nothing is written anew, so numbers,
//! order and spacing stay what the agent sent. Of JSON only what every reader understands alike
//! is taken: no duplicate keys, no lone surrogates, no number beyond a double's range, at most
//! [`MAX_DEPTH`] levels.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::tools::{ToolName, bare_body_tool};

/// Deepest nesting of arrays and objects, the envelope's own level included: where `serde_json`
/// stops by itself.
pub const MAX_DEPTH: usize = 127;

/// A body that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which tool is asked for.
    pub tool: ToolName,
    /// Where in the body its payload lies.
    pub payload: Range<usize>,
    /// What the payload is.
    pub form: Form,
    /// Whether it is JSON that every reader understands alike.
    pub is_json: bool,
}

/// How a body names its tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `{"tool": …, "payload": …}`: the payload is JSON.
    Envelope,
    /// No envelope: the whole body goes to the tool `echo`, whatever it is.
    Bare,
}

/// A body that was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Declared to be JSON, and not JSON.
    #[error("not JSON, although declared so")]
    NotJson,
    /// JSON with a `tool`, yet not exactly a tool's name and a payload.
    #[error("an object with `tool` must have exactly `tool`, a name, and `payload`")]
    Malformed,
    /// An envelope whose tool is none that could be configured.
    #[error("no tool has that name")]
    BadName,
}

/// Reads a body; `declared_json` says whether its content type is JSON's.
pub fn read(body: &[u8], declared_json: bool) -> Result<Call, EnvelopeError> {
    let bare = |is_json| Call {
        tool: bare_body_tool(),
        payload: 0..body.len(),
        form: Form::Bare,
        is_json,
    };
    let Some((text, shape)) = scan(body) else {
        return if declared_json {
            Err(EnvelopeError::NotJson)
        } else {
            Ok(bare(false))
        };
    };
    if shape == Shape::Other {
        return Ok(bare(true));
    }
    let envelope: Envelope<'_> =
        serde_json::from_str(text).map_err(|_| EnvelopeError::Malformed)?;
    let payload = envelope.payload.get();
    // Both are of one allocation: the payload is borrowed from the body.
    let start = payload.as_ptr().addr() - text.as_ptr().addr();
    Ok(Call {
        tool: envelope.tool.parse().map_err(|_| EnvelopeError::BadName)?,
        payload: start..start + payload.len(),
        form: Form::Envelope,
        is_json: true,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    tool: Cow<'a, str>,
    #[serde(borrow)]
    payload: &'a RawValue,
}

/// What a JSON text is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// An object with the key `tool`.
    Envelope,
    Other,
}

/// The body as text, if it is JSON that all readers understand alike.
fn scan(body: &[u8]) -> Option<(&str, Shape)> {
    let text = std::str::from_utf8(body).ok()?;
    let mut json = serde_json::Deserializer::from_str(text);
    let shape = Scan.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some((text, shape))
}

/// Walks JSON and keeps nothing of it.
struct Scan;

#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for Scan {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Shape, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Shape, A::Error> {
        while items.next_element_seed(Self)?.is_some() {}
        Ok(Shape::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Shape, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = members.next_key::<Key<'de>>()? {
            if !seen.insert(key) {
                return Err(A::Error::custom("duplicate key"));
            }
            members.next_value_seed(Self)?;
        }
        Ok(if seen.contains(&Key(Cow::Borrowed("tool"))) {
            Shape::Envelope
        } else {
            Shape::Other
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(body: &str) -> &str {
        let call = read(body.as_bytes(), true).unwrap();
        &body[call.payload]
    }

    #[test]
    fn an_envelope_gives_its_tool_and_the_very_bytes_of_its_payload() {
        for (body, expected) in [
            (r#"{"tool":"todos","payload":{"a":1}}"#, r#"{"a":1}"#),
            (
                " {\n\"payload\" : { \"b\" : [1.0, 1e2,  12345678901234567890123] } , \"tool\":\"todos\" }",
                "{ \"b\" : [1.0, 1e2,  12345678901234567890123] }",
            ),
            (r#"{"tool":"todos","payload":null}"#, "null"),
            (
                r#"{"\u0074ool":"to\u0064os","payload":"\u00e4ö"}"#,
                r#""\u00e4ö""#,
            ),
        ] {
            let call = read(body.as_bytes(), true).unwrap();
            assert_eq!(call.tool.as_str(), "todos", "{body}");
            assert_eq!(call.form, Form::Envelope, "{body}");
            assert!(call.is_json, "{body}");
            assert_eq!(payload(body), expected, "{body}");
        }
    }

    #[test]
    fn what_is_no_envelope_goes_to_echo_as_it_is() {
        for (body, declared) in [
            (&b"{\"message\":\"hi\"}"[..], true),
            (b"[{\"tool\":\"todos\"}]", true),
            (b" null ", true),
            (b"\"tool\"", true),
            (b"", false),
            (b"plain text", false),
            (b"\xff\x00{", false),
            (b"{\"tool\":\"todos\"", false),
        ] {
            let call = read(body, declared).unwrap();
            assert_eq!(call.tool.as_str(), "echo");
            assert_eq!(call.is_json, declared);
            assert_eq!((call.payload, call.form), (0..body.len(), Form::Bare));
        }
    }

    #[test]
    fn an_object_with_a_tool_must_be_an_envelope() {
        for body in [
            r#"{"tool":"todos"}"#,
            r#"{"tool":"todos","payload":1,"more":2}"#,
            r#"{"tool":7,"payload":1}"#,
            r#"{"tool":null,"payload":1}"#,
        ] {
            for declared in [true, false] {
                let read = read(body.as_bytes(), declared);
                assert_eq!(read, Err(EnvelopeError::Malformed), "{body}");
            }
        }
        for name in ["", "a b", "ä", "../todos\\u0000"] {
            let body = format!(r#"{{"tool":"{name}","payload":1}}"#);
            assert_eq!(
                read(body.as_bytes(), true),
                Err(EnvelopeError::BadName),
                "{body}"
            );
        }
    }

    #[test]
    fn json_that_readers_would_understand_differently_is_not_json() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let (deepest, deeper) = (nested(MAX_DEPTH), nested(MAX_DEPTH + 1));
        assert!(read(deepest.as_bytes(), true).is_ok());
        let very_deep = nested(1_000_000);
        for body in [
            &deeper,
            &very_deep,
            r#"{"tool":"echo","tool":"todos","payload":1}"#,
            r#"{"tool":"todos","payload":1,"payload":2}"#,
            r#"{"tool":"todos","payload":{"a":1,"\u0061":2}}"#,
            r#"{"a":[{"b":1,"b":1}]}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":1e999}"#,
            r#"{"a":1,}"#,
            r#"{"a":NaN}"#,
            "{\"a\":1}{\"a\":2}",
            "{\"a\":1} x",
            "\u{feff}{}",
            "",
        ] {
            assert_eq!(read(body.as_bytes(), true), Err(EnvelopeError::NotJson));
        }
        assert_eq!(read(b"{\"a\":\"\xff\"}", true), Err(EnvelopeError::NotJson));
    }

    proptest! {
        #[test]
        fn whatever_is_read_names_bytes_of_the_body(body in ".{0,40}|\\{\"tool\":\"[a-z]{1,5}\",\"payload\":[0-9\\[\\]{}\", ]{0,10}\\}") {
            if let Ok(call) = read(body.as_bytes(), true) {
                let payload = body.as_bytes().get(call.payload).unwrap();
                prop_assert!(serde_json::from_slice::<serde_json::Value>(payload).is_ok());
            }
        }
    }
}
