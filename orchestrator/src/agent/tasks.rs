//! What an agent knows of its tasks, and what follows from what happens to them.
//!
//! ```text
//! run ─▶ staging ── its sandbox has started ─▶ running ── its sandbox has ended ─▶ finished, failed or killed
//!           └── cannot be started ─▶ error, failed or killed                              │
//!                                        the sandbox is removed  ◀── acknowledged ────────┘
//! ```
//!
//! Every change of state is an update. Of each task the oldest one that is not acknowledged is said, again and again.
//!
//! What runs in the sandbox is the task's command, or an [executor](executors) that runs several tasks and says itself what
//! becomes of them.

mod executors;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_engine::options::Network;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::checks::{Checks, Report};
use super::command::{self, Command, Start};
use super::files;
use super::sandboxes::{End, LOGS};
use super::tokens::Tokens;
use crate::api::executor;
use crate::master::{
    AgentId, ExecutorId, FrameworkId, FrameworkInfo, FromAgent, Registration, TaskId, TaskInfo, TaskReport, TaskState,
    TaskStatus, ToAgent, UpdateId,
};
use crate::resources::Quantities;

/// Why frameworks are told something of a task that runs as before.
const HEALTH: &str = "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED";
const CHECK: &str = "REASON_TASK_CHECK_STATUS_UPDATED";

pub use executors::{Executor, Refusal};

/// What is remembered of a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    framework: FrameworkId,
    framework_info: FrameworkInfo,
    role: Arc<str>,
    info: TaskInfo,
    state: TaskState,
    /// Not acknowledged, the oldest first.
    updates: VecDeque<Update>,
    /// Whether it is to end.
    kill: bool,
    /// Whether it is well, if it was ever asked.
    #[serde(default)]
    healthy: Option<bool>,
    /// Why it is to end, if that is because it is not.
    #[serde(default)]
    hopeless: Option<String>,
    /// The latest result of its check.
    #[serde(default)]
    check_status: Option<Value>,
    /// In whose sandbox it runs, if not in one of its own, which has the task's name.
    #[serde(default)]
    executor: Option<String>,
    /// What its executor has said of it last.
    #[serde(default)]
    received: VecDeque<UpdateId>,
    /// Whether its executor was told of it over the present subscription, or has it.
    #[serde(skip)]
    sent: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Update {
    id: UpdateId,
    state: TaskState,
    message: String,
    details: Arc<str>,
    /// Whether it is about a task that goes on as before: a later one says all that this one does.
    #[serde(default)]
    passing: bool,
}

impl Update {
    /// How many bytes it is counted as: what it says, and what it takes beside that.
    fn size(&self) -> usize {
        const REST: usize = 1 << 10;
        self.message.len() + self.details.len() + REST
    }
}

/// What is to be done, once what is known is durable.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// To the master.
    Say(Box<FromAgent>),
    /// Make the sandbox of this name.
    Start(String, Start),
    /// Ask the task in a sandbox, which has started, again and again.
    Check(String, Box<Checks>),
    /// End a sandbox, which may end by itself for so long.
    Stop(String, Duration),
    /// The same, after so long.
    StopAfter(String, Duration),
    /// Give a sandbox other limits, and say when it has them.
    Limit(String, Quantities),
    /// To the executor in the sandbox of this name.
    Tell(String, Box<executor::Event>),
    /// Look after so long whether an executor has subscribed.
    Await(String, Duration),
    /// Remove what is left of a sandbox.
    Remove(String),
}

/// What an agent knew when it was last there.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Its id, if it ever registered.
    pub id: Option<AgentId>,
    /// Its tasks, by their names, which are those of their sandboxes.
    pub tasks: BTreeMap<String, Task>,
    /// Its executors, by the names of their sandboxes.
    pub executors: BTreeMap<String, Executor>,
    /// The latest of those that are over, in their order.
    pub past: BTreeMap<u64, Past>,
}

/// A task that is over, of which files may be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    framework: FrameworkId,
    task: TaskId,
    sandbox: String,
}

