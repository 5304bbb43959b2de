//! `berth cluster`, and what there is to see of one: `berth nodes`, `berth fairness`, `berth explain`

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use berth_engine::options::Network;
use berth_engine::{info, size};
use berth_orchestrator::agent;
use berth_orchestrator::attributes::Attributes;
use berth_orchestrator::cluster::{self, MOST_AGENTS, Plan};
use berth_orchestrator::jobs;
use berth_orchestrator::master::AgentInfo;
use berth_orchestrator::masters::Masters;
use berth_orchestrator::process::{self, Contact, State};
use berth_orchestrator::resources::{Kind, Ports, Quantities, Resources};
use berth_orchestrator::server;
use berth_orchestrator::store::etcd::{Location, PASSWORD_VARIABLE};
use berth_orchestrator::tls::{self, Client, Role};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::certificates::{Init, Join, Token};
use super::{Context, job};
use crate::failure;
use crate::flags::{full_pair, network, time};
use crate::output::{self, Format, Table};

/// Where a master listens, if nobody says otherwise.
pub(super) const MASTER: &str = "127.0.0.1:5050";

/// How often agents are asked how far they are.
const LOOK: Duration = Duration::from_millis(200);

/// Run a cluster, or one of its processes
#[derive(Debug, Args)]
pub struct Cluster {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(Up),
    Status(Status),
    Events(Events),
    Prefetch(Prefetch),
    Down(Down),
    Master(Master),
    Agent(Agent),
    Jobs(Jobs),
    Init(Init),
    Token(Token),
    Join(Join),
}

impl Cluster {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Command::Up(command) => command.run(context),
            Command::Status(_) => Status::run(context),
            Command::Events(command) => command.run(context),
            Command::Prefetch(command) => command.run(context),
            Command::Down(_) => Down::run(context),
            Command::Master(command) => command.run(context),
            Command::Agent(command) => command.run(context),
            Command::Jobs(command) => command.run(context),
            Command::Init(command) => command.run(),
            Command::Token(command) => command.run(context),
            Command::Join(command) => command.run(),
        }
    }
}

