//! A program beside a task, wherever that runs, with the streams and the terminal of this process: the client's end of
//! [`crate::api::sessions`].

use std::convert::Infallible;
use std::io::{self, Read as _, stderr, stdin, stdout};
use std::net::SocketAddr;
use std::thread;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_runtime::relay::{CHUNK, RawTerminal, write_all};
use berth_runtime::sandbox::size;
use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::{BodyExt as _, Collected, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::process::{self, Contact, Error};
use crate::recordio::{self, Decoder};
use crate::tls::{self, Client};

/// The largest record of what a program writes, in bytes.
const MOST: usize = 1 << 20;
/// How many records wait until the program has read those before.
const RECORDS: usize = 4;

/// What is to run, and where.
#[derive(Debug, Clone)]
pub struct Command {
    /// The agent's id.
    pub agent: String,
    /// The sandbox of the task.
    pub sandbox: String,
    /// The program and its arguments.
    pub program: Vec<String>,
    /// `KEY=VALUE`, or `KEY` to be taken over from here.
    pub env: Vec<String>,
    /// As whom; `None`: as the task.
    pub user: Option<String>,
    /// Where; `None`: where the task began.
    pub workdir: Option<String>,
    /// Whether it reads this process's standard input.
    pub interactive: bool,
    /// Whether it gets a terminal.
    pub tty: bool,
}

impl Command {
    /// The id of a container that runs it.
    fn container_id(&self) -> Value {
        json!({ "value": Uuid::new_v4().to_string(), "parent": { "value": self.sandbox } })
    }

    /// `LAUNCH_NESTED_CONTAINER_SESSION`
    fn launch(&self, container_id: &Value) -> Value {
        let variable = |entry: &String| match entry.split_once('=') {
            Some((name, value)) => Some(json!({ "name": name, "value": value })),
            None => std::env::var(entry).ok().map(|value| json!({ "name": entry, "value": value })),
        };
        let variables: Vec<Value> = self.env.iter().filter_map(variable).collect();
        let window = window().map(|size| json!({ "window_size": size }));
        let container = json!({ "type": "MESOS", "tty_info": window.unwrap_or_else(|| json!({})) });
        let launch = json!({
            "container_id": container_id,
            "command": {
                "shell": false,
                "value": self.program.first(),
                "arguments": self.program,
                "environment": { "variables": variables },
                "user": self.user,
            },
            "container": self.tty.then_some(container),
            "working_directory": self.workdir,
        });
        json!({ "type": "LAUNCH_NESTED_CONTAINER_SESSION", "launch_nested_container_session": launch })
    }

    /// Runs it to its end, which comes early if this process is told to end: its exit code.
    pub fn run(&self, contact: &Contact) -> Result<i32, Error> {
        let runtime = process::runtime()?;
        let path = format!("/agent/{}/api/v1", self.agent);
        let id = self.container_id();
        let _raw = self.tty.then(RawTerminal::enter);
        let (master, _sender, output) = process::open(&runtime, contact, &path, &self.launch(&id))?;
        let relay = process::block_on(&runtime, async || {
            let input = self.input(&id)?;
            let tls = contact.tls.clone();
            let attached = tokio::spawn(async move { attach(master, tls.as_ref(), &path, input).await });
            tokio::select! {
                relayed = relay(master, output) => relayed.map(|()| None),
                problem = refused(master, attached) => Err(problem),
                code = told_to_end()? => Ok(Some(code)),
            }
        });
        if let Some(code) = relay? {
            return Ok(code);
        }
        let wait = json!({ "type": "WAIT_CONTAINER", "wait_container": { "container_id": id } });
        let ended = process::ask_agent(contact, &self.agent, &wait)?;
        let status = ended["wait_container"]["exit_status"].as_i64().and_then(|status| i32::try_from(status >> 8).ok());
        status.ok_or_else(|| Error::Lost(master, "it does not say how the program has ended".to_owned()))
    }

    /// The records of what the program is to read: who it is, what comes from here, and how large the terminal is.
    fn input(&self, container_id: &Value) -> Result<mpsc::Receiver<Bytes>, Error> {
        let (sender, records) = mpsc::channel(RECORDS);
        let first = record(&json!({ "type": "CONTAINER_ID", "container_id": container_id }));
        sender.try_send(first).expect("there is room for the first");
        if self.tty {
            let resized = signal(SignalKind::window_change());
            let mut resized = resized.map_err(|error| Error::System("listen to signals", error))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while let Some(size) = window() {
                    let control = json!({ "type": "TTY_INFO", "tty_info": { "window_size": size } });
                    let control = json!({ "type": "CONTROL", "control": control });
                    let told = sender.send(record(&json!({ "type": "PROCESS_IO", "process_io": control })));
                    if told.await.is_err() || resized.recv().await.is_none() {
                        return;
                    }
                }
            });
        }
        let interactive = self.interactive;
        // Nobody who types has an input that can be waited for otherwise; it is left behind with the process.
        let read = move || {
            let mut bytes = vec![0; CHUNK];
            loop {
                let read = if interactive { stdin().lock().read(&mut bytes) } else { Ok(0) };
                match read {
                    Ok(count @ 1..) if sender.blocking_send(data(&bytes[..count])).is_ok() => {}
                    Ok(1..) => return,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => break,
                }
            }
            // The program may have ended.
            let _ = sender.blocking_send(data(&[]));
        };
        // A terminal has no end.
        if interactive || !self.tty {
            thread::spawn(read);
        }
        Ok(records)
    }
}

