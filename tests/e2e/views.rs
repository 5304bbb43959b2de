//! Commands that show something: ps, inspect, stats, top, events, info, version, completion; and prune.

use berth_tests::command::Cmd;
use berth_tests::home::Home;
use berth_tests::{binaries, layout, wait};
use serde_json::{Value, json};

/// A document, or one on each line.
fn documents(text: &str) -> Vec<Value> {
    if let Ok(whole) = serde_json::from_str::<Value>(text) {
        return match whole {
            Value::Array(list) => list,
            one => vec![one],
        };
    }
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line:?} of:\n{text}"));
    text.lines().map(parse).collect()
}

#[test]
fn format_json_parses_everywhere() {
    let home = Home::new();
    let id = home.detached("--name it --label a=b", "exec sleep 1000");
    for command in [
        "ps",
        "ps -a",
        "images",
        "inspect it",
        "image inspect busybox",
        "image history busybox",
        "stats --no-stream it",
        "stats --no-stream",
        "top it",
        "diff it",
        "info",
        "version",
    ] {
        let text = home.berth(command).args(["--format", "json"]).ok().text();
        assert!(!text.trim().is_empty() || command == "diff it", "{command} prints nothing");
        let _ = documents(&text);
    }
    // Those that end only with the container, or print when something happens.
    let events = home.berth("events --format json --since 1h").spawn();
    events.expect("start");
    events.signal(nix::sys::signal::Signal::SIGINT);
    let events = events.wait();
    assert!(documents(&events.text()).iter().any(|event| event.to_string().contains(&id)), "{events:?}");
    for command in ["rm -f it", "image prune -f", "system prune -f", "rmi -f busybox"] {
        let text = home.berth(command).args(["--format", "json"]).ok().text();
        let _ = documents(&text);
    }
}

#[test]
fn ps_lists_what_runs_and_with_a_everything() {
    let home = Home::new();
    assert_eq!(home.berth("ps -q").ok().text(), "");
    let running = home.detached("--name runs", "exec sleep 1000");
    let _ = home.berth("run --name ended busybox sh -c").arg("exit 3").run().code(3);
    let text = home.berth("ps").ok().text();
    assert!(text.contains("runs") && text.contains(&running[..12]) && text.contains("busybox"), "{text}");
    assert!(!text.contains("ended"), "{text}");
    let text = home.berth("ps -a").ok().text();
    assert!(text.contains("ended") && text.contains("Exited (3)"), "{text}");
    assert_eq!(home.berth("ps -q").ok().trimmed(), running[..12]);
    assert_eq!(home.berth("ps -q --no-trunc").ok().trimmed(), running);
    let list = documents(&home.berth("ps -a --format json").ok().text());
    assert_eq!(list.len(), 2);
}

#[test]
fn inspect_tells_what_was_asked_for() {
    let home = Home::new();
    let id = home.detached("--name it --memory 32m -e A=b -w /tmp --hostname boat", "exec sleep 1000");
    let info = home.inspect("it");
    assert_eq!(info["Id"], *id);
    assert_eq!(info["Name"].as_str().unwrap().trim_start_matches('/'), "it");
    assert_eq!(info["State"]["Status"], "running");
    assert_eq!(info["State"]["Running"], true);
    assert_eq!(info["Config"]["Hostname"], "boat");
    assert_eq!(info["Config"]["WorkingDir"], "/tmp");
    assert!(info["Config"]["Env"].as_array().unwrap().contains(&"A=b".into()));
    assert_eq!(info["HostConfig"]["Memory"], 32 << 20);
    let pid = info["State"]["Pid"].as_i64().unwrap();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(command, b"sleep\x001000\0");
}

#[test]
fn stats_shows_use() {
    let home = Home::new();
    let _ = home.detached("--name it --memory 64m --pids-limit 20", "while :; do :; done");
    let text = home.berth("stats --no-stream it").ok().text();
    assert!(text.contains("it") && text.contains('%') && text.contains("64"), "{text}");
    let live = home.berth("stats it").spawn();
    live.expect("it");
    live.signal(nix::sys::signal::Signal::SIGINT);
    let _ = live.wait();
}

