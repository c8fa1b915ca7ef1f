//! The command line; every setting can also come from the environment, and from the file that
//! [`crate::config`] reads.

#![expect(
    clippy::doc_markdown,
    reason = "the comments are the help text, in which backticks would show"
)]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;
use http::HeaderValue;
use http::uri::Authority;
use permission::Identity;
use rustls::pki_types::ServerName;
use tpm::{Handle, Tcti};

use crate::gateway::GatewayAddress;

const ENVIRONMENT: &str = "\
Environment, beside what the options name:
  AGENT_GATEWAY_TPM_USER_PIN  PIN of the agent's key, if it has one; else you are asked
  AGENT_GATEWAY_TPM_SO_PIN    PIN of the TPM's owner, if it has one, to make and remove keys
There are no options for PINs, because other users can see a program's arguments.";

const EXIT_CODES: &str = "\
Exit codes:
  64  wrong usage or config   65  state, key and certificate don't fit together
  66  missing input (state, CA file)
  67  a PIN is missing or wrong  68  the TPM is locked after too many wrong PINs
  69  not available (TPM, port, no running sidecar, gateway)
  73  can't write             74  the result could not be written to stdout
  75  not yet: the new key is in place, the running sidecar uses the old one
  77  no permission           130 interrupted at a prompt
`exec` ends as the command does; 126: it can't be run, 127: it isn't found.";

const ROTATE_EXAMPLE: &str = "\
Example:
  agent-gateway-sidecar rotate --state ~/.agent-alpha > request.txt
  agent-gateway-sidecar rotate --state ~/.agent-alpha --finish --destination docstore:8443 \\
      --gateway gateway:8443 --ca gateway-ca.pem";

const EXAMPLE: &str = "\
Example:
  agent-gateway-sidecar init --identity agent-alpha --state ~/.agent-alpha
  agent-gateway-sidecar run  --gateway gateway:8443 --ca gateway-ca.pem --state ~/.agent-alpha
  agent-gateway-sidecar exec --state ~/.agent-alpha -- curl https://docstore/health";

/// An agent's way out: a local CONNECT proxy that tunnels through the agent gateway, with the
/// agent's key in a TPM
#[derive(Debug, Parser)]
#[command(name = "agent-gateway-sidecar", version, after_help = format!("{ENVIRONMENT}\n\n{EXIT_CODES}\n\n{EXAMPLE}"))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// TOML file with what the options leave out: each key is an option's name, with _ for -. The
    /// environment and options have precedence; see sidecar.example.toml
    #[arg(long = CONFIG, env = "AGENT_GATEWAY_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
}

/// The option that names the configuration file.
pub(crate) const CONFIG: &str = "config";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make (or find) the agent's key in the TPM, and the certificate that carries it
    Init(InitArgs),
    /// Run the local proxy until SIGINT or SIGTERM
    ///
    /// The proxy serves only those who know a token, made anew at each start. `exec` gives it to
    /// its command; for other clients the file proxy.url in the state folder holds the proxy's URL
    /// with the token in it.
    ///
    /// Known limit: Envoy 1.40 ends a tunnel with a reset when its destination ends first. What
    /// does not fit into 512 KiB that the client has yet to read can then be lost; the client sees
    /// a reset connection, never a complete answer.
    Run(RunArgs),
    /// Run a command whose HTTP clients use the running sidecar
    ///
    /// Sets HTTPS_PROXY, HTTP_PROXY and ALL_PROXY (and their lower-case forms), and removes
    /// NO_PROXY and no_proxy, which would let requests go around the gateway. The proxy carries
    /// only tunnels: a plain http:// request gets a 405 that says so.
    Exec(ExecArgs),
    /// Print the agent's certificate, as PEM
    Certificate(CertificateArgs),
    /// Replace the agent's key by a new one, while the old one goes on until that is granted
    ///
    /// Without --finish, makes the new key beside the old one and prints the request for the
    /// principal, as often as you like. With --finish, the new key takes the old one's place, also
    /// in a running sidecar, whose open tunnels go on; the old one then leaves the TPM. A command
    /// that was interrupted goes on where it was when it is given again.
    #[command(after_help = ROTATE_EXAMPLE)]
    Rotate(RotateArgs),
    /// Show the agent's key, and how its sidecar is doing; 69 if none runs
    Status(StatusArgs),
    /// Call a tool through the gateway, with proof of its context
    ///
    /// The answer's body goes to stdout, whatever its status. The key that signs the proof is made
    /// by `poca keygen`; who calls is proved by the key in the TPM.
    Relay(RelayArgs),
    /// Keys and signatures that prove a call's context (PoCA)
    #[command(subcommand)]
    Poca(PocaCommand),
    /// Look for what is wrong: TPM, key, clock, gateway, its CA, and one tunnel
    ///
    /// While the sidecar of this state runs, it is asked; otherwise everything is tried as `run`
    /// would, for which --gateway and --ca are needed.
    Doctor(DoctorArgs),
    /// Print a script by which a shell completes this program's command lines
    #[command(after_help = "\
