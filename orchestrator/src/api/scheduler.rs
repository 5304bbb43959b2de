//! The scheduler API: the calls of frameworks and the events they are told.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use slotmap::{Key as _, KeyData};

use super::framework::{Declaration, Framework};
use super::resources::{self, Dialect, Resource};
use super::{Id, Invalid, decode, payload};
use crate::allocator::OfferKey;
use crate::master::{
    self, AgentId, AgentInfo, Event, ExecutorId, ExecutorInfo, FrameworkId, OfferEvent, TaskId, TaskInfo, TaskStatus,
    UpdateId,
};

/// How long what is left of offers is refused, unless the framework says otherwise.
const REFUSE_SECONDS: f64 = 5.0;
/// The most offers, tasks or roles in one call.
const MOST_ITEMS: usize = 10_000;
/// The most bytes of a message between a framework and an executor.
const MOST_MESSAGE: usize = 1 << 20;

/// What a framework wants.
#[derive(Debug)]
pub enum Request {
    /// To be told what happens, from now on.
    Subscribe(Framework),
    /// To be known otherwise.
    Update(FrameworkId, Framework),
    /// Something of the master.
    Call(FrameworkId, master::Call),
    /// Something that nothing follows from here.
    Nothing(FrameworkId),
}

#[derive(Deserialize)]
struct Call {
    #[serde(rename = "type")]
    kind: String,
    framework_id: Option<Id>,
    subscribe: Option<Declaration>,
    update_framework: Option<Declaration>,
    accept: Option<Accept>,
    decline: Option<Decline>,
    revive: Option<Roles>,
    suppress: Option<Roles>,
    kill: Option<Kill>,
    acknowledge: Option<Acknowledge>,
    reconcile: Option<Reconcile>,
    message: Option<Message>,
    shutdown: Option<ShutDown>,
}

#[derive(Deserialize)]
struct Accept {
    #[serde(default)]
    offer_ids: Vec<Id>,
    #[serde(default)]
    operations: Vec<Operation>,
    #[serde(default)]
    filters: Filters,
}

#[derive(Deserialize)]
struct Operation {
    #[serde(rename = "type")]
    kind: String,
    launch: Option<Launch>,
}

#[derive(Deserialize)]
struct Launch {
    #[serde(default)]
    task_infos: Vec<Value>,
}

#[derive(Deserialize)]
struct Task {
    task_id: Id,
    agent_id: Id,
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Executor {
    executor_id: Id,
    framework_id: Option<Id>,
    #[serde(default)]
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Decline {
    #[serde(default)]
    offer_ids: Vec<Id>,
    #[serde(default)]
    filters: Filters,
}

#[derive(Default, Deserialize)]
struct Filters {
    refuse_seconds: Option<f64>,
}

#[derive(Default, Deserialize)]
struct Roles {
    role: Option<String>,
    #[serde(default)]
    roles: Vec<String>,
}

#[derive(Deserialize)]
struct Kill {
    task_id: Id,
    agent_id: Option<Id>,
    kill_policy: Option<KillPolicy>,
}

#[derive(Deserialize)]
struct KillPolicy {
    grace_period: Option<DurationInfo>,
}

/// `DurationInfo`
#[derive(Debug, Deserialize)]
pub struct DurationInfo {
    nanoseconds: u64,
}

impl DurationInfo {
    /// What it says.
    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds)
    }
}

#[derive(Deserialize)]
struct Acknowledge {
    agent_id: Id,
    task_id: Id,
    uuid: String,
}

#[derive(Deserialize)]
struct Reconcile {
    #[serde(default)]
    tasks: Vec<ReconciledTask>,
}

#[derive(Deserialize)]
struct ReconciledTask {
    task_id: Id,
    agent_id: Option<Id>,
}

#[derive(Deserialize)]
struct Message {
    agent_id: Id,
    executor_id: Id,
    data: String,
}

#[derive(Deserialize)]
struct ShutDown {
    agent_id: Id,
    executor_id: Id,
}

