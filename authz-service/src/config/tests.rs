//! Each test has its own folder and environment, by figment's Jail.

mod documented;

use std::collections::BTreeSet;

use figment::Jail;
use figment::error::Kind;

use super::*;

const EXAMPLE: &str = include_str!("../../../config.example.toml");

/// Loads a file with this text and looks at it, where the environment holds just these variables.
#[expect(clippy::result_large_err, reason = "figment's own")]
fn look<T>(
    text: &str,
    environment: &[(&str, &str)],
    look: impl FnOnce(Result<Config, ConfigError>) -> T,
) -> T {
    let mut seen = None;
    Jail::expect_with(|jail| {
        jail.clear_env();
        for (name, value) in environment {
            jail.set_env(name, value);
        }
        jail.create_file("config.toml", text)?;
        seen = Some(look(Config::load(Path::new("config.toml"))));
        Ok(())
    });
    seen.unwrap()
}

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    look(text, environment, |loaded| loaded)
}

/// What the operator reads.
fn refused(text: &str, environment: &[(&str, &str)]) -> String {
    load(text, environment).unwrap_err().to_string()
}

#[test]
fn the_kubernetes_objects_fit_their_configuration() {
    let config = load(include_str!("../../../deploy/kubernetes/config.toml"), &[]).unwrap();
    let deployment = include_str!("../../../deploy/kubernetes/deployment.yaml");
    let service = include_str!("../../../deploy/kubernetes/service.yaml");
    let policy = include_str!("../../../deploy/kubernetes/networkpolicy.yaml");
    for (name, addr) in [
        ("grpc", config.server.grpc_addr),
        ("metrics", config.admin.http_addr),
    ] {
        assert!(
            addr.ip().is_unspecified(),
            "{name}: pods are asked from elsewhere"
        );
        let port = addr.port();
        assert!(deployment.contains(&format!("{{name: {name}, containerPort: {port}}}")));
        assert!(service.contains(&format!(
            "{{name: {name}, port: {port}, targetPort: {name}}}"
        )));
        assert!(policy.contains(&format!("{{port: {port}, protocol: TCP}}")));
    }
    let mount = "mountPath: /etc/agent-gateway/tls, readOnly: true";
    assert!(deployment.contains(mount));
    let tls = config.server.tls.unwrap();
    for file in [tls.cert, tls.key, tls.client_ca] {
        assert!(
            file.starts_with("/etc/agent-gateway/tls"),
            "{}",
            file.display()
        );
    }
    let variable = config.policy.database_url_env.unwrap();
    assert!(deployment.contains(&format!("- name: {variable}\n")));
    // Killed before it has let its tunnels end, it would cut them.
    let drains = config.tunnel.drain_timeout_ms + config.server.shutdown_timeout_ms;
    assert!(deployment.contains("terminationGracePeriodSeconds: 30") && drains < 30_000);
}

