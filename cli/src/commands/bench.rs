//! `berth bench`

#![expect(clippy::cast_precision_loss, reason = "times become figures for people")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use berth_bench::document::{Density, Document, Measured, Startup, What, Work};
use berth_bench::host::{Host, Load, load};
use berth_bench::report::Destination;
use berth_bench::targets::Selection;
use berth_bench::work::WorkKind;
use berth_bench::{Room, csv, density, startup, work};
use berth_engine::size;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::Context;
use crate::flags::{GuestKind, IsolationKind};
use crate::output::{self, Format, Table};

/// Measure what isolation costs on this host
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Startup(StartupArgs),
    Density(DensityArgs),
    /// Measure a system call that does nothing
    Syscall(WorkArgs),
    /// Measure a loop
    Cpu(WorkArgs),
    /// Measure files of the root filesystem
    Io(WorkArgs),
    /// Measure TCP over the loopback interface
    Net(WorkArgs),
    Report(ReportArgs),
}

/// Measure how long starts take, in turns: to the first instruction, to the first output and to the end
#[derive(Debug, Args)]
struct StartupArgs {
    /// What to start, in turns; by default busybox, and a built-in Wasm module
    image: Vec<String>,
    /// What to run in them instead of `echo started`
    #[arg(last = true)]
    command: Vec<String>,
    #[command(flatten)]
    kinds: Kinds,
    /// How often to start each
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How often to start each before that, uncounted
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    warm_up: u16,
    /// After that, measure starts a second with so many at once
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..=512))]
    parallel: Option<u16>,
    /// Also measure what is installed of runc, crun, podman and wasmtime with the same work
    #[arg(long)]
    peers: bool,
    /// Drop the host's page cache and compiled Wasm code before each start
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    result: ResultArgs,
}

/// Measure how many idle instances fit into a budget of memory
#[derive(Debug, Args)]
struct DensityArgs {
    /// What to start; by default busybox, and a built-in Wasm module
    image: Vec<String>,
    #[command(flatten)]
    kinds: Kinds,
    /// Memory that all instances of a kind may hold together
    #[arg(long, default_value = "256m", value_name = "BYTES", value_parser = size::some_bytes)]
    memory_budget: u64,
    /// The most instances of a kind
    #[arg(long, default_value_t = 25, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    count: u16,
    #[command(flatten)]
    result: ResultArgs,
}

#[derive(Debug, Args)]
struct WorkArgs {
    #[command(flatten)]
    kinds: Kinds,
    /// How often to do it in each
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    #[command(flatten)]
    result: ResultArgs,
}

/// Put results together that `--format json` has printed, of this host and of others
#[derive(Debug, Args)]
struct ReportArgs {
    /// The results, in the order in which they are to stand
    #[arg(required = true)]
    file: Vec<PathBuf>,
    /// The report to write; nothing: they are printed
    #[arg(short, long, value_name = "FILE.html")]
    output: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Kinds {
    /// What to measure, separated by commas; all by default
    #[arg(long, value_enum, value_delimiter = ',', value_name = "container|microvm|wasm", hide_possible_values = true)]
    isolation: Vec<IsolationKind>,
    /// Which guests of microVMs; both by default
    #[arg(long, value_enum, value_delimiter = ',', value_name = "linux|process", hide_possible_values = true)]
    guest: Vec<GuestKind>,
}

#[derive(Debug, Args)]
struct ResultArgs {
    /// Also write a report with charts, one HTML file
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Results of other hosts or measurements, printed with `--format json`, for that report
    #[arg(long, requires = "report", value_name = "FILE.json")]
    add: Vec<PathBuf>,
    /// What the report calls this host
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
}

impl Bench {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Command::Startup(args) => args.run(context),
            Command::Density(args) => args.run(context),
            Command::Syscall(args) => args.run(context, WorkKind::Syscall),
            Command::Cpu(args) => args.run(context, WorkKind::Cpu),
            Command::Io(args) => args.run(context, WorkKind::Io),
            Command::Net(args) => args.run(context, WorkKind::Net),
            Command::Report(args) => args.run(context),
        }
    }
}

impl Kinds {
    fn selection(self, images: Vec<String>, command: Vec<String>) -> Selection {
        let guests = self.guest.into_iter().filter(|guest| *guest != GuestKind::Auto).map(Into::into);
        let isolations = self.isolation.into_iter().map(Into::into);
        Selection { images, command, isolations: isolations.collect(), guests: guests.collect() }
    }
}

impl StartupArgs {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let options = startup::Options {
            selection: self.kinds.selection(self.image, self.command),
            runs: self.runs.into(),
            warm_up: self.warm_up.into(),
            parallel: self.parallel.map(Into::into),
            peers: self.peers,
            cold: self.cold,
        };
        self.result.measure(context, |room| Ok(What::Startup(startup::measure(room, &options)?)))
    }
}

