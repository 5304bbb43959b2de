//! The life of a container after `run`: detached, stopped, killed, paused, restarted, renamed, removed.

use std::fs;
use std::time::Instant;

use berth_tests::home::Home;
use berth_tests::terminal::Terminal;
use berth_tests::wait;

#[test]
fn detached_survives_the_shell_that_started_it() {
    let home = Home::new();
    let mut terminal =
        Terminal::start(home.berth("run -d --name lasting busybox sh -c").arg("sleep 1000; exit"), 80, 24);
    assert_eq!(terminal.wait(), 0);
    // The terminal hangs up.
    drop(terminal);
    assert_eq!(home.status("lasting"), "running");
    assert_eq!(home.berth("exec lasting echo there").ok().trimmed(), "there");
}

#[test]
fn detached_leaves_no_pipe_open() {
    let home = Home::new();
    // Waits for the end of its output: it would wait for the container if that still had it.
    let _ = home.detached("", "exec sleep 1000");
}

#[test]
fn rm_removes_and_without_it_the_container_stays() {
    let home = Home::new();
    let _ = home.shell("--name gone", "true").ok();
    home.berth("inspect gone").run().fails_with("gone");
    let _ = home.berth("run --name stays busybox true").ok();
    assert_eq!(home.status("stays"), "exited");
    let _ = home.berth("run -d --rm --name later busybox true").ok();
    wait::until("a detached --rm container goes", || home.berth("inspect later").run().exit_code() != 0);
}

#[test]
fn a_name_is_taken_once() {
    let home = Home::new();
    let first = home.detached("--name taken", "exec sleep 1000");
    home.berth("run --name taken busybox true").run().code(125).fails_with("taken");
    assert_eq!(home.containers(), [first], "the second left nothing");
    home.berth("run --name -bad busybox true").run().code(125).fails_with("bad");
    home.berth("run --name ../bad busybox true").run().code(125).fails_with("bad");
}

#[test]
fn a_container_without_a_name_gets_one() {
    let home = Home::new();
    let id = home.detached("", "exec sleep 1000");
    let name = home.inspect(&id)["Name"].as_str().unwrap().trim_start_matches('/').to_owned();
    assert!(!name.is_empty());
    let _ = home.berth("exec").args([&*name, "true"]).ok();
}

#[test]
fn a_container_goes_by_id_prefix_and_name() {
    let home = Home::new();
    let id = home.detached("--name boat", "exec sleep 1000");
    for name in ["boat", &id, &id[..12], &id[..4]] {
        assert_eq!(home.inspect(name)["Id"], *id);
    }
    home.berth("inspect nothing-like-it").run().fails_with("nothing-like-it");
}

#[test]
fn cidfile_holds_the_id() {
    let home = Home::new();
    let file = home.scratch().join("cid");
    let id = home.detached(&format!("--cidfile {}", file.display()), "true");
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), id);
    let again = home.berth("run --rm --cidfile").arg(&file).args(["busybox", "true"]).run();
    again.code(125).fails_with("cid");
}

#[test]
fn labels_and_annotations_are_kept() {
    let home = Home::new();
    let id = home.detached("--label a=1 --label b --annotation org.example.x=y", "exec sleep 1000");
    let labels = home.inspect(&id)["Config"]["Labels"].take();
    assert_eq!((&labels["a"], &labels["b"]), (&"1".into(), &"".into()), "{labels}");
    let config = std::fs::read(home.data().join("containers").join(&id).join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["annotations"]["org.example.x"], "y");
}

#[test]
fn wait_gives_the_exit_code() {
    let home = Home::new();
    let id = home.detached("", "sleep 0.2; exit 17");
    assert_eq!(home.berth("wait").arg(&id).ok().trimmed(), "17");
    assert_eq!(home.berth("wait").arg(&id).ok().trimmed(), "17", "also when it has ended long ago");
    assert_eq!(home.inspect(&id)["State"]["ExitCode"], 17);
}

