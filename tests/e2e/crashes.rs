//! `kill -9` of any berth process at every step it takes, and damaged state: the next command leaves no mount,
//! cgroup, process or half image, and everything works.

use std::fs;

use berth_tests::command::Cmd;
use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::kill_points;
use berth_tests::layout::{Layer, Layout};
use berth_tests::leaks;
use berth_tests::tar_file::TarFile;
use serde_json::json;

/// Kills `command` at each of its steps (every `BERTH_KILL_EVERY`th, one by default) and lets `after` look.
fn at_every_step(command: impl Fn() -> Cmd, after: impl Fn(usize)) {
    let every = std::env::var("BERTH_KILL_EVERY").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let total = kill_points::run(command(), usize::MAX);
    after(usize::MAX);
    assert!(total > 10, "only {total} steps were seen");
    // A run may take a few steps more or less than the first.
    for at in (0..total + 5).step_by(every) {
        kill_points::run(command(), at);
        after(at);
    }
}

/// The next command sweeps: then nothing is left of any container.
fn nothing_left(home: &Home, at: usize) {
    let ids = leaks::ids(home);
    let _ = home.berth("ps -aq").run().code(0);
    let containers = home.containers();
    assert!(containers.len() <= 1, "killed at step {at}: {containers:?}");
    if !containers.is_empty() {
        let _ = home.berth("rm -f").args(&containers).run().code(0);
    }
    eprintln!("killed at step {at}");
    leaks::expect_none(home, &ids);
}

#[test]
fn a_foreground_run_killed_at_every_step() {
    let home = Home::new();
    at_every_step(|| home.shell("--name it --memory 64m", "echo x > /file"), |at| nothing_left(&home, at));
    assert_eq!(home.prints("--name it", "echo works"), "works");
}

#[test]
fn a_run_with_a_user_namespace_killed_at_every_step() {
    let home = Home::new();
    let flags = "--name it --userns auto -v cache:/cache";
    at_every_step(|| home.shell(flags, "echo x > /file"), |at| nothing_left(&home, at));
    assert_eq!(home.prints(flags, "id -u"), "0");
}

#[test]
fn a_detached_run_killed_at_every_step() {
    let home = Home::new();
    at_every_step(|| home.berth("run -d --name it busybox true"), |at| nothing_left(&home, at));
    assert_eq!(home.prints("--name it", "echo works"), "works");
}

#[test]
fn rm_killed_at_every_step() {
    let home = Home::new();
    let prepare = || {
        let _ = home.berth("rm -f it").run();
        let _ = home.detached("--name it", "exec sleep 1000");
        home.berth("rm -f it")
    };
    at_every_step(prepare, |_| {
        let ids = leaks::ids(&home);
        let _ = home.berth("ps -aq").run().code(0);
        // Killed before it began it has not removed anything: what is left must be whole.
        let _ = home.berth("rm -f").args(home.containers()).run();
        leaks::expect_none(&home, &ids);
    });
}

#[test]
fn exec_killed_at_every_step() {
    let home = Home::new();
    let id = home.detached("--name it", "exec sleep 1000");
    let pids = || berth_tests::cgroup::read(home.pid(&id), "pids", "pids.current", "pids.current");
    at_every_step(
        || home.berth("exec it true"),
        |at| {
            assert_eq!(home.berth("exec it echo works").run().code(0).trimmed(), "works", "killed at step {at}");
            berth_tests::wait::until("nothing of it is left in the container", || pids() == "1");
        },
    );
}

#[test]
fn import_killed_at_every_step() {
    let home = Home::empty();
    let small = home.scratch().join("small.tar");
    fs::write(&small, TarFile::new().folder("d/").file("d/f", "x").file("g", "y").finish()).unwrap();
    at_every_step(|| home.berth("import").arg(&small).arg("small"), |at| whole_or_nothing(&home, "small", at));
}

#[test]
fn load_killed_at_every_step() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    let layers = [
        Layer::gzip(&TarFile::new().folder("d/").file("d/f", "x").finish()),
        Layer::zstd(&TarFile::new().file("d/.wh.f", "").file("g", "y").finish()),
    ];
    layout.image("small:latest", &layers, &json!({}));
    at_every_step(|| home.berth("load -i").arg(layout.path()), |at| whole_or_nothing(&home, "small", at));
}