Example:
  agent-gateway-sidecar completions bash > /etc/bash_completion.d/agent-gateway-sidecar")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Write the manual's pages into a folder
    #[command(hide = true)]
    ManPages {
        /// The folder
        folder: PathBuf,
    },
}

impl Command {
    /// Whether the command talks with the TPM.
    pub fn uses_tpm(&self) -> bool {
        match self {
            Command::Init(_)
            | Command::Run(_)
            | Command::Rotate(_)
            | Command::Doctor(_)
            | Command::Relay(_) => true,
            Command::Exec(_)
            | Command::Certificate(_)
            | Command::Status(_)
            | Command::Poca(_)
            | Command::Completions { .. }
            | Command::ManPages { .. } => false,
        }
    }
}

/// `init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The name by which permissions know the agent: 1 to 256 bytes, case-sensitive
    #[arg(long, env = "AGENT_GATEWAY_IDENTITY", value_parser = Identity::parse)]
    pub identity: Identity,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub state: StateArgs,
    /// How the TPM is reached, such as device:/dev/tpmrm0
    #[arg(long, env = "AGENT_GATEWAY_TCTI", default_value = Tcti::DEFAULT)]
    pub tcti: Tcti,
    /// Persistent handle of the key in the TPM
    #[arg(long, env = "AGENT_GATEWAY_TPM_HANDLE", default_value_t = Handle::DEFAULT)]
    pub handle: Handle,
    /// Give a key that is made a PIN, without which it can't be used: the one in
    /// AGENT_GATEWAY_TPM_USER_PIN, or else you are asked. With that variable set, a key gets its PIN
    /// without this option too
    #[arg(long)]
    pub pin: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The gateway; an IPv6 address stands in brackets. Several, in order: the next is used when
    /// those before it are down (repeat the option, or separate by commas)
    #[arg(
        long = "gateway",
        env = "AGENT_GATEWAY_GATEWAY",
        value_name = "HOST:PORT",
        required = true,
        value_delimiter = ','
    )]
    pub gateways: Vec<GatewayAddress>,
    /// PEM file with the only authorities that may vouch for the gateway
    #[arg(long, env = "AGENT_GATEWAY_CA", value_name = "FILE")]
    pub ca: PathBuf,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub state: StateArgs,
    /// Where the local proxy listens
    #[arg(long, env = "AGENT_GATEWAY_LISTEN", default_value = "127.0.0.1:3128")]
    pub listen: SocketAddr,
    /// Listen on this Unix socket too, whose clients need no token: the kernel tells whose process
    /// each is. For programs that can speak HTTP over one, and for sandboxes without a network
    #[arg(long, env = "AGENT_GATEWAY_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Users, by number, whose processes may use the socket, in place of the sidecar's own user
    #[arg(
        long = "socket-uid",
        env = "AGENT_GATEWAY_SOCKET_UID",
        value_name = "UID",
        value_delimiter = ',',
        requires = "socket"
    )]
    pub socket_uids: Vec<u32>,
    /// Serve every process that reaches the proxy, not only those that know its token: each of
    /// them then acts as the agent. Only on loopback
    #[arg(long, env = "AGENT_GATEWAY_OPEN_TO_ALL")]
    pub open_to_all: bool,
    /// Name that the gateway's certificate must hold, if not that of --gateway
    #[arg(long, env = "AGENT_GATEWAY_SERVER_NAME", value_name = "NAME", value_parser = server_name)]
    pub server_name: Option<ServerName<'static>>,
    /// Most tunnels at once; one more is answered 429
    #[arg(long, env = "AGENT_GATEWAY_MAX_TUNNELS", default_value_t = 1024,
          value_parser = clap::value_parser!(u16).range(1..))]
    pub max_tunnels: u16,
    /// Seconds in which a tunnel must be open; else the answer is 503
    #[arg(long, env = "AGENT_GATEWAY_OPEN_TIMEOUT", default_value = "15", value_parser = seconds)]
    pub open_timeout: Duration,
}

