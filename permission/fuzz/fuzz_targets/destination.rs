//! Whatever parses is written in one form, and that form parses to the same destination.
#![no_main]

use libfuzzer_sys::fuzz_target;
use permission::{Destination, Host};

fuzz_target!(|text: &str| {
    let Ok(destination) = text.parse::<Destination>() else { return };
    let shown = destination.to_string();
    assert_eq!(shown.parse::<Destination>().as_ref(), Ok(&destination));
    assert_eq!(Destination::from_normal_form(&shown), Some(destination.clone()));
    // What another parser could take for something else never comes through.
    assert!(shown.is_ascii() && !shown.contains(['@', '/', '?', '#', '%', '\\', ' ']));
    if let Host::Name(name) = destination.host() {
        assert!(name.parse::<std::net::IpAddr>().is_err());
        assert_eq!(**name, *name.to_ascii_lowercase());
    }
});
