//! What a task or an executor says is to be run, as arguments of `berth run`.
//!
//! What a task asks for and does not get would be a lie to its framework, so what is not supported is an error that
//! names the field.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_engine::options::{Limits, Network};
use serde::Deserialize;
use serde_json::Value;

use super::checks::{self, CheckInfo, Checks, HealthCheckInfo, Means};
use super::files;
use crate::api::scheduler::DurationInfo;
use crate::api::{Invalid, decode, parse};
use crate::master::{AgentId, ExecutorInfo, FrameworkId, TaskInfo};
use crate::resources::{Kind, Quantities};

/// How long a task may take to end by itself, unless it says so (Mesos').
const GRACE: Duration = Duration::from_secs(3);
/// The same of an executor.
const EXECUTOR_GRACE: Duration = Duration::from_secs(5);
/// How long an executor shall try to reach an agent that is not there, and the longest pause it shall make meanwhile.
const RECOVERY: Duration = Duration::from_mins(15);
const BACK_OFF: Duration = Duration::from_secs(2);
/// The least that an executor's sandbox gets: 10 thousandths of a CPU and 32 MiB, as in Mesos. Frameworks may say that it
/// uses nothing.
const LEAST: Quantities = Quantities::new(10, 32 << 20);
/// By what an executor shows its agent which it is.
const TOKEN: &str = "MESOS_EXECUTOR_AUTHENTICATION_TOKEN";
/// The label that chooses the isolation of a task.
pub const ISOLATION: &str = "org.berth.isolation";

/// An isolation: its name, and the flags that choose it.
type Isolation = (&'static str, &'static [&'static str]);

/// How a sandbox is made.
#[derive(Debug, PartialEq, Eq)]
pub struct Start {
    /// Those of `berth`.
    pub arguments: Vec<String>,
    /// Variables of its environment that nobody reads among its arguments.
    pub secrets: Vec<(String, String)>,
    /// The directory that is the task's own, if it has one. It has to be there before.
    pub directory: Option<PathBuf>,
}

/// All there are, the default first. Where one has an attribute of an agent, its name is `isolation.` and this.
const ISOLATIONS: [Isolation; 5] = [
    ("container", &[]),
    ("microvm", &["--isolation=microvm"]),
    ("microvm-linux", &["--isolation=microvm", "--guest=linux"]),
    ("microvm-process", &["--isolation=microvm", "--guest=process"]),
    (WASM, &["--isolation=wasm"]),
];
/// Those in which a task has a directory of its own that others can look into. Linux guests share no files with their host.
const WITH_DIRECTORY: [&str; 3] = ["container", "microvm-process", WASM];
/// The isolation in which nothing else can run.
const WASM: &str = "wasm";

/// What to run.
#[derive(Debug)]
pub struct Command {
    image: String,
    /// In place of the image's own, the entry point included.
    program: Option<String>,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    secrets: Vec<(String, String)>,
    user: Option<String>,
    isolation: Isolation,
    host_network: bool,
    /// `SOURCE:TARGET[:ro]`
    volumes: Vec<String>,
    resources: Quantities,
    /// What the task is asked while it runs.
    pub checks: Checks,
}

#[derive(Deserialize)]
struct Task {
    command: Option<CommandInfo>,
    container: Option<Container>,
    #[serde(default)]
    labels: Labels,
    kill_policy: Option<KillPolicy>,
    health_check: Option<HealthCheckInfo>,
    check: Option<CheckInfo>,
    max_completion_time: Option<Value>,
}

/// `ExecutorInfo`
#[derive(Deserialize)]
struct Executor {
    #[serde(rename = "type")]
    kind: Option<String>,
    command: Option<CommandInfo>,
    container: Option<Container>,
    #[serde(default)]
    labels: Labels,
    shutdown_grace_period: Option<DurationInfo>,
}

/// What a task or an executor is as a program in a sandbox.
struct Program {
    command: Option<CommandInfo>,
    container: Option<Container>,
    labels: Labels,
}

/// `CommandInfo`
#[derive(Debug, Default, Deserialize)]
pub struct CommandInfo {
    #[serde(default = "yes")]
    shell: bool,
    value: Option<String>,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default)]
    environment: Environment,
    user: Option<String>,
    #[serde(default)]
    uris: Vec<Value>,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Default, Deserialize)]
