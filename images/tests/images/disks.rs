//! Guests' disks: mounted, they are what overlayfs makes of the same layers.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_images::{Digest, DiskFormat, overlay};
use rustix::fs::{Mode, OFlags, SeekFrom, openat, seek};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::support::{Tar, TestStore, missing_program};

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An access control list: the owner reads and writes, user 1000 and the group read, the mask lets both, others have nothing.
const ACL: [u8; 44] = {
    const NONE: u8 = 0xff;
    [
        2, 0, 0, 0, // version
        0x01, 0, 6, 0, NONE, NONE, NONE, NONE, // owner
        0x02, 0, 4, 0, 0xe8, 3, 0, 0, // user 1000
        0x04, 0, 4, 0, NONE, NONE, NONE, NONE, // group
        0x10, 0, 4, 0, NONE, NONE, NONE, NONE, // mask
        0x20, 0, 0, 0, NONE, NONE, NONE, NONE, // others
    ]
};

/// Every format of a disk.
const FORMATS: [DiskFormat; 2] = [DiskFormat::Erofs, DiskFormat::Ext4];

/// Mounts a disk where nothing but the descriptor leads. `None`: this kernel mounts no files as erofs (before Linux 6.12).
fn mount(disk: &Path, format: DiskFormat) -> Option<OwnedFd> {
    let context = fsopen(format.name(), FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let device = (format == DiskFormat::Ext4).then(|| LoopDevice::new(disk));
    let source = device.as_ref().map_or(disk, |device| &device.0);
    fsconfig_set_string(&context, "source", source).unwrap();
    fsconfig_set_flag(&context, "ro").unwrap();
    match fsconfig_create(&context) {
        Err(rustix::io::Errno::NOTBLK) => {
            println!("not mounted: this kernel mounts no files");
            None
        }
        other => {
            other.unwrap();
            Some(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).unwrap())
        }
    }
}