impl DensityArgs {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let selection = self.kinds.selection(self.image, Vec::new());
        let options = density::Options { selection, budget: self.memory_budget, most: self.count.into() };
        self.result.measure(context, |room| Ok(What::Density(density::measure(room, &options)?)))
    }
}

impl WorkArgs {
    fn run(self, context: &Context, kind: WorkKind) -> Result<ExitCode> {
        let selection = self.kinds.selection(Vec::new(), Vec::new());
        let rounds = self.rounds.into();
        self.result.measure(context, |room| Ok(What::Work(work::measure(room, kind, &selection, rounds)?)))
    }
}

impl ReportArgs {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let destination = self.output.as_deref().map(Destination::new).transpose()?;
        let is_input = |path: &&PathBuf| destination.as_ref().is_some_and(|destination| destination.is(path));
        if let Some(input) = self.file.iter().find(is_input) {
            bail!("{} holds results: write the report to another file", input.display());
        }
        let [first, rest @ ..] = &self.file[..] else { bail!("name the results to put together") };
        let mut document = Document::read(first)?;
        for path in rest {
            document.add(Document::read(path)?);
        }
        match destination {
            Some(destination) => destination.write(&document)?,
            None => print(context, &document)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ResultArgs {
    /// Measures, prints, and writes the report.
    fn measure(
        self,
        context: &Context,
        measure: impl FnOnce(&Room<'_>) -> berth_bench::Result<What>,
    ) -> Result<ExitCode> {
        // What cannot be written or read is said before anything is measured.
        let destination = self.report.as_deref().map(Destination::new).transpose()?;
        let others = self.add.iter().map(|path| Document::read(path)).collect::<berth_bench::Result<Vec<_>>>()?;
        let host = Host::here(&context.roots, self.label)?;
        let (began, before) = (jiff::Timestamp::now(), load());
        let bar = bar();
        let step = |what: &str, done: usize, all: usize| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
            bar.set_message(what.to_owned());
        };
        let what = {
            let room = Room::new(&context.roots, &step)?;
            measure(&room)
        };
        bar.finish_and_clear();
        let what = match what {
            Err(berth_bench::Error::Interrupted) => return Ok(interrupted()),
            other => other?,
        };
        let measured = Measured::new(host, began, Load { before, after: load() }, what);
        let mut document = Document::of(measured);
        print(context, &document)?;
        let is_empty = document.results[0].what.is_empty();
        if let Some(destination) = destination {
            for other in others {
                document.add(other);
            }
            destination.write(&document)?;
        }
        if is_empty {
            bail!("nothing was measured");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What a shell gives a command that was ended by Ctrl-C.
fn interrupted() -> ExitCode {
    eprintln!("berth: interrupted: what was measured is thrown away");
    ExitCode::from(130)
}

/// One line on a terminal, nothing elsewhere.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("[{bar:30}] {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(1).with_style(style.progress_chars("=> "))
}

fn print(context: &Context, document: &Document) -> Result<()> {
    if context.is_csv {
        output::print(&csv::of(document))?;
        return Ok(());
    }
    if context.format == Format::Json {
        output::json(document)?;
        return Ok(());
    }
    for (number, measured) in document.results.iter().enumerate() {
        if number > 0 {
            output::print("\n")?;
        }
        print_measured(measured)?;
    }
    Ok(())
}

fn print_measured(measured: &Measured) -> Result<()> {
    let (host, load) = (&measured.host, &measured.load);
    output::lines([
        format!("{}: {} × {}, {}", host.title(), host.cpus, host.cpu, output::bytes(host.memory)),
        format!("kernel {}, {}, control groups {}", host.kernel, host.kvm_kind(), host.cgroups),
        format!("load average {:.2} before, {:.2} after", load.before, load.after),
    ])?;
    output::lines(measured.noise.iter().map(|line| format!("WARNING: {line}")))?;
    output::print("\n")?;
    match &measured.what {
        What::Startup(startup) => print_startup(startup),
        What::Density(density) => print_density(density),
        What::Work(work) => print_work(work),
    }
}

/// Nanoseconds as milliseconds.
fn ms(nanoseconds: f64) -> String {
    format!("{:.2}", nanoseconds / 1e6)
}

fn print_startup(startup: &Startup) -> Result<()> {
    let how = if startup.cold { "cold" } else { "warm" };
    output::print(&format!(
        "{how} starts, ms, medians of {} runs each; SPREAD is from the first to the third quartile\n",
        startup.runs
    ))?;
    if let Some(note) = &startup.cold_note {
        output::print(&format!("{note}\n"))?;
    }
    let headings =
        ["", "FIRST INSTRUCTION", "FIRST OUTPUT", "EXIT", "P95", "P99", "SPREAD", "MEMORY", "STARTS/S", "TO BERTH'S"];
    let mut table = Table::new(&headings);
    for subject in &startup.subjects {
        let Some(summary) = subject.summary else { continue };
        let median =
            |of: Option<berth_bench::statistics::Summary>| of.map_or_else(|| "-".to_owned(), |of| ms(of.median));
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.row(vec![
            subject.name.clone(),
            median(summary.first_instruction),
            median(summary.first_output),
            ms(summary.exit.median),
            ms(summary.exit.p95),
            ms(summary.exit.p99),
            ms(summary.exit.spread()),
            or_none(subject.memory.map(|memory| output::bytes(memory.pss))),
            or_none(subject.throughput.map(|throughput| format!("{:.1}", throughput.per_second()))),
            startup.ratio(subject).map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
        ]);
    }
    table.print()?;
    let phases: Vec<_> = berth_runtime::span::Phase::ALL
        .into_iter()
        .filter(|phase| {
            startup.subjects.iter().flat_map(|subject| &subject.runs).any(|run| run.phases.contains_key(phase))
        })
        .collect();
    if !phases.is_empty() {
        output::print("\nphases of the median run, ms\n")?;
        let names: Vec<String> = phases.iter().map(|&phase| csv::phase_name(phase).to_uppercase()).collect();
        let mut table = Table::new(&[&[""], names.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
        for subject in &startup.subjects {
            let Some(run) = subject.median_run().filter(|run| !run.phases.is_empty()) else { continue };
            let time = |phase| run.phases.get(phase).map_or_else(|| "-".to_owned(), |&time| ms(time as f64));
            table.row([subject.name.clone()].into_iter().chain(phases.iter().map(time)).collect());
        }
        table.print()?;
    }
    absent(startup.subjects.iter().map(|subject| (&subject.name, &subject.reason)))
}

fn print_density(density: &Density) -> Result<()> {
    let (budget, most) = (output::bytes(density.budget), density.most);
    output::print(&format!("idle instances in a budget of {budget}, at most {most}\n"))?;
    let mut table = Table::new(&["", "INSTANCES", "MEMORY", "EACH", "ENDED BY", "STARTED IN"]);
    for subject in density.subjects.iter().filter(|subject| subject.reason.is_none()) {
        let (count, bytes) = (subject.bytes.len(), subject.bytes.last().copied().unwrap_or_default());
        table.row(vec![
            subject.name.clone(),
            count.to_string(),
            output::bytes(bytes),
            if count == 0 { "-".to_owned() } else { output::bytes(bytes / count as u64) },
            subject.end().to_owned(),
            format!("{:.2}s", subject.seconds),
        ]);
    }
    table.print()?;
    absent(density.subjects.iter().map(|subject| (&subject.name, &subject.reason)))
}

fn print_work(work: &Work) -> Result<()> {
    output::print(&format!("medians of {} rounds; in brackets, times the host's\n", work.rounds))?;
    let names = work.figures();
    let headings: Vec<String> = names.iter().map(|(name, unit)| format!("{}, {unit}", name.to_uppercase())).collect();
    let mut table = Table::new(&[&[""], headings.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
    let median = |subject: &berth_bench::document::WorkSubject, name: &str| {
        subject.figures.iter().find(|figure| figure.name == name)?.summary.map(|summary| summary.median)
    };
    let native = work.subjects.first().filter(|_| !work.subjects.is_empty());
    for subject in work.subjects.iter().filter(|subject| subject.reason.is_none()) {
        let cell = |(name, _): &(&str, &str)| {
            let (Some(value), Some(native)) = (median(subject, name), native.and_then(|native| median(native, name)))
            else {
                return "-".to_owned();
            };
            if subject.kind == berth_bench::document::Kind::Native {
                format!("{value:.2}")
            } else {
                format!("{value:.2} ({:.2}x)", value / native)
            }
        };
        table.row([subject.name.clone()].into_iter().chain(names.iter().map(cell)).collect());
    }
    table.print()?;
    absent(work.subjects.iter().map(|subject| (&subject.name, &subject.reason)))
}

/// What was not measured, and why.
fn absent<'a>(all: impl Iterator<Item = (&'a String, &'a Option<String>)>) -> Result<()> {
    let lines: Vec<String> =
        all.filter_map(|(name, reason)| Some(format!("not measured: {name}: {}", reason.as_ref()?))).collect();
    if !lines.is_empty() {
        output::print("\n")?;
    }
    Ok(output::lines(lines)?)
}