#[test]
fn defaults_are_those_of_the_documentation() {
    let config = load("", &[]).unwrap();
    assert_eq!(config.server.grpc_addr.to_string(), "127.0.0.1:50051");
    assert_eq!(config.server.check_timeout_ms, 1500);
    assert_eq!(config.server.max_concurrent_checks, 1024);
    assert_eq!(config.server.shutdown_timeout_ms, 5000);
    assert_eq!(config.admin.grpc_addr.to_string(), "127.0.0.1:50052");
    assert_eq!(config.admin.http_addr.to_string(), "127.0.0.1:9464");
    assert_eq!(config.admin.socket, None);
    assert_eq!(
        config.policy.client_ext_oid.to_string(),
        "1.3.6.1.4.1.57264.1.1"
    );
    assert!(config.policy.database_url.is_none());
    assert_eq!(config.policy.database_url_env, None);
    assert_eq!(config.policy.max_connections, 5);
    assert_eq!(config.policy.connect_timeout_ms, 5000);
    assert_eq!(config.policy.pool_acquire_timeout_ms, 1000);
    assert_eq!(config.policy.query_timeout_ms, 500);
    let listeners = ["127.0.0.1:8443", "127.0.0.1:9901"].map(|text| text.parse().unwrap());
    assert_eq!(config.tunnel.gateway_listeners, listeners);
    assert_eq!(config.tunnel.max_tunnels, 10_000);
    assert_eq!(config.tunnel.max_tunnels_per_key, 1024);
    assert_eq!(config.tunnel.open_timeout_ms, 900);
    assert_eq!(config.tunnel.max_unconfirmed_ms, 30_000);
    assert_eq!(config.tunnel.drain_timeout_ms, 5000);
    assert_eq!(config.server.socket, None);
    assert_eq!(config.server.socket_mode, SocketMode::Owner);
    assert!(config.server.tls.is_none());
    assert_eq!(config.policy.poll_interval_ms, 200);
    assert_eq!(config.policy.max_staleness_ms, 2000);
    assert_eq!(config.cache.max_bytes, 96 * 1024 * 1024);
    assert_eq!(config.cache.max_unknown, 10_000);
    assert_eq!(config.cache.max_lookups, 1024);
    assert_eq!(config.cache.max_age_ms, 60_000);
    assert!(config.private_rules().is_empty());
    assert_eq!(config.dns.hosts_file, None);
    assert_eq!(config.dns.resolv_conf, None);
    assert_eq!(config.dns.nameservers, []);
    assert_eq!(config.dns.timeout_ms, 1000);
    assert_eq!(config.dns.cache_entries, 10_000);
    assert_eq!(config.dns.max_ttl_ms, 60_000);
    assert_eq!(config.observability.log_level, "info");
    assert_eq!(config.observability.otlp_endpoint, None);
    assert!(config.observability.log_stdout);
    assert!(config.audit_options().is_none());
    assert!(!config.audit.stdout);
    assert_eq!(config.audit.max_file_bytes, 256 * 1024 * 1024);
    assert_eq!(config.audit.max_waiting, 4096);
    assert_eq!(config.audit.sync_delay_ms, None);
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let file = "[policy]\nquery_timeout_ms = 100\nmax_connections = 7";
    let variable = ("AGENT_GATEWAY__POLICY__QUERY_TIMEOUT_MS", "200");
    let policy = load(file, &[variable]).unwrap().policy;
    assert_eq!(
        (
            policy.query_timeout_ms,
            policy.max_connections,
            policy.connect_timeout_ms
        ),
        (200, 7, 5000)
    );
    assert_eq!(load(file, &[]).unwrap().policy.query_timeout_ms, 100);
}

#[test]
fn a_permission_that_would_be_too_old_when_it_was_read_is_refused() {
    let error = load("[cache]\nmax_age_ms = 499", &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cache.max_age_ms must not be shorter than policy.query_timeout_ms"
    );
    assert!(!error.hint().is_empty());
    assert!(load("[cache]\nmax_age_ms = 500", &[]).is_ok());
}