/// A file as a block device. What has it mounted keeps it.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn new(file: &Path) -> Self {
        let output = Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self(String::from_utf8(output.stdout).unwrap().trim_end().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("--detach").arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

/// What checks file systems finds nothing to complain of.
fn check(disk: &Path, format: DiskFormat) {
    let (program, arguments) = match format {
        DiskFormat::Erofs => ("fsck.erofs", ["--extract"].as_slice()),
        DiskFormat::Ext4 => ("e2fsck", ["-f", "-n"].as_slice()),
    };
    if missing_program(&[program]) {
        return;
    }
    let output = Command::new(program).args(arguments).arg(disk).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    if format == DiskFormat::Erofs {
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

/// What must be equal of a file: kind, mode, owners, links, size, modification time, device, link target, extended
/// attributes, content.
type Facts = (u32, [u32; 2], u64, u64, (i64, i64), u64, Option<PathBuf>, Vec<(Vec<u8>, Vec<u8>)>, Option<Digest>);

/// Everything below a directory, and which paths are the same file.
fn tree(root: &OwnedFd) -> (BTreeMap<PathBuf, Facts>, Vec<Vec<PathBuf>>) {
    let base = PathBuf::from(format!("/proc/self/fd/{}/", root.as_raw_fd()));
    let (mut all, mut same) = (BTreeMap::new(), BTreeMap::<u64, Vec<PathBuf>>::new());
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = base.join(&path);
        let stat = if path == Path::new("") { fs::metadata(&full) } else { fs::symlink_metadata(&full) }.unwrap();
        if stat.is_dir() {
            pending.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else if stat.nlink() > 1 {
            same.entry(stat.ino()).or_default().push(path.clone());
        }
        all.insert(path, facts(&full, &stat));
    }
    let mut same: Vec<_> = same.into_values().collect();
    for paths in &mut same {
        paths.sort();
    }
    same.sort();
    (all, same)
}

fn facts(path: &Path, stat: &Metadata) -> Facts {
    let kind = stat.file_type();
    let link = kind.is_symlink().then(|| fs::read_link(path).unwrap());
    let mut xattrs = Vec::new();
    if kind.is_file() || kind.is_dir() {
        let mut list = vec![0; 1 << 16];
        let length = rustix::fs::listxattr(path, &mut list[..]).unwrap();
        for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if name.starts_with(b"trusted.") || name == b"security.selinux" {
                continue;
            }
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
            xattrs.push((name.to_vec(), value[..length].to_vec()));
        }
        xattrs.sort();
    }
    let content = kind.is_file().then(|| {
        if stat.len() < 1 << 28 { Digest::of(&fs::read(path).unwrap()) } else { Digest::of(b"too large to be read") }
    });
    // The count of a directory's links is not the same on all file systems.
    let links = if kind.is_dir() { 0 } else { stat.nlink() };
    let size = if kind.is_dir() { 0 } else { stat.len() };
    let device = if kind.is_char_device() || kind.is_block_device() { stat.rdev() } else { 0 };
    (
        stat.mode(),
        [stat.uid(), stat.gid()],
        links,
        size,
        (stat.mtime(), stat.mtime_nsec()),
        device,
        link,
        xattrs,
        content,
    )
}

/// Makes the disks of these layers and compares them with what overlayfs shows. Returns them, mounted where the kernel can.
fn compare(test: &TestStore, layers: &[Vec<u8>]) -> Vec<(PathBuf, OwnedFd)> {
    let image = test.load(layers).unwrap();
    let (expected, expected_links) = tree(&overlay::read_only(&test.store.lower_dirs(&image).unwrap()).unwrap());
    let mounted = FORMATS.map(|format| {
        let disk = test.store.disk(&image, format).unwrap();
        check(&disk, format);
        let mounted = mount(&disk, format)?;
        let (found, links) = tree(&mounted);
        let differing: Vec<_> = expected.iter().filter(|(path, facts)| found.get(*path) != Some(*facts)).collect();
        let extra: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
        assert!(differing.is_empty() && extra.is_empty(), "{format:?}: differing: {differing:?}, extra: {extra:?}");
        assert_eq!(links, expected_links, "{format:?}");
        Some((disk, mounted))
    });
    mounted.into_iter().flatten().collect()
}

#[test]
fn all_kinds_of_files() {
    let long = "n".repeat(255);
    let lower = Tar::new()
        .with("./", b'5', "", b"", |header| header.set_mode(0o711))
        .with("own/", b'5', "", b"", |header| {
            header.set_mode(0o2750);
            header.set_uid(70_000);
            header.set_gid(4_000_000_000);
        })
        .with("own/suid", b'0', "", b"x", |header| header.set_mode(0o4711))
        .with("own/secret", b'0', "", b"only for one", |header| {
            header.set_mode(0o000);
            header.set_uid(6);
        })
        .pax(&[("SCHILY.xattr.security.capability", &CAPABILITY), ("SCHILY.xattr.user.long", &[7; 2500])])
        .file("capable", "capable")
        .pax(&[("SCHILY.xattr.user.note", b"of a directory")])
        .dir("noted")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &ACL)])
        .file("listed", "for some")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &ACL), ("SCHILY.xattr.user.empty", b"")])
        .dir("inherited")
        .pax(&[("mtime", b"1234567890.123456789")])
        .file("subsecond", "")
        .pax(&[("mtime", b"-5.5")])
        .file("before1970", "")
        .pax(&[("mtime", b"9999999999")])
        .file("after2106", "")
        .pax(&[("path", b"not\xff\xfeutf8 \n")])
        .file("x", "bytes")
        .pax(&[("path", long.as_bytes())])
        .file("x", "long")
        .symlink("link", "capable")
        .symlink("dangling", "/nowhere/at/all")
        .pax(&[("linkpath", "t".repeat(4095).as_bytes())])
        .symlink("longlink", "x")
        .hard_link("hard", "capable")
        .hard_link("noted/hard", "capable")
        .entry("fifo", b'6', "", 0o640, b"")
        .with("null", b'3', "", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        })
        .with("block", b'4', "", b"", |header| {
            header.set_device_major(259).unwrap();
            header.set_device_minor(0xa_bcde).unwrap();
        })
        .dir("empty")
        .done();
    compare(&TestStore::new(), &[lower]);
}

/// Every size round the edges of a block, alone, with its neighbours, and with attributes.
#[test]
fn sizes_round_the_edges_of_blocks() {
    let sizes = [0, 1, 31, 32, 33, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 8128, 8191, 8192, 8193, 12_288, 300_001];
    let content = |size: usize| (0..size).map(|index| (index * 7 + size) as u8).collect::<Vec<_>>();
    let mut tar = Tar::new();
    for size in sizes {
        tar = tar.file(&format!("plain{size}"), content(size));
        tar = tar.pax(&[("SCHILY.xattr.user.x", &content(size % 300))]).file(&format!("noted{size}"), content(size));
        tar = tar.pax(&[("SCHILY.xattr.user.x", &content(3500))]).file(&format!("heavy{size}"), content(size));
        if (1..4096).contains(&size) {
            let target = vec![b'a'; size];
            tar = tar.pax(&[("linkpath", &target)]).symlink(&format!("link{size}"), "x");
        }
    }
    compare(&TestStore::new(), &[tar.done()]);
}

