//! Whatever is changed in a chain is found, where it was changed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use audit::{
    Chain, Draft, Event, Fault, Head, Outcome, Record, Target, Traffic, Verifier, head_of,
};
use permission::{Destination, Identity, Timestamp};

const REPLICA: &str = "gw-1";

/// Lines as the gateway writes them, of all kinds, with names that somebody chose.
fn chain(records: u64) -> Vec<Vec<u8>> {
    let identities: Vec<Identity> = ["agent-alpha", "agent \"\\\u{202e}\u{2028}é😀"]
        .map(|text| Identity::parse(text).unwrap())
        .into();
    let destination: Destination = "docstore:8443".parse().unwrap();
    let mut chain = Chain::after(Head::START);
    (0..records)
        .map(|number| {
            let ts =
                Timestamp::from_unix_micros(1_800_000_000_000_000 + 1000 * number.cast_signed());
            let event = match number % 5 {
                0..=2 => Event::Decision(Outcome::Allow, 200),
                3 => Event::Decision(Outcome::Deny, 403),
                _ => Event::TunnelEnd {
                    duration_ms: number,
                    traffic: Some(Traffic {
                        bytes_up: number,
                        bytes_down: 7 * number,
                    }),
                },
            };
            let id = format!("decision-{number}");
            let record = Record {
                decision_id: Some(&id),
                identity: identities.get(usize::from(number % 7 == 0)),
                target: match number % 2 {
                    0 => Target::Tunnel(Some(&destination)),
                    _ => Target::Tool(Some("echo")),
                },
                permission_id: (number % 3 == 0).then_some("p-1"),
                dialled: (number % 3 == 0).then(|| "[2001:db8::1]:443".parse().unwrap()),
                reason: if number % 5 < 3 {
                    &["allowed"]
                } else {
                    &["forbidden_by_poca", "x"]
                },
                ..Record::new(ts.unwrap(), event)
            };
            let mut line = Vec::new();
            chain.seal(&Draft::new(&record, REPLICA), &mut line);
            assert_eq!(line.pop(), Some(b'\n'));
            line
        })
        .collect()
}

/// The first line that is not what it should be, by its place, and what is wrong with it.
fn first_fault<'a>(
    mut verifier: Verifier,
    lines: impl Iterator<Item = &'a [u8]>,
) -> Option<(usize, Fault)> {
    lines
        .enumerate()
        .find_map(|(place, line)| Some((place, verifier.next(line).err()?)))
}

/// What is done to the record at a place: by which lines it is replaced, and which place is then
/// the first bad one, counted from there.
fn tamper(
    lines: &[Vec<u8>],
    at: usize,
    random: &mut fastrand::Rng,
) -> (Vec<Vec<u8>>, usize, usize) {
    let line = lines[at].clone();
    let other = || lines[(at + 1).max(2) - 2].clone();
    match random.u8(0..8) {
        // A bit, anywhere in it.
        0 => {
            let mut changed = line;
            let byte = random.usize(..changed.len());
            changed[byte] ^= 1 << random.u8(..8);
            (vec![changed], 1, 0)
        }
        // A letter's case, a digit.
        1 => {
            let mut changed = line;
            while changed == lines[at] {
                let byte = random.usize(..changed.len());
                changed[byte] = match changed[byte] {
                    letter if letter.is_ascii_alphabetic() => letter ^ 0x20,
                    b'9' => b'8',
                    digit if digit.is_ascii_digit() => digit + 1,
                    other => other,
                };
            }
            (vec![changed], 1, 0)
        }
        2 => (vec![], 1, 0),
        3 => (vec![line.clone(), line], 1, 1),
        // The last one has none after it to be swapped with.
        4 if at + 1 < lines.len() => (vec![lines[at + 1].clone(), line], 2, 0),
        4 | 5 => (vec![other(), line], 1, 0),
        // Another truth, with a hash of its own.
        6 => {
            let before = if at == 0 {
                Head::START
            } else {
                head_of(&lines[at - 1]).unwrap()
            };
            let mut forger = Chain::after(before);
            let mut other = Vec::new();
            let deny = Record::new(Timestamp::MIN, Event::Decision(Outcome::Deny, 403));
            forger.seal(&Draft::new(&deny, REPLICA), &mut other);
            other.pop();
            (vec![other], 1, 1)
        }
        // The same text, written in another way.
        _ => {
            let text = String::from_utf8(line).unwrap();
            let changed = match random.u8(0..4) {
                0 => text.replacen(':', ": ", 1),
                1 => format!("{text} "),
                2 => text.replacen("\"event\"", "\"\\u0065vent\"", 1),
                _ => text.replacen('{', "{\"event\":\"other\",", 1),
            };
            (vec![changed.into_bytes()], 1, 0)
        }
    }
}

