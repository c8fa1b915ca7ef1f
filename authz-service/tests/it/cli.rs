//! Exit statuses, and what is said.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use registry::SCHEMA_VERSION;
use testbed::{Database, authz, free_port};

/// How a run of the program ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) status: i32,
    stdout: String,
    stderr: String,
}

/// Runs the program with this configuration and environment alone.
fn run(command: &str, config: &str, environment: &[(&str, &str)]) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_agent-gateway-authz"))
        .arg(command)
        .args(["--config", "config.toml"])
        .current_dir(folder.path())
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    Run {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A run that failed as it should.
pub(crate) fn failed(status: i32, error: &str, hint: &str) -> Run {
    Run {
        status,
        stdout: String::new(),
        stderr: format!("error: {error}\nhint: {hint}\n"),
    }
}

const MIGRATE: &str = "run `agent-gateway-authz migrate --config …` with the owner's URL in \
                       AGENT_GATEWAY_MIGRATE_DATABASE_URL";
const IS_POSTGRES_RUNNING: &str =
    "is Postgres running there, and does the role exist with that password";

/// Configuration for `serve` on free ports, without logs.
pub(crate) fn serve_config() -> String {
    let [grpc, admin_grpc, admin_http] = [(); 3].map(|()| free_port().unwrap());
    format!(
        "[server]\ngrpc_addr = \"127.0.0.1:{grpc}\"\n\
         [admin]\ngrpc_addr = \"127.0.0.1:{admin_grpc}\"\nhttp_addr = \"127.0.0.1:{admin_http}\"\n\
         [policy]\ndatabase_url_env = \"REGISTRY\"\nconnect_timeout_ms = 40000\n\
         [dns]\nnameservers = [\"127.0.0.1:53\"]\n"
    )
}

pub(crate) fn serve(config: &str, database_url: &str) -> Run {
    let environment = [
        ("REGISTRY", database_url),
        ("AGENT_GATEWAY_LOG_STDOUT", "false"),
    ];
    run("serve", config, &environment)
}

fn migrate(database_url: &str) -> Run {
    let environment = [("AGENT_GATEWAY_MIGRATE_DATABASE_URL", database_url)];
    run("migrate", "", &environment)
}

async fn migrated() -> Database {
    let database = testbed::database().await.unwrap();
    authz::migrate(&database.url()).unwrap();
    database
}

#[test]
fn check_config_says_that_a_configuration_is_valid() {
    let environment = [("REGISTRY", "postgres://reader@127.0.0.1/registry")];
    assert_eq!(
        run("check-config", &serve_config(), &environment),
        Run {
            status: 0,
            stdout: "config.toml is valid\n".to_owned(),
            stderr: String::new()
        }
    );
}

#[test]
fn a_bad_configuration_is_64_for_check_config_and_for_serve() {
    let see_dns = "see [dns] in config.example.toml";
    let see_observability = "see [observability] in config.example.toml";
    let cases = [
        (
            "[server]\nlisten_addr = \"0.0.0.0:8443\"",
            "[server] listen_addr has moved: Envoy listens for agents and terminates TLS",
            "set the address and the certificate in envoy/envoy.yaml, and remove this key",
        ),
        (
            "[server]\nport = 1",
            "config.toml: server.port: unknown key, known are grpc_addr, socket, socket_mode, \
             tls, check_timeout_ms, max_concurrent_checks, shutdown_timeout_ms",
            "config.example.toml lists every key with its default",
        ),
        (
            "[server]\ngrpc_addr = \"0.0.0.0:50051\"",
            "server.grpc_addr 0.0.0.0:50051 is not a loopback address, and there is no [server.tls]",
            "listen on 127.0.0.1 or [::1], on Envoy's machine, or set up mTLS in [server.tls]",
        ),
        (
            "[server.tls]\ncert = \"/nonexistent/authz.pem\"\nkey = \"/k\"\nclient_ca = \"/a\"\n\
             [policy]\ndatabase_url = \"postgres://h/d\"",
            "server.tls.cert /nonexistent/authz.pem can't be read: No such file or directory (os \
             error 2)",
            "see [server.tls] in config.example.toml",
        ),
        (
            "[server.tls]\ncert = \"config.toml\"\nkey = \"config.toml\"\n\
             client_ca = \"config.toml\"\n[policy]\ndatabase_url = \"postgres://h/d\"",
            "server.tls.cert config.toml holds no PEM certificate",
            "see [server.tls] in config.example.toml",
        ),
        (
            "[policy]\ndatabase_url_env = \"UNSET\"",
            "environment variable UNSET, named by policy.database_url_env, is not set",
            "export it, as postgres://user:password@host/database",
        ),
        (
            "",
            "no database: neither policy.database_url nor policy.database_url_env is set",
            "set policy.database_url_env to the name of a variable with the URL",
        ),
        (
            "[policy]\ndatabase_url = \"reader:hunter2@host/registry\"",
            "database url is not a valid postgres url",
            "it looks like postgres://user:password@host:5432/database",
        ),
        (
            "[dns]\nhosts_file = \"/nonexistent/hosts\"\n[policy]\ndatabase_url = \"postgres://h/d\"",
            "dns: could not read /nonexistent/hosts",
            see_dns,
        ),
        (
            "[observability]\nlog_level = \"authz_service=loud\"\n[policy]\ndatabase_url = \"postgres://h/d\"",
            "observability.log_level: error parsing level filter: expected one of \"off\", \
             \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
            see_observability,
        ),
        (
            "[observability]\notlp_endpoint = \"127.0.0.1:4317\"\n\
             [policy]\ndatabase_url = \"postgres://h/d\"",
            "observability.otlp_endpoint does not begin with http://",
            see_observability,
        ),
    ];
    for (config, error, hint) in cases {
        let expected = failed(64, error, hint);
        for command in ["check-config", "serve"] {
            assert_eq!(run(command, config, &[]), expected, "{command}: {config}");
        }
    }
}

#[test]
fn bad_usage_is_64_and_a_missing_file_too() {
    assert_eq!(run("frobnicate", "", &[]).status, 64);
    assert_eq!(run("--frobnicate", "", &[]).status, 64);
    let program = env!("CARGO_BIN_EXE_agent-gateway-authz");
    let missing = Command::new(program)
        .args(["check-config", "--config", "/nonexistent/config.toml"])
        .output()
        .unwrap();
    assert_eq!(missing.status.code(), Some(64));
    assert_eq!(
        String::from_utf8(missing.stderr).unwrap(),
        "error: /nonexistent/config.toml can't be read: No such file or directory (os error 2)\n\
         hint: copy config.example.toml and point --config at the copy\n"
    );
    let help = Command::new(program).arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(
        help.trim_end()
            .ends_with("agent-gateway-authz serve --config config.toml"),
        "{help}"
    );
}

#[tokio::test]
async fn migrate_applies_what_is_missing_and_says_so() {
    let database = testbed::database().await.unwrap();
    let done = |stdout: &str| Run {
        status: 0,
        stdout: stdout.to_owned(),
        stderr: String::new(),
    };
    let first = migrate(&database.url());
    assert_eq!(first, done(&first.stdout));
    let applied: Vec<_> = first.stdout.lines().collect();
    assert_eq!(i32::try_from(applied.len()).unwrap(), SCHEMA_VERSION);
    assert_eq!(applied[0], "applied 0001_signed_authorization_registry.sql");
    assert_eq!(
        migrate(&database.url()),
        done(&format!(
            "nothing to do: the registry has schema version {SCHEMA_VERSION}\n"
        ))
    );
}

#[tokio::test]
async fn a_schema_that_is_missing_or_newer_is_78() {
    let empty = testbed::database().await.unwrap();
    assert_eq!(
        serve(&serve_config(), &empty.url()),
        failed(
            78,
            "database has no registry: migration 0001_signed_authorization_registry.sql was never \
             applied",
            MIGRATE
        )
    );
    let newer = migrated().await;
    newer
        .execute("INSERT INTO agent_gateway_schema_version (version) VALUES (99)")
        .unwrap();
    let refused = failed(
        78,
        &format!("registry has schema version 99, this program knows only {SCHEMA_VERSION}"),
        "run the version of this program that made it, or a newer one",
    );
    assert_eq!(serve(&serve_config(), &newer.url()), refused);
    assert_eq!(migrate(&newer.url()), refused);
}

#[tokio::test]
async fn a_database_that_is_out_of_reach_is_69_and_its_password_is_not_shown() {
    let closed = free_port().unwrap();
    let url = format!("postgres://reader:hunter2@127.0.0.1:{closed}/registry");
    let refused = failed(
        69,
        "database can't be reached: error communicating with database: Connection refused (os \
         error 111)",
        IS_POSTGRES_RUNNING,
    );
    assert_eq!(serve(&serve_config(), &url), refused);
    assert_eq!(migrate(&url), refused);

    // Takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let url = format!("postgres://reader:hunter2@{address}/registry");
    let impatient = serve_config().replace("_ms = 40000", "_ms = 300");
    assert_eq!(
        serve(&impatient, &url),
        failed(
            69,
            "database did not answer within 300ms",
            IS_POSTGRES_RUNNING
        )
    );

    let database = migrated().await;
    let url = database.url_as("no_such_role", "hunter2").unwrap();
    let run = serve(&serve_config(), &url);
    assert_eq!(run.status, 69);
    assert!(run.stderr.contains("no_such_role"), "{run:?}");
    assert!(!run.stderr.contains("hunter2"), "{run:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_69_and_named() {
    let database = migrated().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = taken.local_addr().unwrap();
    for key in ["server.grpc_addr", "admin.grpc_addr", "admin.http_addr"] {
        let name = format!("AGENT_GATEWAY__{}", key.replace('.', "__").to_uppercase());
        let environment = [
            ("REGISTRY", &*database.url()),
            ("AGENT_GATEWAY_LOG_STDOUT", "false"),
            (&*name, &*address.to_string()),
        ];
        assert_eq!(
            run("serve", &serve_config(), &environment),
            failed(
                69,
                &format!(
                    "{key} {address} can't be listened on: Address already in use (os error 98)"
                ),
                "another process may have it: `ss -ltnp` tells"
            )
        );
    }
}
