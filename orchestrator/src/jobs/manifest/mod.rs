//! What a job is: the manifest people write.
//!
//! It is read strictly: a key that is not known, a value of another type or a number nobody can mean is an error at
//! its line. What only several values together make wrong is found by [`Manifest::check`], which names the field.

mod health;
mod problems;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berth_engine::spec::MIN_MEMORY;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

pub use health::{Health, Http, Tcp};
pub use problems::Problem;
pub use values::{Cpus, ImageName, Name, Percent, RoleName, Size, Span, Text, Variable};
use values::{whole, whole_or_none};

use crate::api::Invalid;
use crate::attributes::{self, Pattern};
use crate::resources::{Kind, Quantities};

/// The longest manifest, in bytes.
pub const LONGEST: usize = 256 << 10;
/// The most kinds of tasks in a job.
const MOST_GROUPS: usize = 100;
/// The most tasks of a job.
pub const MOST_TASKS: u32 = 10_000;
/// The most entries of a list in a manifest.
const MOST_ITEMS: usize = 100;
/// How often a task can be tried again.
const MOST_RETRIES: u32 = 1000;
/// The most GPUs of a task.
const MOST_GPUS: u32 = 1024;
/// The variables that tasks find set; besides those of ports.
const RESERVED: [&str; 5] = ["BERTH_JOB", "BERTH_TASK", "BERTH_TASK_INDEX", "BERTH_TASK_COUNT", "BERTH_ATTEMPT"];
/// What the names of variables begin with that tell a task its ports.
const RESERVED_PREFIX: &str = "BERTH_PORT_";

/// Why a text is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody writes that by hand.
    #[error("a manifest has at most {LONGEST} bytes, this one has {0}")]
    TooLong(usize),
    /// Something is wrong with it, at a place.
    #[error("{0}")]
    Wrong(Problem),
}

/// A job: tasks that are submitted and stopped together
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Manifest {
    /// What the job is called; one job of a name runs at a time
    pub name: Name,
    /// In which role it takes part in the sharing of the cluster
    #[serde(default)]
    pub role: RoleName,
    /// Which jobs of the job framework get offers first: 0 to 100, the higher the earlier
    #[serde(default)]
    pub priority: Percent,
    /// The kinds of tasks it is made of, by name
    pub tasks: BTreeMap<Name, Group>,
}

/// Tasks that are all the same: the replicas of a service, or a batch
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Group {
    /// Keep so many tasks running until the job is stopped
    #[serde(default)]
    pub service: Option<Service>,
    /// Run so many tasks to their end; one, if neither a service nor a batch is described
    #[serde(default)]
    pub batch: Option<Batch>,
    /// How long to wait before a task that failed, or that of a service that ended, is started again
    #[serde(default)]
    pub back_off: BackOff,
    /// The image, or Wasm module, to run
    pub image: ImageName,
    /// Program and arguments, in place of the image's own
    #[serde(default)]
    pub command: Vec<Text>,
    /// Arguments for the program of the image
    #[serde(default)]
    pub args: Vec<Text>,
    /// A line for the image's shell, in place of the image's own program
    #[serde(default)]
    pub shell: Option<Text>,
    /// What keeps it apart from the host and other tasks
    #[serde(default)]
    pub isolation: Isolation,
    /// What a task may use
    #[serde(default)]
    pub resources: Resources,
    /// Variables of its environment
    #[serde(default)]
    pub env: BTreeMap<Variable, Text>,
    /// As which user of the image: a name or id, with or without a group
    #[serde(default)]
    pub user: Option<Text>,
    /// Directories of the host it sees
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Names of ports; which number each has is in the variable `BERTH_PORT_NAME`
    #[serde(default)]
    pub ports: Vec<Name>,
    /// On which agents it may run: those that satisfy all of these
    #[serde(default)]
    pub constraints: Vec<Constraint>,
    /// Over what its tasks are spread
    #[serde(default)]
    pub spread: Option<Spread>,
    /// How long it may take to end by itself when it is to end
    #[serde(default = "grace")]
    pub grace: Span,
    /// How a task is asked whether it is well
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// What is named has a value: a key with nothing behind it is a slip.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn grace() -> Span {
    Span::from_secs(10)
}

/// Tasks that are to run until they are stopped
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// How many
    #[serde(default = "one", deserialize_with = "whole::<_, 0, MOST_TASKS>")]
    #[schemars(range(max = MOST_TASKS))]
    pub replicas: u32,
}

