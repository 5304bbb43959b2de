//! podman with `berth-oci` as its OCI runtime.

use berth_tests::home::Home;
use berth_tests::podman::Podman;
use berth_tests::wait;
use berth_tests::{binaries, fixtures};

const RUN: &str = "--network none --ulimit nofile=1024:1024 --ulimit nproc=1024:1024";

#[test]
fn podman_runs_executes_and_stops_with_berth_oci() {
    let home = Home::empty();
    let podman = Podman::new(&home.scratch());
    let with = |words: &str| podman.with_runtime(&binaries::berth_oci(), words);
    let _ = podman.command("import --quiet").arg(fixtures::busybox_rootfs()).arg("localhost/busybox").ok();

    let out = with(&format!("run --rm {RUN} localhost/busybox sh -c")).arg("echo from podman; exit 7").run().code(7);
    assert_eq!(out.text(), "from podman\n");
    let _ = with(&format!("run -d --name it {RUN} --memory 64m localhost/busybox sleep 1000")).ok();
    let out = with("exec it cat /proc/1/comm").ok();
    assert_eq!(out.text(), "sleep\n");
    let _ = with("exec it sh -c").arg("exit 9").run().code(9);
    assert_eq!(with("exec -i it cat").stdin("ahoy").ok().text(), "ahoy");
    assert!(with("inspect it").ok().text().contains("berth-oci"));
    let _ = with("pause it").ok();
    let _ = with("unpause it").ok();
    let _ = with("stop -t 1 it").ok();
    assert_eq!(with("ps -a").arg("--format={{.Status}}").ok().trimmed().split(' ').next(), Some("Exited"));
    let _ = with("start it").ok();
    let _ = with("kill it").ok();
    let _ = with("rm -f it").ok();
    let out = with(&format!("run --rm -t {RUN} localhost/busybox tty")).ok();
    assert!(out.text().contains("/dev/pts/0") || out.text().contains("/dev/console"), "{out:?}");
}

#[test]
fn podman_maps_ids_with_berth_oci() {
    let home = Home::empty();
    let podman = Podman::new(&home.scratch());
    let with = |words: &str| podman.with_runtime(&binaries::berth_oci(), words);
    let _ = podman.command("import --quiet").arg(fixtures::busybox_rootfs()).arg("localhost/busybox").ok();
    let maps = "--uidmap 0:200000:65536 --gidmap 0:200000:65536";
    let script =
        "id -u; stat -c %u / /etc/passwd; awk '{print $2}' /proc/self/uid_map; touch /mine; stat -c %u /mine; exit 7";
    let out = with(&format!("run --rm {maps} {RUN} localhost/busybox sh -c")).arg(script).run().code(7);
    assert_eq!(out.text(), "0\n0\n0\n200000\n0\n");
    let _ = with(&format!("run -d --name it {maps} {RUN} -v data:/data localhost/busybox sleep 1000")).ok();
    let out = with("exec it sh -c").arg("id -u; touch /data/x; stat -c %u /data/x").ok();
    assert_eq!(out.text(), "0\n0\n");
    let out = with("exec -u 1000 it id -u").ok();
    assert_eq!(out.text(), "1000\n");
    // A second container in the namespaces of the first.
    let out = with(&format!("run --rm --userns container:it {RUN} localhost/busybox sh -c"))
        .arg("id -u; awk '{print $2}' /proc/self/uid_map")
        .ok();
    assert_eq!(out.text(), "0\n200000\n");
    let _ = with("stop -t 1 it").ok();
    // podman's own cleanup after the stop may still be at it.
    wait::until("podman removes the container", || with("rm -f it").run().exit_code() == 0);
}