#[test]
fn layers_are_merged_as_overlayfs_merges_them() {
    let lower = Tar::new()
        .file("gone", "")
        .file("both", "old")
        .file("dir/kept", "kept")
        .file("dir/gone", "")
        .file("opaque/old", "")
        .file("first", "linked")
        .hard_link("second", "first")
        .hard_link("third", "first")
        .done();
    let middle = Tar::new().file("dir/middle", "").file(".wh.nothing", "").file("dir/.wh.nothing", "").done();
    let upper = Tar::new()
        .file(".wh.gone", "")
        .file("both", "new")
        .file("dir/.wh.gone", "")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/new", "")
        .file(".wh.second", "")
        .hard_link("dir/fourth", "third")
        .done();
    let test = TestStore::new();
    let image = test.load(&[lower, middle, upper]).unwrap();
    for format in FORMATS {
        let disk = test.store.disk(&image, format).unwrap();
        check(&disk, format);
        let Some(mounted) = mount(&disk, format) else { continue };
        let (found, links) = tree(&mounted);
        let names: Vec<_> = found.keys().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["", "both", "dir", "dir/fourth", "dir/kept", "dir/middle", "first", "opaque", "opaque/new", "third"]
        );
        // `second` is gone and `third` was copied up, so of three names of `first` one is left.
        assert_eq!(links, [["dir/fourth", "third"].map(PathBuf::from)]);
        assert_eq!(found[Path::new("first")].2, 1);
    }
}

/// What one layer alone hides below itself is nothing, and must not show.
#[test]
fn whiteouts_of_the_lowest_layer_vanish() {
    let test = TestStore::new();
    let image = test.load(&[Tar::new().file("a", "").file(".wh.b", "").file("dir/.wh.c", "").done()]).unwrap();
    for format in FORMATS {
        let disk = test.store.disk(&image, format).unwrap();
        check(&disk, format);
        let Some(mounted) = mount(&disk, format) else { continue };
        let names: Vec<_> = tree(&mounted).0.into_keys().collect();
        assert_eq!(names, ["", "a", "dir"].map(PathBuf::from));
    }
}

#[test]
fn large_directories() {
    let mut tar = Tar::new();
    for number in 0..5_000 {
        tar = tar.file(&format!("big/{number}"), "").file(&format!("long/{number:0>90}"), number.to_string());
    }
    // Names that sort before `.` and between `.` and `..`.
    tar = tar.file("big/!", "").file("big/.-", "").file("big/...", "").file("big/.a", "");
    let test = TestStore::new();
    for (_, mounted) in compare(&test, &[tar.done()]) {
        for name in ["big/4999", "big/0", "big/!", "big/...", "big/.-"] {
            assert!(openat(&mounted, name, OFlags::RDONLY, Mode::empty()).is_ok(), "{name}");
        }
        for name in ["big/5000", "big/\"", "big/....", "long/1"] {
            assert_eq!(openat(&mounted, name, OFlags::RDONLY, Mode::empty()).unwrap_err(), rustix::io::Errno::NOENT);
        }
    }
}

#[test]
fn holes_stay_holes() {
    let block = [9; 512];
    let sparse = |name: &'static str, size: &[u8], offset: &[u8]| {
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", size),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", offset),
                ("GNU.sparse.numbytes", b"512"),
                ("GNU.sparse.offset", size),
                ("GNU.sparse.numbytes", b"0"),
            ])
            .file(name, block)
    };
    let one = |name, size, offset| sparse(name, size, offset).done();
    let layers = [
        one("middle", b"10000000", b"5000000"),
        one("front", b"10000001", b"0"),
        one("end", b"10000512", b"10000000"),
        // So large that its chunks are larger than a block.
        one("huge", b"17179869184", b"8589934592"),
        Tar::new().pax(&[("GNU.sparse.size", b"70000"), ("GNU.sparse.numblocks", b"0")]).file("hollow", "").done(),
    ];
    let test = TestStore::new();
    for (disk, mounted) in compare(&test, &layers) {
        let stat = fs::metadata(&disk).unwrap();
        assert!(stat.len() < 64 << 20, "the disk has {} bytes", stat.len());
        for (name, data) in [("middle", 5_000_000), ("huge", 8_589_934_592), ("end", 10_000_000)] {
            let file = openat(&mounted, name, OFlags::RDONLY, Mode::empty()).unwrap();
            let mut found = [0; 512];
            let at = seek(&file, SeekFrom::Data(0)).unwrap();
            assert!(at > 0 && at <= data, "{name}: data at {at}");
            fs::File::from(file).read_exact_at(&mut found, data).unwrap();
            assert_eq!(found, block, "{name}");
        }
        let hollow = openat(&mounted, "hollow", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(seek(&hollow, SeekFrom::Hole(0)).unwrap(), 0);
    }
}

