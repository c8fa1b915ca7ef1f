//! SPIFFE IDs (SPIFFE-ID standard, section 2).

/// Longest id, in bytes (section 2.3).
const MAX: usize = 2048;

/// Whether `uri` is a SPIFFE ID of a workload: a trust domain and a path, in the one spelling that
/// the standard allows, so that equal means equal.
pub(super) fn is_id(uri: &str) -> bool {
    let Some((trust_domain, path)) = uri
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let in_domain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_segment = |text: &str| !matches!(text, "" | "." | "..") && text.bytes().all(in_path);
    uri.len() <= MAX
        && !trust_domain.is_empty()
        && trust_domain.bytes().all(in_domain)
        && path.split('/').all(is_segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_spelling_of_the_standard_is_an_id() {
        for id in [
            "spiffe://example.org/a",
            "spiffe://example.org/ns/agents/sa/Agent_1.b-c",
            "spiffe://1.2.3.4/a",
            "spiffe://a_b/...",
        ] {
            assert!(is_id(id), "{id}");
        }
        for other in [
            "",
            "spiffe://",
            "spiffe:///a",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/./a",
            "spiffe://example.org/a/..",
            "spiffe://Example.org/a",
            "SPIFFE://example.org/a",
            "spiffe://example.org:443/a",
            "spiffe://user@example.org/a",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://example.org/a%62",
            "spiffe://example.org/\u{e4}",
            "https://example.org/a",
        ] {
            assert!(!is_id(other), "{other}");
        }
    }
}
