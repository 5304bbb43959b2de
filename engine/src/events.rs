//! The event journal: what happened to containers, one JSON object a line, appended by whoever did it with one
//! `write(2)`, so lines never mix.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Attempt as _, Error, Result};
use crate::paths::{PRIVATE, Roots, make_dir};
use crate::record::Record;
use crate::watch::Watch;

/// The journal lies in memory: beyond this many bytes the older half is dropped.
const MAX_BYTES: u64 = 4 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened.
    pub time: Timestamp,
    /// What it happened to: `container`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened: `create`, `start`, `die`, `destroy`, …
    pub action: String,
    /// The container's id.
    pub id: String,
    /// The container's name.
    #[serde(default)]
    pub name: String,
    /// The image reference.
    #[serde(default)]
    pub image: String,
    /// What else there is to say, such as `exitCode` or `signal`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// Something that has just happened to a container.
    pub fn of(record: &Record, action: &str) -> Self {
        Self {
            time: Timestamp::now(),
            kind: "container".to_owned(),
            action: action.to_owned(),
            id: record.id.clone(),
            name: record.name.clone(),
            image: record.image.clone(),
            attributes: BTreeMap::new(),
        }
    }
}

/// Writes an event into the journal.
pub fn append(roots: &Roots, event: &Event) -> Result<()> {
    let path = roots.events();
    let attempt = || format!("append to {}", path.display());
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dir(roots.state(), PRIVATE)?;
            open()
        }
        other => other,
    }
    .attempt(attempt)?;
    let mut line = serde_json::to_vec(event).map_err(io::Error::from).attempt(attempt)?;
    line.push(b'\n');
    file.write_all(&line).attempt(attempt)?;
    if file.metadata().attempt(attempt)?.len() > MAX_BYTES / 2 {
        fs::rename(&path, older(&path)).attempt(attempt)?;
    }
    Ok(())
}

/// The half of the journal that is dropped next.
fn older(path: &Path) -> PathBuf {
    path.with_extension("old.jsonl")
}

/// Which events a person wants to see.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Not before this.
    pub since: Option<Timestamp>,
    /// Not after this.
    pub until: Option<Timestamp>,
    /// Names, ids or beginnings of ids; empty: all.
    pub containers: Vec<String>,
    /// Actions; empty: all.
    pub actions: Vec<String>,
    /// Image references; empty: all.
    pub images: Vec<String>,
}

impl Filter {
    /// Takes in one `KEY=VALUE` of `--filter`.
    pub fn add(&mut self, text: &str) -> Result<()> {
        match text.split_once('=') {
            Some(("container", value)) => self.containers.push(value.to_owned()),
            Some(("event", value)) => self.actions.push(value.to_owned()),
            Some(("image", value)) => self.images.push(value.to_owned()),
            Some(("type", "container")) => {}
            _ => {
                return Err(Error::Invalid(format!(
                    "`{text}` is no filter for events; use container=NAME, event=ACTION or image=REFERENCE"
                )));
            }
        }
        Ok(())
    }

    fn matches(&self, event: &Event) -> bool {
        let any = |wanted: &[String], fits: &dyn Fn(&str) -> bool| wanted.is_empty() || wanted.iter().any(|w| fits(w));
        self.since.is_none_or(|since| event.time >= since)
            && self.until.is_none_or(|until| event.time <= until)
            && any(&self.containers, &|wanted| event.name == wanted || event.id.starts_with(wanted))
            && any(&self.actions, &|wanted| event.action == wanted)
            && any(&self.images, &|wanted| event.image == wanted)
    }
}

/// Shows events: those there are where `since` or `until` is given, then new ones as they happen until `until`.
pub fn follow(roots: &Roots, filter: &Filter, show: &mut dyn FnMut(&Event) -> Result<()>) -> Result<()> {
    let path = roots.events();
    let attempt = || format!("read {}", path.display());
    make_dir(roots.state(), PRIVATE)?;
    let open = || OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).attempt(attempt);
    // Watch before the first look, so that nothing falls between.
    let mut reader = BufReader::new(open()?);
    let mut watch = Watch::new(&path)?;
    if filter.since.is_some() || filter.until.is_some() {
        if let Ok(file) = File::open(older(&path)) {
            read_lines(&mut BufReader::new(file), filter, show).attempt(attempt)??;
        }
    } else {
        reader.seek(SeekFrom::End(0)).attempt(attempt)?;
    }
    loop {
        read_lines(&mut reader, filter, show).attempt(attempt)??;
        let left = match filter.until.map(|until| until.duration_since(Timestamp::now())) {
            Some(left) if !left.is_positive() => return Ok(()),
            left => left.map(jiff::SignedDuration::unsigned_abs),
        };
        watch.wait(None, left)?;
        let inode = reader.get_ref().metadata().attempt(attempt)?.ino();
        if fs::metadata(&path).map_or(true, |now| now.ino() != inode) {
            // The journal was turned over: the rest of the old half, then the new one.
            read_lines(&mut reader, filter, show).attempt(attempt)??;
            reader = BufReader::new(open()?);
            watch = Watch::new(&path)?;
        }
    }
}

