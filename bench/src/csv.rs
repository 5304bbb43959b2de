//! Results as CSV: one line for each run, instance or value, so that whoever reads it can do statistics of their own.

use berth_runtime::span::Phase;

use crate::document::{Document, Measured, What};

/// All columns. Those that a line has nothing for are empty.
const COLUMNS: [&str; 9] = ["host", "began", "measured", "subject", "number", "what", "value", "unit", "reason"];

/// The document as CSV, times in nanoseconds.
pub fn of(document: &Document) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut lines = vec![COLUMNS.map(str::to_owned)];
    for measured in &document.results {
        measured.lines(&mut lines);
    }
    for line in lines {
        // Memory takes it.
        let _ = writer.write_record(line);
    }
    String::from_utf8_lossy(&writer.into_inner().unwrap_or_default()).into_owned()
}

impl Measured {
    fn lines(&self, lines: &mut Vec<[String; 9]>) {
        let mut line =
            |measured: &str, subject: &str, number: usize, what: &str, value: String, unit: &str, reason: &str| {
                let (host, began) = (self.host.title().to_owned(), self.began.to_string());
                let number = if number == 0 { String::new() } else { number.to_string() };
                let [measured, subject, what, unit, reason] =
                    [measured, subject, what, unit, reason].map(str::to_owned);
                lines.push([host, began, measured, subject, number, what, value, unit, reason]);
            };
        match &self.what {
            What::Startup(startup) => {
                for subject in &startup.subjects {
                    let name = &subject.name;
                    if let Some(reason) = &subject.reason {
                        line("startup", name, 0, "", String::new(), "", reason);
                    }
                    for (number, run) in (1..).zip(&subject.runs) {
                        let moments = [
                            ("first instruction", run.first_instruction),
                            ("first output", run.first_output),
                            ("exit", Some(run.exit)),
                        ];
                        for (what, time) in moments {
                            if let Some(time) = time {
                                line("startup", name, number, what, time.to_string(), "ns", "");
                            }
                        }
                        for (phase, time) in &run.phases {
                            line(
                                "startup",
                                name,
                                number,
                                &format!("phase {}", phase_name(*phase)),
                                time.to_string(),
                                "ns",
                                "",
                            );
                        }
                    }
                    if let Some(memory) = subject.memory {
                        line("startup", name, 0, "memory", memory.pss.to_string(), "bytes", "");
                    }
                    if let Some(throughput) = subject.throughput {
                        let what = format!("{} at once", throughput.parallel);
                        line("startup", name, 0, &what, throughput.per_second().to_string(), "1/s", "");
                    }
                }
            }
            What::Density(density) => {
                for subject in &density.subjects {
                    if let Some(reason) = &subject.reason {
                        line("density", &subject.name, 0, "", String::new(), "", reason);
                    }
                    for (number, bytes) in (1..).zip(&subject.bytes) {
                        line("density", &subject.name, number, "memory", bytes.to_string(), "bytes", "");
                    }
                }
            }
            What::Work(work) => {
                for subject in &work.subjects {
                    if let Some(reason) = &subject.reason {
                        line(&work.name, &subject.name, 0, "", String::new(), "", reason);
                    }
                    for figure in &subject.figures {
                        for (number, value) in (1..).zip(&figure.values) {
                            line(&work.name, &subject.name, number, &figure.name, value.to_string(), &figure.unit, "");
                        }
                    }
                }
            }
        }
    }
}

/// What a phase is called.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Command => "command",
        Phase::Image => "image",
        Phase::Bundle => "bundle",
        Phase::Sandbox => "sandbox",
        Phase::Cgroup => "cgroup",
        Phase::Mounts => "mounts",
        Phase::Network => "network",
        Phase::Executor => "executor",
        Phase::VmCreate => "VM create",
        Phase::Memory => "memory",
        Phase::Boot => "boot",
        Phase::Load => "load",
        Phase::Run => "run",
        Phase::End => "end",
    }
}
