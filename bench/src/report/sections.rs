//! One section for each kind of measurement: its charts, and under each what its figures include.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use berth_runtime::span::Phase;

use super::charts::{self, Bar, Line, Stack, Strip};
use super::html::{mebibytes, milliseconds, number, text};
use crate::csv::phase_name;
use crate::document::{Density, Kind, Startup, StartupSubject, Work};
use crate::statistics::Summary;

/// The class of a kind's colour.
fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Container => "container",
        Kind::MicrovmLinux => "microvm-linux",
        Kind::MicrovmProcess => "microvm-process",
        Kind::Wasm => "wasm",
        Kind::Peer => "peer",
        Kind::Native => "native",
    }
}

fn figure(html: &mut String, title: &str, what: &str, body: &str, caption: &str) {
    let _ = writeln!(
        html,
        "<figure>\n<h3>{}</h3>\n<p class=\"what\">{}</p>\n{body}\n<figcaption>{}</figcaption>\n</figure>",
        text(title),
        text(what),
        text(caption),
    );
}

/// What could not be measured, and why.
fn absent<'a>(all: impl Iterator<Item = (&'a str, Option<&'a String>)>) -> String {
    let mut list = String::new();
    for (name, reason) in all.filter_map(|(name, reason)| Some((name, reason?))) {
        let _ = write!(list, "<li><strong>{}</strong> was not measured: {}</li>", text(name), text(reason));
    }
    if list.is_empty() { list } else { format!("<ul class=\"absent\">{list}</ul>") }
}

pub fn startup(html: &mut String, startup: &Startup) {
    let (kind, full) = if startup.cold { ("Cold", "cold") } else { ("Warm", "warm") };
    let measured: Vec<&StartupSubject> = startup.subjects.iter().filter(|subject| subject.summary.is_some()).collect();
    let caches = match (startup.cold, &startup.cold_note) {
        (false, _) => "Warm: what is read is in the page cache, and Wasm code was compiled before.".to_owned(),
        (true, None) => "Cold: before each run the page cache was dropped and compiled Wasm code removed.".to_owned(),
        (true, Some(note)) => format!("Cold: before each run compiled Wasm code was removed; {note}."),
    };
    let runs = format!("{} runs each, in turns.", startup.runs);
    let all = absent(startup.subjects.iter().map(|subject| (subject.name.as_str(), subject.reason.as_ref())));
    let table = table(startup, &measured);
    figure(
        html,
        &format!("{kind} starts"),
        "From asking for it to the end of a program that writes one line.",
        &format!("{table}{all}"),
        &format!(
            "Milliseconds, medians unless said otherwise, of {runs} Request: just before the process of the command is made. \
             First instruction: told from inside, by the monitor once execve is done, by the VMM before ring 3 is first entered, by a \
             Linux guest's init over vsock, by the Wasm host before it instantiates. First output: its first byte is read from the \
             command's standard output. Exit: the command's process has ended, its sandbox is removed. Spread: from the first to \
             the third quartile. Percentiles are measured values (nearest rank), so of fewer than 100 runs p99 is the slowest. {caches}"
        ),
    );
    phases(html, &measured);
    let strips: Vec<_> = measured
        .iter()
        .filter_map(|subject| {
            let exit = subject.summary?.exit;
            Some(Strip {
                name: &subject.name,
                class: class(subject.kind),
                values: subject.runs.iter().map(|run| run.exit as f64 / 1e6).collect(),
                quartiles: [exit.q1 / 1e6, exit.median / 1e6, exit.q3 / 1e6],
            })
        })
        .collect();
    if !strips.is_empty() {
        figure(
            html,
            &format!("Every {full} run"),
            "A dot for each run; the box holds the middle half, the line is the median.",
            &charts::strips("Distribution of times from request to exit", "ms", &strips),
            "From request to exit. What the peers' figures include: runc, crun and berth-oci start from a bundle that is \
             ready, without an image store and without a seccomp filter; podman, like berth run, from an image, and with a \
             filter; wasmtime has no sandbox round it; QEMU and Firecracker boot the kernel of berth's guests \
             with the image as its initramfs and the command as its init, and have neither network, disk, log nor sandbox. The axis is logarithmic where its steps are uneven.",
        );
    }
    costs(html, &measured);
}