/// Tasks that are to end
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Batch {
    /// How many; the variable `BERTH_TASK_INDEX` tells each which it is, from 0 on
    #[serde(default = "one", deserialize_with = "whole::<_, 1, MOST_TASKS>")]
    #[schemars(range(min = 1, max = MOST_TASKS))]
    pub count: u32,
    /// How often one that failed is tried again
    #[serde(default, deserialize_with = "whole::<_, 0, MOST_RETRIES>")]
    #[schemars(range(max = MOST_RETRIES))]
    pub retries: u32,
    /// Whether a task is given up rather than started again where it is not known that it never ran
    #[serde(default)]
    pub at_most_once: bool,
}

fn one() -> u32 {
    1
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { count: 1, retries: 0, at_most_once: false }
    }
}

/// Pauses between attempts: each is twice the one before
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct BackOff {
    /// The first
    pub first: Span,
    /// The longest; the count starts again after a task has run for longer
    pub most: Span,
}

impl Default for BackOff {
    fn default() -> BackOff {
        BackOff { first: Span::from_secs(1), most: Span::from_secs(60) }
    }
}

/// What keeps a task apart from the host and other tasks
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Namespaces and control groups
    #[default]
    Container,
    /// A virtual machine, with whichever guest the agent can run
    Microvm,
    /// A virtual machine with a Linux kernel
    MicrovmLinux,
    /// A virtual machine without a kernel of its own
    MicrovmProcess,
    /// A Wasm module or component
    Wasm,
}

impl Isolation {
    /// Its name, on the command line and as the label of a task.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::Container => "container",
            Isolation::Microvm => "microvm",
            Isolation::MicrovmLinux => "microvm-linux",
            Isolation::MicrovmProcess => "microvm-process",
            Isolation::Wasm => "wasm",
        }
    }

    /// Of which isolations an agent has to have one.
    pub fn one_of(self) -> &'static [&'static str] {
        match self {
            Isolation::Container => &["container"],
            Isolation::Microvm => &["microvm-linux", "microvm-process"],
            Isolation::MicrovmLinux => &["microvm-linux"],
            Isolation::MicrovmProcess => &["microvm-process"],
            Isolation::Wasm => &["wasm"],
        }
    }
}

/// What a task may use
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Resources {
    /// CPUs, in thousandths at least
    pub cpus: Cpus,
    /// Memory
    pub memory: Size,
    /// Disk
    pub disk: Option<Size>,
    /// GPUs
    #[serde(deserialize_with = "whole::<_, 0, MOST_GPUS>")]
    #[schemars(range(max = MOST_GPUS))]
    pub gpus: u32,
}

impl Default for Resources {
    fn default() -> Resources {
        Resources { cpus: Cpus::from_thousandths(100), memory: Size::from_bytes(64 << 20), disk: None, gpus: 0 }
    }
}

impl Resources {
    /// As the scheduler counts them.
    pub fn quantities(&self) -> Quantities {
        Quantities::new(self.cpus.thousandths(), self.memory.bytes())
            .with(Kind::Disk, self.disk.map_or(0, Size::bytes))
            .with(Kind::Gpus, u64::from(self.gpus))
    }
}

/// A directory of the host in a task
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Volume {
    /// Where it is on the host
    pub source: Text,
    /// Where it is in the task
    pub target: Text,
    /// Whether the task may only read it
    #[serde(default)]
    pub read_only: bool,
}

/// A condition on an attribute of agents: exactly one of `is`, `is-not`, `matches` and `exists`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Constraint {
    /// The attribute's name
    pub attribute: Text,
    /// Its text is this
    #[serde(default)]
    pub is: Option<Text>,
    /// Its text is another, or there is no such attribute
    #[serde(default)]
    pub is_not: Option<Text>,
    /// Its text as a whole matches this regular expression
    #[serde(default)]
    pub matches: Option<Text>,
    /// Whether there is such an attribute
    #[serde(default)]
    pub exists: Option<bool>,
}

