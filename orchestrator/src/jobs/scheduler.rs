//! What follows from what: a state machine without clock, input or output.
//!
//! ```text
//! submit ─▶ waiting ── an offer fits ─▶ launched ── ended well ─▶ finished (a service's waits again)
//!              ▲                           │
//!              └── never ran, lost, or ────┴── failed too often, or may have run and must not twice ─▶ failed
//!                  failed: after a while
//! ```
//!
//! What changes is to be made durable before anything is done that follows from it. So each attempt is known, under an
//! id that is never used again, before the master hears of it; whatever the master knows besides is a stranger, and
//! ended.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;

use super::manifest::{Group, MOST_TASKS as MOST_TASKS_OF_JOB, Manifest, Name};
use super::state::{Attempt, Grace, Job, Launch, Outcome, Stage, Task, TaskKey};
use super::wire::{Call, Status};
use crate::master::{AgentId, FrameworkId, TaskId, TaskState};

/// How often the master is asked about tasks it does not tell of, and is told again what is to end.
const REPEAT: Duration = Duration::from_secs(5);
/// The most tasks of all jobs that have not ended.
const MOST_TASKS: usize = 100_000;
/// How many jobs that have ended are remembered.
const MOST_ENDED: usize = 200;
/// About how many tasks one call asks after.
const MOST_RECONCILED: usize = 5000;
/// The longest message of a task's end that is kept, in bytes.
const MESSAGE: usize = 1000;

/// Now: on a clock that never jumps, and on the one that people read.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Since some beginning.
    pub elapsed: Duration,
    /// For records.
    pub time: Timestamp,
}

/// Why something that people asked for is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such job.
    #[error("there is no job `{0}`; `berth jobs` lists those that are known")]
    NoJob(String),
    /// A job of this name has not ended.
    #[error("a job `{0}` is there already; stop it first, or give this one another name")]
    Taken(Name),
    /// It has ended.
    #[error("the job `{0}` has ended")]
    Ended(Name),
    /// There is no such task.
    #[error("the job `{0}` has no task `{1}`")]
    NoTask(Name, String),
    /// Only services have replicas.
    #[error("`{0}` is no service: only services can be scaled")]
    NoService(Name),
    /// There would be too many tasks.
    #[error("there would be more than {0} tasks")]
    TooMany(usize),
}

/// What is to be made durable.
#[derive(Debug)]
pub struct Changes<'a> {
    /// What the framework itself is to remember, if that has changed.
    pub own: Option<Own>,
    /// Jobs as they are now; none for one that is forgotten.
    pub jobs: Vec<(Name, Option<&'a Job>)>,
    /// Tasks as they are now; none for one that is forgotten.
    pub tasks: Vec<(TaskKey, Option<&'a Task>)>,
}

impl Changes<'_> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.own.is_none() && self.jobs.is_empty() && self.tasks.is_empty()
    }
}

/// What the framework remembers of itself.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Own {
    /// Under which id it is subscribed.
    pub framework: Option<FrameworkId>,
    /// The number of the next job.
    pub next_job: u64,
    /// The number of the next attempt.
    pub next_launch: u64,
}

/// All that was made durable.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Of the framework itself.
    pub own: Own,
    /// The jobs.
    pub jobs: BTreeMap<Name, Job>,
    /// Their tasks.
    pub tasks: BTreeMap<TaskKey, Task>,
}

/// The order in which tasks that wait get offers: by priority, then by age of their job.
pub(super) type Queue = BTreeMap<(Reverse<u8>, u64, Name), (Name, BTreeSet<u32>)>;

/// What is known of a kind of tasks besides what is durable.
#[derive(Debug, Default)]
pub(super) struct Crew {
    pub(super) tasks: BTreeMap<u32, Task>,
    pub(super) on_agents: HashMap<AgentId, u32>,
    pub(super) in_domains: HashMap<String, u32>,
    /// Why the latest offers did not fit.
    pub(super) waits_for: String,
}

/// What is known of a role.
#[derive(Debug, Default)]
pub(super) struct Role {
    pub(super) waiting: usize,
    suppressed: bool,
    /// Whether something waits that did not when offers were last asked for.
    fresh: bool,
}

