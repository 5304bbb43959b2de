//! The executor API: the calls of executors to their agent, and the events they are told.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::resources::{self, Dialect};
use super::scheduler::{id, message_data, update_id, write_update_id};
use super::{Id, Invalid, decode, payload};
use crate::master::{
    AgentId, AgentInfo, ExecutorId, ExecutorInfo, FrameworkId, FrameworkInfo, TaskId, TaskInfo, TaskState, UpdateId,
};

/// The most tasks or updates in one call.
const MOST_ITEMS: usize = 10_000;

/// The longest status, in bytes: it is kept until the framework has acknowledged it.
const MOST_STATUS: usize = 256 << 10;

/// What an executor wants, and which it says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whose.
    pub framework: FrameworkId,
    /// Which.
    pub executor: ExecutorId,
    /// What.
    pub call: Call,
}

/// What an executor wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// To be told what to do, from now on.
    Subscribe {
        /// The tasks it has of which no update was acknowledged.
        tasks: Vec<TaskId>,
        /// What it has said, and was not acknowledged.
        updates: Vec<Update>,
    },
    /// To say what became of a task.
    Update(Update),
    /// To say something to its framework.
    Message(Arc<[u8]>),
    /// To say that it is alive.
    Heartbeat,
}

/// What became of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Which task.
    pub task: TaskId,
    /// Its state.
    pub state: TaskState,
    /// What the update is acknowledged by.
    pub id: UpdateId,
    /// For people.
    pub message: String,
    /// What else is said, for the framework: a JSON object.
    pub details: Arc<str>,
}

/// What an executor is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It is subscribed.
    Subscribed {
        /// What it is.
        info: Arc<ExecutorInfo>,
        /// Whose it is, by [`framework`].
        framework: Value,
        /// Where it is, if the agent has an id.
        agent: Option<AgentId>,
        /// In which sandbox.
        sandbox: String,
    },
    /// To run a task.
    Launch {
        /// Whose, by [`framework`].
        framework: Value,
        /// What.
        task: TaskInfo,
    },
    /// To end a task.
    Kill {
        /// Which.
        task: TaskId,
        /// How long it may take to end by itself; as long as the task says, if none.
        grace: Option<Duration>,
    },
    /// An update has arrived.
    Acknowledged {
        /// Of which task.
        task: TaskId,
        /// Which.
        update: UpdateId,
    },
    /// The framework has something to say.
    Message(Arc<[u8]>),
    /// To end all tasks, and then itself.
    ShutDown,
    /// It is no longer subscribed.
    Error(String),
    /// The connection is alive.
    Heartbeat,
}

#[derive(Deserialize)]
struct Whole {
    #[serde(rename = "type")]
    kind: String,
    framework_id: Id,
    executor_id: Id,
    #[serde(default)]
    subscribe: Subscribe,
    update: Option<Said>,
    message: Option<Message>,
    /// Where the documents' example of a MESSAGE has what the messages' definitions have inside of `message`.
    data: Option<String>,
}

#[derive(Default, Deserialize)]
struct Subscribe {
    #[serde(default)]
    unacknowledged_tasks: Vec<Task>,
    #[serde(default)]
    unacknowledged_updates: Vec<Said>,
}

#[derive(Deserialize)]
struct Task {
    task_id: Id,
}

#[derive(Deserialize)]
struct Said {
    status: Value,
}

