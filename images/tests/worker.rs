//! The unpacking process, and what a kill leaves. This program plays three parts: the tests, the unpacking process
//! (`__unpack`), and a `berth import` that can be killed (`import DATA-ROOT`, the archive on standard input).

#[path = "images/support.rs"]
#[allow(dead_code, reason = "the other test program uses the rest")]
mod support;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use berth_images::{DiskFormat, ImportOptions, LoadOptions, Store, UNPACK_COMMAND, Unpacker, unpack_worker_main};
use support::{Tar, gzip};

fn main() -> ExitCode {
    // As `berth` has it: a broken pipe inside the store would end it.
    // SAFETY: the default action runs no code of this program.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some(UNPACK_COMMAND) => unpack_worker_main(&arguments[2]),
        Some("import") => {
            let store = Store::open(Path::new(&arguments[2])).unwrap();
            store.import(std::io::stdin(), Some("killed"), &ImportOptions::default()).unwrap();
            ExitCode::SUCCESS
        }
        _ => {
            let tests: [(&str, fn()); 8] = [
                ("layers_unpack_in_a_process", layers_unpack_in_a_process),
                ("many_layers", many_layers),
                ("disks_are_made_in_a_process", disks_are_made_in_a_process),
                ("a_disk_that_does_not_fit", a_disk_that_does_not_fit),
                ("errors_come_back_from_the_process", errors_come_back_from_the_process),
                ("a_program_that_is_not_berth", a_program_that_is_not_berth),
                ("killed_while_reading", killed_while_reading),
                ("killed_while_unpacking", killed_while_unpacking),
            ];
            for (name, test) in tests {
                test();
                println!("test {name} ... ok");
            }
            ExitCode::SUCCESS
        }
    }
}

