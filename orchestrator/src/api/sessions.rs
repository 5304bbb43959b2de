//! Programs that run in a task's sandbox beside its own, as Mesos has them: `LAUNCH_NESTED_CONTAINER_SESSION` starts one
//! and streams what it writes, `ATTACH_CONTAINER_INPUT` streams what it reads, `WAIT_CONTAINER` says how it ended. It
//! lives no longer than the stream of what it writes.
//!
//! The `container_id` of a session has a `value` that the client chooses, and the task's container as its `parent`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Id, Invalid, decode, payload};
use crate::agent::command::CommandInfo;

/// A program that is to run in a task's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// What the session is called: as Mesos writes such ids, that of the sandbox, a point, its own.
    pub session: String,
    /// The sandbox.
    pub sandbox: String,
    /// The flags of `berth exec`.
    pub flags: Vec<String>,
    /// The program and its arguments.
    pub program: Vec<String>,
    /// Whether it gets a terminal, and of which size if that is known.
    pub terminal: Option<Option<Window>>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// How high it is.
    pub rows: u16,
    /// How wide it is.
    pub columns: u16,
}

/// What a program gets while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Bytes of its standard input, in base 64; none of them is its end.
    Data(String),
    /// Its terminal has another size.
    Window(Window),
}

/// What a program has written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// To its standard error.
    pub error: bool,
    /// In base 64.
    pub data: String,
}

/// `LAUNCH_NESTED_CONTAINER_SESSION`
#[derive(Deserialize)]
pub struct LaunchSession {
    container_id: ContainerId,
    command: CommandInfo,
    container: Option<ContainerInfo>,
    /// berth's own.
    working_directory: Option<String>,
}

/// `WAIT_CONTAINER`
#[derive(Deserialize)]
pub struct WaitContainer {
    container_id: ContainerId,
}

#[derive(Deserialize)]
struct ContainerId {
    value: String,
    parent: Option<Parent>,
}

#[derive(Deserialize)]
struct Parent {
    value: String,
    parent: Option<Value>,
}

#[derive(Deserialize)]
struct ContainerInfo {
    tty_info: Option<TtyInfo>,
}

#[derive(Deserialize)]
struct TtyInfo {
    window_size: Option<Window>,
}

/// One record of `ATTACH_CONTAINER_INPUT`.
#[derive(Debug, PartialEq, Eq)]
pub enum Record {
    /// The first: whose input it is.
    Session(String),
    /// What follows.
    Input(Input),
    /// The client is still there.
    Heartbeat,
}

#[derive(Deserialize)]
struct Call {
    #[serde(rename = "type")]
    kind: String,
    attach_container_input: Option<AttachInput>,
}

#[derive(Deserialize)]
struct AttachInput {
    #[serde(rename = "type")]
    kind: String,
    container_id: Option<ContainerId>,
    process_io: Option<ProcessIo>,
}

#[derive(Deserialize)]
struct ProcessIo {
    #[serde(rename = "type")]
    kind: String,
    data: Option<Data>,
    control: Option<Control>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    data: String,
}

#[derive(Deserialize)]
struct Control {
    #[serde(rename = "type")]
    kind: String,
    tty_info: Option<TtyInfo>,
}

impl ContainerId {
    /// The sandbox, and what the session in it is called.
    fn read(self) -> Result<(String, String), Invalid> {
        let missing = || Invalid::new("parent", "is missing: the container of the task that the program is to join");
        let parent = self.parent.ok_or_else(missing)?;
        if parent.parent.is_some() {
            return Err(Invalid::new("parent.parent", "is one too many: tasks run in no other container"));
        }
        let own = Id { value: self.value }.checked("value")?;
        let sandbox = Id { value: parent.value }.checked("parent.value")?;
        Ok((format!("{sandbox}.{own}"), sandbox))
    }
}

impl LaunchSession {
    /// What is to run, and where.
    pub fn read(self) -> Result<Launch, Invalid> {
        let (session, sandbox) = self.container_id.read().map_err(|wrong| wrong.within("container_id"))?;
        let (mut flags, program) = self.command.inside().map_err(|wrong| wrong.within("command"))?;
        flags.extend(self.working_directory.map(|directory| format!("--workdir={directory}")));
        if flags.iter().chain(&program).any(|argument| argument.contains('\0')) {
            return Err(Invalid::new("command", "has a NUL in it"));
        }
        let terminal = self.container.and_then(|container| container.tty_info).map(|info| info.window_size);
        Ok(Launch { session, sandbox, flags, program, terminal })
    }
}

impl WaitContainer {
    /// For which session.
    pub fn read(self) -> Result<String, Invalid> {
        Ok(self.container_id.read().map_err(|wrong| wrong.within("container_id"))?.0)
    }
}

/// Reads one record of `ATTACH_CONTAINER_INPUT`.
pub fn record(call: Value) -> Result<Record, Invalid> {
    let call: Call = decode(call)?;
    if call.kind != "ATTACH_CONTAINER_INPUT" {
        return Err(Invalid::new("type", format!("is `{}`; this stream takes ATTACH_CONTAINER_INPUT", call.kind)));
    }
    let attach = payload(call.attach_container_input, "attach_container_input")?;
    attach.read().map_err(|wrong| wrong.within("attach_container_input"))
}

impl AttachInput {
    fn read(self) -> Result<Record, Invalid> {
        match self.kind.as_str() {
            "CONTAINER_ID" => {
                let id = payload(self.container_id, "container_id")?.read();
                Ok(Record::Session(id.map_err(|wrong| wrong.within("container_id"))?.0))
            }
            "PROCESS_IO" => payload(self.process_io, "process_io")?.read().map_err(|wrong| wrong.within("process_io")),
            other => {
                Err(Invalid::new("type", format!("`{other}` is not known; there are CONTAINER_ID and PROCESS_IO")))
            }
        }
    }
}