/// Figures of all subjects, and of peers the ratio to berth.
fn table(startup: &Startup, measured: &[&StartupSubject]) -> String {
    if measured.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<div class=\"scroll\"><table><thead><tr><th></th><th>First instruction</th><th>First output</th><th>Exit</th>\
         <th>p95</th><th>p99</th><th>Spread</th><th>To berth's</th></tr></thead><tbody>",
    );
    for subject in measured {
        let Some(summary) = subject.summary else { continue };
        let median = |of: Option<Summary>| of.map_or_else(|| "–".to_owned(), |of| milliseconds(of.median));
        let _ = write!(
            html,
            "<tr><td><svg class=\"swatch\" viewBox=\"0 0 10 10\"><rect class=\"{}\" width=\"10\" height=\"10\" rx=\"2\"/></svg>{}</td>\
             <td>{}</td><td>{}</td><td class=\"strong\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            class(subject.kind),
            text(&subject.name),
            median(summary.first_instruction),
            median(summary.first_output),
            milliseconds(summary.exit.median),
            milliseconds(summary.exit.p95),
            milliseconds(summary.exit.p99),
            milliseconds(summary.exit.spread()),
            startup.ratio(subject).map_or_else(String::new, |ratio| format!("{}×", number(ratio))),
        );
    }
    html.push_str("</tbody></table></div>");
    html
}