/// The jobs and their tasks.
#[derive(Debug, Default)]
pub struct Scheduler {
    pub(super) own: Own,
    pub(super) jobs: BTreeMap<Name, Job>,
    pub(super) crews: BTreeMap<(Name, Name), Crew>,
    pub(super) queue: Queue,
    /// Tasks that are not to be started before a time.
    delayed: BTreeSet<(Duration, TaskKey)>,
    /// Attempts under way, and whether the master has said something of them since it was last subscribed to.
    launches: HashMap<TaskId, (TaskKey, bool)>,
    stopping: BTreeSet<TaskKey>,
    /// Agents on which images have run, and so are there.
    pub(super) images: HashSet<(AgentId, String)>,
    pub(super) roles: BTreeMap<String, Role>,
    subscribed: bool,
    repeat: Duration,
    changed_own: bool,
    changed_jobs: BTreeSet<Name>,
    changed_tasks: BTreeSet<TaskKey>,
    pub(super) calls: Vec<Call>,
}

impl Scheduler {
    /// Goes on with what was made durable.
    pub fn new(recovered: Recovered) -> Scheduler {
        let Recovered { own, jobs, tasks } = recovered;
        let mut scheduler = Scheduler { own, jobs, ..Scheduler::default() };
        for job in scheduler.jobs.values() {
            let groups = job.manifest.tasks.keys();
            scheduler.crews.extend(groups.map(|group| ((job.manifest.name.clone(), group.clone()), Crew::default())));
            if job.ended.is_none() {
                scheduler.roles.entry(job.manifest.role.to_string()).or_default();
            }
        }
        for (key, task) in tasks {
            let Some(crew) = scheduler.crews.get_mut(&(key.job.clone(), key.group.clone())) else { continue };
            if let Some(group) = scheduler.jobs.get(&key.job).and_then(|job| job.manifest.tasks.get(&key.group)) {
                scheduler.images.extend(task.ran_on().map(|agent| (agent.clone(), group.image.to_string())));
            }
            let launch = task.launch().cloned();
            let waits = matches!(task.stage, Stage::Waiting);
            crew.tasks.insert(key.index, task);
            if let Some(launch) = launch {
                if launch.stop.is_some() {
                    scheduler.stopping.insert(key.clone());
                }
                scheduler.is_launched(&key, &launch);
            } else if waits {
                scheduler.wait(&key);
            }
        }
        scheduler
    }