impl ProcessIo {
    fn read(self) -> Result<Record, Invalid> {
        match self.kind.as_str() {
            "DATA" => {
                let data = payload(self.data, "data")?.data;
                // Whoever passes it on finds it whole.
                BASE64_STANDARD.decode(&data).map_err(|wrong| Invalid::new("data.data", wrong))?;
                Ok(Record::Input(Input::Data(data)))
            }
            "CONTROL" => {
                let control = payload(self.control, "control")?;
                match control.kind.as_str() {
                    "HEARTBEAT" => Ok(Record::Heartbeat),
                    "TTY_INFO" => {
                        let window = payload(control.tty_info, "control.tty_info")?.window_size;
                        Ok(Record::Input(Input::Window(payload(window, "control.tty_info.window_size")?)))
                    }
                    other => {
                        let problem = format!("`{other}` is not known; there are HEARTBEAT and TTY_INFO");
                        Err(Invalid::new("control.type", problem))
                    }
                }
            }
            other => Err(Invalid::new("type", format!("`{other}` is not known; there are DATA and CONTROL"))),
        }
    }
}

/// What a program has written, as JSON.
pub fn written(piece: &Piece) -> Value {
    let stream = if piece.error { "STDERR" } else { "STDOUT" };
    json!({ "type": "DATA", "data": { "type": stream, "data": piece.data } })
}

/// How a program ended, as JSON: by its exit code, as wait(2) has it.
pub fn ended(code: i32) -> Value {
    json!({ "type": "WAIT_CONTAINER", "wait_container": { "exit_status": code << 8 } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(attach: &Value) -> Result<Record, Invalid> {
        let call = json!({ "type": "ATTACH_CONTAINER_INPUT", "attach_container_input": attach });
        record(call)
    }

    #[test]
    fn a_session_is_what_mesos_says_it_is() {
        let id = json!({ "value": "s", "parent": { "value": "task-1" } });
        let command = json!({
            "shell": false,
            "value": "ls",
            "arguments": ["ls", "-l"],
            "environment": { "variables": [{ "name": "A", "value": "b" }] },
            "user": "7",
        });
        let mut call = json!({ "container_id": id, "command": command, "working_directory": "/tmp" });
        let read = |call: &Value| decode::<LaunchSession>(call.clone()).and_then(LaunchSession::read);
        let flags = ["--env=A=b", "--user=7", "--workdir=/tmp"].map(str::to_owned).to_vec();
        let program = ["ls", "-l"].map(str::to_owned).to_vec();
        let (session, sandbox) = ("task-1.s".to_owned(), "task-1".to_owned());
        let launch = Launch { session, sandbox, flags, program, terminal: None };
        assert_eq!(read(&call), Ok(launch));
        call["container"] = json!({ "type": "MESOS", "tty_info": { "window_size": { "rows": 3, "columns": 4 } } });
        assert_eq!(read(&call).unwrap().terminal, Some(Some(Window { rows: 3, columns: 4 })));
        call["container"] = json!({ "tty_info": {} });
        assert_eq!(read(&call).unwrap().terminal, Some(None));
        for (field, value, wrong) in [
            ("container_id", json!({ "value": "s" }), "container_id.parent"),
            ("container_id", json!({ "value": "", "parent": { "value": "t" } }), "container_id.value"),
            (
                "container_id",
                json!({ "value": "s", "parent": { "value": "t", "parent": { "value": "u" } } }),
                "container_id.parent.parent",
            ),
            ("command", json!({ "value": "a\0b" }), "command"),
            ("command", json!({ "shell": false }), "command.value"),
        ] {
            let mut call = call.clone();
            call[field] = value;
            assert_eq!(read(&call).unwrap_err().field, wrong, "{call}");
        }
    }

    #[test]
    fn input_is_bytes_and_windows() {
        let id = json!({ "value": "s", "parent": { "value": "t" } });
        let session = input(&json!({ "type": "CONTAINER_ID", "container_id": id }));
        assert_eq!(session, Ok(Record::Session("t.s".to_owned())));
        let io = |io: Value| input(&json!({ "type": "PROCESS_IO", "process_io": io }));
        let data = |data: &str| io(json!({ "type": "DATA", "data": { "type": "STDIN", "data": data } }));
        assert_eq!(data("YQo="), Ok(Record::Input(Input::Data("YQo=".to_owned()))));
        assert_eq!(data(""), Ok(Record::Input(Input::Data(String::new()))));
        assert_eq!(data("?").unwrap_err().field, "attach_container_input.process_io.data.data");
        let control = |control: Value| io(json!({ "type": "CONTROL", "control": control }));
        let window = json!({ "window_size": { "rows": 1, "columns": 2 } });
        assert_eq!(
            control(json!({ "type": "TTY_INFO", "tty_info": window })),
            Ok(Record::Input(Input::Window(Window { rows: 1, columns: 2 })))
        );
        assert_eq!(control(json!({ "type": "HEARTBEAT", "heartbeat": {} })), Ok(Record::Heartbeat));
        let within = "attach_container_input.process_io.control";
        assert_eq!(control(json!({ "type": "X" })).unwrap_err().field, format!("{within}.type"));
        assert_eq!(control(json!({ "type": "TTY_INFO" })).unwrap_err().field, format!("{within}.tty_info"));
    }
}
