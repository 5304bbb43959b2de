//! What entries become.

use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::support::{Tar, TestStore, gzip, zstd_frame};

fn stat(directory: &Path, path: &str) -> Metadata {
    fs::symlink_metadata(directory.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn xattr(directory: &Path, path: &str, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(directory.join(path), name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_whiteout(directory: &Path, path: &str) -> bool {
    let stat = stat(directory, path);
    stat.file_type().is_char_device() && stat.rdev() == 0
}

fn is_opaque(directory: &Path, path: &str) -> bool {
    xattr(directory, path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

#[test]
fn kinds_modes_owners_and_times() {
    let test = TestStore::new();
    let owned = |header: &mut tar::Header| {
        header.set_uid(1234);
        header.set_gid(5678);
        header.set_mode(0o6755);
    };
    let layer = Tar::new()
        .entry("dir/", b'5', "", 0o1777, b"")
        .with("dir/suid", b'0', "", b"x", owned)
        .entry("dir/writable", b'0', "", 0o666, b"hello")
        .symlink("dir/link", "../dir/suid")
        .hard_link("dir/hard", "dir/suid")
        .entry("fifo", b'6', "", 0o622, b"")
        .with("null", b'3', "", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            header.set_mode(0o666);
        })
        .with("disk", b'4', "", b"", |header| {
            header.set_device_major(7).unwrap();
            header.set_device_minor(300).unwrap();
        })
        .entry("setgid/", b'5', "", 0o2755, b"")
        .file("setgid/child", "")
        .done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    assert_eq!(stat(root, "dir").mode() & 0o7777, 0o1777);
    let suid = stat(root, "dir/suid");
    assert_eq!((suid.uid(), suid.gid(), suid.mode() & 0o7777), (1234, 5678, 0o6755));
    assert_eq!(suid.nlink(), 2);
    assert_eq!(stat(root, "dir/hard").ino(), suid.ino());
    assert_eq!(stat(root, "dir/writable").mode() & 0o7777, 0o666);
    assert_eq!(fs::read_link(root.join("dir/link")).unwrap().as_os_str(), "../dir/suid");
    assert!(stat(root, "fifo").file_type().is_fifo());
    assert_eq!(stat(root, "fifo").mode() & 0o7777, 0o622);
    assert_eq!(stat(root, "null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat(root, "null").mode() & 0o777, 0o666);
    assert_eq!(stat(root, "disk").rdev(), rustix::fs::makedev(7, 300));
    assert!(stat(root, "disk").file_type().is_block_device());
    assert_eq!(stat(root, "setgid").mode() & 0o7777, 0o2755);
    for path in ["dir", "dir/suid", "dir/link", "fifo", "null", "setgid", "setgid/child"] {
        assert_eq!(stat(root, path).mtime(), 1_000_000_000, "{path}");
    }
    assert_eq!(stat(root, "").mode() & 0o7777, 0o755);
}

#[test]
fn compressions() {
    let plain = Tar::new().file("a", vec![7; 3_000_000]).done();
    // Two gzip members in a row are one stream.
    let (front, back) = plain.split_at(1_000_000);
    let members = [gzip(front), gzip(back)].concat();
    for layer in [plain.clone(), gzip(&plain), zstd_frame(&plain), members] {
        let root = &TestStore::new().unpack_into_bytes(&[layer], "a");
        assert_eq!(*root, vec![7; 3_000_000]);
    }
}

impl TestStore {
    fn unpack_into_bytes(&self, layers: &[Vec<u8>], path: &str) -> Vec<u8> {
        fs::read(self.unpack(layers).unwrap().last().unwrap().join(path)).unwrap()
    }
}

#[test]
fn pax_headers() {
    let test = TestStore::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let layer = Tar::new()
        .pax(&[("path", long.as_bytes()), ("mtime", b"1234567890.123456789"), ("uid", b"3000000"), ("gid", b"4000000")])
        .file("short", "long")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"a=b\nc"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .entry("ping", b'0', "", 0o755, b"x")
        .pax(&[("path", b"raw-\xff\xfe"), ("linkpath", b"to-\xfd")])
        .symlink("x", "y")
        .done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    let stat = stat(root, &long);
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!((stat.uid(), stat.gid()), (3_000_000, 4_000_000));
    assert_eq!(xattr(root, "ping", "security.capability").unwrap(), capability);
    assert_eq!(xattr(root, "ping", "user.note").unwrap(), b"a=b\nc");
    assert_eq!(xattr(root, "ping", "trusted.overlay.redirect"), None);
    let target = fs::read_link(root.join(std::ffi::OsStr::from_bytes(b"raw-\xff\xfe"))).unwrap();
    assert_eq!(target.as_os_str().as_bytes(), b"to-\xfd");
}

#[test]
fn gnu_long_names() {
    let test = TestStore::new();
    let name = "n".repeat(180);
    let target = "t".repeat(300);
    let layer = Tar::new()
        .entry("././@LongLink", b'K', "", 0, format!("{target}\0").as_bytes())
        .entry("././@LongLink", b'L', "", 0, format!("{name}\0").as_bytes())
        .symlink("cut", "off")
        .done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    assert_eq!(fs::read_link(root.join(name)).unwrap().to_str().unwrap(), target);
}

#[test]
fn sparse_files() {
    let test = TestStore::new();
    let one = vec![b'1'; 512];
    let map = b"2\n1048576\n512\n2097152\n0\n";
    let in_data = [&map[..], &vec![0; 512 - map.len()], &one].concat();
    let gnu = |header: &mut tar::Header| {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].set_offset(1 << 20);
        gnu.sparse[0].set_length(512);
        gnu.sparse[1].set_offset(2 << 20);
        gnu.sparse[1].set_length(0);
        gnu.set_real_size(2 << 20);
    };
    let layer = Tar::new()
        .with("gnu", b'S', "", &one, gnu)
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"pax1"),
            ("GNU.sparse.realsize", b"2097152"),
        ])
        .file("GNUSparseFile.0/pax1", &in_data)
        .pax(&[
            ("GNU.sparse.map", b"1048576,512,2097152,0"),
            ("GNU.sparse.size", b"2097152"),
            ("GNU.sparse.name", b"pax01"),
        ])
        .file("x", &one)
        .pax(&[
            ("GNU.sparse.size", b"2097152"),
            ("GNU.sparse.offset", b"1048576"),
            ("GNU.sparse.numbytes", b"512"),
            ("GNU.sparse.offset", b"2097152"),
            ("GNU.sparse.numbytes", b"0"),
        ])
        .file("pax00", &one)
        .file("after", "here")
        .done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    let mut expected = vec![0; 2 << 20];
    expected[1 << 20..(1 << 20) + 512].copy_from_slice(&one);
    for name in ["gnu", "pax1", "pax01", "pax00"] {
        assert!(fs::read(root.join(name)).unwrap() == expected, "{name}");
        assert!(stat(root, name).blocks() * 512 < 1 << 20, "{name} has no hole");
    }
    assert_eq!(fs::read(root.join("after")).unwrap(), b"here");
}

#[test]
fn later_entries_replace_earlier_ones() {
    let test = TestStore::new();
    let layer = Tar::new()
        .file("a", "file")
        .dir("a")
        .file("a/b", "1")
        .file("a/b", "2")
        .dir("c")
        .dir("c/deep")
        .file("c/deep/x", "")
        .file("c", "was a directory")
        .symlink("d", "a")
        .dir("d")
        .file("d/e", "not in a")
        .entry("merge/", b'5', "", 0o700, b"")
        .file("merge/kept", "")
        .entry("merge/", b'5', "", 0o711, b"")
        .hard_link("b2", "a/b")
        .file("b2", "own")
        .done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    assert_eq!(fs::read(root.join("a/b")).unwrap(), b"2");
    assert_eq!(fs::read(root.join("c")).unwrap(), b"was a directory");
    assert_eq!(fs::read(root.join("d/e")).unwrap(), b"not in a");
    assert!(!root.join("a/e").exists());
    assert!(root.join("merge/kept").exists());
    assert_eq!(stat(root, "merge").mode() & 0o777, 0o711);
    assert_eq!(fs::read(root.join("b2")).unwrap(), b"own");
    assert_eq!(stat(root, "a/b").nlink(), 1);
}

#[test]
fn whiteouts() {
    let test = TestStore::new();
    let lower = Tar::new().file("gone", "").file("both", "old").file("dir/old", "").file("opaque/old", "").done();
    let upper = Tar::new()
        .file(".wh.gone", "")
        .file("both", "new")
        .file(".wh.both", "")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "")
        .file(".wh.dir", "")
        .dir("dir")
        .file("dir/new", "")
        .file(".wh..wh.plnk", "reserved")
        .dir(".wh..wh.aufs/")
        .file(".wh..wh.aufs/x", "reserved")
        .done();
    let roots = test.unpack(&[lower, upper]).unwrap();
    assert!(is_whiteout(&roots[1], "gone"));
    assert_eq!(fs::read(roots[1].join("both")).unwrap(), b"new");
    assert!(is_opaque(&roots[1], "opaque"));
    assert!(roots[1].join("opaque/new").exists());
    assert!(is_opaque(&roots[1], "dir"), "a directory made anew must not show the old one's content");
    assert!(!is_opaque(&roots[0], "dir"));
    let names: Vec<_> = fs::read_dir(&roots[1]).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_str().unwrap().starts_with(".wh.")), "{names:?}");
}

