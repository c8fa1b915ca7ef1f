//! `docs/configuration.md` says what the configuration's types say.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;

const DOCUMENT: &str = include_str!("../../../../docs/configuration.md");

/// For each section of the service's part, the default that is told for each key.
fn documented() -> BTreeMap<String, BTreeMap<String, String>> {
    let (service, _) = DOCUMENT.split_once("### Other variables").unwrap();
    let mut sections = BTreeMap::new();
    for part in service.split("\n### `[").skip(1) {
        let (section, rows) = part.split_once(']').unwrap();
        let defaults: BTreeMap<String, String> = rows
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                let [_, key, kind, default, meaning, _] = cells[..] else {
                    panic!("not four columns: {row}");
                };
                assert!(!kind.is_empty() && !meaning.is_empty(), "{row}");
                let bare = |cell: &str| cell.trim_matches('`').to_owned();
                (bare(key), bare(default))
            })
            .collect();
        sections.insert(section.trim_start_matches('[').to_owned(), defaults);
    }
    sections
}

#[test]
fn every_key_has_its_line_and_no_other() {
    let documented = documented();
    let mut sections = known_keys("");
    sections.remove("profiles");
    sections.extend(["server.tls", "tunnel.private", "profiles.NAME"].map(str::to_owned));
    assert_eq!(
        documented.keys().cloned().collect::<BTreeSet<_>>(),
        sections
    );
    for (section, lines) in &documented {
        let mut known = known_keys(&section.replace("NAME", "mesh"));
        // Has a section of its own.
        known.remove("tls");
        let told: BTreeSet<String> = lines.keys().cloned().collect();
        assert_eq!(told, known, "[{section}]");
    }
}

#[test]
fn every_default_is_the_one_that_holds() {
    let default = format!("{:#?}", load("", &[]).unwrap());
    let mut told = String::new();
    for (section, lines) in documented() {
        if section.contains('.') {
            continue;
        }
        let shown = default.split_once(&format!("\n    {section}: ")).unwrap().1;
        let shown = shown.split_once("\n    }").unwrap().0;
        writeln!(told, "[{section}]").unwrap();
        for (key, default) in lines {
            let is_none = shown.contains(&format!("\n        {key}: None,"));
            assert_eq!(default == "none", is_none, "{section}.{key}");
            if !is_none {
                writeln!(told, "{key} = {default}").unwrap();
            }
        }
    }
    assert_eq!(format!("{:#?}", load(&told, &[]).unwrap()), default);
}

#[test]
fn a_profiles_defaults_are_those_that_hold() {
    let mut told = "[profiles.mesh]\n".to_owned();
    for (key, default) in &documented()["profiles.NAME"] {
        writeln!(told, "{key} = {default}").unwrap();
    }
    let empty = load("[profiles.mesh]", &[]).unwrap();
    let told = load(&told, &[]).unwrap();
    assert_eq!(format!("{told:?}"), format!("{empty:?}"));
}

#[test]
fn the_existing_gateways_variables_are_told() {
    for (variable, key) in relay::EXISTING_NAMES {
        assert!(
            DOCUMENT.contains(&format!("| `{variable}` | `{key}` |")),
            "{variable}"
        );
    }
}
