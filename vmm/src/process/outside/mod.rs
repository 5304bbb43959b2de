//! What is asked of a guest from outside, over a socket that `berth-oci` listens on for it: where an address leads to, why ring 3
//! was left, other limits, and one more process.
//!
//! The socket lies on the host, where neither the guest nor other sandboxes reach it. A connection is one [`Request`], a line
//! of JSON, and its [`Answer`], another; that of one more process lives as long as that does ([`session`], [`client`]).

pub mod client;
mod protocol;
mod session;

use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{self, Builder};
use std::time::Duration;

use nix::errno::Errno;

pub use self::protocol::{Answer, Request, State};
use self::session::Sessions;
use super::Result;
use super::files::receive;
use super::task::Kernel;
use super::vm::lock;
use crate::vcpu::translate::Checked;

/// Stack of a thread that serves a connection.
const STACK: usize = 256 << 10;
/// Longest request in bytes, its newline included; real ones have a tenth of it.
const REQUEST_MAX: usize = 1024;
/// How long a client may take to send its request, or to take the answer. One is connected before it is executed, which takes its time
/// on a machine that has much to do.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause when no connection can be accepted: the process has too many descriptors open.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves whoever connects, on threads of its own.
pub fn serve(kernel: Arc<Kernel>, listener: UnixListener) -> Result<()> {
    let accept = move || {
        let sessions = Arc::new(Sessions::default());
        loop {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(PAUSE);
                continue;
            };
            let (kernel, sessions) = (kernel.clone(), sessions.clone());
            // Whatever goes wrong with one client is that client's own affair.
            let converse = move || {
                let _ = converse(&kernel, &sessions, &stream);
            };
            let _ = Builder::new().stack_size(STACK).spawn(converse);
        }
    };
    Builder::new().stack_size(STACK).spawn(accept).map(drop).map_err(|_| Errno::EAGAIN)
}

/// Takes one request and answers it.
fn converse(kernel: &Arc<Kernel>, sessions: &Sessions, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (line, descriptors) = read_line(stream)?;
    let answer = match serde_json::from_slice(&line) {
        Ok(Request::Exec) => return session::serve(kernel, sessions, stream, descriptors),
        Ok(request) => answer(kernel, request).unwrap_or_else(Answer::Error),
        Err(error) => Answer::Error(format!("this is no request: {error}")),
    };
    send(stream, &answer)
}

/// A client's line, with the descriptors that come with it.
fn read_line(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    let mut piece = [0; REQUEST_MAX];
    while line.len() < REQUEST_MAX {
        let (count, received) = receive(stream.as_fd(), &mut piece)?;
        descriptors.extend(received);
        line.extend(&piece[..count]);
        match line.iter().position(|&byte| byte == b'\n') {
            Some(end) => {
                line.truncate(end);
                return Ok((line, descriptors));
            }
            None if count == 0 => break,
            None => {}
        }
    }
    Err(ErrorKind::InvalidData.into())
}

fn send(mut stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    stream.write_all(&text)
}

fn answer(kernel: &Kernel, request: Request) -> std::result::Result<Answer, String> {
    Ok(match request {
        Request::Translate { pid, address } => {
            let checked = translate(kernel, pid, address)?;
            Answer::Translation { text: checked.to_string(), checked: Box::new(checked) }
        }
        Request::Exits => Answer::Exits(kernel.vm.exits.get()),
        Request::State => {
            let table = lock(&kernel.table);
            let threads = table.processes.values().map(|process| process.threads.len()).sum();
            Answer::State(State { processes: table.processes.len(), threads })
        }
        Request::Limits(most) => {
            let refused = |used| {
                format!(
                    "its programs have {used} bytes of memory, more than the {} that are to be the most",
                    most.memory
                )
            };
            kernel.vm.set_limit(most.memory).map_err(refused)?;
            lock(&kernel.table).most_threads = most.threads();
            Answer::Limited(most)
        }
        Request::Exec => return Err("descriptors have to come with this".to_owned()),
    })
}

fn translate(kernel: &Kernel, pid: i32, address: u64) -> std::result::Result<Checked, String> {
    let memory = lock(&kernel.table).process(pid).map(|process| process.memory.upgrade());
    let memory = memory.map_err(|_| format!("there is no process {pid} in the guest"))?;
    let memory = memory.ok_or_else(|| format!("process {pid} has ended"))?;
    // With the lock nobody changes the tables.
    let memory = lock(&memory);
    kernel.vm.translate(memory.root(), address)
}