#[test]
fn top_lists_processes() {
    let home = Home::new();
    let id = home.detached("--name it", "sleep 1000 & exec sleep 2000");
    wait::until("both are listed", || {
        let text = home.berth("top it").ok().text();
        text.contains("sleep 1000") && text.contains("sleep 2000")
    });
    let text = home.berth("top it").ok().text();
    assert!(text.contains(&home.pid(&id).to_string()), "process ids are the host's: {text}");
}

#[test]
fn events_tell_the_life_of_a_container() {
    let home = Home::new();
    // What was before it has begun to watch, too.
    let events = home.berth("events --since 1h").spawn();
    let id = home.detached("--name it", "exit 5");
    let _ = home.berth("wait it").ok();
    let _ = home.berth("rm it").ok();
    for event in ["create", "start", "die", "destroy"] {
        events.expect(event);
    }
    let text = events.stdout();
    assert!(text.contains(&id[..12]), "{text}");
    events.signal(nix::sys::signal::Signal::SIGTERM);
    let _ = events.wait();
    let past = home.berth("events --since 1h --until 0s").ok().text();
    assert!(past.contains("die"), "{past}");
}

#[test]
fn info_and_version_tell() {
    let home = Home::new();
    let info = home.berth("info").ok().text();
    assert!(info.contains(&*home.data().to_string_lossy()) && info.to_lowercase().contains("cgroup"), "{info}");
    let version = home.berth("version").ok().text();
    assert!(version.contains("0.1.0"), "{version}");
    assert!(home.berth("--version").ok().text().contains("0.1.0"));
}

#[test]
fn completion_is_a_script_the_shell_takes() {
    let home = Home::empty();
    for shell in ["bash", "zsh", "fish"] {
        let script = home.berth("completion").arg(shell).ok().text();
        assert!(script.contains("berth") && script.len() > 1000, "{shell}");
        if shell == "bash" {
            let out = Cmd::new("bash", "-n").stdin(script).ok();
            assert_eq!(out.stderr_text(), "");
        }
    }
    home.berth("completion nonsense").run().fails_with("nonsense");
}

#[test]
fn every_command_has_a_manual_page() {
    let home = Home::empty();
    let pages = home.scratch().join("man/man1");
    let write = || home.berth("man").arg(&pages).ok();
    assert_eq!(write().text(), "");
    // Pages of an older version are replaced.
    let _ = write();
    let help = home.berth("--help").ok().text();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let is_first_line = |line: &&str| !line.starts_with("   ");
    let commands = commands.filter(is_first_line).filter_map(|line| line.split_whitespace().next());
    let commands: Vec<&str> = commands.collect();
    assert!(commands.len() > 30, "{help}");
    for command in commands {
        let page = std::fs::read_to_string(pages.join(format!("berth-{command}.1"))).expect(command);
        assert!(page.contains(".SH SYNOPSIS") && page.contains(command), "{page}");
    }
    let page = Cmd::new("groff", "-man -Tascii -ww").arg(pages.join("berth-run.1")).ok();
    assert!(page.text().contains("--memory") && page.stderr_text().is_empty(), "{page:?}");
    home.berth("man /dev/null/man1").run().code(125).fails_with("/dev/null/man1");
}

#[test]
fn help_is_there_for_everything() {
    let home = Home::empty();
    let help = home.berth("--help").ok().text();
    for command in [
        "run",
        "ps",
        "logs",
        "exec",
        "attach",
        "wait",
        "stop",
        "kill",
        "pause",
        "unpause",
        "restart",
        "rm",
        "inspect",
        "stats",
        "top",
        "events",
        "cp",
        "diff",
        "update",
        "rename",
        "info",
        "version",
        "system",
        "completion",
        "pull",
        "push",
        "login",
        "load",
        "save",
        "import",
        "images",
        "tag",
        "rmi",
        "image",
    ] {
        assert!(help.contains(command), "{command} is not in the help");
        let _ = home.berth(command).arg("--help").ok();
    }
}

