//! Decisions explained, for people.

use proto::admin::v1::debug_client::DebugClient;
use proto::admin::v1::{Candidate, ExplainRequest, ExplainResponse};
use testbed::ClientCertificate;
use testbed::gateway::AGENT;
use testbed::rows::{Grant, Times};
use tonic::Code;

use super::{DESTINATION, Scene, channel};

impl Scene {
    fn question(&self) -> ExplainRequest {
        ExplainRequest {
            identity: AGENT.to_owned(),
            spki_hex: hex::encode(self.agent.spki_der()),
            destination: DESTINATION.to_owned(),
            ..Default::default()
        }
    }

    async fn explain(&self, question: ExplainRequest) -> ExplainResponse {
        let answer = self.debug().await.explain(question).await;
        answer.unwrap().into_inner()
    }
}

#[tokio::test]
async fn an_allow_is_explained_by_certificate_as_by_key() {
    let scene = Scene::start().await;
    let times = Times::default();
    scene.grant_during(times.clone()).await;
    let by_certificate = ExplainRequest {
        certificate_pem: scene.agent.pem().to_owned(),
        destination: "DocStore:8443".to_owned(),
        ..Default::default()
    };
    let mut shouted = scene.question();
    shouted.spki_hex = shouted.spki_hex.to_uppercase();
    for question in [scene.question(), by_certificate, shouted] {
        let mut answer = scene.explain(question).await;
        assert_eq!(answer.decided_at.len(), "2000-01-01T00:00:00.000000Z".len());
        answer.decided_at.clear();
        assert_eq!(
            answer,
            ExplainResponse {
                decision: "allow".to_owned(),
                reason: "allowed".to_owned(),
                hint: String::new(),
                destination: DESTINATION.to_owned(),
                identity: AGENT.to_owned(),
                spki_hex: hex::encode(scene.agent.spki_der()),
                dial: "127.0.0.1:8443".to_owned(),
                decided_at: String::new(),
                candidates: vec![Candidate {
                    permission_id: format!("{AGENT}-{DESTINATION}"),
                    signing_key_id: "org-alice".to_owned(),
                    reason: "allowed".to_owned(),
                    not_before: times.not_before.clone(),
                    not_after: times.not_after.clone(),
                }],
            }
        );
    }
}

#[tokio::test]
async fn every_fault_of_a_row_is_explained() {
    let scene = Scene::start().await;
    scene.grant().await;
    let unchecked = "ALTER TABLE principal_signing_keys
                     DROP CONSTRAINT principal_signing_keys_algorithm_check";
    scene.database.execute(unchecked).unwrap();
    for (table, change, undo, reason) in [
        (
            "permission_registry",
            "revoked_at = now()",
            "revoked_at = NULL",
            "permission_revoked",
        ),
        (
            "permission_registry",
            "signature = decode('00', 'hex')",
            "",
            "signature_invalid",
        ),
        (
            "principal_signing_keys",
            "revoked_at = now()",
            "revoked_at = NULL",
            "signing_key_inactive",
        ),
        (
            "principal_signing_keys",
            "algorithm = 'rot13'",
            "algorithm = 'ecdsa_p256_sha256'",
            "signing_key_unknown",
        ),
        (
            "principal_key_permissions",
            "revoked_at = now()",
            "revoked_at = NULL",
            "scope_missing",
        ),
    ] {
        // No undo: a new signature comes with a new row.
        let changed = format!("UPDATE {table} SET {change}");
        scene.database.execute(&changed).unwrap();
        let answer = scene.explain(scene.question()).await;
        assert_eq!(
            (&*answer.decision, &*answer.reason, &*answer.dial),
            ("deny", reason, "")
        );
        assert!(!answer.hint.is_empty());
        let candidates: Vec<_> = answer.candidates.iter().map(|c| &*c.reason).collect();
        assert_eq!(candidates, [reason]);
        if undo.is_empty() {
            scene
                .database
                .execute("DELETE FROM permission_registry")
                .unwrap();
            scene.grant().await;
        } else {
            let undone = format!("UPDATE {table} SET {undo}");
            scene.database.execute(&undone).unwrap();
        }
        assert_eq!(scene.explain(scene.question()).await.decision, "allow");
    }
}

