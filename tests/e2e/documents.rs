//! Every command in the README and in `docs/` is run, in the order of the page, and must print what the page shows.
//!
//! A block marked `console` is a terminal: `$ ` begins a command, `> ` a further line of it, and what follows is its output. A block
//! with a file's name after its language is that file. What differs from run to run (ids, times, numbers) is compared
//! by its form, and the places of the test's own are shown as the usual ones. `console nested` is shown by the emulated machine, where `nested` runs the same commands.
//!
//! With `BERTH_WRITE_DOCUMENTS=1` the pages get the output of this run.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use berth_tests::home::Home;
use berth_tests::podman::Podman;
use berth_tests::registry::{PASSWORD, Registry};
use berth_tests::{binaries, fixtures};
use regex_lite::Regex;

use crate::process_guest;

/// Longest that one command of a page may take.
const TIMEOUT: Duration = Duration::from_mins(3);
/// Where pages show their registry.
const REGISTRY: &str = "localhost:5000";

/// A part of a page.
#[derive(Debug)]
enum Part {
    /// What is kept as it is.
    Text(String),
    /// A file's name and content; also kept as it is.
    File(String, String),
    Command {
        /// As it is written, with `$ ` and `> `.
        written: String,
        script: String,
        output: String,
    },
}

fn parts(page: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        parts.push(Part::Text(format!("{line}\n")));
        let Some(kind) = line.strip_prefix("```").filter(|kind| !kind.is_empty()) else { continue };
        if let Some((_, name)) = kind.split_once(' ').filter(|(language, _)| *language != "console") {
            let mut content = String::new();
            while let Some(line) = lines.next_if(|line| *line != "```") {
                let _ = writeln!(content, "{line}");
            }
            parts.push(Part::File(name.to_owned(), content));
        } else if kind == "console" {
            while let Some(line) = lines.next_if(|line| *line != "```") {
                let script = line.strip_prefix("$ ").unwrap_or_else(|| panic!("no command at the front: {line:?}"));
                let (mut written, mut script) = (format!("{line}\n"), script.to_owned());
                while let Some(line) = lines.next_if(|line| line.starts_with("> ")) {
                    let _ = writeln!(written, "{line}");
                    let _ = write!(script, "\n{}", &line[2..]);
                }
                let mut output = String::new();
                while let Some(line) = lines.next_if(|line| *line != "```" && !line.starts_with("$ ")) {
                    let _ = writeln!(output, "{line}");
                }
                parts.push(Part::Command { written, script, output });
            }
        } else {
            while let Some(line) = lines.next_if(|line| *line != "```") {
                parts.push(Part::Text(format!("{line}\n")));
            }
        }
        parts.push(Part::Text(format!("{}\n", lines.next().expect("a block has an end"))));
    }
    parts
}

