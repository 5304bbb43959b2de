//! Executors: programs of frameworks, each in a sandbox of its own, that run tasks.
//!
//! ```text
//! the first task that names it ─▶ starting ─▶ registering ── subscribes ─▶ there ◀─┐
//!                                    │             │ too late       │ agent restarts: subscribes again, or is too late
//!                                    ▼             ▼                └──────────────┘
//!                              its sandbox has ended, with all its tasks ◀─ shut down, or by itself
//! ```
//!
//! Its sandbox has limits for itself and its tasks, which are told of when it has them: a task is sent to an executor that is
//! subscribed and whose limits are those of all tasks it then has.
//!
//! What it says of a task is acknowledged once it is durable. It repeats what was not acknowledged when it subscribes again, and
//! says which tasks it has: so no update is lost, and a task that never reached it is sent again.

use std::sync::Arc;
use std::time::Duration;

use berth_engine::options::Network;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Effect, Past, Task, Tasks, Update};
use crate::agent::command::{self, Surrounding};
use crate::agent::files;
use crate::agent::sandboxes::End;
use crate::api::executor::{self, Event};
use crate::master::{
    ExecutorId, ExecutorInfo, ExecutorReport, FrameworkId, FrameworkInfo, FromAgent, TaskId, TaskState,
};
use crate::resources::Quantities;

/// How long an executor may take to subscribe once its sandbox has started, and again when its agent is back.
const REGISTRATION: Duration = Duration::from_mins(1);
const REREGISTRATION: Duration = Duration::from_secs(15);
/// How many updates of a task may wait for the framework.
const MOST_UPDATES: usize = 100;
/// How many bytes the updates of all its tasks may have that wait for the framework. What says that a task has ended may take as
/// much again.
const MOST_WAITING: usize = 16 << 20;
/// Of how many updates of a task it is remembered that its executor has said them.
const MOST_RECEIVED: usize = 2 * MOST_UPDATES;

/// How often the limits of a sandbox are tried to be changed before the tasks end that wait for it.
const MOST_TRIES: u32 = 5;

const TERMINATED: &str = "REASON_EXECUTOR_TERMINATED";
const NOT_UPDATED: &str = "REASON_CONTAINER_UPDATE_FAILED";

/// What is remembered of an executor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Executor {
    framework: FrameworkId,
    framework_info: FrameworkInfo,
    role: Arc<str>,
    info: Arc<ExecutorInfo>,
    /// Whether its sandbox has started.
    started: bool,
    /// Whether it has ever subscribed.
    registered: bool,
    /// Why it is to end, if it is.
    ending: Option<Ending>,
    /// The limits that its sandbox has, as far as this agent knows.
    #[serde(skip)]
    limits: Option<Quantities>,
    /// How often they were to be changed since, in vain.
    #[serde(skip)]
    tries: u32,
    /// Whether it has subscribed since this agent is there.
    #[serde(skip)]
    heard: bool,
    /// Whether it is subscribed now.
    #[serde(skip)]
    subscribed: bool,
}

/// Why an executor is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Ending {
    /// Somebody asked.
    Asked,
    /// It did not subscribe in time.
    Silent,
    /// It did not come back in time.
    Lost,
}

/// Why a call of an executor is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its sandbox has ended.
    #[error("the executor is over")]
    Over,
    /// It says that it is another.
    #[error("framework_id and executor_id: the token is that of executor {1} of framework {0}")]
    Another(FrameworkId, ExecutorId),
    /// It says something before it has subscribed.
    #[error("the executor is not subscribed: SUBSCRIBE comes first")]
    NotSubscribed,
    /// It says more than its framework takes note of.
    #[error(
        "update.status: {MOST_UPDATES} updates of task {0} wait to be acknowledged by its framework; try again in a second"
    )]
    TooMany(TaskId),
    /// The same, of all its tasks together.
    #[error(
        "update.status: {} MiB of updates of the executor's tasks wait to be acknowledged by its framework; try again in a second",
        MOST_WAITING >> 20
    )]
    TooMuch,
    /// It says more to its framework than the master reads.
    #[error("message: what executors say to their frameworks waits for the master; try again in a second")]
    Busy,
}

/// How tasks end with their executor.
struct Fate<'a> {
    state: TaskState,
    reason: &'a str,
    message: String,
    /// The executor's exit code.
    status: Option<i32>,
}

impl Executor {
    /// Whose it is.
    pub fn framework(&self) -> (&FrameworkId, &FrameworkInfo) {
        (&self.framework, &self.framework_info)
    }

    /// What a master is told of it.
    pub fn report(&self) -> ExecutorReport {
        let (framework, role) = (self.framework.clone(), Arc::clone(&self.role));
        ExecutorReport { framework, role, info: Arc::clone(&self.info) }
    }
}