#[tokio::test]
async fn every_candidate_is_shown_with_its_own_fault() {
    let scene = Scene::start().await;
    let none = scene.explain(scene.question()).await;
    assert_eq!((&*none.reason, none.candidates.len()), ("no_permission", 0));
    for (id, times) in [
        ("past", Times::from_now(-120, -60)),
        ("future", Times::from_now(3600, 7200)),
    ] {
        let mut grant = Grant::new(AGENT, scene.agent.spki_der(), DESTINATION).during(times);
        id.clone_into(&mut grant.permission_id);
        scene.principal.grant(&scene.database, &grant).unwrap();
    }
    let answer = scene.explain(scene.question()).await;
    let shown: Vec<_> = answer
        .candidates
        .iter()
        .map(|candidate| (&*candidate.permission_id, &*candidate.reason))
        .collect();
    assert_eq!(
        shown,
        [
            ("future", "permission_not_yet_valid"),
            ("past", "permission_expired")
        ]
    );
    assert_eq!(answer.reason, "permission_expired");
}

#[tokio::test]
async fn what_cannot_be_read_is_a_denied_decision() {
    let scene = Scene::start().await;
    scene.grant().await;
    let with_certificate = |pem: &str| ExplainRequest {
        certificate_pem: pem.to_owned(),
        destination: DESTINATION.to_owned(),
        ..Default::default()
    };
    let nobody = ClientCertificate::builder().build().unwrap();
    let mut nowhere = scene.question();
    "docstore:0".clone_into(&mut nowhere.destination);
    let mut unknown = scene.question();
    "unknown.test:443".clone_into(&mut unknown.destination);
    for (question, reason) in [
        (with_certificate("garbage"), "certificate_unparseable"),
        (with_certificate(nobody.pem()), "identity_extension_missing"),
        (nowhere, "destination_invalid"),
        (unknown, "no_permission"),
    ] {
        let answer = scene.explain(question).await;
        assert_eq!((&*answer.decision, &*answer.reason), ("deny", reason));
        assert_eq!(answer.dial, "");
    }
    assert_eq!(scene.dns.queries("unknown.test"), 0);
    scene
        .database
        .execute("ALTER TABLE permission_registry RENAME TO gone")
        .unwrap();
    let answer = scene.explain(scene.question()).await;
    assert_eq!(
        (&*answer.decision, &*answer.reason),
        ("deny", "registry_unavailable")
    );
}

#[tokio::test]
async fn a_certificate_is_read_by_the_profile_that_is_named() {
    const MESH: &[(&str, &str)] = &[
        ("AGENT_GATEWAY__PROFILES__MESH__REQUESTS", "http"),
        ("AGENT_GATEWAY__PROFILES__MESH__IDENTITY", "spiffe_id"),
        ("AGENT_GATEWAY__PROFILES__MESH__PORTS", "[8443]"),
        ("AGENT_GATEWAY__PROFILES__MESH__RESOLVE", "false"),
    ];
    const SVID: &str = "spiffe://example.org/ns/agents/sa/alpha";
    let scene = Scene::start_with(MESH).await;
    let workload = ClientCertificate::builder().uri(SVID).build().unwrap();
    let grant = Grant::new(SVID, workload.spki_der(), DESTINATION);
    scene.principal.grant(&scene.database, &grant).unwrap();
    scene.grant().await;
    let question = |certificate: &ClientCertificate, profile: &str, destination: &str| {
        scene.explain(ExplainRequest {
            certificate_pem: certificate.pem().to_owned(),
            destination: destination.to_owned(),
            profile: profile.to_owned(),
            ..Default::default()
        })
    };
    let allowed = question(&workload, "mesh", DESTINATION).await;
    assert_eq!(
        (&*allowed.decision, &*allowed.identity, &*allowed.dial),
        ("allow", SVID, "")
    );
    let tunnel = question(&scene.agent, "tunnel", DESTINATION).await;
    assert_eq!(
        (&*tunnel.decision, &*tunnel.identity, &*tunnel.dial),
        ("allow", AGENT, "127.0.0.1:8443")
    );
    for (certificate, profile, destination, reason) in [
        (&workload, "", DESTINATION, "identity_extension_missing"),
        (
            &scene.agent,
            "mesh",
            DESTINATION,
            "identity_extension_missing",
        ),
        // A port that the profile doesn't serve, named and by the scheme.
        (&workload, "mesh", "docstore:8444", "destination_invalid"),
        (&workload, "mesh", "docstore", "destination_invalid"),
        (&workload, "other", DESTINATION, "profile_unknown"),
    ] {
        let answer = question(certificate, profile, destination).await;
        assert_eq!((&*answer.decision, &*answer.reason), ("deny", reason));
    }
}

