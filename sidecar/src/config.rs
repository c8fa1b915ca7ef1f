//! The configuration file: what the command line may leave out.
//!
//! Later wins: defaults, the file, the environment, options. The file's values become the defaults
//! of the options that are named alike, so each value is read in one way only, wherever it stands.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use figment::Figment;
use figment::error::Kind;
use figment::providers::{Format as _, Toml};
use permission::Identity;
use serde::{Deserialize, Deserializer, de};
use tpm::{Handle, Tcti};

use crate::cli::{self, Cli};
use crate::gateway::GatewayAddress;

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Everything that the file may hold; each key is an option's name, with `_` for `-`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of the agent's sidecar; `AGENT_GATEWAY_STATE`.
    pub state: Option<PathBuf>,
    /// The name by which permissions know the agent, 1 to 256 bytes; `AGENT_GATEWAY_IDENTITY`.
    #[serde(deserialize_with = "identity")]
    pub identity: Option<Identity>,
    /// How the TPM is reached; `AGENT_GATEWAY_TCTI`.
    #[serde(deserialize_with = "text")]
    pub tcti: Option<Tcti>,
    /// Persistent handle of the key in the TPM, as in `0x81010004`; `AGENT_GATEWAY_TPM_HANDLE`.
    #[serde(deserialize_with = "text")]
    pub handle: Option<Handle>,
    /// The gateways, `host:port` each, in the order in which they are tried;
    /// `AGENT_GATEWAY_GATEWAY`, separated by commas.
    #[serde(deserialize_with = "texts")]
    pub gateway: Vec<GatewayAddress>,
    /// PEM file with the only authorities that may vouch for the gateway; `AGENT_GATEWAY_CA`.
    pub ca: Option<PathBuf>,
    /// Name that the gateway's certificate must hold, if not that of its address;
    /// `AGENT_GATEWAY_SERVER_NAME`.
    #[serde(deserialize_with = "text")]
    pub server_name: Option<ServerName>,
    /// Where the local proxy listens, `ip:port`; `AGENT_GATEWAY_LISTEN`.
    pub listen: Option<SocketAddr>,
    /// Path of a Unix socket on which the proxy listens too; `AGENT_GATEWAY_SOCKET`.
    pub socket: Option<PathBuf>,
    /// Numbers of the users whose processes may use the socket, in place of the sidecar's own user;
    /// `AGENT_GATEWAY_SOCKET_UID`, separated by commas.
    pub socket_uid: Vec<u32>,
    /// Whether everybody who reaches the proxy is served; `AGENT_GATEWAY_OPEN_TO_ALL`.
    pub open_to_all: bool,
    /// Most tunnels at once, 1 to 65535; `AGENT_GATEWAY_MAX_TUNNELS`.
    pub max_tunnels: Option<NonZeroU16>,
    /// Seconds in which a tunnel must be open, 1 to 3600; `AGENT_GATEWAY_OPEN_TIMEOUT`.
    #[serde(deserialize_with = "seconds")]
    pub open_timeout: Option<Duration>,
}

/// A name that a certificate may hold.
#[derive(Debug, Clone)]
pub struct ServerName(String);

impl FromStr for ServerName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        cli::server_name(text).map(|_| Self(text.to_owned()))
    }
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such file, or not ours to read.
    #[error("can't read {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A wrong type, an unknown key, …
    #[error("{0}")]
    Invalid(String),
}

/// Why the command line says nothing that can be done.
#[derive(Debug)]
pub enum ParseError {
    /// Wrong usage, and also how `--help` and `--version` end.
    Usage(clap::Error),
    /// The file that it names.
    Config(ConfigError),
}

/// Reads the command line, and the file that it names.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ParseError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let strict = Cli::command();
    let mut command = match named_file(&strict, &arguments) {
        Some(path) => {
            let config = Config::load(&path).map_err(ParseError::Config)?;
            with_defaults(strict, &config.values())
        }
        None => strict,
    };
    let parsed = command.try_get_matches_from_mut(arguments);
    parsed
        .and_then(|matches: ArgMatches| Cli::from_arg_matches(&matches))
        .map_err(|error| ParseError::Usage(error.format(&mut command)))
}

/// The file that `--config` or the environment names. What else is missing may be in it; whatever
/// else is wrong with the command line is so with the file too, and told by the one who reads on.
fn named_file(command: &clap::Command, arguments: &[OsString]) -> Option<PathBuf> {
    let lenient = each_option(command.clone(), &|option| option.required(false));
    let matches = lenient.try_get_matches_from(arguments).ok()?;
    matches.get_one::<PathBuf>(cli::CONFIG).cloned()
}