impl Tasks {
    /// The name of an executor's sandbox.
    pub(super) fn find_executor(&self, framework: &FrameworkId, id: &ExecutorId) -> Option<String> {
        let mut all = self.executors.iter();
        let found = all.find(|(_, known)| known.framework == *framework && known.info.id == *id);
        found.map(|(name, _)| name.clone())
    }

    /// The tasks of an executor that have not ended.
    fn tasks_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a String, &'a Task)> {
        let of = move |task: &Task| task.executor.as_deref() == Some(name) && !task.state.is_terminal();
        self.tasks.iter().filter(move |(_, task)| of(task))
    }

    fn names_of(&self, name: &str) -> Vec<String> {
        self.tasks_of(name).map(|(name, _)| name.clone()).collect()
    }

    /// How much the sandbox of an executor is to have.
    fn limits_of(&self, name: &str) -> Quantities {
        let mut used = self.executors[name].info.resources.quantities;
        self.tasks_of(name).for_each(|(_, task)| used += &task.info.resources.quantities);
        command::limits(&used)
    }

    /// A new task is its executor's to run, which is there, or to be launched as well.
    pub(super) fn hand_over(&mut self, name: &str, launch: bool) {
        let Some(Task { framework, framework_info, role, info, .. }) = self.tasks.get(name).cloned() else { return };
        let Some(wanted) = info.executor.clone() else { return };
        let known = self.find_executor(&framework, &wanted.id);
        if let Err(wrong) = command::check_of_executor(&info) {
            if known.is_none() && launch {
                self.say_ended(framework, wanted.id.clone(), None);
            }
            return self.change(name, TaskState::Error, format!("the task cannot be run: {wrong}"));
        }
        let launched = launch && known.is_none();
        let known = known.filter(|known| self.executors[known].ending.is_none());
        let Some(executor) = known.or_else(|| launched.then(|| self.new_name())) else {
            let message = "its executor has ended, or is about to".to_owned();
            return self.change_because(name, TaskState::Dropped, message, Some(TERMINATED));
        };
        if let Some(task) = self.tasks.get_mut(name) {
            task.executor = Some(executor.clone());
        }
        if !launched {
            return self.limit(&executor);
        }
        let new = Executor {
            framework,
            framework_info,
            role,
            info: wanted,
            started: false,
            registered: false,
            ending: None,
            limits: None,
            tries: 0,
            heard: false,
            subscribed: false,
        };
        self.executors.insert(executor.clone(), new);
        self.changed_executors.insert(executor.clone());
        self.start_executor(&executor);
    }

    fn start_executor(&mut self, name: &str) {
        let limits = self.limits_of(name);
        let executor = &self.executors[name];
        let directory = files::directory(&self.means.directory, name);
        let surrounding = Surrounding {
            framework: &executor.framework,
            agent: self.id.as_ref(),
            endpoint: self.means.endpoint,
            token: self.means.tokens.of(name),
            directory: &directory,
        };
        let image = self.means.default_image.as_deref();
        match command::read_executor(&executor.info, limits, image, surrounding) {
            Ok(command) => {
                let start = self.start(name, command, &Network::Host);
                self.effects.push(start);
                self.executor_mut(name).limits = Some(limits);
            }
            Err(wrong) => {
                let message = format!("the executor cannot be run: {}", wrong.within("executor"));
                self.conclude(
                    name,
                    &Fate { state: TaskState::Error, reason: "REASON_TASK_INVALID", message, status: None },
                );
            }
        }
    }

    /// Executors are looked up by names that were found among them.
    fn executor_mut(&mut self, name: &str) -> &mut Executor {
        self.executors.get_mut(name).expect("the executor is there")
    }

    /// The agent was away, and an executor has no sandbox.
    pub(super) fn executor_missing(&mut self, name: &str) {
        let Executor { started, ending, .. } = self.executors[name];
        if !started && ending.is_none() {
            return self.start_executor(name);
        }
        self.executor_ended(name, &End::Broken("its sandbox is gone".to_owned()));
    }

    /// An attempt to start an executor is over.
    pub(super) fn executor_started(&mut self, name: &str, result: Result<(), String>) {
        if let Err(message) = result {
            let reason = "REASON_CONTAINER_LAUNCH_FAILED";
            return self.conclude(name, &Fate { state: TaskState::Failed, reason, message, status: None });
        }
        let executor = self.executor_mut(name);
        executor.started = true;
        let (ending, heard) = (executor.ending, executor.heard);
        let within = if executor.registered { REREGISTRATION } else { REGISTRATION };
        self.changed_executors.insert(name.to_owned());
        match ending {
            Some(_) => return self.end_executor(name),
            None if !heard => self.effects.push(Effect::Await(name.to_owned(), within)),
            None => {}
        }
        // There may be more tasks, or fewer, than when it was about to start.
        self.limit(name);
    }

    /// The sandbox of an executor has ended.
    pub(super) fn executor_ended(&mut self, name: &str, end: &End) {
        let (state, reason, why) = match (end, self.executors[name].ending) {
            (_, Some(Ending::Silent)) => {
                (TaskState::Failed, "REASON_EXECUTOR_REGISTRATION_TIMEOUT", "its executor did not subscribe in time")
            }
            (_, Some(Ending::Lost)) => {
                (TaskState::Failed, "REASON_EXECUTOR_REREGISTRATION_TIMEOUT", "its executor did not come back in time")
            }
            (_, Some(Ending::Asked)) => (TaskState::Gone, TERMINATED, "its executor was shut down"),
            (End::OutOfMemory, None) => {
                (TaskState::Failed, "REASON_CONTAINER_LIMITATION_MEMORY", "its executor has ended")
            }
            (End::Exited(_) | End::Broken(_), None) => (TaskState::Failed, TERMINATED, "its executor has ended"),
        };
        let status = if let End::Exited(code) = end { Some(*code) } else { None };
        self.conclude(name, &Fate { state, reason, message: format!("{why}: {end}"), status });
    }

    /// An executor is over, and so are its tasks.
    fn conclude(&mut self, name: &str, fate: &Fate) {
        for task in self.names_of(name) {
            let state = if self.tasks[&task].kill { TaskState::Killed } else { fate.state };
            self.change_because(&task, state, fate.message.clone(), Some(fate.reason));
        }
        let Some(Executor { framework, info, .. }) = self.executors.remove(name) else { return };
        self.changed_executors.insert(name.to_owned());
        // Commands have an executor of the same name, as in Mesos: their files are found by it, as these are.
        let task = TaskId::from(info.id.as_str());
        self.remove(Past { framework: framework.clone(), task, sandbox: name.to_owned() });
        self.say_ended(framework, info.id.clone(), fate.status);
    }

    fn say_ended(&mut self, framework: FrameworkId, executor: ExecutorId, status: Option<i32>) {
        self.effects.push(Effect::Say(Box::new(FromAgent::ExecutorEnded { framework, executor, status })));
    }

    /// The tasks of an executor are others than before.
    fn limit(&mut self, name: &str) {
        let Some(executor) = self.executors.get(name) else { return };
        let limits = self.limits_of(name);
        if executor.started && executor.ending.is_none() && executor.limits != Some(limits) {
            self.effects.push(Effect::Limit(name.to_owned(), limits));
        }
        self.send_waiting(name);
    }

    /// The sandbox of an executor has other limits now.
    pub fn limited(&mut self, name: &str, limits: Quantities) {
        if let Some(executor) = self.executors.get_mut(name) {
            executor.limits = Some(limits);
            executor.tries = 0;
            self.limit(name);
        }
    }

    /// The limits of an executor's sandbox cannot be changed. It is tried again, with fewer tasks in the end: nobody waits for ever
    /// for what they may not use.
    pub fn not_limited(&mut self, name: &str, why: &str) {
        let Some(executor) = self.executors.get_mut(name) else { return };
        executor.tries += 1;
        if executor.tries == 1 {
            tracing::warn!(error = why, name, "the limits of an executor's sandbox cannot be changed");
        }
        // Some of them may have been.
        executor.limits = None;
        if executor.tries.is_multiple_of(MOST_TRIES) {
            let message = format!("the limits of its executor's sandbox cannot be changed: {why}");
            for task in self.names_of(name) {
                if self.tasks.get(&task).is_some_and(|task| task.state == TaskState::Staging && !task.sent) {
                    self.change_because(&task, TaskState::Failed, message.clone(), Some(NOT_UPDATED));
                }
            }
        }
        self.limit(name);
    }

    /// Sends an executor the tasks that it does not have, if it may use what they do.
    fn send_waiting(&mut self, name: &str) {
        let limits = self.limits_of(name);
        let executor = &self.executors[name];
        if !executor.subscribed || executor.ending.is_some() || executor.limits != Some(limits) {
            return;
        }
        for task in self.names_of(name) {
            let Some(task) = self.tasks.get_mut(&task) else { continue };
            if task.state == TaskState::Staging && !task.sent && !task.kill {
                task.sent = true;
                let framework = executor::framework(&task.framework, &task.framework_info);
                let event = Event::Launch { framework, task: task.info.clone() };
                self.effects.push(Effect::Tell(name.to_owned(), Box::new(event)));
            }
        }
    }

    /// Says something to an executor, if it is there to hear it.
    pub(super) fn tell(&mut self, name: &str, event: Event) {
        if self.executors.get(name).is_some_and(|executor| executor.subscribed) {
            self.effects.push(Effect::Tell(name.to_owned(), Box::new(event)));
        }
    }

    /// A task is to end that an executor has, or is to have. That is noted.
    pub(super) fn kill_by_executor(&mut self, name: &str, grace: Option<Duration>) {
        let Some(Task { executor: Some(executor), sent, state, info, .. }) = self.tasks.get(name) else { return };
        let (executor, id) = (executor.clone(), info.id.clone());
        if *sent || *state != TaskState::Staging {
            return self.tell(&executor, Event::Kill { task: id, grace });
        }
        let known = &self.executors[&executor];
        // One that has not come back yet may have the task.
        if known.registered && !known.heard {
            return;
        }
        let registered = known.registered;
        self.never_sent(name);
        if !registered && self.tasks_of(&executor).next().is_none() {
            return self.shut_down_executor(&executor);
        }
        self.limit(&executor);
    }

    fn never_sent(&mut self, name: &str) {
        let message = "it was to end before its executor had it".to_owned();
        self.change_because(name, TaskState::Killed, message, Some("REASON_TASK_KILLED_DURING_LAUNCH"));
    }

    pub(super) fn shut_down_executors(&mut self, condition: impl Fn(&Executor) -> bool) {
        let names = self.executors.iter().filter(|(_, executor)| condition(executor)).map(|(name, _)| name.clone());
        for name in names.collect::<Vec<_>>() {
            self.shut_down_executor(&name);
        }
    }

    /// An executor is to end, with its tasks.
    pub(super) fn shut_down_executor(&mut self, name: &str) {
        let executor = self.executor_mut(name);
        if executor.ending.is_some() {
            return;
        }
        executor.ending = Some(Ending::Asked);
        let started = executor.started;
        self.changed_executors.insert(name.to_owned());
        // While it is being started there is nothing to end; it will be.
        if started {
            self.end_executor(name);
        }
    }

    fn end_executor(&mut self, name: &str) {
        let executor = &self.executors[name];
        let (grace, subscribed) = (command::executor_grace(&executor.info), executor.subscribed);
        let name = name.to_owned();
        match executor.ending {
            Some(Ending::Asked) if subscribed => {
                self.tell(&name, Event::ShutDown);
                self.effects.push(Effect::StopAfter(name, grace));
            }
            Some(Ending::Asked) => self.effects.push(Effect::Stop(name, grace)),
            _ => self.effects.push(Effect::Stop(name, Duration::ZERO)),
        }
    }

    /// It is time for an executor to have subscribed.
    pub fn awaited(&mut self, name: &str) {
        let Some(executor) = self.executors.get_mut(name).filter(|it| !it.heard && it.ending.is_none()) else { return };
        executor.ending = Some(if executor.registered { Ending::Lost } else { Ending::Silent });
        self.changed_executors.insert(name.to_owned());
        self.end_executor(name);
    }

    /// Whether the executor in a sandbox, which has shown its token, is who it says it is.
    pub fn check_executor(&self, name: &str, request: &executor::Request) -> Result<(), Refusal> {
        let known = self.executors.get(name).ok_or(Refusal::Over)?;
        if known.framework != request.framework || known.info.id != request.executor {
            return Err(Refusal::Another(known.framework.clone(), known.info.id.clone()));
        }
        if !known.heard && !matches!(request.call, executor::Call::Subscribe { .. }) {
            return Err(Refusal::NotSubscribed);
        }
        Ok(())
    }

    /// An executor has subscribed, and said which tasks it has of which nobody acknowledged anything, and which updates nobody
    /// acknowledged. What was about to be said to it is not: who it was said to is no longer there.
    pub fn subscribed(&mut self, name: &str, tasks: &[TaskId], updates: Vec<executor::Update>) {
        let Some(known) = self.executors.get_mut(name) else { return };
        if !std::mem::replace(&mut known.registered, true) {
            self.changed_executors.insert(name.to_owned());
        }
        (known.heard, known.subscribed) = (true, true);
        let subscribed = Event::Subscribed {
            info: Arc::clone(&known.info),
            framework: executor::framework(&known.framework, &known.framework_info),
            agent: self.id.clone(),
            sandbox: name.to_owned(),
        };
        let ending = known.ending.is_some();
        self.effects.retain(|effect| !matches!(effect, Effect::Tell(to, _) if to == name));
        self.tell(name, subscribed);
        for update in updates {
            // What is too much now is not acknowledged, so it is said again.
            let _ = self.said(name, update);
        }
        for task in self.names_of(name) {
            let Some(known) = self.tasks.get_mut(&task) else { continue };
            known.sent = known.state != TaskState::Staging || tasks.contains(&known.info.id);
            match (known.kill, known.sent) {
                (true, true) => {
                    let id = known.info.id.clone();
                    self.tell(name, Event::Kill { task: id, grace: None });
                }
                (true, false) => self.never_sent(&task),
                (false, _) => {}
            }
        }
        if ending {
            self.tell(name, Event::ShutDown);
        } else {
            self.limit(name);
        }
    }

    /// An executor is no longer subscribed.
    pub fn unsubscribed(&mut self, name: &str) {
        if let Some(executor) = self.executors.get_mut(name) {
            executor.subscribed = false;
        }
    }

    /// An executor says what became of a task.
    pub fn said(&mut self, name: &str, update: executor::Update) -> Result<(), Refusal> {
        let executor::Update { task: id, state, id: update, message, details } = update;
        let most = if state.is_terminal() { 2 * MOST_WAITING } else { MOST_WAITING };
        let too_much = self.waiting_of(name) + message.len() + details.len() > most;
        let known = self.tasks.iter_mut().find(|(_, it)| it.executor.as_deref() == Some(name) && it.info.id == id);
        // What is known, or is about a task that is over, is acknowledged again and goes no further.
        if let Some((task, known)) = known.filter(|(_, it)| !it.state.is_terminal() && !it.received.contains(&update)) {
            if known.updates.len() >= MOST_UPDATES && !state.is_terminal() {
                return Err(Refusal::TooMany(id));
            }
            if too_much {
                return Err(Refusal::TooMuch);
            }
            known.received.push_back(update);
            if known.received.len() > MOST_RECEIVED {
                known.received.pop_front();
            }
            known.state = state;
            let task = task.clone();
            let mut details: Value = serde_json::from_str(&details).unwrap_or_else(|_| json!({}));
            details["container_status"] = known.container_status(&task);
            let update = Update { id: update, state, message, details: details.to_string().into(), passing: false };
            if state.is_terminal() && self.shut_down.is_some() {
                self.forget(&task);
            } else {
                self.push(&task, update);
            }
            if state.is_terminal() {
                self.limit(name);
            }
        }
        self.tell(name, Event::Acknowledged { task: id, update });
        Ok(())
    }

    /// How much of what was said of an executor's tasks, those that have ended too, waits for the framework.
    fn waiting_of(&self, name: &str) -> usize {
        let tasks = self.tasks.values().filter(|task| task.executor.as_deref() == Some(name));
        tasks.flat_map(|task| &task.updates).map(Update::size).sum()
    }

    /// An executor has something to say to its framework.
    pub fn message(&mut self, name: &str, data: Arc<[u8]>) {
        let Some(Executor { framework, info, .. }) = self.executors.get(name) else { return };
        let (framework, executor) = (framework.clone(), info.id.clone());
        self.effects.push(Effect::Say(Box::new(FromAgent::Message { framework, executor, data })));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Means, Recovered};
    use super::*;
    use crate::agent::tokens::Tokens;
    use crate::master::{TaskInfo, ToAgent, UpdateId};
    use crate::resources::Kind;

    const MIB: u64 = 1 << 20;

    fn new(recovered: Recovered) -> Tasks {
        let means = Means {
            default_image: Some("busybox".to_owned()),
            directory: "/agent".into(),
            network: Network::Host,
            prefix: "p".to_owned(),
            endpoint: ([127, 0, 0, 1], 5).into(),
            tokens: Tokens::new(b"secret"),
        };
        Tasks::new(recovered, means)
    }

    /// What the next agent in the same directory knows.
    fn next(tasks: &Tasks) -> Tasks {
        let again = |text: String| serde_json::from_str(&text).unwrap();
        let executors = again(serde_json::to_string(&tasks.executors).unwrap());
        let tasks = serde_json::from_str(&serde_json::to_string(&tasks.tasks).unwrap()).unwrap();
        new(Recovered { tasks, executors, ..Recovered::default() })
    }

    fn run(tasks: &mut Tasks, id: &str, launch_executor: bool, executor: &str) {
        let info =
            ExecutorInfo { id: "e".into(), resources: Quantities::new(500, 64 * MIB).into(), payload: executor.into() };
        let task = TaskInfo {
            id: id.into(),
            agent: "a".into(),
            resources: Quantities::new(100, 32 * MIB).into(),
            executor: Some(Arc::new(info)),
            payload: "{}".into(),
        };
        let (framework_info, role) = (Arc::default(), "r".into());
        tasks.told(ToAgent::Run { framework: "f".into(), framework_info, role, task, launch_executor });
    }

    const RIGHT: &str = r#"{"command": {"value": "x"}, "shutdown_grace_period": {"nanoseconds": 7000000000}}"#;

    /// What is to be done, in words.
    fn effects(tasks: &mut Tasks) -> Vec<String> {
        let word = |effect| match effect {
            Effect::Say(message) => match *message {
                FromAgent::Update { status, .. } => {
                    let details: Value = serde_json::from_str(&status.details).unwrap();
                    let reason =
                        details["reason"].as_str().unwrap_or_default().trim_start_matches("REASON_").to_owned();
                    format!("{} {} {reason}", status.task, status.state.name())
                }
                FromAgent::ExecutorEnded { executor, status, .. } => format!("{executor} ended {status:?}"),
                other => format!("{other:?}"),
            },
            Effect::Start(_, start) => {
                let memory = start.arguments.iter().find(|flag| flag.starts_with("--memory")).unwrap();
                format!("start {memory}")
            }
            Effect::Limit(_, limits) => format!("limit {} {}", limits[Kind::Cpus], limits[Kind::Memory] / MIB),
            Effect::Tell(_, event) => match *event {
                Event::Subscribed { .. } => "tell SUBSCRIBED".to_owned(),
                Event::Launch { task, .. } => format!("tell LAUNCH {}", task.id),
                other => format!("tell {other:?}"),
            },
            Effect::Stop(_, grace) => format!("stop within {grace:?}"),
            Effect::StopAfter(_, grace) => format!("stop after {grace:?}"),
            Effect::Await(_, pause) => format!("await {pause:?}"),
            Effect::Remove(_) => "remove".to_owned(),
            Effect::Check(..) => "check".to_owned(),
        };
        tasks.take_effects().into_iter().map(word).map(|word| word.trim_end().to_owned()).collect()
    }

    fn only(tasks: &Tasks) -> String {
        let names: Vec<_> = tasks.executors.keys().cloned().collect();
        let [name] = &names[..] else { panic!("{names:?}") };
        name.clone()
    }

    fn update(task: &str, state: TaskState, id: u128) -> executor::Update {
        executor::Update { task: task.into(), state, id: UpdateId(id), message: String::new(), details: "{}".into() }
    }

    fn limits(milli_cpus: u64, memory: u64) -> Quantities {
        Quantities::new(milli_cpus, memory * MIB)
    }

    /// An executor that is there, with a task.
    fn there() -> (Tasks, String) {
        let mut tasks = new(Recovered::default());
        run(&mut tasks, "t", true, RIGHT);
        assert_eq!(effects(&mut tasks), ["start --memory=100663296b"]);
        let name = only(&tasks);
        tasks.started(&name, Ok(()));
        assert_eq!(effects(&mut tasks), ["await 60s"]);
        tasks.subscribed(&name, &[], vec![]);
        assert_eq!(effects(&mut tasks), ["tell SUBSCRIBED", "tell LAUNCH t"]);
        (tasks, name)
    }

    #[test]
    fn an_executor_has_the_limits_of_its_tasks_before_it_has_them() {
        let (mut tasks, name) = there();
        run(&mut tasks, "u", false, RIGHT);
        assert_eq!(effects(&mut tasks), ["limit 700 128"]);
        run(&mut tasks, "v", false, RIGHT);
        assert_eq!(effects(&mut tasks), ["limit 800 160"]);
        tasks.limited(&name, limits(700, 128));
        assert_eq!(effects(&mut tasks), ["limit 800 160"], "not yet those of all");
        tasks.limited(&name, limits(800, 160));
        let mut launched = effects(&mut tasks);
        launched.sort();
        assert_eq!(launched, ["tell LAUNCH u", "tell LAUNCH v"]);
        tasks.said(&name, update("u", TaskState::Finished, 1)).unwrap();
        let done = effects(&mut tasks);
        assert_eq!(done[..2], ["u TASK_FINISHED", "limit 700 128"]);
        assert!(done[2].starts_with("tell Acknowledged"), "{done:?}");
        let registration = tasks.registration();
        assert_eq!((registration.executors.len(), registration.tasks.len()), (1, 3));
    }

    #[test]
    fn tasks_do_not_wait_for_ever_for_limits_that_cannot_be_set() {
        let (mut tasks, name) = there();
        run(&mut tasks, "u", false, RIGHT);
        assert_eq!(effects(&mut tasks), ["limit 700 128"]);
        for _ in 1..MOST_TRIES {
            tasks.not_limited(&name, "no such control group");
            assert_eq!(effects(&mut tasks), ["limit 700 128"], "it is tried again, and nobody is told that it is so");
        }
        tasks.not_limited(&name, "no such control group");
        assert_eq!(effects(&mut tasks), ["u TASK_FAILED CONTAINER_UPDATE_FAILED", "limit 600 96"]);
        // The one that is there goes on, and the next has a chance.
        tasks.limited(&name, limits(600, 96));
        run(&mut tasks, "v", false, RIGHT);
        assert_eq!(effects(&mut tasks), ["limit 700 128"]);
        tasks.not_limited(&name, "no such control group");
        tasks.limited(&name, limits(700, 128));
        assert_eq!(effects(&mut tasks), ["limit 700 128", "tell LAUNCH v"]);
    }

    #[test]
    fn what_an_executor_says_is_passed_on_once_and_acknowledged_always() {
        let (mut tasks, name) = there();
        for number in [1, 2, 1, 2] {
            tasks.said(&name, update("t", TaskState::Running, number)).unwrap();
            let done = effects(&mut tasks);
            let said = done.iter().any(|word| word.starts_with("t TASK_RUNNING"));
            let acknowledged = done.iter().any(|word| word.contains(&format!("update: {number}")));
            assert!(acknowledged, "{done:?}");
            // The second waits for the first.
            assert_eq!(said, number == 1 && tasks.tasks.values().all(|task| task.updates.len() == 1), "{done:?}");
        }
        tasks.said(&name, update("unknown", TaskState::Running, 1)).unwrap();
        assert!(effects(&mut tasks)[0].starts_with("tell Acknowledged"));
        for number in 3..=MOST_UPDATES as u128 {
            tasks.said(&name, update("t", TaskState::Running, number)).unwrap();
        }
        let much = tasks.said(&name, update("t", TaskState::Running, 1000));
        assert_eq!(much, Err(Refusal::TooMany("t".into())));
        tasks.said(&name, update("t", TaskState::Failed, 1001)).unwrap();
        tasks.said(&name, update("t", TaskState::Running, 1002)).unwrap();
        assert_eq!(tasks.registration().tasks[0].state, TaskState::Failed, "it has ended for good");
    }

    #[test]
    fn what_waits_for_a_framework_is_bounded_over_all_tasks_of_an_executor() {
        let (mut tasks, name) = there();
        let ids: Vec<String> = (0..50).map(|number| format!("t{number}")).collect();
        for id in &ids {
            run(&mut tasks, id, false, RIGHT);
        }
        let long = |id: &str, state, number| {
            let message = "x".repeat(MOST_WAITING / 20);
            executor::Update { message, ..update(id, state, number) }
        };
        let mut say =
            |state, number| ids.iter().map(|id| tasks.said(&name, long(id, state, number))).collect::<Vec<_>>();
        let running = say(TaskState::Running, 1);
        assert_eq!(running.iter().filter(|said| said.is_ok()).count(), 19);
        assert!(running[19..].iter().all(|said| *said == Err(Refusal::TooMuch)));
        let finished = say(TaskState::Finished, 2);
        assert_eq!(finished.iter().filter(|said| said.is_ok()).count(), 20, "ends have room of their own, and no more");
        tasks.told(ToAgent::Acknowledge { framework: "f".into(), task: "t0".into(), update: UpdateId(1) });
        assert_eq!(tasks.said(&name, long("t49", TaskState::Finished, 3)), Ok(()));
    }

    #[test]
    fn tasks_end_with_their_executor() {
        let terminated = |state: &str, reason: &str| vec![format!("t {state} {reason}"), "remove".to_owned()];
        let (mut tasks, name) = there();
        tasks.ended(&name, &End::Exited(7));
        let ended = |status: &str| vec![format!("e ended {status}")];
        assert_eq!(effects(&mut tasks), [terminated("TASK_FAILED", "EXECUTOR_TERMINATED"), ended("Some(7)")].concat());
        assert!(tasks.registration().executors.is_empty());

        let (mut tasks, name) = there();
        tasks.told(ToAgent::ShutDownExecutor { framework: "f".into(), executor: "e".into() });
        assert_eq!(effects(&mut tasks), ["tell ShutDown", "stop after 7s"]);
        run(&mut tasks, "late", false, RIGHT);
        assert_eq!(effects(&mut tasks), ["late TASK_DROPPED EXECUTOR_TERMINATED"]);
        tasks.ended(&name, &End::Exited(0));
        assert_eq!(effects(&mut tasks), [terminated("TASK_GONE", "EXECUTOR_TERMINATED"), ended("Some(0)")].concat());

        let (mut tasks, name) = there();
        tasks.told(ToAgent::ShutDownFramework("f".into()));
        assert_eq!(effects(&mut tasks)[1..], ["tell ShutDown", "stop after 7s"]);
        tasks.ended(&name, &End::OutOfMemory);
        assert_eq!(effects(&mut tasks)[0], "t TASK_KILLED EXECUTOR_TERMINATED");
    }

    #[test]
    fn an_executor_that_says_nothing_is_ended() {
        let mut tasks = new(Recovered::default());
        run(&mut tasks, "t", true, RIGHT);
        let name = only(&tasks);
        tasks.started(&name, Ok(()));
        effects(&mut tasks);
        tasks.awaited(&name);
        assert_eq!(effects(&mut tasks), ["stop within 0ns"]);
        tasks.ended(&name, &End::Exited(137));
        assert_eq!(effects(&mut tasks)[0], "t TASK_FAILED EXECUTOR_REGISTRATION_TIMEOUT");

        let (tasks, name) = there();
        let mut tasks = next(&tasks);
        tasks.started(&name, Ok(()));
        assert_eq!(effects(&mut tasks), ["await 15s", "limit 600 96"]);
        tasks.awaited(&name);
        tasks.ended(&name, &End::Exited(137));
        assert_eq!(effects(&mut tasks)[1], "t TASK_FAILED EXECUTOR_REREGISTRATION_TIMEOUT");
    }

    #[test]
    fn what_cannot_be_run_is_in_error_and_uses_nothing() {
        for executor in [
            r#"{"command": {}}"#,
            r#"{"command": {"value": "x"}, "type": "DEFAULT"}"#,
            r#"{"command": {"value": "x"}, "container": {"docker": {"image": "i", "network": "NONE"}}}"#,
        ] {
            let mut tasks = new(Recovered::default());
            run(&mut tasks, "t", true, executor);
            let done = effects(&mut tasks);
            assert_eq!(done, ["t TASK_ERROR TASK_INVALID", "remove", "e ended None"], "{executor}");
        }
        let mut tasks = new(Recovered::default());
        run(&mut tasks, "t", true, RIGHT);
        let name = only(&tasks);
        tasks.started(&name, Err("no image".to_owned()));
        assert_eq!(effects(&mut tasks)[1..], ["t TASK_FAILED CONTAINER_LAUNCH_FAILED", "remove", "e ended None"]);
    }

    #[test]
    fn a_task_that_was_never_sent_is_killed_at_once() {
        let kill = |task: &str| ToAgent::Kill { framework: "f".into(), task: task.into(), grace: None };
        let mut tasks = new(Recovered::default());
        run(&mut tasks, "t", true, RIGHT);
        effects(&mut tasks);
        tasks.told(kill("t"));
        assert_eq!(effects(&mut tasks), ["t TASK_KILLED TASK_KILLED_DURING_LAUNCH"]);
        let name = only(&tasks);
        tasks.started(&name, Ok(()));
        assert_eq!(effects(&mut tasks), ["stop within 7s"], "it has never had anything to do");

        let (mut tasks, name) = there();
        tasks.told(kill("t"));
        assert!(effects(&mut tasks)[0].starts_with("tell Kill"));
        // One that comes back is told again, unless it has never got the task.
        let mut second = next(&tasks);
        second.subscribed(&name, &["t".into()], vec![]);
        assert!(effects(&mut second)[1].starts_with("tell Kill"));
        let mut second = next(&tasks);
        second.subscribed(&name, &[], vec![]);
        assert_eq!(effects(&mut second)[1], "t TASK_KILLED TASK_KILLED_DURING_LAUNCH");
    }

    #[test]
    fn an_executor_that_comes_back_gets_what_it_does_not_have() {
        let (mut tasks, name) = there();
        run(&mut tasks, "u", false, RIGHT);
        let mut tasks = next(&tasks);
        assert_eq!(tasks.sandboxes(), [&*name]);
        assert_eq!(
            tasks.check_executor(
                &name,
                &executor::Request { framework: "f".into(), executor: "e".into(), call: executor::Call::Heartbeat }
            ),
            Err(Refusal::NotSubscribed)
        );
        tasks.subscribed(&name, &[], vec![update("t", TaskState::Running, 1)]);
        let done = effects(&mut tasks);
        assert_eq!(done[..2], ["tell SUBSCRIBED", "t TASK_RUNNING"]);
        tasks.started(&name, Ok(()));
        assert_eq!(effects(&mut tasks), ["limit 700 128"]);
        tasks.limited(&name, limits(700, 128));
        assert_eq!(effects(&mut tasks), ["tell LAUNCH u"]);
        let located = tasks.locate("/frameworks/f/executors/e/runs/latest/stdout");
        assert_eq!(located, Some((name, "stdout".to_owned())));
    }
}