struct Environment {
    #[serde(default)]
    variables: Vec<Variable>,
}

#[derive(Debug, Deserialize)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Container {
    docker: Option<Docker>,
    mesos: Option<Mesos>,
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
struct Docker {
    image: String,
    network: Option<String>,
}

#[derive(Deserialize)]
struct Mesos {
    image: Option<Image>,
}

#[derive(Deserialize)]
struct Image {
    docker: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Volume {
    mode: String,
    container_path: String,
    host_path: Option<String>,
}

#[derive(Default, Deserialize)]
struct Labels {
    #[serde(default)]
    labels: Vec<Label>,
}

#[derive(Deserialize)]
struct Label {
    key: String,
    value: Option<String>,
}

#[derive(Deserialize)]
struct KillPolicy {
    grace_period: Option<DurationInfo>,
}

/// What a task wants to be run.
pub fn read(info: &TaskInfo, default_image: Option<&str>) -> Result<Command, Invalid> {
    let task: Task = decode(parse(info.payload.as_bytes())?)?;
    if task.max_completion_time.is_some() {
        return Err(Invalid::new("max_completion_time", "is not supported"));
    }
    let Task { command, container, labels, .. } = task;
    let mut command = Program { command, container, labels }.read(default_image)?;
    let means = Means { exec: command.isolation.0 != WASM, network: command.host_network };
    command.checks = checks::read(task.health_check, task.check, means)?;
    command.resources = info.resources.quantities;
    Ok(command)
}

/// What a task that an executor runs may not say.
pub fn check_of_executor(info: &TaskInfo) -> Result<(), Invalid> {
    let task: Task = decode(parse(info.payload.as_bytes())?)?;
    if task.command.is_some() {
        return Err(Invalid::new("command", "is there, and so is `executor`: a task has one of them"));
    }
    Ok(())
}

/// What an executor finds in its environment.
#[derive(Debug)]
pub struct Surrounding<'a> {
    /// Whose it is.
    pub framework: &'a FrameworkId,
    /// Where it is, if the agent has an id.
    pub agent: Option<&'a AgentId>,
    /// Where the agent listens.
    pub endpoint: SocketAddr,
    /// By what the agent knows it.
    pub token: String,
    /// The directory that is its own, outside of the sandbox.
    pub directory: &'a Path,
}

/// What an executor is, with `resources` for itself and its tasks.
pub fn read_executor(
    info: &ExecutorInfo,
    resources: Quantities,
    default_image: Option<&str>,
    surrounding: Surrounding,
) -> Result<Command, Invalid> {
    let executor: Executor = decode(parse(info.payload.as_bytes())?)?;
    if let Some(kind) = executor.kind.filter(|kind| !["CUSTOM", "UNKNOWN"].contains(&&**kind)) {
        return Err(Invalid::new("type", format!("`{kind}` is not supported; CUSTOM is")));
    }
    let grace = executor.shutdown_grace_period.map_or(EXECUTOR_GRACE, |grace| grace.duration());
    let Executor { command, container, labels, .. } = executor;
    let mut command = Program { command, container, labels }.read(default_image)?;
    if !command.host_network {
        let problem =
            "an executor reaches its agent over the host's network, which only containers have that say nothing else";
        return Err(Invalid::new("container", problem));
    }
    command.resources = resources;
    let seconds = |duration: Duration| format!("{}secs", duration.as_secs_f64());
    let agent = surrounding.agent.map_or("", AgentId::as_str);
    let variables = [
        ("MESOS_FRAMEWORK_ID", surrounding.framework.to_string()),
        ("MESOS_EXECUTOR_ID", info.id.to_string()),
        ("MESOS_AGENT_ID", agent.to_owned()),
        // Its name of old.
        ("MESOS_SLAVE_ID", agent.to_owned()),
        ("MESOS_AGENT_ENDPOINT", surrounding.endpoint.to_string()),
        ("MESOS_DIRECTORY", surrounding.directory.display().to_string()),
        (files::VARIABLE, files::PLACE.to_owned()),
        ("MESOS_CHECKPOINT", "1".to_owned()),
        ("MESOS_RECOVERY_TIMEOUT", seconds(RECOVERY)),
        ("MESOS_SUBSCRIPTION_BACKOFF_MAX", seconds(BACK_OFF)),
        ("MESOS_EXECUTOR_SHUTDOWN_GRACE_PERIOD", seconds(grace)),
    ];
    command.environment.extend(variables.map(|(name, value)| (name.to_owned(), value)));
    command.environment.remove(TOKEN);
    command.secrets = vec![(TOKEN.to_owned(), surrounding.token)];
    Ok(command)
}