/// The form of an output: without what another run prints otherwise.
fn form(output: &str) -> String {
    static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let rules = [
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
            (r"0x[0-9a-f]+", "ADDRESS"),
            (r"\b[0-9a-f]{12,64}\b", "ID"),
            (r"(less than a|an?|[0-9]+) (second|minute)s?", "TIME"),
            (r"[0-9]+(\.[0-9]+)?([KMGT]i)?B\b", "SIZE"),
            (r"[0-9]+(\.[0-9]+)?", "0"),
            (r"[ \t]+", " "),
        ];
        rules.map(|(rule, name)| (Regex::new(rule).expect("a regular expression"), name)).to_vec()
    });
    let lines = output.trim().lines().map(|line| {
        let form = |line: String, (rule, name): &(Regex, &str)| rule.replace_all(&line, *name).into_owned();
        RULES.iter().fold(line.trim().to_owned(), form)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Ends what a page has started, also when it fails.
struct Reader {
    registry: Option<Registry>,
    /// Its containers go before the folder they are in.
    _podman: Podman,
    home: Home,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.home.berth("cluster down").run();
    }
}

impl Reader {
    fn new(needs_registry: bool) -> Self {
        let home = Home::new();
        let registry = needs_registry.then(|| Registry::start(&home.scratch().join("registry")));
        let podman = Podman::new(&home.scratch());
        let tools = home.scratch().join("tools");
        fs::create_dir_all(&tools).unwrap();
        podman.write_wrapper(&tools.join("podman"));
        fs::create_dir_all(home.scratch().join("reader")).unwrap();
        fs::copy(fixtures::busybox_rootfs(), home.scratch().join("reader/busybox.tar")).unwrap();
        Self { registry, _podman: podman, home }
    }

    /// Places of this home, and what they are where nobody says otherwise.
    fn places(&self) -> [(PathBuf, &'static str); 3] {
        let home = &self.home;
        [(home.data(), "/var/lib/berth"), (home.state(), "/run/berth"), (home.path().to_owned(), "/root")]
    }

    /// Where the reader sits.
    fn folder(&self) -> PathBuf {
        self.home.scratch().join("reader")
    }

    /// Runs what stands behind a `$`; `Err`: it fails.
    fn run(&self, script: &str) -> Result<String, String> {
        let registry = self.registry.as_ref().map_or(REGISTRY.to_owned(), Registry::host);
        let (tools, path) = (self.home.scratch().join("tools"), std::env::var("PATH").unwrap());
        let mut command = self
            .home
            .berth("")
            .env("PATH", format!("{}:{}:{path}", tools.display(), binaries::dir().display()))
            .env("PASSWORD", PASSWORD)
            .timeout(TIMEOUT);
        if let Some(registry) = &self.registry {
            command = command.env("SSL_CERT_FILE", registry.authority());
        }
        let script = format!("cd {} && exec 2>&1\n{}", self.folder().display(), script.replace(REGISTRY, &registry));
        let output = command.in_shell(&script).run();
        let text = self.places().iter().fold(output.text().replace(&registry, REGISTRY), |text, (here, shown)| {
            text.replace(here.to_str().unwrap(), shown)
        });
        if output.exit_code() == 0 { Ok(text) } else { Err(format!("exit code {}: {text}", output.exit_code())) }
    }
}

/// Runs a page.
fn run(page: &str) {
    let path = binaries::workspace().join(page);
    let text = fs::read_to_string(&path).unwrap();
    let reader = Reader::new(text.contains(REGISTRY));
    let (mut written, mut wrong) = (String::new(), Vec::new());
    for part in parts(&text) {
        match part {
            Part::Text(text) => written += &text,
            Part::File(name, content) => {
                written += &content;
                fs::write(reader.folder().join(name), content).unwrap();
            }
            Part::Command { written: command, script, output: shown } => {
                let found = reader.run(&script).unwrap_or_else(|error| panic!("{page}: $ {script}: {error}"));
                if form(&found) != form(&shown) {
                    wrong.push(format!("$ {script}\nshown:\n{shown}\nprinted:\n{found}"));
                }
                let blank = if shown.ends_with("\n\n") || (shown == "\n") { "\n" } else { "" };
                let found = found.trim_end();
                let _ = write!(written, "{command}{found}{}{blank}", if found.is_empty() { "" } else { "\n" });
            }
        }
    }
    if std::env::var_os("BERTH_WRITE_DOCUMENTS").is_some() {
        fs::write(&path, written).unwrap();
    } else {
        assert!(wrong.is_empty(), "{page} shows something else than is printed:\n{}", wrong.join("\n"));
    }
}

/// The pages, each a test. Some need a KVM without hardware virtualization, since they show process guests.
macro_rules! pages {
    ($($test:ident: $page:literal $(($guest:ident))?,)*) => {
        const PAGES: &[&str] = &[$($page),*];

        $(#[test]
        fn $test() {
            $(if !$guest::is_possible($page) {
                return;
            })?
            run($page);
        })*
    };
}

pages! {
    readme: "README.md" (process_guest),
    bench: "docs/bench.md",
    containers: "docs/containers.md",
    images: "docs/images.md",
    jobs: "docs/jobs.md",
    limits: "docs/limits.md",
    microvms: "docs/microvms.md" (process_guest),
    oci_clients: "docs/oci-clients.md",
    orchestrator: "docs/orchestrator.md",
    process_guests: "docs/process-guest.md" (process_guest),
    security: "docs/security.md",
    wasm: "docs/wasm.md",
}

#[test]
fn every_page_is_run() {
    let mut pages = vec!["README.md".to_owned()];
    for entry in fs::read_dir(binaries::workspace().join("docs")).unwrap() {
        pages.push(format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    pages.sort();
    assert_eq!(pages, PAGES);
}

#[test]
fn outputs_are_compared_by_their_form() {
    let shown = "ID  CREATED\n695a42ce5fc2   2 seconds ago   1.89MiB  Up 3 minutes";
    let printed = "ID     CREATED\n00aa42ce5fc2   less than a second ago   12KiB  Up a minute \n";
    assert_eq!(form(shown), form(printed));
    assert_ne!(form("OOMKilled true"), form("OOMKilled false"));
}
