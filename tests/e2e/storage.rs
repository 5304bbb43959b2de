//! What is mounted into a container: the writable layer, bind mounts, volumes, memory.

use std::fs;

use berth_tests::home::Home;

#[test]
fn a_container_writes_to_a_layer_of_its_own() {
    let home = Home::new();
    assert_eq!(home.prints("", "echo x > /etc/new; echo y > /etc/passwd; cat /etc/new /etc/passwd"), "x\ny");
    assert_eq!(home.prints("", "ls /etc/new 2>/dev/null; grep -c berth /etc/passwd"), "1");
}

#[test]
fn v_binds_a_folder_for_reading_and_writing() {
    let home = Home::new();
    let dir = home.scratch().join("bound");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("in"), "from the host").unwrap();
    let out = home.prints(&format!("-v {}:/data", dir.display()), "cat /data/in; echo from inside > /data/out");
    assert_eq!(out, "from the host");
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "from inside\n");
}

#[test]
fn v_ro_binds_for_reading_only() {
    let home = Home::new();
    let dir = home.scratch();
    let flags = format!("-v {}:/data:ro", dir.display());
    home.shell(&flags, "echo x > /data/out").run().fails_with("read-only");
    home.shell(&flags, "mount -o remount,rw /data").run().fails_with("");
    assert!(!dir.join("out").exists());
}

#[test]
fn v_binds_one_file_and_makes_a_missing_folder() {
    let home = Home::new();
    let file = home.scratch().join("file");
    fs::write(&file, "one file").unwrap();
    assert_eq!(home.prints(&format!("-v {}:/etc/passwd", file.display()), "cat /etc/passwd"), "one file");

    let missing = home.scratch().join("missing");
    let _ = home.prints(&format!("-v {}:/data", missing.display()), "touch /data/made");
    assert!(missing.join("made").exists());
}

#[test]
fn a_volume_outlives_its_containers() {
    let home = Home::new();
    let _ = home.prints("-v keep:/data", "echo kept > /data/file");
    assert_eq!(home.prints("-v keep:/elsewhere:ro", "cat /elsewhere/file"), "kept");
    home.shell("-v keep:/data:ro", "echo x > /data/file").run().fails_with("read-only");
}

#[test]
fn an_empty_volume_is_filled_from_the_image() {
    let home = Home::new();
    assert_eq!(home.prints("-v filled:/etc", "grep -c ^root: /etc/passwd"), "1");
    assert_eq!(home.prints("--mount type=volume,source=empty,target=/etc,volume-nocopy", "ls /etc/passwd || true"), "");
}

#[test]
fn an_anonymous_volume_goes_with_its_container() {
    let home = Home::new();
    assert_eq!(home.prints("-v /data", "echo x > /data/file; cat /data/file"), "x");
    let volumes = fs::read_dir(home.data().join("volumes")).map_or(0, Iterator::count);
    assert_eq!(volumes, 0, "--rm removes it");
}

#[test]
fn mount_binds() {
    let home = Home::new();
    let dir = home.scratch();
    let bind = |options: &str| format!("--mount type=bind,source={},target=/data{options}", dir.display());
    let _ = home.prints(&bind(""), "echo x > /data/file");
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "x\n");
    assert_eq!(home.prints(&bind(",readonly"), "cat /data/file"), "x");
    home.shell(&bind(",readonly"), "echo y > /data/file").run().fails_with("read-only");
    home.shell(&bind(",ro"), "echo y > /data/file").run().fails_with("read-only");
    let missing = format!("--mount type=bind,src={}/missing,dst=/data", dir.display());
    home.shell(&missing, "true").run().code(125).fails_with("missing");
    assert!(!dir.join("missing").exists(), "--mount makes nothing");
}

