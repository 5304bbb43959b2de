//! The commands, one file for each or for a small group of kin.

mod attach;
mod bench;
mod certificates;
mod cluster;
mod completion;
mod container;
mod cp;
mod diff;
mod events;
mod exec;
mod images;
mod info;
mod inspect;
mod job;
mod lifecycle;
mod logs;
mod man;
mod ps;
mod run;
mod stats;
mod system;
mod top;
mod vm;
mod volume;
mod wasm;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use berth_engine::{Roots, sweep};
use berth_images::{UNPACK_COMMAND, unpack_worker_main};
use berth_runtime::span;
use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::diagnostics;
use crate::failure;
use crate::output::{self, Format};

/// Launch OCI images as containers, microVMs and Wasm sandboxes
#[derive(Debug, Parser)]
#[command(name = "berth", version, max_term_width = 100, arg_required_else_help = true, disable_help_subcommand = true)]
struct Berth {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Where images, containers and volumes are kept
    #[arg(
        long,
        global = true,
        env = "BERTH_DATA_ROOT",
        default_value = "/var/lib/berth",
        value_name = "DIR",
        hide_env = true
    )]
    data_root: PathBuf,
    /// Where the state of what runs is kept; emptied by a reboot
    #[arg(
        long,
        global = true,
        env = "BERTH_STATE_ROOT",
        default_value = "/run/berth",
        value_name = "DIR",
        hide_env = true
    )]
    state_root: PathBuf,
    /// How to print: a table for people or JSON for programs; `berth bench` knows csv too
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true, value_name = "table|json")]
    format: AnyFormat,
}

/// `--format`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum AnyFormat {
    #[default]
    Table,
    Json,
    /// Of `berth bench` alone.
    Csv,
}

/// Flags are built for the command that is called only: building them all takes a millisecond.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    Run(run::Run),
    Create(run::Create),
    Exec(exec::Exec),
    Attach(attach::Attach),
    Start(lifecycle::Start),
    Stop(lifecycle::Stop),
    Restart(lifecycle::Restart),
    Kill(lifecycle::Kill),
    Pause(lifecycle::Pause),
    Unpause(lifecycle::Unpause),
    Wait(lifecycle::Wait),
    Rm(lifecycle::Rm),
    Rename(lifecycle::Rename),
    Update(lifecycle::Update),
    Ps(ps::Ps),
    Inspect(inspect::Inspect),
    Logs(logs::Logs),
    Top(top::Top),
    Stats(stats::Stats),
    Events(events::Events),
    Cp(cp::Cp),
    Diff(diff::Diff),
    Info(info::Info),
    Version(info::Version),
    Images(images::Images),
    Pull(images::Pull),
    Push(images::Push),
    Load(images::Load),
    Save(images::Save),
    Import(images::Import),
    Tag(images::Tag),
    Rmi(images::Rmi),
    History(images::History),
    Login(images::Login),
    Logout(images::Logout),
    Image(images::Image),
    Container(container::Container),
    #[command(skip)]
    ContainerPrune(container::Prune),
    Volume(volume::Volume),
    Vm(vm::Vm),
    Wasm(wasm::Wasm),
    Cluster(cluster::Cluster),
    Submit(job::Submit),
    Jobs(job::Jobs),
    Job(job::Job),
    Nodes(cluster::Nodes),
    Fairness(cluster::Fairness),
    Explain(cluster::Explain),
    Bench(bench::Bench),
    System(system::System),
    Completion(completion::Completion),
    Man(man::Man),
}

/// What every command has at hand.
#[derive(Debug)]
pub struct Context {
    roots: Roots,
    format: Format,
    /// `--format csv`, which only `berth bench` has.
    is_csv: bool,
}

impl Context {
    /// Cleans up after crashes; what cannot be cleaned is a warning, not a reason to stop.
    fn sweep(&self) {
        for error in sweep::sweep(&self.roots) {
            failure::warn(&error.into());
        }
    }
}

/// Reads the command line and does what it says.
pub fn run() -> Result<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next().is_some_and(|command| command == UNPACK_COMMAND) {
        return Ok(unpack_worker_main(&arguments.next().unwrap_or_default()));
    }
    span::inherit();
    span::mark(span::Phase::Command);
    diagnostics::init();
    let berth = match parse() {
        Ok(berth) => berth,
        Err(error) => return Ok(failure::report_usage(&error, &called())),
    };
    let roots = Roots::new(&berth.global.data_root, &berth.global.state_root)?;
    let (format, is_csv) = match berth.global.format {
        AnyFormat::Table => (Format::Table, false),
        AnyFormat::Json => (Format::Json, false),
        AnyFormat::Csv if matches!(berth.command, Command::Bench(_)) => (Format::Table, true),
        AnyFormat::Csv => bail!("--format csv is for `berth bench` alone; use table or json"),
    };
    let context = Context { roots, format, is_csv };
    if !matches!(berth.command, Command::Completion(_) | Command::Man(_) | Command::Version(_)) {
        context.sweep();
    }
    dispatch(berth.command, &context)
}