/// What to make durable.
#[derive(Debug)]
pub struct Changes<'a> {
    /// Tasks as they are now, none for one that is over.
    pub tasks: Vec<(String, Option<&'a Task>)>,
    /// The same of executors.
    pub executors: Vec<(String, Option<&'a Executor>)>,
    /// The same of those that are over, which are forgotten in time.
    pub past: Vec<(u64, Option<&'a Past>)>,
}

impl Changes<'_> {
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.executors.is_empty() && self.past.is_empty()
    }
}

/// What an agent's sandboxes are made with.
#[derive(Debug)]
pub struct Means {
    /// The image of tasks that name none.
    pub default_image: Option<String>,
    /// The agent's.
    pub directory: PathBuf,
    /// What tasks have that share the host's network; executors share the host's.
    pub network: Network,
    /// What names of sandboxes begin with.
    pub prefix: String,
    /// Where executors reach the agent.
    pub endpoint: SocketAddr,
    /// By what the agent knows them.
    pub tokens: Tokens,
}

impl Task {
    /// In which sandbox the task of this name is.
    fn container_status(&self, name: &str) -> Value {
        json!({ "container_id": { "value": self.executor.as_deref().unwrap_or(name) } })
    }
}

/// The tasks and executors of an agent, by the names of their sandboxes.
#[derive(Debug)]
pub struct Tasks {
    id: Option<AgentId>,
    tasks: BTreeMap<String, Task>,
    executors: BTreeMap<String, Executor>,
    past: BTreeMap<u64, Past>,
    means: Means,
    /// Those that are not as they were made durable.
    changed: BTreeSet<String>,
    changed_executors: BTreeSet<String>,
    changed_past: BTreeSet<u64>,
    effects: Vec<Effect>,
    shut_down: Option<String>,
}

impl Tasks {
    /// The tasks of an agent.
    pub fn new(recovered: Recovered, means: Means) -> Tasks {
        let Recovered { id, tasks, executors, past } = recovered;
        Tasks {
            id,
            tasks,
            executors,
            past,
            means,
            changed: BTreeSet::new(),
            changed_executors: BTreeSet::new(),
            changed_past: BTreeSet::new(),
            effects: Vec::new(),
            shut_down: None,
        }
    }

