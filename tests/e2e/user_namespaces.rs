//! `--userns`: the container's ids are others of the host's, and everything else is as without.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use berth_tests::command::Cmd;
use berth_tests::home::Home;
use nix::unistd::{Gid, Uid, chown};

const RANGE: &str = "--userns 200000:65536";

/// Real user and group of a container's first process, as the host counts.
fn host_ids(home: &Home, container: &str) -> (u32, u32) {
    let status = fs::read_to_string(format!("/proc/{}/status", home.pid(container))).unwrap();
    let id = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (id("Uid:"), id("Gid:"))
}

/// Removes a container that has had its use, and insists that this worked.
fn remove(home: &Home, container: &str) {
    let _ = home.berth("rm -f").arg(container).ok();
}

#[test]
fn a_user_namespace_on_request() {
    let home = Home::new();
    let namespace = |flags: &str| home.prints(flags, "readlink /proc/self/ns/user");
    let host = fs::read_link("/proc/self/ns/user").unwrap().display().to_string();
    assert_eq!(namespace(""), host);
    assert_eq!(namespace("--userns host"), host);
    assert_ne!(namespace(RANGE), host);
    assert_eq!(home.prints(RANGE, "id -u; awk '{print $1, $2, $3}' /proc/self/uid_map"), "0\n0 200000 65536");
    assert_eq!(home.prints(RANGE, "awk '{print $1, $2, $3}' /proc/self/gid_map"), "0 200000 65536");
    let id = home.detached(RANGE, "exec sleep 1000");
    assert_eq!(host_ids(&home, &id), (200_000, 200_000));
    let user = home.detached(&format!("{RANGE} -u 1000:7"), "exec sleep 1000");
    assert_eq!(host_ids(&home, &user), (201_000, 200_007));
    assert_eq!(home.inspect(&id)["HostConfig"]["UsernsMode"], "200000:65536");
}

#[test]
fn the_images_files_and_new_ones_have_the_containers_ids() {
    let home = Home::new();
    assert_eq!(home.prints(RANGE, "stat -c %u:%g / /etc/passwd /bin /root"), "0:0\n0:0\n0:0\n0:0");
    let script =
        "touch /mine && chown 12:34 /mine && stat -c %u:%g /mine && chown 7 /etc/passwd && stat -c %u /etc/passwd";
    assert_eq!(home.prints(RANGE, script), "12:34\n7");
    assert_eq!(
        home.prints(&format!("{RANGE} -u 1000"), "touch /tmp/a && stat -c %u /tmp/a; touch /b || echo no"),
        "1000\nno"
    );
    assert_eq!(home.prints(RANGE, "rm -r /etc/group /home && ls /etc/group /home 2> /dev/null | wc -l"), "0");
    home.shell(RANGE, "chown 70000 /etc/passwd").run().fails_with("invalid argument");
}

#[test]
fn layers_are_stored_with_the_containers_ids() {
    let home = Home::new();
    let script = "touch /mine && chown 12:34 /mine; exec sleep 1000";
    let id = home.detached(RANGE, &format!("{script} & wait"));
    berth_tests::wait::until("the file is there", || {
        home.berth("exec").arg(&id).args(["stat", "-c", "%u", "/mine"]).run().text() == "12\n"
    });
    let meta = fs::metadata(home.data().join("containers").join(&id).join("upper/mine")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (12, 34));
    assert!(home.berth("diff").arg(&id).ok().text().contains("A /mine"));
    let _ = home.berth("stop -t 1").arg(&id).ok();
    assert!(home.berth("diff").arg(&id).ok().text().contains("A /mine"));
    // It can be started again on what it has written.
    let _ = home.berth("start").arg(&id).ok();
    assert_eq!(home.berth("exec").arg(&id).args(["stat", "-c", "%u:%g", "/mine"]).ok().text(), "12:34\n");
}

#[test]
fn bind_mounts_keep_the_hosts_ids_unless_mapped() {
    let home = Home::new();
    let dir = home.scratch().join("shared");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(dir.join("roots"), "").unwrap();
    let flags = format!("{RANGE} -v {}:/shared", dir.display());
    assert_eq!(home.prints(&flags, "touch /shared/mine; stat -c %u /shared/roots /shared/mine"), "65534\n0");
    assert_eq!(fs::metadata(dir.join("mine")).unwrap().uid(), 200_000);
    for mapped in [
        format!("{RANGE} -v {}:/shared:idmap", dir.display()),
        format!("{RANGE} --mount type=bind,source={},target=/shared,idmap", dir.display()),
    ] {
        let script = "rm -f /shared/two; touch /shared/two; chown 5 /shared/two; stat -c %u /shared/roots /shared/two";
        assert_eq!(home.prints(&mapped, script), "0\n5");
        assert_eq!(fs::metadata(dir.join("two")).unwrap().uid(), 5);
    }
}

