//! A cluster that spans machines (here network namespaces): certificates, join tokens and secrets, by the commands.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use berth_tests::command::{Cmd, Running};
use berth_tests::home::Home;
use berth_tests::wait;
use nix::sys::signal::Signal;

use crate::cluster_faults::{Cable, apart};

/// A master with TLS at the near end of a cable, and room for agents at the far end.
struct Secured {
    master: String,
    _process: Running,
    home: Home,
    cable: Cable,
}

impl Secured {
    fn start() -> Secured {
        let (cable, home) = (Cable::lay(), Home::new());
        let near = Cable::NEAR;
        home.berth(&format!("cluster init --host {near}")).arg(home.scratch().join("tls")).ok();
        let credentials = r#"{"credentials": [{"principal": "jobs", "secret": "a good one", "roles": ["research"]}]}"#;
        let credentials = secret(&home, "credentials.json", credentials);
        let listen = format!("cluster master --listen {near}:0");
        home.berth(&listen).run().fails_with("--tls");
        let process = home.berth(&listen).arg("--tls").arg(home.scratch().join("tls"));
        let process = process.arg("--credentials").arg(credentials).spawn();
        process.expect("\n");
        let master = process.stdout().trim().rsplit(' ').next().unwrap().to_owned();
        Secured { master, _process: process, home, cable }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.scratch().join(name)
    }

    /// A command of an operator.
    fn operator(&self, words: &str) -> Cmd {
        let command = self.home.berth(words).env("BERTH_MASTER", &self.master);
        command.env("BERTH_TLS", self.path("tls"))
    }

    fn token(&self, flags: &str) -> String {
        self.operator(&format!("cluster token {flags}")).ok().trimmed()
    }

    /// What `berth` says at the far end.
    fn far(&self, words: &str) -> String {
        format!("exec nsenter --net={} \"$0\" {words}", self.cable.namespace().display())
    }

    fn join(&self, token: &str, directory: &str) -> Cmd {
        let words = format!("cluster join --master {} --token - {}", self.master, self.path(directory).display());
        self.home.berth("").in_shell(&self.far(&words)).stdin(token)
    }

    /// A process whose words go to a file.
    fn process(&self, script: &str, log: &Path) -> Running {
        self.home.berth("").in_shell(&format!("{script} > {} 2>&1", log.display())).spawn()
    }

    fn agent(&self, name: &str, flags: &str) -> Running {
        let (directory, log) = (self.path(name).join("state"), self.path(&format!("{name}.log")));
        let words = format!(
            "cluster agent --cpus 1 --memory 1g --master {} --directory {} {flags}",
            self.master,
            directory.display()
        );
        self.process(&self.far(&words), &log)
    }

    fn expect_log(&self, name: &str, text: &str) {
        let log = self.path(&format!("{name}.log"));
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let is_said = wait::within(wait::DEADLINE, || said().contains(text));
        assert!(is_said, "{name} did not say {text:?}, but {:?}", said());
    }

    fn nodes(&self) -> usize {
        self.operator("nodes --format json").ok().json().as_array().unwrap().len()
    }
}