impl Constraint {
    /// As the scheduler knows it.
    pub fn read(&self) -> Result<attributes::Constraint, Invalid> {
        let name = self.attribute.to_string();
        match self {
            Constraint { is: Some(text), is_not: None, matches: None, exists: None, .. } => {
                Ok(attributes::Constraint::Equals(name, text.to_string()))
            }
            Constraint { is: None, is_not: Some(text), matches: None, exists: None, .. } => {
                Ok(attributes::Constraint::Differs(name, text.to_string()))
            }
            Constraint { is: None, is_not: None, matches: Some(pattern), exists: None, .. } => Pattern::new(pattern)
                .map(|pattern| attributes::Constraint::Matches(name, pattern))
                .map_err(|error| Invalid::new("matches", error)),
            Constraint { is: None, is_not: None, matches: None, exists: Some(true), .. } => {
                Ok(attributes::Constraint::Exists(name))
            }
            Constraint { is: None, is_not: None, matches: None, exists: Some(false), .. } => {
                Ok(attributes::Constraint::Absent(name))
            }
            _ => Err(Invalid::new("attribute", "takes exactly one of `is`, `is-not`, `matches` and `exists`")),
        }
    }
}

/// How tasks are spread
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Spread {
    /// The attribute of agents that names their failure domain
    pub over: Text,
    /// The most tasks in one domain; without it, the one with the fewest comes first
    #[serde(default, deserialize_with = "whole_or_none::<_, 1, MOST_TASKS>")]
    #[schemars(range(min = 1, max = MOST_TASKS))]
    pub most: Option<u32>,
}

impl Group {
    /// Whether it is a service.
    pub fn is_service(&self) -> bool {
        self.service.is_some()
    }

    /// How it is run as a batch; what a service says of itself is in `service`.
    pub fn as_batch(&self) -> Batch {
        self.batch.unwrap_or_default()
    }

    /// How many tasks it is to have.
    pub fn count(&self) -> u32 {
        self.service.map_or_else(|| self.as_batch().count, |service| service.replicas)
    }

    /// Whether its tasks must not run twice.
    pub fn at_most_once(&self) -> bool {
        !self.is_service() && self.as_batch().at_most_once
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.service.is_some() && self.batch.is_some() {
            return Err(Invalid::new(
                "batch",
                "does not go together with `service`: tasks are to end, or they are not",
            ));
        }
        let Batch { retries, at_most_once, .. } = self.as_batch();
        if at_most_once && retries > 0 {
            return Err(Invalid::new("batch.retries", "does not go together with `at-most-once`"));
        }
        let programs = [!self.command.is_empty(), !self.args.is_empty(), self.shell.is_some()];
        if programs.into_iter().filter(|is_there| *is_there).count() > 1 {
            return Err(Invalid::new("command", "only one of `command`, `args` and `shell` says what is run"));
        }
        if self.command.first().is_some_and(|program| program.is_empty()) {
            return Err(Invalid::new("command[0]", "is empty: this is the program that is run"));
        }
        let mut parts = self.user.iter().flat_map(|user| user.split(':'));
        if parts.clone().count() > 2 || parts.any(str::is_empty) {
            return Err(Invalid::new("user", "has to be USER or USER:GROUP, each a name or a number"));
        }
        let reserved = |name: &str| RESERVED.contains(&name) || name.starts_with(RESERVED_PREFIX);
        if let Some(name) = self.env.keys().find(|name| reserved(name)) {
            return Err(Invalid::new(format!("env.{name}"), "is set for every task, and cannot be anything else"));
        }
        if self.back_off.first > self.back_off.most {
            return Err(Invalid::new("back-off.first", "is longer than `most`"));
        }
        if self.resources.memory.bytes() < MIN_MEMORY {
            let problem = format!("is less than {} MiB, with which no task could start", MIN_MEMORY >> 20);
            return Err(Invalid::new("resources.memory", problem));
        }
        if !self.ports.is_empty() && self.isolation != Isolation::Container {
            let problem = format!("a task with the isolation `{}` has no network", self.isolation.name());
            return Err(Invalid::new("ports", problem));
        }
        let lengths =
            [("volumes", self.volumes.len()), ("ports", self.ports.len()), ("constraints", self.constraints.len())];
        if let Some((field, _)) = lengths.into_iter().find(|(_, length)| *length > MOST_ITEMS) {
            return Err(Invalid::new(field, format!("has more than {MOST_ITEMS} entries")));
        }
        for (index, port) in self.ports.iter().enumerate() {
            if self.ports[..index].contains(port) {
                return Err(Invalid::new(format!("ports[{index}]"), format!("`{port}` is named twice")));
            }
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            for (field, path) in [("source", &volume.source), ("target", &volume.target)] {
                if !path.starts_with('/') || path.contains(':') {
                    let field = format!("volumes[{index}].{field}");
                    return Err(Invalid::new(field, "has to be an absolute path without colons"));
                }
            }
            let target = |volume: &Volume| Path::new(&*volume.target).components().collect::<PathBuf>();
            if self.volumes[..index].iter().any(|other| target(other) == target(volume)) {
                let field = format!("volumes[{index}].target");
                return Err(Invalid::new(field, format!("there is another volume at `{}`", &*volume.target)));
            }
        }
        self.health.as_ref().map_or(Ok(()), |health| health.check(self))?;
        for (index, constraint) in self.constraints.iter().enumerate() {
            constraint.read().map_err(|wrong| wrong.within(&format!("constraints[{index}]")))?;
        }
        Ok(())
    }
}

