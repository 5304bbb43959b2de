//! What masters, frameworks and agents say to each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::observers::Notice;
use super::registry::Change;
use super::{
    AgentId, Connection, ExecutorId, ExecutorInfo, FrameworkId, TaskId, TaskInfo, TaskState, TaskStatus, UpdateId,
};
use crate::allocator::{OfferKey, Subscription};
use crate::api::agent::{Answer, Question};
use crate::attributes::Attributes;
use crate::resources::Resources;

/// What a framework says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FrameworkInfo {
    /// For people.
    pub name: String,
    /// Its roles, and what it wants in each.
    pub roles: BTreeMap<String, Subscription>,
    /// How long its tasks live on after it disconnected.
    pub failover_timeout: Duration,
    /// Whether it can tell an unreachable task from a lost one.
    pub partition_aware: bool,
    /// Whose it is, if it said or proved that.
    #[serde(default)]
    pub principal: Option<Arc<str>>,
}

/// What a framework asks for, once it is subscribed.
#[derive(Debug, Clone)]
pub enum Call {
    /// It is over: all its tasks are to be killed.
    Teardown,
    /// Uses offers of one agent for tasks; what is left of them is refused for a while.
    Accept {
        /// The offers.
        offers: Vec<OfferKey>,
        /// What to launch.
        tasks: Vec<TaskInfo>,
        /// For how long the rest is refused.
        refuse: Duration,
    },
    /// Does not want offers.
    Decline {
        /// The offers.
        offers: Vec<OfferKey>,
        /// For how long.
        refuse: Duration,
    },
    /// Wants no offers in some roles; in none, if none is named.
    Suppress(Vec<String>),
    /// Wants offers again, of what it refused too.
    Revive(Vec<String>),
    /// Changes what it said of itself.
    Update(FrameworkInfo),
    /// Wants a task to end.
    Kill {
        /// The task.
        task: TaskId,
        /// Its agent, if the framework knows.
        agent: Option<AgentId>,
        /// How long it may take to end by itself; as long as the task says, if none.
        grace: Option<Duration>,
    },
    /// Has taken note of an update.
    Acknowledge {
        /// The agent it is from.
        agent: AgentId,
        /// The task it is about.
        task: TaskId,
        /// The update.
        update: UpdateId,
    },
    /// Wants to be told the state of tasks; of all it has, if none is named.
    Reconcile(Vec<(TaskId, Option<AgentId>)>),
    /// Says something to what runs on an agent.
    Message {
        /// The agent.
        agent: AgentId,
        /// To whom there.
        executor: ExecutorId,
        /// What.
        data: Arc<[u8]>,
    },
    /// Wants an executor to end, with its tasks.
    ShutDown {
        /// On which agent.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
    },
}

/// What a framework is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// It is subscribed.
    Subscribed {
        /// Under this id.
        framework: FrameworkId,
        /// How often it will hear from the master.
        heartbeat: Duration,
    },
    /// It may use these.
    Offers(Vec<OfferEvent>),
    /// It may no longer use this.
    Rescind(OfferKey),
    /// The state of a task.
    Update(TaskStatus),
    /// Something that runs on an agent has something to say.
    Message {
        /// The agent.
        agent: AgentId,
        /// Who there.
        executor: ExecutorId,
        /// What.
        data: Arc<[u8]>,
    },
    /// An agent is gone.
    Failure(AgentId),
    /// An executor has ended.
    ExecutorFailure {
        /// On which agent.
        agent: AgentId,
        /// Which.
        executor: ExecutorId,
        /// Its exit code, if it has one.
        status: Option<i32>,
    },
    /// The framework is no longer subscribed.
    Error(String),
    /// The connection is alive.
    Heartbeat,
}

/// An offer, as a framework sees it.
#[derive(Debug, Clone)]
pub struct OfferEvent {
    /// What it is accepted by.
    pub key: OfferKey,
    /// Whose resources they are.
    pub agent: AgentId,
    /// That agent, as it describes itself.
    pub info: Arc<AgentInfo>,
    /// In which role they are offered.
    pub role: Arc<str>,
    /// What is offered.
    pub resources: Resources,
    /// The framework's executors there.
    pub executors: Vec<ExecutorId>,
}

/// What an agent says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Where it is.
    pub hostname: String,
    /// The port it listens on there.
    pub port: u16,
    /// What it has.
    pub resources: Resources,
    /// What it is.
    pub attributes: Attributes,
}

/// An agent wants to take part. All that the master said to it over earlier connections, and that it has not done yet, it will not do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Registration {
    /// Its id, if it has one.
    pub id: Option<AgentId>,
    /// What it is.
    pub info: AgentInfo,
    /// The frameworks of its executors and tasks.
    pub frameworks: BTreeMap<FrameworkId, FrameworkInfo>,
    /// The executors that have not ended.
    #[serde(default)]
    pub executors: Vec<ExecutorReport>,
    /// The tasks that run, and those whose end was not acknowledged yet.
    pub tasks: Vec<TaskReport>,
}