#[derive(Deserialize)]
struct Status {
    task_id: Id,
    state: String,
    uuid: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Message {
    data: String,
}

/// Reads a call.
pub fn read(call: Value) -> Result<Request, Invalid> {
    let call: Whole = decode(call)?;
    let framework = FrameworkId::from(call.framework_id.checked("framework_id.value")?);
    let executor = ExecutorId::from(call.executor_id.checked("executor_id.value")?);
    let call = match call.kind.as_str() {
        "SUBSCRIBE" => {
            let Subscribe { unacknowledged_tasks, unacknowledged_updates } = call.subscribe;
            few(&unacknowledged_tasks, "subscribe.unacknowledged_tasks")?;
            few(&unacknowledged_updates, "subscribe.unacknowledged_updates")?;
            let updates = unacknowledged_updates.into_iter().enumerate().map(|(index, said)| {
                let field = format!("subscribe.unacknowledged_updates[{index}]");
                said.read(&executor).map_err(|wrong| wrong.within(&field))
            });
            let tasks = unacknowledged_tasks.into_iter().enumerate().map(|(index, task)| {
                let id = task.task_id.checked(&format!("subscribe.unacknowledged_tasks[{index}].task_id.value"))?;
                Ok(TaskId::from(id))
            });
            Call::Subscribe { tasks: tasks.collect::<Result<_, _>>()?, updates: updates.collect::<Result<_, _>>()? }
        }
        "UPDATE" => {
            let update = payload(call.update, "update")?;
            Call::Update(update.read(&executor).map_err(|wrong| wrong.within("update"))?)
        }
        "MESSAGE" => match (call.message, call.data) {
            (Some(message), _) => Call::Message(message_data(&message.data, "message.data")?),
            (None, Some(data)) => Call::Message(message_data(&data, "data")?),
            (None, None) => return Err(Invalid::missing("message")),
        },
        "HEARTBEAT" => Call::Heartbeat,
        other => {
            let known = "SUBSCRIBE, UPDATE, MESSAGE and HEARTBEAT are";
            return Err(Invalid::new("type", format!("`{other}` is no call of an executor that is known; {known}")));
        }
    };
    Ok(Request { framework, executor, call })
}

fn few<T>(items: &[T], field: &str) -> Result<(), Invalid> {
    if items.len() > MOST_ITEMS {
        return Err(Invalid::new(field, format!("has more than {MOST_ITEMS} entries")));
    }
    Ok(())
}

impl Said {
    fn read(self, executor: &ExecutorId) -> Result<Update, Invalid> {
        let mut details = self.status;
        let status: Status = decode(details.clone()).map_err(|wrong| wrong.within("status"))?;
        let state = TaskState::named(&status.state).filter(|state| state.is_of_executors());
        let unknown =
            || Invalid::new("status.state", format!("`{}` is no state that an executor tells of", status.state));
        let state = state.ok_or_else(unknown)?;
        let task = status.task_id.checked("status.task_id.value")?;
        let update = update_id(&status.uuid, "status.uuid")?;
        // What is said apart, or the agent and the master know better.
        if let Value::Object(fields) = &mut details {
            fields.retain(|name, _| !["task_id", "state", "uuid", "message", "agent_id", "source"].contains(&&**name));
        }
        details["executor_id"] = id(executor.as_str());
        let details = details.to_string();
        if details.len() + status.message.len() > MOST_STATUS {
            return Err(Invalid::new("status", format!("has more than {MOST_STATUS} bytes")));
        }
        Ok(Update { task: TaskId::from(task), state, id: update, message: status.message, details: details.into() })
    }
}

/// Writes an event. `agent` is what the agent says of itself.
pub fn write(event: &Event, agent: &AgentInfo) -> Value {
    match event {
        Event::Subscribed { info, framework, agent: agent_id, sandbox } => {
            let agent_id = agent_id.as_ref().map(|agent| id(agent.as_str()));
            json!({
                "type": "SUBSCRIBED",
                "subscribed": {
                    "executor_info": document(&info.payload),
                    "framework_info": framework,
                    "agent_id": agent_id,
                    "agent_info": {
                        "id": agent_id,
                        "hostname": agent.hostname,
                        "port": agent.port,
                        "resources": resources::write(&agent.resources, None, Dialect::default()),
                        "attributes": resources::attributes(&agent.attributes),
                    },
                    "container_id": id(sandbox),
                },
            })
        }
        Event::Launch { framework, task } => {
            let mut written = document(&task.payload);
            if let Some(executor) = &task.executor {
                written["executor"] = document(&executor.payload);
            }
            json!({ "type": "LAUNCH", "launch": { "framework_info": framework, "task": written } })
        }
        Event::Kill { task, grace } => {
            let mut kill = json!({ "task_id": id(task.as_str()) });
            if let Some(grace) = grace {
                let nanoseconds = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
                kill["kill_policy"] = json!({ "grace_period": { "nanoseconds": nanoseconds } });
            }
            json!({ "type": "KILL", "kill": kill })
        }
        Event::Acknowledged { task, update } => json!({
            "type": "ACKNOWLEDGED",
            "acknowledged": { "task_id": id(task.as_str()), "uuid": write_update_id(*update) },
        }),
        Event::Message(data) => json!({ "type": "MESSAGE", "message": { "data": BASE64_STANDARD.encode(data) } }),
        Event::ShutDown => json!({ "type": "SHUTDOWN" }),
        Event::Error(message) => json!({ "type": "ERROR", "error": { "message": message } }),
        Event::Heartbeat => json!({ "type": "HEARTBEAT" }),
    }
}

/// What the framework wrote itself, which was an object when it was read.
fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!({}))
}