/// How much an executor's sandbox gets, of which it and its tasks use so much.
pub fn limits(used: &Quantities) -> Quantities {
    used.iter().fold(*used, |limits, (kind, amount)| limits.with(kind, amount.max(LEAST[kind])))
}

/// The same, as the engine counts them.
#[expect(clippy::cast_precision_loss, reason = "what agents have is far below 2⁵³")]
pub fn engine_limits(limits: &Quantities) -> Limits {
    let (memory, cpus) = (Some(limits[Kind::Memory]), Some(limits[Kind::Cpus] as f64 / 1000.0));
    Limits { memory, cpus, ..Limits::default() }
}

impl Program {
    fn read(self, default_image: Option<&str>) -> Result<Command, Invalid> {
        let asked = self.labels.labels.into_iter().find(|label| label.key == ISOLATION).and_then(|label| label.value);
        let asked = asked.as_deref().unwrap_or(ISOLATIONS[0].0);
        let isolation = ISOLATIONS.into_iter().find(|(name, _)| *name == asked).ok_or_else(|| {
            let known = ISOLATIONS.map(|(name, _)| name).join(", ");
            Invalid::new(format!("labels.{ISOLATION}"), format!("`{asked}` is not known; there are {known}"))
        })?;
        let Surroundings { image, network, volumes } =
            self.container.map(Container::read).transpose()?.unwrap_or_default();
        let missing = || Invalid::missing("container.mesos.image.docker.name");
        let image = image.or_else(|| default_image.map(str::to_owned)).ok_or_else(missing)?;
        if image.starts_with('-') {
            return Err(Invalid::new("container.mesos.image.docker.name", format!("`{image}` is no name of an image")));
        }
        let command = self.command.ok_or_else(|| Invalid::missing("command"))?;
        let (program, arguments) = command.line().map_err(|wrong| wrong.within("command"))?;
        let variables = command.environment.variables.into_iter().map(|variable| (variable.name, variable.value));
        Ok(Command {
            image,
            program,
            arguments,
            environment: variables.collect(),
            secrets: Vec::new(),
            user: command.user,
            // Containers share the host's network, as in Mesos; the others have none yet.
            host_network: network.as_deref() != Some("NONE") && isolation == ISOLATIONS[0],
            isolation,
            volumes,
            resources: Quantities::ZERO,
            checks: Checks::default(),
        })
    }
}

impl CommandInfo {
    /// The program, none for the image's own, and its arguments.
    fn line(&self) -> Result<(Option<String>, Vec<String>), Invalid> {
        if !self.uris.is_empty() {
            return Err(Invalid::new("uris", "is not supported: files come with the image"));
        }
        match (self.shell, self.value.clone()) {
            (true, Some(line)) => Ok((Some("/bin/sh".to_owned()), vec!["-c".to_owned(), line])),
            (true, None) => Err(Invalid::new("value", "is missing: a shell needs something to run")),
            // The first argument is the program's name for itself.
            (false, Some(program)) => Ok((Some(program), self.arguments.iter().skip(1).cloned().collect())),
            (false, None) => Ok((None, self.arguments.clone())),
        }
    }

