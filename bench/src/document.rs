//! What `berth bench` knows in the end: its JSON, and what the report is made of.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::Path;

use berth_runtime::span::Phase;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host::{Host, Load};
use crate::statistics::{QUIET_SPREAD, Summary};

/// The version of the format.
pub const VERSION: u32 = 1;
/// Most bytes of a document that is read.
const MOST_BYTES: u64 = 64 << 20;

/// Results of one host, or of several that were put together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`VERSION`].
    pub version: u32,
    /// One for each measurement.
    pub results: Vec<Measured>,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Where.
    pub host: Host,
    /// When it began.
    pub began: jiff::Timestamp,
    /// How busy the host was.
    pub load: Load,
    /// Why the figures are to be taken with care.
    pub noise: Vec<String>,
    /// What was measured.
    #[serde(flatten)]
    pub what: What,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "measured")]
pub enum What {
    /// How long starts take.
    Startup(Startup),
    /// How many instances fit.
    Density(Density),
    /// What work costs inside.
    Work(Work),
}

impl What {
    /// Whether nothing could be measured.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Startup(startup) => startup.subjects.iter().all(|subject| subject.reason.is_some()),
            Self::Density(density) => density.subjects.iter().all(|subject| subject.reason.is_some()),
            Self::Work(work) => work.subjects.iter().all(|subject| subject.reason.is_some()),
        }
    }
}

/// How long starts take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Startup {
    /// Whether each run found caches empty; `false`: full.
    pub cold: bool,
    /// What keeps a cold start from being one, if something does.
    pub cold_note: Option<String>,
    /// How often each was run.
    pub runs: usize,
    /// What was started, in the order of the runs.
    pub subjects: Vec<StartupSubject>,
}

/// One way to start something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartupSubject {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What was run.
    pub workload: String,
    /// The name of berth's own subject that a peer does the same work as.
    pub beside: Option<String>,
    /// Why there are no figures.
    pub reason: Option<String>,
    /// All runs.
    pub runs: Vec<Run>,
    /// Of the runs.
    pub summary: Option<StartupSummary>,
    /// What one idle instance takes.
    pub memory: Option<Memory>,
    /// Several at once.
    pub throughput: Option<Throughput>,
}

/// A kind of subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// berth's containers.
    Container,
    /// berth's microVMs with a Linux guest.
    MicrovmLinux,
    /// berth's microVMs with a process guest.
    MicrovmProcess,
    /// berth's Wasm sandboxes.
    Wasm,
    /// Another program.
    Peer,
    /// No isolation at all.
    Native,
}

/// One start. Times are nanoseconds since it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Until the first instruction of the workload; none of a peer.
    pub first_instruction: Option<u64>,
    /// Until its first output was read.
    pub first_output: Option<u64>,
    /// Until the command had ended.
    pub exit: u64,
    /// What that went into; nothing of a peer.
    pub phases: BTreeMap<Phase, u64>,
}

/// Order statistics of runs, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StartupSummary {
    /// Of [`Run::first_instruction`].
    pub first_instruction: Option<Summary>,
    /// Of [`Run::first_output`].
    pub first_output: Option<Summary>,
    /// Of [`Run::exit`].
    pub exit: Summary,
}

impl StartupSubject {
    /// Sums the runs up.
    pub fn sum_up(&mut self) {
        let of = |time: fn(&Run) -> Option<u64>| Summary::of(self.runs.iter().filter_map(time).map(|time| time as f64));
        self.summary = of(|run| Some(run.exit)).map(|exit| StartupSummary {
            first_instruction: of(|run| run.first_instruction),
            first_output: of(|run| run.first_output),
            exit,
        });
    }

    /// The run whose time until its end is the median of all.
    pub fn median_run(&self) -> Option<&Run> {
        let median = self.summary?.exit.median;
        self.runs.iter().find(|run| (run.exit as f64 - median).abs() < 0.5)
    }
}

/// What the processes of one idle instance take: their proportional set size, in which memory that several processes of the
/// host share is divided between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes.
    pub pss: u64,
    /// How many processes it has, its monitor among them.
    pub processes: usize,
}

/// Several starts at once, again and again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Throughput {
    /// How many at once.
    pub parallel: usize,
    /// How many in all.
    pub starts: usize,
    /// Seconds from the first request to the last end.
    pub seconds: f64,
}

impl Throughput {
    /// Starts a second.
    pub fn per_second(&self) -> f64 {
        self.starts as f64 / self.seconds
    }
}

/// How many idle instances fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Density {
    /// Bytes they may take together.
    pub budget: u64,
    /// The most that were tried.
    pub most: usize,
    /// One for each kind.
    pub subjects: Vec<DensitySubject>,
}