fn phases(html: &mut String, measured: &[&StartupSubject]) {
    let mut seen = BTreeSet::new();
    let rows: Vec<_> = measured
        .iter()
        .filter_map(|subject| {
            let run = subject.median_run().filter(|run| !run.phases.is_empty())?;
            seen.extend(run.phases.keys().copied());
            let piece = |(phase, time): (&Phase, &u64)| {
                (format!("p{}", *phase as u64), phase_name(*phase).to_owned(), *time as f64 / 1e6)
            };
            Some(Stack { name: &subject.name, pieces: run.phases.iter().map(piece).collect() })
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    let mut legend = String::from("<ul class=\"legend\">");
    for phase in seen {
        let _ = write!(
            legend,
            "<li><svg viewBox=\"0 0 12 12\"><rect class=\"p{}\" width=\"12\" height=\"12\" rx=\"2\"/></svg>{}</li>",
            phase as u64,
            text(phase_name(phase)),
        );
    }
    legend.push_str("</ul>");
    figure(
        html,
        "Where the time goes",
        "The run with the median time of each, split into phases.",
        &format!("{}{legend}", charts::stacks("Phases of a start", "ms", &rows)),
        "Phases are told from inside berth's processes and add up to the whole. command: berth's process is made and reads its \
         arguments. image: image, layers, compiled code and guest kernel are found. bundle: record and configuration are written. \
         sandbox: the monitor begins; namespaces, users, the root changed. cgroup, mounts, network: what their names say. executor: \
         the VMM or Wasm host is executed and confines itself. VM create, memory: the VM, its vCPUs and its memory. boot: a guest's \
         kernel until its init is connected. load: the program, by execve, VMM or Wasm host. run: from its first instruction until \
         the monitor has seen its end. end: all that was made is removed.",
    );
}

/// Memory and throughput.
fn costs(html: &mut String, measured: &[&StartupSubject]) {
    let memory: Vec<_> = measured
        .iter()
        .filter_map(|subject| {
            let memory = subject.memory?;
            let value = mebibytes(memory.pss);
            let processes = if memory.processes == 1 { "process" } else { "processes" };
            let says = format!("{} in {} {processes}", number(value), memory.processes);
            Some(Bar { name: &subject.name, class: class(subject.kind), value, says })
        })
        .collect();
    if !memory.is_empty() {
        figure(
            html,
            "Memory of one idle instance",
            "What the processes of one sleeping instance hold.",
            &charts::bars("Memory of one instance", "MiB", &memory),
            "The proportional set size of the monitor and of all processes of the sandbox, guest memory that was touched included: \
             memory that several processes of the host share is divided between them. Not included: what the host's kernel keeps for it.",
        );
    }
    let throughput: Vec<_> = measured
        .iter()
        .filter_map(|subject| {
            let throughput = subject.throughput?;
            let value = throughput.per_second();
            let says = format!("{}, {} at once", number(value), throughput.parallel);
            Some(Bar { name: &subject.name, class: class(subject.kind), value, says })
        })
        .collect();
    if !throughput.is_empty() {
        figure(
            html,
            "Starts a second",
            "Several at once, each followed by the next.",
            &charts::bars("Starts a second", "1/s", &throughput),
            "Starts from request to exit, from the first request to the last end.",
        );
    }
}

pub fn density(html: &mut String, density: &Density) {
    let rows: Vec<_> = density
        .subjects
        .iter()
        .filter(|subject| !subject.bytes.is_empty())
        .map(|subject| Line {
            name: &subject.name,
            class: class(subject.kind),
            values: subject.bytes.iter().map(|&bytes| mebibytes(bytes)).collect(),
        })
        .collect();
    let mut table = String::from(
        "<div class=\"scroll\"><table><thead><tr><th></th><th>Instances</th><th>Memory, MiB</th><th>Each, MiB</th><th>Ended by</th>\
         <th>Started in, s</th></tr></thead><tbody>",
    );
    let measured: Vec<_> = density.subjects.iter().filter(|subject| subject.reason.is_none()).collect();
    for subject in &measured {
        let (count, bytes) = (subject.bytes.len(), subject.bytes.last().copied().unwrap_or_default());
        let _ = write!(
            table,
            "<tr><td>{}</td><td class=\"strong\">{count}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            text(&subject.name),
            number(mebibytes(bytes)),
            if count == 0 { "-".to_owned() } else { number(mebibytes(bytes) / count as f64) },
            subject.end(),
            number(subject.seconds),
        );
    }
    table.push_str("</tbody></table></div>");
    let (budget, most) = (mebibytes(density.budget), density.most);
    let chart = if measured.is_empty() {
        String::new()
    } else {
        format!(
            "{}{table}",
            charts::lines("Memory over the number of instances", "MiB", "idle instances", budget, &rows)
        )
    };
    let all = absent(density.subjects.iter().map(|subject| (subject.name.as_str(), subject.reason.as_ref())));
    figure(
        html,
        "Density",
        "Idle instances side by side, and what they hold together.",
        &format!("{chart}{all}"),
        &format!(
            "The proportional set size of all their processes, monitors included, against a budget of {} MiB and at most {most} \
             instances; each kind by itself. What they share, above all berth's programs, counts once. Not included: what the \
             host's kernel keeps for them.",
            number(budget),
        ),
    );
}

pub fn work(html: &mut String, work: &Work) {
    let (title, caption) = match work.name.as_str() {
        "syscall" => (
            "A system call",
            "getppid(2), made again and again for 0.2 s. A container's goes to the host's kernel, through its seccomp filter; a Linux \
             guest's to the guest's; a process guest's leaves the VM, and the VMM serves it.",
        ),
        "cpu" => (
            "A loop",
            "50 million turns of xorshift, no memory and no calls. The module's was compiled by the Wasm host, the others' by rustc.",
        ),
        "io" => (
            "Files",
            "A file of 64 MiB in the root filesystem, written in order in pieces of 1 MiB, read likewise, then 4000 pages read and written \
             at random; through the page cache, without a sync. A Linux guest's root is in its memory. The host's is on the file system \
             that containers write to.",
        ),
        _ => (
            "Loopback TCP",
            "One byte there and back, 2000 times, and 256 MiB one way, between two threads over the loopback interface of whatever network \
             it is in.",
        ),
    };
    let mut body = String::new();
    for (name, _) in work.figures() {
        let all = || {
            work.subjects
                .iter()
                .filter_map(|subject| Some((subject, subject.figures.iter().find(|figure| figure.name == name)?)))
        };
        let native = all().find(|(subject, _)| subject.kind == Kind::Native).and_then(|(_, figure)| figure.summary);
        let Some((_, first)) = all().next() else { continue };
        let rows: Vec<_> = all()
            .filter_map(|(subject, figure)| {
                let value = figure.summary?.median;
                let ratio = native.filter(|_| subject.kind != Kind::Native).map(|native| value / native.median);
                let says =
                    ratio.map_or_else(|| number(value), |ratio| format!("{} ({}×)", number(value), number(ratio)));
                Some(Bar { name: &subject.name, class: class(subject.kind), value, says })
            })
            .collect();
        let better = if first.more_is_better { "more is better" } else { "less is better" };
        let heading = format!("{name}, {}: {better}", first.unit);
        let _ = write!(body, "<p class=\"what\">{}</p>{}", text(&heading), charts::bars(&heading, &first.unit, &rows));
    }
    body.push_str(&absent(work.subjects.iter().map(|subject| (subject.name.as_str(), subject.reason.as_ref()))));
    figure(
        html,
        title,
        "The same static program on the host and inside; in brackets, how many times the host's figure.",
        &body,
        &format!(
            "Medians of {} rounds in turns, measured by the program itself with its own clock. {caption}",
            work.rounds
        ),
    );
}