/// Reads a call. `master` is the id of the master, with which its offers' ids begin.
pub fn read(call: Value, master: &str) -> Result<Request, Invalid> {
    let call: Call = decode(call)?;
    let id = call.framework_id.filter(|id| !id.value.is_empty());
    let id = id.map(|id| id.checked("framework_id.value")).transpose()?.map(FrameworkId::from);
    if call.kind == "SUBSCRIBE" {
        let framework = payload(call.subscribe, "subscribe")?.read().map_err(|wrong| wrong.within("subscribe"))?;
        if framework.id != id {
            return Err(Invalid::new("framework_id", "has to be the same as `subscribe.framework_info.id`"));
        }
        return Ok(Request::Subscribe(framework));
    }
    let id = payload(id, "framework_id")?;
    let call = match call.kind.as_str() {
        "UPDATE_FRAMEWORK" => {
            let update = payload(call.update_framework, "update_framework")?.read();
            let framework = update.map_err(|wrong| wrong.within("update_framework"))?;
            if framework.id.as_ref() != Some(&id) {
                return Err(Invalid::new("framework_id", "has to be the same as `update_framework.framework_info.id`"));
            }
            return Ok(Request::Update(id, framework));
        }
        "TEARDOWN" => master::Call::Teardown,
        "ACCEPT" => payload(call.accept, "accept")?.read(master, &id).map_err(|wrong| wrong.within("accept"))?,
        "DECLINE" => {
            let decline = payload(call.decline, "decline")?;
            let offers = offer_keys(&decline.offer_ids, master).map_err(|wrong| wrong.within("decline"))?;
            let refuse = decline.filters.read().map_err(|wrong| wrong.within("decline"))?;
            master::Call::Decline { offers, refuse }
        }
        "REVIVE" => master::Call::Revive(call.revive.unwrap_or_default().read("revive")?),
        "SUPPRESS" => master::Call::Suppress(call.suppress.unwrap_or_default().read("suppress")?),
        "KILL" => {
            let kill = payload(call.kill, "kill")?;
            master::Call::Kill {
                task: TaskId::from(kill.task_id.value),
                agent: agent_id(kill.agent_id),
                grace: kill.kill_policy.and_then(|policy| policy.grace_period).map(|grace| grace.duration()),
            }
        }
        "ACKNOWLEDGE" => {
            let acknowledge = payload(call.acknowledge, "acknowledge")?;
            master::Call::Acknowledge {
                agent: AgentId::from(acknowledge.agent_id.value),
                task: TaskId::from(acknowledge.task_id.value),
                update: update_id(&acknowledge.uuid, "acknowledge.uuid")?,
            }
        }
        "RECONCILE" => {
            let tasks = call.reconcile.map(|reconcile| reconcile.tasks).unwrap_or_default();
            few(&tasks, "reconcile.tasks")?;
            let tasks = tasks.into_iter().map(|task| (TaskId::from(task.task_id.value), agent_id(task.agent_id)));
            master::Call::Reconcile(tasks.collect())
        }
        "MESSAGE" => {
            let message = payload(call.message, "message")?;
            master::Call::Message {
                agent: AgentId::from(message.agent_id.value),
                executor: ExecutorId::from(message.executor_id.value),
                data: message_data(&message.data, "message.data")?,
            }
        }
        "SHUTDOWN" => {
            let ShutDown { agent_id, executor_id } = payload(call.shutdown, "shutdown")?;
            let (agent, executor) = (AgentId::from(agent_id.value), ExecutorId::from(executor_id.value));
            master::Call::ShutDown { agent, executor }
        }
        // Hints that masters are free to overlook, and answers to what this one never sends.
        "REQUEST"
        | "ACCEPT_INVERSE_OFFERS"
        | "DECLINE_INVERSE_OFFERS"
        | "ACKNOWLEDGE_OPERATION_STATUS"
        | "RECONCILE_OPERATIONS" => return Ok(Request::Nothing(id)),
        other => return Err(Invalid::new("type", format!("`{other}` is no call that is known"))),
    };
    Ok(Request::Call(id, call))
}

impl Accept {
    fn read(self, master: &str, framework: &FrameworkId) -> Result<master::Call, Invalid> {
        let offers = offer_keys(&self.offer_ids, master)?;
        let refuse = self.filters.read()?;
        let mut tasks = Vec::new();
        for (index, operation) in self.operations.into_iter().enumerate() {
            let field = format!("operations[{index}]");
            if operation.kind != "LAUNCH" {
                let problem = format!("`{}` is not supported; LAUNCH is", operation.kind);
                return Err(Invalid::new(format!("{field}.type"), problem));
            }
            let launch = payload(operation.launch, &format!("{field}.launch"))?;
            for (index, task) in launch.task_infos.into_iter().enumerate() {
                let field = format!("{field}.launch.task_infos[{index}]");
                tasks.push(read_task(task, framework).map_err(|wrong| wrong.within(&field))?);
            }
            few(&tasks, &field)?;
        }
        Ok(master::Call::Accept { offers, tasks, refuse })
    }
}

