use std::fs;
use std::io::Cursor;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::*;

/// A host directory and a container's root, side by side.
struct Sides {
    dir: tempfile::TempDir,
}

impl Sides {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for side in ["host", "root"] {
            fs::create_dir(dir.path().join(side)).unwrap();
        }
        Self { dir }
    }

    fn host(&self, path: &str) -> PathBuf {
        self.dir.path().join("host").join(path)
    }

    fn root(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    fn place(&self) -> Place {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Place::below(rustix::fs::open(self.root(""), flags, Mode::empty()).unwrap(), 0)
    }

    fn copy_in(&self, source: &str, destination: &str) -> Result<()> {
        let source = self.dir.path().join("host").to_str().unwrap().to_owned() + "/" + source;
        let (place, destination) = (self.place(), Path::new(destination));
        let owner = place.root_owner();
        copy(&Place::host(), Path::new(&source), &place, destination, destination, How::default(), owner)
    }

    fn copy_out(&self, source: &str, destination: &str) -> Result<()> {
        let destination = self.dir.path().join("host").to_str().unwrap().to_owned() + "/" + destination;
        let (host, destination) = (Place::host(), Path::new(&destination));
        let owner = host.root_owner();
        copy(&self.place(), Path::new(source), &host, destination, destination, How::default(), owner)
    }
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_file_goes_where_docker_puts_it() {
    let sides = Sides::new();
    fs::write(sides.host("file"), "new").unwrap();
    fs::create_dir(sides.root("dir")).unwrap();
    fs::write(sides.root("old"), "old").unwrap();
    for destination in ["/fresh", "/dir", "/dir/", "/old", "/dir/../up"] {
        sides.copy_in("file", destination).unwrap();
    }
    for path in ["fresh", "dir/file", "old", "up"] {
        assert_eq!(text(sides.root(path)), "new", "{path}");
    }
    for bad in ["/missing/", "/missing/file", "/old/", "/old/file"] {
        assert!(sides.copy_in("file", bad).is_err(), "{bad}");
    }
    assert!(sides.copy_in("file/", "/x").is_err());
    assert!(sides.copy_in("missing", "/x").unwrap_err().to_string().contains("does not exist"));
}

#[test]
fn a_directory_goes_where_docker_puts_it() {
    let sides = Sides::new();
    fs::create_dir_all(sides.host("tree/sub")).unwrap();
    fs::write(sides.host("tree/sub/file"), "x").unwrap();
    fs::create_dir(sides.root("dir")).unwrap();
    fs::create_dir(sides.root("flat")).unwrap();
    fs::write(sides.root("file"), "").unwrap();
    sides.copy_in("tree", "/fresh").unwrap();
    sides.copy_in("tree/", "/slash/").unwrap();
    sides.copy_in("tree", "/dir").unwrap();
    sides.copy_in("tree/.", "/flat").unwrap();
    sides.copy_in("tree/.", "/dots").unwrap();
    for path in ["fresh/sub/file", "slash/sub/file", "dir/tree/sub/file", "flat/sub/file", "dots/sub/file"] {
        assert_eq!(text(sides.root(path)), "x", "{path}");
    }
    assert!(sides.copy_in("tree", "/file").is_err());
    fs::write(sides.root("flat/tree"), "in the way").unwrap();
    assert!(sides.copy_in("tree", "/flat").is_err(), "a file is not replaced by a directory");
    fs::create_dir_all(sides.root("blocked/file")).unwrap();
    fs::write(sides.host("file"), "").unwrap();
    assert!(sides.copy_in("file", "/blocked").is_err(), "a directory is not replaced by a file");
}

#[test]
fn what_a_file_is_comes_along() {
    let sides = Sides::new();
    fs::create_dir(sides.root("tree")).unwrap();
    fs::write(sides.root("tree/tool"), "#!").unwrap();
    chown(sides.root("tree/tool"), Some(1234), Some(5678)).unwrap();
    fs::set_permissions(sides.root("tree/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(sides.root("tree/tool"), sides.root("tree/zlink")).unwrap();
    symlink("/etc/shadow", sides.root("tree/symlink")).unwrap();
    mknodat(CWD, sides.root("tree/fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::set_permissions(sides.root("tree/fifo"), fs::Permissions::from_mode(0o620)).unwrap();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000, 500);
    fs::File::open(sides.root("tree")).unwrap().set_modified(time).unwrap();

    sides.copy_out("/tree", "copy").unwrap();
    let tool = fs::metadata(sides.host("copy/tool")).unwrap();
    assert_eq!(tool.mode() & 0o7777, 0o4755);
    assert_eq!((tool.uid(), tool.gid()), (0, 0), "it belongs to the caller");
    assert_eq!(tool.ino(), fs::metadata(sides.host("copy/zlink")).unwrap().ino());
    assert_eq!(fs::read_link(sides.host("copy/symlink")).unwrap(), Path::new("/etc/shadow"));
    let fifo = fs::metadata(sides.host("copy/fifo")).unwrap();
    assert_eq!((fifo.mode() & libc::S_IFMT, fifo.mode() & 0o7777), (libc::S_IFIFO, 0o620));
    assert_eq!(fs::metadata(sides.host("copy")).unwrap().modified().unwrap(), time);

    let place = sides.place();
    let from = place.target(Path::new("/tree/tool"), false).unwrap();
    let host = Place::host();
    let mut sink = tree::Writer::new(&host, &sides.host(""), Owner::Kept { shift: 0 });
    tree::read(&place, &from, Path::new("kept"), &mut sink).unwrap();
    sink.finish().unwrap();
    let kept = fs::metadata(sides.host("kept")).unwrap();
    assert_eq!((kept.uid(), kept.gid(), kept.mode() & 0o7777), (1234, 5678, 0o4755));
}

#[test]
fn symlinks_in_a_container_stay_in_it() {
    let sides = Sides::new();
    fs::write(sides.host("file"), "new").unwrap();
    fs::write(sides.host("secret"), "secret").unwrap();
    let outside = sides.host("");
    symlink(&outside, sides.root("absolute")).unwrap();
    symlink("../../../../../..", sides.root("climbs")).unwrap();
    symlink(outside.join("secret"), sides.root("to-secret")).unwrap();
    symlink("/proc/self/root", sides.root("magic")).unwrap();

    assert!(sides.copy_in("file", "/absolute/file").is_err(), "there is no such directory in the container");
    sides.copy_in("file", "/climbs/landed").unwrap();
    assert_eq!(text(sides.root("landed")), "new");
    // Where the link points to does not exist in the container.
    assert!(sides.copy_in("file", "/to-secret").is_err());
    assert!(sides.copy_in("file", "/magic/file").is_err());
    assert_eq!(text(sides.host("secret")), "secret");
    sides.copy_out("/to-secret", "stolen").unwrap();
    assert!(fs::symlink_metadata(sides.host("stolen")).unwrap().is_symlink(), "the link is copied, not the file");
    assert!(sides.copy_out("/to-secret/", "x").is_err());
    assert!(sides.copy_out("/absolute/secret", "x").is_err());
}

#[test]
fn a_link_within_the_container_is_followed_to_its_end() {
    let sides = Sides::new();
    fs::write(sides.host("file"), "new").unwrap();
    fs::create_dir_all(sides.root("usr/lib")).unwrap();
    symlink("/usr/lib", sides.root("lib")).unwrap();
    symlink("usr/lib/target", sides.root("link")).unwrap();
    symlink("loop", sides.root("loop")).unwrap();
    sides.copy_in("file", "/lib").unwrap();
    sides.copy_in("file", "/link").unwrap();
    assert_eq!(text(sides.root("usr/lib/file")), "new");
    assert_eq!(text(sides.root("usr/lib/target")), "new");
    assert!(fs::symlink_metadata(sides.root("link")).unwrap().is_symlink());
    assert!(sides.copy_in("file", "/loop").is_err());
}

#[test]
fn no_link_on_the_host_is_followed_while_writing() {
    let sides = Sides::new();
    fs::create_dir_all(sides.host("victim")).unwrap();
    fs::create_dir_all(sides.root("tree/sub")).unwrap();
    fs::write(sides.root("tree/sub/file"), "planted").unwrap();
    fs::create_dir(sides.host("copy")).unwrap();
    symlink(sides.host("victim"), sides.host("copy/sub")).unwrap();
    assert!(sides.copy_out("/tree/.", "copy").is_err());
    assert_eq!(fs::read_dir(sides.host("victim")).unwrap().count(), 0);
}

#[test]
fn devices_in_the_place_of_a_file_are_replaced_not_written() {
    let sides = Sides::new();
    fs::write(sides.host("file"), "new").unwrap();
    mknodat(CWD, sides.root("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    sides.copy_in("file", "/fifo").unwrap();
    assert_eq!(text(sides.root("fifo")), "new");
}

#[test]
fn a_stream_goes_round() {
    let sides = Sides::new();
    fs::create_dir_all(sides.root("tree/sub")).unwrap();
    fs::write(sides.root("tree/sub/file"), "x".repeat(100_000)).unwrap();
    fs::hard_link(sides.root("tree/sub/file"), sides.root("tree/sub/second")).unwrap();
    let long = "n".repeat(200);
    symlink(&long, sides.root(&format!("tree/{long}"))).unwrap();
    chown(sides.root("tree/sub/file"), Some(1234), Some(5678)).unwrap();
    let place = sides.place();
    let mut stream = Vec::new();
    let mut sink = archive::Writer::new(&mut stream);
    let from = place.target(Path::new("/tree"), false).unwrap();
    tree::read(&place, &from, Path::new("tree"), &mut sink).unwrap();
    sink.finish().unwrap();
    drop(sink);

    fs::create_dir(sides.root("again")).unwrap();
    let mut sink = tree::Writer::new(&place, Path::new("/again"), Owner::Kept { shift: 0 });
    archive::read(&mut Cursor::new(stream), &mut sink).unwrap();
    sink.finish().unwrap();
    let file = fs::metadata(sides.root("again/tree/sub/file")).unwrap();
    assert_eq!((file.len(), file.uid(), file.gid(), file.nlink()), (100_000, 1234, 5678, 2));
    assert_eq!(fs::read_link(sides.root(&format!("again/tree/{long}"))).unwrap(), Path::new(&long));
}

#[test]
fn a_stream_cannot_climb() {
    let sides = Sides::new();
    fs::create_dir(sides.root("dir")).unwrap();
    let place = sides.place();
    let unpack = |name: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_size(1);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder.append(&header, &b"x"[..]).unwrap();
        let stream = builder.into_inner().unwrap();
        let mut sink = tree::Writer::new(&place, Path::new("/dir"), Owner::Kept { shift: 0 });
        archive::read(&mut Cursor::new(stream), &mut sink)
    };
    assert!(unpack(b"../up").is_err());
    assert!(unpack(b"a/../../up").is_err());
    unpack(b"/absolute").unwrap();
    unpack(b"implied/directory/file").unwrap();
    assert!(!sides.root("up").exists());
    assert_eq!(text(sides.root("dir/absolute")), "x");
    assert_eq!(text(sides.root("dir/implied/directory/file")), "x");
}

#[test]
fn a_broken_stream_is_an_error() {
    let sides = Sides::new();
    let place = sides.place();
    for stream in [vec![0xff; 1024], b"short".repeat(200)] {
        let mut sink = tree::Writer::new(&place, Path::new("/"), Owner::Kept { shift: 0 });
        assert!(archive::read(&mut Cursor::new(stream), &mut sink).is_err());
    }
}
