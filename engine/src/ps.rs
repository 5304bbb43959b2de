//! The list of containers.

use std::collections::BTreeMap;

use berth_runtime::monitor::Status;
use jiff::Timestamp;
use serde::Serialize;

use crate::container::{Container, State};
use crate::error::{Error, Result};
use crate::paths::Roots;

/// One line of the list.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Line {
    /// The id.
    #[serde(rename = "ID")]
    pub id: String,
    /// The name.
    pub name: String,
    /// The image reference.
    pub image: String,
    /// Digest of the image's configuration.
    #[serde(rename = "ImageID")]
    pub image_id: String,
    /// The command line.
    pub command: Vec<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// What it is doing.
    pub state: State,
    /// The same for people, as `Up 5 minutes`.
    pub status: String,
    /// The last exit code.
    pub exit_code: Option<i32>,
    /// The process's id on the host.
    pub pid: Option<i32>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
}

/// Which containers a person wants to see. Conditions of one kind are alternatives; kinds go together.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    all: bool,
    names: Vec<String>,
    ids: Vec<String>,
    statuses: Vec<String>,
    labels: Vec<String>,
    ancestors: Vec<String>,
    exit_codes: Vec<i32>,
}

impl Filter {
    /// Those that run, or all.
    pub fn new(all: bool) -> Self {
        Self { all, ..Self::default() }
    }

    /// Takes in one `KEY=VALUE` of `--filter`.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let refuse = |what: &str| Err(Error::Invalid(format!("`{text}` is no filter for containers; {what}")));
        match text.split_once('=') {
            Some(("name", value)) => self.names.push(value.to_owned()),
            Some(("id", value)) => self.ids.push(value.to_owned()),
            Some(("status", value)) => {
                let known = ["created", "running", "paused", "restarting", "exited"];
                if !known.contains(&value) {
                    return refuse(&format!("a status is one of {}", known.join(", ")));
                }
                self.statuses.push(value.to_owned());
                self.all = true;
            }
            Some(("label", value)) => self.labels.push(value.to_owned()),
            Some(("ancestor", value)) => self.ancestors.push(value.to_owned()),
            Some(("exited", value)) => match value.parse() {
                Ok(code) => {
                    self.exit_codes.push(code);
                    self.all = true;
                }
                Err(_) => return refuse("exited takes an exit code"),
            },
            _ => return refuse("use name, id, status, label, ancestor or exited, as in name=web"),
        }
        Ok(())
    }

    fn matches(&self, line: &Line) -> bool {
        let any = |wanted: &[String], fits: &dyn Fn(&str) -> bool| wanted.is_empty() || wanted.iter().any(|w| fits(w));
        (self.all || line.state.is_alive())
            && any(&self.names, &|wanted| line.name.contains(wanted))
            && any(&self.ids, &|wanted| line.id.starts_with(wanted))
            && any(&self.statuses, &|wanted| line.state.as_str() == wanted)
            && self.labels.iter().all(|wanted| has_label(&line.labels, wanted))
            && any(&self.ancestors, &|wanted| is_image(line, wanted))
            && (self.exit_codes.is_empty()
                || line.state == State::Exited && line.exit_code.is_some_and(|code| self.exit_codes.contains(&code)))
    }
}

/// Whether the labels have `KEY` or `KEY=VALUE`.
pub(crate) fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(wanted),
    }
}

/// Whether the container was made of this image: a reference with or without `:latest`, or the beginning of a digest.
fn is_image(line: &Line, wanted: &str) -> bool {
    let digest = line.image_id.strip_prefix("sha256:").unwrap_or(&line.image_id);
    let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    line.image == wanted
        || line.image.strip_suffix(":latest") == Some(wanted)
        || wanted.strip_suffix(":latest") == Some(&line.image)
        || hex.len() >= 4 && digest.starts_with(hex)
}