    /// What to make durable.
    pub fn take_changes(&mut self) -> Changes<'_> {
        let own = std::mem::take(&mut self.changed_own).then(|| self.own.clone());
        let jobs = std::mem::take(&mut self.changed_jobs).into_iter();
        let tasks = std::mem::take(&mut self.changed_tasks).into_iter();
        Changes {
            own,
            jobs: jobs.map(|name| (name.clone(), self.jobs.get(&name))).collect(),
            tasks: tasks
                .map(|key| {
                    let crew = self.crews.get(&(key.job.clone(), key.group.clone()));
                    let task = crew.and_then(|crew| crew.tasks.get(&key.index));
                    (key, task)
                })
                .collect(),
        }
    }

    /// What to ask of the master after that.
    pub fn take_calls(&mut self) -> Vec<Call> {
        self.ask_for_offers();
        std::mem::take(&mut self.calls)
    }

    /// What the framework knows of itself.
    pub fn own(&self) -> &Own {
        &self.own
    }

    /// The roles it is in, and whether it wants no offers there.
    pub fn roles(&self) -> Vec<(String, bool)> {
        self.roles.iter().map(|(name, role)| (name.clone(), role.waiting == 0)).collect()
    }

    fn update(&self) -> Call {
        Call::Update { framework: self.own.framework.clone(), roles: self.roles() }
    }

    /// A job.
    pub fn job(&self, name: &str) -> Result<&Job, Refused> {
        self.jobs.get(name).ok_or_else(|| Refused::NoJob(name.to_owned()))
    }

    /// A job is to be run. The earlier one of its name, which has ended, is forgotten.
    pub fn submit(&mut self, manifest: Manifest, now: Now) -> Result<(), Refused> {
        let name = manifest.name.clone();
        if self.jobs.get(&name).is_some_and(|job| job.ended.is_none()) {
            return Err(Refused::Taken(name));
        }
        let count: usize = manifest.tasks.values().map(|group| group.count() as usize).sum();
        self.check_room(count)?;
        self.forget(&name);
        let mut job = Job {
            number: self.own.next_job,
            manifest,
            submitted: now.time,
            stopping: None,
            ended: None,
            events: [].into(),
        };
        job.note(now.time, format!("submitted, with {count} {}", if count == 1 { "task" } else { "tasks" }));
        self.own.next_job += 1;
        self.changed_own = true;
        self.enter(&job.manifest.role);
        let groups: Vec<(Name, u32)> =
            job.manifest.tasks.iter().map(|(group, it)| (group.clone(), it.count())).collect();
        self.jobs.insert(name.clone(), job);
        self.changed_jobs.insert(name.clone());
        for (group, count) in groups {
            self.crews.insert((name.clone(), group.clone()), Crew::default());
            for index in 0..count {
                self.add(&TaskKey { job: name.clone(), group: group.clone(), index });
            }
        }
        self.end_if_over(&name, now);
        Ok(())
    }

    /// The framework is to take part in a role.
    fn enter(&mut self, role: &str) {
        if !self.roles.contains_key(role) {
            self.roles.insert(role.to_owned(), Role { suppressed: true, ..Role::default() });
            if self.subscribed {
                self.calls.push(self.update());
            }
        }
    }

    fn check_room(&self, more: usize) -> Result<(), Refused> {
        let open = self.jobs.values().filter(|job| job.ended.is_none());
        let open = open.flat_map(|job| job.manifest.tasks.values()).map(|group| group.count() as usize);
        if open.sum::<usize>() + more > MOST_TASKS { Err(Refused::TooMany(MOST_TASKS)) } else { Ok(()) }
    }

    fn add(&mut self, key: &TaskKey) {
        let crew = self.crews.entry((key.job.clone(), key.group.clone())).or_default();
        crew.tasks.insert(key.index, Task::default());
        self.changed_tasks.insert(key.clone());
        self.wait(key);
    }

    /// A service is to have another count of replicas.
    pub fn scale(&mut self, job: &str, group: &str, replicas: u32, now: Now) -> Result<(), Refused> {
        let job = self.job(job)?;
        let name = job.manifest.name.clone();
        if job.ended.is_some() || job.stopping.is_some() {
            return Err(Refused::Ended(name));
        }
        let (group, before) = match job.manifest.tasks.get_key_value(group) {
            None => return Err(Refused::NoTask(name, group.to_owned())),
            Some((group, Group { service: None, .. })) => return Err(Refused::NoService(group.clone())),
            Some((group, Group { service: Some(service), .. })) => (group.clone(), service.replicas),
        };
        let others = job.manifest.tasks.values().map(Group::count).sum::<u32>() - before;
        if replicas > MOST_TASKS_OF_JOB - others {
            return Err(Refused::TooMany(MOST_TASKS_OF_JOB as usize));
        }
        self.check_room(replicas.saturating_sub(before) as usize)?;
        let Some(job) = self.jobs.get_mut(&name) else { return Ok(()) };
        if let Some(service) = job.manifest.tasks.get_mut(&group).and_then(|group| group.service.as_mut()) {
            service.replicas = replicas;
        }
        job.note(now.time, format!("{group} scaled from {before} to {replicas}"));
        self.changed_jobs.insert(name.clone());
        for index in 0..replicas {
            let key = TaskKey { job: name.clone(), group: group.clone(), index };
            match self.task_mut(&key) {
                None => self.add(&key),
                // It ends, and is then started again.
                Some(task) => task.surplus = false,
            }
        }
        let crew = &self.crews[&(name.clone(), group.clone())];
        for index in crew.tasks.range(replicas..).map(|(index, _)| *index).collect::<Vec<_>>() {
            let key = TaskKey { job: name.clone(), group: group.clone(), index };
            if let Some(task) = self.task_mut(&key) {
                task.surplus = true;
            }
            self.stop_task(&key, Grace::default(), now);
        }
        Ok(())
    }

    /// A job is to end.
    pub fn stop(&mut self, job: &str, grace: Grace, now: Now) -> Result<(), Refused> {
        let job = self.jobs.get_mut(job).ok_or_else(|| Refused::NoJob(job.to_owned()))?;
        let name = job.manifest.name.clone();
        if job.ended.is_some() {
            return Err(Refused::Ended(name));
        }
        if job.stopping.is_none() {
            job.note(now.time, "to be stopped".to_owned());
        }
        job.stopping = Some(grace);
        self.changed_jobs.insert(name.clone());
        let groups: Vec<Name> = job.manifest.tasks.keys().cloned().collect();
        for group in groups {
            let crew = &self.crews[&(name.clone(), group.clone())];
            for index in crew.tasks.keys().copied().collect::<Vec<_>>() {
                self.stop_task(&TaskKey { job: name.clone(), group: group.clone(), index }, grace, now);
            }
        }
        self.end_if_over(&name, now);
        Ok(())
    }

    fn stop_task(&mut self, key: &TaskKey, grace: Grace, now: Now) {
        let Some(task) = self.task_mut(key) else { return };
        match &mut task.stage {
            Stage::Waiting => {
                self.no_longer_waits(key);
                self.end_task(key, Outcome::Stopped, now);
            }
            Stage::Launched(launch) => {
                launch.stop = Some(grace);
                let kill = Call::Kill { task: launch.id.clone(), agent: launch.agent.clone(), grace: grace.time };
                self.calls.push(kill);
                self.stopping.insert(key.clone());
                self.changed_tasks.insert(key.clone());
            }
            Stage::Ended(_) => {}
        }
    }

    /// The master knows the framework.
    pub fn subscribed(&mut self, id: FrameworkId) {
        self.subscribed = true;
        if self.own.framework.as_ref() != Some(&id) {
            self.own.framework = Some(id);
            self.changed_own = true;
        }
        // What the subscription said may be out of date: it is said again.
        self.calls.push(self.update());
        for role in self.roles.values_mut() {
            role.suppressed = role.waiting > 0;
        }
        self.launches.values_mut().for_each(|(_, confirmed)| *confirmed = false);
        self.repeat = Duration::ZERO;
        // What nobody here has launched is found as well.
        self.calls.push(Call::Reconcile(Vec::new()));
    }

    /// The connection with the master is lost.
    pub fn disconnected(&mut self) {
        self.subscribed = false;
        // The next subscription must not fail for a role, which the master may refuse, that no job is in any more.
        let jobs = &self.jobs;
        let in_use = |name: &str| jobs.values().any(|job| job.ended.is_none() && *job.manifest.role == *name);
        self.roles.retain(|name, _| in_use(name));
    }

    /// The master lets nobody in under the framework's id any more: its tasks were ended.
    pub fn refused(&mut self, now: Now) {
        self.own.framework = None;
        self.changed_own = true;
        for id in self.launches.keys().cloned().collect::<Vec<_>>() {
            self.lost(&id, TaskState::Gone, "the master has removed the job framework and its tasks", now);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        while let Some((due, key)) = self.delayed.pop_first() {
            if due > now.elapsed {
                self.delayed.insert((due, key));
                break;
            }
            self.wait(&key);
        }
        if self.subscribed && now.elapsed >= self.repeat {
            self.repeat = now.elapsed + REPEAT;
            self.repeat_calls();
        }
    }

    /// When time matters next.
    pub fn next_tick(&self) -> Duration {
        let due = self.delayed.first().map_or(Duration::MAX, |(due, _)| *due);
        if self.subscribed { due.min(self.repeat) } else { due }
    }

    fn repeat_calls(&mut self) {
        let unsure = |(id, (key, confirmed)): (&TaskId, &(TaskKey, bool))| {
            let launch = self.task(key)?.launch()?;
            let settled = *confirmed && !matches!(launch.state, TaskState::Staging | TaskState::Unreachable);
            (!settled).then(|| (id.clone(), launch.agent.clone()))
        };
        let unsure: Vec<_> = self.launches.iter().filter_map(unsure).collect();
        let calls = unsure.chunks(MOST_RECONCILED).map(|tasks| Call::Reconcile(tasks.to_vec()));
        self.calls.extend(calls);
        let kill = |key: &TaskKey| {
            let Launch { id, agent, stop, .. } = self.task(key)?.launch()?;
            let (task, agent, grace) = (id.clone(), agent.clone(), (*stop)?.time);
            Some(Call::Kill { task, agent, grace })
        };
        let kills: Vec<_> = self.stopping.iter().filter_map(kill).collect();
        self.calls.extend(kills);
    }

    /// The master says something of a task.
    pub fn told(&mut self, status: Status, now: Now) {
        let Status { task, agent, state, update, message, sandbox, healthy } = status;
        let known = self.launches.get_mut(&task).map(|(key, confirmed)| {
            *confirmed = true;
            key.clone()
        });
        match known {
            Some(key) => {
                self.learn(&key, sandbox, healthy);
                self.told_of(&key, &task, state, &message, now);
            }
            // An attempt that was given up, and has come back.
            None if !state.is_terminal() && !matches!(state, TaskState::Unknown | TaskState::Unreachable) => {
                if let Some(agent) = agent.clone() {
                    self.calls.push(Call::Kill { task: task.clone(), agent, grace: None });
                }
            }
            None if state.is_terminal() => self.told_of_past(&task, state, &message, now),
            None => {}
        }
        if let (Some(agent), Some(update)) = (agent, update) {
            self.calls.push(Call::Acknowledge { task, agent, update });
        }
    }

    /// What became of an attempt that was given up while nobody knew.
    fn told_of_past(&mut self, id: &TaskId, state: TaskState, message: &str, now: Now) {
        let Some(key) = TaskKey::of(id) else { return };
        let attempts = self.task_mut(&key).into_iter().flat_map(|task| &mut task.attempts);
        let mut unknown = attempts.filter(|attempt| attempt.id == *id && !attempt.state.is_terminal());
        if let Some(attempt) = unknown.next() {
            attempt.state = state;
            attempt.ended = now.time;
            attempt.message = message.chars().take(MESSAGE).collect();
            self.changed_tasks.insert(key);
        }
    }

    /// What is said of an attempt besides its state. What is left out is as it was.
    fn learn(&mut self, key: &TaskKey, sandbox: Option<String>, healthy: Option<bool>) {
        let Some(launch) = self.task_mut(key).and_then(Task::launch_mut) else { return };
        let known = (launch.sandbox.clone(), launch.healthy);
        let latest = (sandbox.or_else(|| known.0.clone()), healthy.or(known.1));
        if latest != known {
            (launch.sandbox, launch.healthy) = latest;
            self.changed_tasks.insert(key.clone());
        }
    }

    fn told_of(&mut self, key: &TaskKey, id: &TaskId, state: TaskState, message: &str, now: Now) {
        let at_most_once = self.group(key).is_some_and(Group::at_most_once);
        let image = self.group(key).map(|group| group.image.to_string());
        let Some(launch) = self.task_mut(key).and_then(Task::launch_mut) else { return };
        match state {
            TaskState::Staging | TaskState::Starting | TaskState::Running | TaskState::Killing => {
                let changed = launch.state != state;
                launch.state = state;
                if state == TaskState::Running && launch.running.is_none() {
                    launch.running = Some(now.time);
                    let agent = launch.agent.clone();
                    self.images.extend(image.map(|image| (agent, image)));
                }
                if changed {
                    self.changed_tasks.insert(key.clone());
                }
            }
            TaskState::Unreachable if at_most_once && launch.stop.is_none() => {
                // It may run, and may come back; until then nobody knows.
                launch.state = state;
                self.changed_tasks.insert(key.clone());
            }
            TaskState::Finished | TaskState::Failed | TaskState::Killed | TaskState::Error => {
                self.ended(key, state, message, now);
            }
            TaskState::Dropped
            | TaskState::Lost
            | TaskState::Gone
            | TaskState::GoneByOperator
            | TaskState::Unknown
            | TaskState::Unreachable => self.lost(id, state, message, now),
        }
    }

    /// An attempt has ended, as its agent says.
    fn ended(&mut self, key: &TaskKey, state: TaskState, message: &str, now: Now) {
        let Some(launch) = self.give_up(key, state, message, now) else { return };
        let well = state == TaskState::Finished;
        let Some(group) = self.group(key).cloned() else { return };
        if launch.stop.is_some() {
            // A batch's task that came to its end first has come to its end.
            let outcome = if well && !group.is_service() { Outcome::Finished } else { Outcome::Stopped };
            return self.stopped(key, outcome, now);
        }
        if well && !group.is_service() {
            return self.end_task(key, Outcome::Finished, now);
        }
        let ran = now.time.duration_since(launch.running.unwrap_or(now.time)).unsigned_abs();
        let Some(task) = self.task_mut(key) else { return };
        task.failures = if ran > group.back_off.most.duration() { 1 } else { task.failures.saturating_add(1) };
        let failures = task.failures;
        // What was never right never will be.
        let hopeless = state == TaskState::Error || failures > group.as_batch().retries;
        if !group.is_service() && hopeless {
            return self.end_task(key, Outcome::Failed, now);
        }
        let factor = 1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
        let pause = group.back_off.first.duration().saturating_mul(factor).min(group.back_off.most.duration());
        self.delayed.insert((now.elapsed + pause, key.clone()));
    }

    /// It is not known what became of an attempt, or that it never was.
    pub fn lost(&mut self, id: &TaskId, state: TaskState, message: &str, now: Now) {
        let Some((key, _)) = self.launches.get(id).cloned() else { return };
        let Some(launch) = self.give_up(&key, state, message, now) else { return };
        let once = self.group(&key).is_some_and(Group::at_most_once);
        if launch.stop.is_some() {
            self.stopped(&key, Outcome::Stopped, now);
        } else if once && state != TaskState::Dropped {
            self.end_task(&key, Outcome::Failed, now);
        } else {
            self.wait(&key);
        }
    }

    /// A task that was to end has ended.
    fn stopped(&mut self, key: &TaskKey, outcome: Outcome, now: Now) {
        let stopping = self.jobs.get(&key.job).is_none_or(|job| job.stopping.is_some());
        let surplus = self.task(key).is_some_and(|task| task.surplus);
        if stopping || surplus {
            self.end_task(key, outcome, now);
        } else {
            // Meanwhile there are to be more again.
            self.wait(key);
        }
    }

    /// The present attempt of a task is over.
    fn give_up(&mut self, key: &TaskKey, state: TaskState, message: &str, now: Now) -> Option<Launch> {
        let crew = self.crews.get_mut(&(key.job.clone(), key.group.clone()))?;
        let task = crew.tasks.get_mut(&key.index)?;
        let Stage::Launched(launch) = std::mem::replace(&mut task.stage, Stage::Waiting) else { return None };
        task.remember(Attempt {
            id: launch.id.clone(),
            agent: launch.agent.clone(),
            launched: launch.launched,
            running: launch.running,
            ended: now.time,
            state,
            message: message.chars().take(MESSAGE).collect(),
            sandbox: launch.sandbox.clone(),
        });
        count_down(&mut crew.on_agents, &launch.agent);
        if let Some(domain) = &launch.domain {
            count_down(&mut crew.in_domains, domain);
        }
        self.launches.remove(&launch.id);
        self.stopping.remove(key);
        self.changed_tasks.insert(key.clone());
        Some(launch)
    }

    /// A task is over.
    fn end_task(&mut self, key: &TaskKey, outcome: Outcome, now: Now) {
        self.changed_tasks.insert(key.clone());
        if let Some(crew) = self.crews.get_mut(&(key.job.clone(), key.group.clone()))
            && let Some(task) = crew.tasks.get_mut(&key.index)
        {
            if task.surplus {
                crew.tasks.remove(&key.index);
            } else {
                task.stage = Stage::Ended(outcome);
            }
        }
        self.end_if_over(&key.job, now);
    }

    /// A job whose tasks are all over is over.
    fn end_if_over(&mut self, name: &Name, now: Now) {
        let Some(job) = self.jobs.get(name).filter(|job| job.ended.is_none()) else { return };
        let services = job.manifest.tasks.values().any(Group::is_service);
        if services && job.stopping.is_none() {
            return;
        }
        let groups = job.manifest.tasks.keys();
        let tasks = groups.filter_map(|group| self.crews.get(&(name.clone(), group.clone())));
        let mut outcome = if job.stopping.is_some() { Outcome::Stopped } else { Outcome::Finished };
        for task in tasks.flat_map(|crew| crew.tasks.values()) {
            match task.stage {
                Stage::Ended(Outcome::Failed) if job.stopping.is_none() => outcome = Outcome::Failed,
                Stage::Ended(_) => {}
                Stage::Waiting | Stage::Launched(_) => return,
            }
        }
        let Some(job) = self.jobs.get_mut(name) else { return };
        job.ended = Some((outcome, now.time));
        job.note(now.time, outcome.name().to_owned());
        self.changed_jobs.insert(name.clone());
        self.forget_old();
    }

    fn forget_old(&mut self) {
        let ended = self.jobs.values().filter_map(|job| Some((job.ended?.1, job.manifest.name.clone())));
        let mut ended: Vec<_> = ended.collect();
        ended.sort();
        for (_, name) in ended.iter().take(ended.len().saturating_sub(MOST_ENDED)) {
            self.forget(name);
        }
    }

    fn forget(&mut self, name: &Name) {
        let Some(job) = self.jobs.remove(name) else { return };
        self.changed_jobs.insert(name.clone());
        for group in job.manifest.tasks.keys() {
            if let Some(crew) = self.crews.remove(&(name.clone(), group.clone())) {
                let key = |index| TaskKey { job: name.clone(), group: group.clone(), index };
                self.changed_tasks.extend(crew.tasks.into_keys().map(key));
            }
        }
    }

    /// A task waits for an offer.
    fn wait(&mut self, key: &TaskKey) {
        let Some(job) = self.jobs.get(&key.job) else { return };
        if !self.task(key).is_some_and(|task| matches!(task.stage, Stage::Waiting)) {
            return;
        }
        let place = (Reverse(u8::from(job.manifest.priority)), job.number, key.group.clone());
        let (_, indices) = self.queue.entry(place).or_insert_with(|| (key.job.clone(), BTreeSet::new()));
        if indices.insert(key.index) {
            let role = self.roles.entry(job.manifest.role.to_string()).or_default();
            role.waiting += 1;
            role.fresh = true;
        }
    }

    pub(super) fn no_longer_waits(&mut self, key: &TaskKey) {
        let Some(job) = self.jobs.get(&key.job) else { return };
        let place = (Reverse(u8::from(job.manifest.priority)), job.number, key.group.clone());
        let Some((_, indices)) = self.queue.get_mut(&place) else { return };
        if indices.remove(&key.index)
            && let Some(role) = self.roles.get_mut(&*job.manifest.role)
        {
            role.waiting -= 1;
        }
        if indices.is_empty() {
            self.queue.remove(&place);
        }
    }

    /// Wants offers in roles in which something waits, and in no others.
    fn ask_for_offers(&mut self) {
        if !self.subscribed {
            return;
        }
        for (name, role) in &mut self.roles {
            let fresh = std::mem::take(&mut role.fresh);
            if role.waiting > 0 && (role.suppressed || fresh) {
                role.suppressed = false;
                self.calls.push(Call::Revive(name.clone()));
            } else if role.waiting == 0 && !role.suppressed {
                role.suppressed = true;
                self.calls.push(Call::Suppress(name.clone()));
            }
        }
    }

    /// An attempt is under way.
    pub(super) fn is_launched(&mut self, key: &TaskKey, launch: &Launch) {
        self.launches.insert(launch.id.clone(), (key.clone(), false));
        let crew = self.crews.entry((key.job.clone(), key.group.clone())).or_default();
        *crew.on_agents.entry(launch.agent.clone()).or_default() += 1;
        if let Some(domain) = &launch.domain {
            *crew.in_domains.entry(domain.clone()).or_default() += 1;
        }
    }

    /// A task gets an attempt.
    pub(super) fn launch(&mut self, key: &TaskKey, launch: Launch) {
        self.no_longer_waits(key);
        self.is_launched(key, &launch);
        if let Some(task) = self.task_mut(key) {
            task.stage = Stage::Launched(launch);
        }
        self.changed_tasks.insert(key.clone());
    }

    /// An id that no attempt ever had.
    pub(super) fn next_id(&mut self, key: &TaskKey) -> TaskId {
        self.own.next_launch += 1;
        self.changed_own = true;
        TaskId::from(format!("{key}.{}", self.own.next_launch))
    }

    /// What a task is one of.
    pub fn group(&self, key: &TaskKey) -> Option<&Group> {
        self.jobs.get(&key.job)?.manifest.tasks.get(&key.group)
    }

    /// A task.
    pub fn task(&self, key: &TaskKey) -> Option<&Task> {
        self.crews.get(&(key.job.clone(), key.group.clone()))?.tasks.get(&key.index)
    }

    fn task_mut(&mut self, key: &TaskKey) -> Option<&mut Task> {
        self.crews.get_mut(&(key.job.clone(), key.group.clone()))?.tasks.get_mut(&key.index)
    }
}

fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
