//! `berth-oci` by itself, with runc's command line.

use std::fs;
use std::path::PathBuf;

use berth_tests::command::Cmd;
use berth_tests::home::Home;
use berth_tests::{binaries, fixtures, wait};
use serde_json::{Value, json};

/// A bundle of busybox and a root for states, for one test.
struct Bundle {
    home: Home,
    id: String,
}

impl Bundle {
    /// `process` replaces the arguments; `change` may do anything to the configuration that `berth-oci spec` writes.
    fn new(args: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let home = Home::empty();
        let dir = home.scratch();
        fs::create_dir(dir.join("rootfs")).unwrap();
        let _ = Cmd::new("tar", "-C").arg(dir.join("rootfs")).arg("-xf").arg(fixtures::busybox_rootfs()).ok();
        let mut spec = Cmd::new(binaries::berth_oci(), "spec");
        spec.inner.current_dir(&dir);
        let _ = spec.ok();
        let mut config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = json!(false);
        change(&mut config);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let id = format!("berth-test-{}", home.path().file_name().unwrap().to_str().unwrap());
        Self { home, id }
    }

    fn dir(&self) -> PathBuf {
        self.home.scratch()
    }

    /// `berth-oci --root … WORDS`, where `ID` and `BUNDLE` are replaced.
    fn oci(&self, words: &str) -> Cmd {
        let words = words.replace("ID", &self.id).replace("BUNDLE", &self.dir().display().to_string());
        Cmd::new(binaries::berth_oci(), &format!("--root {}/states {words}", self.dir().display()))
    }

    fn status(&self) -> String {
        self.oci("state ID").ok().json()["status"].as_str().unwrap().to_owned()
    }

    /// `create`: what it starts keeps the streams, so they are not pipes.
    fn create(&self) {
        let mut command = self.oci("create --bundle BUNDLE --pid-file BUNDLE/pid ID");
        let log = fs::File::create(self.dir().join("output")).unwrap();
        command.inner.stdin(std::process::Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let status = command.inner.status().unwrap();
        assert!(status.success(), "{}", self.output());
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir().join("output")).unwrap_or_default()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.oci("delete --force ID").inner.output();
    }
}

#[test]
fn run_runs_to_the_end() {
    let bundle = Bundle::new(&["sh", "-c", "echo ran; exit 5"], |_| ());
    let out = bundle.oci("run --bundle BUNDLE ID").run().code(5);
    assert_eq!(out.text(), "ran\n");
    bundle.oci("state ID").run().fails_with("");
}

#[test]
fn create_start_kill_delete() {
    let bundle = Bundle::new(&["sh", "-c", "echo started; exec sleep 1000"], |_| ());
    bundle.create();
    assert_eq!(bundle.status(), "created");
    assert_eq!(bundle.output(), "", "nothing runs before start");
    let state = bundle.oci("state ID").ok().json();
    let pid: i64 = fs::read_to_string(bundle.dir().join("pid")).unwrap().trim().parse().unwrap();
    assert_eq!((&state["pid"], &state["id"]), (&json!(pid), &json!(bundle.id)));
    assert_eq!(state["bundle"], json!(fs::canonicalize(bundle.dir()).unwrap()));
    let _ = bundle.oci("start ID").ok();
    wait::until("it has started", || bundle.output() == "started\n");
    assert_eq!(bundle.status(), "running");
    bundle.oci("start ID").run().fails_with("");
    bundle.oci("delete ID").run().fails_with("running");
    bundle.oci("create --bundle BUNDLE ID").run().fails_with("exist");
    assert!(bundle.oci("list").ok().text().contains(&bundle.id));
    assert!(bundle.oci("ps ID").ok().text().contains("sleep"));
    assert_eq!(bundle.oci("exec ID cat /proc/1/comm").ok().text(), "sleep\n");
    let _ = bundle.oci("exec ID sh -c").arg("exit 9").run().code(9);
    let _ = bundle.oci("pause ID").ok();
    assert_eq!(bundle.status(), "paused");
    let _ = bundle.oci("resume ID").ok();
    assert_eq!(bundle.status(), "running");
    let _ = bundle.oci("kill ID KILL").ok();
    wait::until("it has stopped", || bundle.status() == "stopped");
    let _ = bundle.oci("delete ID").ok();
    bundle.oci("state ID").run().fails_with("exist");
    bundle.oci("delete ID").run().fails_with("exist");
    let _ = bundle.oci("delete --force ID").ok();
}

