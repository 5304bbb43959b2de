//! The scheduler API from a framework's side: events as they are read and calls as they are written.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::scheduler::Own;
use crate::api::resources::{self, Resource};
use crate::api::scheduler::id;
use crate::api::{Id, Invalid, decode, parse, payload};
use crate::attributes::Attributes;
use crate::master::{AgentId, FrameworkId, TaskId, TaskState, UpdateId};
use crate::resources::Resources;

/// How long tasks live on without the job framework: a week, in seconds.
const FAILOVER_TIMEOUT: f64 = 7.0 * 86_400.0;

/// What the master says.
#[derive(Debug)]
pub enum Event {
    /// The framework is known, under this id.
    Subscribed(FrameworkId),
    /// These can be used.
    Offers(Vec<Offer>),
    /// Something of a task.
    Update(Status),
    /// The subscription is over.
    Error(String),
    /// Nothing that matters here.
    Other,
}

/// Resources of an agent that can be used.
#[derive(Debug, Clone)]
pub struct Offer {
    /// What it is accepted by.
    pub id: String,
    /// Whose.
    pub agent: AgentId,
    /// In which role.
    pub role: String,
    /// What.
    pub resources: Resources,
    /// What the agent says of itself.
    pub attributes: Attributes,
}

/// What is said of a task.
#[derive(Debug, Clone)]
pub struct Status {
    /// The task.
    pub task: TaskId,
    /// Where it is.
    pub agent: Option<AgentId>,
    /// Its state.
    pub state: TaskState,
    /// What this is acknowledged by.
    pub update: Option<UpdateId>,
    /// For people.
    pub message: String,
    /// The name of its sandbox.
    pub sandbox: Option<String>,
    /// Whether it is well, if that is said.
    pub healthy: Option<bool>,
}

/// What is asked of the master.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// To take part otherwise: the roles, and where no offers are wanted.
    Update {
        /// Under which id.
        framework: Option<FrameworkId>,
        /// The roles.
        roles: Vec<(String, bool)>,
    },
    /// Uses an offer; what is left of it is refused for a while.
    Accept {
        /// Which.
        offer: String,
        /// The tasks, by id.
        tasks: Vec<(TaskId, Value)>,
        /// For how long.
        refuse: Duration,
    },
    /// Does not use offers.
    Decline {
        /// Which.
        offers: Vec<String>,
        /// For how long.
        refuse: Duration,
    },
    /// Wants offers in a role.
    Revive(String),
    /// Wants none.
    Suppress(String),
    /// Wants a task to end.
    Kill {
        /// Which.
        task: TaskId,
        /// Where.
        agent: AgentId,
        /// How long it may take to end by itself; as long as the task says, if none.
        grace: Option<Duration>,
    },
    /// Has taken note.
    Acknowledge {
        /// Of something about this task.
        task: TaskId,
        /// Said by this agent.
        agent: AgentId,
        /// Namely this.
        update: UpdateId,
    },
    /// Wants to be told of tasks; of all, if none is named.
    Reconcile(Vec<(TaskId, AgentId)>),
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    subscribed: Option<Subscribed>,
    offers: Option<Offers>,
    update: Option<Update>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Subscribed {
    framework_id: Id,
}

#[derive(Deserialize)]
struct Offers {
    #[serde(default)]
    offers: Vec<OneOffer>,
}

#[derive(Deserialize)]
struct OneOffer {
    id: Id,
    agent_id: Id,
    allocation_info: Allocation,
    resources: Vec<Resource>,
    #[serde(default)]
    attributes: Vec<Attribute>,
}

#[derive(Deserialize)]
struct Allocation {
    role: String,
}

#[derive(Deserialize)]
struct Attribute {
    name: String,
    text: Option<Id>,
}

#[derive(Deserialize)]
struct Update {
    status: OneStatus,
}

#[derive(Deserialize)]
struct OneStatus {
    task_id: Id,
    agent_id: Option<Id>,
    state: String,
    uuid: Option<String>,
    #[serde(default)]
    message: String,
    container_status: Option<ContainerStatus>,
    healthy: Option<bool>,
}

#[derive(Deserialize)]
struct ContainerStatus {
    container_id: Option<Id>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    message: String,
}