#[test]
fn an_opaque_root_hides_name_by_name() {
    let test = TestStore::new();
    let lower = Tar::new().file("a", "").dir("b").file("c", "old").done();
    let upper = Tar::new().file(".wh..wh..opq", "").file("c", "new").done();
    let roots = test.unpack(&[lower, upper]).unwrap();
    assert!(is_whiteout(&roots[1], "a"));
    assert!(is_whiteout(&roots[1], "b"));
    assert_eq!(fs::read(roots[1].join("c")).unwrap(), b"new");
}

#[test]
fn hard_links_across_layers() {
    let test = TestStore::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let lower = Tar::new()
        .entry("bin/", b'5', "", 0o711, b"")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .with("bin/tool", b'0', "", b"tool", |header| {
            header.set_mode(0o755);
            header.set_uid(7);
        })
        .symlink("bin/link", "tool")
        .done();
    let middle = Tar::new().file("other", "").done();
    let upper = Tar::new().hard_link("usr/alias", "bin/tool").hard_link("usr/link", "bin/link").done();
    let roots = test.unpack(&[lower, middle, upper]).unwrap();
    let alias = stat(&roots[2], "usr/alias");
    assert_eq!(alias.ino(), stat(&roots[2], "bin/tool").ino());
    assert_eq!((alias.uid(), alias.mode() & 0o7777, alias.mtime()), (7, 0o755, 1_000_000_000));
    assert_eq!(xattr(&roots[2], "usr/alias", "security.capability").unwrap(), capability);
    assert_eq!(fs::read(roots[2].join("usr/alias")).unwrap(), b"tool");
    assert_eq!(fs::read_link(roots[2].join("usr/link")).unwrap().to_str(), Some("tool"));
    assert_eq!(stat(&roots[2], "bin").mode() & 0o777, 0o711, "a parent made on the way is as in the lower layer");
    assert_eq!(stat(&roots[0], "bin/tool").nlink(), 1);
}