#[test]
fn bind_sources_may_lie_below_folders_of_others() {
    let home = Home::new();
    let closed = home.scratch().join("closed");
    fs::create_dir_all(closed.join("in")).unwrap();
    fs::write(closed.join("in/file"), "seen").unwrap();
    chown(&closed, Some(Uid::from_raw(1234)), Some(Gid::from_raw(1234))).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let from = closed.join("in");
    assert_eq!(
        home.prints(&format!("{RANGE} -v {}:/in:ro", from.display()), "cat /in/file; touch /in/x || echo ro"),
        "seenro"
    );
    let file = from.join("file");
    assert_eq!(home.prints(&format!("{RANGE} -v {}:/x", file.display()), "cat /x"), "seen");
}

#[test]
fn the_data_root_may_be_closed_to_others() {
    let home = Home::new();
    for dir in [home.path().to_owned(), home.data(), home.data().join("images")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    assert_eq!(
        home.prints(&format!("{RANGE} -v cache:/cache"), "touch /cache/x; id -u; cat /etc/hostname | wc -l"),
        "0\n1"
    );
}

#[test]
fn volumes_hold_the_containers_ids() {
    let home = Home::new();
    let script = "touch /cache/mine && chown 33 /cache/mine; stat -c %u /cache /cache/mine";
    assert_eq!(home.prints(&format!("{RANGE} -v cache:/cache"), script), "0\n33");
    // Containers with other ids, and those without a namespace, see the same.
    for flags in ["--userns 400000:65536 -v cache:/cache", "-v cache:/cache"] {
        assert_eq!(home.prints(flags, "stat -c %u /cache /cache/mine; echo x > /cache/mine"), "0\n33");
    }
    assert_eq!(fs::metadata(home.data().join("volumes/cache/_data/mine")).unwrap().uid(), 33);
    // One filled from the image.
    assert_eq!(
        home.prints(
            &format!("{RANGE} -v filled:/etc"),
            "stat -c %u /etc/passwd; echo x > /etc/new; stat -c %u /etc/new"
        ),
        "0\n0"
    );
}

#[test]
fn files_of_the_host_cannot_be_reached_by_container_root() {
    let home = Home::new();
    let secret = home.scratch().join("secret");
    fs::write(&secret, "hidden").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let flags = format!("{RANGE} -v {}:/secret", secret.display());
    home.shell(&flags, "cat /secret").run().fails_with("permission denied");
    home.shell(&flags, "chmod 777 /secret").run().fails_with("not permitted");
    assert_eq!(home.prints(&flags.replace(RANGE, ""), "cat /secret"), "hidden");
}

#[test]
fn devices_terminals_and_kernel_file_systems_work() {
    let home = Home::new();
    let script = "head -c 3 /dev/zero | wc -c; echo x > /dev/null; echo out > /dev/stdout; stat -c %u:%g /dev/null /dev/pts /dev; \
                  stat -c %t:%T /dev/full; mknod /dev/mine c 1 3 2> /dev/null || echo no mknod";
    assert_eq!(home.prints(RANGE, script), "3\nout\n0:0\n0:0\n0:0\n1:7\nno mknod");
    let script = "head -c 2 /dev/other | wc -c; stat -c %t:%T /dev/deep/er";
    let devices = "--device /dev/zero:/dev/other --device /dev/null:/dev/deep/er";
    let out = home.shell(&format!("{RANGE} {devices}"), script).run();
    assert_eq!(out.code(0).trimmed(), "2\n1:3");
    home.shell(&format!("{RANGE} --device /dev/null:/out"), "true").run().code(125).fails_with("below /dev");
    let script = "mount | grep -c ' /dev/mqueue \\| /proc \\| /sys \\| /dev/shm \\| /dev/pts '; \
                  echo x > /dev/shm/x; grep -c . /proc/self/cgroup > /tmp/n; ls /sys/class/net; ls /proc/acpi 2> /dev/null | wc -l; \
                  wc -c < /proc/keys";
    assert_eq!(home.prints(RANGE, script), "5\nlo\n0\n0");
    let terminal =
        home.shell(&format!("{RANGE} -t"), "tty; stat -c %g $(tty); test -w /dev/console && echo console").run();
    assert_eq!(terminal.code(0).trimmed().replace('\r', ""), "/dev/pts/0\n5\nconsole");
}

#[test]
fn other_flags_work_with_it() {
    let home = Home::new();
    let with = |flags: &str, script: &str| home.prints(&format!("{RANGE} {flags}"), script);
    assert_eq!(with("--sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward"), "1");
    assert_eq!(with("--sysctl kernel.shmmni=99", "cat /proc/sys/kernel/shmmni"), "99");
    assert_eq!(with("--hostname boat", "hostname"), "boat");
    assert_eq!(with("--ulimit nofile=100:200", "ulimit -n; ulimit -H -n"), "100\n200");
    assert_eq!(with("--oom-score-adj 321", "cat /proc/self/oom_score_adj"), "321");
    assert_eq!(with("--init", "cat /proc/1/comm > /dev/null; id -u"), "0");
    assert_eq!(with("--read-only", "touch /x 2> /dev/null || echo no; touch /dev/shm/x && echo yes"), "no\nyes");
    assert_eq!(with("--tmpfs /t:mode=700", "touch /t/x; stat -c %u /t /t/x"), "0\n0");
    assert_eq!(with("--memory 32m --pids-limit 50", "id -u"), "0");
    assert_eq!(with("--cgroupns host", "id -u"), "0");
    assert_eq!(with("-w /new/dir", "pwd; stat -c %u ."), "/new/dir\n0");
    assert_eq!(with("-u 1000 --group-add 44", "id -u; id -G; echo x > /dev/stdout"), "1000\n1000 44\nx");
    assert_eq!(with("--security-opt seccomp=unconfined --security-opt no-new-privileges=false", "id -u"), "0");
    assert_eq!(
        with("--cap-drop ALL", "chown 1 /etc/passwd 2> /dev/null || echo no; grep CapEff /proc/self/status"),
        "no\nCapEff:\t0000000000000000"
    );
    home.shell(&format!("{RANGE} -v /no/such/../etc/passwd:/x --rm"), "true").run().fails_with("");
    home.shell(RANGE, "exit 7").run().code(7).fails_with("");
    home.berth(&format!("run --rm {RANGE} busybox no-such-command")).run().code(127).fails_with("no-such-command");
}

#[test]
fn setuid_programs_change_to_the_containers_users_alone() {
    let home = Home::new();
    let id = home.detached(&format!("{RANGE} --security-opt no-new-privileges=false"), "exec sleep 1000");
    let exec = |flags: &str, script: &str| {
        home.berth(&format!("exec {flags}")).arg(&id).args(["sh", "-c", script]).ok().trimmed()
    };
    // busybox gives setuid rights up for all but a few of its programs; `su` is one that keeps them.
    let _ = exec("", "cp /bin/busybox /su && chmod 4755 /su && echo 'root::0:0:root:/root:/bin/sh' > /etc/passwd");
    assert_eq!(exec("-u 1000", "/su -c 'id -u; grep ^Uid /proc/self/status' root"), "0\nUid:\t0\t0\t0\t0");
    let file = home.data().join("containers").join(&id).join("upper/su");
    let meta = fs::metadata(file).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o4755));
}