/// The containers that match, the newest first, and what could not be read.
pub fn list(roots: &Roots, filter: &Filter) -> Result<(Vec<Line>, Vec<Error>)> {
    let (containers, mut errors) = Container::all(roots)?;
    let now = Timestamp::now();
    let mut lines = Vec::new();
    for container in containers {
        match container.status() {
            Ok(status) => {
                let line = line(container, &status, now);
                lines.extend(Some(line).filter(|line| filter.matches(line)));
            }
            Err(error) => errors.push(error),
        }
    }
    Ok((lines, errors))
}

fn line(container: Container, status: &Status, now: Timestamp) -> Line {
    let state = container.state(status);
    let record = container.record;
    Line {
        status: describe(state, status, now),
        state,
        exit_code: status.exit_code,
        pid: status.pid,
        id: record.id,
        name: record.name,
        image: record.image,
        image_id: record.image_id,
        command: record.args,
        created_at: record.created_at,
        labels: record.options.labels,
    }
}

/// As docker words it: `Up 5 minutes`, `Exited (0) 2 hours ago`.
fn describe(state: State, status: &Status, now: Timestamp) -> String {
    let since = |time: Option<Timestamp>| time.map_or_else(|| "some time".to_owned(), |time| age(time, now));
    let code = status.exit_code.unwrap_or_default();
    match state {
        State::Created => "Created".to_owned(),
        State::Running => format!("Up {}", since(status.started_at)),
        State::Paused => format!("Up {} (Paused)", since(status.started_at)),
        State::Restarting => format!("Restarting ({code}) {} ago", since(status.finished_at)),
        State::Exited => format!("Exited ({code}) {} ago", since(status.finished_at)),
    }
}

/// How long ago a time was, in its largest unit.
pub fn age(time: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(time).as_secs().max(0);
    let (number, unit) = match seconds {
        0 => return "less than a second".to_owned(),
        1..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, state: State) -> Line {
        Line {
            id: "a".repeat(64),
            name: name.to_owned(),
            image: "busybox:latest".to_owned(),
            image_id: format!("sha256:{}", "b".repeat(64)),
            command: Vec::new(),
            created_at: Timestamp::UNIX_EPOCH,
            state,
            status: String::new(),
            exit_code: Some(3),
            pid: None,
            labels: BTreeMap::from([("tier".to_owned(), "web".to_owned())]),
        }
    }

    fn matches(filters: &[&str], line: &Line) -> bool {
        let mut filter = Filter::default();
        for text in filters {
            filter.add(text).unwrap();
        }
        filter.matches(line)
    }

    #[test]
    fn conditions_select() {
        let (web, old) = (line("web", State::Running), line("old", State::Exited));
        assert!(matches(&[], &web) && !matches(&[], &old));
        assert!(matches(&["status=exited"], &old) && !matches(&["status=exited"], &web));
        assert!(matches(&["exited=3"], &old) && !matches(&["exited=0"], &old) && !matches(&["exited=3"], &web));
        for good in ["name=we", "id=aaa", "label=tier", "label=tier=web", "ancestor=busybox", "ancestor=bbbb"] {
            assert!(matches(&[good], &web), "{good}");
        }
        for bad in ["name=x", "id=b", "label=other", "label=tier=db", "ancestor=alpine", "ancestor=cccc"] {
            assert!(!matches(&[bad], &web), "{bad}");
        }
        assert!(matches(&["name=x", "name=web"], &web) && !matches(&["name=web", "id=b"], &web));
        for unknown in ["colour=red", "name", "status=happy", "exited=x"] {
            assert!(Filter::default().add(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn ages_have_one_unit() {
        let ago = |seconds| age(Timestamp::from_second(0).unwrap(), Timestamp::from_second(seconds).unwrap());
        for (seconds, text) in [
            (-5, "less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute"),
            (7200, "2 hours"),
            (864_000, "10 days"),
            (100_000_000, "3 years"),
        ] {
            assert_eq!(ago(seconds), text);
        }
    }
}