/// `FrameworkInfo`
pub fn framework(framework: &FrameworkId, info: &FrameworkInfo) -> Value {
    json!({
        "id": id(framework.as_str()),
        // As whom the executor runs its image says, or its command.
        "user": "",
        "name": info.name,
        "roles": info.roles.keys().collect::<Vec<_>>(),
        "failover_timeout": info.failover_timeout.as_secs_f64(),
        "checkpoint": true,
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const WHO: &str = r#""framework_id": {"value": "f"}, "executor_id": {"value": "e"}"#;

    fn read_text(text: &str) -> Result<Request, Invalid> {
        read(parse(text.as_bytes())?)
    }

    #[test]
    fn wrong_calls_name_the_field() {
        let status = |fields: &str| format!(r#"{{"type": "UPDATE", {WHO}, "update": {{"status": {{{fields}}}}}}}"#);
        let task = r#""task_id": {"value": "t"}"#;
        let cases = [
            ("{}".to_owned(), "request"),
            (r#"{"type": "SUBSCRIBE", "framework_id": {"value": "f"}}"#.to_owned(), "request"),
            (format!(r#"{{"type": "NONSENSE", {WHO}}}"#), "type"),
            (format!(r#"{{"type": "UPDATE", {WHO}}}"#), "update"),
            (status(""), "update.status"),
            (status(&format!(r#"{task}, "state": "TASK_DANCING", "uuid": ""#)), "request"),
            (status(&format!(r#"{task}, "state": "TASK_DANCING", "uuid": """#)), "update.status.state"),
            (status(&format!(r#"{task}, "state": "TASK_UNREACHABLE", "uuid": """#)), "update.status.state"),
            (status(&format!(r#"{task}, "state": "TASK_RUNNING", "uuid": "AAAA""#)), "update.status.uuid"),
            (
                status(&format!(
                    r#"{task}, "state": "TASK_RUNNING", "uuid": "AAAAAAAAAAAAAAAAAAAABw==", "data": "{}""#,
                    "A".repeat(MOST_STATUS)
                )),
                "update.status",
            ),
            (
                status(&format!(
                    r#""task_id": {{"value": "{}"}}, "state": "TASK_RUNNING", "uuid": "AAAAAAAAAAAAAAAAAAAABw==""#,
                    "t".repeat(1000)
                )),
                "update.status.task_id.value",
            ),
            (format!(r#"{{"type": "MESSAGE", {WHO}}}"#), "message"),
            (format!(r#"{{"type": "MESSAGE", {WHO}, "message": {{"data": "?"}}}}"#), "message.data"),
            (format!(r#"{{"type": "MESSAGE", {WHO}, "data": "{}"}}"#, "AAAA".repeat(1 << 19)), "data"),
            (
                format!(
                    r#"{{"type": "SUBSCRIBE", {WHO}, "subscribe": {{"unacknowledged_updates": [{{"status": 7}}]}}}}"#
                ),
                "subscribe.unacknowledged_updates[0].status",
            ),
            (
                format!(
                    r#"{{"type": "SUBSCRIBE", {WHO}, "subscribe": {{"unacknowledged_tasks": [{{"task_id": 7}}]}}}}"#
                ),
                "subscribe.unacknowledged_tasks[0].task_id",
            ),
        ];
        for (text, field) in cases {
            assert_eq!(read_text(&text).unwrap_err().field, field, "{text}");
        }
    }

    #[test]
    fn an_executor_says_what_it_knows_and_no_more() {
        let text = format!(
            r#"{{"type": "UPDATE", {WHO}, "update": {{"status": {{"task_id": {{"value": "t"}}, "state": "TASK_RUNNING",
            "uuid": "AAAAAAAAAAAAAAAAAAAABw==", "message": "m", "data": "eA==", "source": "SOURCE_MASTER",
            "agent_id": {{"value": "another"}}, "executor_id": {{"value": "another"}}, "healthy": true}}}}}}"#
        );
        let Request { call: Call::Update(update), .. } = read_text(&text).unwrap() else { panic!() };
        assert_eq!((update.state, update.id, &*update.message), (TaskState::Running, UpdateId(7), "m"));
        let details: Value = serde_json::from_str(&update.details).unwrap();
        assert_eq!(details, json!({ "data": "eA==", "executor_id": { "value": "e" }, "healthy": true }));
        let both = [r#""message": {"data": "eA=="}"#, r#""data": "eA==""#];
        for field in both {
            let text = format!(r#"{{"type": "MESSAGE", {WHO}, {field}}}"#);
            assert_eq!(read_text(&text).unwrap().call, Call::Message(Arc::from(&b"x"[..])));
        }
    }
}
