//! What people are told of jobs.

use serde_json::{Value, json};

use super::manifest::Name;
use super::scheduler::{Crew, Scheduler};
use super::state::{Job, Stage, Task, TaskKey};
use crate::master::{FrameworkId, TaskState};

/// How many tasks of a job are how far.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    waiting: usize,
    starting: usize,
    running: usize,
    ended: usize,
    failed: usize,
    /// Of those that ended, how many may still run where nobody can be asked.
    out_of_reach: usize,
}

/// Until when somebody waits for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// All its tasks have started.
    Running,
    /// All its tasks run, and those that are asked whether they are well are.
    Healthy,
    /// It has ended.
    Ended,
}

impl Scheduler {
    /// All jobs, the latest first.
    pub fn view_jobs(&self) -> Value {
        let mut jobs: Vec<&Job> = self.jobs.values().collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.number));
        jobs.into_iter().map(|job| self.view_summary(job)).collect()
    }

    /// Whether what somebody waits for has come.
    pub fn has_come(&self, job: &Job, until: Until) -> bool {
        let counts = self.counts(job);
        job.ended.is_some()
            || match until {
                Until::Running => counts.waiting == 0 && counts.starting == 0,
                Until::Healthy => self.is_healthy(job),
                Until::Ended => false,
            }
    }

    fn is_healthy(&self, job: &Job) -> bool {
        let groups = self.crews_of(job).map(|(name, crew)| (&job.manifest.tasks[&**name], crew));
        let mut tasks = groups.flat_map(|(group, crew)| crew.tasks.values().map(move |task| (group, task)));
        tasks.all(|(group, task)| match &task.stage {
            Stage::Waiting => false,
            Stage::Launched(launch) => {
                launch.running.is_some() && (group.health.is_none() || launch.healthy == Some(true))
            }
            Stage::Ended(_) => true,
        })
    }

    /// A job and its tasks.
    pub fn view_job(&self, job: &Job) -> Value {
        let mut view = self.view_summary(job);
        let events = job.events.iter().map(|(time, event)| json!({ "time": time, "event": event }));
        view["events"] = events.collect();
        let tasks = self.crews_of(job).flat_map(|(group, crew)| {
            crew.tasks.iter().map(move |(index, task)| {
                let key = TaskKey { job: job.manifest.name.clone(), group: group.clone(), index: *index };
                view_task(&key, task, crew, self.own.framework.as_ref())
            })
        });
        view["tasks"] = tasks.collect();
        view
    }

    fn view_summary(&self, job: &Job) -> Value {
        let counts = self.counts(job);
        let state = match (job.ended, job.stopping) {
            (Some((outcome, _)), _) => outcome.name(),
            (None, Some(_)) => "stopping",
            (None, None) if counts.running > 0 => "running",
            (None, None) => "waiting",
        };
        json!({
            "name": &*job.manifest.name,
            "role": &*job.manifest.role,
            "priority": u8::from(job.manifest.priority),
            "state": state,
            "submitted": job.submitted,
            "ended": job.ended.map(|(_, time)| time),
            "counts": {
                "waiting": counts.waiting,
                "starting": counts.starting,
                "running": counts.running,
                "ended": counts.ended,
                "failed": counts.failed,
                "out_of_reach": counts.out_of_reach,
            },
            "services": job.manifest.tasks.iter().filter_map(|(name, group)| {
                Some((name.to_string(), json!(group.service?.replicas)))
            }).collect::<serde_json::Map<_, _>>(),
        })
    }

    fn crews_of<'a>(&'a self, job: &'a Job) -> impl Iterator<Item = (&'a Name, &'a Crew)> {
        let crew = |group| self.crews.get(&(job.manifest.name.clone(), Name::clone(group)));
        job.manifest.tasks.keys().filter_map(move |group| Some((group, crew(group)?)))
    }

    fn counts(&self, job: &Job) -> Counts {
        let mut counts = Counts::default();
        for task in self.crews_of(job).flat_map(|(_, crew)| crew.tasks.values()) {
            counts.out_of_reach += usize::from(task.may_run());
            match state(task) {
                "waiting" => counts.waiting += 1,
                "starting" => counts.starting += 1,
                "failed" => counts.failed += 1,
                "finished" | "stopped" => counts.ended += 1,
                _ => counts.running += 1,
            }
        }
        counts
    }
}

fn state(task: &Task) -> &'static str {
    match &task.stage {
        Stage::Waiting => "waiting",
        Stage::Ended(outcome) => outcome.name(),
        Stage::Launched(launch) => match launch.state {
            TaskState::Unreachable => "unreachable",
            _ if launch.stop.is_some() => "stopping",
            TaskState::Staging | TaskState::Starting => "starting",
            _ => "running",
        },
    }
}

fn view_task(key: &TaskKey, task: &Task, crew: &Crew, framework: Option<&FrameworkId>) -> Value {
    let attempts = task.attempts.iter().map(|attempt| {
        json!({
            "id": attempt.id,
            "agent": attempt.agent,
            "launched": attempt.launched,
            "running": attempt.running,
            "ended": attempt.ended,
            "state": attempt.state.name(),
            "message": attempt.message,
            "sandbox": attempt.sandbox,
            "framework": framework,
        })
    });
    let mut view = json!({
        "task": key.to_string(),
        "state": state(task),
        "attempts": attempts.collect::<Value>(),
    });
    match &task.stage {
        Stage::Waiting => {
            let latest = task.attempts.back().filter(|_| task.failures > 0);
            view["waits_for"] = json!(match latest {
                Some(latest) => format!("another attempt, after {} failed: {}", task.failures, latest.message),
                None if crew.waits_for.is_empty() => "an offer".to_owned(),
                None => crew.waits_for.clone(),
            });
        }
        Stage::Launched(launch) => {
            view["id"] = json!(launch.id);
            view["agent"] = json!(launch.agent);
            view["launched"] = json!(launch.launched);
            view["running"] = json!(launch.running);
            view["healthy"] = json!(launch.healthy);
            view["sandbox"] = json!(launch.sandbox);
            view["framework"] = json!(framework);
            view["ports"] = launch.ports.iter().map(|(name, number)| (name.to_string(), json!(number))).collect();
        }
        Stage::Ended(_) => {
            view["may_run"] = json!(task.may_run());
        }
    }
    view
}