/// What the master has to know of a task. The rest is for its agent, as the framework wrote it.
fn read_task(mut value: Value, framework: &FrameworkId) -> Result<TaskInfo, Invalid> {
    let executor = value.as_object_mut().and_then(|fields| fields.remove("executor"));
    let executor = executor.map(|value| read_executor(value, framework)).transpose();
    let executor = executor.map_err(|wrong| wrong.within("executor"))?.map(Arc::new);
    let payload = value.to_string().into();
    let task: Task = decode(value)?;
    Ok(TaskInfo {
        id: TaskId::from(task.task_id.value),
        agent: AgentId::from(task.agent_id.value),
        resources: resources::read(&task.resources, "resources")?,
        executor,
        payload,
    })
}

/// The same of an executor, which is told apart from others by all that is said of it.
fn read_executor(mut value: Value, framework: &FrameworkId) -> Result<ExecutorInfo, Invalid> {
    let executor: Executor = decode(value.clone())?;
    if executor.framework_id.is_some_and(|id| id.value != framework.as_str()) {
        return Err(Invalid::new("framework_id", "has to be that of the framework, if it is set"));
    }
    value["framework_id"] = id(framework.as_str());
    Ok(ExecutorInfo {
        id: ExecutorId::from(executor.executor_id.checked("executor_id.value")?),
        resources: resources::read(&executor.resources, "resources")?,
        payload: value.to_string().into(),
    })
}

/// What frameworks and their executors say to each other, which is in base64.
pub(super) fn message_data(text: &str, field: &str) -> Result<Arc<[u8]>, Invalid> {
    let data = BASE64_STANDARD.decode(text);
    let data = data.map_err(|error| Invalid::new(field, format!("is no base64: {error}")))?;
    if data.len() > MOST_MESSAGE {
        return Err(Invalid::new(field, format!("has more than {MOST_MESSAGE} bytes")));
    }
    Ok(data.into())
}