#[test]
fn implicit_parents_are_as_in_the_lower_layer() {
    let test = TestStore::new();
    let lower = Tar::new()
        .with("home/", b'5', "", b"", |header| {
            header.set_mode(0o2770);
            header.set_uid(1000);
            header.set_gid(1001);
        })
        .dir("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("abs", "/usr/lib")
        .symlink("climb", "../../../../usr/lib")
        .with("./", b'5', "", b"", |header| header.set_mode(0o711))
        .done();
    let middle = Tar::new().file("unrelated", "").done();
    let upper =
        Tar::new().file("home/user/x", "").file("lib/a.so", "a").file("abs/b.so", "b").file("climb/c.so", "c").done();
    let roots = test.unpack(&[lower, middle, upper]).unwrap();
    let home = stat(&roots[2], "home");
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o7777, home.mtime()), (1000, 1001, 0o2770, 1_000_000_000));
    let user = stat(&roots[2], "home/user");
    assert_eq!((user.uid(), user.mode() & 0o7777), (0, 0o755));
    for name in ["a.so", "b.so", "c.so"] {
        assert!(stat(&roots[2], &format!("usr/lib/{name}")).is_file());
    }
    assert!(!roots[2].join("lib").exists(), "the link of the lower layer must stay a link");
    assert_eq!(stat(&roots[2], "").mode() & 0o777, 0o711, "the root, too");
}

#[test]
fn a_deleted_parent_comes_back_empty() {
    let test = TestStore::new();
    let bottom = Tar::new().dir("a").file("a/old", "").entry("b/", b'5', "", 0o700, b"").done();
    let middle = Tar::new().file(".wh.a", "").done();
    let upper = Tar::new().file("a/new", "").file(".wh.b", "").file("b/new", "").done();
    let roots = test.unpack(&[bottom, middle, upper]).unwrap();
    assert_eq!(stat(&roots[2], "a").mode() & 0o777, 0o755);
    assert!(is_opaque(&roots[2], "b"));
    assert_eq!(stat(&roots[2], "b").mode() & 0o777, 0o755);
}

#[test]
fn many_layers_unpack_in_parallel() {
    let test = TestStore::new();
    let mut layers = vec![Tar::new().with("base/", b'5', "", b"", |header| header.set_mode(0o700)).done()];
    for number in 0..30 {
        let name = format!("base/{number}");
        let below = format!("base/{}", number - 1);
        let tar = Tar::new().file(&name, vec![1; 100_000]);
        layers.push(gzip(&if number == 0 { tar } else { tar.hard_link(&format!("link{number}"), &below) }.done()));
    }
    let roots = test.unpack(&layers).unwrap();
    for (number, root) in roots.iter().enumerate().skip(2) {
        assert_eq!(stat(root, "base").mode() & 0o777, 0o700);
        assert_eq!(stat(root, &format!("link{}", number - 1)).nlink(), 2);
    }
}