/// As many extents as need a tree of two levels.
#[test]
fn files_with_many_holes() {
    let number = |value: u64| value.to_string().into_bytes();
    let count = 1_500;
    let sizes = [number(count * 8192), number(count), number(4096)];
    let offsets: Vec<_> = (0..count).map(|index| number(index * 8192)).collect();
    let mut records: Vec<(&str, &[u8])> = vec![("GNU.sparse.size", &sizes[0]), ("GNU.sparse.numblocks", &sizes[1])];
    for offset in &offsets {
        records.extend([("GNU.sparse.offset", &offset[..]), ("GNU.sparse.numbytes", &sizes[2])]);
    }
    let content: Vec<u8> = (0..count * 4096).map(|index| (index / 4096 + index % 251) as u8).collect();
    compare(&TestStore::new(), &[Tar::new().pax(&records).file("comb", content).done()]);
}

/// More than one group of ext4's, by its blocks and by its inodes.
#[test]
fn large_disks() {
    let content: Vec<u8> = (0..150 << 8).flat_map(|block| [block as u8; 4096]).collect();
    compare(&TestStore::new(), &[Tar::new().file("large", content).file("small", "after it").done()]);
    let many = (0..33_000).fold(Tar::new(), |tar, number| tar.file(&format!("{}/{number}", number % 100), ""));
    compare(&TestStore::new(), &[many.done()]);
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let layers = [Tar::new().file("b", "b").file("a", "a").dir("d").hard_link("c", "a").done()];
    let [one, two] = [(); 2].map(|()| {
        let test = TestStore::new();
        let image = test.load(&layers).unwrap();
        FORMATS.map(|format| fs::read(test.store.disk(&image, format).unwrap()).unwrap())
    });
    assert!(one == two);
}

#[test]
fn a_disk_is_made_once_and_goes_with_its_image() {
    let test = TestStore::new();
    let base = Tar::new().file("base", "").done();
    let image = test.load(std::slice::from_ref(&base)).unwrap();
    let disk = test.store.disk(&image, DiskFormat::Erofs).unwrap();
    let inode = fs::metadata(&disk).unwrap().ino();
    assert_eq!(fs::metadata(test.store.disk(&image, DiskFormat::Erofs).unwrap()).unwrap().ino(), inode);
    assert_eq!(fs::metadata(&disk).unwrap().mode() & 0o777, 0o600);

    // An image on top of it takes the name; a container still uses the old one.
    let second = test.load(&[base, Tar::new().file("top", "").done()]).unwrap();
    let second_disk = test.store.disk(&second, DiskFormat::Ext4).unwrap();
    let used = berth_images::Use {
        user: "c".to_owned(),
        manifest: image.manifest_digest.to_string(),
        layers: test.store.lower_dirs(&image).unwrap(),
    };
    test.store.prune(false, || Ok(vec![used])).unwrap();
    assert!(disk.exists() && second_disk.exists());

    // The layer stays for the second image, the disk of the layer alone does not.
    let removed = test.store.prune(false, || Ok(Vec::new())).unwrap();
    assert!(!disk.exists() && second_disk.exists());
    assert!(removed.reclaimed >= 4096);
    test.store.remove("test", false, || Ok(Vec::new())).unwrap();
    assert!(!second_disk.exists());
    test.assert_untouched();
}

#[test]
fn two_at_once_make_one_disk() {
    let test = TestStore::new();
    let tar = (0..2_000).fold(Tar::new(), |tar, number| tar.file(&format!("f{number}"), "x")).done();
    let image = test.load(&[tar]).unwrap();
    let disks = std::thread::scope(|scope| {
        let threads = [(); 4]
            .map(|()| scope.spawn(|| fs::File::open(test.store.disk(&image, DiskFormat::Erofs).unwrap()).unwrap()));
        threads.map(|thread| thread.join().unwrap().metadata().unwrap().ino())
    });
    assert!(disks.iter().all(|inode| *inode == disks[0]));
    assert_eq!(fs::read_dir(test.images().join("ingest")).unwrap().count(), 0);
}

#[test]
fn names_are_compared_as_bytes() {
    let name = std::ffi::OsStr::from_bytes(b"\xe9t\xe9");
    let layer = Tar::new().pax(&[("path", name.as_bytes())]).file("x", "").file("z", "").done();
    for (_, mounted) in compare(&TestStore::new(), &[layer]) {
        assert!(openat(&mounted, name, OFlags::RDONLY, Mode::empty()).is_ok());
    }
}
