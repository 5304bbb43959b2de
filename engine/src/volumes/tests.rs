//! Volumes on a real file system: made, filled, used, removed. They run as root, for devices and ownership.

use std::ffi::CString;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::sync::Barrier;

use oci_spec::image::ImageConfiguration;
use rustix::fs::{FileType, Mode, XattrFlags};

use super::*;
use crate::options::{Mount, MountSource, Options};

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        Self { dir, store }
    }

    /// Two layers; the upper one removes `data/gone`, changes `data/file` and links `data/hard`.
    fn layers(&self) -> Vec<PathBuf> {
        let (top, base) = (self.dir.path().join("top"), self.dir.path().join("base"));
        fs::create_dir_all(base.join("data/sub")).unwrap();
        fs::write(base.join("data/file"), "old").unwrap();
        fs::write(base.join("data/gone"), "gone").unwrap();
        fs::write(base.join("data/sub/kept"), "kept").unwrap();
        symlink("/data/sub/../file", base.join("data/link")).unwrap();
        fs::create_dir_all(top.join("data")).unwrap();
        fs::write(top.join("data/file"), "new").unwrap();
        fs::hard_link(top.join("data/file"), top.join("data/hard")).unwrap();
        rustix::fs::mknodat(CWD, top.join("data/gone"), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        vec![top, base]
    }

    fn resolve(&self, mounts: Vec<Mount>, image: &ImageConfiguration, layers: &[PathBuf]) -> (Options, Resolved) {
        let mut options = Options { mounts, ..Options::default() };
        let resolved = self.store.resolve("c1", &mut options, image, layers).unwrap();
        (options, resolved)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.store.path(name).join(DATA)
    }
}

fn image(config: &serde_json::Value) -> ImageConfiguration {
    serde_json::from_value(serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": config, "rootfs": { "type": "layers", "diff_ids": [] },
    }))
    .unwrap()
}

fn plain() -> ImageConfiguration {
    image(&serde_json::json!({}))
}

fn volume(name: Option<&str>, target: &str) -> Mount {
    let source = MountSource::Volume { name: name.map(str::to_owned), no_copy: false };
    Mount { target: target.to_owned(), source, read_only: false }
}

type Users = Result<Vec<String>, Error>;

#[allow(clippy::unnecessary_wraps, reason = "the type of such a function")]
fn nobody(_: &str) -> Users {
    Ok(Vec::new())
}

fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn names_follow_dockers_syntax() {
    for good in ["ab", "A1", "a_b.c-d", &"x".repeat(255)] {
        check_name(good).unwrap();
    }
    for bad in ["", "a", ".a", "-a", "_a", "a/b", "..", "a b", "é1", "a\0", &"x".repeat(256), &"x".repeat(1 << 20)] {
        assert!(matches!(check_name(bad), Err(Error::Name { .. })), "{bad}");
    }
}

#[test]
fn a_volume_is_made_listed_and_removed() {
    let fixture = Fixture::new();
    assert!(fixture.store.list().unwrap().is_empty());
    let labels: BTreeMap<_, _> = [(String::from("a"), String::from("1"))].into();
    let made = fixture.store.create(Some("data"), labels.clone()).unwrap();
    assert_eq!((made.name.as_str(), &made.labels, &made.container), ("data", &labels, &None));
    assert!(made.mountpoint.is_dir());
    // Making it again changes nothing.
    fs::write(made.mountpoint.join("x"), "x").unwrap();
    let again = fixture.store.create(Some("data"), BTreeMap::new()).unwrap();
    assert_eq!(again, made);
    let other = fixture.store.create(None, BTreeMap::new()).unwrap();
    assert_eq!(other.name.len(), 64);
    assert_eq!(fixture.store.list().unwrap().len(), 2);
    fixture.store.remove("data", nobody).unwrap();
    assert!(matches!(fixture.store.get("data"), Err(Error::NotFound { .. })));
    assert!(matches!(fixture.store.remove("data", nobody), Err(Error::NotFound { .. })));
    assert!(matches!(fixture.store.remove("../x", nobody), Err(Error::Name { .. })));
    assert_eq!(names(&fixture.store.root), [other.name]);
}

