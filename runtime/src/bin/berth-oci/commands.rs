//! The commands and their flags (runc(8)).

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use berth_runtime::bundle::{Bundle, read_json};
use berth_runtime::error::{Error, Result, one_line};
use berth_runtime::sandbox::{self, ExecOptions, Sandbox};
use berth_runtime::{monitor, relay};
use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use oci_spec::runtime::{LinuxResources, Process, User};
use serde_json::json;

use crate::{foreground, spec, stats};

/// Run OCI bundles in sandboxes
#[derive(Debug, Parser)]
#[command(name = "berth-oci", version, about)]
pub struct Cli {
    /// Directory of the sandboxes' states
    #[arg(long, global = true, default_value = "/run/berth/sandboxes")]
    root: PathBuf,
    /// File for errors, besides standard error
    #[arg(long, global = true)]
    pub log: Option<PathBuf>,
    /// Format of that file
    #[arg(long, global = true, value_parser = ["text", "json"])]
    pub log_format: Option<String>,
    /// Accepted for runc's callers; nothing is logged but errors
    #[arg(long, global = true)]
    debug: bool,
    /// Accepted for runc's callers; control groups are always driven by file
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a sandbox from a bundle; its process waits for `start`
    Create(Create),
    /// Let a created sandbox's process run
    Start { id: String },
    /// Make a sandbox and run its process
    Run(Run),
    /// Print a sandbox's state as JSON
    State { id: String },
    /// Send a signal to a sandbox's first process
    Kill(Kill),
    /// Remove a sandbox
    Delete(Delete),
    /// Run another process in a sandbox
    Exec(Box<Exec>),
    /// List sandboxes
    List(List),
    /// List the processes of a sandbox
    Ps(Ps),
    /// Freeze a sandbox
    Pause { id: String },
    /// Let a frozen sandbox go on
    Resume { id: String },
    /// Change a sandbox's limits
    Update(Update),
    /// Print what a sandbox has used
    Events(Events),
    /// Write a config.json to start from
    Spec(Spec),
    /// Look after one container of berth's
    #[command(hide = true)]
    Monitor(Monitor),
}