#[test]
fn mount_takes_volumes_and_tmpfs() {
    let home = Home::new();
    let _ = home.prints("--mount type=volume,src=keep,dst=/data", "echo kept > /data/file");
    assert_eq!(home.prints("--mount source=keep,target=/data,readonly", "cat /data/file"), "kept");
    let tmpfs = "--mount type=tmpfs,dst=/memory,tmpfs-size=1m,tmpfs-mode=700";
    assert_eq!(home.prints(tmpfs, "grep ' /memory ' /proc/mounts | cut -d' ' -f3; stat -c %a /memory"), "tmpfs\n700");
    home.shell(tmpfs, "dd if=/dev/zero of=/memory/file bs=2M count=1").run().fails_with("no space");
}

#[test]
fn tmpfs_is_memory_of_the_given_size() {
    let home = Home::new();
    assert_eq!(home.prints("--tmpfs /memory", "grep ' /memory ' /proc/mounts | cut -d' ' -f3"), "tmpfs");
    let small = "--tmpfs /memory:size=64k,mode=1777";
    assert_eq!(home.prints(small, "stat -c %a /memory; stat -f -c '%b * %S' /memory | xargs expr"), "1777\n65536");
    home.shell(small, "dd if=/dev/zero of=/memory/file bs=100k count=1").run().fails_with("no space");
}

#[test]
fn read_only_leaves_only_mounts_writable() {
    let home = Home::new();
    home.shell("--read-only", "touch /file").run().fails_with("read-only");
    let _ = home.shell("--read-only --tmpfs /tmp", "touch /tmp/file && touch /dev/shm/file && echo > /dev/null").ok();
    let dir = home.scratch();
    let _ = home.shell(&format!("--read-only -v {}:/data", dir.display()), "touch /data/file").ok();
    assert!(dir.join("file").exists());
}

#[test]
fn shm_size_sets_the_size_of_dev_shm() {
    let home = Home::new();
    let script = "stat -f -c '%b * %S' /dev/shm | xargs expr";
    assert_eq!(home.prints("", script), (64 << 20).to_string());
    assert_eq!(home.prints("--shm-size 8m", script), (8 << 20).to_string());
}

#[test]
fn mounts_that_make_no_sense_are_refused() {
    let home = Home::new();
    for flags in [
        "-v /tmp:relative",
        "-v /tmp:/x:nonsense",
        "--mount type=bind,target=/x",
        "--mount type=nonsense,target=/x",
        "--mount type=bind,source=/tmp,target=/x,nonsense=1",
        "--mount type=volume,source=../../etc,target=/x",
        "--tmpfs relative",
    ] {
        let _ = home.shell(flags, "true").run().code(125);
    }
    for (flags, message) in [
        ("-v /etc/passwd:/etc", "one is a directory and the other a file"),
        ("-v /tmp:/etc/passwd", "one is a directory and the other a file"),
        ("-v /tmp:/proc", "may hide /proc"),
        ("-v /tmp:/proc/sys", "may hide /proc"),
        ("--tmpfs /proc/self", "may hide /proc"),
        ("-v /etc/passwd:/proc/version", "may hide /proc"),
    ] {
        home.shell(flags, "true").run().code(125).fails_with(message);
    }
    // As lxcfs does it.
    let file = home.scratch().join("uptime");
    fs::write(&file, "7 7").unwrap();
    assert_eq!(home.prints(&format!("-v {}:/proc/uptime:ro", file.display()), "cat /proc/uptime"), "7 7");
}

#[test]
fn mounts_of_the_container_stay_in_it() {
    let home = Home::new();
    let dir = home.scratch();
    let id = home.detached(&format!("-v {}:/data --tmpfs /memory", dir.display()), "exec sleep 1000");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mine: Vec<_> =
        table.lines().filter(|l| l.contains(&id) || l.contains(&*home.path().to_string_lossy())).collect();
    assert!(mine.is_empty(), "mounted on the host: {mine:?}");
}

#[test]
fn volume_prune_asks_unless_forced() {
    let home = Home::new();
    let _ = home.berth("run --name it -v /data busybox true").ok();
    let _ = home.berth("rm it").ok();
    let volumes = || home.berth("volume ls -q").ok().text().lines().count();
    let _ = home.berth("volume prune").stdin("n\n").ok();
    assert_eq!(volumes(), 1);
    let _ = home.berth("volume prune -f").ok();
    assert_eq!(volumes(), 0);
}