/// `exec`
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub state: StateArgs,
    /// PEM file with the authorities that the command's clients are to trust: sets CURL_CA_BUNDLE,
    /// SSL_CERT_FILE and NODE_EXTRA_CA_CERTS. Only the last adds to what a client trusts by itself;
    /// the others replace it
    #[arg(long, value_name = "FILE")]
    pub ca_bundle: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// `certificate`
#[derive(Debug, Args)]
pub struct CertificateArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub state: StateArgs,
    /// Print the public key alone: hex of its SubjectPublicKeyInfo
    #[arg(long)]
    pub spki: bool,
    /// Print what a principal needs in order to grant: identity, key and certificate
    #[arg(long, conflicts_with = "spki")]
    pub request: bool,
    /// Of the new key, while a rotation goes on
    #[arg(long)]
    pub next: bool,
}

/// `rotate`
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "clap rules out what doesn't go together"
)]
#[command(group = ArgGroup::new("proof").args(["destination", "granted"]).requires("finish"))]
pub struct RotateArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub state: StateArgs,
    /// Persistent handle of the new key; by default the neighbour of the old one's, as 0x81010005 is
    /// of 0x81010004 and the other way round
    #[arg(long, value_name = "HANDLE", conflicts_with_all = ["finish", "cancel"])]
    pub new_handle: Option<Handle>,
    /// Put the new key in the old one's place
    #[arg(long, requires = "proof")]
    pub finish: bool,
    /// Before that, open a tunnel to this destination with the new key, and close it; if that is
    /// refused, nothing changes
    #[arg(long, value_name = "HOST:PORT", value_parser = destination)]
    pub destination: Option<String>,
    /// The new key may what it must; don't try
    #[arg(long)]
    pub granted: bool,
    /// Give the new key up; the old one stays
    #[arg(long, conflicts_with_all = ["finish", "proof"])]
    pub cancel: bool,
    /// The gateway, as for `run`
    #[arg(
        long = "gateway",
        env = "AGENT_GATEWAY_GATEWAY",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub gateways: Vec<GatewayAddress>,
    /// The gateway's authorities, as for `run`
    #[arg(long, env = "AGENT_GATEWAY_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Name in the gateway's certificate, as for `run`
    #[arg(long, env = "AGENT_GATEWAY_SERVER_NAME", value_name = "NAME", value_parser = server_name)]
    pub server_name: Option<ServerName<'static>>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub state: StateArgs,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub state: StateArgs,
    /// The gateway, as for `run`
    #[arg(
        long = "gateway",
        env = "AGENT_GATEWAY_GATEWAY",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub gateways: Vec<GatewayAddress>,
    /// The gateway's authorities, as for `run`
    #[arg(long, env = "AGENT_GATEWAY_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Name in the gateway's certificate, as for `run`
    #[arg(long, env = "AGENT_GATEWAY_SERVER_NAME", value_name = "NAME", value_parser = server_name)]
    pub server_name: Option<ServerName<'static>>,
    /// Open a tunnel to this destination, and close it
    #[arg(long, value_name = "HOST:PORT", value_parser = destination)]
    pub destination: Option<String>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// `relay`