#[tokio::test]
async fn the_profile_of_routes_that_name_none_is_explanations_too() {
    let scene = Scene::start_with(&[
        ("AGENT_GATEWAY__PROFILES__MESH__IDENTITY", "common_name"),
        ("AGENT_GATEWAY__POLICY__PROFILE", "mesh"),
    ])
    .await;
    scene.grant().await;
    // Its only common name is "agent", for whom nothing is granted.
    let mut question = ExplainRequest {
        certificate_pem: scene.agent.pem().to_owned(),
        destination: DESTINATION.to_owned(),
        ..Default::default()
    };
    let answer = scene.explain(question.clone()).await;
    assert_eq!(
        (&*answer.reason, &*answer.identity),
        ("no_permission", "agent")
    );
    "tunnel".clone_into(&mut question.profile);
    let answer = scene.explain(question).await;
    assert_eq!((&*answer.reason, &*answer.identity), ("allowed", AGENT));
}

#[tokio::test]
async fn where_a_name_leads_is_explained() {
    let scene = Scene::start().await;
    for (destination, address) in [
        ("private.test:443", Some("10.0.0.1")),
        ("nowhere.test:443", None),
    ] {
        let times = Times::from_now(-7200, 60 * 86_400);
        scene
            .principal
            .scope(&scene.database, destination, &times)
            .unwrap();
        let grant = Grant::new(AGENT, scene.agent.spki_der(), destination);
        scene.principal.grant(&scene.database, &grant).unwrap();
        if let Some(address) = address {
            let addresses = vec![address.parse().unwrap()];
            let name = destination.strip_suffix(":443").unwrap();
            scene
                .dns
                .answer(name, testbed::dns::Answer::Addresses(addresses));
        }
        let mut question = scene.question();
        destination.clone_into(&mut question.destination);
        let answer = scene.explain(question).await;
        let expected = match address {
            Some(_) => "destination_address_forbidden",
            None => "destination_unresolvable",
        };
        assert_eq!(answer.reason, expected);
        // The row is good; it is the address that isn't.
        assert_eq!(answer.candidates[0].reason, "allowed");
    }
}

#[tokio::test]
async fn a_caller_given_twice_by_halves_or_not_at_all_is_an_invalid_argument() {
    let scene = Scene::start().await;
    let question = scene.question();
    let mut twice = question.clone();
    scene.agent.pem().clone_into(&mut twice.certificate_pem);
    let mut no_key = question.clone();
    no_key.spki_hex.clear();
    let mut no_identity = question.clone();
    no_identity.identity.clear();
    let mut bad_hex = question.clone();
    "xyz".clone_into(&mut bad_hex.spki_hex);
    let mut bad_key = question.clone();
    "3000".clone_into(&mut bad_key.spki_hex);
    let mut bad_identity = question.clone();
    "a\nb".clone_into(&mut bad_identity.identity);
    let mut debug = scene.debug().await;
    for (question, message) in [
        (
            ExplainRequest::default(),
            "give either certificate_pem, or identity and spki_hex",
        ),
        (
            twice,
            "give either certificate_pem, or identity and spki_hex",
        ),
        (
            no_key,
            "give either certificate_pem, or identity and spki_hex",
        ),
        (
            no_identity,
            "give either certificate_pem, or identity and spki_hex",
        ),
        (bad_hex, "public key is not hexadecimal text"),
        (bad_key, "public key is not one DER SubjectPublicKeyInfo"),
        (bad_identity, "identity holds a control character"),
    ] {
        let status = debug.explain(question).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, message)
        );
    }
}

#[tokio::test]
async fn explanations_are_not_for_envoys_listener() {
    let scene = Scene::start().await;
    let mut debug = DebugClient::new(channel(scene.authz.grpc_addr()).await);
    let status = debug.explain(scene.question()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}