#[test]
fn many_at_once_make_one_volume() {
    let fixture = Fixture::new();
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                fixture.store.create(Some("data"), BTreeMap::new()).unwrap();
            });
        }
    });
    assert_eq!(names(&fixture.store.root), ["data"]);
}

#[test]
fn a_new_volume_is_filled_from_the_layers() {
    let fixture = Fixture::new();
    let layers = fixture.layers();
    let (_, resolved) = fixture.resolve(vec![volume(Some("vol"), "/data")], &plain(), &layers);
    let data = fixture.data("vol");
    assert_eq!(resolved.mounts[0].source, ResolvedSource::Path { path: data.clone(), propagation: None, idmap: true });
    assert!(resolved.anonymous.is_empty());
    assert_eq!(names(&data), ["file", "hard", "link", "sub"]);
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "new");
    assert_eq!(fs::read_to_string(data.join("sub/kept")).unwrap(), "kept");
    assert_eq!(fs::read_link(data.join("link")).unwrap(), Path::new("/data/sub/../file"));
    assert_eq!(fs::metadata(data.join("file")).unwrap().ino(), fs::metadata(data.join("hard")).unwrap().ino());
    assert_eq!(names(&fixture.store.path("vol")), [DATA, META]);
    assert!(fixture.store.get("vol").unwrap().used);
}

#[test]
fn attributes_holes_and_special_files_are_kept() {
    let fixture = Fixture::new();
    let layer = fixture.dir.path().join("layer");
    let source = layer.join("data");
    fs::create_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("tool"), "tool").unwrap();
    std::os::unix::fs::chown(source.join("tool"), Some(1000), Some(2000)).unwrap();
    fs::set_permissions(source.join("tool"), fs::Permissions::from_mode(0o6755)).unwrap();
    let xattr = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    xattr(&source.join("tool"), "trusted.berth", b"\0value");
    xattr(&source.join("dir"), "trusted.overlay.opaque", b"y");
    // Version 2, effective, CAP_NET_RAW; see capabilities(7).
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fs::write(source.join("ping"), "ping").unwrap();
    xattr(&source.join("ping"), "security.capability", &capability);
    let sparse = File::create(source.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"end", 8 << 20).unwrap();
    sparse.set_len(16 << 20).unwrap();
    rustix::fs::mknodat(CWD, source.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    rustix::fs::mknodat(
        CWD,
        source.join("null"),
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    fs::set_permissions(source.join("null"), fs::Permissions::from_mode(0o666)).unwrap();
    symlink("nowhere", source.join("dangling")).unwrap();
    std::os::unix::fs::lchown(source.join("dangling"), Some(5), Some(6)).unwrap();
    let time = |path: &str| {
        let path = CString::new(source.join(path).to_str().unwrap()).unwrap();
        let at = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
        let times = rustix::fs::Timestamps { last_access: at, last_modification: at };
        rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    };
    ["tool", "dangling", "fifo", "dir", "."].into_iter().for_each(time);
    fs::set_permissions(&source, fs::Permissions::from_mode(0o2770)).unwrap();

    fixture.resolve(vec![volume(Some("vol"), "/data")], &plain(), &[layer]);

    let data = fixture.data("vol");
    let stat = |path: &str| fs::symlink_metadata(data.join(path)).unwrap();
    let tool = stat("tool");
    assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777), (1000, 2000, 0o6755));
    for path in ["tool", "dangling", "fifo", "dir", "."] {
        assert_eq!((stat(path).mtime(), stat(path).mtime_nsec()), (1_000_000_000, 123_456_789), "{path}");
    }
    let read = |path: &str, name: &str| {
        let mut value = [0; 64];
        rustix::fs::lgetxattr(data.join(path), name, value.as_mut_slice()).map(|length| value[..length].to_vec())
    };
    assert_eq!(read("tool", "trusted.berth").unwrap(), b"\0value");
    assert_eq!(read("ping", "security.capability").unwrap(), capability);
    assert_eq!(read("dir", "trusted.overlay.opaque"), Err(rustix::io::Errno::NODATA));
    assert_eq!((stat("sparse").len(), stat("sparse").blocks() < 1024), (16 << 20, true));
    let mut end = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(data.join("sparse")).unwrap(), &mut end, 8 << 20).unwrap();
    assert_eq!(&end, b"end");
    assert!(stat("fifo").file_type().is_fifo() && stat("fifo").mode() & 0o7777 == 0o640);
    assert!(stat("null").file_type().is_char_device() && stat("null").rdev() == rustix::fs::makedev(1, 3));
    assert_eq!(stat("null").mode() & 0o7777, 0o666);
    assert_eq!((stat("dangling").uid(), stat("dangling").gid()), (5, 6));
    assert_eq!(stat(".").mode() & 0o7777, 0o2770);
}