fn with_defaults(command: clap::Command, values: &[(&str, Vec<OsString>)]) -> clap::Command {
    each_option(command, &|option| {
        let name = option.get_long().map(|long| long.replace('-', "_"));
        match values.iter().find(|(key, _)| name.as_deref() == Some(*key)) {
            Some((_, values)) => option.required(false).default_values(values.clone()),
            None => option,
        }
    })
}

/// Changes the options of all subcommands.
fn each_option(command: clap::Command, change: &dyn Fn(clap::Arg) -> clap::Arg) -> clap::Command {
    command
        .mut_args(change)
        .mut_subcommands(|subcommand| each_option(subcommand, change))
}

impl Config {
    fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut content = String::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut content))
            .map_err(|source| ConfigError::Unreadable {
                path: path.to_owned(),
                source,
            })?;
        Figment::from(Toml::string(&content))
            .extract()
            .map_err(|error| invalid(path, error))
    }

    /// For each key that is set, the texts that an option would have.
    fn values(&self) -> Vec<(&'static str, Vec<OsString>)> {
        let path = |path: &Option<PathBuf>| path.iter().map(|path| path.clone().into()).collect();
        let all: [(&'static str, Vec<OsString>); 13] = [
            ("state", path(&self.state)),
            (
                "identity",
                shown(self.identity.as_ref().map(Identity::as_str)),
            ),
            ("tcti", shown(&self.tcti)),
            ("handle", shown(self.handle)),
            ("gateway", shown(&self.gateway)),
            ("ca", path(&self.ca)),
            (
                "server_name",
                shown(self.server_name.as_ref().map(|name| &name.0)),
            ),
            ("listen", shown(self.listen)),
            ("socket", path(&self.socket)),
            ("socket_uid", shown(&self.socket_uid)),
            ("open_to_all", shown(self.open_to_all.then_some(true))),
            ("max_tunnels", shown(self.max_tunnels)),
            (
                "open_timeout",
                shown(self.open_timeout.map(|time| time.as_secs())),
            ),
        ];
        all.into_iter()
            .filter(|(_, values)| !values.is_empty())
            .collect()
    }
}

fn shown<T: fmt::Display>(values: impl IntoIterator<Item = T>) -> Vec<OsString> {
    let values = values.into_iter();
    values.map(|value| value.to_string().into()).collect()
}

fn identity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Identity>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Identity::parse(&text).map(Some).map_err(de::Error::custom)
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let number = u64::deserialize(deserializer)?;
    let seconds = cli::seconds(&number.to_string());
    seconds.map(Some).map_err(de::Error::custom)
}

fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

fn texts<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parsed = texts.iter().map(|text| text.parse());
    parsed.collect::<Result<_, _>>().map_err(de::Error::custom)
}

