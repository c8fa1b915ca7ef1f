//! Reads `x-forwarded-client-cert`, in which an Envoy says which certificate it saw in the handshake.
//!
//! Only where an operator says so: what is in this header anybody can write, unless the hop in
//! front replaces it (`SANITIZE_SET`). Such a hop writes exactly one element, so several are refused:
//! one of them would be somebody else's word.

/// What one element says of the certificate, still URL-encoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// `Cert`: the leaf, PEM.
    Leaf(String),
    /// `Chain`: the leaf and what leads to its CA, PEM.
    Chain(String),
}

/// Why the header says nothing that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum XfccError {
    /// Two elements or more.
    #[error("x-forwarded-client-cert holds the word of several hops")]
    SeveralHops,
    /// Not `key=value;key="value"`, or a key twice.
    #[error("x-forwarded-client-cert can't be read")]
    Malformed,
}

/// The certificate in the header's only element; `None` if it holds neither `Cert` nor `Chain`.
pub(super) fn read(header: &str) -> Result<Option<Forwarded>, XfccError> {
    let (mut leaf, mut chain) = (None, None);
    let mut rest = header;
    loop {
        let (key, after) = rest.split_once('=').ok_or(XfccError::Malformed)?;
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(XfccError::Malformed);
        }
        let (value, after) = value(after)?;
        // Envoy writes the names so; a repeated `URI` or `DNS` is one for each of the certificate's.
        let slot = if key.eq_ignore_ascii_case("Cert") {
            Some(&mut leaf)
        } else if key.eq_ignore_ascii_case("Chain") {
            Some(&mut chain)
        } else {
            None
        };
        if slot.is_some_and(|slot| slot.replace(value).is_some()) {
            return Err(XfccError::Malformed);
        }
        let mut next = after.chars();
        match next.next() {
            None => break,
            Some(';') => rest = next.as_str(),
            Some(',') => return Err(XfccError::SeveralHops),
            Some(_) => return Err(XfccError::Malformed),
        }
    }
    Ok(leaf.map(Forwarded::Leaf).or(chain.map(Forwarded::Chain)))
}

/// A value, which may be quoted, and what follows it.
fn value(text: &str) -> Result<(String, &str), XfccError> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        if value.contains('"') {
            return Err(XfccError::Malformed);
        }
        return Ok((value.to_owned(), after));
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next().ok_or(XfccError::Malformed)? {
            '"' => return Ok((value, characters.as_str())),
            '\\' => value.push(characters.next().ok_or(XfccError::Malformed)?),
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_elements_certificate_is_taken() {
        let leaf = |text: &str| Ok(Some(Forwarded::Leaf(text.to_owned())));
        for (header, expected) in [
            ("Cert=\"a%0Ab\"", leaf("a%0Ab")),
            ("Cert=a", leaf("a")),
            (
                "By=spiffe://x/y;Hash=00;Cert=\"a\";Subject=\"CN=x,O=\\\"y;z\\\"\";URI=u;URI=v",
                leaf("a"),
            ),
            ("Chain=\"c\";Cert=\"a\"", leaf("a")),
            ("Chain=\"c\"", Ok(Some(Forwarded::Chain("c".to_owned())))),
            ("Hash=00;Subject=\"\"", Ok(None)),
            ("Subject=\"Cert=evil\";Hash=1", Ok(None)),
        ] {
            assert_eq!(read(header), expected, "{header}");
        }
    }

    #[test]
    fn several_hops_and_what_cannot_be_read_are_refused() {
        use XfccError::*;
        for (header, expected) in [
            ("Cert=\"a\",Cert=\"b\"", SeveralHops),
            ("Hash=1,Hash=2;Cert=\"a\"", SeveralHops),
            ("Hash=1,", SeveralHops),
            ("Cert=\"a\", Cert=\"b\"", SeveralHops),
            ("", Malformed),
            ("Cert", Malformed),
            ("=a", Malformed),
            (" Cert=a", Malformed),
            ("Cert=\"a", Malformed),
            ("Cert=\"a\\", Malformed),
            ("Cert=\"a\"b", Malformed),
            ("Cert=a\"b\"", Malformed),
            ("Cert=\"a\";", Malformed),
            ("Cert=\"a\";Cert=\"b\"", Malformed),
            ("Cert=\"a\";cert=\"b\"", Malformed),
            ("Chain=\"a\";CHAIN=\"b\"", Malformed),
        ] {
            assert_eq!(read(header), Err(expected), "{header}");
        }
    }
}