#[test]
fn lists_can_stand_in_the_environment() {
    let config = load(
        "",
        &[
            ("AGENT_GATEWAY__DNS__NAMESERVERS", r#"["192.0.2.53:53"]"#),
            (
                "AGENT_GATEWAY__TUNNEL__PRIVATE",
                r#"[{destination="docstore:8443",cidrs=["10.0.0.0/8"]}]"#,
            ),
        ],
    );
    let config = config.unwrap();
    assert_eq!(
        config.dns.nameservers,
        ["192.0.2.53:53".parse::<SocketAddr>().unwrap()]
    );
    assert_eq!(
        config.private_rules()[0].destination.to_string(),
        "docstore:8443"
    );
}

#[test]
fn unknown_sections_and_keys_are_refused_by_name() {
    let sections = "unknown key, known are server, admin, policy, cache, profiles, tunnel, audit, relay, dns, observability";
    for (file, expected) in [
        (
            "[sevrer]\ngrpc_addr = 1",
            format!("config.toml: sevrer: {sections}"),
        ),
        (
            "[admin]\ngrpc = 1",
            "config.toml: admin.grpc: unknown key, known are grpc_addr, http_addr, socket".to_owned(),
        ),
        (
            "[observability]\nlog_stdout = false",
            "config.toml: observability.log_stdout: unknown key, known are log_level, otlp_endpoint"
                .to_owned(),
        ),
        (
            "[[tunnel.private]]\ndestination = 'a:1'\ncidrs = []\nany = 1",
            "config.toml: tunnel.private.0.any: unknown key, known are destination, cidrs"
                .to_owned(),
        ),
    ] {
        assert_eq!(refused(file, &[]), expected, "{file}");
    }
    for (variable, expected) in [
        (
            "AGENT_GATEWAY__SEVRER__GRPC_ADDR",
            format!("AGENT_GATEWAY__SEVRER: {sections}"),
        ),
        (
            "AGENT_GATEWAY__ADMIN__GRPC",
            "AGENT_GATEWAY__ADMIN__GRPC: unknown key, known are grpc_addr, http_addr, socket"
                .to_owned(),
        ),
    ] {
        assert_eq!(refused("", &[(variable, "1")]), expected);
    }
}

#[test]
fn keys_whose_job_is_envoys_now_are_refused_and_say_so() {
    for key in ["listen_addr", "tls_cert_path", "tls_key_path"] {
        let file = format!("[server]\n{key} = \"0.0.0.0:8443\"");
        let variable = format!("AGENT_GATEWAY__SERVER__{}", key.to_uppercase());
        for error in [
            load(&file, &[]).unwrap_err(),
            load("", &[(&variable, "x")]).unwrap_err(),
        ] {
            assert_eq!(
                error.to_string(),
                format!("[server] {key} has moved: Envoy listens for agents and terminates TLS")
            );
            assert_eq!(
                error.hint(),
                "set the address and the certificate in envoy/envoy.yaml, and remove this key"
            );
        }
    }
}

/// mTLS, of files that need not be there to read a configuration.
const TLS: &str = "[server.tls]\ncert = '/c'\nkey = '/k'\nclient_ca = '/a'";

#[test]
fn with_mtls_envoys_listener_may_be_anywhere_and_the_admins_may_not() {
    let file = format!("[server]\ngrpc_addr = \"0.0.0.0:50051\"\n{TLS}");
    let config = load(&file, &[]).unwrap();
    assert!(config.server.tls.unwrap().client_names.is_empty());
    let file = format!("[admin]\ngrpc_addr = \"0.0.0.0:50052\"\n{TLS}");
    assert_eq!(
        refused(&file, &[]),
        "admin.grpc_addr 0.0.0.0:50052 is not a loopback address, and this listener has no mTLS"
    );
}

#[test]
fn mtls_is_all_of_its_keys_or_none() {
    for key in ["cert", "key", "client_ca"] {
        let lines = TLS
            .lines()
            .filter(|line| !line.starts_with(&format!("{key} ")));
        let file = lines.collect::<Vec<_>>().join("\n");
        assert_eq!(
            refused(&file, &[]),
            format!("config.toml: server.tls: missing field `{key}`")
        );
    }
    assert_eq!(
        refused(&format!("{TLS}\nclient_names = ['a', '']"), &[]),
        "server.tls.client_names holds an empty name"
    );
    assert_eq!(
        refused(&format!("[server]\nsocket = '/s'\n{TLS}"), &[]),
        "server.socket takes the place of server.grpc_addr, and [server.tls] is for that"
    );
}

#[test]
fn profiles_are_a_fixed_list_of_what_is_safe() {
    let mesh = "[profiles.mesh]\nrequests = 'http'\nidentity = 'spiffe_id'\nresolve = false";
    let config = load(&format!("[policy]\nprofile = 'mesh'\n{mesh}"), &[]).unwrap();
    let profile = &config.profiles["mesh"];
    assert_eq!(profile.requests, Requests::Http);
    assert_eq!(profile.ports, [443]);
    for (file, expected) in [
        (
            "[profiles.tunnel]\nidentity = 'spiffe_id'",
            "profiles.tunnel is built in, and can't be another",
        ),
        (
            "[policy]\nprofile = 'mesh'",
            "policy.profile mesh is not configured",
        ),
        (
            "[profiles.m]\nresolve = false",
            "profiles.m.resolve is false, and it carries tunnels",
        ),
        (
            "[profiles.m]\nports = []",
            "profiles.m.ports holds no port, or 0",
        ),
        (
            "[profiles.m]\nports = [443, 0]",
            "profiles.m.ports holds no port, or 0",
        ),
        (
            "[profiles.m]\nidentity = 'principal'",
            "config.toml: profiles.m.identity: unknown variant: found `principal`, expected `one of \
             `extension`, `spiffe_id`, `common_name``",
        ),
        (
            "[profiles.m]\nxfcc = true",
            "config.toml: profiles.m.xfcc: unknown key, known are requests, certificate, identity, \
             ports, resolve",
        ),
    ] {
        assert_eq!(refused(file, &[]), expected, "{file}");
    }
}

#[test]
fn a_socket_is_its_owners_or_its_groups() {
    let mode = |mode| {
        let config = load(&format!("[server]\nsocket_mode = {mode}"), &[]);
        config.map(|config| config.server.socket_mode)
    };
    assert_eq!(mode("'0600'").unwrap(), SocketMode::Owner);
    assert_eq!(mode("'0660'").unwrap(), SocketMode::Group);
    for other in ["'0666'", "'600'", "0o600", "384"] {
        mode(other).unwrap_err();
    }
    // The port that is not listened on is not kept from tunnels.
    let listeners = |file| load(file, &[]).unwrap().own_listeners();
    let port = "127.0.0.1:50051".parse().unwrap();
    assert!(listeners("").contains(&port));
    assert!(!listeners("[server]\nsocket = '/s'").contains(&port));
}

#[test]
fn a_grpc_listener_beyond_loopback_is_refused() {
    for (section, why) in [
        ("server", "there is no [server.tls]"),
        ("admin", "this listener has no mTLS"),
    ] {
        for address in [
            "0.0.0.0:50051",
            "[::]:50051",
            "192.0.2.1:50051",
            "[::ffff:127.0.0.1]:1",
        ] {
            let file = format!("[{section}]\ngrpc_addr = \"{address}\"");
            assert_eq!(
                refused(&file, &[]),
                format!("{section}.grpc_addr {address} is not a loopback address, and {why}")
            );
        }
        for address in ["[::1]:50051", "127.0.0.2:50051"] {
            let file = format!("[{section}]\ngrpc_addr = \"{address}\"");
            assert!(load(&file, &[]).is_ok(), "{file}");
        }
    }
    assert!(load("[admin]\nhttp_addr = \"0.0.0.0:9464\"", &[]).is_ok());
}

#[test]
fn bounds_that_bound_nothing_are_refused() {
    for (section, key, max) in [
        ("server", "check_timeout_ms", 60_000),
        ("server", "shutdown_timeout_ms", 600_000),
        ("server", "max_concurrent_checks", 1_000_000),
        ("policy", "max_connections", 1000),
        ("policy", "connect_timeout_ms", 600_000),
        ("policy", "pool_acquire_timeout_ms", 60_000),
        ("policy", "query_timeout_ms", 60_000),
        ("tunnel", "open_timeout_ms", 60_000),
        ("audit", "sync_delay_ms", 60_000),
        ("dns", "timeout_ms", 60_000),
        ("dns", "cache_entries", 10_000_000),
        ("dns", "max_ttl_ms", 86_400_000),
    ] {
        let set = |value: u64| format!("[{section}]\n{key} = {value}");
        for value in [0, max + 1] {
            let expected = format!("{section}.{key} must be from 1 to {max}");
            assert_eq!(refused(&set(value), &[]), expected);
        }
        for value in [1, max] {
            assert!(load(&set(value), &[]).is_ok(), "{}", set(value));
        }
    }
}

#[test]
fn a_socket_whose_place_depends_on_where_the_service_starts_is_refused() {
    for section in ["server", "admin"] {
        for path in ["", "the.sock", "./the.sock"] {
            let file = format!("[{section}]\nsocket = \"{path}\"");
            let expected = format!("{section}.socket must be an absolute path");
            assert_eq!(refused(&file, &[]), expected);
        }
    }
}

#[test]
fn the_audit_has_an_absolute_path_that_the_tool_gateways_variable_names_too() {
    for path in ["", "audit.jsonl", "/"] {
        let file = format!("[audit]\npath = \"{path}\"");
        assert_eq!(refused(&file, &[]), "audit.path must be an absolute path");
    }
    let named = [("AUDIT_PATH", "/of/the/variable")];
    let ours = [named[0], ("AGENT_GATEWAY__AUDIT__PATH", "/ours")];
    let file = "[audit]\npath = '/of/the/file'\nreplica = 'gw-1'";
    for (environment, expected) in [
        (&[][..], "/of/the/file"),
        (&named, "/of/the/variable"),
        (&ours, "/ours"),
    ] {
        let options = load(file, environment).unwrap().audit_options().unwrap();
        assert_eq!(options.path, Path::new(expected));
        assert_eq!(options.replica, "gw-1");
    }
    let file = "[audit]\npath = '/audit'\nreplica = \"a\\nb\"";
    assert!(refused(file, &[]).starts_with("audit.replica must be"));
}

#[test]
fn values_of_another_type_are_refused_by_name() {
    for (file, expected) in [
        (
            "[policy]\nquery_timeout_ms = \"soon\"",
            "config.toml: policy.query_timeout_ms: expected u64",
        ),
        (
            "[policy]\nquery_timeout_ms = -1",
            "config.toml: policy.query_timeout_ms: expected u64",
        ),
        (
            "[policy]\nclient_ext_oid = \"x\"",
            "config.toml: policy.client_ext_oid: not an object identifier in dotted notation, \
             such as 1.3.6.1.4.1.57264.1.1",
        ),
        (
            "[dns]\nnameservers = [\"192.0.2.1\"]",
            "config.toml: dns.nameservers.0: invalid socket address syntax",
        ),
        (
            "[server]\ngrpc_addr = 1\ngrpc_addr = 2",
            "config.toml: TOML parse error at line 3, column 1: duplicate key `grpc_addr` in table \
             `server`",
        ),
    ] {
        assert_eq!(refused(file, &[]), expected, "{file}");
    }
}

#[test]
fn private_destinations_are_read_in_normal_form() {
    let config = load(
        "[[tunnel.private]]\n\
         destination = \"DocStore:8443\"\n\
         cidrs = [\"10.1.0.0/16\", \"fd00::/8\"]\n\
         [[tunnel.private]]\n\
         destination = \"[fd00:0::1]\"\n\
         cidrs = []",
        &[],
    );
    let rules = config.unwrap().private_rules();
    let shown: Vec<_> = rules
        .iter()
        .map(|rule| (rule.destination.to_string(), rule.cidrs.clone()))
        .collect();
    let cidrs = ["10.1.0.0/16", "fd00::/8"].map(|cidr| cidr.parse().unwrap());
    assert_eq!(
        shown,
        [
            ("docstore:8443".to_owned(), cidrs.to_vec()),
            ("[fd00::1]:443".to_owned(), vec![])
        ]
    );
}

#[test]
fn bad_private_destinations_and_ranges_are_refused_by_name() {
    for (destination, cidr, key) in [
        ("docstore:0", "10.0.0.0/8", "destination"),
        ("*.example:443", "10.0.0.0/8", "destination"),
        ("10.0.0.0/8", "10.0.0.0/8", "destination"),
        ("docstore:1", "10.0.0.0/33", "cidrs.0"),
        ("docstore:1", "10.0.0.0", "cidrs.0"),
        ("docstore:1", "docstore", "cidrs.0"),
    ] {
        let file =
            format!("[[tunnel.private]]\ndestination = \"{destination}\"\ncidrs = [\"{cidr}\"]");
        let message = refused(&file, &[]);
        let expected = format!("config.toml: tunnel.private.0.{key}: ");
        assert!(message.starts_with(&expected), "{message}");
    }
    let message = refused("[[tunnel.private]]\ndestination = \"docstore:1\"", &[]);
    assert_eq!(
        message,
        "config.toml: tunnel.private.0: missing field `cidrs`"
    );
}

/// The registry's URL with this configuration and environment.
/// `RootKey` of a seed, as hex and PEM.
fn root(seed: u8) -> (String, String) {
    use p256::pkcs8::EncodePublicKey as _;
    let key = p256::SecretKey::from_slice(&[seed; 32])
        .unwrap()
        .public_key();
    let der = key.to_public_key_der().unwrap();
    let pem = key.to_public_key_pem(p256::pkcs8::LineEnding::LF).unwrap();
    (hex::encode(der.as_bytes()), pem)
}

fn trust_roots(policy: &str) -> Result<Option<permission::TrustRoots>, String> {
    let text = format!("[policy]\ndatabase_url = \"postgres://x\"\n{policy}");
    let options = look(&text, &[], |loaded| loaded.unwrap().registry());
    options
        .map(|options| options.trust_roots)
        .map_err(|error| error.to_string())
}

#[test]
fn trust_roots_are_taken_as_hex_pem_and_files() {
    assert!(trust_roots("").unwrap().is_none());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("root.pem");
    let [(hex, _), (_, pem), (_, in_file)] = [1, 2, 3].map(root);
    std::fs::write(&file, in_file).unwrap();
    let policy = format!(
        "registry_id = \"r\"\ntrust_roots = [{hex:?}, '''{pem}''', {:?}]",
        file.display().to_string()
    );
    let roots = trust_roots(&policy).unwrap().unwrap();
    assert_eq!(roots.registry_id().as_str(), "r");
    let found: Vec<_> = roots.keys().iter().map(|key| key.spki().to_hex()).collect();
    assert_eq!(found, [1, 2, 3].map(|seed| root(seed).0));
}

#[test]
fn trust_roots_that_are_none_or_half_of_them_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let exposed = folder.path().join("root.pem");
    std::fs::write(&exposed, root(1).1).unwrap();
    std::fs::set_permissions(&exposed, std::fs::Permissions::from_mode(0o664)).unwrap();
    let exposed = exposed.display().to_string();
    let (hex, pem) = root(1);
    let with_id = |roots: &str| format!("registry_id = \"r\"\ntrust_roots = [{roots}]");
    let entry = "policy.trust_roots: entry";
    for (policy, expected) in [
        (
            format!("trust_roots = [{hex:?}]"),
            "policy.trust_roots and policy.registry_id must be set together".to_owned(),
        ),
        (
            "registry_id = \"r\"".to_owned(),
            "policy.trust_roots and policy.registry_id must be set together".to_owned(),
        ),
        (
            format!("registry_id = \"\"\ntrust_roots = [{hex:?}]"),
            "policy.registry_id is empty".to_owned(),
        ),
        (
            format!("registry_id = \"a\\nb\"\ntrust_roots = [{hex:?}]"),
            "policy.registry_id holds a control character".to_owned(),
        ),
        (
            with_id("'root.pem'"),
            format!("{entry} 1 is neither a PEM public key, nor hex digits, nor an absolute path"),
        ),
        (
            with_id("''"),
            format!("{entry} 1 is neither a PEM public key, nor hex digits, nor an absolute path"),
        ),
        (
            with_id(&format!("{hex:?}, '/nonexistent'")),
            format!("{entry} 2 can't be read: No such file or directory (os error 2)"),
        ),
        (
            with_id(&format!("{exposed:?}")),
            format!("{entry} 1 is a file that others than its owner may write"),
        ),
        (
            with_id(&format!("{:?}", &hex[2..])),
            format!(
                "{entry} 1 is no P-256 public key: public key is not a P-256 key in \
                 SubjectPublicKeyInfo DER"
            ),
        ),
        (
            with_id(&format!("{hex:?}, '''{pem}'''")),
            "policy.trust_roots: the same root key twice".to_owned(),
        ),
    ] {
        assert_eq!(trust_roots(&policy).unwrap_err(), expected, "{policy}");
    }
}