    /// The same as a second program in a sandbox: the flags of `berth exec`, and the program with its arguments.
    pub fn inside(self) -> Result<(Vec<String>, Vec<String>), Invalid> {
        let (program, arguments) = self.line()?;
        let program = program.ok_or_else(|| Invalid::missing("value"))?;
        let variables = self.environment.variables.into_iter();
        let mut flags: Vec<String> =
            variables.map(|variable| format!("--env={}={}", variable.name, variable.value)).collect();
        flags.extend(self.user.map(|user| format!("--user={user}")));
        Ok((flags, std::iter::once(program).chain(arguments).collect()))
    }
}

/// What a container is made of.
#[derive(Default)]
struct Surroundings {
    image: Option<String>,
    network: Option<String>,
    volumes: Vec<String>,
}

impl Container {
    fn read(self) -> Result<Surroundings, Invalid> {
        let mut volumes = Vec::new();
        for (index, volume) in self.volumes.into_iter().enumerate() {
            let field = |name: &str| format!("container.volumes[{index}].{name}");
            let source = volume.host_path.ok_or_else(|| Invalid::missing(field("host_path")))?;
            let absolute = |path: &str, name: &str| {
                let plain = path.starts_with('/') && !path.contains(':');
                if plain { Ok(()) } else { Err(Invalid::new(field(name), "has to be absolute and without colons")) }
            };
            absolute(&source, "host_path")?;
            absolute(&volume.container_path, "container_path")?;
            let mode = match volume.mode.as_str() {
                "RO" => ":ro",
                "RW" => "",
                _ => return Err(Invalid::new(field("mode"), "is neither RO nor RW")),
            };
            volumes.push(format!("{source}:{}{mode}", volume.container_path));
        }
        let network = self.docker.as_ref().and_then(|docker| docker.network.clone());
        if let Some(other) = network.as_deref().filter(|name| !["HOST", "NONE"].contains(name)) {
            return Err(Invalid::new(
                "container.docker.network",
                format!("`{other}` is not supported; HOST and NONE are"),
            ));
        }
        let image = self.mesos.and_then(|mesos| mesos.image).and_then(|image| image.docker).map(|image| image.name);
        Ok(Surroundings { image: self.docker.map(|docker| docker.image).or(image), network, volumes })
    }
}

impl Command {
    /// What starts it in a sandbox of this name, with limits equal to what it may use. What it leaves in `directory` can be
    /// looked at by others; `network` is the host's as far as tasks are concerned.
    pub fn start(mut self, name: &str, directory: &Path, network: &Network) -> Start {
        let directory = WITH_DIRECTORY.contains(&self.isolation.0).then(|| directory.to_owned());
        if let Some(directory) = &directory {
            self.environment.entry(files::VARIABLE.to_owned()).or_insert_with(|| files::PLACE.to_owned());
            self.volumes.insert(0, format!("{}:{}", directory.display(), files::PLACE));
        }
        let mut arguments = vec!["run".to_owned(), "--detach".to_owned(), format!("--name={name}")];
        arguments.extend(self.isolation.1.iter().map(|&flag| flag.to_owned()));
        let mut flag = |name: &str, value: &str| arguments.push(format!("--{name}={value}"));
        for (kind, amount) in self.resources.iter().filter(|(_, amount)| *amount > 0) {
            match kind {
                Kind::Cpus => flag("cpus", &format!("{}.{:03}", amount / 1000, amount % 1000)),
                Kind::Memory => flag("memory", &format!("{amount}b")),
                Kind::Disk | Kind::Gpus => {}
            }
        }
        if self.host_network {
            flag("network", &network.to_string());
        }
        if let Some(user) = &self.user {
            flag("user", user);
        }
        for (name, value) in &self.environment {
            flag("env", &format!("{name}={value}"));
        }
        // `berth` finds their values in its own environment.
        for (name, _) in &self.secrets {
            flag("env", name);
        }
        for volume in &self.volumes {
            flag("volume", volume);
        }
        if self.program.is_some() {
            flag("entrypoint", "");
        }
        arguments.push(self.image);
        arguments.extend(self.program);
        arguments.extend(self.arguments);
        Start { arguments, secrets: self.secrets, directory }
    }
}

/// How long a task may take to end by itself.
pub fn grace(info: &TaskInfo) -> Duration {
    let task = parse(info.payload.as_bytes()).and_then(decode::<Task>).ok();
    let policy = task.and_then(|task| task.kill_policy).and_then(|policy| policy.grace_period);
    policy.map_or(GRACE, |grace| grace.duration())
}