#[test]
fn system_prune_removes_what_is_not_used() {
    let home = Home::new();
    let unused = layout::Layout::new(home.scratch().join("unused"));
    let layer = layout::Layer::plain(berth_tests::tar_file::TarFile::new().file("x", "x").finish());
    unused.image("unused:1", &[layer], &serde_json::json!({}));
    let _ = home.berth("load -i").arg(unused.path()).ok();
    let _ = home.detached("--name runs", "exec sleep 1000");
    let _ = home.berth("run --name ended busybox true").ok();
    let _ = home.berth("system prune -f").ok();
    assert_eq!(home.status("runs"), "running");
    home.berth("inspect ended").run().fails_with("ended");
    let _ = home.berth("image inspect busybox").ok();
    let _ = home.berth("image inspect unused:1").ok();
    let _ = home.berth("system prune -f -a").ok();
    home.berth("image inspect unused:1").run().fails_with("unused:1");
    let _ = home.berth("image inspect busybox").ok();
    assert_eq!(home.berth("exec runs echo alive").ok().trimmed(), "alive");
}

#[test]
fn ps_filters() {
    let home = Home::new();
    let running = home.detached("--name runs --label kind=boat", "exec sleep 1000");
    let _ = home.berth("run --name ended busybox true").ok();
    let names = |filter: &str| home.berth("ps -a -q --no-trunc --filter").arg(filter).ok().trimmed();
    for filter in ["status=running", "name=runs", "label=kind", "label=kind=boat"] {
        assert_eq!(names(filter), running, "{filter}");
    }
    assert_eq!(names("label=kind=other"), "");
    home.berth("ps --filter nonsense=1").run().fails_with("nonsense");
}

#[test]
fn berth_oci_events_have_the_shape_of_runc() {
    let home = Home::new();
    let id = home.detached("--memory 64m --pids-limit 9", "exec sleep 1000");
    let root = home.state().join("sandboxes");
    let oci = Cmd::new(binaries::berth_oci(), "--root").arg(root).args(["events", "--stats", &id]);
    let event = oci.ok().json();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(id)));
    let data = &event["data"];
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{data}");
    assert_eq!(data["memory"]["usage"]["limit"], json!(64 << 20), "{data}");
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{data}");
    assert_eq!(data["pids"], json!({ "current": 1, "limit": 9 }), "{data}");
}

#[test]
fn a_full_standard_output_is_named_in_the_error() {
    let home = Home::new();
    let _ = home.berth("run --name it busybox echo ahoy").ok();
    for (command, error) in [
        ("ps", "cannot write to standard output: No space left on device"),
        ("logs it", "cannot write what the container has written: No space left on device"),
    ] {
        let out = Cmd::new("sh", "-c")
            .arg(format!("exec \"$0\" {command} > /dev/full"))
            .arg(binaries::berth())
            .env("BERTH_DATA_ROOT", home.data())
            .env("BERTH_STATE_ROOT", home.state())
            .run();
        assert_eq!(out.stderr_text().trim(), format!("berth: {error} (os error 28)"));
    }
}

#[test]
fn switches_take_true_and_false() {
    let home = Home::new();
    let _ = home.berth("run --rm=false --name stays busybox true").ok();
    assert_eq!(home.berth("ps --all=true -q").ok().text().lines().count(), 1);
    let _ = home.berth("rm --force=true stays").ok();
    let _ = home.berth("run --rm=true busybox true").ok();
    assert_eq!(home.berth("ps -aq").ok().text(), "");
    home.berth("run --rm=perhaps busybox true").run().code(125).fails_with("--rm");
    home.berth("run --cpus nan busybox true").run().code(125).fails_with("`berth run --help`");
}
