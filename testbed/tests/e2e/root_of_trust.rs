//! With a root of trust, whoever may write every table still can't allow anything.
//!
//! The intruder is an agent with a key of its own. It has all rights on the registry's tables, the
//! private key of a principal that may delegate another destination (`org-bob`), and everything
//! that the root has signed here and in another registry.

use testbed::rows::{Grant, Principal, Times};
use testbed::{ClientCertificate, Root};

use super::open_tunnels::ends;
use super::{Scene, assert_denied};

const INTRUDER: &str = "agent-mallory";

/// What the principals' keys are made of: the intruder has them all but alice's.
const BOB: u8 = 11;
const MALLORY: u8 = 12;
const CAROL: u8 = 13;

/// Every right on every table, of this database alone, for a role that owns none of them.
const EVERY_RIGHT: &str = "
GRANT ALL ON ALL TABLES IN SCHEMA public TO agent_gateway_writer;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO agent_gateway_writer;";

/// What stands in the tables is kept aside, and put back.
const KEEP: &str = "
CREATE TABLE kept_keys AS TABLE principal_signing_keys;
CREATE TABLE kept_scopes AS TABLE principal_key_permissions;
CREATE TABLE kept_permissions AS TABLE permission_registry;
CREATE TABLE kept_identity AS TABLE registry_identity;
GRANT ALL ON kept_keys, kept_scopes, kept_permissions TO agent_gateway_writer;";
const PUT_BACK: &str = "
TRUNCATE permission_registry, poca_keys, principal_key_permissions, principal_signing_keys, registry_identity;
INSERT INTO principal_signing_keys SELECT * FROM kept_keys;
INSERT INTO principal_key_permissions SELECT * FROM kept_scopes;
INSERT INTO permission_registry SELECT * FROM kept_permissions;
INSERT INTO registry_identity SELECT * FROM kept_identity;";

/// Both sides of the story, on one gateway.
struct Intrusion {
    scene: Scene,
    intruder: ClientCertificate,
    mallory: Principal,
}

impl Intrusion {
    /// `org-alice` may delegate the destination; `org-bob` may delegate `messaging`, and could
    /// delegate the destination until yesterday; `org-carol`'s key has ended.
    async fn begin() -> Self {
        let root = Root::new(5).unwrap();
        let scene = Scene::start_rooted(root.clone()).await;
        let database = &scene.gateway.database;
        let principal = |id, seed| Principal::new(id, seed).unwrap();
        let (bob, mallory) = (principal("org-bob", BOB), principal("org-mallory", MALLORY));
        bob.register(database).unwrap();
        let (long, ended) = (
            Times::from_now(-7200, 60 * 86_400),
            Times::from_now(-7200, -60),
        );
        bob.scope(database, "messaging:443", &long).unwrap();
        bob.scope(database, &scene.destination, &ended).unwrap();
        let carol = principal("org-carol", CAROL);
        carol.register(database).unwrap();
        carol.scope(database, &scene.destination, &long).unwrap();
        let end = "UPDATE principal_signing_keys SET not_after = now() - interval '1 minute'
                   WHERE key_id = 'org-carol'";
        database.execute(end).unwrap();
        // What the same root has signed in another registry, where the intruder is at home.
        mallory.register(database).unwrap();
        mallory.scope(database, &scene.destination, &long).unwrap();
        root.sign_all_for(database, "'another-registry'").unwrap();
        let elsewhere = "
            CREATE TABLE elsewhere_keys AS SELECT * FROM principal_signing_keys
            WHERE key_id = 'org-mallory';
            CREATE TABLE elsewhere_scopes AS SELECT * FROM principal_key_permissions
            WHERE signing_key_id = 'org-mallory';
            GRANT ALL ON elsewhere_keys, elsewhere_scopes TO agent_gateway_writer;
            DELETE FROM principal_key_permissions WHERE signing_key_id = 'org-mallory';
            DELETE FROM principal_signing_keys WHERE key_id = 'org-mallory';";
        database.execute(elsewhere).unwrap();
        root.sign_all(database).unwrap();
        scene.allow();
        database.execute(&format!("{EVERY_RIGHT}{KEEP}")).unwrap();
        Self {
            intruder: ClientCertificate::for_identity(INTRUDER).unwrap(),
            scene,
            mallory,
        }
    }

    /// A permission for the intruder, signed with the key made from `seed` in the name of `key_id`.
    fn permission(&self, seed: u8, key_id: &str) -> String {
        let destination = &self.scene.destination;
        let grant = Grant::new(INTRUDER, self.intruder.spki_der(), destination)
            .during(Times::from_now(-30, 3600));
        let signer = Principal::new(key_id, seed).unwrap();
        signer.insertion(&grant, &signer.sign(&grant))
    }