/// Start a whole cluster on this machine, or what is missing of it
#[derive(Debug, Args)]
struct Up {
    /// How many agents share this machine [default: 1]
    #[arg(long, value_name = "N", value_parser = agents())]
    agents: Option<u16>,
    /// Where the master listens; port 0 for any that is free [default: 127.0.0.1:5050]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// The image of other frameworks' tasks that name none; those of jobs always do
    #[arg(long, value_name = "IMAGE")]
    default_image: Option<String>,
    /// After which time without a word from it an agent counts as unreachable, at least 10s [default: 75s]
    #[arg(long, value_name = "TIME", value_parser = agent_timeout)]
    agent_timeout: Option<Duration>,
    /// Whose network the agents' tasks have: the host's, or each agent one of its own, which takes root and `ip` [default: own
    /// where that is possible]
    #[arg(long, value_enum, value_name = "host|own", hide_possible_values = true)]
    network: Option<Networks>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Networks {
    Host,
    Own,
}

impl Up {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let plan = Plan {
            roots: context.roots.clone(),
            berth: this_program()?,
            listen: self.listen,
            agents: self.agents,
            default_image: self.default_image,
            agent_timeout: self.agent_timeout,
            own_networks: self.network.map(|network| network == Networks::Own),
        };
        let cluster::Started { cluster, confined } = cluster::up(&plan)?;
        if let Some(reason) = confined {
            let what =
                "tasks reach this host and each other, and nothing beyond; `--network host` shares the host's network";
            failure::warn(&anyhow::Error::new(reason).context(what));
        }
        if context.format == Format::Json {
            output::json(&cluster)?;
        } else {
            let agents = output::counted(cluster.agents.into(), "agent");
            output::lines([format!("The cluster is up: a master at {} and {agents}", cluster.master)])?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Show the processes of the cluster on this machine
#[derive(Debug, Args)]
struct Status {}

impl Status {
    fn run(context: &Context) -> Result<ExitCode> {
        let cluster = cluster::read(&context.roots)?.ok_or(cluster::Error::None)?;
        let processes: Vec<Value> = cluster
            .processes
            .iter()
            .map(|process| json!({ "Name": process.name, "Pid": process.pid, "Running": process.is_alive() }))
            .collect();
        if context.format == Format::Json {
            output::json(&json!({ "Master": cluster.master, "Processes": processes }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(&["PROCESS", "PID", "STATE"]);
        for process in &cluster.processes {
            let state = if process.is_alive() { "running" } else { "ended" };
            table.row(vec![process.name.clone(), process.pid.to_string(), state.to_owned()]);
        }
        table.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print what happens to agents, frameworks and tasks, as it happens
#[derive(Debug, Args)]
struct Events {
    #[command(flatten)]
    asked: Asked,
}

impl Events {
    fn run(self, context: &Context) -> Result<ExitCode> {
        process::watch(&self.asked.contact(context)?, |event| {
            match context.format {
                Format::Json => output::json_line(&event)?,
                Format::Table => output::lines([format!("{:.3} {}", Timestamp::now(), Events::describe(&event))])?,
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(ExitCode::SUCCESS)
    }

    /// An event in one line.
    fn describe(event: &Value) -> String {
        let kind = text(&event["type"]);
        let body = &event[kind.to_ascii_lowercase()];
        let id = |of: &Value, name: &str| text(&of[name]["value"]).to_owned();
        let what = match kind {
            "SUBSCRIBED" => {
                let state = &body["get_state"];
                let count = |kind: &str| items(&state[format!("get_{kind}")][kind]).count();
                format!("agents: {}, frameworks: {}, tasks: {}", count("agents"), count("frameworks"), count("tasks"))
            }
            "TASK_ADDED" => {
                let task = &body["task"];
                format!("{} of {} on {}", id(task, "task_id"), id(task, "framework_id"), id(task, "agent_id"))
            }
            "TASK_UPDATED" => {
                let (state, message) = (text(&body["state"]), text(&body["status"]["message"]));
                let because = if message.is_empty() { String::new() } else { format!(": {message}") };
                format!("{} of {} is {state}{because}", id(body, "task_id"), id(body, "framework_id"))
            }
            "AGENT_ADDED" => id(&body["agent"]["agent_info"], "id"),
            "AGENT_REMOVED" => id(body, "agent_id"),
            "FRAMEWORK_ADDED" | "FRAMEWORK_UPDATED" => {
                let (framework, info) = (&body["framework"], &body["framework"]["framework_info"]);
                let state = if framework["connected"] == true { "connected" } else { "disconnected" };
                format!("{} ({}) is {state}", id(info, "id"), text(&info["name"]))
            }
            _ => id(&body["framework_info"], "id"),
        };
        format!("{kind} {}", job::printable(&what))
    }
}

/// Have all agents pull images before tasks need them, and return when they have
#[derive(Debug, Args)]
struct Prefetch {
    #[command(flatten)]
    asked: Asked,
    /// [HOST/]NAME[:TAG][@DIGEST]
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Prefetch {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let contact = self.asked.contact(context)?;
        let agents = self.asked.ask(context, &json!({ "type": "GET_AGENTS" }))?;
        let connected = items(&agents["agents"]).filter(|agent| agent["state"] == "connected");
        let agents: Vec<&str> = connected.map(|agent| text(&agent["agent_info"]["id"]["value"])).collect();
        if agents.is_empty() {
            bail!("no agent is connected: there is nobody to pull anything");
        }
        let (mut fetched, mut failed) = (Vec::new(), 0);
        let mut left: Vec<(&str, &String)> =
            self.images.iter().flat_map(|image| agents.iter().map(move |agent| (*agent, image))).collect();
        while !left.is_empty() {
            left.retain(|(agent, image)| {
                let call = json!({ "type": "PREFETCH_IMAGE", "prefetch_image": { "image": image } });
                match process::ask_agent(&contact, agent, &call) {
                    Ok(answer) if answer["prefetch_image"]["state"] == "PRESENT" => {
                        fetched.push(json!({ "Agent": agent, "Image": image }));
                        false
                    }
                    Ok(_) => true,
                    Err(error) => {
                        failed += 1;
                        failure::warn(&anyhow::Error::new(error).context(format!("agent {agent} cannot pull {image}")));
                        false
                    }
                }
            });
            if !left.is_empty() {
                sleep(LOOK);
            }
        }
        if context.format == Format::Json {
            output::json(&fetched)?;
        } else {
            output::lines(fetched.iter().map(|it| format!("{} has {}", text(&it["Agent"]), text(&it["Image"]))))?;
        }
        Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// End the cluster on this machine with all its tasks, and forget it
#[derive(Debug, Args)]
struct Down {}

impl Down {
    fn run(context: &Context) -> Result<ExitCode> {
        cluster::down(&context.roots)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Be a master, in the foreground
#[derive(Debug, Args)]
struct Master {
    /// Where to listen; port 0 for any that is free
    #[arg(long, default_value = MASTER, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Speak TLS, with the certificates that `berth cluster init` made here; only then it may listen beyond loopback
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Who may be a framework: a file with principals, their secrets and roles, for its owner alone
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Where to keep what it has to remember [default: cluster/master in the data root]
    #[arg(long, value_name = "DIR", conflicts_with = "store")]
    directory: Option<PathBuf>,
    /// Keep it in an etcd instead, and take turns with the other masters that do: etcd://[USER@]ADDRESS:PORT[,…][/PREFIX]
    #[arg(long, value_name = "URL")]
    store: Option<Location>,
    /// How long a leader that is not heard of keeps other masters from leading, 2s to 60s
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = lease, requires = "store")]
    lease: Duration,
    /// After which time without a word from it an agent counts as unreachable, at least 10s [default: 75s]
    #[arg(long, value_name = "TIME", value_parser = agent_timeout)]
    agent_timeout: Option<Duration>,
}

impl Master {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let directory = || self.directory.unwrap_or_else(|| context.roots.data().join("cluster/master"));
        let state = match self.store {
            Some(location) if location.needs_password() => {
                let password = std::env::var(PASSWORD_VARIABLE);
                let password = password.with_context(|| format!("etcd wants a password: set {PASSWORD_VARIABLE}"))?;
                State::Etcd { location: location.with_password(password), lease: self.lease }
            }
            Some(location) => State::Etcd { location, lease: self.lease },
            None => State::Directory(directory()),
        };
        // A reader that has gone has no need to know.
        let ready = |address| drop(output::lines([format!("listening on {address}")]));
        let mut config = server::Config::new(self.listen);
        config.tls = self.tls.map(|directory| tls::Server::load(&directory)).transpose()?;
        config.credentials = self.credentials.map(|file| server::Credentials::load(&file)).transpose()?;
        config.master.agent_timeout = self.agent_timeout.unwrap_or(config.master.agent_timeout);
        process::run_master(config, state, ready)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Be an agent, in the foreground
#[derive(Debug, Args)]
struct Agent {
    /// Where the master listens; where all of them do, if there are several
    #[arg(long, default_value = MASTER, value_name = "ADDRESS:PORT[,…]")]
    master: Masters,
    /// Speak TLS, with the certificate that `berth cluster join` got here
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Where others reach its tasks [default: where the master is, if on loopback; else this host's name]
    #[arg(long, value_name = "NAME|ADDRESS")]
    hostname: Option<String>,
    /// Where to keep what it has to remember [default: cluster/agent in the data root]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// CPUs to offer [default: all]
    #[arg(long, value_name = "N", value_parser = milli_cpus)]
    cpus: Option<u64>,
    /// Memory to offer [default: four fifths of the host's]
    #[arg(long, value_name = "SIZE", value_parser = size::some_bytes)]
    memory: Option<u64>,
    /// Disk to offer [default: none]
    #[arg(long, value_name = "SIZE", value_parser = size::bytes)]
    disk: Option<u64>,
    /// Ports to offer
    #[arg(long, default_value = "31000-32000", value_name = "FIRST-LAST", value_parser = ports)]
    ports: Ports,
    /// Say something of the agent that tasks can ask for
    #[arg(long, value_name = "KEY=VALUE", value_parser = full_pair)]
    attribute: Vec<(String, String)>,
    /// The image of other frameworks' tasks that name none; those of jobs always do
    #[arg(long, value_name = "IMAGE")]
    default_image: Option<String>,
    /// The network of tasks that would have the host's: host, or a namespace that is there already, ns:PATH
    #[arg(long, default_value = "host", value_name = "NETWORK", value_parser = shared_network)]
    network: Network,
}

impl Agent {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let host = info::info(&context.roots, 0)?;
        let cpus = self.cpus.unwrap_or(host.cpus as u64 * 1000);
        let memory = self.memory.unwrap_or(host.memory / 5 * 4);
        let quantities = Quantities::new(cpus, memory).with(Kind::Disk, self.disk.unwrap_or(0));
        let mut attributes = isolations(&host.kvm)?;
        // Tasks share the host's network; a master on loopback is on the same host.
        let ip = self.master.addresses()[0].ip();
        let reached = if ip.is_loopback() { ip.to_string() } else { host.name.clone() };
        attributes.insert("hostname".to_owned(), host.name);
        attributes.extend(self.attribute);
        let config = agent::Config {
            masters: self.master,
            tls: client(self.tls.as_deref(), Role::Agent)?,
            directory: self.directory.unwrap_or_else(|| context.roots.data().join("cluster/agent")),
            roots: context.roots.clone(),
            berth: this_program()?,
            info: AgentInfo {
                hostname: self.hostname.unwrap_or(reached),
                port: 0,
                resources: Resources { quantities, ports: self.ports },
                attributes,
            },
            default_image: self.default_image,
            network: self.network,
        };
        output::lines(["running".to_owned()])?;
        process::run_agent(config)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Be a job framework, in the foreground
#[derive(Debug, Args)]
struct Jobs {
    /// Where the master listens; where all of them do, if there are several
    #[arg(long, default_value = MASTER, value_name = "ADDRESS:PORT[,…]")]
    master: Masters,
    /// Speak TLS, with the operator's certificate that `berth cluster init` made here
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// What to authenticate with: a file with a principal and its secret, for its owner alone
    #[arg(long, value_name = "FILE")]
    credential: Option<PathBuf>,
    /// Where to keep what it has to remember [default: cluster/jobs in the data root]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Jobs {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let config = jobs::Config {
            masters: self.master,
            tls: client(self.tls.as_deref(), Role::Operator)?,
            credential: self.credential.map(|file| server::Credential::load(&file)).transpose()?,
            directory: self.directory.unwrap_or_else(|| context.roots.data().join("cluster/jobs")),
            socket: cluster::jobs_socket(&context.roots),
        };
        // A reader that has gone has no need to know.
        process::run_jobs(config, || drop(output::lines(["running".to_owned()])))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What a client is known by, if the master speaks TLS.
fn client(directory: Option<&Path>, role: Role) -> Result<Option<Client>> {
    Ok(directory.map(|directory| Client::load(directory, role)).transpose()?)
}

/// What tasks can run in here.
fn isolations(kvm: &info::Kvm) -> Result<Attributes> {
    let wasm = this_program()?.with_file_name("berth-wasm").exists();
    let available = [
        ("isolation.container", true),
        ("isolation.microvm-linux", kvm.linux),
        ("isolation.microvm-process", kvm.translation != "none"),
        ("isolation.wasm", wasm),
    ];
    Ok(available.into_iter().map(|(name, is_there)| (name.to_owned(), is_there.to_string())).collect())
}

/// How many agents one machine can be shared by.
fn agents() -> RangedU64ValueParser<u16> {
    RangedU64ValueParser::new().range(1..=u64::from(MOST_AGENTS))
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find the program that runs")
}

/// `--network` of an agent.
fn shared_network(text: &str) -> Result<Network, String> {
    match network(text)? {
        Network::None => Err("tasks with ports need one; give host, or ns:PATH".to_owned()),
        network => Ok(network),
    }
}

/// etcd grants no shorter ones, and longer ones would be of no use.
fn lease(text: &str) -> Result<Duration, String> {
    let lease = time(text)?;
    let whole = lease.subsec_nanos() == 0 && (2..=60).contains(&lease.as_secs());
    if whole { Ok(lease) } else { Err("give whole seconds, from 2s to 60s".to_owned()) }
}

/// Agents are heard of every few seconds.
fn agent_timeout(text: &str) -> Result<Duration, String> {
    let timeout = time(text)?;
    if timeout < Duration::from_secs(10) { Err("give 10s at least".to_owned()) } else { Ok(timeout) }
}

/// Thousandths of a CPU.
fn milli_cpus(text: &str) -> Result<u64, String> {
    let cpus: f64 = text.parse().map_err(|_| "give a number of CPUs, for example 1.5".to_owned())?;
    if (0.001..=1e6).contains(&cpus) {
        Ok((cpus * 1000.0).round() as u64)
    } else {
        Err("give between 0.001 and 1000000 CPUs".to_owned())
    }
}

fn ports(text: &str) -> Result<Ports, String> {
    let parse = |text: &str| text.trim().parse::<u16>().ok();
    let range = text.split_once('-').and_then(|(first, last)| Some(parse(first)?..=parse(last)?));
    let range = range.filter(|range| !range.is_empty());
    range
        .map(|range| [range].into_iter().collect())
        .ok_or_else(|| "give FIRST-LAST, for example 31000-32000".to_owned())
}

/// Which master is asked
#[derive(Debug, Args)]
pub(super) struct Asked {
    /// Where the master listens, or several do [default: the one of the cluster on this machine]
    #[arg(long, env = "BERTH_MASTER", value_name = "ADDRESS:PORT[,…]", hide_env = true)]
    master: Option<Masters>,
    /// Speak TLS, with the operator's certificate that `berth cluster init` made here
    #[arg(long, env = "BERTH_TLS", value_name = "DIR", hide_env = true)]
    tls: Option<PathBuf>,
}

impl Asked {
    pub(super) fn contact(&self, context: &Context) -> Result<Contact> {
        let masters = match &self.master {
            Some(masters) => masters.clone(),
            None => cluster::read(&context.roots)?.ok_or(cluster::Error::None)?.master.into(),
        };
        Ok(Contact { masters, tls: client(self.tls.as_deref(), Role::Operator)? })
    }

    /// The answer to a call, without its wrapping.
    pub(super) fn ask(&self, context: &Context, call: &Value) -> Result<Value> {
        let kind = call["type"].as_str().unwrap_or_default().to_ascii_lowercase();
        let mut answer = process::ask(&self.contact(context)?, call)?;
        Ok(answer[kind.as_str()].take())
    }
}

/// List the agents of a cluster and what they have
#[derive(Debug, Args)]
pub struct Nodes {
    #[command(flatten)]
    asked: Asked,
}

impl Nodes {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let state = self.asked.ask(context, &json!({ "type": "GET_STATE" }))?;
        let agents = &state["get_agents"]["agents"];
        if context.format == Format::Json {
            output::json(agents)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(&["AGENT", "STATE", "TASKS", "CPUS", "MEMORY", "ISOLATIONS"]);
        for agent in items(agents) {
            let id = &agent["agent_info"]["id"];
            let tasks = items(&state["get_tasks"]["tasks"]).filter(|task| task["agent_id"] == *id).count();
            let (used, total) = (&agent["allocated_resources"], &agent["total_resources"]);
            let isolations = items(&agent["agent_info"]["attributes"]).filter(|it| it["text"]["value"] == "true");
            let isolations = isolations.filter_map(|it| it["name"].as_str()?.strip_prefix("isolation."));
            let state = if agent["deactivated"] == true { "draining" } else { text(&agent["state"]) };
            table.row(vec![
                text(&id["value"]).to_owned(),
                state.to_owned(),
                tasks.to_string(),
                format!("{} of {}", scalar(used, "cpus"), scalar(total, "cpus")),
                format!("{} of {}", mebibytes(scalar(used, "mem")), mebibytes(scalar(total, "mem"))),
                isolations.collect::<Vec<_>>().join(","),
            ]);
        }
        table.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Show who has which share of a cluster, and what they wait for
#[derive(Debug, Args)]
pub struct Fairness {
    #[command(flatten)]
    asked: Asked,
}

impl Fairness {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let fairness = self.asked.ask(context, &json!({ "type": "GET_FAIRNESS" }))?;
        if context.format == Format::Json {
            output::json(&fairness)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table =
            Table::new(&["ROLE", "FRAMEWORK", "WEIGHT", "SHARE", "DOMINANT", "CPUS", "MEMORY", "WAITS FOR"]);
        for role in items(&fairness["roles"]) {
            table.row(share_row(text(&role["role"]), "", &role["weight"].to_string(), role, ""));
            for member in items(&role["frameworks"]) {
                table.row(share_row("", text(&member["framework_id"]["value"]), "", member, waits_for(member)));
            }
        }
        table.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn share_row(role: &str, framework: &str, weight: &str, holder: &Value, waits_for: &str) -> Vec<String> {
    let sum = |kind: &str| {
        let of = |part: &Value| part[kind].as_f64().unwrap_or_default();
        of(&holder["used"]) + of(&holder["offered"])
    };
    vec![
        role.to_owned(),
        framework.to_owned(),
        weight.to_owned(),
        percent(&holder["share"]["weighted_share"]),
        text(&holder["share"]["dominant_resource"]).to_owned(),
        sum("cpus").to_string(),
        mebibytes(sum("mem")),
        waits_for.to_owned(),
    ]
}

/// What keeps a framework from getting more.
fn waits_for(member: &Value) -> &'static str {
    let passed_over = &member["last_cycle"]["passed_over"];
    let was = |reason: &str| passed_over[reason].as_u64().is_some_and(|count| count > 0);
    match () {
        () if member["wants_offers"] == false => "nothing: it wants no offers now",
        () if was("quota") => "its role's quota",
        () if was("constraints") => "agents that satisfy its constraints",
        () if was("refused") => "other agents than those it refused",
        () => "its turn",
    }
}

/// Tell why a task is where it is, or why it waits
#[derive(Debug, Args)]
pub struct Explain {
    /// The task's id, or JOB.TASK.INDEX, or less where that is enough
    #[arg(value_name = "TASK")]
    task: String,
    /// The framework it belongs to, where several have a task of that id
    #[arg(long, value_name = "ID")]
    framework: Option<String>,
    #[command(flatten)]
    asked: Asked,
}

impl Explain {
    pub fn run(mut self, context: &Context) -> Result<ExitCode> {
        if let Some(task) = job::known(context, &self.task)? {
            if task["id"].is_null() {
                if context.format == Format::Json {
                    output::json(&task)?;
                } else {
                    let line = match task["waits_for"].as_str() {
                        Some(why) => format!("{} waits for {}", text(&task["task"]), job::printable(why)),
                        None => job::epitaph(&task),
                    };
                    output::lines([line])?;
                }
                return Ok(ExitCode::SUCCESS);
            }
            text(&task["id"]).clone_into(&mut self.task);
        }
        let mut asked = json!({ "task_id": { "value": self.task } });
        if let Some(framework) = self.framework {
            asked["framework_id"] = json!({ "value": framework });
        }
        let why = self.asked.ask(context, &json!({ "type": "EXPLAIN_TASK", "explain_task": asked }));
        let why = why.with_context(|| format!("cannot explain {}", self.task))?;
        if context.format == Format::Json {
            output::json(&why)?;
            return Ok(ExitCode::SUCCESS);
        }
        let (task, decision) = (&why["task"], &why["decision"]);
        let (agent, role) = (text(&task["agent_id"]["value"]), text(&task["role"]));
        let mut lines = vec![format!("{} is {} on agent {agent}, in role {role}", self.task, text(&task["state"]))];
        if decision.is_null() {
            bail!("{}; it was launched with an earlier master, which did not leave its reasons", lines.remove(0));
        }
        let stage = match text(&decision["stage"]) {
            "guarantee" => "the role had less than it is guaranteed",
            _ => "nobody who wanted and could have the agent had a smaller share",
        };
        lines.push(format!("It was launched with an offer of cycle {}, made because {stage}:", decision["cycle"]));
        for (who, share) in [("role", "role_share"), ("framework", "framework_share")] {
            lines.push(format!("  share of the {who} before: {}", percent(&decision[share]["weighted_share"])));
        }
        for other in items(&decision["passed_over"]) {
            let (id, reason) = (text(&other["framework_id"]["value"]), text(&other["reason"]));
            lines.push(format!("  framework {id} came first and was passed over: {reason}"));
        }
        if let Some(more @ 1..) = decision["passed_over_more"].as_u64() {
            lines.push(format!("  and {more} more were passed over"));
        }
        output::lines(lines)?;
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// How much of a resource a list has.
fn scalar(resources: &Value, name: &str) -> f64 {
    let known = items(resources).find(|resource| resource["name"] == name);
    known.and_then(|resource| resource["scalar"]["value"].as_f64()).unwrap_or_default()
}

fn mebibytes(count: f64) -> String {
    output::bytes((count * 1_048_576.0) as u64)
}

fn percent(share: &Value) -> String {
    format!("{:.1}%", share.as_f64().unwrap_or_default() * 100.0)
}
