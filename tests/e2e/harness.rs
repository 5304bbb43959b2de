//! That the harness itself tells the truth.

use berth_tests::command::Cmd;
use berth_tests::fault_server::FaultServer;
use berth_tests::kill_points;
use berth_tests::layout::{Layer, Layout};
use berth_tests::registry::{PASSWORD, Registry, USER};
use berth_tests::tar_file::TarFile;
use berth_tests::terminal::Terminal;

#[test]
fn kill_points_count_steps_and_kill_at_each() {
    let command = |dir: &std::path::Path| {
        let mut command = Cmd::new("/bin/busybox", "sh -c").arg("mkdir a; mkdir b; mkdir c");
        command.inner.current_dir(dir);
        command
    };
    let made = |dir: &std::path::Path| ["a", "b", "c"].iter().filter(|name| dir.join(name).exists()).count();

    let dir = tempfile::tempdir().unwrap();
    let steps = kill_points::run(command(dir.path()), usize::MAX);
    assert!(steps >= 4, "three folders and an exit are four steps, not {steps}");
    assert_eq!(made(dir.path()), 3);

    let mut outcomes = std::collections::BTreeSet::new();
    for at in 0..steps {
        let dir = tempfile::tempdir().unwrap();
        kill_points::run(command(dir.path()), at);
        outcomes.insert(made(dir.path()));
    }
    assert_eq!(outcomes, [0, 1, 2, 3].into(), "each point in between was met");
}

#[test]
fn the_terminal_is_one() {
    let script = "tty; stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(Cmd::new("/bin/busybox", "sh -c").arg(script), 77, 11);
    terminal.expect("/dev/pts/");
    terminal.expect("11 77");
    terminal.expect("ready");
    terminal.resize(78, 12);
    terminal.expect("12 78");
    assert_eq!(terminal.wait(), 3);
}

#[test]
fn skopeo_takes_what_the_registry_in_memory_serves() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path().join("layout"));
    let layers = [
        Layer::gzip(&TarFile::new().folder("d/").file("d/f", "x").finish()),
        Layer::zstd(&TarFile::new().file("d/.wh.f", "").symlink("l", &"long/".repeat(50)).finish()),
    ];
    layout.image("1", &layers, &serde_json::json!({ "Cmd": ["sh"] }));
    let server = FaultServer::serve(layout.path(), |_, _| None);
    let from = format!("docker://{}", server.reference("any/name:1"));
    let to = format!("oci:{}:it", dir.path().join("copy").display());
    let copy = |from: &str| {
        Cmd::new("skopeo", "--insecure-policy copy --quiet --src-tls-verify=false").args([from, &to]).run()
    };
    let _ = copy(&from).code(0);
    copy(&from.replace(":1", ":2")).fails_with("unknown");
    assert!(server.requests().iter().any(|request| request.path.contains("/blobs/")));
    let _ = Cmd::new("umoci", "unpack --image")
        .arg(format!("{}:it", dir.path().join("copy").display()))
        .arg(dir.path().join("bundle"))
        .run();
}

#[test]
fn the_registry_asks_for_a_password_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let inspect = |credentials: String| {
        Cmd::new("skopeo", "inspect --cert-dir")
            .arg(registry.certificate_dir())
            .arg(format!("--creds={credentials}"))
            .arg(format!("docker://{}", registry.reference("nothing/here:1")))
            .run()
    };
    inspect(format!("{USER}:{PASSWORD}")).fails_with("unknown");
    inspect("someone:else".into()).fails_with("unauthorized");
}