    /// Does it as the role with every right; then the intruder asks, and afterwards all is as
    /// before.
    async fn attempt(&self, what: &str, statements: &str, reason: &str) {
        let (gateway, destination) = (&self.scene.gateway, &self.scene.destination);
        let statements = format!("SET ROLE agent_gateway_writer; {statements}");
        gateway.database.execute(&statements).unwrap();
        let answer = gateway.connect(&self.intruder, destination).await.unwrap();
        println!("{what}: {}", answer.status);
        assert_denied(&answer, 403, reason);
        gateway.database.execute(PUT_BACK).unwrap();
        assert_eq!(self.scene.connect().await.status, 200, "after {what}");
    }
}

#[tokio::test]
async fn rows_that_the_root_signed_allow() {
    let scene = Scene::start_rooted(Root::new(5).unwrap()).await;
    scene.allow();
    assert_eq!(scene.connect().await.status, 200);
    let Scene { gateway, .. } = &scene;
    for (change, reason) in [
        (
            "UPDATE principal_signing_keys SET root_signature = NULL",
            "signing_key_untrusted",
        ),
        (
            "UPDATE principal_key_permissions SET root_signature = NULL",
            "scope_untrusted",
        ),
    ] {
        gateway.database.execute(change).unwrap();
        assert_denied(&scene.connect().await, 403, reason);
        // The holder of the root signs later, and no restart is needed.
        let root = gateway.root.as_ref().unwrap();
        root.sign_all(&gateway.database).unwrap();
        assert_eq!(scene.connect().await.status, 200, "{change}");
        let other = Root::new(6).unwrap();
        other.sign_all(&gateway.database).unwrap();
        assert_denied(&scene.connect().await, 403, "signing_key_untrusted");
        root.sign_all(&gateway.database).unwrap();
    }
}

#[tokio::test]
async fn an_open_tunnel_ends_when_the_roots_word_is_gone() {
    let scene = Scene::start_rooted(Root::new(5).unwrap()).await;
    scene.allow();
    let tunnel = scene.open().await;
    let change = "UPDATE principal_key_permissions SET root_signature = NULL";
    scene.gateway.database.execute(change).unwrap();
    ends(tunnel).await;
    scene.cut_for("scope_untrusted").await;
}

#[tokio::test]
async fn who_makes_up_a_principal_or_takes_ones_place_is_denied() {
    let it = Intrusion::begin().await;
    let destination = it.scene.destination.clone();
    let own_rows = format!(
        "INSERT INTO principal_signing_keys
             (key_id, algorithm, public_key_spki_der, not_before, not_after)
         VALUES ('org-mallory', 'ecdsa_p256_sha256', '\\x{}', now() - interval '1 hour',
                 now() + interval '90 days');
         INSERT INTO principal_key_permissions (signing_key_id, destination, not_before, not_after)
         VALUES ('org-mallory', '{destination}', now() - interval '1 hour',
                 now() + interval '80 days');
         {};",
        hex::encode(it.mallory.spki()),
        it.permission(MALLORY, "org-mallory"),
    );
    let untrusted = "signing_key_untrusted";
    it.attempt("a principal of one's own", &own_rows, untrusted)
        .await;
    let copied = format!(
        "{own_rows} UPDATE principal_signing_keys SET root_signature =
             (SELECT root_signature FROM kept_keys WHERE key_id = 'org-alice')
         WHERE key_id = 'org-mallory';
         UPDATE principal_key_permissions SET root_signature =
             (SELECT root_signature FROM kept_scopes WHERE signing_key_id = 'org-alice')
         WHERE signing_key_id = 'org-mallory'"
    );
    it.attempt("with another's signatures", &copied, untrusted)
        .await;
    let as_scope = format!(
        "{own_rows} UPDATE principal_signing_keys SET root_signature =
             (SELECT root_signature FROM kept_scopes WHERE signing_key_id = 'org-alice')
         WHERE key_id = 'org-mallory'"
    );
    it.attempt("with a scope's signature", &as_scope, untrusted)
        .await;
    let alices = it.permission(MALLORY, "org-alice");
    let swapped = format!(
        "UPDATE principal_signing_keys SET public_key_spki_der = '\\x{}'
         WHERE key_id = 'org-alice'; {alices}",
        hex::encode(it.mallory.spki()),
    );
    it.attempt("alice's key swapped", &swapped, untrusted).await;
    let renamed = format!(
        "UPDATE principal_signing_keys SET public_key_spki_der = '\\x00' WHERE key_id = 'org-bob';
         UPDATE principal_signing_keys SET
             public_key_spki_der = (SELECT public_key_spki_der FROM kept_keys WHERE key_id = 'org-bob'),
             root_signature = (SELECT root_signature FROM kept_keys WHERE key_id = 'org-bob'),
             not_before = (SELECT not_before FROM kept_keys WHERE key_id = 'org-bob'),
             not_after = (SELECT not_after FROM kept_keys WHERE key_id = 'org-bob')
         WHERE key_id = 'org-alice'; {}",
        it.permission(BOB, "org-alice"),
    );
    it.attempt(
        "bob's key, signature and all, as alice's",
        &renamed,
        untrusted,
    )
    .await;
    let elsewhere = format!(
        "INSERT INTO principal_signing_keys SELECT * FROM elsewhere_keys;
         INSERT INTO principal_key_permissions SELECT * FROM elsewhere_scopes; {};",
        it.permission(MALLORY, "org-mallory"),
    );
    it.attempt("rows of another registry", &elsewhere, untrusted)
        .await;
    let called =
        format!("{elsewhere} UPDATE registry_identity SET registry_id = 'another-registry'");
    it.attempt("in a registry that calls itself so", &called, untrusted)
        .await;
    let stretched = format!(
        "UPDATE principal_signing_keys SET not_after = now() + interval '90 days'
         WHERE key_id = 'org-carol'; {}",
        it.permission(CAROL, "org-carol"),
    );
    it.attempt("an ended key stretched", &stretched, untrusted)
        .await;
    let forged = format!(
        "{own_rows} UPDATE permission_registry SET signing_key_id = 'org-alice'
         WHERE subject_identity = '{INTRUDER}'"
    );
    it.attempt("in alice's name", &forged, "signature_invalid")
        .await;
    let forging = "E'org-alice\\nalgorithm=ecdsa_p256_sha256'";
    let injected = own_rows.replace("'org-mallory'", forging);
    it.attempt("an id that forges a line", &injected, "signature_invalid")
        .await;
}

