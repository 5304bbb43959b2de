//! What layers may hold, and how it arrives in a container.

use std::fs;

use berth_tests::home::Home;
use berth_tests::layout::{Layer, Layout};
use berth_tests::tar_file::{Meta, TarFile};
use berth_tests::{command::Cmd, fixtures};
use serde_json::json;
use tar::EntryType;

/// Loads busybox with further layers on top, as `image`.
fn load(home: &Home, layers: impl IntoIterator<Item = Layer>) {
    let base = Layer::gzip(&fs::read(fixtures::busybox_rootfs()).unwrap());
    let layers: Vec<_> = std::iter::once(base).chain(layers).collect();
    let layout = Layout::new(home.scratch().join("layout"));
    layout.image("image:1", &layers, &json!({ "Cmd": ["sh"] }));
    let _ = home.berth("load -i").arg(layout.path()).ok();
}

fn prints(home: &Home, script: &str) -> String {
    home.berth("run --rm image:1 sh -c").arg(script).ok().trimmed()
}

#[test]
fn whiteouts_and_opaque_folders_hide() {
    let home = Home::empty();
    load(
        &home,
        [
            Layer::plain(
                TarFile::new().folder("a/").file("a/1", "1").file("a/2", "2").folder("b/").file("b/1", "1").finish(),
            ),
            Layer::gzip(&TarFile::new().file("a/.wh.1", "").file("b/.wh..wh..opq", "").file("b/new", "n").finish()),
            Layer::zstd(&TarFile::new().file("etc/.wh.group", "").file(".wh.home", "").finish()),
        ],
    );
    assert_eq!(prints(&home, "ls /a /b; ls -d /etc/group /home 2>/dev/null || true"), "/a:\n2\n\n/b:\nnew");
    assert_eq!(prints(&home, "ls -A /b /etc / | grep -c wh || true"), "0");
}

#[test]
fn a_file_replaces_a_folder_and_back() {
    let home = Home::empty();
    load(
        &home,
        [
            Layer::plain(TarFile::new().folder("x/").file("x/in", "").file("y", "file").symlink("z", "etc").finish()),
            Layer::plain(
                TarFile::new()
                    .file("x", "file")
                    .folder("y/")
                    .file("y/in", "in")
                    .folder("z/")
                    .file("z/in", "z")
                    .finish(),
            ),
        ],
    );
    assert_eq!(
        prints(&home, "cat /x /y/in; ls /z; test -L /z || echo folder; ls /etc/in 2>/dev/null | wc -l"),
        "fileinin\nfolder\n0"
    );
}

#[test]
fn hard_links_hold_also_across_layers() {
    let home = Home::empty();
    load(
        &home,
        [
            Layer::plain(TarFile::new().file("one", "content").hard_link("two", "one").finish()),
            Layer::plain(TarFile::new().hard_link("three", "one").hard_link("four", "/bin/busybox").finish()),
        ],
    );
    assert_eq!(
        prints(&home, "cat /one /two /three; [ $(stat -c %i /one) = $(stat -c %i /three) ] && echo same"),
        "contentcontentcontentsame"
    );
    assert_eq!(prints(&home, "cmp /four /bin/busybox && echo equal"), "equal");
}

#[test]
fn owners_modes_and_times_arrive() {
    let home = Home::empty();
    let meta = |mode| Meta { mode, uid: 4_000_000, gid: 77, mtime: 1_000_000_000 };
    let tar = TarFile::new()
        .pax(&[("uid", b"4000000")])
        .entry(EntryType::Regular, b"setuid", b"", meta(0o6755), b"x")
        .pax(&[("mtime", b"1234567890.123456789")])
        .file("precise", "")
        .pax(&[("uid", b"4000000")])
        .entry(EntryType::Directory, b"sticky/", b"", Meta { mtime: 1_000_000_000, ..meta(0o1777) }, b"")
        .file("sticky/inside", "written after its folder");
    load(&home, [Layer::gzip(&tar.finish())]);
    assert_eq!(
        prints(&home, "stat -c '%a %u %g %Y' /setuid /sticky"),
        "6755 4000000 77 1000000000\n1777 4000000 77 1000000000"
    );
    assert!(prints(&home, "stat -c %y /precise").contains("23:31:30.123456789"));
}

#[test]
fn device_nodes_and_fifos_arrive() {
    let home = Home::empty();
    let tar = TarFile::new().device(EntryType::Char, "null", 1, 3).device(EntryType::Block, "disk", 200, 201).entry(
        EntryType::Fifo,
        b"pipe",
        b"",
        Meta::mode(0o640),
        b"",
    );
    load(&home, [Layer::plain(tar.finish())]);
    assert_eq!(
        prints(&home, "stat -c '%F %t %T' /null /disk; stat -c '%F %a' /pipe; echo x > /null && echo works"),
        "character special file 1 3\nblock special file c8 c9\nfifo 640\nworks"
    );
}

#[test]
fn extended_attributes_and_capabilities_arrive() {
    let home = Home::empty();
    // Version 2, effective, CAP_NET_RAW: as setcap(8) writes it.
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = TarFile::new()
        .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.user.note", b"a = b\n")])
        .file("able", "x");
    load(&home, [Layer::gzip(&tar.finish())]);
    let id = home.berth("run -d image:1 sleep 1000").ok().trimmed();
    let path = format!("/proc/{}/root/able", home.pid(&id));
    let read = |name: &str| {
        let (path, name) = (std::ffi::CString::new(&*path).unwrap(), std::ffi::CString::new(name).unwrap());
        let mut value = [0_u8; 100];
        // SAFETY: path and name are C strings, and the kernel writes at most the given length.
        let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        value[..usize::try_from(length).expect("the attribute is there")].to_vec()
    };
    assert_eq!(read("security.capability"), capability);
    assert_eq!(read("user.note"), b"a = b\n");
}