    /// What to make durable.
    pub fn take_changes(&mut self) -> Changes<'_> {
        let (changed, past) = (std::mem::take(&mut self.changed), std::mem::take(&mut self.changed_past));
        let executors = std::mem::take(&mut self.changed_executors);
        Changes {
            executors: executors.into_iter().map(|name| (name.clone(), self.executors.get(&name))).collect(),
            tasks: changed.into_iter().map(|name| (name.clone(), self.tasks.get(&name))).collect(),
            past: past.into_iter().map(|number| (number, self.past.get(&number))).collect(),
        }
    }

    /// Whose files a path is about, by the name of the sandbox, and what of it is left below the directory of that.
    pub fn locate(&self, path: &str) -> Option<(String, String)> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        let mut named = |name: &str| parts.next().filter(|part| *part == name).and_then(|_| parts.next());
        let (framework, id, run) = (named("frameworks")?, named("executors")?, named("runs")?);
        let (framework, task) = (FrameworkId::from(framework), TaskId::from(id));
        let is_it = |sandbox: &String| run == "latest" || run == sandbox;
        let of = |past: &&Past| past.framework == framework && past.task == task && is_it(&past.sandbox);
        let past = || self.past.values().rev().find(of).map(|past| past.sandbox.clone());
        let executor = || self.find_executor(&framework, &ExecutorId::from(id));
        let own = self.find(&framework, &task).filter(|name| self.tasks[name].executor.is_none());
        let sandbox = own.or_else(executor).filter(is_it).or_else(past)?;
        Some((sandbox, parts.collect::<Vec<_>>().join("/")))
    }

    /// What to do after that.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The names of all sandboxes that may be there.
    pub fn sandboxes(&self) -> Vec<String> {
        let own = self.tasks.iter().filter(|(_, task)| task.executor.is_none()).map(|(name, _)| name);
        own.chain(self.executors.keys()).cloned().collect()
    }

    /// Why the agent is to end, if it is.
    pub fn shut_down(&self) -> Option<&str> {
        self.shut_down.as_deref()
    }

    /// Whether any task or executor has not ended.
    pub fn any_alive(&self) -> bool {
        !self.executors.is_empty() || self.tasks.values().any(|task| !task.state.is_terminal())
    }

    /// What a master is told first.
    pub fn registration(&self) -> Registration {
        let mut registration = Registration { id: self.id.clone(), ..Registration::default() };
        for executor in self.executors.values() {
            let (framework, info) = executor.framework();
            registration.frameworks.insert(framework.clone(), info.clone());
            registration.executors.push(executor.report());
        }
        for task in self.tasks.values() {
            registration.frameworks.insert(task.framework.clone(), task.framework_info.clone());
            registration.tasks.push(TaskReport {
                framework: task.framework.clone(),
                role: Arc::clone(&task.role),
                info: task.info.clone(),
                state: task.state,
            });
        }
        registration
    }

    /// A master has let the agent in.
    pub fn registered(&mut self, id: AgentId) {
        self.id = Some(id);
        self.repeat();
    }

    /// Says that the agent is there, and what was not acknowledged.
    pub fn repeat(&mut self) {
        self.effects.push(Effect::Say(Box::new(FromAgent::Heartbeat)));
        for name in self.tasks.keys().cloned().collect::<Vec<_>>() {
            self.say(&name);
        }
    }

    /// The master says something.
    pub fn told(&mut self, message: ToAgent) {
        match message {
            ToAgent::Run { framework, framework_info, role, task, launch_executor } => {
                self.run(framework, (*framework_info).clone(), role, task, launch_executor);
            }
            ToAgent::Kill { framework, task, grace } => {
                if let Some(name) = self.find(&framework, &task) {
                    self.kill(&name, grace);
                }
            }
            ToAgent::ShutDownFramework(framework) => {
                self.kill_all(|task| task.framework == framework);
                self.shut_down_executors(|executor| *executor.framework().0 == framework);
            }
            ToAgent::ShutDownExecutor { framework, executor } => {
                if let Some(name) = self.find_executor(&framework, &executor) {
                    self.shut_down_executor(&name);
                }
            }
            ToAgent::Message { framework, executor, data } => {
                if let Some(name) = self.find_executor(&framework, &executor) {
                    self.tell(&name, executor::Event::Message(data));
                }
            }
            ToAgent::ShutDown(reason) => {
                self.shut_down = Some(reason);
                let ended =
                    self.tasks.iter().filter(|(_, task)| task.state.is_terminal()).map(|(name, _)| name.clone());
                ended.collect::<Vec<_>>().iter().for_each(|name| self.forget(name));
                self.kill_all(|_| true);
                self.shut_down_executors(|_| true);
            }
            ToAgent::Acknowledge { framework, task, update } => {
                if let Some(name) = self.find(&framework, &task) {
                    self.acknowledged(&name, update);
                }
            }
            // These concern the agent itself.
            ToAgent::Heartbeat | ToAgent::Registered(_) | ToAgent::Refused(_) | ToAgent::Ask { .. } => {}
        }
    }

    fn find(&self, framework: &FrameworkId, task: &TaskId) -> Option<String> {
        let mut all = self.tasks.iter();
        let found = all.find(|(_, known)| known.framework == *framework && known.info.id == *task);
        found.map(|(name, _)| name.clone())
    }

    fn run(
        &mut self,
        framework: FrameworkId,
        framework_info: FrameworkInfo,
        role: Arc<str>,
        info: TaskInfo,
        launch_executor: bool,
    ) {
        let name = self.new_name();
        let task = Task {
            framework,
            framework_info,
            role,
            info,
            state: TaskState::Staging,
            updates: VecDeque::new(),
            kill: false,
            healthy: None,
            hopeless: None,
            check_status: None,
            executor: None,
            received: VecDeque::new(),
            sent: false,
        };
        self.changed.insert(name.clone());
        let start = match task.info.executor {
            Some(_) => None,
            None => Some(self.command(&task.info).map(|command| self.start(&name, command, &self.means.network))),
        };
        self.tasks.insert(name.clone(), task);
        match start {
            None => self.hand_over(&name, launch_executor),
            Some(Ok(start)) => self.effects.push(start),
            Some(Err(error)) => self.change(&name, TaskState::Error, error),
        }
    }

    /// A name of a sandbox that is to be.
    fn new_name(&self) -> String {
        format!("{}-{}", self.means.prefix, Uuid::new_v4().simple())
    }

    fn start(&self, name: &str, command: Command, network: &Network) -> Effect {
        let directory = files::directory(&self.means.directory, name);
        Effect::Start(name.to_owned(), command.start(name, &directory, network))
    }

    fn command(&self, info: &TaskInfo) -> Result<Command, String> {
        let read = command::read(info, self.means.default_image.as_deref());
        read.map_err(|wrong| format!("the task cannot be run: {wrong}"))
    }

    /// The agent was away, and there is no sandbox of this name: it never came to be.
    pub fn missing(&mut self, name: &str) {
        if self.executors.contains_key(name) {
            return self.executor_missing(name);
        }
        let Some(task) = self.tasks.get(name) else { return };
        if task.state == TaskState::Staging && !task.kill {
            let start = self.command(&task.info).map(|command| self.start(name, command, &self.means.network));
            // It was right before.
            if let Ok(start) = start {
                return self.effects.push(start);
            }
        }
        let end = if task.kill { TaskState::Killed } else { TaskState::Failed };
        self.change(name, end, "its sandbox is gone".to_owned());
    }

    /// An attempt to start a sandbox is over.
    pub fn started(&mut self, name: &str, result: Result<(), String>) {
        if self.executors.contains_key(name) {
            return self.executor_started(name, result);
        }
        let Some(task) = self.tasks.get(name) else { return };
        let kill = task.kill;
        match result {
            Ok(()) => {
                let checks = self.command(&task.info).map(|command| command.checks).unwrap_or_default();
                self.change(name, TaskState::Running, String::new());
                if kill {
                    self.kill(name, None);
                } else if !checks.is_empty() {
                    self.effects.push(Effect::Check(name.to_owned(), Box::new(checks)));
                }
            }
            Err(_) if kill => self.change(name, TaskState::Killed, "it was to end before it had started".to_owned()),
            Err(error) => self.change(name, TaskState::Failed, error),
        }
    }

    /// A sandbox has ended.
    pub fn ended(&mut self, name: &str, end: &End) {
        if self.executors.contains_key(name) {
            return self.executor_ended(name, end);
        }
        let Some(task) = self.tasks.get(name) else { return };
        let state = match end {
            // However it ended, it was not because its work was done.
            _ if task.hopeless.is_some() => TaskState::Killed,
            End::Exited(0) => TaskState::Finished,
            _ if task.kill => TaskState::Killed,
            End::Exited(_) | End::OutOfMemory | End::Broken(_) => TaskState::Failed,
        };
        let message = match &task.hopeless {
            Some(why) => format!("it was ended because it was not well: {why} ({end})"),
            None => end.to_string(),
        };
        self.change(name, state, message);
    }

    /// Something is new of a task that runs.
    pub fn checked(&mut self, name: &str, report: Report) {
        let Some(task) = self.tasks.get_mut(name).filter(|task| task.state == TaskState::Running && !task.kill) else {
            return;
        };
        let (reason, message) = match report {
            Report::Status(status) if task.check_status.as_ref() == Some(&status) => return,
            // An earlier agent may have said so.
            Report::Healthy if task.healthy == Some(true) => return,
            Report::Status(status) => {
                task.check_status = Some(status);
                (CHECK, String::new())
            }
            Report::Healthy => {
                task.healthy = Some(true);
                (HEALTH, String::new())
            }
            Report::Unhealthy(why) => {
                task.healthy = Some(false);
                (HEALTH, why)
            }
            Report::Hopeless(why) => {
                task.healthy = Some(false);
                task.hopeless = Some(why.clone());
                (HEALTH, why)
            }
        };
        let hopeless = task.hopeless.is_some();
        self.update(name, message, Some(reason));
        if hopeless {
            self.kill(name, None);
        }
    }

    fn kill_all(&mut self, condition: impl Fn(&Task) -> bool) {
        let names = self.tasks.iter().filter(|(_, task)| condition(task)).map(|(name, _)| name.clone());
        for name in names.collect::<Vec<_>>() {
            self.kill(&name, None);
        }
    }

    fn kill(&mut self, name: &str, grace: Option<Duration>) {
        let Some(task) = self.tasks.get_mut(name).filter(|task| !task.state.is_terminal()) else { return };
        if !std::mem::replace(&mut task.kill, true) {
            self.changed.insert(name.to_owned());
        }
        if task.executor.is_some() {
            return self.kill_by_executor(name, grace);
        }
        let staging = task.state == TaskState::Staging;
        let grace = grace.unwrap_or_else(|| command::grace(&task.info));
        // While it is being started there is nothing to stop; it will be.
        if !staging {
            self.effects.push(Effect::Stop(name.to_owned(), grace));
        }
    }

    fn acknowledged(&mut self, name: &str, update: UpdateId) {
        let Some(task) = self.tasks.get_mut(name) else { return };
        if task.updates.front().is_none_or(|first| first.id != update) {
            return;
        }
        task.updates.pop_front();
        self.changed.insert(name.to_owned());
        if task.updates.is_empty() && task.state.is_terminal() {
            self.forget(name);
        } else {
            self.say(name);
        }
    }

    /// A task is over, and everybody knows or nobody is left to.
    fn forget(&mut self, name: &str) {
        self.changed.insert(name.to_owned());
        let Some(task) = self.tasks.remove(name).filter(|task| task.executor.is_none()) else { return };
        self.remove(Past { framework: task.framework, task: task.info.id, sandbox: name.to_owned() });
    }

    /// A sandbox is of no more use, but for the files in it.
    fn remove(&mut self, past: Past) {
        self.effects.push(Effect::Remove(past.sandbox.clone()));
        let number = self.past.last_key_value().map_or(0, |(latest, _)| latest + 1);
        self.past.insert(number, past);
        self.changed_past.insert(number);
        if self.past.len() > LOGS {
            self.changed_past.extend(self.past.pop_first().map(|(number, _)| number));
        }
    }

    /// A task that has not ended is in another state, which is to be told.
    fn change(&mut self, name: &str, state: TaskState, message: String) {
        let reason = self.tasks.get(name).and_then(|task| task.hopeless.as_ref()).map(|_| HEALTH);
        self.change_because(name, state, message, reason);
    }

    fn change_because(&mut self, name: &str, state: TaskState, message: String, reason: Option<&str>) {
        let Some(task) = self.tasks.get_mut(name).filter(|task| !task.state.is_terminal() && task.state != state)
        else {
            return;
        };
        task.state = state;
        if self.shut_down.is_some() && state.is_terminal() {
            return self.forget(name);
        }
        self.update(name, message, reason);
    }

    /// Something of a task is to be told.
    fn update(&mut self, name: &str, message: String, reason: Option<&str>) {
        let Some(task) = self.tasks.get_mut(name) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut details = json!({ "timestamp": now.as_secs_f64(), "container_status": task.container_status(name) });
        if let Some(executor) = &task.info.executor {
            details["executor_id"] = json!({ "value": executor.id.as_str() });
            details["source"] = json!("SOURCE_AGENT");
        }
        if let Some(healthy) = task.healthy {
            details["healthy"] = json!(healthy);
        }
        if let Some(status) = &task.check_status {
            details["check_status"] = status.clone();
        }
        if let Some(reason) = reason {
            details["reason"] = json!(reason);
        }
        let state = task.state;
        let passing = reason.is_some() && !state.is_terminal();
        // The first may be under way; however often a task changes its mind, no more than one waits behind it.
        if passing && task.updates.len() > 1 && task.updates.back().is_some_and(|latest| latest.passing) {
            task.updates.pop_back();
        }
        let id = UpdateId(Uuid::new_v4().as_u128());
        self.push(name, Update { id, state, message, details: details.to_string().into(), passing });
    }

    /// An update is to be said, when those before it are acknowledged.
    fn push(&mut self, name: &str, update: Update) {
        let Some(task) = self.tasks.get_mut(name) else { return };
        task.updates.push_back(update);
        self.changed.insert(name.to_owned());
        if task.updates.len() == 1 {
            self.say(name);
        }
    }

    /// Says the oldest update of a task.
    fn say(&mut self, name: &str) {
        let Some(task) = self.tasks.get(name) else { return };
        let Some(Update { id, state, message, details, .. }) = task.updates.front().cloned() else { return };
        let status = TaskStatus {
            task: task.info.id.clone(),
            agent: None,
            state,
            update: Some(id),
            reason: None,
            message,
            details,
        };
        let update = FromAgent::Update { framework: task.framework.clone(), status, latest: task.state };
        self.effects.push(Effect::Say(Box::new(update)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framework() -> FrameworkId {
        FrameworkId::from("f")
    }

    fn run(payload: &str) -> ToAgent {
        let resources = Quantities::new(100, 1 << 20).into();
        let task = TaskInfo { id: "t".into(), agent: "a".into(), resources, executor: None, payload: payload.into() };
        let (framework_info, role) = (Arc::default(), "r".into());
        ToAgent::Run { framework: framework(), framework_info, role, task, launch_executor: false }
    }

    fn right() -> ToAgent {
        run(r#"{"command": {"value": "x"}}"#)
    }

    fn kill() -> ToAgent {
        ToAgent::Kill { framework: framework(), task: "t".into(), grace: None }
    }

    fn new(tasks: BTreeMap<String, Task>) -> Tasks {
        let recovered = Recovered { tasks, ..Recovered::default() };
        Tasks::new(recovered, means())
    }

    fn means() -> Means {
        Means {
            default_image: Some("busybox".to_owned()),
            directory: "/agent".into(),
            network: Network::Host,
            prefix: "p".to_owned(),
            endpoint: ([127, 0, 0, 1], 5).into(),
            tokens: Tokens::new(b"secret"),
        }
    }

    /// The updates that are said, and the other effects.
    fn effects(tasks: &mut Tasks) -> (Vec<(TaskState, UpdateId)>, Vec<Effect>) {
        let (mut said, mut others) = (Vec::new(), Vec::new());
        for effect in tasks.take_effects() {
            match effect {
                Effect::Say(message) => match *message {
                    FromAgent::Update { status, .. } => said.push((status.state, status.update.unwrap())),
                    FromAgent::Heartbeat
                    | FromAgent::ExecutorEnded { .. }
                    | FromAgent::Message { .. }
                    | FromAgent::Answer { .. }
                    | FromAgent::Attributes(_) => {}
                },
                other => others.push(other),
            }
        }
        (said, others)
    }

    /// The name of the sandbox that is to be started.
    fn starts(tasks: &mut Tasks) -> String {
        let (said, others) = effects(tasks);
        let ([], [Effect::Start(name, _)]) = (&said[..], &others[..]) else { panic!("{said:?} {others:?}") };
        name.clone()
    }

    fn acknowledge(update: UpdateId) -> ToAgent {
        ToAgent::Acknowledge { framework: framework(), task: "t".into(), update }
    }

    #[test]
    fn updates_are_said_one_at_a_time_until_they_are_acknowledged() {
        let mut tasks = new(BTreeMap::new());
        tasks.told(right());
        let name = starts(&mut tasks);
        tasks.started(&name, Ok(()));
        tasks.ended(&name, &End::Exited(3));
        let (said, _) = effects(&mut tasks);
        let [(TaskState::Running, first)] = said[..] else { panic!("{said:?}") };
        tasks.repeat();
        assert_eq!(effects(&mut tasks).0, said);
        tasks.told(acknowledge(UpdateId(1)));
        assert_eq!(effects(&mut tasks).0, []);
        tasks.told(acknowledge(first));
        let (said, _) = effects(&mut tasks);
        let [(TaskState::Failed, last)] = said[..] else { panic!("{said:?}") };
        tasks.told(acknowledge(last));
        assert_eq!(effects(&mut tasks).1, [Effect::Remove(name.clone())]);
        assert!(matches!(&tasks.take_changes().tasks[..], [(of, None)] if *of == name));
    }

    #[test]
    fn the_files_of_a_task_are_found_while_it_runs_and_when_it_is_over() {
        let mut tasks = new(BTreeMap::new());
        tasks.told(right());
        let first = starts(&mut tasks);
        let located = |tasks: &Tasks, path: &str| tasks.locate(path).map(|(sandbox, rest)| format!("{sandbox} {rest}"));
        let latest = "/frameworks/f/executors/t/runs/latest";
        assert_eq!(located(&tasks, latest), Some(format!("{first} ")));
        assert_eq!(located(&tasks, &format!("{latest}//a/../b/")), Some(format!("{first} a/../b")));
        tasks.told(ToAgent::ShutDown("so".to_owned()));
        tasks.started(&first, Ok(()));
        tasks.ended(&first, &End::Exited(0));
        assert_eq!(located(&tasks, latest), Some(format!("{first} ")));
        tasks.told(right());
        let second = tasks.sandboxes().remove(0);
        assert_eq!(located(&tasks, latest), Some(format!("{second} ")));
        let by_name = |name: &str| format!("frameworks/f/executors/t/runs/{name}/stdout");
        assert_eq!(located(&tasks, &by_name(&first)), Some(format!("{first} stdout")));
        for path in ["", "/", "/frameworks/f", "/frameworks/g/executors/t/runs/latest", "/etc/passwd", &by_name("x")] {
            assert_eq!(located(&tasks, path), None, "{path}");
        }
        // Who comes next knows it too.
        let changes = tasks.take_changes();
        let past = changes.past.iter().map(|(number, past)| (*number, past.unwrap().clone())).collect();
        let next = Tasks::new(Recovered { past, ..Recovered::default() }, means());
        assert_eq!(located(&next, latest), Some(format!("{first} ")));
    }

    #[test]
    fn what_is_to_end_ends_however_far_it_is() {
        let mut tasks = new(BTreeMap::new());
        tasks.told(right());
        let name = starts(&mut tasks);
        tasks.told(kill());
        assert_eq!(effects(&mut tasks).1, []);
        tasks.started(&name, Ok(()));
        assert_eq!(effects(&mut tasks).1, [Effect::Stop(name.clone(), Duration::from_secs(3))]);
        tasks.ended(&name, &End::Exited(143));
        assert_eq!(tasks.registration().tasks[0].state, TaskState::Killed);
    }

    const CHECKED: &str = r#"{"command": {"value": "x"}, "health_check": {"tcp": {"port": 80}}}"#;

    /// What is said last of the only task.
    fn latest(tasks: &Tasks) -> (TaskState, Value, String) {
        let update = tasks.tasks.values().next().unwrap().updates.back().unwrap();
        (update.state, serde_json::from_str(&update.details).unwrap(), update.message.clone())
    }

    #[test]
    fn a_task_that_is_not_well_is_ended_whatever_its_exit_code() {
        let mut tasks = new(BTreeMap::new());
        tasks.told(run(CHECKED));
        let name = starts(&mut tasks);
        tasks.started(&name, Ok(()));
        assert!(matches!(&effects(&mut tasks).1[..], [Effect::Check(of, _)] if *of == name));
        tasks.checked(&name, Report::Healthy);
        let (state, details, _) = latest(&tasks);
        assert_eq!(
            (state, &details["healthy"], &details["reason"]),
            (TaskState::Running, &json!(true), &json!(HEALTH))
        );

        // The next agent asks anew, and says nothing that is known.
        let mut tasks = new(tasks.tasks.clone());
        tasks.started(&name, Ok(()));
        tasks.checked(&name, Report::Healthy);
        let (said, others) = effects(&mut tasks);
        assert!(said.is_empty() && matches!(others[..], [Effect::Check(..)]));

        tasks.checked(&name, Report::Hopeless("no answer".to_owned()));
        assert_eq!(effects(&mut tasks).1, [Effect::Stop(name.clone(), Duration::from_secs(3))]);
        tasks.checked(&name, Report::Healthy);
        assert_eq!(latest(&tasks).1["healthy"], false, "too late");
        tasks.ended(&name, &End::Exited(0));
        let (state, details, message) = latest(&tasks);
        assert_eq!((state, &details["reason"]), (TaskState::Killed, &json!(HEALTH)));
        assert!(message.contains("not well: no answer"), "{message}");
    }

    #[test]
    fn what_is_said_of_checks_does_not_pile_up() {
        let mut tasks = new(BTreeMap::new());
        tasks.told(run(CHECKED));
        let name = starts(&mut tasks);
        tasks.started(&name, Ok(()));
        for round in 0..100 {
            tasks.checked(&name, Report::Unhealthy("x".to_owned()));
            tasks.checked(&name, Report::Status(json!({ "round": round })));
            tasks.checked(&name, Report::Healthy);
        }
        assert_eq!(tasks.tasks[&name].updates.len(), 2, "that it runs, and the latest");
        let (_, details, _) = latest(&tasks);
        assert_eq!((&details["healthy"], &details["check_status"]["round"]), (&json!(true), &json!(99)));
        tasks.ended(&name, &End::Exited(1));
        assert_eq!(tasks.tasks[&name].updates.len(), 3);
    }

    #[test]
    fn a_task_that_cannot_be_run_is_in_error() {
        let mut tasks = new(BTreeMap::new());
        tasks.told(run(r#"{"command": {}}"#));
        let (said, others) = effects(&mut tasks);
        assert!(matches!(said[..], [(TaskState::Error, _)]) && others.is_empty());
    }

    #[test]
    fn the_next_agent_starts_what_was_never_started_and_nothing_twice() {
        let mut first = new(BTreeMap::new());
        first.told(right());
        let name = starts(&mut first);
        let staging = first.tasks.clone();
        let mut second = new(staging.clone());
        second.missing(&name);
        assert_eq!(starts(&mut second), name, "by the same name");

        first.started(&name, Ok(()));
        let mut second = new(first.tasks.clone());
        second.missing(&name);
        assert!(matches!(effects(&mut second), (_, others) if others.is_empty()));
        assert_eq!(second.registration().tasks[0].state, TaskState::Failed);

        // One that was to end is ended again.
        first.told(kill());
        let mut second = new(first.tasks.clone());
        second.started(&name, Ok(()));
        assert!(matches!(effects(&mut second).1[..], [Effect::Stop(..)]));
    }

    #[test]
    fn an_agent_that_is_shut_down_leaves_nothing() {
        let mut tasks = new(BTreeMap::new());
        tasks.told(right());
        let name = starts(&mut tasks);
        tasks.started(&name, Ok(()));
        tasks.told(ToAgent::ShutDown("gone".to_owned()));
        assert!(tasks.any_alive());
        effects(&mut tasks);
        tasks.ended(&name, &End::Exited(137));
        assert_eq!(effects(&mut tasks).1, [Effect::Remove(name)]);
        assert!(!tasks.any_alive() && tasks.registration().tasks.is_empty());
    }
}