/// Parses the command line. Help and mistakes are told by a parser with all commands in full.
fn parse() -> Result<Berth, clap::Error> {
    Berth::try_parse().or_else(|_| {
        let mut full = Berth::command();
        full.build();
        let matches = match full.clone().try_get_matches() {
            // A switch with a value, docker's `--rm=false`.
            Err(error) if error.kind() == ErrorKind::TooManyValues => switches_with_values(full).try_get_matches(),
            other => other,
        };
        Berth::from_arg_matches(&matches?)
    })
}

/// The same commands, whose switches may be given as `--switch=true` and `--switch=false`.
fn switches_with_values(command: clap::Command) -> clap::Command {
    let with_value = |arg: clap::Arg| match arg.get_action() {
        ArgAction::SetTrue => {
            let parser = BoolishValueParser::new();
            arg.action(ArgAction::Set).num_args(0..=1).require_equals(true).value_parser(parser)
        }
        _ => arg,
    };
    command.mut_args(with_value).mut_subcommands(switches_with_values)
}

/// `berth` and the command on the command line.
fn called() -> String {
    let mut full = Berth::command();
    full.build();
    let (mut name, mut command) = (String::from("berth"), &full);
    for word in env::args_os().skip(1) {
        if let Some(found) = command.find_subcommand(&word) {
            name = format!("{name} {}", found.get_name());
            command = found;
        }
    }
    name
}

fn dispatch(command: Command, context: &Context) -> Result<ExitCode> {
    match command {
        Command::Run(command) => command.run(context),
        Command::Create(command) => command.run(context),
        Command::Exec(command) => command.run(context),
        Command::Attach(command) => command.run(context),
        Command::Start(command) => command.run(context),
        Command::Stop(command) => command.run(context),
        Command::Restart(command) => command.run(context),
        Command::Kill(command) => command.run(context),
        Command::Pause(command) => command.run(context),
        Command::Unpause(command) => command.run(context),
        Command::Wait(command) => command.run(context),
        Command::Rm(command) => command.run(context),
        Command::Rename(command) => command.run(context),
        Command::Update(command) => command.run(context),
        Command::Ps(command) => command.run(context),
        Command::Inspect(command) => command.run(context),
        Command::Logs(command) => command.run(context),
        Command::Top(command) => command.run(context),
        Command::Stats(command) => command.run(context),
        Command::Events(command) => command.run(context),
        Command::Cp(command) => command.run(context),
        Command::Diff(command) => command.run(context),
        Command::Info(_) => info::Info::run(context),
        Command::Version(_) => info::Version::run(context),
        Command::Images(command) => command.run(context),
        Command::Pull(command) => command.run(context),
        Command::Push(command) => command.run(context),
        Command::Load(command) => command.run(context),
        Command::Save(command) => command.run(context),
        Command::Import(command) => command.run(context),
        Command::Tag(command) => command.run(context),
        Command::Rmi(command) => command.run(context),
        Command::History(command) => command.run(context),
        Command::Login(command) => command.run(context),
        Command::Logout(command) => command.run(context),
        Command::Image(command) => command.run(context),
        Command::ContainerPrune(command) => command.run(context),
        Command::Container(command) => dispatch(command.into(), context),
        Command::Volume(command) => command.run(context),
        Command::Vm(command) => command.run(context),
        Command::Wasm(command) => command.run(context),
        Command::Cluster(command) => command.run(context),
        Command::Submit(command) => command.run(context),
        Command::Jobs(_) => job::Jobs::run(context),
        Command::Job(command) => command.run(context),
        Command::Nodes(command) => command.run(context),
        Command::Fairness(command) => command.run(context),
        Command::Explain(command) => command.run(context),
        Command::Bench(command) => command.run(context),
        Command::System(command) => command.run(context),
        Command::Completion(command) => command.run(),
        Command::Man(command) => command.run(),
    }
}

/// Does something to each container in turn and prints what it was called; the errors of some do not keep the others
/// from their turn.
fn each(
    context: &Context,
    references: &[String],
    mut act: impl FnMut(&str) -> berth_engine::Result<()>,
) -> Result<ExitCode> {
    let mut outcome = ExitCode::SUCCESS;
    let mut done = Vec::new();
    for reference in references {
        match act(reference) {
            Ok(()) if context.format == Format::Json => done.push(reference),
            Ok(()) => output::print(&format!("{reference}\n"))?,
            Err(error) => outcome = failure::report(&error.into()),
        }
    }
    if context.format == Format::Json {
        output::json(&done)?;
    }
    Ok(outcome)
}