/// How long an executor may take to end by itself.
pub fn executor_grace(info: &ExecutorInfo) -> Duration {
    let executor = parse(info.payload.as_bytes()).and_then(decode::<Executor>).ok();
    let grace = executor.and_then(|executor| executor.shutdown_grace_period);
    grace.map_or(EXECUTOR_GRACE, |grace| grace.duration())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(payload: &Value) -> Result<Vec<String>, Invalid> {
        let info = TaskInfo {
            id: "t".into(),
            agent: "a".into(),
            resources: Quantities::new(1500, 64 << 20).into(),
            executor: None,
            payload: payload.to_string().into(),
        };
        Ok(read(&info, None)?.start("n", Path::new("/d"), &Network::Host).arguments)
    }

    #[test]
    fn a_command_becomes_arguments() {
        let container = json!({ "mesos": { "image": { "docker": { "name": "busybox" } } } });
        let common = ["run", "--detach", "--name=n", "--cpus=1.500", "--memory=67108864b", "--network=host"];
        let environment = json!({ "variables": [{ "name": "A", "value": "b" }] });
        let command = json!({ "value": "echo $A", "environment": environment });
        let shell = json!({ "container": container, "command": command });
        let own = ["--env=MESOS_SANDBOX=/mnt/mesos/sandbox", "--volume=/d:/mnt/mesos/sandbox"];
        let rest = ["--env=A=b", own[0], own[1], "--entrypoint=", "busybox", "/bin/sh", "-c", "echo $A"];
        assert_eq!(arguments(&shell).unwrap(), [&common[..], &rest].concat());
        let command = json!({ "shell": false, "value": "/bin/echo", "arguments": ["echo", "-n"] });
        let program = json!({ "container": container, "command": command });
        assert_eq!(arguments(&program).unwrap()[8..], ["--entrypoint=", "busybox", "/bin/echo", "-n"]);
        let image_own = json!({ "container": container, "command": { "shell": false, "arguments": ["x"] } });
        assert_eq!(arguments(&image_own).unwrap()[8..], ["busybox", "x"]);
        let limits = ["--cpus=1.500", "--memory=67108864b"];
        for (isolation, flags, own) in [
            ("microvm-process", &["--isolation=microvm", "--guest=process"][..], &own[..]),
            ("microvm-linux", &["--isolation=microvm", "--guest=linux"], &[]),
            ("wasm", &["--isolation=wasm"], &own),
        ] {
            let label = json!({ "labels": [{ "key": ISOLATION, "value": isolation }] });
            let isolated = json!({ "container": container, "command": { "shell": false }, "labels": label });
            let flags = [flags, &limits, own, &["busybox"]].concat();
            assert_eq!(arguments(&isolated).unwrap()[3..], flags, "and no network");
        }
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let container = json!({ "docker": { "image": "busybox", "network": "BRIDGE" } });
        let cases = [
            (json!({ "command": { "value": "x" } }), "container.mesos.image.docker.name"),
            (json!({ "container": container, "command": { "value": "x" } }), "container.docker.network"),
            (
                json!({ "container": { "docker": { "image": "-x" } }, "command": { "value": "x" } }),
                "container.mesos.image.docker.name",
            ),
            (json!({ "container": { "docker": { "image": "b" } } }), "command"),
            (json!({ "container": { "docker": { "image": "b" } }, "command": {} }), "command.value"),
            (json!({ "container": { "docker": { "image": "b" } }, "command": { "value": 7 } }), "command.value"),
            (
                json!({
                    "container": { "docker": { "image": "b", "network": "NONE" } },
                    "command": { "value": "x" },
                    "health_check": { "tcp": { "port": 80 } },
                }),
                "health_check.tcp",
            ),
            (json!({ "labels": { "labels": [{ "key": ISOLATION, "value": "x" }] } }), "labels.org.berth.isolation"),
        ];
        for (payload, field) in cases {
            assert_eq!(arguments(&payload).unwrap_err().field, field, "{payload}");
        }
    }
}