#[test]
fn exec_joins_it() {
    let home = Home::new();
    let id = home.detached(&format!("{RANGE} --ulimit nofile=100:200"), "exec sleep 1000");
    let exec = |flags: &str, script: &str| {
        home.berth(&format!("exec {flags}")).arg(&id).args(["sh", "-c", script]).ok().trimmed().replace('\r', "")
    };
    let same = "(readlink /proc/1/ns/user; readlink /proc/self/ns/user) | sort -u | wc -l";
    assert_eq!(exec("", &format!("id -u; touch /x; stat -c %u /x; {same}")), "0\n0\n1");
    assert_eq!(exec("-u 1000", "id -u; touch /tmp/y; stat -c %u /tmp/y; echo z > /dev/stdout"), "1000\n1000\nz");
    assert_eq!(exec("-t", "tty"), "/dev/pts/0");
    let mut sleeper = home.berth("exec").arg(&id).args(["sh", "-c", "echo ready; exec sleep 1000"]).spawn();
    sleeper.expect("ready");
    let list = home.berth("top").arg(&id).ok().text();
    assert_eq!(list.matches("200000").count(), 2, "{list}");
    remove(&home, &id);
    berth_tests::wait::until("exec has ended", || sleeper.has_ended());
}

#[test]
fn cp_gives_and_takes_the_containers_ids() {
    let home = Home::new();
    let dir = home.scratch();
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), "copied").unwrap();
    chown(&tree.join("sub/file"), Some(Uid::from_raw(42)), Some(Gid::from_raw(43))).unwrap();
    let id =
        home.detached(&format!("{RANGE} -v vol:/vol --tmpfs /t"), "touch /mine; chown 12:34 /mine; exec sleep 1000");
    let stat =
        |paths: &str| home.berth("exec").arg(&id).args(["sh", "-c", &format!("stat -c %u:%g {paths}")]).ok().trimmed();
    berth_tests::wait::until("the file is there", || {
        home.berth("exec").arg(&id).args(["stat", "-c", "%u", "/mine"]).run().text() == "12\n"
    });
    let cp = |flags: &str, from: &str, to: &str| {
        let _ = home.berth(&format!("cp {flags}")).args([from, to]).ok();
    };
    let host = tree.to_str().unwrap();
    for place in ["/root", "/vol", "/t"] {
        cp("", host, &format!("{id}:{place}/plain"));
        cp("-a", host, &format!("{id}:{place}/kept"));
        assert_eq!(stat(&format!("{place}/plain/sub/file {place}/kept/sub/file")), "0:0\n42:43", "{place}");
    }
    let out = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    cp("-a", &format!("{id}:/mine"), &out("running"));
    let _ = home.berth("stop -t 1").arg(&id).ok();
    cp("-a", &format!("{id}:/mine"), &out("stopped"));
    cp("", host, &format!("{id}:/root/late"));
    cp("-a", host, &format!("{id}:/vol/late"));
    for name in ["running", "stopped"] {
        let meta = fs::metadata(out(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (12, 34), "{name}");
    }
    let _ = home.berth("start").arg(&id).ok();
    assert_eq!(stat("/root/late/sub/file /vol/late/sub/file /root/plain/sub/file"), "0:0\n42:43\n0:0");
}