#[test]
fn long_and_non_utf8_names_arrive() {
    let home = Home::empty();
    let deep = format!("{}/{}", vec!["folder-with-a-rather-long-name"; 20].join("/"), "f".repeat(250));
    let mut tar = TarFile::new().entry(EntryType::Regular, b"bad-\xff\xfe-name", b"", Meta::mode(0o644), b"latin");
    tar = tar.file(&deep, "deep").symlink("to-deep", &format!("/{deep}"));
    load(&home, [Layer::plain(tar.finish())]);
    assert_eq!(prints(&home, "cat /bad-$(printf '\\377\\376')-name; cat /to-deep"), "latindeep");
}

#[test]
fn gnu_tar_sparse_files_and_long_names_arrive() {
    let home = Home::empty();
    let tree = home.scratch().join("tree");
    let long = "n".repeat(200);
    fs::create_dir_all(&tree).unwrap();
    fs::write(tree.join(&long), "long").unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 1 << 29).unwrap();
    for format in ["gnu", "posix"] {
        let tar = Cmd::new("tar", &format!("--create --sparse --format {format} --directory")).arg(&tree).arg(".").ok();
        let home = Home::empty();
        load(&home, [Layer::gzip(&tar.stdout)]);
        assert_eq!(
            prints(
                &home,
                &format!("cat /{long}; stat -c %s /sparse; dd if=/sparse bs=1 skip=536870912 count=6 2>/dev/null")
            ),
            "long1073741824\nmiddle",
            "{format}"
        );
        let blocks: u64 = prints(&home, "stat -c %b /sparse").parse().unwrap();
        assert!(blocks < 10_000, "{format}: the holes were filled: {blocks} blocks");
    }
}

#[test]
fn a_layer_shared_by_two_images_is_kept_once() {
    let home = Home::empty();
    let base = Layer::gzip(&fs::read(fixtures::busybox_rootfs()).unwrap());
    for name in ["first", "second"] {
        let layout = Layout::new(home.scratch().join(name));
        let top = Layer::plain(TarFile::new().file("name", name).finish());
        layout.image(&format!("{name}:1"), &[base.clone(), top], &json!({}));
        let _ = home.berth("load -i").arg(layout.path()).ok();
    }
    for name in ["first", "second"] {
        assert_eq!(home.berth(&format!("run --rm {name}:1 cat /name")).ok().text(), name);
    }
    let layers = fs::read_dir(home.data().join("images/layers")).unwrap().count();
    assert_eq!(layers, 3, "one base and two tops");
}

#[test]
fn an_image_without_usual_folders_runs() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    let busybox = fs::read("/bin/busybox").unwrap();
    let meta = Meta::mode(0o755);
    let tar = TarFile::new().entry(EntryType::Regular, b"busybox", b"", meta, &busybox);
    layout.image("bare:1", &[Layer::plain(tar.finish())], &json!({ "Entrypoint": ["/busybox"], "Cmd": ["pwd"] }));
    let _ = home.berth("load -i").arg(layout.path()).ok();
    assert_eq!(home.berth("run --rm bare:1").ok().text(), "/\n");
    assert_eq!(home.berth("run --rm bare:1 id -u").ok().text(), "0\n");
}

#[test]
fn the_images_configuration_is_followed() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    let config = json!({
        "Entrypoint": ["sh", "-c", "echo \"$0 $@ $FROM_IMAGE $BOTH $(id -u) $(pwd)\""], "Cmd": ["default"],
        "Env": ["FROM_IMAGE=1", "BOTH=image"], "User": "berth", "WorkingDir": "/work/here",
        "Volumes": { "/volume": {} }, "StopSignal": "SIGUSR1", "Labels": { "from": "image" },
    });
    let base = Layer::gzip(&fs::read(fixtures::busybox_rootfs()).unwrap());
    layout.image("full:1", &[base], &config);
    let _ = home.berth("load -i").arg(layout.path()).ok();
    assert_eq!(home.berth("run --rm full:1").ok().trimmed(), "default  1 image 1000 /work/here");
    let out = home.berth("run --rm -e BOTH=flag -u 0 -w / full:1 other words").ok();
    assert_eq!(out.trimmed(), "other words 1 flag 0 /");
    let out = home.berth("run --rm --entrypoint grep full:1 -c /volume /proc/mounts").ok();
    assert_eq!(out.trimmed(), "1", "a volume of the image is mounted");
    let _ = home.berth("run --name it full:1").ok();
    assert_eq!(home.inspect("it")["Config"]["Labels"]["from"], "image");
}

#[test]
fn mount_points_are_made_where_dangling_links_lead() {
    let home = Home::empty();
    let layer = TarFile::new()
        .file("etc/.wh.resolv.conf", "")
        .symlink("etc/hosts", "../run/names/hosts")
        .symlink("data", "/mnt/data")
        .symlink("work", "../../elsewhere")
        .symlink("round", "round")
        .finish();
    load(&home, [Layer::plain(layer)]);
    let dir = home.scratch();
    fs::write(dir.join("file"), "from outside").unwrap();
    let flags = format!("run --rm -w /work/here -v {}:/data --tmpfs /work/memory", dir.display());
    let script = "cat /mnt/data/file; echo; pwd -P; grep -c localhost /run/names/hosts; grep -c ' /elsewhere/memory ' /proc/mounts";
    let out = home.berth(&flags).args(["image:1", "sh", "-c", script]).ok();
    assert_eq!(out.text(), "from outside\n/elsewhere/here\n2\n1\n");
    let round = home.berth("run --rm --tmpfs /round/in image:1 true").run().code(125);
    round.fails_with("symbolic links");
}