impl Filters {
    /// For how long.
    fn read(&self) -> Result<Duration, Invalid> {
        let seconds = self.refuse_seconds.unwrap_or(REFUSE_SECONDS);
        if !seconds.is_finite() {
            return Err(Invalid::new("filters.refuse_seconds", "is no number"));
        }
        // What is too long the allocator shortens; less than nothing is the default, as in Mesos.
        let seconds = if seconds < 0.0 { REFUSE_SECONDS } else { seconds };
        Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

impl Roles {
    fn read(self, field: &str) -> Result<Vec<String>, Invalid> {
        let mut roles = self.roles;
        // The field of old; empty, it means what no field means.
        roles.extend(self.role.filter(|role| !role.is_empty()));
        few(&roles, &format!("{field}.roles"))?;
        Ok(roles)
    }
}

fn few<T>(items: &[T], field: &str) -> Result<(), Invalid> {
    if items.len() > MOST_ITEMS {
        return Err(Invalid::new(field, format!("has more than {MOST_ITEMS} entries")));
    }
    Ok(())
}

fn agent_id(id: Option<Id>) -> Option<AgentId> {
    id.filter(|id| !id.value.is_empty()).map(|id| AgentId::from(id.value))
}

/// The number of an update.
pub(super) fn update_id(text: &str, field: &str) -> Result<UpdateId, Invalid> {
    let bytes = BASE64_STANDARD.decode(text).ok().and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let bytes = bytes.ok_or_else(|| Invalid::new(field, "is not the base64 of 16 bytes"))?;
    Ok(UpdateId(u128::from_be_bytes(bytes)))
}

/// The same, written.
pub(super) fn write_update_id(UpdateId(number): UpdateId) -> String {
    BASE64_STANDARD.encode(number.to_be_bytes())
}

/// The offers named. One that no offer of this master can be is named like one that was withdrawn: by a key of none.
fn offer_keys(ids: &[Id], master: &str) -> Result<Vec<OfferKey>, Invalid> {
    few(ids, "offer_ids")?;
    let key = |id: &Id| {
        let number = id.value.strip_prefix(master).and_then(|rest| rest.strip_prefix("-O"))?.parse().ok()?;
        Some(OfferKey::from(KeyData::from_ffi(number)))
    };
    Ok(ids.iter().map(|id| key(id).unwrap_or_default()).collect())
}

fn offer_id(key: OfferKey, master: &str) -> Value {
    json!({ "value": format!("{master}-O{}", key.data().as_ffi()) })
}

/// How events are written to one framework.
#[derive(Debug, Clone)]
pub struct Writer {
    /// The master's id.
    pub master: Arc<str>,
    /// `MasterInfo`
    pub master_info: Arc<Value>,
    /// The framework.
    pub framework: FrameworkId,
    /// How it wants offers to be written.
    pub dialect: Dialect,
}

impl Writer {
    /// An event as JSON; `now` is the time since 1970, for what the master itself says.
    pub fn write(&self, event: &Event, now: Duration) -> Value {
        match event {
            Event::Subscribed { framework, heartbeat } => json!({
                "type": "SUBSCRIBED",
                "subscribed": {
                    "framework_id": id(framework.as_str()),
                    "heartbeat_interval_seconds": heartbeat.as_secs_f64(),
                    "master_info": &*self.master_info,
                },
            }),
            Event::Offers(offers) => {
                let offers: Vec<Value> = offers.iter().map(|offer| self.write_offer(offer)).collect();
                json!({ "type": "OFFERS", "offers": { "offers": offers } })
            }
            Event::Rescind(key) => {
                json!({ "type": "RESCIND", "rescind": { "offer_id": offer_id(*key, &self.master) } })
            }
            Event::Update(status) => json!({ "type": "UPDATE", "update": { "status": write_status(status, now) } }),
            Event::Message { agent, executor, data } => json!({
                "type": "MESSAGE",
                "message": {
                    "agent_id": id(agent.as_str()),
                    "executor_id": id(executor.as_str()),
                    "data": BASE64_STANDARD.encode(data),
                },
            }),
            Event::Failure(agent) => json!({ "type": "FAILURE", "failure": { "agent_id": id(agent.as_str()) } }),
            Event::ExecutorFailure { agent, executor, status } => {
                let mut failure = json!({ "agent_id": id(agent.as_str()), "executor_id": id(executor.as_str()) });
                if let Some(status) = status {
                    failure["status"] = json!(status);
                }
                json!({ "type": "FAILURE", "failure": failure })
            }
            Event::Error(message) => json!({ "type": "ERROR", "error": { "message": message } }),
            Event::Heartbeat => json!({ "type": "HEARTBEAT" }),
        }
    }

    fn write_offer(&self, offer: &OfferEvent) -> Value {
        let AgentInfo { hostname, port, attributes, .. } = &*offer.info;
        let (address, path) = match port {
            // An agent that does not listen itself is asked by way of the master.
            0 => (self.master_info["address"].clone(), format!("/agent/{}", offer.agent)),
            port => (json!({ "hostname": hostname, "ip": hostname, "port": port }), "/".to_owned()),
        };
        json!({
            "id": offer_id(offer.key, &self.master),
            "framework_id": id(self.framework.as_str()),
            "agent_id": id(offer.agent.as_str()),
            "hostname": hostname,
            "url": { "scheme": "http", "address": address, "path": path, "query": [] },
            "resources": resources::write(&offer.resources, Some(&offer.role), self.dialect),
            "attributes": resources::attributes(attributes),
            "executor_ids": offer.executors.iter().map(|executor| id(executor.as_str())).collect::<Vec<_>>(),
            "allocation_info": { "role": &*offer.role },
        })
    }
}

/// A message round one text.
pub(crate) fn id(text: &str) -> Value {
    json!({ "value": text })
}

/// `TaskStatus`
pub(super) fn write_status(status: &TaskStatus, now: Duration) -> Value {
    // What the agent says besides, and over it what the master knows better.
    let details = serde_json::from_str(&status.details).unwrap_or_else(|_| json!({}));
    let mut written = if let Value::Object(fields) = details { Value::Object(fields) } else { json!({}) };
    if written["timestamp"].is_null() {
        written["timestamp"] = json!(now.as_secs_f64());
    }
    written["task_id"] = id(status.task.as_str());
    written["state"] = json!(status.state.name());
    if status.reason.is_some() {
        written["source"] = json!("SOURCE_MASTER");
    } else if written["source"].is_null() {
        written["source"] = json!("SOURCE_EXECUTOR");
    }
    if let Some(agent) = &status.agent {
        written["agent_id"] = id(agent.as_str());
    }
    if let Some(update) = status.update {
        written["uuid"] = json!(write_update_id(update));
    }
    if let Some(reason) = status.reason {
        written["reason"] = json!(reason.name());
    }
    if !status.message.is_empty() {
        written["message"] = json!(status.message);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn read_text(text: &str) -> Result<Request, Invalid> {
        read(parse(text.as_bytes())?, "m")
    }

    #[test]
    fn wrong_calls_name_the_field() {
        let framework = r#""framework_id": {"value": "f"}"#;
        let cases = [
            ("{}".to_owned(), "request"),
            (r#"{"type": "NONSENSE", "framework_id": {"value": "f"}}"#.to_owned(), "type"),
            (r#"{"type": "REVIVE"}"#.to_owned(), "framework_id"),
            (r#"{"type": "SUBSCRIBE"}"#.to_owned(), "subscribe"),
            (
                r#"{"type": "SUBSCRIBE", "subscribe": {"framework_info": {"name": 7}}}"#.to_owned(),
                "subscribe.framework_info.name",
            ),
            (
                r#"{"type": "SUBSCRIBE", "subscribe": {"framework_info": {"name": "n", "failover_timeout": -1}}}"#
                    .to_owned(),
                "subscribe.framework_info.failover_timeout",
            ),
            (
                r#"{"type": "SUBSCRIBE", "subscribe": {"framework_info": {"name": "n", "roles": ["a"]}}}"#.to_owned(),
                "subscribe.framework_info.roles",
            ),
            (
                r#"{"type": "SUBSCRIBE", "subscribe": {"framework_info": {"name": "n", "role": "a b"}}}"#.to_owned(),
                "subscribe.framework_info.roles[0]",
            ),
            (
                r#"{"type": "SUBSCRIBE", "subscribe": {"framework_info": {"name": "n", "id": {"value": "x"}}}}"#
                    .to_owned(),
                "framework_id",
            ),
            (format!(r#"{{"type": "ACCEPT", {framework}}}"#), "accept"),
            (
                format!(r#"{{"type": "ACCEPT", {framework}, "accept": {{"operations": [{{"type": "RESERVE"}}]}}}}"#),
                "accept.operations[0].type",
            ),
            (
                format!(
                    r#"{{"type": "ACCEPT", {framework}, "accept": {{"operations": [{{"type": "LAUNCH", "launch":
                    {{"task_infos": [{{"task_id": {{"value": "t"}}}}]}}}}]}}}}"#
                ),
                "accept.operations[0].launch.task_infos[0]",
            ),
            (
                format!(
                    r#"{{"type": "ACCEPT", {framework}, "accept": {{"operations": [{{"type": "LAUNCH", "launch":
                    {{"task_infos": [{{"executor": {{"executor_id": {{"value": "a/b"}}}}}}]}}}}]}}}}"#
                ),
                "accept.operations[0].launch.task_infos[0].executor.executor_id.value",
            ),
            (
                format!(
                    r#"{{"type": "ACCEPT", {framework}, "accept": {{"operations": [{{"type": "LAUNCH", "launch":
                    {{"task_infos": [{{"executor": {{"executor_id": {{"value": "e"}},
                    "framework_id": {{"value": "g"}}}}}}]}}}}]}}}}"#
                ),
                "accept.operations[0].launch.task_infos[0].executor.framework_id",
            ),
            (format!(r#"{{"type": "SHUTDOWN", {framework}}}"#), "shutdown"),
            (
                format!(
                    r#"{{"type": "ACKNOWLEDGE", {framework}, "acknowledge": {{"agent_id": {{"value": "a"}},
                    "task_id": {{"value": "t"}}, "uuid": "AAAA"}}}}"#
                ),
                "acknowledge.uuid",
            ),
            (
                format!(
                    r#"{{"type": "MESSAGE", {framework}, "message": {{"agent_id": {{"value": "a"}},
                    "executor_id": {{"value": "t"}}, "data": "?"}}}}"#
                ),
                "message.data",
            ),
        ];
        for (text, field) in cases {
            assert_eq!(read_text(&text).unwrap_err().field, field, "{text}");
        }
    }

    #[test]
    fn an_offer_of_another_master_is_none() {
        let text = r#"{"type": "DECLINE", "framework_id": {"value": "f"},
            "decline": {"offer_ids": [{"value": "n-O4294967297"}, {"value": "m-O4294967297"}], "filters": null}}"#;
        let Request::Call(_, master::Call::Decline { offers, refuse }) = read_text(text).unwrap() else { panic!() };
        assert!(offers[0].is_null());
        assert_eq!(offer_id(offers[1], "m"), json!({ "value": "m-O4294967297" }));
        assert_eq!(refuse, Duration::from_secs(5));
    }
}