/// Names each key that is at fault.
fn invalid(file: &Path, error: figment::Error) -> ConfigError {
    let faults = error.into_iter().map(|fault| {
        let key = fault.path.join(".");
        let place = if key.is_empty() {
            key
        } else {
            format!(": {key}")
        };
        let told = match &fault.kind {
            Kind::UnknownField(_, known) => format!("unknown key, known are {}", known.join(", ")),
            // The TOML parser draws the line; the first line of what it says tells where.
            Kind::Message(text) => text
                .lines()
                .filter(|line| !line.contains('|') && !line.trim().is_empty())
                .collect::<Vec<_>>()
                .join(": "),
            other => other.to_string(),
        };
        format!("{}{place}: {told}", file.display())
    });
    ConfigError::Invalid(faults.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::cli::{Command, RunArgs};

    fn read(config: &str, arguments: &[&str]) -> Result<Cli, ParseError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(config.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let all = ["sidecar", "--config", path];
        parse(all.iter().chain(arguments).map(OsString::from))
    }

    fn run(config: &str, arguments: &[&str]) -> RunArgs {
        match read(config, arguments).unwrap().command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn refused(config: &str) -> String {
        match read(config, &["exec", "--", "true"]) {
            Err(ParseError::Config(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    const EXAMPLE: &str = include_str!("../../sidecar.example.toml");

    #[test]
    fn every_key_of_the_example_is_an_option_and_every_setting_is_in_the_example() {
        let all = EXAMPLE
            .replace("# server_name", "server_name")
            .replace("# socket", "socket")
            .replace("= false", "= true");
        let config: Config = Figment::from(Toml::string(&all)).extract().unwrap();
        let mut keys: Vec<_> = config.values().into_iter().map(|(key, _)| key).collect();
        let settings = Cli::command();
        let mut settings: Vec<String> = settings
            .get_subcommands()
            .flat_map(clap::Command::get_arguments)
            .filter(|option| option.get_env().is_some())
            .map(|option| option.get_long().unwrap().replace('-', "_"))
            .collect();
        settings.sort();
        settings.dedup();
        keys.sort_unstable();
        assert_eq!(keys, settings);
        for option in Cli::command()
            .get_subcommands()
            .flat_map(clap::Command::get_arguments)
        {
            if let Some(name) = option.get_env() {
                let name = name.to_str().unwrap();
                assert!(EXAMPLE.contains(&format!("# {name}")), "{name}");
            }
        }
    }

    #[test]
    fn the_document_tells_every_setting_with_its_variable_and_default() {
        const DOCUMENT: &str = include_str!("../../docs/configuration.md");
        let (_, table) = DOCUMENT.split_once("\n## The sidecar\n").unwrap();
        let mut told: Vec<[String; 3]> = table
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|row| {
                let cells: Vec<&str> = row.split('|').map(str::trim).collect();
                let [_, key, _, default, variable, _, _] = cells[..] else {
                    panic!("not five columns: {row}");
                };
                [key, default, variable].map(|cell| cell.trim_matches('`').to_owned())
            })
            .collect();
        let mut settings: Vec<[String; 3]> = Cli::command()
            .get_subcommands()
            .flat_map(clap::Command::get_arguments)
            .filter_map(|option| {
                let variable = option.get_env()?.to_str().unwrap().to_owned();
                let default = match option.get_default_values() {
                    [] if option.get_action().takes_values() => "none",
                    [] => "false",
                    [default] => default.to_str().unwrap(),
                    several => panic!("{several:?}"),
                };
                let key = option.get_long().unwrap().replace('-', "_");
                Some([key, default.to_owned(), variable])
            })
            .collect();
        for settings in [&mut told, &mut settings] {
            settings.sort();
        }
        settings.dedup();
        assert_eq!(told, settings);
    }

    #[test]
    fn options_win_over_the_file_and_the_file_over_defaults() {
        let args = run(EXAMPLE, &["run"]);
        assert_eq!(args.gateways.len(), 1);
        assert_eq!(args.state.dir, Path::new("/var/lib/agent-gateway-sidecar"));
        assert_eq!(args.listen.to_string(), "127.0.0.1:3128");

        let some =
            "gateway = ['a:1', 'b:2']\nstate = 's'\nca = 'c'\nmax_tunnels = 7\nopen_timeout = 3";
        let args = run(some, &["run", "--max-tunnels", "8", "--ca", "other"]);
        assert_eq!(args.gateways.len(), 2);
        assert_eq!(args.open_timeout, Duration::from_secs(3));
        assert_eq!(args.max_tunnels, 8);
        assert_eq!(args.ca, Path::new("other"));
        assert_eq!(args.listen.to_string(), "127.0.0.1:3128");
        assert!(!args.open_to_all);
        assert!(run(&format!("{some}\nopen_to_all = true"), &["run"]).open_to_all);
    }

    #[test]
    fn what_neither_has_is_missing() {
        let Err(ParseError::Usage(error)) = read("state = 's'", &["run"]) else {
            panic!("accepted");
        };
        let told = error.to_string();
        assert!(
            told.contains("--gateway") && told.contains("--ca"),
            "{told}"
        );
        assert!(!told.contains("--state"), "{told}");
    }

    #[test]
    fn bad_files_are_refused_with_the_key_that_is_at_fault() {
        for (config, key, expected) in [
            ("tunnels = 3", "tunnels", "unknown key"),
            ("max_tunnels = 0", "max_tunnels", "nonzero"),
            ("max_tunnels = 70000", "max_tunnels", "70000"),
            ("open_timeout = 0", "open_timeout", "1 to 3600"),
            ("identity = ''", "identity", ""),
            (
                "handle = '0x80000000'",
                "handle",
                "not a persistent TPM handle",
            ),
            ("tcti = 'swtmp:'", "tcti", "not a TPM address"),
            ("gateway = 'gateway:8443'", "gateway", "expected a sequence"),
            ("gateway = ['https://gateway']", "gateway", ""),
            ("server_name = 'a b'", "server_name", "not a host name"),
            ("listen = 'localhost'", "listen", ""),
            ("state = 1\nlisten = 2", "listen", "expected"),
            ("state =", "", "line 1"),
        ] {
            let told = refused(config);
            assert!(
                told.contains(key) && told.contains(expected),
                "{config}: {told}"
            );
            assert_eq!(told.lines().count(), 1, "{told}");
        }
    }
}