/// Instances of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DensitySubject {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What idled.
    pub workload: String,
    /// Why there are no figures.
    pub reason: Option<String>,
    /// Bytes that all of them take, after each further one.
    pub bytes: Vec<u64>,
    /// Whether the budget ended it; `false`: as many ran as were to be tried.
    pub budget_reached: bool,
    /// Seconds it took to start them, one after the other.
    pub seconds: f64,
}

/// What work costs inside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// `syscall`, `cpu`, `io` or `net`.
    pub name: String,
    /// How often each was run.
    pub rounds: usize,
    /// One for each way to run it.
    pub subjects: Vec<WorkSubject>,
}

/// Work in one kind of isolation, or in none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkSubject {
    /// What it is called.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Why there are no figures.
    pub reason: Option<String>,
    /// The figures of each kind.
    pub figures: Vec<Figure>,
}

/// Figures of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Whether more is better.
    pub more_is_better: bool,
    /// One value for each round.
    pub values: Vec<f64>,
    /// Of the values.
    pub summary: Option<Summary>,
}

impl Startup {
    /// How many times as long a peer takes as berth does with the same work.
    pub fn ratio(&self, subject: &StartupSubject) -> Option<f64> {
        let name = subject.beside.as_ref()?;
        let own = self.subjects.iter().find(|own| own.kind != Kind::Peer && own.name == *name)?;
        Some(subject.summary?.exit.median / own.summary?.exit.median)
    }
}

impl Work {
    /// The name and unit of everything that was measured, in order.
    pub fn figures(&self) -> Vec<(&str, &str)> {
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for figure in self.subjects.iter().flat_map(|subject| &subject.figures) {
            if !seen.iter().any(|(name, _)| *name == figure.name) {
                seen.push((&figure.name, &figure.unit));
            }
        }
        seen
    }
}

impl DensitySubject {
    /// What kept it from going on.
    pub fn end(&self) -> &'static str {
        match (&self.reason, self.budget_reached) {
            (Some(_), _) => "a failure",
            (None, true) => "the budget",
            (None, false) => "the count",
        }
    }
}

impl Document {
    /// Of one measurement.
    pub fn of(measured: Measured) -> Self {
        Self { version: VERSION, results: vec![measured] }
    }

    /// Reads what `--format json` printed.
    pub fn read(path: &Path) -> Result<Self> {
        let file = fs::File::open(path).map_err(Error::file("read the results in", path))?;
        let mut text = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut text).map_err(Error::file("read the results in", path))?;
        let broken = |why: &dyn std::fmt::Display| {
            let path = path.display();
            Error::Invalid(format!("{path} has no results of `berth bench … --format json`: {why}"))
        };
        if text.len() as u64 > MOST_BYTES {
            return Err(broken(&format_args!("it is larger than {MOST_BYTES} bytes")));
        }
        let document: Self = serde_json::from_slice(&text).map_err(|error| broken(&error))?;
        if document.version == VERSION {
            Ok(document)
        } else {
            Err(broken(&format_args!("they are of version {}, not {VERSION}", document.version)))
        }
    }

    /// Puts another one's results behind the own.
    pub fn add(&mut self, other: Self) {
        self.results.extend(other.results);
    }
}

impl Measured {
    /// Says what of it is noise, too.
    pub fn new(host: Host, began: jiff::Timestamp, load: Load, what: What) -> Self {
        let mut noise: Vec<String> = load.noise(host.cpus).into_iter().collect();
        let mut noisy = Vec::new();
        let mut far_apart = |name: &str, of: &str, summary: &Summary| {
            if summary.is_noisy() {
                noisy.push(format!("{name}{of} ({:.0} %)", 100.0 * summary.spread() / summary.median));
            }
        };
        match &what {
            What::Startup(startup) => {
                for subject in &startup.subjects {
                    if let Some(summary) = &subject.summary {
                        far_apart(&subject.name, "", &summary.exit);
                    }
                }
            }
            What::Work(work) => {
                for subject in &work.subjects {
                    for figure in &subject.figures {
                        if let Some(summary) = &figure.summary {
                            far_apart(&subject.name, &format!(", {}", figure.name), summary);
                        }
                    }
                }
            }
            What::Density(_) => {}
        }
        if !noisy.is_empty() {
            let most = 100.0 * QUIET_SPREAD;
            noise.push(format!(
                "noisy figures: the middle half of the values spreads over more than {most} % of the median: {}",
                noisy.join(", ")
            ));
        }
        Self { host, began, load, noise, what }
    }
}