#[derive(Debug, Args)]
pub struct RelayArgs {
    /// The tool's name
    #[arg(long, value_name = "NAME")]
    pub tool: String,
    /// File with what the tool is to get, or - for stdin: JSON, or for `echo` anything
    #[arg(long, value_name = "FILE")]
    pub body: PathBuf,
    /// The $id of a contract that the body must meet
    #[arg(long, value_name = "ID")]
    pub contract: Option<HeaderValue>,
    /// What the call is for
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub intent: String,
    /// What it needs (repeat the option for several)
    #[arg(long = "scope", value_name = "TEXT")]
    pub scopes: Vec<String>,
    /// Minutes for which the proof counts
    #[arg(long = "expmin", default_value = "5", value_name = "MINUTES", value_parser = minutes)]
    pub lifetime: Duration,
    /// File with the key that signs the proof; poca.key in the state folder if not given
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub state: StateArgs,
    /// The gateway, as for `run`
    #[arg(
        long = "gateway",
        env = "AGENT_GATEWAY_GATEWAY",
        value_name = "HOST:PORT",
        required = true,
        value_delimiter = ','
    )]
    pub gateways: Vec<GatewayAddress>,
    /// The gateway's authorities, as for `run`
    #[arg(long, env = "AGENT_GATEWAY_CA", value_name = "FILE")]
    pub ca: PathBuf,
    /// Name in the gateway's certificate, as for `run`
    #[arg(long, env = "AGENT_GATEWAY_SERVER_NAME", value_name = "NAME", value_parser = server_name)]
    pub server_name: Option<ServerName<'static>>,
    /// Seconds in which the answer must be there
    #[arg(long, default_value = "15", value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Duration,
}

/// `poca`
#[derive(Debug, Subcommand)]
pub enum PocaCommand {
    /// Make (or find) the key that signs proofs, and print its public key
    ///
    /// The key is a file for its owner alone. The public key is base64url of 32 bytes, as the
    /// gateway's list of agents takes it.
    Keygen(KeygenArgs),
    /// Print the headers that prove a call's context, and the body that they are for
    ///
    /// Three lines, for other clients to send: X-PoCA-Manifest, X-PoCA-Signature and Body. Each
    /// is good for one call.
    Sign(SignArgs),
}

/// `poca keygen`
#[derive(Debug, Args)]
pub struct KeygenArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub key: KeyArgs,
}

/// `poca sign`
#[derive(Debug, Args)]
pub struct SignArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "clap would show it as help")]
    pub key: KeyArgs,
    /// Who calls: the identity in the certificate that the call is made with
    #[arg(long, default_value = "agent", value_name = "IDENTITY", value_parser = Identity::parse)]
    pub caller: Identity,
    /// The tool's name
    #[arg(long, default_value = "echo", value_name = "NAME")]
    pub tool: String,
    /// What the call is for
    #[arg(long, default_value = "echo_payload", value_name = "TEXT")]
    pub intent: String,
    /// What it needs (repeat the option for several)
    #[arg(long = "scope", default_value = "read", value_name = "TEXT")]
    pub scopes: Vec<String>,
    /// Minutes for which the proof counts
    #[arg(long = "expmin", default_value = "5", value_name = "MINUTES", value_parser = minutes)]
    pub lifetime: Duration,
    /// The whole body of the request, as it will be sent
    #[arg(
        long,
        default_value = r#"{"message":"hello gateway"}"#,
        value_name = "TEXT"
    )]
    pub body: String,
}

/// Where the key that signs proofs is.
#[derive(Debug, Args)]
pub struct KeyArgs {
    /// File with the key: PEM, PKCS#8, as `openssl genpkey -algorithm ed25519` makes it
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Folder of the agent's sidecar, in which the key is poca.key
    #[arg(long, env = "AGENT_GATEWAY_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Where the agent's state is.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// Folder of this agent's sidecar
    #[arg(long = "state", env = "AGENT_GATEWAY_STATE", value_name = "DIR")]
    pub dir: PathBuf,
}

pub(crate) fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|_| "not a host name or IP address".to_owned())
}

/// Nothing that could end a request's first line; the service judges the rest.
fn destination(text: &str) -> Result<String, String> {
    match text.parse::<Authority>() {
        Ok(authority) if authority.port().is_some() && !text.contains('@') => Ok(text.to_owned()),
        _ => Err("not HOST:PORT".to_owned()),
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err("not a number of seconds from 1 to 3600".to_owned()),
    }
}

fn minutes(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(minutes @ 1..=1440) => Ok(Duration::from_mins(minutes)),
        _ => Err("not a number of minutes from 1 to 1440".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
