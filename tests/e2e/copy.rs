//! `berth cp` and `berth diff`

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use berth_tests::command::Cmd;
use berth_tests::home::Home;

#[test]
fn cp_goes_both_ways_while_it_runs_and_after() {
    let home = Home::new();
    let dir = home.scratch();
    fs::write(dir.join("file"), "ahoy").unwrap();
    let _ = home.detached("--name it", "exec sleep 1000");
    for _ in 0..2 {
        let _ = home.berth("cp").arg(dir.join("file")).arg("it:/etc/copied").ok();
        let _ = home.berth("cp it:/etc/copied").arg(dir.join("back")).ok();
        assert_eq!(fs::read_to_string(dir.join("back")).unwrap(), "ahoy");
        fs::remove_file(dir.join("back")).unwrap();
        let _ = home.berth("cp it:/etc/passwd").arg(&dir).ok();
        assert!(fs::read_to_string(dir.join("passwd")).unwrap().contains("berth"), "of the image");
        let _ = home.berth("stop -t 0 it").ok();
    }
    let _ = home.berth("restart it").ok();
    assert_eq!(home.berth("exec it cat /etc/copied").ok().text(), "ahoy");
}

#[test]
fn cp_takes_folders_with_all_that_is_in_them() {
    let home = Home::new();
    let dir = home.scratch().join("tree");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("sub/file"), "deep").unwrap();
    symlink("sub/file", dir.join("link")).unwrap();
    fs::set_permissions(dir.join("sub/file"), std::os::unix::fs::PermissionsExt::from_mode(0o4751)).unwrap();
    let _ = home.detached("--name it", "exec sleep 1000");
    // As cp(1): into an existing folder under its own name, else as the new name; `/.` is the content alone.
    let _ = home.berth("cp").arg(&dir).arg("it:/tmp").ok();
    let _ = home.berth("cp").arg(&dir).arg("it:/new").ok();
    let _ = home.berth("cp").arg(dir.join(".")).arg("it:/home").ok();
    let look = "cat /tmp/tree/link /new/link /home/link; readlink /new/link; stat -c %a /new/sub/file";
    assert_eq!(home.berth("exec it sh -c").arg(look).ok().trimmed(), "deepdeepdeepsub/file\n4751");
    let back = home.scratch().join("back");
    let _ = home.berth("cp it:/new").arg(&back).ok();
    assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("sub/file"));
    assert_eq!(fs::metadata(back.join("sub/file")).unwrap().mode() & 0o7777, 0o4751);
}

#[test]
fn cp_streams_tar() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    let tar = home.berth("cp it:/etc/passwd -").ok().stdout;
    assert!(Cmd::new("tar", "-xO").stdin(tar.clone()).ok().text().contains("berth"));
    let _ = home.berth("cp - it:/tmp").stdin(tar).ok();
    let _ = home.berth("exec it test -s /tmp/passwd").ok();
}

#[test]
fn cp_says_what_is_missing() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    home.berth("cp it:/no/such /tmp").run().fails_with("/no/such");
    home.berth("cp /no/such it:/tmp").run().fails_with("/no/such");
    home.berth("cp nobody:/etc/passwd /tmp").run().fails_with("nobody");
    home.berth("cp /etc/passwd it:/no/such/folder/").run().fails_with("/no/such/folder");
    home.berth("cp /etc/passwd /tmp/x").run().fails_with("container");
}

#[test]
fn cp_is_not_led_out_of_the_container_by_a_link() {
    let home = Home::new();
    let outside = home.scratch().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let script = format!(
        "mkdir -p /trap{0}; ln -s {0} /absolute; ln -s ../../../../../../../../..{0} /relative; \
         ln -s {0}/secret /file; ln -s /proc/1/root{0} /magic; echo ready; exec sleep 1000",
        outside.display()
    );
    let id = home.detached("--name it", &script);
    home.expect_log(&id, "ready");
    fs::write(home.scratch().join("mine"), "mine").unwrap();
    for stopped in [false, true] {
        for link in ["absolute", "relative", "magic"] {
            let _ = home.berth("cp").arg(home.scratch().join("mine")).arg(format!("it:/{link}/planted")).run();
            assert!(!outside.join("planted").exists(), "written through /{link}, stopped: {stopped}");
            let back = home.scratch().join("back");
            let _ = home.berth("cp").arg(format!("it:/{link}/secret")).arg(&back).run();
            let read = fs::read_to_string(&back).unwrap_or_default();
            assert!(!read.contains("secret"), "read through /{link}, stopped: {stopped}");
        }
        let _ = home.berth("cp").arg(home.scratch().join("mine")).arg("it:/file").run();
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret", "stopped: {stopped}");
        let _ = home.berth("stop -t 0 it").ok();
    }
}

#[test]
fn cp_runs_nothing_of_the_container() {
    // CVE-2019-14271: a library of the container was loaded by the process that copied.
    let home = Home::new();
    let _ = home.detached(
        "--name it",
        "for d in /lib /lib64 /usr/lib; do mkdir -p $d; cp /bin/sh $d/libnss_files.so.2; done; exec sleep 1000",
    );
    let out = home.scratch().join("passwd");
    let _ = home.berth("cp it:/etc/passwd").arg(&out).ok();
    assert!(out.exists());
}

#[test]
fn diff_lists_what_was_added_changed_and_deleted() {
    let home = Home::new();
    let script = "echo x > /etc/new; echo x >> /etc/passwd; rm /etc/group; mkdir /folder; touch /folder/file; echo ready; exec sleep 1000";
    let id = home.detached("--name it", script);
    home.expect_log(&id, "ready");
    let check = || {
        let text = home.berth("diff it").ok().text();
        let lines: Vec<_> = text.lines().collect();
        for line in ["A /etc/new", "C /etc/passwd", "D /etc/group", "C /etc", "A /folder", "A /folder/file"] {
            assert!(lines.contains(&line), "{line} is not in {lines:?}");
        }
        assert!(!text.contains("/proc") && !text.contains("/bin"), "{text}");
    };
    check();
    let _ = home.berth("stop -t 0 it").ok();
    check();
}

#[test]
fn cp_of_everything_leaves_the_kernels_files_out() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    let back = home.scratch().join("back");
    let _ = home.berth("cp it:/").arg(&back).ok();
    assert!(back.join("etc/passwd").exists() && back.join("bin/busybox").exists());
    for kernel in ["proc", "sys"] {
        assert_eq!(fs::read_dir(back.join(kernel)).unwrap().count(), 0, "{kernel}");
    }
}

#[test]
fn cp_takes_a_fifo_as_gnu_tar_writes_it_and_wants_paths() {
    let home = Home::new();
    let _ = home.detached("--name it", "exec sleep 1000");
    let folder = home.scratch().join("folder");
    fs::create_dir(&folder).unwrap();
    let made = Cmd::new("mkfifo", "").arg(folder.join("pipe")).run();
    assert_eq!(made.exit_code(), 0);
    let tar = Cmd::new("tar", "--format=gnu -cf - -C").arg(home.scratch()).arg("folder").run();
    let _ = home.berth("cp - it:/tmp").stdin(tar.stdout).ok();
    assert_eq!(home.berth("exec it stat -c %F /tmp/folder/pipe").ok().text(), "fifo\n");
    home.berth("cp it:").arg(&folder).run().fails_with("names no path");
}