#[test]
fn links_in_the_image_do_not_lead_out_of_it() {
    let fixture = Fixture::new();
    let layer = fixture.dir.path().join("layer");
    let outside = fixture.dir.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::create_dir_all(layer.join("real")).unwrap();
    fs::write(layer.join("real/file"), "file").unwrap();
    symlink(&outside, layer.join("absolute")).unwrap();
    symlink("../../../../../../../../../real", layer.join("inside")).unwrap();
    let mounts = vec![volume(Some("v1"), "/absolute"), volume(Some("v2"), "/inside"), volume(Some("v3"), "/missing")];
    fixture.resolve(mounts, &plain(), &[layer]);
    assert!(names(&fixture.data("v1")).is_empty());
    assert_eq!(names(&fixture.data("v2")), ["file"]);
    assert!(names(&fixture.data("v3")).is_empty());
}

#[test]
fn only_a_new_volume_is_filled_and_nocopy_never() {
    let fixture = Fixture::new();
    let layers = fixture.layers();
    let no_copy = MountSource::Volume { name: Some(String::from("bare")), no_copy: true };
    let bare = Mount { target: String::from("/data"), source: no_copy, read_only: false };
    fixture.resolve(vec![bare, volume(Some("vol"), "/data")], &plain(), &layers);
    assert!(names(&fixture.data("bare")).is_empty());
    fs::remove_dir_all(fixture.data("vol").join("sub")).unwrap();
    fixture.resolve(vec![volume(Some("vol"), "/data")], &plain(), &layers);
    assert_eq!(names(&fixture.data("vol")), ["file", "hard", "link"]);
    // What a person put there before the first container stays.
    fixture.store.create(Some("mine"), BTreeMap::new()).unwrap();
    fs::write(fixture.data("mine").join("own"), "").unwrap();
    fixture.resolve(vec![volume(Some("mine"), "/data")], &plain(), &layers);
    assert_eq!(names(&fixture.data("mine")), ["own"]);
}

#[test]
fn a_cut_short_copy_is_begun_anew() {
    let fixture = Fixture::new();
    let layers = fixture.layers();
    fixture.store.create(Some("vol"), BTreeMap::new()).unwrap();
    let half = fixture.store.path("vol").join("_data.tmp");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("half"), "half").unwrap();
    fixture.resolve(vec![volume(Some("vol"), "/data")], &plain(), &layers);
    assert_eq!(names(&fixture.data("vol")), ["file", "hard", "link", "sub"]);
    assert!(!half.exists());
}

#[test]
fn a_file_in_the_volumes_place_is_an_error() {
    let fixture = Fixture::new();
    let layers = fixture.layers();
    let mut options = Options { mounts: vec![volume(Some("vol"), "/data/file")], ..Options::default() };
    let error = fixture.store.resolve("c1", &mut options, &plain(), &layers).unwrap_err();
    assert!(matches!(error, Error::NotADirectory { .. }), "{error}");
}

#[test]
fn image_volumes_become_anonymous_unless_covered() {
    let fixture = Fixture::new();
    let layers = fixture.layers();
    let image = image(&serde_json::json!({ "Volumes": { "/data": {}, "/cache/": {}, "/new": {} } }));
    let tmpfs = Mount { target: "/cache".into(), source: MountSource::Tmpfs { options: Vec::new() }, read_only: false };
    let (options, resolved) = fixture.resolve(vec![tmpfs, volume(None, "/extra")], &image, &layers);
    let targets: Vec<_> = resolved.mounts.iter().map(|mount| mount.target.as_str()).collect();
    assert_eq!(targets, ["/cache", "/extra", "/data", "/new"]);
    assert_eq!(resolved.anonymous.len(), 3);
    assert!(options.mounts.iter().all(|mount| !matches!(mount.source, MountSource::Volume { name: None, .. })));
    for name in &resolved.anonymous {
        assert_eq!(fixture.store.get(name).unwrap().container.as_deref(), Some("c1"));
    }
    drop(resolved);
    fixture.store.create(Some("named"), BTreeMap::new()).unwrap();
    fixture.store.remove_of_container("other").unwrap();
    assert_eq!(fixture.store.list().unwrap().len(), 4);
    fixture.store.remove_of_container("c1").unwrap();
    assert_eq!(names(&fixture.store.root), ["named"]);
}