/// Shows the whole lines up to the end of the file. A line that is not an event, such as one cut short by a full
/// disk, is passed over.
fn read_lines(
    reader: &mut BufReader<File>,
    filter: &Filter,
    show: &mut dyn FnMut(&Event) -> Result<()>,
) -> io::Result<Result<()>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        if length == 0 {
            return Ok(Ok(()));
        }
        if let Ok(event) = serde_json::from_slice::<Event>(&line)
            && filter.matches(&event)
            && let Err(error) = show(&event)
        {
            return Ok(Err(error));
        }
    }
}

/// The last exit code the journal tells of a container.
pub(crate) fn exit_code(roots: &Roots, id: &str) -> Result<Option<i32>> {
    let filter = Filter { containers: vec![id.to_owned()], actions: vec!["die".to_owned()], ..Filter::default() };
    let mut code = None;
    let mut take = |event: &Event| {
        code = event.attributes.get("exitCode").and_then(|code| code.parse().ok());
        Ok(())
    };
    for path in [older(&roots.events()), roots.events()] {
        if let Ok(file) = File::open(&path) {
            read_lines(&mut BufReader::new(file), &filter, &mut take)
                .attempt(|| format!("read {}", path.display()))??;
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: &str, id: &str, time: i64) -> Event {
        Event {
            time: Timestamp::from_second(time).unwrap(),
            kind: "container".to_owned(),
            action: action.to_owned(),
            id: id.repeat(64),
            name: format!("name-{id}"),
            image: "busybox".to_owned(),
            attributes: BTreeMap::new(),
        }
    }

    fn shown(roots: &Roots, filter: &Filter) -> Vec<(String, String)> {
        let mut shown = Vec::new();
        let mut show = |event: &Event| {
            shown.push((event.action.clone(), event.name.clone()));
            Ok(())
        };
        follow(roots, filter, &mut show).unwrap();
        shown
    }

    #[test]
    fn past_events_are_filtered() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), &dir.path().join("state")).unwrap();
        for event in [event("create", "a", 10), event("start", "a", 20), event("die", "b", 30)] {
            append(&roots, &event).unwrap();
        }
        let until = Some(Timestamp::from_second(1000).unwrap());
        let all = Filter { until, ..Filter::default() };
        assert_eq!(shown(&roots, &all).len(), 3);
        let mut wanted = all.clone();
        wanted.add("container=name-a").unwrap();
        wanted.add("event=start").unwrap();
        assert_eq!(shown(&roots, &wanted), [("start".to_owned(), "name-a".to_owned())]);
        let mut by_id = all.clone();
        by_id.add("container=bbbb").unwrap();
        assert_eq!(shown(&roots, &by_id).len(), 1);
        let since = Some(Timestamp::from_second(20).unwrap());
        assert_eq!(shown(&roots, &Filter { since, ..all.clone() }).len(), 2);
        assert!(Filter::default().add("colour=red").is_err());
    }

    #[test]
    fn a_broken_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), dir.path()).unwrap();
        fs::write(roots.events(), "{\"time\":\n\u{0}\u{0}\nnull\n").unwrap();
        append(&roots, &event("start", "a", 20)).unwrap();
        let until = Some(Timestamp::from_second(1000).unwrap());
        assert_eq!(shown(&roots, &Filter { until, ..Filter::default() }).len(), 1);
    }

    #[test]
    fn the_journal_is_bounded_and_turning_it_over_loses_nothing_new() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), dir.path()).unwrap();
        fs::write(roots.events(), vec![b'\n'; MAX_BYTES as usize / 2]).unwrap();
        append(&roots, &event("start", "a", 20)).unwrap();
        append(&roots, &event("die", "a", 30)).unwrap();
        assert!(fs::metadata(roots.events()).unwrap().len() < 1000);
        let until = Some(Timestamp::from_second(1000).unwrap());
        assert_eq!(shown(&roots, &Filter { until, ..Filter::default() }).len(), 2);
    }

    #[test]
    fn new_events_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), dir.path()).unwrap();
        append(&roots, &event("create", "a", 10)).unwrap();
        let mut last = Vec::new();
        let mut show = |event: &Event| {
            last.push(event.action.clone());
            if event.action == "die" { Err(Error::Invalid("enough".to_owned())) } else { Ok(()) }
        };
        // A follower that has seen the old event causes the next one itself: no clock, no second thread.
        let mut step = |event: &Event| {
            show(event)?;
            append(&roots, &super::tests::event("die", "a", 30))
        };
        let since = Some(Timestamp::from_second(0).unwrap());
        follow(&roots, &Filter { since, ..Filter::default() }, &mut step).unwrap_err();
        assert_eq!(last, ["create", "die"]);
    }

    #[test]
    fn the_exit_code_of_a_removed_container_is_in_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(dir.path(), dir.path()).unwrap();
        let id = "a".repeat(64);
        assert_eq!(exit_code(&roots, &id).unwrap(), None);
        for code in ["1", "7"] {
            let mut die = event("die", "a", 30);
            die.attributes.insert("exitCode".to_owned(), code.to_owned());
            append(&roots, &die).unwrap();
        }
        append(&roots, &event("destroy", "a", 31)).unwrap();
        assert_eq!(exit_code(&roots, &id).unwrap(), Some(7), "the last run's");
    }
}