#[test]
fn a_thousand_changes_of_single_records_are_all_found() {
    let lines = chain(100_000);
    // A verifier that has seen all before each place, so that not all is read each time.
    let mut verifier = Verifier::after(Head::START);
    let mut before = vec![verifier.clone()];
    for line in &lines {
        verifier.next(line).unwrap();
        before.push(verifier.clone());
    }
    let head = verifier.head();
    assert_eq!(head.seq, 100_000);
    let mut random = fastrand::Rng::with_seed(2026);
    for round in 0..1000 {
        let at = match round {
            0 => 0,
            1 => lines.len() - 1,
            _ => random.usize(..lines.len()),
        };
        let (instead, replaced, expected) = tamper(&lines, at, &mut random);
        let changed = || {
            let after = lines[at + replaced..].iter();
            instead.iter().chain(after).map(Vec::as_slice)
        };
        let found = first_fault(before[at].clone(), changed());
        if at + replaced == lines.len() && found.is_none() {
            // What the chain alone can't tell: its last record is gone, or another. Its head does.
            let mut verifier = before[at].clone();
            for line in changed() {
                verifier.next(line).unwrap();
            }
            assert_ne!(verifier.head(), head, "round {round}, record {at}");
            continue;
        }
        let place = found.map(|(place, _)| place);
        assert_eq!(
            place,
            Some(expected),
            "round {round}, record {at}: {found:?}"
        );
        if round == 500 {
            let all = lines[..at].iter().map(Vec::as_slice).chain(changed());
            let whole = first_fault(Verifier::after(Head::START), all);
            assert_eq!(whole.map(|(place, _)| place), Some(at + expected));
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let lines = chain(6);
    let fault = |order: &[usize]| {
        let lines = order.iter().map(|place| lines[*place].as_slice());
        first_fault(Verifier::after(Head::START), lines)
    };
    assert_eq!(fault(&[0, 1, 2, 3, 4, 5]), None);
    assert_eq!(
        fault(&[0, 1, 4]),
        Some((2, Fault::Missing { first: 3, last: 4 }))
    );
    assert_eq!(fault(&[1]), Some((0, Fault::Missing { first: 1, last: 1 })));
    assert_eq!(
        fault(&[0, 1, 1]),
        Some((2, Fault::OutOfPlace { expected: 3 }))
    );
    assert_eq!(
        fault(&[0, 2, 1]),
        Some((1, Fault::Missing { first: 2, last: 2 }))
    );
    let text = String::from_utf8(lines[3].clone()).unwrap();
    let edited = text.replace("\"deny\"", "\"allow\"");
    assert_eq!(head_of(edited.as_bytes()), Err(Fault::Edited));
    let spaced = text.replace("\"deny\"", " \"deny\"");
    let twice = text.replace("\"status\":403", "\"status\":200,\"status\":403");
    let float = text.replace("403", "403.0");
    let long = "x".repeat(audit::MAX_LINE + 1);
    for (line, fault) in [
        (spaced.as_str(), Fault::NotARecord),
        (&twice, Fault::NotARecord),
        (&float, Fault::NotARecord),
        ("", Fault::NotARecord),
        ("[]", Fault::NotARecord),
        ("{}", Fault::NotARecord),
        (&long, Fault::TooLong),
    ] {
        assert_eq!(head_of(line.as_bytes()), Err(fault), "{line}");
    }
}

#[test]
fn a_record_says_what_it_was_given_in_the_one_form() {
    let lines = chain(10);
    let texts: Vec<_> = lines
        .iter()
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let [allow, deny, end] = [0, 3, 9].map(|place| texts[place]);
    let genesis = "0".repeat(64);
    assert!(allow.starts_with(&format!(
        "{{\"caller\":\"agent \\\"\\\\\\u202e\\u2028\\u00e9\\ud83d\\ude00\",\"decision\":\"allow\",\
         \"decision_id\":\"decision-0\",\"destination\":\"docstore:8443\",\
         \"dialled\":\"[2001:db8::1]:443\",\"event\":\"decision\",\"identity\":\"agent \\\"\\\\\
         \\u202e\\u2028\\u00e9\\ud83d\\ude00\",\"permission_id\":\"p-1\",\"prev_hash\":\"{genesis}\",\
         \"reason\":[\"allowed\"],\"record_hash\":\""
    )), "{allow}");
    assert!(
        allow.ends_with(
            "\",\"replica\":\"gw-1\",\"seq\":1,\"status\":200,\"trace_id\":null,\
         \"ts\":\"2027-01-15T08:00:00.000000Z\"}"
        ),
        "{allow}"
    );
    assert!(
        deny.contains("\"decision\":\"deny\"") && deny.contains("\"tool\":\"echo\""),
        "{deny}"
    );
    assert!(
        end.starts_with("{\"bytes_down\":63,\"bytes_up\":9,"),
        "{end}"
    );
    // Another implementation of RFC 8785 comes to the same hash.
    for text in texts {
        let mut record: serde_json::Value = serde_json::from_str(text).unwrap();
        let hash = record
            .as_object_mut()
            .unwrap()
            .remove("record_hash")
            .unwrap();
        let json = serde_json_canonicalizer::to_string(&record).unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, json.as_bytes());
        let digest = hex::encode(digest);
        assert_eq!(hash, digest.as_str());
    }
}
