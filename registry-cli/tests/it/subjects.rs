//! The forms in which an agent's key is taken.

use testbed::ClientCertificate;

use crate::office::{Office, openssl, text};

#[tokio::test]
async fn every_form_of_a_key_is_the_same_row() {
    let office = Office::with_scopes(&["docstore"]).await;
    let (spki, der) = (office.spki(), office.agent.spki_der());
    let der_file = office.file("spki.der", der);
    let pem = text(&office.path("spki.pem"));
    openssl(&[
        "pkey", "-pubin", "-inform", "DER", "-in", &der_file, "-out", &pem,
    ]);
    let dump: Vec<&[u8]> = spki.as_bytes().chunks(60).collect();
    let explained = format!("Certificate of an agent:\n{}\n\n", office.agent.pem());
    let forms = [
        spki.clone(),
        spki.to_uppercase(),
        der_file,
        pem,
        office.file("spki.hex", format!("{spki}\n")),
        office.file("dump.hex", dump.join(&b"\n"[..])),
        office.file("windows.hex", format!("  {spki}\r\n")),
        office.file("certificate.pem", office.agent.pem()),
        office.file("explained.pem", explained),
    ];
    for form in &forms {
        assert_eq!(office.grant(&[("--spki", form)])["spki"], spki, "{form}");
    }
    let stored = office
        .database
        .query("SELECT encode(subject_public_key_spki_der, 'hex'), count(*) FROM permission_registry GROUP BY 1")
        .unwrap();
    assert_eq!(stored, format!("{spki}|{}", forms.len()));
}

#[tokio::test]
async fn certificates_of_a_mesh_are_taken_for_the_names_in_them() {
    const SVID: &str = "spiffe://example.org/ns/agents/sa/alpha";
    let office = Office::with_scopes(&["docstore"]).await;
    let workload = ClientCertificate::builder().uri(SVID).build().unwrap();
    let path = office.file("svid.pem", workload.pem());
    // "agent" is its common name.
    for identity in [SVID, "agent"] {
        let granted = office.grant(&[("--identity", identity), ("--spki", &path)]);
        assert_eq!(granted["spki"], hex::encode(workload.spki_der()));
    }

    let sidecars = office.file("sidecar.pem", office.agent.pem());
    let (status, said) = office.refused_grant(&[("--identity", "agent"), ("--spki", &sidecars)]);
    assert_eq!(status, 65);
    assert!(
        said.contains("is that of agent-alpha, not of agent"),
        "{said}"
    );

    let nobodys = text(&office.path("nobody.pem"));
    let key = office.key_file();
    openssl(&[
        "req",
        "-x509",
        "-key",
        &key,
        "-subj",
        "/O=nobody",
        "-out",
        &nobodys,
    ]);
    let (status, said) = office.refused_grant(&[("--spki", &nobodys)]);
    assert_eq!(status, 65);
    let expected = "error: certificate has no identity extension\n";
    assert!(said.starts_with(expected), "{said}");
}

#[tokio::test]
async fn what_is_no_public_key_is_refused() {
    let office = Office::with_scopes(&["docstore"]).await;
    let (spki, der, pem) = (office.spki(), office.agent.spki_der(), office.agent.pem());
    let private = std::fs::read_to_string(office.key_file()).unwrap();
    let secret = private.lines().nth(1).unwrap();
    for (form, expected) in [
        (spki[2..].to_owned(), "public key is not one DER"),
        (format!("{spki}00"), "public key is not one DER"),
        (spki[1..].to_owned(), "public key is not hexadecimal text"),
        ("0".repeat(9000), "public key is over 4096 bytes"),
        (office.file("empty", ""), "public key is not one DER"),
        (
            office.file("words", "not a key"),
            "public key is not hexadecimal text",
        ),
        (
            office.file("trailing.der", [der, b"\0"].concat()),
            "public key is not one DER",
        ),
        (
            office.file("two.pem", pem.repeat(2)),
            "the pem text is not exactly one",
        ),
        (
            office.file("cut.pem", &pem[..pem.len() / 2]),
            "the pem text is not exactly one",
        ),
        (
            office.file("private.pem", &private),
            "the pem text holds a PRIVATE KEY, not a public key",
        ),
        (
            office.file("both.pem", format!("{pem}{private}")),
            "the pem text is not exactly one",
        ),
        (
            office.file("other.pem", pem.replace("CERTIFICATE", "\u{1b}[2J")),
            "the pem text holds a \\u{1b}[2J, not a public key",
        ),
        (
            office.file("broken.pem", pem.replace("CERTIFICATE", "PUBLIC KEY")),
            "public key is not one DER",
        ),
    ] {
        let (status, said) = office.refused_grant(&[("--spki", &form)]);
        assert_eq!(status, 65, "{form}: {said}");
        assert!(
            said.starts_with(&format!("error: {expected}")),
            "{form}: {said}"
        );
        assert!(!said.contains(secret), "{said}");
    }
    let large = office.file("large", vec![b' '; 64 * 1024 + 1]);
    let (status, said) = office.refused_grant(&[("--spki", &large)]);
    assert_eq!(status, 65);
    assert!(said.contains("is over 65536 bytes"), "{said}");
}

#[tokio::test]
async fn file_that_is_not_there_has_its_own_status() {
    let office = Office::with_scopes(&["docstore"]).await;
    let missing = text(&office.path("missing.hex"));
    for spki in [missing.as_str(), "", "/"] {
        let (status, said) = office.refused_grant(&[("--spki", spki)]);
        assert_eq!(status, 66, "{spki:?}");
        assert!(said.starts_with("error: can't read "), "{said}");
    }
}
