//! What is asked of tasks that run, again and again: whether they are well (`HealthCheck`), and how something in them
//! stands (`CheckInfo`).
//!
//! One question of each kind is open for a task at a time, and each has an end: `probe` asks once, `rounds` asks again,
//! and judges the answers.

mod probe;
mod rounds;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Deserialize;

pub use probe::{Asker, end};
pub use rounds::{Report, Rounds};

use super::command::CommandInfo;
use crate::api::{Invalid, payload};

/// The longest times: a year.
const LONGEST: f64 = 365.0 * 86_400.0;
/// How often a task is asked at most, and how much time it has for an answer at least, in seconds.
const SHORTEST_INTERVAL: f64 = 0.1;
const SHORTEST_TIMEOUT: f64 = 0.01;
/// The most HTTP statuses that are named.
const MOST_STATUSES: usize = 100;

/// All that is asked of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checks {
    /// Whether it is well.
    health: Option<HealthCheck>,
    /// How something in it stands.
    check: Option<Check>,
}

impl Checks {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        self.health.is_none() && self.check.is_none()
    }
}

/// A question, and when it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    probe: Probe,
    /// After the start.
    delay: Duration,
    /// After each answer.
    interval: Duration,
    /// When no answer is an answer.
    timeout: Duration,
}

/// A question whose answer is good or bad.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HealthCheck {
    check: Check,
    /// For so long after the start bad answers do not count, unless a good one came before.
    grace: Duration,
    /// So many bad answers in a row end the task.
    failures: u32,
}

/// How a task is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Probe {
    /// By a program that runs in its sandbox: the flags of `berth exec`, and the program with its arguments.
    Command(Vec<String>, Vec<String>),
    /// By a connection.
    Tcp(SocketAddr),
    /// By a request; these statuses are good, or 200 to 399 if there are none.
    Http(SocketAddr, String, BTreeSet<u16>),
}

/// What a sandbox makes possible.
#[derive(Debug, Clone, Copy)]
pub struct Means {
    /// Whether another program can run in it.
    pub exec: bool,
    /// Whether it is in the host's network.
    pub network: bool,
}

/// `HealthCheck`
#[derive(Debug, Deserialize)]
pub struct HealthCheckInfo {
    #[serde(rename = "type")]
    kind: Option<String>,
    command: Option<CommandInfo>,
    http: Option<HttpInfo>,
    tcp: Option<TcpInfo>,
    #[serde(flatten)]
    times: Times,
    grace_period_seconds: Option<f64>,
    consecutive_failures: Option<u32>,
}

/// `CheckInfo`
#[derive(Debug, Deserialize)]
pub struct CheckInfo {
    #[serde(rename = "type")]
    kind: Option<String>,
    command: Option<WrappedCommand>,
    http: Option<HttpInfo>,
    tcp: Option<TcpInfo>,
    #[serde(flatten)]
    times: Times,
}

#[derive(Debug, Deserialize)]
struct WrappedCommand {
    command: CommandInfo,
}

#[derive(Debug, Deserialize)]
struct HttpInfo {
    protocol: Option<String>,
    scheme: Option<String>,
    port: u16,
    path: Option<String>,
    #[serde(default)]
    statuses: Vec<u16>,
}

#[derive(Debug, Deserialize)]
struct TcpInfo {
    protocol: Option<String>,
    port: u16,
}

#[derive(Debug, Deserialize)]
struct Times {
    delay_seconds: Option<f64>,
    interval_seconds: Option<f64>,
    timeout_seconds: Option<f64>,
}

/// What a task wants to be asked, if its sandbox makes that possible.
pub fn read(health: Option<HealthCheckInfo>, check: Option<CheckInfo>, means: Means) -> Result<Checks, Invalid> {
    let health = health.map(|info| info.read(means).map_err(|wrong| wrong.within("health_check"))).transpose()?;
    let check = check.map(|info| info.read(means).map_err(|wrong| wrong.within("check"))).transpose()?;
    Ok(Checks { health, check })
}

