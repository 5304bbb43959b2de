//! `berth-oci` by itself, with runc's command line.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
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
fn the_hosts_null_device_does_not_get_in() {
    // Two nodes of one device: the mode tells them apart, and changing it is what must not reach the host.
    let script = "chmod 642 /dev/null; stat -Lc %a:%t:%T /proc/self/fd/0";
    let bundle = Bundle::new(&["sh", "-c", script], |_| ());
    bundle.create();
    let _ = bundle.oci("start ID").ok();
    wait::until("the process has ended", || bundle.status() == "stopped");
    assert_eq!(bundle.output(), "642:1:3\n");
    assert_eq!(fs::metadata("/dev/null").unwrap().permissions().mode() & 0o7777, 0o666);
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
    bundle.oci("exec ID true").run().fails_with("paused");
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

/// Container ids 0 to 65535 are the host's from this one on.
const FIRST_ID: u32 = 300_000;

/// Adds a user namespace to a configuration.
fn with_users(config: &mut Value) {
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    for key in ["uidMappings", "gidMappings"] {
        config["linux"][key] = json!([{ "containerID": 0, "hostID": FIRST_ID, "size": 65536 }]);
    }
    config["root"]["readonly"] = json!(false);
}

/// Gives the root filesystem to the ids of the container, as whoever writes such a bundle does.
fn give_rootfs(bundle: &Bundle) {
    let _ = Cmd::new("chown", "-R").arg(format!("{FIRST_ID}:{FIRST_ID}")).arg(bundle.dir().join("rootfs")).ok();
}

#[test]
fn a_user_namespace_over_a_plain_directory() {
    let script = "id -u; stat -c %u:%g / /bin/busybox /dev/null; touch /mine; awk '{print $2}' /proc/self/gid_map";
    let bundle = Bundle::new(&["sh", "-c", script], with_users);
    give_rootfs(&bundle);
    // Nobody but the host's root gets at the bundle.
    fs::set_permissions(bundle.dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let text = bundle.oci("run --bundle BUNDLE ID").ok().text();
    assert_eq!(text, format!("0\n0:0\n0:0\n0:0\n{FIRST_ID}\n"));
    let mine = fs::metadata(bundle.dir().join("rootfs/mine")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&mine), FIRST_ID);
}

#[test]
fn a_user_namespace_needs_an_id_for_root() {
    for (key, maps) in [
        ("uidMappings", json!([])),
        ("gidMappings", json!([{ "containerID": 1, "hostID": FIRST_ID, "size": 9 }])),
        ("uidMappings", json!(null)),
    ] {
        let bundle = Bundle::new(&["true"], |config| {
            with_users(config);
            config["linux"][key] = maps;
        });
        bundle.oci("run --bundle BUNDLE ID").run().fails_with(key);
        bundle.oci("state ID").run().fails_with("exist");
    }
}

#[test]
fn bind_mounts_are_id_mapped_as_the_bundle_says() {
    let mapping = |first: u32| json!([{ "containerID": 0, "hostID": first, "size": 1000 }]);
    let mount = |name: &str, more: Value| {
        let mut mount =
            json!({ "destination": format!("/{name}"), "type": "bind", "source": "SOURCE", "options": ["rbind"] });
        mount.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        mount
    };
    let script = "stat -c %u /plain /own /container /deep 2>&1";
    let run = |users: bool, mounts: Vec<Value>| {
        let bundle = Bundle::new(&["sh", "-c", script], |config| {
            if users {
                with_users(config);
            }
            config["root"]["readonly"] = json!(false);
            config["mounts"].as_array_mut().unwrap().extend(mounts);
        });
        if users {
            give_rootfs(&bundle);
        }
        let config = bundle.dir().join("config.json");
        let source = bundle.dir().join("source");
        fs::create_dir(&source).unwrap();
        nix::unistd::chown(&source, Some(7.into()), Some(7.into())).unwrap();
        let text = fs::read_to_string(&config).unwrap().replace("SOURCE", source.to_str().unwrap());
        fs::write(&config, text).unwrap();
        (bundle.oci("run --bundle BUNDLE ID").run(), bundle)
    };
    let own = |first: u32| json!({ "uidMappings": mapping(first), "gidMappings": mapping(first), "options": ["bind", "idmap"] });
    let (out, _bundle) = run(
        true,
        vec![
            mount("plain", json!({})),
            mount("own", own(FIRST_ID + 100)),
            mount("container", json!({ "options": ["bind", "idmap"] })),
            mount("deep", json!({ "options": ["rbind", "ridmap"] })),
        ],
    );
    assert_eq!(out.code(0).trimmed(), "65534\n107\n7\n7");
    // Without a user namespace ids can be mapped too.
    let (out, _bundle) = run(false, vec![mount("plain", json!({})), mount("own", own(1000))]);
    assert!(out.text().starts_with("7\n1007\n"), "{out:?}");
    let half = json!({ "uidMappings": mapping(1), "options": ["bind", "idmap"] });
    let tmpfs = json!({ "type": "tmpfs", "source": "tmpfs", "options": ["idmap"], "uidMappings": mapping(1), "gidMappings": mapping(1) });
    for (users, bad) in [(false, json!({ "options": ["bind", "idmap"] })), (true, half), (true, tmpfs)] {
        let (out, bundle) = run(users, vec![mount("plain", bad)]);
        out.fails_with("cannot be mapped");
        bundle.oci("state ID").run().fails_with("exist");
    }
}

#[test]
fn a_user_namespace_by_path_is_joined() {
    let first = Bundle::new(&["sleep", "1000"], with_users);
    give_rootfs(&first);
    first.create();
    let pid = first.oci("state ID").ok().json()["pid"].to_string();
    let path = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    let script = "id -u; stat -c %u / /dev/zero; readlink /proc/self/ns/user; readlink /proc/self/ns/net; touch /mine; echo $$; \
                  mount | grep -c ' on /proc '";
    let second = Bundle::new(&["sh", "-c", script], |config| {
        with_users(config);
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            let kind = namespace["type"].as_str().unwrap().to_owned();
            if let Some((_, file)) = [("user", "user"), ("network", "net")].iter().find(|(name, _)| *name == kind) {
                namespace["path"] = json!(path(file));
            }
        }
    });
    give_rootfs(&second);
    let link = |kind: &str| fs::read_link(path(kind)).unwrap().display().to_string();
    let expected = format!("0\n0\n0\n{}\n{}\n1\n1\n", link("user"), link("net"));
    assert_eq!(second.oci("run --bundle BUNDLE ID").ok().text(), expected);
    second.create();
    let _ = second.oci("start ID").ok();
    wait::until("it has run", || second.status() == "stopped");
    let _ = second.oci("delete ID").ok();
    let _ = first.oci("delete --force ID").ok();
}

#[test]
fn a_namespace_of_the_host_is_joined_beside_a_new_user_namespace() {
    let bundle = Bundle::new(&["sh", "-c", "readlink /proc/self/ns/uts; id -u"], |config| {
        with_users(config);
        config.as_object_mut().unwrap().remove("hostname");
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "uts" {
                namespace["path"] = json!("/proc/self/ns/uts");
            }
        }
    });
    give_rootfs(&bundle);
    let host = fs::read_link("/proc/self/ns/uts").unwrap();
    assert_eq!(bundle.oci("run --bundle BUNDLE ID").ok().text(), format!("{}\n0\n", host.display()));
}

#[test]
fn ambient_capabilities_that_cannot_be_are_left_out() {
    // As `runc spec` writes them.
    let few = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let sets = json!({ "bounding": few, "effective": few, "permitted": few, "ambient": few });
    let bundle = Bundle::new(&["grep", "^Cap[EA]", "/proc/self/status"], |config| {
        config["process"]["capabilities"] = sets;
    });
    let out = bundle.oci("run --bundle BUNDLE ID").ok();
    assert_eq!(out.text(), "CapEff:\t0000000000000420\nCapAmb:\t0000000000000000\n");
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