/// Reads an event.
pub fn read(record: &[u8]) -> Result<Event, Invalid> {
    let Envelope { kind, subscribed, offers, update, error } = decode(parse(record)?)?;
    Ok(match kind.as_str() {
        "SUBSCRIBED" => Event::Subscribed(FrameworkId::from(payload(subscribed, "subscribed")?.framework_id.value)),
        "OFFERS" => {
            let offers = payload(offers, "offers")?.offers.into_iter().map(OneOffer::read);
            Event::Offers(offers.collect::<Result<_, _>>()?)
        }
        "UPDATE" => Event::Update(payload(update, "update")?.status.read()?),
        "ERROR" => Event::Error(payload(error, "error")?.message),
        _ => Event::Other,
    })
}

impl OneOffer {
    fn read(self) -> Result<Offer, Invalid> {
        let attributes = self.attributes.into_iter().filter_map(|it| Some((it.name, it.text?.value)));
        Ok(Offer {
            id: self.id.value,
            agent: AgentId::from(self.agent_id.value),
            role: self.allocation_info.role,
            resources: resources::read(&self.resources, "resources")?,
            attributes: attributes.collect(),
        })
    }
}

impl OneStatus {
    fn read(self) -> Result<Status, Invalid> {
        let state = TaskState::named(&self.state);
        let state = state.ok_or_else(|| Invalid::new("state", format!("`{}` is not known", self.state)))?;
        let update = self.uuid.and_then(|text| BASE64_STANDARD.decode(text).ok());
        let update = update.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        Ok(Status {
            task: TaskId::from(self.task_id.value),
            agent: self.agent_id.map(|id| AgentId::from(id.value)),
            state,
            update: update.map(|bytes| UpdateId(u128::from_be_bytes(bytes))),
            message: self.message,
            sandbox: self.container_status.and_then(|status| status.container_id).map(|id| id.value),
            healthy: self.healthy,
        })
    }
}

/// What a subscription says of the job framework; so does an update of it.
fn declaration(framework: Option<&FrameworkId>, roles: &[(String, bool)]) -> Value {
    let names: Vec<&str> = roles.iter().map(|(role, _)| role.as_str()).collect();
    let suppressed: Vec<&str> = roles.iter().filter(|(_, not)| *not).map(|(role, _)| role.as_str()).collect();
    let mut info = json!({
        "user": "root",
        "name": "berth jobs",
        "roles": names,
        "failover_timeout": FAILOVER_TIMEOUT,
        "capabilities": [{ "type": "MULTI_ROLE" }, { "type": "PARTITION_AWARE" }],
    });
    if let Some(framework) = framework {
        info["id"] = id(framework.as_str());
    }
    json!({ "framework_info": info, "suppressed_roles": suppressed })
}

/// The call that begins a stream of events.
pub fn subscribe(own: &Own, roles: &[(String, bool)]) -> Value {
    let mut call = json!({ "type": "SUBSCRIBE", "subscribe": declaration(own.framework.as_ref(), roles) });
    if let Some(framework) = &own.framework {
        call["framework_id"] = id(framework.as_str());
    }
    call
}

impl Call {
    /// As JSON, from the framework with this id.
    pub fn write(&self, framework: &FrameworkId) -> Value {
        let (kind, field, body) = match self {
            Call::Update { framework, roles } => {
                ("UPDATE_FRAMEWORK", "update_framework", declaration(framework.as_ref(), roles))
            }
            Call::Accept { offer, tasks, refuse } => {
                let tasks: Vec<&Value> = tasks.iter().map(|(_, task)| task).collect();
                let body = json!({
                    "offer_ids": [id(offer)],
                    "operations": [{ "type": "LAUNCH", "launch": { "task_infos": tasks } }],
                    "filters": { "refuse_seconds": refuse.as_secs_f64() },
                });
                ("ACCEPT", "accept", body)
            }
            Call::Decline { offers, refuse } => {
                let offers: Vec<Value> = offers.iter().map(|offer| id(offer)).collect();
                let filters = json!({ "refuse_seconds": refuse.as_secs_f64() });
                ("DECLINE", "decline", json!({ "offer_ids": offers, "filters": filters }))
            }
            Call::Revive(role) => ("REVIVE", "revive", json!({ "roles": [role] })),
            Call::Suppress(role) => ("SUPPRESS", "suppress", json!({ "roles": [role] })),
            Call::Kill { task, agent, grace } => {
                let mut body = json!({ "task_id": id(task.as_str()), "agent_id": id(agent.as_str()) });
                if let Some(grace) = grace {
                    body["kill_policy"] = kill_policy(*grace);
                }
                ("KILL", "kill", body)
            }
            Call::Acknowledge { task, agent, update: UpdateId(number) } => {
                let uuid = BASE64_STANDARD.encode(number.to_be_bytes());
                let body = json!({ "task_id": id(task.as_str()), "agent_id": id(agent.as_str()), "uuid": uuid });
                ("ACKNOWLEDGE", "acknowledge", body)
            }
            Call::Reconcile(tasks) => {
                let one = |(task, agent): &(TaskId, AgentId)| json!({ "task_id": id(task.as_str()), "agent_id": id(agent.as_str()) });
                let tasks: Vec<Value> = tasks.iter().map(one).collect();
                ("RECONCILE", "reconcile", json!({ "tasks": tasks }))
            }
        };
        json!({ "type": kind, "framework_id": id(framework.as_str()), (field): body })
    }
}