#[test]
fn auto_gives_each_container_ids_of_its_own() {
    let home = Home::new();
    let ids: Vec<String> = (0..3).map(|_| home.detached("--userns auto", "exec sleep 1000")).collect();
    let mut first: Vec<u32> = ids.iter().map(|id| host_ids(&home, id).0).collect();
    first.sort_unstable();
    assert!(first.windows(2).all(|pair| pair[1] - pair[0] >= 65536) && first[0] > 0, "{first:?}");
    // A container keeps its ids, and a removed one's can be given again.
    let before = host_ids(&home, &ids[1]);
    let _ = home.berth("restart -t 0").arg(&ids[1]).ok();
    assert_eq!(host_ids(&home, &ids[1]), before);
    remove(&home, &ids[1]);
    let next = home.detached("--userns auto", "exec sleep 1000");
    assert_eq!(host_ids(&home, &next), before);
    // Two at once get different ones.
    let both: Vec<_> = (0..2).map(|_| home.berth("run -d --userns auto busybox sleep 1000").spawn()).collect();
    let both: Vec<_> = both.into_iter().map(|run| run.wait().code(0).trimmed()).collect();
    assert_ne!(host_ids(&home, &both[0]), host_ids(&home, &both[1]));
}

#[test]
fn nothing_is_left_of_it() {
    let home = Home::new();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().matches(home.path().to_str().unwrap()).count();
    let id = home.detached(RANGE, "exec sleep 1000");
    assert_eq!(mounts(), 0, "nothing of it is mounted on the host");
    let _ = home.berth("stop -t 1").arg(&id).ok();
    let _ = home.berth("rm").arg(&id).ok();
    home.expect_clean();
    // Failures on the way leave nothing either.
    home.shell(&format!("{RANGE} --entrypoint /no/such"), "true").run().code(127).fails_with("/no/such");
    home.shell(&format!("{RANGE} -w /etc/passwd"), "true").run().fails_with("working directory");
    home.expect_clean();
}

#[test]
fn nested_user_namespaces_and_host_namespaces() {
    let home = Home::new();
    for flag in ["--privileged", "--network host", "--pid host", "--ipc host", "--uts host"] {
        home.shell(&format!("{RANGE} {flag}"), "true").run().code(125).fails_with("--userns");
    }
    for bad in ["0:65536", "1:0", "x", "auto:1"] {
        home.shell(&format!("--userns {bad}"), "true").run().code(125).fails_with("--userns");
    }
    // Another user of the host may have the same ids: its processes cannot look into the container's as root of the host can.
    let id = home.detached(RANGE, "exec sleep 1000");
    let root = format!("/proc/{}/root/etc", home.pid(&id));
    let as_other = Cmd::new("setpriv", "--reuid 1000 --regid 1000 --clear-groups ls").arg(&root).run();
    as_other.fails_with("permission denied");
}