impl Manifest {
    /// Reads a manifest: YAML, of which JSON is a part.
    pub fn read(text: &str) -> Result<Manifest, Error> {
        if text.len() > LONGEST {
            return Err(Error::TooLong(text.len()));
        }
        let manifest: Manifest = problems::read(text).map_err(Error::Wrong)?;
        manifest.check().map_err(|wrong| Error::Wrong(Problem::of(text, wrong)))?;
        Ok(manifest)
    }

    /// Looks at what only several values together say.
    fn check(&self) -> Result<(), Invalid> {
        // What is kept has no aliases.
        if serde_json::to_string(self).map_or(true, |kept| kept.len() > problems::LONGEST_EXPANDED) {
            return Err(Invalid::new("tasks", problems::too_large()));
        }
        if self.tasks.is_empty() || self.tasks.len() > MOST_GROUPS {
            return Err(Invalid::new("tasks", format!("has to have between 1 and {MOST_GROUPS} entries")));
        }
        let mut count = 0_u64;
        for (name, group) in &self.tasks {
            group.check().map_err(|wrong| wrong.within(&format!("tasks.{name}")))?;
            count += u64::from(group.count());
        }
        if count > u64::from(MOST_TASKS) {
            return Err(Invalid::new("tasks", format!("are {count} together; a job has at most {MOST_TASKS}")));
        }
        Ok(())
    }

    /// The JSON schema of manifests.
    pub fn schema() -> serde_json::Value {
        schemars::schema_for!(Manifest).to_value()
    }
}

