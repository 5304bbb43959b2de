//! `berth submit`, `berth jobs`, `berth job`

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use berth_engine::{Container, Error, logs, ps};
use berth_orchestrator::agent;
use berth_orchestrator::cluster;
use berth_orchestrator::jobs::manifest::{Group, LONGEST, Manifest};
use berth_orchestrator::jobs::{Request, Until};
use berth_orchestrator::process::{self, Contact};
use berth_runtime::error::misleads;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::cluster::{Asked, items, text};
use super::{Context, exec};
use crate::failure;
use crate::flags::time;
use crate::output::{self, Format, Table};

/// How often somebody who watches a job looks.
const LOOK: Duration = Duration::from_millis(500);

/// Run a job on the cluster of this machine
#[derive(Debug, Args)]
pub struct Submit {
    /// Return when all its tasks have started, when all are well, or when it has ended, and not at once
    #[arg(long, value_enum, value_name = "running|healthy|ended", hide_possible_values = true)]
    wait: Option<Wanted>,
    /// Its manifest, or - for standard input
    #[arg(value_name = "FILE")]
    manifest: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Wanted {
    Running,
    Healthy,
    Ended,
}

impl From<Wanted> for Until {
    fn from(wanted: Wanted) -> Until {
        match wanted {
            Wanted::Running => Until::Running,
            Wanted::Healthy => Until::Healthy,
            Wanted::Ended => Until::Ended,
        }
    }
}

impl Submit {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let manifest = read(&self.manifest)?;
        let answer = ask(context, &Request::Submit { manifest });
        let answer = answer.with_context(|| format!("cannot submit {}", name(&self.manifest)))?;
        let job = text(&answer["job"]).to_owned();
        if context.format == Format::Json {
            output::json(&answer)?;
        } else {
            output::lines([job.clone()])?;
        }
        self.wait.map_or(Ok(ExitCode::SUCCESS), |wanted| wait(context, &job, wanted.into()))
    }
}

/// List jobs
#[derive(Debug, Args)]
pub struct Jobs {}

