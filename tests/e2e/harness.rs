//! That the harness itself tells the truth.

use berth_tests::command::Cmd;
use berth_tests::kill_points;

#[test]
fn kill_points_count_steps_and_kill_at_each() {
    let command = |dir: &std::path::Path| {
        let mut command = Cmd::new("/bin/busybox", "sh -c").arg("mkdir a; mkdir b; mkdir c");
        command.inner.current_dir(dir);
        command
    };
    let made = |dir: &std::path::Path| {
        ["a", "b", "c"]
            .iter()
            .filter(|name| dir.join(name).exists())
            .count()
    };

    let dir = tempfile::tempdir().unwrap();
    let steps = kill_points::run(command(dir.path()), usize::MAX);
    assert!(
        steps >= 4,
        "three folders and an exit are four steps, not {steps}"
    );
    assert_eq!(made(dir.path()), 3);

    let mut outcomes = std::collections::BTreeSet::new();
    for at in 0..steps {
        let dir = tempfile::tempdir().unwrap();
        kill_points::run(command(dir.path()), at);
        outcomes.insert(made(dir.path()));
    }
    assert_eq!(
        outcomes,
        [0, 1, 2, 3].into(),
        "each point in between was met"
    );
}
