//! What is remembered of jobs and their tasks.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::manifest::{Manifest, Name};
use crate::master::{AgentId, TaskId, TaskState};

/// How many attempts of a task, and events of a job, are remembered.
const MOST_REMEMBERED: usize = 20;

/// Which task: `JOB.GROUP.INDEX`, as people write it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey {
    /// The job.
    pub job: Name,
    /// The kind of task in it.
    pub group: Name,
    /// Which of these.
    pub index: u32,
}

impl TaskKey {
    /// The task one of whose attempts has this id.
    pub fn of(launch: &TaskId) -> Option<TaskKey> {
        let mut parts = launch.as_str().split('.');
        let (job, group) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let index = parts.next()?.parse().ok()?;
        Some(TaskKey { job: Name::try_from(job).ok()?, group: Name::try_from(group).ok()?, index })
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.job, self.group, self.index)
    }
}

/// How a job, or a task, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All went well.
    Finished,
    /// Not all did.
    Failed,
    /// Somebody stopped it.
    Stopped,
}

impl Outcome {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Finished => "finished",
            Outcome::Failed => "failed",
            Outcome::Stopped => "stopped",
        }
    }
}

/// A job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// Its place among all jobs ever submitted.
    pub number: u64,
    /// What was submitted, with the replicas that were last asked for.
    pub manifest: Manifest,
    /// When.
    pub submitted: Timestamp,
    /// Whether it is being stopped.
    pub stopping: Option<Grace>,
    /// How and when it ended.
    pub ended: Option<(Outcome, Timestamp)>,
    /// What people did with it, the latest last.
    pub events: VecDeque<(Timestamp, String)>,
}

/// That something is to end.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Grace {
    /// How long it may take to end by itself; as long as the manifest says, if none.
    pub time: Option<Duration>,
}

impl Job {
    /// Notes what happened.
    pub fn note(&mut self, time: Timestamp, event: String) {
        push(&mut self.events, (time, event));
    }
}

/// A task of a job, through all its attempts. By default one that has not run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Task {
    /// Where it is in its life.
    pub stage: Stage,
    /// How many attempts in a row have failed.
    pub failures: u32,
    /// Whether it is to be forgotten once it has ended: there are to be fewer.
    pub surplus: bool,
    /// The attempts that are over, the latest last.
    pub attempts: VecDeque<Attempt>,
}

impl Task {
    /// Its present attempt.
    pub fn launch(&self) -> Option<&Launch> {
        if let Stage::Launched(launch) = &self.stage { Some(launch) } else { None }
    }

    /// The same, to be changed.
    pub fn launch_mut(&mut self) -> Option<&mut Launch> {
        if let Stage::Launched(launch) = &mut self.stage { Some(launch) } else { None }
    }

    /// The agents on which it has run, as far as that is remembered.
    pub fn ran_on(&self) -> impl Iterator<Item = &AgentId> {
        let present = self.launch().filter(|launch| launch.running.is_some()).map(|launch| &launch.agent);
        let past = self.attempts.iter().filter(|attempt| attempt.running.is_some()).map(|attempt| &attempt.agent);
        past.chain(present)
    }

    /// Whether it is over, and its last attempt may run all the same: on an agent that could not be told.
    pub fn may_run(&self) -> bool {
        let unreachable = |attempt: &Attempt| attempt.state == TaskState::Unreachable;
        matches!(self.stage, Stage::Ended(_)) && self.attempts.back().is_some_and(unreachable)
    }

    /// Remembers an attempt that is over.
    pub fn remember(&mut self, attempt: Attempt) {
        push(&mut self.attempts, attempt);
    }
}

/// Where a task is in its life.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub enum Stage {
    /// It waits for an offer, or first for a while.
    #[default]
    Waiting,
    /// It was launched.
    Launched(Launch),
    /// It is over.
    Ended(Outcome),
}

/// An attempt that is under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// By what name the master knows it; no two attempts ever have the same.
    pub id: TaskId,
    /// Where.
    pub agent: AgentId,
    /// What the failure domain of that agent is, if tasks are spread.
    pub domain: Option<String>,
    /// When it was launched.
    pub launched: Timestamp,
    /// Since when it runs.
    pub running: Option<Timestamp>,
    /// Its latest state.
    pub state: TaskState,
    /// The name of its sandbox.
    pub sandbox: Option<String>,
    /// Whether it is to end.
    pub stop: Option<Grace>,
    /// The numbers of its ports.
    pub ports: BTreeMap<Name, u16>,
    /// Whether it is well, if anybody has found out.
    #[serde(default)]
    pub healthy: Option<bool>,
}

/// An attempt that is over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// By what name the master knew it.
    pub id: TaskId,
    /// Where it was.
    pub agent: AgentId,
    /// When it was launched.
    pub launched: Timestamp,
    /// Since when it ran.
    pub running: Option<Timestamp>,
    /// When its end became known.
    pub ended: Timestamp,
    /// Its last state.
    pub state: TaskState,
    /// What was said of its end.
    pub message: String,
    /// The name of its sandbox.
    pub sandbox: Option<String>,
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == MOST_REMEMBERED {
        queue.pop_front();
    }
    queue.push_back(item);
}