#[test]
fn stop_asks_then_kills() {
    let home = Home::new();
    let polite = home.detached("", "trap 'exit 4' TERM; echo ready; while :; do sleep 0.1; done");
    home.expect_log(&polite, "ready");
    let _ = home.berth("stop").arg(&polite).ok();
    assert_eq!(home.inspect(&polite)["State"]["ExitCode"], 4);

    // A handler that takes itself away, and an init that waits for signals, are looked at before the signal is sent.
    for (flags, script) in [
        ("", "trap 'trap - TERM; sleep 0.2; exit 5' TERM; echo ready; while :; do :; done"),
        ("--init", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"),
    ] {
        for _ in 0..4 {
            let handler = home.detached(flags, script);
            home.expect_log(&handler, "ready");
            let _ = home.berth("stop").arg(&handler).ok();
            assert_eq!(home.inspect(&handler)["State"]["ExitCode"], 5, "{flags} {script}");
        }
    }

    let deaf = home.detached("", "trap '' TERM; echo ready; while :; do sleep 0.1; done");
    home.expect_log(&deaf, "ready");
    let _ = home.berth("stop -t 1").arg(&deaf).ok();
    assert_eq!(home.inspect(&deaf)["State"]["ExitCode"], 137);
    assert_eq!(home.status(&deaf), "exited");
}

#[test]
fn a_detached_container_holds_nothing_its_caller_has_open() {
    let home = Home::new();
    let command = home.berth("").in_shell(r#""$0" run -d --name it busybox sleep 1000 4>&1 > /dev/null"#);
    // It ends when nobody has the other end of its standard output open any more.
    assert_eq!(command.ok().text(), "");
    assert_eq!(home.status("it"), "running");
}

#[test]
fn a_full_disk_loses_no_exit_code() {
    let home = Home::new();
    let dir = home.scratch();
    let flags = format!("-v {}:/out", dir.display());
    let id = home.detached(&flags, "until [ -e /out/go ]; do sleep 0.05; done; exit 5");
    let (pid, stat) = (home.pid(&id), |pid| fs::read_to_string(format!("/proc/{pid}/stat")));
    let monitor = stat(pid).unwrap().rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().to_owned();
    // Stands in the way of the file that is to be written.
    let obstacle = home.data().join("containers").join(&id).join(format!("status.tmp-{monitor}"));
    fs::create_dir(&obstacle).unwrap();
    fs::write(dir.join("go"), "").unwrap();
    wait::until("the command has ended", || stat(pid).is_err());
    fs::remove_dir(&obstacle).unwrap();
    assert_eq!(home.berth("wait").arg(&id).ok().trimmed(), "5");
    assert_eq!(home.inspect(&id)["State"]["ExitCode"], 5);
}

#[test]
fn stop_signal_and_stop_timeout_are_the_containers() {
    let home = Home::new();
    let id = home.detached("--stop-signal USR1", "trap 'exit 3' USR1; echo ready; while :; do sleep 0.1; done");
    home.expect_log(&id, "ready");
    let _ = home.berth("stop").arg(&id).ok();
    assert_eq!(home.inspect(&id)["State"]["ExitCode"], 3);

    let id = home.detached("--stop-timeout 1", "trap '' TERM; echo ready; while :; do sleep 0.1; done");
    home.expect_log(&id, "ready");
    let start = Instant::now();
    let _ = home.berth("stop").arg(&id).ok();
    assert!(start.elapsed().as_secs() < 9, "it waited as long as the default of 10 s");
    home.shell("--stop-signal NONSENSE", "true").run().code(125).fails_with("NONSENSE");
}

#[test]
fn kill_sends_a_signal() {
    let home = Home::new();
    let script = "trap 'echo hup' HUP; trap 'exit 6' USR2; echo ready; while :; do sleep 0.1; done";
    let id = home.detached("", script);
    home.expect_log(&id, "ready");
    let _ = home.berth("kill -s HUP").arg(&id).ok();
    home.expect_log(&id, "hup");
    assert_eq!(home.status(&id), "running");
    let _ = home.berth("kill --signal 12").arg(&id).ok();
    assert_eq!(home.berth("wait").arg(&id).ok().trimmed(), "6");
    home.berth("kill").arg(&id).run().fails_with("not running");
    let id = home.detached("", "exec sleep 1000");
    home.berth("kill -s NONSENSE").arg(&id).run().fails_with("NONSENSE");
    let _ = home.berth("kill").arg(&id).ok();
    assert_eq!(home.berth("wait").arg(&id).ok().trimmed(), "137");
}

#[test]
fn a_paused_container_stands_still() {
    let home = Home::new();
    let id = home.detached("", "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.01; done");
    let pid = home.pid(&id);
    let count = || std::fs::read_to_string(format!("/proc/{pid}/root/count")).unwrap_or_default();
    wait::until("it counts", || !count().is_empty());
    let _ = home.berth("pause").arg(&id).ok();
    assert_eq!(home.status(&id), "paused");
    let before = count();
    assert!(!wait::within(std::time::Duration::from_millis(500), || count() != before), "it goes on counting");
    home.berth("pause").arg(&id).run().fails_with("paused");
    home.berth("exec").args([&*id, "true"]).run().fails_with("paused");
    let _ = home.berth("unpause").arg(&id).ok();
    assert_eq!(home.status(&id), "running");
    wait::until("it counts again", || count() != before);
    home.berth("unpause").arg(&id).run().fails_with("not paused");
}

#[test]
fn a_paused_container_can_be_removed() {
    let home = Home::new();
    let id = home.detached("", "exec sleep 1000");
    let _ = home.berth("pause").arg(&id).ok();
    let _ = home.berth("rm -f").arg(&id).ok();
    assert!(home.containers().is_empty());
}

#[test]
fn restart_begins_again_with_the_same_files() {
    let home = Home::new();
    let id = home.detached("", "echo again >> /times; wc -l < /times; exec sleep 1000");
    home.expect_log(&id, "1");
    let before = home.pid(&id);
    let _ = home.berth("restart -t 0").arg(&id).ok();
    home.expect_log(&id, "2");
    assert_ne!(home.pid(&id), before);
    let _ = home.berth("stop -t 0").arg(&id).ok();
    let _ = home.berth("restart").arg(&id).ok();
    home.expect_log(&id, "3");
}

#[test]
fn rm_wants_force_for_what_runs() {
    let home = Home::new();
    let id = home.detached("--name boat", "exec sleep 1000");
    home.berth("rm boat").run().fails_with("running");
    assert_eq!(home.status(&id), "running");
    let _ = home.berth("rm -f boat").ok();
    assert!(home.containers().is_empty());
    home.berth("rm boat").run().fails_with("boat");
    assert_eq!(home.berth("rm -f boat").ok().text(), "", "nothing was removed");
    // The name is free again.
    let _ = home.shell("--name boat", "true").ok();
}

#[test]
fn rename_gives_another_name() {
    let home = Home::new();
    let id = home.detached("--name old", "exec sleep 1000");
    let other = home.detached("--name other", "exec sleep 1000");
    let _ = home.berth("rename old new").ok();
    assert_eq!(home.inspect("new")["Id"], *id);
    home.berth("inspect old").run().fails_with("old");
    home.berth("rename new other").run().fails_with("other");
    home.berth("rename new new").run().fails_with("has this name already");
    assert_eq!(home.inspect("other")["Id"], *other);
    let _ = home.shell("--name old", "true").ok();
}

#[test]
fn attach_joins_output_and_input() {
    let home = Home::new();
    let id = home.detached("-i", "echo before; read line; echo got $line; exit 8");
    home.expect_log(&id, "before");
    let mut attached = home.berth("attach").arg(&id).spawn();
    attached.write("ahoy\n");
    attached.expect("got ahoy");
    let _ = attached.wait().code(8);
}

#[test]
fn attach_to_a_terminal() {
    let home = Home::new();
    let id = home.detached("-it", "read line; echo got $line; stty size; exit 8");
    let mut terminal = Terminal::start(home.berth("attach").arg(&id), 101, 37);
    wait::until("the caller's terminal is raw", || !terminal.is_cooked());
    terminal.type_in("ahoy\n");
    terminal.expect("got ahoy");
    terminal.expect("37 101");
    assert_eq!(terminal.wait(), 8);
    assert!(terminal.is_cooked());
}

#[test]
fn commands_on_what_is_not_there_fail_clearly() {
    let home = Home::new();
    for command in [
        "attach no-such",
        "diff no-such",
        "exec no-such true",
        "kill no-such",
        "logs no-such",
        "pause no-such",
        "rename no-such x",
        "restart no-such",
        "rm no-such",
        "stats --no-stream no-such",
        "stop no-such",
        "top no-such",
        "unpause no-such",
        "wait no-such",
        "inspect no-such",
        "cp no-such:/x /tmp/x",
    ] {
        let out = home.berth(command).run();
        out.fails_with("no-such");
        assert_eq!(out.stderr_text().lines().count(), 1, "one clear line: {out:?}");
    }
}

#[test]
fn create_makes_and_start_starts() {
    let home = Home::new();
    let id = home.berth("create --name it -i busybox sh -c").arg("cat; exit 4").ok().trimmed();
    assert_eq!(home.status("it"), "created");
    let _ = home.berth("start -ai it").stdin("ahoy").run().code(4);
    assert_eq!(home.status(&id), "exited");
    let _ = home.berth("start it").ok();
    // Its input stays open for whoever attaches, and ends with theirs.
    let _ = home.berth("attach it").stdin("").run().code(4);
    assert_eq!(home.berth("wait it").ok().trimmed(), "4");
    home.berth("start no-such").run().fails_with("no-such");
}

#[test]
fn label_file_adds_labels() {
    let home = Home::new();
    let file = home.scratch().join("labels");
    std::fs::write(&file, "# a comment\nfrom=file\nboth=file\n").unwrap();
    let id = home.detached(&format!("--label-file {} --label both=flag", file.display()), "exec sleep 1000");
    let labels = home.inspect(&id)["Config"]["Labels"].take();
    assert_eq!((&labels["from"], &labels["both"]), (&"file".into(), &"flag".into()), "{labels}");
}

#[test]
fn wait_waits_for_all_that_are_there() {
    let home = Home::new();
    let (three, four) = (home.detached("", "exit 3"), home.detached("", "exit 4"));
    let out = home.berth("wait").args([&three, "nobody", &four]).run();
    assert_eq!(out.text(), "3\n4\n");
    out.fails_with("nobody");
}

#[test]
fn update_wants_something_to_change() {
    let home = Home::new();
    let id = home.berth("create busybox true").ok().trimmed();
    home.berth("update").arg(&id).run().fails_with("--memory");
}
