//! What stands between a process guest and the host beside the VM: the rights its VMM has given up.

use std::fs;

use berth_tests::home::Home;

use crate::process_guest::{is_possible, same};

/// A field of `/proc/PID/status`.
fn field(pid: i64, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let prefix = format!("{name}:");
    status.lines().find_map(|line| line.strip_prefix(&prefix)).expect("the kernel has this field").trim().to_owned()
}

fn set(pid: i64, name: &str) -> u64 {
    u64::from_str_radix(&field(pid, name), 16).unwrap()
}

#[test]
fn the_vmm_has_no_capabilities_and_a_filter_of_its_own() {
    if !is_possible("the rights of a process guest's VMM") {
        return;
    }
    let home = Home::new();
    let script = "echo up; while :; do sleep 1; done";
    for (name, isolation) in [("plain", "container"), ("guest", "microvm --guest process")] {
        let words = format!("run -d --name {name} --isolation {isolation} busybox sh -c");
        let _ = home.berth(&words).arg(script).ok();
        home.expect_log(name, "up");
    }
    let (container, vmm) = (home.pid("plain"), home.pid("guest"));
    for sets in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(set(vmm, sets), 0, "{sets}");
    }
    assert_eq!((field(vmm, "Seccomp"), field(vmm, "NoNewPrivs")), ("2".to_owned(), "1".to_owned()));
    let filters = |pid| field(pid, "Seccomp_filters").parse::<u32>().unwrap();
    assert!(filters(vmm) > filters(container), "no filter beyond the container's");

    // The broker beside it has some of the container's capabilities and nothing open but its socket.
    let children = fs::read_to_string(format!("/proc/{vmm}/task/{vmm}/children")).unwrap();
    let broker: i64 = children.trim().parse().expect("one child");
    let kept = set(broker, "CapEff");
    assert!(kept != 0 && kept & !set(container, "CapEff") == 0 && kept != set(container, "CapEff"), "{kept:x}");
    assert_eq!(field(broker, "Seccomp"), "2");
    assert!(filters(broker) > filters(container));
    assert_eq!(fs::read_dir(format!("/proc/{broker}/fd")).unwrap().count(), 1);
    let _ = home.berth("rm -f plain guest").ok();
}

#[test]
fn users_have_a_containers_rights_over_files() {
    if !is_possible("users in a process guest") {
        return;
    }
    let home = Home::new();
    let root = "cd /tmp; echo x > f; chown 7:8 f; chmod 600 f; stat -c '%u %g %a' f; echo y >> f; cat f; \
        mkdir d; chown 7 d; chmod 700 d; echo z > d/f; ls d; mv d/f g; ln f h; rm -r d; chmod 4755 g; stat -c %a g; \
        touch -d @86400 f; stat -c %Y f; id -G; grep -E '^(Uid|Gid|Cap(Prm|Eff))' /proc/self/status";
    let guest = same(&home, "", &["busybox", "sh", "-c", root], "");
    assert!(guest.text().starts_with("7 8 600\nx\ny\nf\n4755\n86400\n"), "{guest:?}");
    // Another user, who was root and cannot be it again.
    let other = "cd /tmp; echo secret > f; chmod 600 f; mkdir -m 777 d; \
        echo user:x:7:8::/:/bin/sh >> /etc/passwd; su user -c 'id -u; id -g; cat f; touch d/mine; touch mine; \
        echo $?; stat -c \"%u %g\" d/mine; rm d/mine; kill -0 1; echo $?; grep ^CapPrm /proc/self/status' 2>&1";
    let guest = same(&home, "", &["busybox", "sh", "-c", other], "");
    assert!(guest.text().starts_with("7\n8\n") && guest.text().contains("\n7 8\n"), "{guest:?}");
    // A user from the start has no rights to give up.
    let user = "touch /etc/mine; echo $?; cat /etc/shadow; echo $?; chown 0 /tmp; echo $?; id; touch /tmp/m; stat -c %u /tmp/m";
    let _ = same(&home, "-u 7:8", &["busybox", "sh", "-c", user], "");
}
