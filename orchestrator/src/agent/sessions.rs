//! Programs that run in the sandboxes of tasks beside them, for whoever asks for what they write: `berth exec`, relayed.
//!
//! A session belongs to the connection with the master that asked for it, and ends with it: then nobody can ask any more.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_engine::Roots;
use berth_runtime::relay::{CHUNK, set_nonblocking};
use berth_runtime::sandbox;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::checks;
use crate::api::agent::{Answer, Question};
use crate::api::sessions::{Input, Launch, Piece, Window};
use crate::descriptors;

/// The most sessions there are, those included that have ended and may still be asked how.
const MOST: usize = 32;
/// How long an answer waits for something to happen.
const POLL: Duration = Duration::from_secs(10);
/// How many pieces may wait to be asked for, and to be taken in.
const PIECES: usize = 8;
/// What ends the input of a program that reads lines from a terminal (`termios(3)`, VEOF).
const END_OF_FILE: &[u8] = b"\x04";

/// All sessions of an agent, the latest at the end.
#[derive(Debug, Clone)]
pub struct Sessions {
    roots: Roots,
    /// The program `berth`.
    berth: PathBuf,
    all: Arc<Mutex<VecDeque<Arc<Session>>>>,
}

#[derive(Debug)]
struct Session {
    name: String,
    /// What the program has written, one asker at a time.
    written: tokio::sync::Mutex<mpsc::Receiver<Piece>>,
    input: mpsc::Sender<Input>,
    /// With which code it has ended.
    exit: watch::Receiver<Option<i32>>,
    /// Whether it is to end.
    end: watch::Sender<bool>,
}

impl Sessions {
    pub fn new(roots: &Roots, berth: PathBuf) -> Sessions {
        Sessions { roots: roots.clone(), berth, all: Arc::default() }
    }

    /// Starts a program in a sandbox.
    pub fn launch(&self, launch: &Launch) -> Answer {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().any(|session| session.name == launch.session) {
            return Answer::Refused("container_id.value: there is such a session already".to_owned());
        }
        if all.len() == MOST {
            let Some(over) = all.iter().position(|session| session.exit.borrow().is_some()) else {
                return Answer::Busy;
            };
            all.remove(over);
        }
        match self.start(launch) {
            Ok(session) => {
                all.push_back(Arc::new(session));
                Answer::Done
            }
            Err(error) => Answer::Failed(format!("cannot start `berth exec`: {error}")),
        }
    }

    /// Answers a question about a session that was started.
    pub async fn answer(&self, question: Question) -> Answer {
        let (Question::Output { session: name }
        | Question::Input { session: name, .. }
        | Question::Wait { session: name }
        | Question::End { session: name }) = &question
        else {
            return Answer::Refused("this is no question about a session".to_owned());
        };
        let Some(session) = self.find(name) else {
            return Answer::NotFound(format!("the agent has no session {name}"));
        };
        match question {
            Question::Output { .. } => session.written().await,
            Question::Input { input, .. } => session.take(input).await,
            Question::Wait { .. } => session.wait().await,
            _ => {
                session.end.send_replace(true);
                Answer::Done
            }
        }
    }

    /// Ends all of them: nobody can ask any more.
    pub fn end(&self) {
        for session in self.all.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            session.end.send_replace(true);
        }
    }

    fn find(&self, name: &str) -> Option<Arc<Session>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|session| session.name == name).cloned()
    }

    fn start(&self, launch: &Launch) -> io::Result<Session> {
        let mut command = Command::new(&self.berth);
        command.args(["exec", "--interactive"]).args(launch.terminal.map(|_| "--tty")).args(&launch.flags);
        command.arg(&launch.sandbox).args(&launch.program);
        command.env("BERTH_DATA_ROOT", self.roots.data()).env("BERTH_STATE_ROOT", self.roots.state());
        command.kill_on_drop(true);
        let terminal = launch.terminal.map(|window| terminal(&mut command, window)).transpose()?;
        if terminal.is_none() {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = descriptors::as_given(&mut command).spawn()?;
        // Its ends of the terminal.
        drop(command);
        let (sender, written) = mpsc::channel(PIECES);
        let (input, inputs) = mpsc::channel(PIECES);
        let ((exited, exit), (end, ending)) = (watch::channel(None), watch::channel(false));
        if let Some(master) = terminal {
            let reader = pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
            let writer = pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?;
            tokio::spawn(read(reader, false, sender));
            tokio::spawn(write(writer, inputs, Some((master, child.id()))));
        } else {
            let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
            tokio::spawn(read(stdout.expect("it is a pipe"), false, sender.clone()));
            tokio::spawn(read(stderr.expect("it is a pipe"), true, sender));
            tokio::spawn(write(stdin.expect("it is a pipe"), inputs, None));
        }
        tokio::spawn(look_after(child, ending, exited));
        let written = tokio::sync::Mutex::new(written);
        Ok(Session { name: launch.session.clone(), written, input, exit, end })
    }
}

