//! What agents are asked: `LIST_FILES` and `READ_FILE`, as Mesos has them, for what tasks have written, berth's own
//! `PREFETCH_IMAGE` for what they will need, and the [`sessions`](super::sessions) of other programs beside them.
//!
//! The directory of a task is `/frameworks/FRAMEWORK/executors/TASK/runs/latest`, or, in place of `latest`, the id of the
//! container that updates of the task name. So it is in Mesos for tasks without an executor; those of an executor share the
//! directory of that, which has its id.

use std::time::Duration;

use berth_images::Reference;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::sessions::{Input, Launch, LaunchSession, Piece, WaitContainer};
use super::{Invalid, decode, payload};

/// The longest path (Linux' `PATH_MAX`).
const PATH_LENGTH: usize = 4096;
/// The most that is read at once, in bytes: what is asked for beyond that is to be asked for again.
pub const MOST_READ: u64 = 1 << 20;

/// What is asked of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// What is in a directory.
    List {
        /// Which.
        path: String,
    },
    /// What is in a file.
    Read {
        /// Which.
        path: String,
        /// From which byte on.
        offset: u64,
        /// How many bytes, at most; no more than [`MOST_READ`] come.
        length: u64,
    },
    /// To have an image ready, and how far that is.
    Prefetch {
        /// Which.
        image: String,
    },
    /// To run a program beside a task.
    Launch(Launch),
    /// What a program has written since it was asked; there is an answer when there is something, or a while has passed.
    Output {
        /// Whose.
        session: String,
    },
    /// To pass something on to a program, or only whether it is still there.
    Input {
        /// To which.
        session: String,
        /// What.
        input: Option<Input>,
    },
    /// How a program has ended; there is an answer when it has, or a while has passed.
    Wait {
        /// Which.
        session: String,
    },
    /// To end a program.
    End {
        /// Which.
        session: String,
    },
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// What is in the directory.
    Listed(Vec<FileInfo>),
    /// The size of the file, in bytes, and what was read of it, in base 64.
    Read(u64, String),
    /// The image is there.
    Present,
    /// The image is being pulled, or will be when others are.
    Pulling,
    /// It is done.
    Done,
    /// What was written, and whether that was the last of it.
    Written(Vec<Piece>, bool),
    /// With which exit code the program has ended, if it has.
    Ended(Option<i32>),
    /// There is nothing of that name.
    NotFound(String),
    /// It is not what can be listed, or read.
    Refused(String),
    /// The agent has too much to do.
    Busy,
    /// It cannot be read, though it should be.
    Failed(String),
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// With that of its directory, as it was asked for.
    pub path: String,
    /// How many names it has.
    pub links: u64,
    /// In bytes.
    pub size: u64,
    /// Since 1970.
    pub modified: Duration,
    /// Kind and permissions.
    pub mode: u32,
    /// The number of its owner.
    pub user: u32,
    /// The number of its group.
    pub group: u32,
}

#[derive(Deserialize)]
struct Call {
    #[serde(rename = "type")]
    kind: String,
    list_files: Option<ListFiles>,
    read_file: Option<ReadFile>,
    prefetch_image: Option<PrefetchImage>,
    launch_nested_container_session: Option<LaunchSession>,
    wait_container: Option<WaitContainer>,
}

#[derive(Deserialize)]
struct ListFiles {
    path: String,
}

#[derive(Deserialize)]
struct ReadFile {
    path: String,
    offset: u64,
    length: Option<u64>,
}

#[derive(Deserialize)]
struct PrefetchImage {
    image: String,
}

/// Reads a call to an agent.
pub fn read(call: Value) -> Result<Question, Invalid> {
    let call: Call = decode(call)?;
    let checked = |path: String, field: &str| {
        let field = format!("{field}.path");
        if path.len() > PATH_LENGTH {
            return Err(Invalid::new(field, format!("has more than {PATH_LENGTH} bytes")));
        }
        if path.contains('\0') { Err(Invalid::new(field, "has a NUL in it")) } else { Ok(path) }
    };
    match call.kind.as_str() {
        "LIST_FILES" => {
            Ok(Question::List { path: checked(payload(call.list_files, "list_files")?.path, "list_files")? })
        }
        "READ_FILE" => {
            let ReadFile { path, offset, length } = payload(call.read_file, "read_file")?;
            Ok(Question::Read { path: checked(path, "read_file")?, offset, length: length.unwrap_or(MOST_READ) })
        }
        "PREFETCH_IMAGE" => {
            let image = payload(call.prefetch_image, "prefetch_image")?.image;
            let reference: Result<Reference, _> = image.parse();
            reference.map_err(|wrong| Invalid::new("prefetch_image.image", wrong))?;
            Ok(Question::Prefetch { image })
        }
        "LAUNCH_NESTED_CONTAINER_SESSION" => {
            let field = "launch_nested_container_session";
            let launch = payload(call.launch_nested_container_session, field)?.read();
            Ok(Question::Launch(launch.map_err(|wrong| wrong.within(field))?))
        }
        "WAIT_CONTAINER" => {
            let session = payload(call.wait_container, "wait_container")?.read();
            Ok(Question::Wait { session: session.map_err(|wrong| wrong.within("wait_container"))? })
        }
        "ATTACH_CONTAINER_INPUT" => Err(Invalid::new(
            "type",
            "ATTACH_CONTAINER_INPUT is a stream of records, which comes as application/recordio",
        )),
        other => {
            let known = "LIST_FILES, READ_FILE, PREFETCH_IMAGE, LAUNCH_NESTED_CONTAINER_SESSION, \
                         ATTACH_CONTAINER_INPUT and WAIT_CONTAINER are";
            let problem = format!("`{other}` is no call to an agent that is known; {known}");
            Err(Invalid::new("type", problem))
        }
    }
}

/// What is in a directory, as JSON.
pub fn listed(files: &[FileInfo]) -> Value {
    // Names are those of the machine where they are asked for, which is another: all but root's stay numbers.
    let owner = |number: u32| if number == 0 { "root".to_owned() } else { number.to_string() };
    let file = |file: &FileInfo| {
        json!({
            "path": file.path,
            "nlink": file.links,
            "size": file.size,
            "mtime": { "nanoseconds": u64::try_from(file.modified.as_nanos()).unwrap_or(u64::MAX) },
            "mode": file.mode,
            "uid": owner(file.user),
            "gid": owner(file.group),
        })
    };
    json!({ "type": "LIST_FILES", "list_files": { "file_infos": files.iter().map(file).collect::<Vec<_>>() } })
}

/// What was read of a file of this size, as JSON.
pub fn file(size: u64, data: &str) -> Value {
    json!({ "type": "READ_FILE", "read_file": { "size": size, "data": data } })
}

/// How far an image is, as JSON.
pub fn prefetched(present: bool) -> Value {
    let state = if present { "PRESENT" } else { "PULLING" };
    json!({ "type": "PREFETCH_IMAGE", "prefetch_image": { "state": state } })
}
