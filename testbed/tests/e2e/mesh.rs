//! Envoys of a mesh that ask about ordinary requests, with the configurations in `envoy/mesh/`.

mod bad_input;
mod upstream;

use http::{HeaderMap, Request};
use http_body_util::Full;
use testbed::gateway::AGENT;
use testbed::tunnel::Answer;
use testbed::{ClientCertificate, Envoy, EnvoyOptions, Gateway, TunnelClient};

use self::upstream::Upstream;
use super::assert_denied;
use super::audit::AuditFile;
use super::open_tunnels::settings;

/// What the tests' agents want, and `envoy/mesh/envoy.yaml` leads to.
const DESTINATION: &str = "docstore:443";
const REVOKE: &str = "UPDATE permission_registry SET revoked_at = now()";
const PROFILE: [(&str, &str); 2] = [
    ("PROFILES__MESH__REQUESTS", "http"),
    ("PROFILES__MESH__RESOLVE", "false"),
];

/// An Envoy of a mesh, what is behind it, and an agent that may go there.
struct Mesh {
    gateway: Gateway,
    agent: ClientCertificate,
    upstream: Upstream,
}

impl Mesh {
    async fn start() -> Self {
        Self::start_with(&[], &[]).await
    }

    /// With further settings of the service, and other text in `envoy/mesh/envoy.yaml`.
    async fn start_with(changed: &[(&str, &str)], replace: &[(&str, &str)]) -> Self {
        let agent = ClientCertificate::for_identity(AGENT).unwrap();
        Self::start_for(agent, changed, replace).await
    }

    async fn start_for(
        agent: ClientCertificate,
        changed: &[(&str, &str)],
        replace: &[(&str, &str)],
    ) -> Self {
        let mut options = settings(&[&PROFILE, changed].concat());
        "127.0.0.1 docstore".clone_into(&mut options.hosts);
        let mut gateway = Gateway::start_with(options).await.unwrap();
        gateway.grant(&agent, DESTINATION).unwrap();
        gateway.authz.settle().await;
        let upstream = Upstream::start().await;
        let there = format!("port_value: {}", upstream.addr().port());
        let replace = [replace, &[("port_value: 8080", &*there)]].concat();
        let envoy = Envoy::start(EnvoyOptions {
            file: "mesh/envoy.yaml",
            replace: &replace,
            ..EnvoyOptions::new(gateway.authz.grpc_addr(), &gateway.pki)
        });
        gateway.envoy = envoy.await.unwrap();
        Self {
            gateway,
            agent,
            upstream,
        }
    }

    /// GETs `https://docstore/`.
    async fn get(&self, agent: &ClientCertificate, headers: &[(&str, &str)]) -> Answer {
        self.get_from(agent, "https://docstore/", headers).await
    }

