//! The roots of trust at start. What they are worth is in the testbed's `root_of_trust.rs`.

use testbed::rows::Principal;
use testbed::{Authz, AuthzOptions, Database, Root, authz};

use super::cli::{failed, serve, serve_config};

const WARNING: &str = "no policy.trust_roots";

async fn log_of_a_start(root: Option<Root>) -> String {
    let database = testbed::database().await.unwrap();
    authz::migrate(&database.url()).unwrap();
    Principal::registered(&database, &[]).unwrap();
    let registry_id = registry_id(&database);
    let mut authz = Authz::start(&AuthzOptions {
        database_url: database.url(),
        root: root.map(|root| (root, registry_id)),
        ..AuthzOptions::default()
    })
    .unwrap();
    authz.settle().await;
    authz.process().log()
}

fn registry_id(database: &Database) -> String {
    let id = "SELECT registry_id FROM registry_identity";
    database.query(id).unwrap()
}

#[tokio::test]
async fn a_service_without_roots_warns_and_one_with_roots_does_not() {
    assert!(log_of_a_start(None).await.contains(WARNING));
    let log = log_of_a_start(Some(Root::new(5).unwrap())).await;
    assert!(!log.contains(WARNING), "{log}");
}

#[tokio::test]
async fn every_registry_has_an_id_of_its_own_that_only_its_owner_changes() {
    let mut ids = Vec::new();
    for _ in 0..2 {
        let database = testbed::database().await.unwrap();
        authz::migrate(&database.url()).unwrap();
        let update =
            "SET ROLE agent_gateway_writer; UPDATE registry_identity SET registry_id = 'x'";
        let refused = database.execute(update).unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{refused}");
        ids.push(registry_id(&database));
    }
    assert_eq!(ids[0].len(), 36);
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn another_registry_than_the_configured_one_is_refused_at_start() {
    let database = testbed::database().await.unwrap();
    authz::migrate(&database.url()).unwrap();
    let root = Root::new(5).unwrap().public_hex().unwrap();
    let policy = format!("[policy]\nregistry_id = \"prod\"\ntrust_roots = [{root:?}]\n");
    let config = serve_config().replace("[policy]\n", &policy);
    let found = registry_id(&database);
    assert_eq!(
        serve(&config, &database.url()),
        failed(
            64,
            &format!("this is registry {found:?}, and the trust roots are for registry prod"),
            "check the database url and policy.registry_id; `agent-gateway-registry root show` \
             tells the id"
        )
    );
    // Emptied by somebody: no id is not any id.
    database.execute("DELETE FROM registry_identity").unwrap();
    assert_eq!(serve(&config, &database.url()).status, 64);
}