/// The image is there and whole, or not at all; in both cases no blob or layer is left when it has been removed.
fn whole_or_nothing(home: &Home, name: &str, at: usize) {
    // The next command, whichever it is, removes what was unfinished.
    let _ = home.berth("ps").run().code(0);
    let unfinished = fs::read_dir(home.data().join("images/ingest")).map_or(0, Iterator::count);
    assert_eq!(unfinished, 0, "killed at step {at}");
    let listed = home.berth("images -q").run().code(0).text();
    if listed.is_empty() {
        home.berth("image inspect").arg(name).run().fails_with(name);
    } else {
        let _ = home.berth("image inspect").arg(name).run().code(0);
        let saved = home.berth("save").arg(name).run().code(0);
        assert!(!saved.stdout.is_empty(), "killed at step {at}: the image is not whole");
        let _ = home.berth("rmi").arg(name).run().code(0);
    }
    let _ = home.berth("image prune -a -f").run().code(0);
    for folder in ["blobs/sha256", "layers", "ingest"] {
        let left: Vec<_> = fs::read_dir(home.data().join("images").join(folder))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert!(left.is_empty(), "killed at step {at}: left in {folder}: {left:?}");
    }
}

#[test]
fn a_monitor_that_is_killed_takes_its_container_along() {
    let home = Home::new();
    let id = home.detached("--name it", "exec sleep 1000");
    let parent = |pid: i64| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap().parse::<i32>().unwrap()
    };
    let monitor = parent(home.pid(&id));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::Signal::SIGKILL).unwrap();
    berth_tests::wait::until("it is known to have ended", || home.status("it") == "exited");
    let _ = home.berth("restart it").ok();
    assert_eq!(home.berth("exec it echo again").ok().trimmed(), "again");
}

#[test]
fn damaged_state_is_named_and_can_be_removed() {
    let home = Home::new();
    for file in ["container.json", "status.json", "config.json"] {
        let id = home.detached("--name it", "exec sleep 1000");
        let path = home.data().join("containers").join(&id).join(file);
        let whole = fs::read(&path).unwrap();
        for damage in [b"{".to_vec(), Vec::new(), b"\xff\xff".to_vec(), whole[..whole.len() / 2].to_vec()] {
            fs::write(&path, &damage).unwrap();
            // Others are not hurt by it, and nothing panics.
            let _ = home.berth("run --rm busybox true").run().code(0);
            let listed = home.berth("ps -a").run();
            assert!(!listed.stderr_text().contains("panicked"), "{listed:?}");
            let inspected = home.berth("inspect").arg(&id).run();
            assert!(!inspected.stderr_text().contains("panicked"), "{inspected:?}");
        }
        let _ = home.berth("rm -f").arg(&id).run().code(0);
        assert!(home.containers().is_empty(), "{file}");
    }
}

#[test]
fn an_image_that_vanished_is_named() {
    let home = Home::new();
    let id = home.detached("--name it", "exec sleep 1000");
    let _ = home.berth("stop -t 0 it").ok();
    let layers = home.data().join("images/layers");
    fs::rename(&layers, home.scratch().join("layers")).unwrap();
    home.berth("restart it").run().fails_with("layer");
    // The blobs are still there, so a new container unpacks what is missing.
    let _ = home.berth("run --rm busybox true").ok();
    let _ = home.berth("rm -f").arg(&id).ok();
    // With the image imported anew, everything works again.
    let _ = home.berth("rmi -f busybox").run();
    let _ = home.berth("import").arg(fixtures::busybox_rootfs()).arg("busybox").ok();
    assert_eq!(home.prints("", "echo works"), "works");
}

#[test]
fn a_container_whose_sandbox_state_is_lost_can_be_stopped_and_removed() {
    let home = Home::new();
    let lose = |id: &str| fs::remove_dir_all(home.state().join("sandboxes").join(id)).unwrap();
    let id = home.detached("--name it", "exec sleep 1000");
    lose(&id);
    let _ = home.berth("stop -t 0 it").ok();
    assert_eq!(home.status("it"), "exited");
    let _ = home.berth("start it").ok();
    lose(&id);
    let ids = leaks::ids(&home);
    let _ = home.berth("rm -f it").ok();
    leaks::expect_none(&home, &ids);
}