/// An executor, as its agent knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecutorReport {
    /// Its framework.
    pub framework: FrameworkId,
    /// In which role.
    pub role: Arc<str>,
    /// The executor.
    pub info: Arc<ExecutorInfo>,
}

/// A task, as its agent knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskReport {
    /// Its framework.
    pub framework: FrameworkId,
    /// In which role.
    pub role: Arc<str>,
    /// The task.
    pub info: TaskInfo,
    /// Its latest state.
    pub state: TaskState,
}

/// What an agent says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromAgent {
    /// It is alive.
    Heartbeat,
    /// The state of a task; said again until it is acknowledged, one update of a task at a time.
    Update {
        /// The task's framework.
        framework: FrameworkId,
        /// What is said.
        status: TaskStatus,
        /// The task's latest state, of which later updates will tell.
        latest: TaskState,
    },
    /// Something that runs on it has something to say to its framework.
    Message {
        /// The framework.
        framework: FrameworkId,
        /// Who.
        executor: ExecutorId,
        /// What.
        #[serde(with = "in_base64")]
        data: Arc<[u8]>,
    },
    /// An executor has ended: said once. Who was not there to hear it finds it missing when the agent registers.
    ExecutorEnded {
        /// Whose.
        framework: FrameworkId,
        /// Which.
        executor: ExecutorId,
        /// Its exit code, if it has one.
        status: Option<i32>,
    },
    /// It is no longer what it was.
    Attributes(Attributes),
    /// What it was asked, it answers. This is between the program round the master and the agent.
    Answer {
        /// Which question.
        number: u64,
        /// What.
        answer: Answer,
    },
}

/// What an agent is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToAgent {
    /// It takes part, under this id.
    Registered(AgentId),
    /// The master is alive: its answer to an agent that is.
    Heartbeat,
    /// It cannot take part as it is.
    Refused(String),
    /// It is to end all its tasks, and never come back.
    ShutDown(String),
    /// To run a task.
    Run {
        /// For whom.
        framework: FrameworkId,
        /// What to say of it when the agent comes to another master.
        framework_info: Arc<FrameworkInfo>,
        /// In which role.
        role: Arc<str>,
        /// What.
        task: TaskInfo,
        /// Whether to launch its executor as well. If not, that is there, or has just ended: then the task does not run, because
        /// nobody has counted what another executor would use.
        #[serde(default)]
        launch_executor: bool,
    },
    /// To end a task.
    Kill {
        /// Whose.
        framework: FrameworkId,
        /// Which.
        task: TaskId,
        /// How long it may take to end by itself; as long as the task says, if none.
        grace: Option<Duration>,
    },
    /// To end all executors and tasks of a framework.
    ShutDownFramework(FrameworkId),
    /// To end an executor, with its tasks.
    ShutDownExecutor {
        /// Whose.
        framework: FrameworkId,
        /// Which.
        executor: ExecutorId,
    },
    /// An update has arrived.
    Acknowledge {
        /// At whom.
        framework: FrameworkId,
        /// About which task.
        task: TaskId,
        /// Which.
        update: UpdateId,
    },
    /// A framework says something to what runs there.
    Message {
        /// Who.
        framework: FrameworkId,
        /// To whom.
        executor: ExecutorId,
        /// What.
        #[serde(with = "in_base64")]
        data: Arc<[u8]>,
    },
    /// Somebody wants to know something of it.
    Ask {
        /// By which number the answer is known.
        number: u64,
        /// What.
        question: Question,
    },
}

/// What the program round the master has to do, in this order.
#[derive(Debug, Clone)]
pub enum Output {
    /// Make this durable before anything that follows.
    Store(Change),
    /// Send to a framework.
    Framework(Connection, Event),
    /// Send to an agent.
    Agent(Connection, ToAgent),
    /// Send to all of these observers.
    Observers(Vec<Connection>, Notice),
    /// Close a connection, after what was sent over it.
    Close(Connection),
}

/// Bytes as a text: JSON would have a number for each.
mod in_base64 {
    use std::borrow::Cow;
    use std::sync::Arc;

    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(data: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(data))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        BASE64_STANDARD.decode(&*text).map(Arc::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_about_as_long_as_what_they_carry() {
        let data: Arc<[u8]> = vec![200; 3000].into();
        let up = FromAgent::Message { framework: "f".into(), executor: "e".into(), data: Arc::clone(&data) };
        let text = serde_json::to_string(&up).unwrap();
        assert!(text.len() < 4100, "{}", text.len());
        assert_eq!(serde_json::from_str::<FromAgent>(&text).unwrap(), up);
        let down = ToAgent::Message { framework: "f".into(), executor: "e".into(), data: Arc::clone(&data) };
        let text = serde_json::to_string(&down).unwrap();
        assert!(text.len() < 4100, "{}", text.len());
        let ToAgent::Message { data: read, .. } = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        assert_eq!(read, data);
    }
}