/// `KillPolicy`
pub(super) fn kill_policy(grace: Duration) -> Value {
    json!({ "grace_period": { "nanoseconds": u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX) } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::scheduler::{self, Request};
    use crate::master;

    fn read_call(call: &Call) -> Request {
        let text = call.write(&FrameworkId::from("f")).to_string();
        scheduler::read(parse(text.as_bytes()).unwrap(), "m").unwrap()
    }

    #[test]
    fn a_master_understands_every_call() {
        let (task, agent) = (TaskId::from("t"), AgentId::from("a"));
        let second = Duration::from_secs(1);
        let framework = Some(FrameworkId::from("f"));
        let roles = vec![("a".to_owned(), true), ("*".to_owned(), false)];
        let update = read_call(&Call::Update { framework: framework.clone(), roles: roles.clone() });
        let Request::Update(_, declared) = update else { panic!("{update:?}") };
        let suppressed: Vec<bool> = declared.info.roles.values().map(|role| role.suppressed).collect();
        assert_eq!(suppressed, [false, true], "`*` and `a`");
        assert!(declared.info.partition_aware && declared.info.failover_timeout > Duration::from_hours(24));
        let subscribe = subscribe(&Own { framework, ..Own::default() }, &roles);
        assert!(matches!(scheduler::read(subscribe, "m").unwrap(), Request::Subscribe(_)));

        let call = |call: Call| match read_call(&call) {
            Request::Call(_, call) => call,
            other => panic!("{other:?}"),
        };
        assert!(matches!(call(Call::Revive("a".into())), master::Call::Revive(roles) if roles == ["a"]));
        assert!(matches!(call(Call::Suppress("a".into())), master::Call::Suppress(roles) if roles == ["a"]));
        let kill = call(Call::Kill { task: task.clone(), agent: agent.clone(), grace: Some(second) });
        assert!(matches!(kill, master::Call::Kill { grace: Some(grace), agent: Some(_), .. } if grace == second));
        let acknowledge = Call::Acknowledge { task: task.clone(), agent: agent.clone(), update: UpdateId(7) };
        assert!(matches!(call(acknowledge), master::Call::Acknowledge { update: UpdateId(7), .. }));
        let reconcile = call(Call::Reconcile(vec![(task, agent)]));
        assert!(matches!(reconcile, master::Call::Reconcile(tasks) if tasks.len() == 1));
        let decline = call(Call::Decline { offers: vec!["m-O4294967297".to_owned()], refuse: second });
        assert!(matches!(decline, master::Call::Decline { refuse, .. } if refuse == second));
    }

    #[test]
    fn what_a_master_says_is_read_or_refused() {
        let offer = r#"{"type": "OFFERS", "offers": {"offers": [{"id": {"value": "o"}, "agent_id": {"value": "a"},
            "allocation_info": {"role": "r"}, "resources": [{"name": "cpus", "scalar": {"value": 1.5}}],
            "attributes": [{"name": "zone", "type": "TEXT", "text": {"value": "b"}}]}]}}"#;
        let Event::Offers(offers) = read(offer.as_bytes()).unwrap() else { panic!() };
        assert_eq!((&*offers[0].role, &*offers[0].attributes["zone"]), ("r", "b"));
        let update = r#"{"type": "UPDATE", "update": {"status": {"task_id": {"value": "t"}, "state": "TASK_LOST",
            "agent_id": null, "message": null, "uuid": "AAAAAAAAAAAAAAAAAAAABw=="}}}"#;
        let Event::Update(status) = read(update.as_bytes()).unwrap() else { panic!() };
        assert_eq!((status.state, status.update, status.agent), (TaskState::Lost, Some(UpdateId(7)), None));
        assert!(matches!(read(br#"{"type": "NEWS"}"#), Ok(Event::Other)));
        for wrong in [r#"{"type": "UPDATE"}"#, r#"{"type": "OFFERS", "offers": 7}"#, "7", ""] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