#[test]
fn bind_sources_are_made_or_refused() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("a/b");
    let bind = |create| Mount {
        target: String::from("/data"),
        source: MountSource::Bind {
            path: path.clone(),
            create,
            propagation: Some(String::from("rslave")),
            idmap: false,
        },
        read_only: true,
    };
    let mut options = Options { mounts: vec![bind(false)], ..Options::default() };
    let error = fixture.store.resolve("c1", &mut options, &plain(), &[]).unwrap_err();
    assert!(matches!(error, Error::BindMissing { .. }), "{error}");
    let (_, resolved) = fixture.resolve(vec![bind(true)], &plain(), &[]);
    assert!(path.is_dir());
    let source = ResolvedSource::Path { path, propagation: Some(String::from("rslave")), idmap: false };
    assert_eq!(resolved.mounts, [ResolvedMount { target: "/data".into(), source, read_only: true }]);
}

#[test]
fn a_volume_in_use_is_not_removed() {
    let fixture = Fixture::new();
    let (_, resolved) = fixture.resolve(vec![volume(Some("vol"), "/data")], &plain(), &[]);
    assert!(matches!(fixture.store.remove("vol", nobody), Err(Error::InUse { .. })));
    drop(resolved);
    let error = fixture.store.remove("vol", |_| Users::Ok(vec![String::from("web")])).unwrap_err();
    assert!(error.to_string().contains("web"), "{error}");
    fixture.store.remove("vol", nobody).unwrap();
}

#[test]
fn prune_takes_anonymous_ones_and_with_all_the_rest() {
    let fixture = Fixture::new();
    let (options, resolved) = fixture.resolve(vec![volume(None, "/a"), volume(Some("used"), "/b")], &plain(), &[]);
    drop(resolved);
    let MountSource::Volume { name: Some(anonymous), .. } = &options.mounts[0].source else { panic!("{options:?}") };
    fixture.store.create(Some("free"), BTreeMap::new()).unwrap();
    let users = |name: &str| Users::Ok(if name == "used" { vec![String::from("web")] } else { Vec::new() });
    let gone = |all| fixture.store.prune(all, users).unwrap().into_iter().map(|volume| volume.name).collect::<Vec<_>>();
    assert_eq!(gone(false), [anonymous.as_str()]);
    assert_eq!(gone(true), ["free"]);
    assert_eq!(names(&fixture.store.root), ["used"]);
}

#[test]
fn debris_is_swept_but_not_work_under_way() {
    let fixture = Fixture::new();
    fixture.store.create(Some("vol"), BTreeMap::new()).unwrap();
    let half_gone = "ab".repeat(32);
    for name in [".new-1", ".old-2", &half_gone] {
        fs::create_dir_all(fixture.store.root.join(name).join(DATA)).unwrap();
    }
    let working = fixture.store.lock(FlockOperation::LockShared).unwrap();
    fixture.store.sweep().unwrap();
    assert_eq!(names(&fixture.store.root).len(), 4);
    drop(working);
    fixture.store.sweep().unwrap();
    assert_eq!(names(&fixture.store.root), ["vol"]);
}

#[test]
fn a_broken_record_is_an_error_that_names_it() {
    let fixture = Fixture::new();
    fixture.store.create(Some("vol"), BTreeMap::new()).unwrap();
    fs::write(fixture.store.path("vol").join(META), "{").unwrap();
    let error = fixture.store.get("vol").unwrap_err().to_string();
    assert!(error.contains("vol/volume.json") && error.contains("berth volume rm vol"), "{error}");
    // It stands in nobody's way and can be removed.
    fixture.store.list().unwrap_err();
    fixture.store.remove_of_container("c1").unwrap();
    fixture.store.prune(true, nobody).unwrap();
    fixture.store.remove("vol", nobody).unwrap();
}