fn database_url(text: &str, environment: &[(&str, &str)]) -> Result<String, String> {
    look(text, environment, |loaded| {
        let options = loaded.unwrap().registry();
        options
            .map(|options| options.url)
            .map_err(|error| error.to_string())
    })
}

#[test]
fn the_database_url_comes_from_the_named_variable_else_from_the_key() {
    let file = "[policy]\ndatabase_url = \"postgres://file\"";
    let both = format!("{file}\ndatabase_url_env = \"REGISTRY\"");
    let variable = ("REGISTRY", "postgres://variable");
    assert_eq!(database_url(file, &[]).unwrap(), "postgres://file");
    assert_eq!(
        database_url(&both, &[variable]).unwrap(),
        "postgres://variable"
    );
    assert_eq!(
        database_url(&both, &[]).unwrap_err(),
        "environment variable REGISTRY, named by policy.database_url_env, is not set"
    );
    assert_eq!(
        database_url("", &[]).unwrap_err(),
        "no database: neither policy.database_url nor policy.database_url_env is set"
    );
    let own = (
        "AGENT_GATEWAY__POLICY__DATABASE_URL",
        "postgres://u:p@own/db?sslmode=require",
    );
    assert_eq!(database_url(file, &[own]).unwrap(), own.1);
}

#[test]
fn the_database_url_is_never_shown() {
    let file = "[policy]\ndatabase_url = \"postgres://u:hunter2@h/d\"";
    let config = load(file, &[]).unwrap();
    let shown = format!("{config:?} {:?}", config.policy.database_url);
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("(secret)"), "{shown}");
    for (faulty, expected) in [
        (
            "[policy]\nmax_connections = 1\ndatabase_url = \"postgres://u:hunter2@h/d\n",
            "config.toml: TOML parse error at line 3, column 41: invalid basic string",
        ),
        (
            "policy = \"postgres://u:hunter2@h/d\"",
            "config.toml: policy: expected struct Policy",
        ),
        (
            "[policy]\nmax_connections = \"postgres://u:hunter2@h/d\"",
            "config.toml: policy.max_connections: expected u32",
        ),
    ] {
        let error = load(faulty, &[]).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn logs_can_be_switched_off_by_environment_alone() {
    let logs = |value| {
        let config = load("", &[("AGENT_GATEWAY_LOG_STDOUT", value)]).unwrap();
        config.observability.log_stdout
    };
    assert!(!logs("false"));
    assert!(logs("true"));
}

#[test]
fn a_missing_file_is_refused_by_name() {
    let error = Config::load(Path::new("/nonexistent/config.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nonexistent/config.toml can't be read: No such file or directory (os error 2)"
    );
}

/// The keys of a section as serde knows them, out of its refusal of an unknown one.
fn known_keys(section: &str) -> BTreeSet<String> {
    let unknown = match section {
        "" => "no_such_key = 1".to_owned(),
        "tunnel.private" => "[[tunnel.private]]\nno_such_key = 1".to_owned(),
        "profiles.mesh" => "[profiles.mesh]\nno_such_key = 1".to_owned(),
        "server.tls" => format!("{TLS}\nno_such_key = 1"),
        section => format!("[{section}]\nno_such_key = 1"),
    };
    let error = Figment::from(Toml::string(&unknown)).extract::<Config>();
    match error.unwrap_err().kind {
        Kind::UnknownField(_, known) => known.iter().map(ToString::to_string).collect(),
        other => panic!("{section}: {other}"),
    }
}

/// The example with all that it shows commented out put to work.
fn whole_example() -> String {
    let lines = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
        Some(shown) if !shown.starts_with(' ') => shown,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_names_every_key_and_no_other() {
    let figment = Figment::from(Toml::string(&whole_example()));
    let keys = |path: &str| -> BTreeSet<String> {
        let value = match path {
            "" => figment.extract::<figment::value::Dict>().unwrap().into(),
            path => figment.find_value(path).unwrap(),
        };
        value.into_dict().unwrap().into_keys().collect()
    };
    assert_eq!(keys(""), known_keys(""));
    assert_eq!(keys("profiles.mesh"), known_keys("profiles.mesh"));
    for section in known_keys("").into_iter().filter(|key| key != "profiles") {
        assert_eq!(keys(&section), known_keys(&section), "[{section}]");
    }
    let private = figment.find_value("tunnel.private").unwrap();
    let entry = private.into_array().unwrap().remove(0);
    let shown: BTreeSet<String> = entry.into_dict().unwrap().into_keys().collect();
    assert_eq!(shown, known_keys("tunnel.private"));
    let tls = figment.find_value("server.tls").unwrap();
    let shown: BTreeSet<String> = tls.into_dict().unwrap().into_keys().collect();
    assert_eq!(shown, known_keys("server.tls"));
    // A socket has no use for mTLS, and says so.
    let socket = "socket = \"/run/agent-gateway/authz.sock\"";
    load(&whole_example().replace(socket, ""), &[]).unwrap();
}

#[test]
fn the_example_shows_the_defaults() {
    let mut example = load(EXAMPLE, &[]).unwrap();
    assert_eq!(
        example.policy.database_url_env.take().as_deref(),
        Some("AGENT_GATEWAY_DATABASE_URL")
    );
    let default = load("", &[]).unwrap();
    assert_eq!(format!("{example:#?}"), format!("{default:#?}"));
}

const RELAY: &str =
    "[relay]\ntools_file = 'tools.yaml'\negress_file = 'egress.yaml'\npolicy_dir = 'policy'\n";

#[test]
fn without_tools_there_are_no_calls() {
    let off = load("[relay]\nagents_file = 'agents.yaml'\n", &[]).unwrap();
    assert!(off.relay_sources().is_none());
    let sources = load(RELAY, &[]).unwrap().relay_sources().unwrap();
    assert_eq!(sources.tools_file.as_deref(), Some(Path::new("tools.yaml")));
    assert_eq!(sources.policy_dir.as_deref(), Some(Path::new("policy")));
    // One judge.
    let opa = [("OPA_URL", "http://opa:8181/v1/data/mcp/authz")];
    let sources = load(RELAY, &opa).unwrap().relay_sources().unwrap();
    assert_eq!(sources.policy_dir, None);
}

#[test]
fn calls_that_nothing_would_judge_are_refused() {
    for (text, told) in [
        (
            "[relay]\ntools_file = 'a'\npolicy_dir = 'b'\n",
            "egress_file is not",
        ),
        (&format!("{RELAY}replicas = 2\n"), "replicas is over 1"),
        ("[relay]\ntools_file = 'a'\negress_file = 'b'\n", "neither"),
        (
            "[relay]\negress_file = 'b'\n[relay.tool_urls]\necho = 'http://echo/'\n",
            "neither",
        ),
    ] {
        assert!(refused(text, &[]).contains(told), "{text}");
    }
    for bad in [
        "[relay.tool_urls]\n'a b' = 'http://echo/'\n",
        "[relay.tool_urls]\necho = 'http://user@echo/'\n",
        "[relay]\npolicy_timeout_ms = 0\n",
        "[relay]\nmax_manifest_ttl_ms = 0\n",
        "[relay]\ncheck_timeout_ms = 60001\n",
        "[relay]\nmax_bodies_bytes = 0\n",
        "[relay]\nmax_nonces = 0\n",
        "[relay]\nreplicas = 0\n",
    ] {
        assert!(load(bad, &[]).is_err(), "{bad}");
    }
}

#[test]
fn nonces_are_in_memory_unless_a_database_is_named() {
    let registry = "[policy]\ndatabase_url = 'postgres://registry'\n";
    let table = |relay: &str, environment: &[(&str, &str)]| {
        let text = format!("{registry}{RELAY}{relay}");
        look(&text, environment, |loaded| {
            let options = loaded.unwrap().nonce_table();
            options.map(|options| options.map(|options| options.url))
        })
    };
    assert_eq!(table("", &[]).unwrap(), None);
    let url = Some("postgres://nonces".to_owned());
    let named = "nonce_database_url_env = 'NONCES'\nreplicas = 2\n";
    assert_eq!(
        table(named, &[("NONCES", "postgres://nonces")]).unwrap(),
        url
    );
    let inline = "nonce_database_url = 'postgres://nonces'\nreplicas = 2\n";
    assert_eq!(table(inline, &[]).unwrap(), url);
    let error = table(named, &[]).unwrap_err();
    assert!(matches!(error, ConfigError::NoSuchVariable(_)), "{error}");
}

#[test]
fn the_existing_gateways_names_are_accepted() {
    let config = load(
        "[policy]\nopa_url = 'http://other/'\n[relay]\npoca_required = true\n",
        &[
            ("OPA_URL", "http://opa:8181/v1/data/mcp/authz"),
            ("BACKEND_URL", "http://echo:8081/echo"),
            ("TODOS_URL", "http://todos:8082/call"),
            ("POCA_REQUIRED", "false"),
            ("POCA_AGENTS_PATH", "/app/pki/agents.yaml"),
            ("EGRESS_CONFIG_PATH", "/app/egress.yaml"),
        ],
    )
    .unwrap();
    let opa = config.policy.opa_url.as_deref();
    assert_eq!(opa, Some("http://opa:8181/v1/data/mcp/authz"));
    assert!(!config.relay.poca_required);
    let sources = config.relay_sources().unwrap();
    let tools = sources
        .tool_urls
        .iter()
        .map(|(name, url)| format!("{name} {url}"));
    let tools: Vec<_> = tools.collect();
    assert_eq!(
        tools,
        ["echo http://echo:8081/echo", "todos http://todos:8082/call"]
    );
    assert_eq!(
        sources.agents_file.as_deref(),
        Some(Path::new("/app/pki/agents.yaml"))
    );
    assert_eq!(sources.egress_file, Path::new("/app/egress.yaml"));
    // Our own names win.
    let ours = ("AGENT_GATEWAY__RELAY__POCA_REQUIRED", "true");
    let config = load("", &[("POCA_REQUIRED", "false"), ours]).unwrap();
    assert!(config.relay.poca_required);
    // A fault is told under the name that was used.
    assert!(refused("", &[("POCA_REQUIRED", "maybe")]).starts_with("POCA_REQUIRED: "));
    assert!(refused("", &[("BACKEND_URL", "echo")]).contains("BACKEND_URL"));
}