fn layers_unpack_in_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let lower = Tar::new()
        .with("own/", b'5', "", b"", |header| {
            header.set_uid(5);
            header.set_mode(0o2750);
        })
        .with("own/suid", b'0', "", b"x", |header| {
            header.set_uid(6);
            header.set_mode(0o4711);
        })
        .entry("null", b'3', "", 0o666, b"")
        .done();
    let upper = Tar::new()
        .hard_link("linked", "own/suid")
        .file("own/.wh..wh..opq", "")
        .pax(&[("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])])
        .file("capable", "")
        .done();
    let folder = tempfile::tempdir().unwrap();
    support::write_layout(folder.path(), "a:latest", &[gzip(&lower), gzip(&upper)]);
    store.load(folder.path(), &LoadOptions::default()).unwrap();
    let dirs = store.lower_dirs(&store.resolve("a").unwrap()).unwrap();
    let stat = |path: &str| std::fs::symlink_metadata(dirs[0].join(path)).unwrap();
    assert_eq!((stat("linked").uid(), stat("linked").mode() & 0o7777, stat("linked").nlink()), (6, 0o4711, 2));
    assert_eq!((stat("own").uid(), stat("own").mode() & 0o7777), (5, 0o2750));
    let mut value = [0; 64];
    assert_eq!(rustix::fs::lgetxattr(dirs[0].join("own"), "trusted.overlay.opaque", &mut value[..]).unwrap(), 1);
    assert_eq!(rustix::fs::lgetxattr(dirs[0].join("capable"), "security.capability", &mut value[..]).unwrap(), 20);
}

/// Each links to a file of the layer below, so all wait for each other and see each other's directories.
fn many_layers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let layers: Vec<_> = (0..127)
        .map(|number| {
            let tar = Tar::new().file(&format!("f{number}"), "x");
            match number {
                0 => tar.done(),
                _ => tar.hard_link(&format!("l{number}"), &format!("f{}", number - 1)).done(),
            }
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    support::write_layout(folder.path(), "a:latest", &layers);
    store.load(folder.path(), &LoadOptions::default()).unwrap();
    let dirs = store.lower_dirs(&store.resolve("a").unwrap()).unwrap();
    assert_eq!(std::fs::metadata(dirs[0].join("l126")).unwrap().nlink(), 2);
}

/// With files that only their owners may read, and more than one layer, so that the tree is an overlay.
fn disks_are_made_in_a_process() {
    let secret = Tar::new().with("secret", b'0', "", &[5; 10_000], |header| {
        header.set_uid(7);
        header.set_mode(0o400);
    });
    let private = Tar::new().with("private/", b'5', "", b"", |header| {
        header.set_uid(7);
        header.set_mode(0o700);
    });
    let layers = [secret.done(), private.file("private/x", "x").hard_link("y", "secret").done()];
    let formats = [DiskFormat::Erofs, DiskFormat::Ext4];
    let [apart, here] = [None, Some(Unpacker::InProcess)].map(|unpacker| {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        if let Some(unpacker) = unpacker {
            store = store.with_unpacker(unpacker);
        }
        for count in 1..=layers.len() {
            let folder = tempfile::tempdir().unwrap();
            support::write_layout(folder.path(), "a:latest", &layers[..count]);
            store.load(folder.path(), &LoadOptions::default()).unwrap();
            let _ = formats.map(|format| store.disk(&store.resolve("a").unwrap(), format).unwrap());
        }
        formats.map(|format| std::fs::read(store.disk(&store.resolve("a").unwrap(), format).unwrap()).unwrap())
    });
    assert!(apart == here);
    assert!(here.iter().all(|disk| disk.windows(100).any(|window| window == [5; 100])));
}

fn a_disk_that_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    support::write_layout(folder.path(), "a:latest", &[Tar::new().file("x", "x").done()]);
    store.load(folder.path(), &LoadOptions::default()).unwrap();
    let limits = berth_images::Limits { min_free: u64::MAX / 2, ..Default::default() };
    let small = store.clone().with_limits(limits);
    for format in [DiskFormat::Erofs, DiskFormat::Ext4] {
        let error = small.disk(&small.resolve("a").unwrap(), format).unwrap_err().to_string();
        assert!(error.starts_with("cannot make a disk of image 'a:latest': no space is left on the disk"), "{error}");
    }
    assert_eq!((entries(dir.path(), "disks"), entries(dir.path(), "ingest")), (0, 0));
}

fn errors_come_back_from_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let layer = Tar::new().file("../x", "").done();
    let error = store.import(&layer[..], None, &ImportOptions::default()).unwrap_err().to_string();
    assert!(error.contains("'../x' leads out of the image"), "{error}");
    assert_clean(dir.path());
}

fn a_program_that_is_not_berth() {
    let dir = tempfile::tempdir().unwrap();
    for (program, reason) in [("/bin/true", "is /bin/true berth?"), ("/nonexistent", "cannot start /nonexistent")] {
        let store = Store::open(dir.path()).unwrap().with_unpacker(Unpacker::Process(program.into()));
        let layer = Tar::new().file("x", "").done();
        let error = store.import(&layer[..], None, &ImportOptions::default()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert_clean(dir.path());
    }
}

fn start_import(data_root: &Path) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new(program).arg("import").arg(data_root).stdin(Stdio::piped()).spawn().unwrap()
}

fn killed_while_reading() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Tar::new().file("big", vec![1; 4 << 20]).done();
    let mut import = start_import(dir.path());
    // More than a pipe holds, so the process is in the middle of it.
    import.stdin.as_mut().unwrap().write_all(&layer[..layer.len() / 2]).unwrap();
    assert!(entries(dir.path(), "ingest") > 0);
    import.kill().unwrap();
    import.wait().unwrap();
    assert!(entries(dir.path(), "ingest") > 0);
    assert_clean(dir.path());
}

fn killed_while_unpacking() {
    let dir = tempfile::tempdir().unwrap();
    // So many files that the process is still at it when the first one is seen.
    let layer = (0..60_000).fold(Tar::new(), |tar, number| tar.file(&format!("f{number}"), "x")).done();
    let mut import = start_import(dir.path());
    import.stdin.take().unwrap().write_all(&layer).unwrap();
    wait_until(|| {
        let ingest = std::fs::read_dir(dir.path().join("images/ingest")).unwrap();
        ingest.filter_map(Result::ok).any(|entry| entry.path().join("fs/f0").exists())
    });
    import.kill().unwrap();
    import.wait().unwrap();
    // The unpacking process dies with its parent; until it is gone, its directory is not anybody else's to remove.
    wait_until(|| {
        Store::open(dir.path()).unwrap().sweep().unwrap();
        entries(dir.path(), "ingest") == 0
    });
    assert_clean(dir.path());
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_mins(1), "waited for too long");
        std::thread::yield_now();
    }
}

fn entries(data_root: &Path, directory: &str) -> usize {
    std::fs::read_dir(data_root.join("images").join(directory)).map_or(0, Iterator::count)
}

/// A sweep is enough to have nothing left.
fn assert_clean(data_root: &Path) {
    let store = Store::open(data_root).unwrap();
    store.sweep().unwrap();
    assert_eq!(store.list().unwrap(), []);
    for directory in ["ingest", "layers", "blobs/sha256"] {
        assert_eq!(entries(data_root, directory), 0, "left in {directory}");
    }
}
