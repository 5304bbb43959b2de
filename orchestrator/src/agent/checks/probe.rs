//! One question to a task, and its answer.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use berth_engine::Roots;
use berth_engine::options::Network;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, copy, sink};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::{Check, Probe};
use crate::{descriptors, network};

/// How much of what a command says of its failure is passed on, in bytes.
const MOST_SAID: u64 = 300;
/// How long `berth exec` may take to end once what it runs was killed.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it is left alone before it is looked again for what it has begun to run.
const ROUND: Duration = Duration::from_millis(5);

/// What it takes to ask.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Where sandboxes are kept.
    pub roots: Roots,
    /// The program `berth`.
    pub berth: PathBuf,
    /// How many commands run at once in all sandboxes.
    pub slots: Arc<Semaphore>,
    /// The network of tasks that can be asked over it.
    pub network: Network,
}

/// What has become of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// `CheckStatusInfo`
    pub status: Value,
    /// Why it is a bad one, if it is.
    pub problem: Option<String>,
}

impl Asker {
    /// Asks the task in the sandbox of this name.
    pub(super) async fn ask(&self, name: &str, check: &Check) -> Answer {
        let Check { probe, timeout: limit, .. } = check;
        let late = format!("no answer within {limit:?}");
        match probe {
            Probe::Command(flags, program) => {
                let exit = self.run(name, flags, program, *limit).await;
                let code = exit.as_ref().ok().map(|(code, _)| *code);
                let command = code.map_or_else(|| json!({}), |code| json!({ "exit_code": code }));
                let problem = match exit {
                    Ok((0, _)) => None,
                    Ok((code, said)) if said.is_empty() => Some(format!("the command ended with exit code {code}")),
                    Ok((code, said)) => Some(format!("the command ended with exit code {code}: {said}")),
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => Some(late),
                    Err(error) => Some(format!("the command cannot be run: {error}")),
                };
                Answer { status: json!({ "type": "COMMAND", "command": command }), problem }
            }
            Probe::Tcp(address) => {
                let problem = match timeout(*limit, self.connect(*address)).await {
                    Ok(Ok(_)) => None,
                    Ok(Err(error)) => Some(format!("cannot connect to {address}: {error}")),
                    Err(_) => Some(late),
                };
                let tcp = json!({ "succeeded": problem.is_none() });
                Answer { status: json!({ "type": "TCP", "tcp": tcp }), problem }
            }
            Probe::Http(address, path, good) => {
                let answer = timeout(*limit, self.get(*address, path)).await;
                let is_good = |status: StatusCode| {
                    if good.is_empty() {
                        (200..400).contains(&status.as_u16())
                    } else {
                        good.contains(&status.as_u16())
                    }
                };
                let (http, problem) = match answer {
                    Ok(Ok(status)) => {
                        let problem = (!is_good(status)).then(|| format!("{path} answers {status}"));
                        (json!({ "status_code": status.as_u16() }), problem)
                    }
                    Ok(Err(error)) => (json!({}), Some(format!("cannot get {path} of {address}: {error}"))),
                    Err(_) => (json!({}), Some(late)),
                };
                Answer { status: json!({ "type": "HTTP", "http": http }), problem }
            }
        }
    }

    /// Connects with a task. A socket stays in the network in which it was made.
    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let Network::Joined(namespace) = self.network.clone() else { return TcpStream::connect(address).await };
        let new = move || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let socket = spawn_blocking(move || network::within(&namespace, new)).await.map_err(io::Error::other)??;
        socket.connect(address).await
    }

    /// The status that a task answers a request with. Nothing else of the answer is read.
    async fn get(&self, address: SocketAddr, path: &str) -> io::Result<StatusCode> {
        let stream = self.connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = Request::get(path)
            .header(HOST, address.to_string())
            .header(USER_AGENT, concat!("berth/", env!("CARGO_PKG_VERSION")))
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(io::Error::other)?;
        let answer = sender.send_request(request);
        tokio::pin!(answer);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            // Servers may close as soon as they have answered.
            _ = connection => answer.await,
        };
        answer.map(|answer| answer.status()).map_err(io::Error::other)
    }

    /// Runs a program in a sandbox: its exit code, and the beginning of what it wrote to its standard error.
    async fn run(
        &self,
        name: &str,
        flags: &[String],
        program: &[String],
        limit: Duration,
    ) -> io::Result<(i32, String)> {
        // Waiting for others is not the task's fault.
        let _slot = self.slots.acquire().await.map_err(io::Error::other)?;
        let mut command = Command::new(&self.berth);
        command.arg("exec").args(flags).arg(name).args(program);
        command.env("BERTH_DATA_ROOT", self.roots.data()).env("BERTH_STATE_ROOT", self.roots.state());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = descriptors::as_given(&mut command).spawn()?;
        let mut stderr = child.stderr.take().expect("it is a pipe");
        let run = async {
            let mut said = Vec::new();
            (&mut stderr).take(MOST_SAID).read_to_end(&mut said).await?;
            copy(&mut stderr, &mut sink()).await?;
            let status = child.wait().await?;
            let said = String::from_utf8_lossy(&said).trim().to_owned();
            status.code().map(|code| (code, said)).ok_or_else(|| io::Error::other("it was killed"))
        };
        if let Ok(result) = timeout(limit, run).await {
            return result;
        }
        end(&mut child).await;
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// Ends what `berth exec` runs in a sandbox, and `berth exec`, which may not have got as far as running anything.
pub async fn end(relay: &mut Child) {
    let Some(pid) = relay.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
    let last = Instant::now() + PATIENCE;
    loop {
        // One that is stopped makes no children and reaps none: they are who they are said to be.
        let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        stopped(pid).await;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()).map(Pid::from_raw) {
            // Each is to lead a group, that of what it runs. What is already gone needs no end.
            let _ = killpg(child, Signal::SIGKILL);
            let _ = kill(child, Signal::SIGKILL);
        }
        if Instant::now() >= last {
            break;
        }
        let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        if timeout(ROUND, relay.wait()).await.is_ok() {
            return;
        }
    }
    // It has not gone on since: it leaves nothing.
    let _ = relay.kill().await;
}

/// Waits until a process that was told to stop has, or has ended.
async fn stopped(pid: i32) {
    let end = Instant::now() + PATIENCE;
    let goes_on = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may have any character in it.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['T', 't', 'Z', 'X']))
    };
    while goes_on() && Instant::now() < end {
        sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_program_that_comes_to_be_while_its_relay_is_ended_is_ended_too() {
        let home = tempfile::tempdir().unwrap();
        let made = home.path().join("made");
        // It has a child only once it was stopped, in its own group, and never ends by itself.
        let script = r#"trap 'sleep 100 & echo $! >> "$0"' CONT; echo; while :; do :; done"#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&made).stdout(Stdio::piped()).kill_on_drop(true);
        let mut relay = command.spawn().unwrap();
        let mut line = [0];
        relay.stdout.as_mut().unwrap().read_exact(&mut line).await.unwrap();
        end(&mut relay).await;
        assert!(relay.try_wait().unwrap().is_some());
        let made = fs::read_to_string(made).unwrap();
        let runs = |pid: &&str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // Whoever inherits it may not have taken note yet.
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
        };
        assert!(!made.is_empty());
        let late = Instant::now() + Duration::from_secs(20);
        while made.lines().any(|pid| runs(&pid)) {
            assert!(Instant::now() < late, "{:?} go on", made.lines().filter(runs).collect::<Vec<_>>());
            sleep(Duration::from_millis(5)).await;
        }
    }
}