#[test]
fn hooks_run_in_order() {
    let bundle = Bundle::new(&["sh", "-c", "echo process >> /order"], |config| {
        let hook = |name: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("cat > /dev/null; echo {name} >> $ORDER")], "env": ["ORDER=@"] }]);
        config["root"]["readonly"] = json!(false);
        config["hooks"] = json!({
            "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "poststart": hook("poststart"),
            "poststop": hook("poststop"),
        });
    });
    let config = bundle.dir().join("config.json");
    let order = bundle.dir().join("rootfs/order");
    fs::write(&config, fs::read_to_string(&config).unwrap().replace("ORDER=@", &format!("ORDER={}", order.display())))
        .unwrap();
    let _ = bundle.oci("run --bundle BUNDLE ID").ok();
    let order = fs::read_to_string(order).unwrap();
    let before: Vec<_> = order.lines().filter(|line| *line != "poststart").collect();
    assert_eq!(before, ["prestart", "createRuntime", "process", "poststop"]);
    assert!(order.contains("poststart"));
}

#[test]
fn a_hook_that_fails_stops_the_creation() {
    let bundle = Bundle::new(&["true"], |config| {
        config["hooks"] =
            json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "echo no good >&2; exit 3"] }] });
    });
    bundle.oci("run --bundle BUNDLE ID").run().fails_with("hook");
    bundle.oci("state ID").run().fails_with("");
}

#[test]
fn a_namespace_by_path_is_joined() {
    let bundle = Bundle::new(&["sh", "-c", "readlink /proc/self/ns/uts; readlink /proc/self/ns/net"], |config| {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!("/proc/self/ns/net");
            }
        }
    });
    let text = bundle.oci("run --bundle BUNDLE ID").ok().text();
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    let lines: Vec<_> = text.lines().collect();
    assert_ne!(lines[0], host("uts"));
    assert_eq!(lines[1], host("net"));
}

#[test]
fn errors_go_to_the_log_as_json() {
    let bundle = Bundle::new(&["no-such-command"], |_| ());
    let log = bundle.dir().join("log");
    let words = format!("--log {} --log-format json run --bundle BUNDLE ID", log.display());
    bundle.oci(&words).run().fails_with("no-such-command");
    let line = fs::read_to_string(log).unwrap();
    let entry: Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
    assert_eq!(entry["level"], "error");
    assert!(entry["msg"].as_str().unwrap().contains("no-such-command"));
}

#[test]
fn bad_bundles_are_refused() {
    let bundle = Bundle::new(&["true"], |_| ());
    let config = bundle.dir().join("config.json");
    let whole = fs::read_to_string(&config).unwrap();
    for text in ["", "{", "[]", "{}", &whole.replace("rootfs", "no-such-folder"), &whole[..whole.len() / 2]] {
        fs::write(&config, text).unwrap();
        bundle.oci("run --bundle BUNDLE ID").run().fails_with("");
        bundle.oci("state ID").run().fails_with("");
    }
    fs::remove_file(&config).unwrap();
    bundle.oci("run --bundle BUNDLE ID").run().fails_with("config.json");
    fs::write(&config, whole).unwrap();
    bundle.oci("run --bundle BUNDLE ../escape").run().fails_with("../escape");
    bundle.oci("run --bundle BUNDLE .").run().fails_with("");
}

#[test]
fn both_binaries_are_static() {
    for binary in [binaries::berth(), binaries::berth_oci()] {
        let bytes = fs::read(&binary).unwrap();
        // PT_INTERP, the request for a dynamic loader, would name it.
        assert!(!bytes.windows(9).any(|window| window == b"/ld-linux"), "{}", binary.display());
    }
    assert!(Cmd::new(binaries::berth_oci(), "--version").ok().text().contains("berth-oci"));
}