/// One record of `ATTACH_CONTAINER_INPUT`.
fn record(input: &Value) -> Bytes {
    let call = json!({ "type": "ATTACH_CONTAINER_INPUT", "attach_container_input": input });
    recordio::frame(call.to_string().as_bytes())
}

fn data(bytes: &[u8]) -> Bytes {
    let data = json!({ "type": "STDIN", "data": BASE64_STANDARD.encode(bytes) });
    record(&json!({ "type": "PROCESS_IO", "process_io": { "type": "DATA", "data": data } }))
}

/// The size of the terminal that this process has, if it has one.
fn window() -> Option<Value> {
    size(stdin()).ok().map(|(rows, columns)| json!({ "rows": rows, "columns": columns }))
}

/// Sends the records for as long as there are any: what the master answers.
async fn attach(
    master: SocketAddr,
    tls: Option<&Client>,
    path: &str,
    records: mpsc::Receiver<Bytes>,
) -> io::Result<Response<Incoming>> {
    let next = async |mut records: mpsc::Receiver<Bytes>| {
        let record = records.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(record)), records))
    };
    let body = StreamBody::new(Box::pin(unfold(records, next)));
    let stream = tls::connect(master, tls).await?;
    let (_sender, answer) =
        process::send_body(stream, tls, &master.to_string(), path, "application/recordio", body).await?;
    Ok(answer)
}

/// Returns only if what the program is to read is refused, though it runs.
async fn refused(master: SocketAddr, attached: tokio::task::JoinHandle<io::Result<Response<Incoming>>>) -> Error {
    // There is no more to read, or nobody who reads it. Of a connection that breaks off the one for output knows better.
    let is_over = |answer: &Response<_>| [StatusCode::OK, StatusCode::NOT_FOUND].contains(&answer.status());
    let Some(answer) = attached.await.ok().and_then(Result::ok).filter(|answer| !is_over(answer)) else {
        return std::future::pending().await;
    };
    let body = answer.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    Error::Refused(master, process::said(&body))
}

/// Writes what the program does, until it has ended.
async fn relay(master: SocketAddr, mut answer: Response<Incoming>) -> Result<(), Error> {
    let lost = |cause: String| Error::Lost(master, cause);
    let mut decoder = Decoder::new(MOST);
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(|error| lost(error.to_string()))?;
        decoder.push(frame.data_ref().map_or(&[], |data| data));
        while let Some(record) = decoder.next_record().map_err(|malformed| lost(malformed.to_string()))? {
            let piece: Value = serde_json::from_slice(&record).map_err(|error| lost(error.to_string()))?;
            let piece = &piece["data"];
            let bytes = piece["data"].as_str().and_then(|data| BASE64_STANDARD.decode(data).ok()).unwrap_or_default();
            let is_error = piece["type"] == "STDERR";
            let written = if is_error { write_all(stderr(), &bytes) } else { write_all(stdout(), &bytes) };
            written.map_err(|error| Error::Output(error.into()))?;
        }
    }
    Ok(())
}

/// Is ready when this process is told to end: with the exit code that a shell would give.
fn told_to_end() -> Result<impl Future<Output = i32>, Error> {
    let listen = |kind| signal(kind).map_err(|error| Error::System("listen to signals", error));
    let (hangup, interrupt, terminate) = (SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate());
    let mut signals = (listen(hangup)?, listen(interrupt)?, listen(terminate)?);
    Ok(async move {
        let kind = tokio::select! {
            _ = signals.0.recv() => hangup,
            _ = signals.1.recv() => interrupt,
            _ = signals.2.recv() => terminate,
        };
        128 + kind.as_raw_value()
    })
}