impl Jobs {
    pub fn run(context: &Context) -> Result<ExitCode> {
        let jobs = ask(context, &Request::Jobs {})?;
        if context.format == Format::Json {
            output::json(&jobs)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table =
            Table::new(&["JOB", "STATE", "ROLE", "PRIORITY", "WAITING", "RUNNING", "ENDED", "FAILED", "SUBMITTED"]);
        for job in items(&jobs) {
            let count = |name: &str| job["counts"][name].as_u64().unwrap_or_default();
            table.row(vec![
                text(&job["name"]).to_owned(),
                text(&job["state"]).to_owned(),
                text(&job["role"]).to_owned(),
                job["priority"].to_string(),
                (count("waiting") + count("starting")).to_string(),
                count("running").to_string(),
                count("ended").to_string(),
                count("failed").to_string(),
                ago(&job["submitted"]),
            ]);
        }
        table.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Look after a job
#[derive(Debug, Args)]
pub struct Job {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Validate(Validate),
    Schema(Schema),
    Status(Status),
    History(History),
    Wait(Wait),
    Scale(Scale),
    Stop(Stop),
    Logs(Logs),
    Exec(Exec),
}

impl Job {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Command::Validate(command) => command.run(context),
            Command::Schema(_) => Schema::run(),
            Command::Status(command) => command.run(context),
            Command::History(command) => command.run(context),
            Command::Wait(command) => command.run(context),
            Command::Scale(command) => command.run(context),
            Command::Stop(command) => command.run(context),
            Command::Logs(command) => command.run(context),
            Command::Exec(command) => command.run(context),
        }
    }
}

/// Say whether a manifest is right
#[derive(Debug, Args)]
struct Validate {
    /// The manifest, or - for standard input
    #[arg(value_name = "FILE")]
    manifest: PathBuf,
}

impl Validate {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let read = Manifest::read(&read(&self.manifest)?);
        let manifest = read.with_context(|| format!("{} is no manifest", name(&self.manifest)))?;
        if context.format == Format::Json {
            output::json(&manifest)?;
        } else {
            let tasks: u32 = manifest.tasks.values().map(Group::count).sum();
            let (file, tasks) = (name(&self.manifest), output::counted(tasks.into(), "task"));
            output::lines([format!("{file} is right: the job {} with {tasks}", manifest.name)])?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Print the JSON schema of manifests
#[derive(Debug, Args)]
struct Schema {}

impl Schema {
    fn run() -> Result<ExitCode> {
        output::json(&Manifest::schema())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Show how a job and its tasks are doing
#[derive(Debug, Args)]
struct Status {
    /// Show it again whenever something has changed, until it has ended
    #[arg(short, long)]
    watch: bool,
    /// The job
    job: String,
}

impl Status {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let mut shown = Value::Null;
        loop {
            let job = ask(context, &Request::Job { job: self.job.clone() })?;
            let over = !self.watch || !job["ended"].is_null();
            if job != shown {
                match (context.format, self.watch) {
                    (Format::Json, false) => output::json(&job)?,
                    (Format::Json, true) => output::json_line(&job)?,
                    (Format::Table, false) => output::print(&Status::describe(&job))?,
                    (Format::Table, true) => output::redraw(&Status::describe(&job))?,
                }
                shown = job;
            }
            if over {
                return Ok(ExitCode::SUCCESS);
            }
            sleep(LOOK);
        }
    }

    /// A job and its tasks, for people.
    fn describe(job: &Value) -> String {
        let head = ["name", "state"].map(|field| text(&job[field]));
        let head = format!("{} is {}, submitted {}", head[0], head[1], ago(&job["submitted"]));
        let head: Vec<String> = [head].into_iter().chain(out_of_reach(job)).collect();
        let mut table = Table::new(&["TASK", "STATE", "SINCE", "ATTEMPT", "AGENT", "NOTE"]);
        for task in items(&job["tasks"]) {
            let latest = items(&task["attempts"]).last();
            let past = task["attempts"].as_array().map_or(0, Vec::len);
            let (since, attempt, agent, note) = match (text(&task["state"]), latest) {
                ("waiting", _) => ("", past, "", format!("waits for {}", text(&task["waits_for"]))),
                ("finished" | "failed" | "stopped", latest) => {
                    let field = |name: &str| latest.map_or("", |latest| text(&latest[name]));
                    let note = if task["may_run"] == true { MAY_RUN } else { field("message") };
                    (field("ended"), past, field("agent"), note.to_owned())
                }
                _ => {
                    let since = if task["running"].is_null() { &task["launched"] } else { &task["running"] };
                    let ports = task["ports"].as_object().into_iter().flatten();
                    let ports = ports.map(|(name, number)| format!("{name}={number}")).collect::<Vec<_>>();
                    (text(since), past + 1, text(&task["agent"]), ports.join(" "))
                }
            };
            let healthy = task["healthy"].as_bool().map_or("", |yes| if yes { ", healthy" } else { ", unhealthy" });
            table.row(vec![
                text(&task["task"]).to_owned(),
                format!("{}{healthy}", text(&task["state"])),
                ago(&json!(since)),
                attempt.to_string(),
                agent.to_owned(),
                output::note(&printable(&note), 60),
            ]);
        }
        format!("{}\n{}", head.join("\n"), table.render())
    }
}

/// Show what has happened to a job and its tasks
#[derive(Debug, Args)]
struct History {
    /// The job
    job: String,
}

impl History {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let job = ask(context, &Request::Job { job: self.job })?;
        let name = text(&job["name"]);
        let mut history: Vec<(Timestamp, String, String)> = Vec::new();
        let mut add = |time: &Value, what: &str, event: String| {
            history.extend(text(time).parse().ok().map(|time: Timestamp| (time, what.to_owned(), event)));
        };
        for event in items(&job["events"]) {
            add(&event["time"], name, text(&event["event"]).to_owned());
        }
        for task in items(&job["tasks"]) {
            for attempt in items(&task["attempts"]).chain([task]).filter(|attempt| attempt["id"].is_string()) {
                let id = text(&attempt["id"]);
                add(&attempt["launched"], id, format!("launched on {}", text(&attempt["agent"])));
                add(&attempt["running"], id, "running".to_owned());
                let message = match text(&attempt["message"]) {
                    "" => text(&attempt["state"]).to_owned(),
                    message => format!("{}: {}", text(&attempt["state"]), printable(message)),
                };
                add(&attempt["ended"], id, message);
            }
        }
        history.sort_by_key(|(time, _, _)| *time);
        if context.format == Format::Json {
            let entry =
                |(time, what, event): &(Timestamp, String, String)| json!({ "time": time, "of": what, "event": event });
            output::json(&history.iter().map(entry).collect::<Vec<_>>())?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(&["TIME", "OF", "EVENT"]);
        for (time, what, event) in history {
            table.row(vec![format!("{time:.3}"), what, event]);
        }
        table.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Wait until a job has ended; the exit code says whether it finished
#[derive(Debug, Args)]
struct Wait {
    /// The job
    job: String,
}

impl Wait {
    fn run(self, context: &Context) -> Result<ExitCode> {
        wait(context, &self.job, Until::Ended)
    }
}

/// Change how many tasks a service of a job has
#[derive(Debug, Args)]
struct Scale {
    /// The job
    job: String,
    /// Which of its services is to have how many
    #[arg(required = true, value_name = "TASK=REPLICAS", value_parser = replicas)]
    services: Vec<(String, u32)>,
}

fn replicas(text: &str) -> Result<(String, u32), String> {
    let parts = text.split_once('=').and_then(|(name, number)| Some((name.to_owned(), number.parse().ok()?)));
    parts.ok_or_else(|| "give TASK=REPLICAS, for example front=3".to_owned())
}

impl Scale {
    fn run(self, context: &Context) -> Result<ExitCode> {
        for (index, (group, _)) in self.services.iter().enumerate() {
            if self.services[..index].iter().any(|(other, _)| other == group) {
                bail!("{group} is there twice: how many replicas it is to have has one answer");
            }
        }
        for (group, replicas) in self.services {
            ask(context, &Request::Scale { job: self.job.clone(), group, replicas })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// End a job, and return when it has ended
#[derive(Debug, Args)]
struct Stop {
    /// How long its tasks may take to end by themselves [default: as long as its manifest says]
    #[arg(long, value_name = "TIME", value_parser = time)]
    grace: Option<Duration>,
    /// The job
    job: String,
}

impl Stop {
    fn run(self, context: &Context) -> Result<ExitCode> {
        ask(context, &Request::Stop { job: self.job.clone(), grace: self.grace })?;
        let job = wait_for(context, &self.job, Until::Ended)?;
        if let Some(warning) = out_of_reach(&job) {
            failure::warn(&anyhow!(warning));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What is said of a task that was stopped and may run all the same.
const MAY_RUN: &str = "its agent cannot be reached: it may still run there, and is ended when the agent is back";

/// How many tasks of a job that has ended may still run, if any.
fn out_of_reach(job: &Value) -> Option<String> {
    let tasks = match job["counts"]["out_of_reach"].as_u64()? {
        0 => return None,
        1 => "1 task is on an agent that cannot be reached".to_owned(),
        count => format!("{count} tasks are on agents that cannot be reached"),
    };
    Some(format!("{tasks}: what is there may still run, and is ended when the agent is back"))
}

/// Print what tasks have written
#[derive(Debug, Args)]
struct Logs {
    #[command(flatten)]
    flags: super::logs::Flags,
    #[command(flatten)]
    asked: Asked,
    /// JOB, JOB.TASK or JOB.TASK.INDEX
    task: String,
}

impl Logs {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let wanted = self.flags.wanted()?;
        let tasks = find(context, &self.task)?;
        if wanted.follow && tasks.len() > 1 {
            bail!(
                "there are {} tasks {}; one can be followed, for example {}",
                tasks.len(),
                self.task,
                tasks[0]["task"]
            );
        }
        let sandboxes: Vec<_> = tasks.iter().filter_map(|task| Some((text(&task["task"]), ran(task)?))).collect();
        if sandboxes.is_empty() {
            bail!("{} has written nothing: it has never run; {}", text(&tasks[0]["task"]), why_not(&tasks[0]));
        }
        for (task, attempt) in &sandboxes {
            if tasks.len() > 1 {
                output::lines([format!("==> {task} <==")])?;
            }
            show(context, &self.asked, task, attempt, &wanted)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The latest attempt of a task that ran: one that never did has written nothing.
fn ran(task: &Value) -> Option<&Value> {
    let attempts = items(&task["attempts"]).chain([task]).filter(|attempt| attempt["running"].is_string());
    attempts.last().filter(|attempt| attempt["sandbox"].is_string())
}

/// Why a task has not run.
fn why_not(task: &Value) -> String {
    let latest = items(&task["attempts"]).last().map_or("", |latest| text(&latest["message"]));
    match text(&task["state"]) {
        "waiting" => format!("it waits for {}", text(&task["waits_for"])),
        state if latest.is_empty() => format!("it is {state}"),
        state => format!("it is {state}: {latest}"),
    }
}

/// Shows what was written in the sandbox of an attempt, which is there or was.
fn show(context: &Context, asked: &Asked, task: &str, attempt: &Value, wanted: &logs::Wanted) -> Result<()> {
    let sandbox = text(&attempt["sandbox"]);
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let mut stderr = io::BufWriter::new(io::stderr().lock());
    match Container::find(&context.roots, sandbox) {
        Ok(container) => logs::show(&container, wanted, &mut stdout, &mut stderr)?,
        Err(Error::NotFound(_)) => {
            let kept = cluster::kept_log(&context.roots, sandbox);
            match kept {
                Some(kept) => logs::show_file(&kept, None, wanted, &mut stdout, &mut stderr)?,
                None => {
                    show_remote(context, &asked.contact(context)?, task, attempt, wanted, &mut stdout, &mut stderr)?;
                }
            }
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Shows what was written on another machine, of which the agent there is asked.
fn show_remote(
    context: &Context,
    contact: &Contact,
    task: &str,
    attempt: &Value,
    wanted: &logs::Wanted,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> Result<()> {
    let part = |name: &str| text(&attempt[name]);
    let run = format!("executors/{}/runs/{}", part("id"), part("sandbox"));
    let log = format!("/frameworks/{}/{run}/{}", part("framework"), agent::LOG_FILE);
    let copy = tempfile::tempfile().context("cannot make a file for a copy of the log")?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    let mut copied = 0;
    let mut fetch = || -> Result<bool> {
        let before = copied;
        loop {
            let piece = process::read_file(contact, part("agent"), &log, copied);
            let (_, data) = piece.with_context(|| format!("cannot read the log of {task}"))?;
            if data.is_empty() {
                return Ok(copied > before);
            }
            copy.write_all_at(&data, copied).context("cannot keep a copy of the log")?;
            copied += data.len() as u64;
        }
    };
    fetch()?;
    // What comes from afar comes late: what is read after the task has ended is all of it.
    let mut ended = !wanted.follow;
    let mut failed = None;
    let more = || {
        if ended {
            return Ok(false);
        }
        sleep(LOOK);
        let mut look = || -> Result<()> {
            ended = !find(context, task)?.iter().any(|now| now["id"] == attempt["id"]);
            fetch()?;
            Ok(())
        };
        failed = look().err();
        Ok(failed.is_none())
    };
    logs::show_growing(&path, more, wanted, stdout, stderr)?;
    failed.map_or(Ok(()), Err)
}

/// Run a command in a task that runs
#[derive(Debug, Args)]
struct Exec {
    #[command(flatten)]
    flags: exec::Flags,
    #[command(flatten)]
    asked: Asked,
    /// JOB.TASK.INDEX, or less where that is enough
    task: String,
    /// What to run
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

impl Exec {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let tasks = find(context, &self.task)?;
        let mut running = tasks.iter().filter(|task| task["running"].is_string() && task["sandbox"].is_string());
        let task = running.next().ok_or_else(|| anyhow!("no task {} runs", self.task))?;
        if running.next().is_some() {
            bail!("several tasks {} run; name one, for example {}", self.task, text(&task["task"]));
        }
        let sandbox = text(&task["sandbox"]);
        match Container::find(&context.roots, sandbox) {
            Ok(container) => self.flags.become_exec(&container, self.command),
            Err(Error::NotFound(_)) => {
                let (contact, agent) = (self.asked.contact(context)?, text(&task["agent"]));
                let ran = self.flags.run_through(&contact, agent, sandbox, self.command);
                ran.with_context(|| format!("cannot run a command in {}", text(&task["task"])))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What a manifest's file is called.
fn name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}

/// Reads a manifest, or as much of it as is enough to see that it is none.
fn read(path: &Path) -> Result<String> {
    let input: Box<dyn Read> = match path.to_str() {
        Some("-") => Box::new(io::stdin()),
        _ => Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?),
    };
    let mut text = String::new();
    let read = input.take(LONGEST as u64 + 1).read_to_string(&mut text);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

fn ask(context: &Context, request: &Request) -> Result<Value> {
    let socket = cluster::jobs_socket(&context.roots);
    // `berth cluster jobs` may have been started by itself.
    if !socket.exists() && cluster::read(&context.roots)?.is_none() {
        return Err(cluster::Error::None.into());
    }
    Ok(process::ask_jobs(&socket, request)?)
}

/// The tasks that a reference means.
fn find(context: &Context, reference: &str) -> Result<Vec<Value>> {
    let job = reference.split('.').next().unwrap_or_default();
    let mut view = ask(context, &Request::Job { job: job.to_owned() })?;
    let is_meant = |task: &Value| {
        let rest = text(&task["task"]).strip_prefix(reference);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let Value::Array(tasks) = view["tasks"].take() else { bail!("the job framework tells of no tasks") };
    let tasks: Vec<Value> = tasks.into_iter().filter(is_meant).collect();
    if tasks.is_empty() {
        bail!("there is no task {reference}; `berth job status {job}` lists them");
    }
    Ok(tasks)
}

/// What the job framework knows of a task, by its name or by the id of an attempt that is over; nothing, where it knows none.
pub(super) fn known(context: &Context, reference: &str) -> Result<Option<Value>> {
    let Some(job) = reference.split('.').next().map(|job| Request::Job { job: job.to_owned() }) else {
        return Ok(None);
    };
    // Tasks of other frameworks may be called anything, and be asked for where there is no job framework.
    let Ok(view) = ask(context, &job) else { return Ok(None) };
    let past = |task: &Value| items(&task["attempts"]).find(|attempt| attempt["id"] == *reference).cloned();
    if let Some(attempt) = items(&view["tasks"]).find_map(past) {
        return Ok(Some(json!({ "task": reference, "state": attempt["state"], "attempts": [attempt] })));
    }
    if items(&view["tasks"]).any(|task| task["id"] == *reference) {
        return Ok(None);
    }
    let mut tasks = find(context, reference)?;
    if tasks.len() > 1 {
        bail!("{reference} has {} tasks; name one, for example {}", tasks.len(), text(&tasks[0]["task"]));
    }
    Ok(tasks.pop())
}

/// How a task ended.
pub(super) fn epitaph(task: &Value) -> String {
    let latest = items(&task["attempts"]).last().unwrap_or(&Value::Null);
    let field = |name: &str| text(&latest[name]);
    let said = match (task["may_run"] == true, field("message")) {
        (true, _) => format!("; {MAY_RUN}"),
        (false, "") => String::new(),
        (false, message) => format!(": {}", printable(message)),
    };
    let head = format!("{} has ended: {}", text(&task["task"]), text(&task["state"]));
    match field("agent") {
        "" => format!("{head}, without having been launched"),
        agent => format!("{head} {} on agent {agent}{said}", ago(&latest["ended"])),
    }
}

/// Waits for a job, and says by the exit code whether it has failed.
fn wait(context: &Context, job: &str, until: Until) -> Result<ExitCode> {
    let view = wait_for(context, job, until)?;
    let state = text(&view["state"]);
    if !["failed", "stopped"].contains(&state) {
        return Ok(ExitCode::SUCCESS);
    }
    let failed = items(&view["tasks"]).find(|task| task["state"] == "failed");
    let cause = failed.map_or_else(String::new, |task| format!(": {}", epitaph(task)));
    failure::warn(&anyhow!("{job} {state}{cause}; `berth job status {job}` tells what became of its tasks"));
    Ok(ExitCode::FAILURE)
}

fn wait_for(context: &Context, job: &str, until: Until) -> Result<Value> {
    let mut told = None;
    loop {
        let view = ask(context, &Request::Wait { job: job.to_owned(), until })?;
        if view["come"] == true {
            return Ok(view);
        }
        // Who waits for a service to start would otherwise never hear why it does not.
        let failing = items(&view["tasks"]).find(|task| task["state"] == "waiting" && task["attempts"] != json!([]));
        let trouble = failing.map(|task| format!("{} waits for {}", text(&task["task"]), text(&task["waits_for"])));
        if until != Until::Ended && trouble.is_some() && trouble != told {
            failure::warn(&anyhow!(trouble.clone().unwrap_or_default()));
            told = trouble;
        }
    }
}

/// How long ago a time was.
fn ago(time: &Value) -> String {
    let time: Option<Timestamp> = text(time).parse().ok();
    time.map_or_else(String::new, |time| format!("{} ago", ps::age(time, Timestamp::now())))
}

/// What others say, in one line.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if misleads(c) { ' ' } else { c }).collect()
}