/// A file that nobody else may read.
fn secret(home: &Home, name: &str, text: &str) -> PathBuf {
    let path = home.scratch().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_cluster_spans_machines_and_lets_in_who_can_show_something() {
    apart(|| {
        let secured = Secured::start();
        let token = secured.token("");
        secured.join(&token, "agent").ok();
        let mode = |name: &str| fs::metadata(secured.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("agent"), mode("agent/agent-key.pem"), mode("tls/ca-key.pem")), (0o700, 0o600, 0o600));
        let tls = secured.path("agent");
        let _agent = secured.agent("agent-1", &format!("--tls {}", tls.display()));
        wait::until("the agent takes part", || secured.nodes() == 1);

        let jobs = |credential: &Path, log: &str| {
            let words = format!(
                "cluster jobs --master {} --tls {} --directory {} --credential {}",
                secured.master,
                secured.path("tls").display(),
                secured.path("jobs").display(),
                credential.display()
            );
            secured.process(&format!("exec \"$0\" {words}"), &secured.path(&format!("{log}.log")))
        };
        let wrong = secret(&secured.home, "wrong.json", r#"{"principal": "jobs", "secret": "a wrong one"}"#);
        let process = jobs(&wrong, "wrong");
        secured.expect_log("wrong", "401");
        drop(process);
        let right = secret(&secured.home, "right.json", r#"{"principal": "jobs", "secret": "a good one"}"#);
        let framework = jobs(&right, "right");
        let manifest = secured.path("job.yaml");
        let job = "
name: far
role: research
tasks:
  hello:
    service: {replicas: 1}
    image: busybox
    shell: echo from afar; while :; do sleep 0.1; done
    grace: 200ms
    resources: {cpus: 0.1, memory: 32m}
";
        fs::write(&manifest, job).unwrap();
        wait::until("the job framework listens", || secured.home.berth("jobs").run().exit_code() == 0);
        secured.home.berth("submit --wait running").arg(&manifest).ok();
        wait::until("the task is heard", || secured.home.berth("job logs far.hello").run().text() == "from afar\n");
        // A role that is not the principal's: of that job nothing runs, and what runs goes on.
        fs::write(&manifest, job.replace("research", "other").replace("far", "else")).unwrap();
        secured.home.berth("submit").arg(&manifest).ok();
        secured.expect_log("right", "may not use `other` as a role");
        // It dies in the middle of a word. Its next instance gets in when the job is stopped.
        framework.signal(Signal::SIGKILL);
        drop(framework);
        let _framework = jobs(&right, "again");
        secured.expect_log("again", "may not use `other` as a role");
        for job in ["else", "far"] {
            secured.home.berth("job stop").arg(job).ok();
        }
        wait::until("all that has ended is removed", || secured.home.containers().is_empty());
    });
}

#[test]
fn who_can_show_nothing_stays_outside() {
    apart(|| {
        let secured = Secured::start();
        let tls = secured.path("tls");
        let once = secured.token("");
        secured.join(&once, "agent").ok();
        secured.join(&once, "again").run().fails_with("the join token is not good");
        let short = secured.token("--ttl 1s --uses 5");
        let id = &short[..16];
        wait::until("the token expires", || !secured.operator("cluster token list").ok().text().contains(id));
        secured.join(&short, "again").run().fails_with("the join token is not good");
        let revoked = secured.token("--uses 5");
        secured.operator(&format!("cluster token revoke {}", &revoked[..16])).ok();
        secured.join(&revoked, "again").run().fails_with("the join token is not good");
        secured.join("nonsense", "again").run().fails_with("is no join token");
        assert!(!secured.path("again").exists(), "nothing is left of any of them");
        secured.join(&secured.token(""), "agent").run().fails_with("is there already");
        secured.home.berth("cluster init").arg(&tls).run().fails_with("is there already");

        let _plain = secured.agent("plain", "");
        secured.expect_log("plain", "--tls");
        // A certificate of another authority, with the same names in it.
        let other = secured.path("other");
        secured.home.berth("cluster init").arg(&other).ok();
        for (from, to) in [("operator.pem", "agent.pem"), ("operator-key.pem", "agent-key.pem")] {
            fs::copy(other.join(from), other.join(to)).unwrap();
        }
        let ask = |words: &str, tls: &Path| {
            secured.home.berth(words).args(["--master", &secured.master, "--tls"]).arg(tls).run()
        };
        ask("nodes", &other).fails_with("UnknownIssuer");
        fs::copy(tls.join("ca.pem"), other.join("ca.pem")).unwrap();
        ask("nodes", &other).fails_with("no master answers");
        ask("nodes", &secured.path("agent")).fails_with("operator.pem");
        ask("cluster agent", &other).fails_with("is no certificate for agent.berth.internal");
        secured.home.berth("nodes --master").arg(&secured.master).run().fails_with("--tls");
        fs::set_permissions(tls.join("operator-key.pem"), Permissions::from_mode(0o644)).unwrap();
        ask("nodes", &tls).fails_with("chmod 600");
        fs::set_permissions(tls.join("operator-key.pem"), Permissions::from_mode(0o600)).unwrap();
        assert_eq!(secured.nodes(), 0, "nobody has come in");
    });
}