impl HealthCheckInfo {
    fn read(self, means: Means) -> Result<HealthCheck, Invalid> {
        let kind = kind(self.kind, [self.command.is_some(), self.http.is_some(), self.tcp.is_some()])?;
        let probe = Asked { command: self.command, http: self.http, tcp: self.tcp }.read(&kind, means)?;
        Ok(HealthCheck {
            check: self.times.read(probe)?,
            grace: seconds(self.grace_period_seconds, 10.0, 0.0, "grace_period_seconds")?,
            failures: self.consecutive_failures.unwrap_or(3).max(1),
        })
    }
}

impl CheckInfo {
    fn read(self, means: Means) -> Result<Check, Invalid> {
        let kind = kind(self.kind, [self.command.is_some(), self.http.is_some(), self.tcp.is_some()])?;
        let command = self.command.map(|wrapped| wrapped.command);
        self.times.read(Asked { command, http: self.http, tcp: self.tcp }.read(&kind, means)?)
    }
}

/// How it is asked. Clients of old do not say, but give what belongs to it.
fn kind(named: Option<String>, there: [bool; 3]) -> Result<String, Invalid> {
    let mut given = ["COMMAND", "HTTP", "TCP"].into_iter().zip(there).filter(|(_, is_there)| *is_there);
    match (named, given.next(), given.next()) {
        (Some(kind), ..) => Ok(kind),
        (None, Some((kind, _)), None) => Ok(kind.to_owned()),
        _ => Err(Invalid::missing("type")),
    }
}

struct Asked {
    command: Option<CommandInfo>,
    http: Option<HttpInfo>,
    tcp: Option<TcpInfo>,
}

impl Asked {
    fn read(self, kind: &str, means: Means) -> Result<Probe, Invalid> {
        let over_network = |field: &str| {
            let problem = "the task is not in the host's network, and cannot be asked over it; a command can ask it";
            if means.network { Ok(()) } else { Err(Invalid::new(field, problem)) }
        };
        match kind {
            "COMMAND" if !means.exec => {
                Err(Invalid::new("command", "nothing else can run in the sandbox of a Wasm module"))
            }
            "COMMAND" => {
                let (flags, program) = payload(self.command, "command")?.inside().map_err(|it| it.within("command"))?;
                Ok(Probe::Command(flags, program))
            }
            "HTTP" => {
                let http = payload(self.http, "http")?;
                over_network("http")?;
                let path = http.path.unwrap_or_else(|| "/".to_owned());
                if !path.starts_with('/') || path.parse::<hyper::Uri>().is_err() {
                    return Err(Invalid::new("http.path", "is no path of a URL, which begins with `/`"));
                }
                if http.scheme.is_some_and(|scheme| scheme != "http") {
                    return Err(Invalid::new("http.scheme", "is not supported; http is"));
                }
                if http.statuses.len() > MOST_STATUSES {
                    return Err(Invalid::new("http.statuses", format!("has more than {MOST_STATUSES} entries")));
                }
                let address = address(http.protocol.as_deref(), http.port).map_err(|wrong| wrong.within("http"))?;
                Ok(Probe::Http(address, path, http.statuses.into_iter().collect()))
            }
            "TCP" => {
                let tcp = payload(self.tcp, "tcp")?;
                over_network("tcp")?;
                address(tcp.protocol.as_deref(), tcp.port).map(Probe::Tcp).map_err(|wrong| wrong.within("tcp"))
            }
            other => Err(Invalid::new("type", format!("`{other}` is not known; there are COMMAND, HTTP, TCP"))),
        }
    }
}

impl Times {
    fn read(&self, probe: Probe) -> Result<Check, Invalid> {
        Ok(Check {
            probe,
            delay: seconds(self.delay_seconds, 15.0, 0.0, "delay_seconds")?,
            interval: seconds(self.interval_seconds, 10.0, SHORTEST_INTERVAL, "interval_seconds")?,
            timeout: seconds(self.timeout_seconds, 20.0, SHORTEST_TIMEOUT, "timeout_seconds")?,
        })
    }
}

/// Where a task in the host's network listens.
fn address(protocol: Option<&str>, port: u16) -> Result<SocketAddr, Invalid> {
    let host: IpAddr = match protocol {
        None | Some("IPV4") => Ipv4Addr::LOCALHOST.into(),
        Some("IPV6") => Ipv6Addr::LOCALHOST.into(),
        Some(other) => {
            return Err(Invalid::new("protocol", format!("`{other}` is not known; there are IPV4 and IPV6")));
        }
    };
    if port == 0 { Err(Invalid::new("port", "is 0")) } else { Ok(SocketAddr::new(host, port)) }
}