/// Whatever the bytes, reading them ends; and what is read is read again from what it is kept as.
///
/// # Panics
/// If that is not so.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz_manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(manifest) = Manifest::read(text) else { return };
    let kept = serde_json::to_string(&manifest).expect("manifests have texts for keys");
    assert_eq!(serde_json::from_str::<Manifest>(&kept).expect("what is kept can be read"), manifest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: &str = r#"
name: shop
role: web
priority: 80
tasks:
  front:
    service: {replicas: 2}
    image: busybox:latest
    command: [sleep, "1000"]
    resources: {cpus: 0.5, memory: 64m, disk: 1g, gpus: 1}
    env: {A: b, EMPTY: ""}
    user: "1000:1000"
    volumes: [{source: /srv/data, target: /data, read-only: true}]
    ports: [http, admin-2]
    constraints: [{attribute: zone, is-not: b}, {attribute: gpu, exists: false}, {attribute: rack, matches: "r[12]"}]
    spread: {over: zone, most: 2}
    grace: 1m30s
    health: {http: {port: http, path: /ready}, delay: 1s, interval: 2s, timeout: 500ms, failures: 2, grace: 20s}
  import:
    batch: {count: 100, retries: 3}
    back-off: {first: 500ms, most: 10s}
    image: import
    args: ["--fast"]
    isolation: wasm
  once:
    batch: {at-most-once: true}
    image: once
    shell: exit 0
    health: {shell: test -e /ready}
"#;

    #[test]
    fn everything_that_can_be_said_is_understood() {
        let manifest = Manifest::read(FULL).unwrap();
        let front = &manifest.tasks["front"];
        assert_eq!((front.is_service(), front.count(), front.constraints.len()), (true, 2, 3));
        assert_eq!(front.resources.quantities()[Kind::Cpus], 500);
        assert_eq!(front.grace.duration(), std::time::Duration::from_secs(90));
        let import = &manifest.tasks["import"];
        assert_eq!((import.count(), import.as_batch().retries, import.isolation), (100, 3, Isolation::Wasm));
        assert_eq!(import.back_off.first.duration(), std::time::Duration::from_millis(500));
        assert!(manifest.tasks["once"].at_most_once() && !import.at_most_once());
        fuzz_manifest(FULL.as_bytes());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("imege: x", "line 4: tasks.t.imege: is not known here; there are `service`, "),
            ("image: x\n    priority: 3", "line 5: tasks.t.priority: is not known here"),
            ("image: -x", "no name of an image"),
            ("image: x\n    resources: {cpus: .nan}", "between 0.001"),
            ("image: x\n    resources: {cpus: 1e300}", "between 0.001"),
            ("image: x\n    resources: {memory: 1m}", "tasks.t.resources.memory"),
            ("image: x\n    resources: {memory: 64q}", "not a size"),
            ("image: x\n    resources: {memory: 99999999t}", "more than"),
            ("image: x\n    grace: soon", "this is no time"),
            ("image: x\n    grace: -1s", "this is no time"),
            (
                "image: x\n    isolation: jail",
                "line 5: tasks.t.isolation: `jail` is not known; there are `container`, ",
            ),
            (
                "image: x\n    batch: {count: 0}",
                "line 5: tasks.t.batch.count: is 0, and has to be a whole number from 1 to 10000",
            ),
            (
                "image: x\n    batch: {count: 99999}",
                "batch.count: is 99999, and has to be a whole number from 1 to 10000",
            ),
            (
                "image: x\n    batch: {count: many}",
                "line 5: tasks.t.batch.count: is the text \"many\", and has to be a whole number",
            ),
            ("image: x\n    batch: {count: 1.5}", "tasks.t.batch.count: is floating point"),
            ("image: x\n    batch: {at-most-once: 7}", "line 5: tasks.t.batch.at-most-once: has to be true or false"),
            ("image: x\n    service: {replicas: -1}", "line 5: tasks.t.service.replicas: is -1"),
            ("image: x\n    resources: {gpus: 1025}", "tasks.t.resources.gpus: is 1025"),
            (
                "image: x\n    resources: {cpus: many}",
                "line 5: tasks.t.resources.cpus: is the text \"many\", and has to be a number",
            ),
            ("image: x\n    command: sleep", "line 5: tasks.t.command: has to be a list"),
            ("image: x\n    env: [A]", "line 5: tasks.t.env: has to be a mapping"),
            ("image: x\n    env: {A: [b]}", "line 5: tasks.t.env.A: has to be a text"),
            ("image:", "line 4: tasks.t.image: is empty"),
            ("image: !mine x", "line 4: tasks.t: the tag `!mine` means nothing here"),
            ("image: *x", "line 4: tasks.t: there is an alias"),
            ("args: [x]", "line 4: tasks.t: `image` is missing"),
            ("image: x\n    user: a:b:c", "line 5: tasks.t.user: has to be USER or USER:GROUP"),
            ("image: x\n    user: ''", "line 5: tasks.t.user"),
            ("image: x\n    command: [\"\"]", "line 5: tasks.t.command[0]: is empty"),
            ("image: x\n    env: {BERTH_JOB: x}", "line 5: tasks.t.env.BERTH_JOB: is set for every task"),
            ("image: x\n    env: {BERTH_PORT_A: x}", "tasks.t.env.BERTH_PORT_A"),
            (
                "image: x\n    volumes:\n    - {source: /a, target: /t}\n    - {source: /b, target: /t/}",
                "line 7: tasks.t.volumes[1].target",
            ),
            ("image: x\n    batch: {retries: 5000}", "tasks.t.batch.retries"),
            ("image: x\n    batch: {retries: 1, at-most-once: true}", "tasks.t.batch.retries"),
            ("image: x\n    shell: a\n    command: [b]", "tasks.t.command"),
            ("image: x\n    back-off: {first: 2m}", "tasks.t.back-off.first"),
            ("image: x\n    ports: [a, a]", "tasks.t.ports[1]"),
            ("image: x\n    ports: [A]", "lower-case"),
            ("image: x\n    volumes: [{source: data, target: /data}]", "tasks.t.volumes[0].source"),
            ("image: x\n    constraints: [{attribute: a}]", "tasks.t.constraints[0].attribute"),
            ("image: x\n    constraints: [{attribute: a, matches: '('}]", "tasks.t.constraints[0].matches"),
            (
                "image: x\n    spread: {over: a, most: 0}",
                "line 5: tasks.t.spread.most: is 0, and has to be a whole number from 1 to",
            ),
            ("image: x\n    env: {'a=b': c}", "no `=`"),
            ("image: x\n    health: {}", "line 5: tasks.t.health: takes exactly one of"),
            ("image: x\n    health: {shell: a, command: [b]}", "line 5: tasks.t.health: takes exactly one of"),
            ("image: x\n    health:", "line 5: tasks.t.health"),
            ("image: x\n    health: {shell: ' '}", "line 5: tasks.t.health.shell: is empty"),
            ("image: x\n    health: {command: [\"\"]}", "line 5: tasks.t.health.command[0]"),
            (
                "image: x\n    health: {tcp: {port: a}}",
                "line 5: tasks.t.health.tcp.port: `a` is none of the task's `ports`",
            ),
            ("image: x\n    ports: [a]\n    health: {http: {port: a, path: x}}", "line 6: tasks.t.health.http.path"),
            (
                "image: x\n    isolation: wasm\n    health: {shell: x}",
                "line 6: tasks.t.health.shell: nothing else runs",
            ),
            (
                "image: x\n    health: {shell: x, interval: 10ms}",
                "line 5: tasks.t.health.interval: has to be 100ms at least",
            ),
            ("image: x\n    health: {shell: x, failures: 0}", "line 5: tasks.t.health.failures: is 0, and has to be"),
            ("image: x\n    image: y", "line 5: tasks.t: `image` is there twice"),
        ];
        for (group, why) in cases {
            let error = Manifest::read(&format!("name: n\ntasks:\n  t:\n    {group}\n")).unwrap_err().to_string();
            assert!(error.contains(why), "{group}: {error}");
        }
        let job = "name: n\ntasks: {t: {image: i}}\n";
        let wholes = [
            (String::new(), "ends too early"),
            ("- a\n".to_owned(), "line 1: has to be a mapping"),
            ("name: \ntasks: {}\n".to_owned(), "line 1: name: is empty"),
            (format!("{job}---\n{job}"), "there is a second document"),
            (format!("priority: 101\n{job}"), "line 1: priority: is 101, and has to be a whole number from 0 to 100"),
            (format!("name: {}", "[".repeat(10_000)), "line 1: name: has to be a text"),
            (format!("name: n\ntasks: {}", "{a: ".repeat(10_000)), "line 2: tasks.a.a: is not known here"),
            ("name: n\ntasks: &a {t: *a}\n".to_owned(), "alias"),
        ];
        for (text, why) in wholes {
            let error = Manifest::read(&text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:.100}: {error}");
        }
    }

    #[test]
    fn aliases_cannot_make_a_manifest_much_larger_than_it_was_written() {
        let text = "x".repeat(60_000);
        let tasks = |count: usize| {
            let others: Vec<String> = (1..count).map(|number| format!("  t{number}: *a\n")).collect();
            format!("name: n\ntasks:\n  t0: &a {{image: i, env: {{A: {text}}}}}\n{}", others.concat())
        };
        assert_eq!(Manifest::read(&tasks(10)).unwrap().tasks.len(), 10);
        let error = Manifest::read(&tasks(90)).unwrap_err().to_string();
        assert!(error.contains("too large"), "{error}");
        let list = ["a"; 100].join(", ");
        let many = format!(
            "name: n\ntasks: {{a: {{image: i, args: &l [{list}]}}, {}}}",
            (0..99).map(|n| format!("t{n}: {{image: i, args: *l}}")).collect::<Vec<_>>().join(", ")
        );
        assert_eq!(Manifest::read(&many).map(|manifest| manifest.tasks.len()).ok(), None, "10,000 repetitions");
    }

    #[test]
    fn the_schema_has_what_manifests_have() {
        let schema = Manifest::schema();
        assert_eq!(schema["additionalProperties"], false);
        let group = &schema["$defs"]["Group"];
        assert_eq!(group["required"], serde_json::json!(["image"]));
        assert!(group["properties"]["back-off"]["description"].is_string(), "{group}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,400}") {
            fuzz_manifest(text.as_bytes());
        }

        #[test]
        fn a_spoilt_manifest_is_read_or_refused(at in 0..FULL.len(), length in 0..40_usize, by in "\\PC{0,20}") {
            let mut text = FULL.as_bytes().to_vec();
            text.splice(at..(at + length).min(FULL.len()), by.bytes());
            fuzz_manifest(&text);
        }
    }
}