#[tokio::test]
async fn who_widens_or_borrows_a_scope_is_denied() {
    let it = Intrusion::begin().await;
    let destination = it.scene.destination.clone();
    let bobs = it.permission(BOB, "org-bob");
    let untrusted = "scope_untrusted";
    it.attempt("no scope at all", &bobs, "scope_missing").await;
    let own = format!(
        "INSERT INTO principal_key_permissions (signing_key_id, destination, not_before, not_after)
         VALUES ('org-bob', '{destination}', now() - interval '1 hour', now() + interval '80 days');
         {bobs};"
    );
    it.attempt("a scope of one's own", &own, untrusted).await;
    for (from, what) in [
        ("signing_key_id = 'org-alice'", "with alice's signature"),
        ("destination = 'messaging:443'", "with that of messaging"),
    ] {
        let copied = format!(
            "{own} UPDATE principal_key_permissions SET root_signature =
                 (SELECT root_signature FROM kept_scopes WHERE {from})
             WHERE signing_key_id = 'org-bob'"
        );
        it.attempt(what, &copied, untrusted).await;
    }
    let of_the_key = format!(
        "{own} UPDATE principal_key_permissions SET root_signature =
             (SELECT root_signature FROM kept_keys WHERE key_id = 'org-bob')
         WHERE signing_key_id = 'org-bob'"
    );
    it.attempt("with that of the key", &of_the_key, untrusted)
        .await;
    let moved = format!(
        "UPDATE principal_key_permissions SET signing_key_id = 'org-bob'
         WHERE signing_key_id = 'org-alice'; {bobs}"
    );
    it.attempt("alice's scope moved", &moved, untrusted).await;
    let copied = format!(
        "INSERT INTO principal_key_permissions
             (signing_key_id, destination, not_before, not_after, root_signature)
         SELECT 'org-bob', destination, not_before, not_after, root_signature
         FROM principal_key_permissions WHERE signing_key_id = 'org-alice'; {bobs}"
    );
    it.attempt("alice's scope copied", &copied, untrusted).await;
    let edited = format!(
        "UPDATE principal_key_permissions SET destination = '{destination}'
         WHERE destination = 'messaging:443'; {bobs}"
    );
    it.attempt("messaging's scope edited", &edited, untrusted)
        .await;
    for change in [
        "not_after = now() + interval '80 days'",
        "not_after = not_after + interval '80 days'",
        "not_before = now() - interval '2 hours', not_after = now() + interval '80 days'",
    ] {
        let stretched = format!(
            "UPDATE principal_key_permissions SET {change}
             WHERE signing_key_id = 'org-bob' AND destination = '{destination}'; {bobs}"
        );
        it.attempt("an ended scope stretched", &stretched, untrusted)
            .await;
    }
    let elsewhere = format!(
        "INSERT INTO principal_key_permissions
             (signing_key_id, destination, not_before, not_after, root_signature)
         SELECT 'org-bob', destination, not_before, not_after, root_signature FROM elsewhere_scopes;
         {bobs}"
    );
    it.attempt("a scope of another registry", &elsewhere, untrusted)
        .await;
}