fn seconds(given: Option<f64>, default: f64, least: f64, field: &str) -> Result<Duration, Invalid> {
    let seconds = given.unwrap_or(default);
    // Also false for what is no number.
    if (least..=LONGEST).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(Invalid::new(field, format!("is {seconds}, and has to be between {least} and {LONGEST}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::decode;

    const ALL: Means = Means { exec: true, network: true };

    fn health(info: &Value, means: Means) -> Result<HealthCheck, Invalid> {
        let info = decode(info.clone()).map_err(|wrong| wrong.within("health_check"))?;
        Ok(read(Some(info), None, means)?.health.unwrap())
    }

    #[test]
    fn what_is_not_said_is_as_in_mesos() {
        let http = health(&json!({ "type": "HTTP", "http": { "port": 80 } }), ALL).unwrap();
        let seconds = Duration::from_secs;
        let Check { delay, interval, timeout, probe } = http.check;
        assert_eq!((delay, interval, timeout), (seconds(15), seconds(10), seconds(20)));
        assert_eq!((http.grace, http.failures), (seconds(10), 3));
        assert_eq!(probe, Probe::Http("127.0.0.1:80".parse().unwrap(), "/".to_owned(), BTreeSet::new()));
        let old =
            health(&json!({ "command": { "value": "true", "user": "7" }, "interval_seconds": 0.5 }), ALL).unwrap();
        let line = ["/bin/sh", "-c", "true"].map(str::to_owned).to_vec();
        assert_eq!(old.check.probe, Probe::Command(vec!["--user=7".to_owned()], line));
        let tcp = health(&json!({ "tcp": { "protocol": "IPV6", "port": 7 }, "consecutive_failures": 0 }), ALL).unwrap();
        assert_eq!((tcp.check.probe, tcp.failures), (Probe::Tcp("[::1]:7".parse().unwrap()), 1));
        let check = decode(json!({ "type": "COMMAND", "command": { "command": { "value": "true" } } })).unwrap();
        assert!(!read(None, Some(check), ALL).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        let (http, tcp, command) = (json!({ "port": 80 }), json!({ "port": 80 }), json!({ "value": "true" }));
        let cases = [
            (json!({}), "health_check.type"),
            (json!({ "http": http, "tcp": tcp }), "health_check.type"),
            (json!({ "type": "ICMP" }), "health_check.type"),
            (json!({ "type": "TCP" }), "health_check.tcp"),
            (json!({ "tcp": { "port": 0 } }), "health_check.tcp.port"),
            (json!({ "tcp": { "port": 80, "protocol": "IPX" } }), "health_check.tcp.protocol"),
            (json!({ "http": { "port": 80, "path": "x" } }), "health_check.http.path"),
            (json!({ "http": { "port": 80, "scheme": "https" } }), "health_check.http.scheme"),
            (json!({ "http": { "port": 80, "statuses": vec![200; 101] } }), "health_check.http.statuses"),
            (json!({ "command": { "shell": false } }), "health_check.command.value"),
            (json!({ "command": command, "interval_seconds": 0.01 }), "health_check.interval_seconds"),
            (json!({ "command": command, "timeout_seconds": 0.0 }), "health_check.timeout_seconds"),
            (json!({ "command": command, "delay_seconds": -1.0 }), "health_check.delay_seconds"),
            (json!({ "command": command, "grace_period_seconds": 1e99 }), "health_check.grace_period_seconds"),
        ];
        for (info, field) in cases {
            assert_eq!(health(&info, ALL).unwrap_err().field, field, "{info}");
        }
        let alone = Means { exec: false, network: false };
        for (info, field) in [
            (json!({ "http": http }), "health_check.http"),
            (json!({ "tcp": tcp }), "health_check.tcp"),
            (json!({ "command": command }), "health_check.command"),
        ] {
            assert_eq!(health(&info, alone).unwrap_err().field, field, "{info}");
        }
    }
}