impl Session {
    async fn written(&self) -> Answer {
        let mut written = self.written.lock().await;
        match timeout(POLL, written.recv()).await {
            Err(_) => Answer::Written(Vec::new(), false),
            Ok(None) => Answer::Written(Vec::new(), true),
            Ok(Some(piece)) => {
                let more = std::iter::from_fn(|| written.try_recv().ok()).take(PIECES);
                Answer::Written(std::iter::once(piece).chain(more).collect(), false)
            }
        }
    }

    async fn take(&self, input: Option<Input>) -> Answer {
        let over = || Answer::NotFound("the program has ended, and reads nothing any more".to_owned());
        if self.exit.borrow().is_some() {
            return over();
        }
        let Some(input) = input else { return Answer::Done };
        match timeout(POLL, self.input.send(input)).await {
            Ok(Ok(())) => Answer::Done,
            // It may have closed its input, and go on.
            Ok(Err(_)) => over(),
            Err(_) => Answer::Busy,
        }
    }

    async fn wait(&self) -> Answer {
        let mut exit = self.exit.clone();
        let code = timeout(POLL, exit.wait_for(Option::is_some)).await;
        Answer::Ended(code.ok().and_then(Result::ok).and_then(|code| *code))
    }
}

/// Gives a program a terminal, and returns its other end. What is typed is the business of the terminal in the sandbox.
fn terminal(command: &mut Command, window: Option<Window>) -> io::Result<OwnedFd> {
    let pty = sandbox::open_pty().map_err(io::Error::other)?;
    let mut attributes = tcgetattr(&pty.slave)?;
    cfmakeraw(&mut attributes);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &attributes)?;
    if let Some(Window { rows, columns }) = window {
        sandbox::resize(&pty.master, rows, columns)?;
    }
    set_nonblocking(&pty.master).map_err(io::Error::other)?;
    let end = || pty.slave.try_clone().map(File::from);
    command.stdin(end()?).stdout(end()?).stderr(end()?);
    Ok(pty.master)
}

/// Reads what a program writes, no faster than somebody asks for it.
async fn read(mut from: impl AsyncRead + Unpin, error: bool, to: mpsc::Sender<Piece>) {
    let mut bytes = vec![0; CHUNK];
    // A terminal that nobody has open any more is an error (EIO).
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if to.send(Piece { error, data: BASE64_STANDARD.encode(&bytes[..count]) }).await.is_err() {
            return;
        }
    }
}

/// Writes what a program is to read. Of a terminal, it has the other end and the process to tell of its size.
async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut from: mpsc::Receiver<Input>,
    terminal: Option<(OwnedFd, Option<u32>)>,
) {
    while let Some(input) = from.recv().await {
        match (input, &terminal) {
            (Input::Data(data), terminal) => {
                let data = BASE64_STANDARD.decode(data).unwrap_or_default();
                let bytes = match (data.is_empty(), terminal) {
                    (true, None) => return,
                    (true, Some(_)) => END_OF_FILE,
                    (false, _) => &data,
                };
                if to.write_all(bytes).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
            (Input::Window(Window { rows, columns }), Some((master, relay))) => {
                let resized = sandbox::resize(master, rows, columns);
                // It has the terminal, and is in none: it has to be told. It may have ended.
                if let (Ok(()), Some(pid)) = (resized, relay.and_then(|pid| i32::try_from(pid).ok())) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGWINCH);
                }
            }
            (Input::Window(_), None) => {}
        }
    }
}

/// Waits for the end of a program, its own or the one it is told to come to.
async fn look_after(mut child: Child, mut ending: watch::Receiver<bool>, exited: watch::Sender<Option<i32>>) {
    let status = tokio::select! {
        status = child.wait() => status,
        // Also when the session is forgotten.
        () = async { drop(ending.wait_for(|end| *end).await) } => {
            checks::end(&mut child).await;
            child.wait().await
        }
    };
    let killed = 128 + Signal::SIGKILL as i32;
    exited.send_replace(Some(status.ok().and_then(|status| status.code()).unwrap_or(killed)));
}