    async fn get_from(
        &self,
        agent: &ClientCertificate,
        uri: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let Gateway {
            authz, envoy, pki, ..
        } = &self.gateway;
        authz.settle().await;
        let client = TunnelClient::connect(envoy.addr(), pki, agent);
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::default()).unwrap();
        client.await.unwrap().send(request).await.unwrap()
    }

    /// Waits until the service holds so many responses that are on their way.
    async fn holds(&self, responses: usize) {
        let held = async {
            while self.gateway.authz.open_tunnels().await.unwrap() != responses {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(testbed::process::PATIENCE, held).await;
        waited.unwrap_or_else(|_| panic!("never {responses} responses"));
    }

    /// The headers of a request that was let through.
    #[track_caller]
    fn let_through(&self, answer: &Answer) -> HeaderMap {
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "pages"));
        assert!(answer.header("x-agent-gateway-decision-id").is_some());
        self.upstream.last_headers()
    }
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values
        .map(|value| value.to_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn what_is_granted_is_let_through_and_told_who_called() {
    let mesh = Mesh::start().await;
    let forged = [
        ("x-agent-identity", "admin"),
        ("x-agent-identity", "root"),
        ("x-envoy-upstream-stream-duration-ms", "0"),
    ];
    let answer = mesh.get(&mesh.agent, &forged).await;
    let seen = mesh.let_through(&answer);
    assert_eq!(values(&seen, "x-agent-identity"), [AGENT]);

    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    assert_denied(&mesh.get(&stranger, &[]).await, 403, "no_permission");
    mesh.gateway.database.execute(REVOKE).unwrap();
    let answer = mesh.get(&mesh.agent, &[]).await;
    assert_denied(&answer, 403, "permission_revoked");
    assert_eq!(mesh.upstream.requests(), 1);
}

#[tokio::test]
async fn requests_are_recorded_as_tunnels_are() {
    let audit = AuditFile::new();
    let setting = [("AUDIT__PATH", audit.path()), ("AUDIT__REPLICA", "gw-1")];
    let mesh = Mesh::start_with(&setting, &[]).await;
    let answer = mesh.get(&mesh.agent, &[]).await;
    mesh.let_through(&answer);
    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    let denied = mesh.get(&stranger, &[]).await;
    assert_denied(&denied, 403, "no_permission");
    let records = audit.records();
    for (answer, decision, reason) in [
        (&answer, "allow", "allowed"),
        (&denied, "deny", "no_permission"),
    ] {
        let id = answer.header("x-agent-gateway-decision-id").unwrap();
        let its = |record: &&serde_json::Value| record["decision_id"] == id;
        let record = records.iter().find(its).unwrap();
        assert_eq!(record["decision"], decision, "{record}");
        assert_eq!(record["reason"], serde_json::json!([reason]), "{record}");
        assert_eq!(record["identity"], AGENT, "{record}");
        assert_eq!(record["destination"], DESTINATION, "{record}");
    }
}

#[tokio::test]
async fn without_a_decision_nothing_is_let_through() {
    let mut mesh = Mesh::start().await;
    mesh.gateway.authz.process().kill();
    let answer = mesh.get(&mesh.agent, &[]).await;
    assert_eq!(answer.status, 503);
    assert_eq!(mesh.upstream.requests(), 0);
}

#[tokio::test]
async fn a_response_on_its_way_is_cut_when_its_grounds_are_gone() {
    let mesh = Mesh::start().await;
    let Gateway { envoy, pki, .. } = &mesh.gateway;
    let client = TunnelClient::connect(envoy.addr(), pki, &mesh.agent);
    let client = client.await.unwrap();
    let request = Request::get("https://docstore/endless");
    let request = request.body(Full::default()).unwrap();
    // It has no end, so this ends only by being cut.
    let answer = tokio::spawn(async move { client.send(request).await });
    mesh.upstream.asked().await;
    mesh.holds(1).await;
    mesh.gateway.database.execute(REVOKE).unwrap();
    answer.await.unwrap().unwrap_err();
    mesh.holds(0).await;
}

#[tokio::test]
async fn it_works_without_cutting_too() {
    let config = testbed::envoy::read("mesh/envoy.yaml").unwrap();
    let from = config.find("          - name: ext_proc\n").unwrap();
    let to = config
        .find("          - name: envoy.filters.http.router\n")
        .unwrap();
    let mesh = Mesh::start_with(&[], &[(&config[from..to], "")]).await;
    let answer = mesh.get(&mesh.agent, &[]).await;
    mesh.let_through(&answer);
    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    assert_denied(&mesh.get(&stranger, &[]).await, 403, "no_permission");
}

#[tokio::test]
async fn an_address_is_judged_where_the_profile_says_so() {
    let mesh = Mesh::start_with(&[("PROFILES__MESH__RESOLVE", "true")], &[]).await;
    let answer = mesh.get(&mesh.agent, &[]).await;
    assert_denied(&answer, 403, "destination_address_forbidden");
}

#[tokio::test]
async fn an_svid_names_its_holder_by_its_only_uri() {
    let id = "spiffe://example.org/ns/agents/sa/alpha";
    let svid = ClientCertificate::builder().uri(id).build().unwrap();
    let setting = [("PROFILES__MESH__IDENTITY", "spiffe_id")];
    let mesh = Mesh::start_for(svid, &setting, &[]).await;
    // The grant is to another identity with this key.
    let answer = mesh.get(&mesh.agent, &[]).await;
    assert_denied(&answer, 403, "no_permission");
    let grant = testbed::rows::Grant::new(id, mesh.agent.spki_der(), DESTINATION);
    let Gateway {
        principal,
        database,
        ..
    } = &mesh.gateway;
    principal.grant(database, &grant).unwrap();
    let answer = mesh.get(&mesh.agent, &[]).await;
    assert_eq!(values(&mesh.let_through(&answer), "x-agent-identity"), [id]);

    let two = ClientCertificate::builder()
        .key(mesh.agent.key_pkcs8_der())
        .uri(id)
        .uri("spiffe://example.org/ns/agents/sa/beta");
    let answer = mesh.get(&two.build().unwrap(), &[]).await;
    assert_denied(&answer, 403, "identity_extension_invalid");
    let none = ClientCertificate::builder().key(mesh.agent.key_pkcs8_der());
    let answer = mesh.get(&none.identity(id).build().unwrap(), &[]).await;
    assert_denied(&answer, 403, "identity_extension_missing");
}

/// The filters that another control plane makes, in place of those of `envoy/mesh/envoy.yaml`; the
/// certificate comes in `x-forwarded-client-cert`, which this Envoy sets.
async fn as_made_by(filters: &str, further: &[(&str, &str)]) -> Mesh {
    let config = testbed::envoy::read("mesh/envoy.yaml").unwrap();
    let (_, rest) = config.split_once("          http_filters:\n").unwrap();
    let (ours, _) = rest.split_once("  clusters:\n").unwrap();
    let theirs = testbed::envoy::read(filters).unwrap();
    let profile = "check_settings: {context_extensions: {profile: mesh}}";
    let replace = [
        &[
            (ours, &*theirs),
            (profile, "check_settings: {}"),
            (
                "forward_client_cert_details: SANITIZE\n",
                "forward_client_cert_details: SANITIZE_SET\n          \
                 set_current_client_cert_details: {cert: true}\n",
            ),
        ],
        further,
    ];
    let settings = [
        ("PROFILES__MESH__CERTIFICATE", "xfcc"),
        ("POLICY__PROFILE", "mesh"),
    ];
    Mesh::start_with(&settings, &replace.concat()).await
}

async fn decides_by_xfcc(mesh: &Mesh) {
    let answer = mesh.get(&mesh.agent, &[]).await;
    let seen = mesh.let_through(&answer);
    assert_eq!(values(&seen, "x-agent-identity"), [AGENT]);
    // Its own is replaced by what Envoy saw.
    let stranger = ClientCertificate::for_identity(AGENT).unwrap();
    let forged = xfcc(&mesh.agent);
    let headers = [("x-forwarded-client-cert", &*forged)];
    let answer = mesh.get(&stranger, &headers).await;
    assert_denied(&answer, 403, "no_permission");
    mesh.gateway.database.execute(REVOKE).unwrap();
    let answer = mesh.get(&mesh.agent, &[]).await;
    assert_denied(&answer, 403, "permission_revoked");
    assert_eq!(mesh.upstream.requests(), 1);
}

/// What an Envoy would write about this certificate.
fn xfcc(certificate: &ClientCertificate) -> String {
    let pem = certificate.pem().replace('\n', "%0A");
    let pem = pem.replace(' ', "%20").replace('+', "%2B");
    format!("Hash=00;Cert=\"{}\"", pem.replace('=', "%3D"))
}

#[tokio::test]
async fn istios_filters_decide() {
    decides_by_xfcc(&as_made_by("mesh/istio-filters.yaml", &[]).await).await;
}

#[tokio::test]
async fn envoy_gateways_filters_decide() {
    // As its routes switch the filter on.
    let route = [(
        "                  ext_authz:\n                    \"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute\n",
        "                  envoy.filters.http.ext_authz/securitypolicy/default/agent-gateway:\n                    \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute\n",
    )];
    let mesh = as_made_by("mesh/envoy-gateway-filters.yaml", &route).await;
    decides_by_xfcc(&mesh).await;
}