#[derive(Debug, Args)]
struct Create {
    /// The bundle's directory
    #[arg(short, long, default_value = ".")]
    bundle: PathBuf,
    /// Socket that receives the terminal's master
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// File for the first process's id
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// How many further descriptors the process inherits
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    /// Keep the caller's session keyring
    #[arg(long)]
    no_new_keyring: bool,
    /// Accepted for runc's callers; the root is always changed with `pivot_root`
    #[arg(long)]
    no_pivot: bool,
    id: String,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    create: Create,
    /// Do not wait for the process
    #[arg(short, long)]
    detach: bool,
    /// Leave the sandbox's state when the process has ended
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct Kill {
    /// All processes, not only the first
    #[arg(short, long)]
    all: bool,
    id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    signal: String,
}

#[derive(Debug, Args)]
struct Delete {
    /// Kill it first if it runs; fine if it does not exist
    #[arg(short, long)]
    force: bool,
    id: String,
}

#[derive(Debug, Args)]
struct Exec {
    /// The process as JSON (OCI `process`)
    #[arg(short, long)]
    process: Option<PathBuf>,
    /// Socket that receives the terminal's master
    #[arg(long)]
    console_socket: Option<PathBuf>,
    /// File for the process's id
    #[arg(long)]
    pid_file: Option<PathBuf>,
    /// Do not wait for it
    #[arg(short, long)]
    detach: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Relay the standard streams through pipes instead of handing over the caller's; detached: it has none
    #[arg(long)]
    pipes: bool,
    /// With --pipes, relay no standard input
    #[arg(long, requires = "pipes")]
    no_stdin: bool,
    /// KEY=VALUE
    #[arg(short, long)]
    env: Vec<String>,
    /// Working directory
    #[arg(long)]
    cwd: Option<PathBuf>,
    /// USER[:GROUP], names or numbers
    #[arg(short, long)]
    user: Option<String>,
    /// How many further descriptors the process inherits
    #[arg(long, default_value_t = 0)]
    preserve_fds: u32,
    id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
struct List {
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct Ps {
    #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
    format: String,
    id: String,
}

#[derive(Debug, Args)]
struct Update {
    /// The limits as JSON (OCI `linux.resources`); `-`: standard input
    #[arg(short, long)]
    resources: PathBuf,
    id: String,
}

#[derive(Debug, Args)]
struct Events {
    /// Once, not again and again
    #[arg(long, required = true)]
    stats: bool,
    id: String,
}

#[derive(Debug, Args)]
struct Spec {
    /// The bundle's directory
    #[arg(short, long, default_value = ".")]
    bundle: PathBuf,
}

#[derive(Debug, Args)]
struct Monitor {
    #[arg(long)]
    config: PathBuf,
    #[arg(long)]
    foreground: bool,
    #[arg(long)]
    lock_fd: Option<RawFd>,
    #[arg(long)]
    ready_fd: Option<RawFd>,
}

/// Carries a command out: its exit code.
pub fn run(cli: Cli) -> Result<i32> {
    let load = |id: &str| Sandbox::load(&cli.root, id);
    match cli.command {
        Command::Create(create) => {
            make(&cli.root, &create, true, false)?;
        }
        Command::Start { id } => load(&id)?.start()?,
        Command::Run(run) => return run_in_foreground(&cli.root, &run),
        Command::State { id } => print(&pretty(&load(&id)?.oci_state()?)),
        Command::Kill(kill) => load(&kill.id)?.kill(signal(&kill.signal)?, kill.all)?,
        Command::Delete(delete) => match load(&delete.id) {
            Err(Error::NotFound { .. }) if delete.force => {}
            sandbox => sandbox?.delete(delete.force)?,
        },
        Command::Exec(exec) => return run_exec(&load(&exec.id)?, &exec),
        Command::List(list) => print_list(&cli.root, &list)?,
        Command::Ps(ps) => print_processes(&load(&ps.id)?, &ps)?,
        Command::Pause { id } => load(&id)?.pause()?,
        Command::Resume { id } => load(&id)?.resume()?,
        Command::Update(update) => load(&update.id)?.update(&resources(&update.resources)?)?,
        Command::Events(events) => {
            let data = stats::document(&load(&events.id)?.stats()?);
            print(&json!({ "type": "stats", "id": events.id, "data": data }).to_string());
        }
        Command::Spec(options) => spec::write(&options.bundle)?,
        Command::Monitor(options) => {
            return monitor::run(&monitor::Start {
                config: &options.config,
                foreground: options.foreground,
                lock_fd: options.lock_fd,
                ready_fd: options.ready_fd,
            });
        }
    }
    Ok(0)
}

/// One line on standard error, and one in the log file, as conmon and containerd read it.
pub fn report(log: Option<&Path>, as_json: bool, error: &Error) {
    eprintln!("berth-oci: {}", one_line(&error.to_string()));
    let Some(path) = log else { return };
    let message = error.to_string();
    let line = if as_json {
        json!({ "level": "error", "msg": message, "time": Timestamp::now() }).to_string()
    } else {
        format!("time={:?} level=error msg={message:?}", Timestamp::now().to_string())
    };
    let file = OpenOptions::new().create(true).append(true).open(path);
    let _ = file.and_then(|mut file| writeln!(file, "{line}"));
}

fn make(root: &Path, create: &Create, wait_for_start: bool, take_console: bool) -> Result<sandbox::Made> {
    let mut bundle = Bundle::load(&create.bundle)?;
    let terminal = bundle.spec.process().as_ref().is_some_and(|process| process.terminal().unwrap_or(false));
    if terminal && create.console_socket.is_none() && !take_console {
        return Err(Error::Invalid("`process.terminal` is set: name a --console-socket for the terminal".into()));
    }
    if let (true, Some(process)) = (take_console, bundle.spec.process_mut()) {
        sandbox::copy_size(std::io::stdin(), process);
    }
    sandbox::create(
        &bundle,
        sandbox::Options {
            root: root.to_owned(),
            id: create.id.clone(),
            pid_file: create.pid_file.clone(),
            console_socket: create.console_socket.clone(),
            wait_for_start,
            stdio: None,
            die_with_maker: false,
            preserve_fds: create.preserve_fds,
            no_new_keyring: create.no_new_keyring,
        },
    )
}

fn run_in_foreground(root: &Path, run: &Run) -> Result<i32> {
    if run.detach {
        make(root, &run.create, false, false)?;
        return Ok(0);
    }
    let signals = relay::signals()?;
    let made = make(root, &run.create, false, true)?;
    let deaf = made.sandbox.state().own_pid_namespace;
    let streams = made.console.map_or_else(|| Ok(foreground::Streams::default()), foreground::Streams::terminal)?;
    let code = foreground::wait(&signals, made.pid, streams, deaf)?;
    if !run.keep {
        made.sandbox.delete(true)?;
    }
    Ok(code)
}

fn run_exec(sandbox: &Sandbox, exec: &Exec) -> Result<i32> {
    if sandbox.is_paused()? {
        let id = &exec.id;
        return Err(Error::Invalid(format!("cannot exec in the paused container {id}; `berth-oci resume {id}` first")));
    }
    let bundle = Bundle::load(&sandbox.state().bundle)?;
    let first = bundle.spec.process().clone().unwrap_or_default();
    let mut process = match &exec.process {
        Some(path) => read_json(path)?,
        None => first.clone(),
    };
    let mut user = exec.user.clone();
    if exec.process.is_none() {
        inherit(&mut process, exec);
        user = user.or_else(|| bundle.annotation(berth_runtime::annotations::USER).map(str::to_owned));
    }
    if exec.tty {
        process.set_terminal(Some(true));
    }
    // Detached, nobody would hold the terminal's other end.
    let terminal = process.terminal().unwrap_or(false) && (!exec.detach || exec.console_socket.is_some());
    process.set_terminal(Some(terminal));
    if terminal && !exec.detach {
        sandbox::copy_size(std::io::stdin(), &mut process);
    }
    let signals = if exec.detach { None } else { Some(relay::signals()?) };
    // runc's callers mean a process to have the streams they give it; only berth's own flag says otherwise. Whoever has
    // the caller's own can change the mode and owner of what they are.
    let (stdio, ends) = match (exec.pipes && !terminal, exec.detach) {
        (false, _) => (None, None),
        (true, true) => (Some(Default::default()), None),
        (true, false) => {
            let (stdio, ends) = relay::pipes(!exec.no_stdin)?;
            (Some(stdio), Some(ends))
        }
    };
    let executed = sandbox::exec(
        sandbox,
        &bundle,
        ExecOptions { process, user, pid_file: exec.pid_file.clone(), stdio, preserve_fds: exec.preserve_fds },
    )?;
    let streams = match (executed.console, &exec.console_socket, ends) {
        (Some(master), Some(socket), _) => {
            sandbox::send_master(socket, &master)?;
            foreground::Streams::default()
        }
        (Some(master), None, _) => foreground::Streams::terminal(master)?,
        (None, _, Some(ends)) => foreground::Streams::pipes(ends)?,
        (None, _, None) => foreground::Streams::default(),
    };
    match signals {
        Some(signals) => foreground::wait(&signals, executed.pid, streams, false),
        None => Ok(0),
    }
}

/// The flags on top of the first process's settings.
fn inherit(process: &mut Process, exec: &Exec) {
    process.set_args(Some(exec.command.clone())).set_terminal(Some(false));
    let mut environment = process.env().clone().unwrap_or_default();
    for entry in &exec.env {
        let key = entry.split_once('=').map_or(entry.as_str(), |(key, _)| key);
        environment.retain(|old| old.split_once('=').is_none_or(|(old, _)| old != key));
        environment.push(entry.clone());
    }
    if exec.tty && !environment.iter().any(|entry| entry.starts_with("TERM=")) {
        environment.push("TERM=xterm".to_owned());
    }
    process.set_env(Some(environment));
    if let Some(cwd) = &exec.cwd {
        process.set_cwd(cwd.clone());
    }
    if exec.user.is_some() {
        process.set_user(User::default());
    }
}

fn resources(path: &Path) -> Result<LinuxResources> {
    if path == Path::new("-") { read_json(Path::new("/dev/stdin")) } else { read_json(path) }
}

fn signal(text: &str) -> Result<i32> {
    use std::str::FromStr as _;
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    let number = text.parse().ok().filter(|number| (0..=64).contains(number));
    number
        .or_else(|| nix::sys::signal::Signal::from_str(&name).ok().map(|signal| signal as i32))
        .ok_or_else(|| Error::Invalid(format!("`{text}` is no signal; use a name such as TERM or a number")))
}

fn print_list(root: &Path, list: &List) -> Result<()> {
    let mut rows = Vec::new();
    for id in Sandbox::list(root)? {
        // One that vanishes or is broken must not hide the others.
        match Sandbox::load(root, &id).and_then(|sandbox| sandbox.oci_state()) {
            Ok(state) => rows.push(state),
            Err(Error::NotFound { .. }) => {}
            Err(error) => eprintln!("berth-oci: {id}: {}", one_line(&error.to_string())),
        }
    }
    if list.quiet {
        for row in &rows {
            print(row["id"].as_str().unwrap_or_default());
        }
    } else if list.format == "json" {
        print(&pretty(&json!(rows)));
    } else {
        print(&format!("{:<24} {:>8} {:<10} BUNDLE", "ID", "PID", "STATUS"));
        for row in rows {
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            print(&format!(
                "{:<24} {:>8} {:<10} {}",
                text("id"),
                row["pid"].to_string(),
                text("status"),
                text("bundle")
            ));
        }
    }
    Ok(())
}

fn print_processes(sandbox: &Sandbox, ps: &Ps) -> Result<()> {
    let processes = sandbox.processes()?;
    if ps.format == "json" {
        print(&json!(processes).to_string());
    } else {
        print(&format!("{:>8} COMMAND", "PID"));
        for pid in processes {
            // One that has ended meanwhile has no command line any more.
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            print(&format!("{pid:>8} {}", String::from_utf8_lossy(&command).replace('\0', " ").trim_end()));
        }
    }
    Ok(())
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// A reader that has gone away is no error of ours.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
