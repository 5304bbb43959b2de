//! Tasks and what is said of them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AgentId, ExecutorId, FrameworkId, TaskId};
use crate::allocator::Decision;
use crate::resources::Resources;

/// What a framework launches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Its id.
    pub id: TaskId,
    /// The agent whose offer it uses.
    pub agent: AgentId,
    /// What it may use.
    pub resources: Resources,
    /// What runs it, if that is not the agent itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<Arc<ExecutorInfo>>,
    /// What to run, without the executor. The master does not look into it.
    pub payload: Arc<str>,
}

/// A program of a framework's own that runs its tasks on an agent: once for all of those that name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorInfo {
    /// Its id.
    pub id: ExecutorId,
    /// What it may use besides what its tasks do.
    pub resources: Resources,
    /// What it is. The master does not look into it.
    pub payload: Arc<str>,
}

/// Where a task is in its life. The names are those of the Mesos API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// Sent to the agent.
    Staging,
    /// The agent is making it.
    Starting,
    /// It runs.
    Running,
    /// It was asked to end.
    Killing,
    /// It ended well.
    Finished,
    /// It ended badly.
    Failed,
    /// It was ended.
    Killed,
    /// It was never right.
    Error,
    /// It is not known what became of it; said to frameworks that are not partition-aware instead of what follows.
    Lost,
    /// It never reached the agent.
    Dropped,
    /// Its agent cannot be reached. It may come back.
    Unreachable,
    /// It is known not to run.
    Gone,
    /// Its agent is gone, a person says.
    GoneByOperator,
    /// The master has never heard of it, or no longer remembers.
    Unknown,
}

impl TaskState {
    /// Every state.
    const ALL: [TaskState; 14] = [
        TaskState::Staging,
        TaskState::Starting,
        TaskState::Running,
        TaskState::Killing,
        TaskState::Finished,
        TaskState::Failed,
        TaskState::Killed,
        TaskState::Error,
        TaskState::Lost,
        TaskState::Dropped,
        TaskState::Unreachable,
        TaskState::Gone,
        TaskState::GoneByOperator,
        TaskState::Unknown,
    ];

    /// Whether the task has ended, for good.
    pub fn is_terminal(self) -> bool {
        match self {
            TaskState::Staging
            | TaskState::Starting
            | TaskState::Running
            | TaskState::Killing
            | TaskState::Unreachable
            | TaskState::Unknown => false,
            TaskState::Finished
            | TaskState::Failed
            | TaskState::Killed
            | TaskState::Error
            | TaskState::Lost
            | TaskState::Dropped
            | TaskState::Gone
            | TaskState::GoneByOperator => true,
        }
    }

    /// Whether a task in it uses something of an agent that takes part.
    pub fn holds(self) -> bool {
        !self.is_terminal() && self != TaskState::Unreachable
    }

    /// Whether it is one that whoever runs the task can tell of.
    pub fn is_of_executors(self) -> bool {
        match self {
            TaskState::Starting
            | TaskState::Running
            | TaskState::Killing
            | TaskState::Finished
            | TaskState::Failed
            | TaskState::Killed
            | TaskState::Error
            | TaskState::Lost
            | TaskState::Dropped
            | TaskState::Gone => true,
            TaskState::Staging | TaskState::Unreachable | TaskState::GoneByOperator | TaskState::Unknown => false,
        }
    }

    /// Its name in the Mesos API.
    pub fn name(self) -> &'static str {
        match self {
            TaskState::Staging => "TASK_STAGING",
            TaskState::Starting => "TASK_STARTING",
            TaskState::Running => "TASK_RUNNING",
            TaskState::Killing => "TASK_KILLING",
            TaskState::Finished => "TASK_FINISHED",
            TaskState::Failed => "TASK_FAILED",
            TaskState::Killed => "TASK_KILLED",
            TaskState::Error => "TASK_ERROR",
            TaskState::Lost => "TASK_LOST",
            TaskState::Dropped => "TASK_DROPPED",
            TaskState::Unreachable => "TASK_UNREACHABLE",
            TaskState::Gone => "TASK_GONE",
            TaskState::GoneByOperator => "TASK_GONE_BY_OPERATOR",
            TaskState::Unknown => "TASK_UNKNOWN",
        }
    }

    /// The state of this name.
    pub fn named(name: &str) -> Option<TaskState> {
        TaskState::ALL.into_iter().find(|state| state.name() == name)
    }

    /// What a framework is told: the finer states are known only to those that say they can tell them apart.
    #[must_use]
    pub fn told(self, partition_aware: bool) -> TaskState {
        match self {
            TaskState::Dropped
            | TaskState::Unreachable
            | TaskState::Gone
            | TaskState::GoneByOperator
            | TaskState::Unknown
                if !partition_aware =>
            {
                TaskState::Lost
            }
            told => told,
        }
    }
}

/// Why the master says something about a task itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The offers it was to use are not valid.
    InvalidOffers,
    /// The task itself is wrong.
    TaskInvalid,
    /// The agent came back without it.
    AgentReregistered,
    /// The agent is not heard of.
    AgentRemoved,
    /// The framework asked.
    Reconciliation,
}

impl Reason {
    /// Its name in the Mesos API.
    pub fn name(self) -> &'static str {
        match self {
            Reason::InvalidOffers => "REASON_INVALID_OFFERS",
            Reason::TaskInvalid => "REASON_TASK_INVALID",
            Reason::AgentReregistered => "REASON_AGENT_REREGISTERED",
            Reason::AgentRemoved => "REASON_AGENT_REMOVED",
            Reason::Reconciliation => "REASON_RECONCILIATION",
        }
    }
}

/// The number by which an update is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UpdateId(pub u128);

impl fmt::Debug for UpdateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// What is said of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// The task.
    pub task: TaskId,
    /// Its agent, if that is known.
    pub agent: Option<AgentId>,
    /// Its state.
    pub state: TaskState,
    /// What the update is acknowledged by; the master's own updates are not acknowledged.
    pub update: Option<UpdateId>,
    /// Why the master says it.
    pub reason: Option<Reason>,
    /// For people.
    pub message: String,
    /// What else its agent says, for the framework: a JSON object, or nothing. The master does not look into it.
    pub details: Arc<str>,
}

/// A task the master knows.
#[derive(Debug, Clone)]
pub struct Task {
    /// What was launched.
    pub info: TaskInfo,
    /// Its framework.
    pub framework: FrameworkId,
    /// In which of the framework's roles.
    pub role: Arc<str>,
    /// The latest state its agent knows.
    pub state: TaskState,
    /// Why it is where it is; not known of tasks that were launched by an earlier master.
    pub decision: Option<Arc<Decision>>,
    /// Whether its framework wants it killed.
    pub kill: bool,
    /// Whether its framework was told that it is lost, though it runs. It is ended.
    pub(super) lost: bool,
    /// The update that tells of its end: once that is acknowledged, the task is forgotten.
    pub(super) last_update: Option<UpdateId>,
}

impl Task {
    /// Whether it uses something of an agent that takes part.
    pub fn holds(&self) -> bool {
        self.state.holds()
    }
}
