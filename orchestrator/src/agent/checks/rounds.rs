//! Asks a task again and again, and tells when there is something new.

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::probe::Asker;
use super::{Check, Checks, HealthCheck};
use crate::agent::Happening;

/// What is new of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It is well.
    Healthy,
    /// It is not, for this reason.
    Unhealthy(String),
    /// It has not been for so often that it is to end.
    Hopeless(String),
    /// Its check has another result: `CheckStatusInfo`.
    Status(Value),
}

/// Asks a task until this is dropped.
#[derive(Debug)]
pub struct Rounds {
    _tasks: JoinSet<()>,
}

impl Rounds {
    /// Asks the task in the sandbox of this name, which has just started. What is new happens.
    pub fn begin(asker: &Asker, name: &str, checks: Checks, happenings: &UnboundedSender<Happening>) -> Rounds {
        let mut tasks = JoinSet::new();
        let Checks { health, check } = checks;
        if let Some(health) = health {
            tasks.spawn(ask_health(asker.clone(), name.to_owned(), health, happenings.clone()));
        }
        if let Some(check) = check {
            tasks.spawn(ask_status(asker.clone(), name.to_owned(), check, happenings.clone()));
        }
        Rounds { _tasks: tasks }
    }
}

async fn ask_health(asker: Asker, name: String, health: HealthCheck, happenings: UnboundedSender<Happening>) {
    let start = Instant::now();
    let mut judge = Judge::default();
    sleep(health.check.delay).await;
    loop {
        let answer = asker.ask(&name, &health.check).await;
        let report = judge.hear(answer.problem, start.elapsed() <= health.grace, health.failures);
        let over = matches!(report, Some(Report::Hopeless(_)));
        if report.is_some_and(|report| happenings.send(Happening::Checked(name.clone(), report)).is_err()) || over {
            return;
        }
        sleep(health.check.interval).await;
    }
}

async fn ask_status(asker: Asker, name: String, check: Check, happenings: UnboundedSender<Happening>) {
    let mut latest = Value::Null;
    sleep(check.delay).await;
    loop {
        let status = asker.ask(&name, &check).await.status;
        if status != latest {
            latest.clone_from(&status);
            if happenings.send(Happening::Checked(name.clone(), Report::Status(status))).is_err() {
                return;
            }
        }
        sleep(check.interval).await;
    }
}

/// What follows from a task's answers.
#[derive(Debug, Default)]
struct Judge {
    healthy: Option<bool>,
    /// Bad answers in a row.
    failures: u32,
}

impl Judge {
    /// An answer, and what is wrong with it; what is new by it.
    fn hear(&mut self, problem: Option<String>, in_grace: bool, most: u32) -> Option<Report> {
        let Some(problem) = problem else {
            self.failures = 0;
            return (self.healthy.replace(true) != Some(true)).then_some(Report::Healthy);
        };
        if in_grace && self.healthy.is_none() {
            return None;
        }
        self.failures += 1;
        let before = self.healthy.replace(false);
        if self.failures >= most {
            Some(Report::Hopeless(problem))
        } else {
            (before != Some(false)).then_some(Report::Unhealthy(problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Option<&str> = None;
    const BAD: Option<&str> = Some("x");

    fn hear(judge: &mut Judge, problem: Option<&str>, in_grace: bool, most: u32) -> Option<Report> {
        judge.hear(problem.map(str::to_owned), in_grace, most)
    }

    #[test]
    fn so_many_bad_answers_in_a_row_are_too_many() {
        let mut judge = Judge::default();
        let said = [GOOD, BAD, BAD, GOOD, GOOD, BAD, BAD, BAD].map(|it| hear(&mut judge, it, false, 3));
        let (unhealthy, hopeless) = (Report::Unhealthy("x".to_owned()), Report::Hopeless("x".to_owned()));
        let new = [Some(Report::Healthy), Some(unhealthy.clone()), None, Some(Report::Healthy), None];
        assert_eq!(said[..5], new);
        assert_eq!(said[5..], [Some(unhealthy), None, Some(hopeless)]);
    }

    #[test]
    fn a_task_that_was_never_well_has_time_to_become_so() {
        let mut judge = Judge::default();
        assert_eq!([hear(&mut judge, BAD, true, 1), hear(&mut judge, BAD, true, 1)], [None, None]);
        assert_eq!(hear(&mut judge, GOOD, true, 1), Some(Report::Healthy));
        assert!(
            matches!(hear(&mut judge, BAD, true, 1), Some(Report::Hopeless(_))),
            "the time is over once it was well"
        );
        assert!(matches!(hear(&mut Judge::default(), BAD, false, 1), Some(Report::Hopeless(_))));
    }
}
