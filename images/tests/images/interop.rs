//! Images that other tools write are read here, and what is written here is read by them.

use std::fs;
use std::path::Path;
use std::process::Command;

use berth_images::{Format, ImportOptions, LoadOptions};

use crate::support::{Tar, TestStore, gzip, missing_program};

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store with the image `app:1`, made by import.
fn imported() -> TestStore {
    let test = TestStore::new();
    let options = ImportOptions {
        changes: vec!["CMD [\"/bin/app\"]".parse().unwrap(), "ENV A=b".parse().unwrap()],
        ..ImportOptions::default()
    };
    let root = Tar::new().dir("bin").entry("bin/app", b'0', "", 0o755, b"program").symlink("sh", "bin/app").done();
    test.store.import(&gzip(&root)[..], Some("app:1"), &options).unwrap();
    test
}

#[test]
fn umoci_reads_a_saved_layout_and_its_changes_come_back() {
    if missing_program(&["umoci"]) {
        return;
    }
    let test = imported();
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    test.store.save_folder(&["app:1".to_owned()], &layout).unwrap();
    let image = format!("{}:1", text(&layout));
    let bundle = dir.path().join("bundle");
    run("umoci", &["unpack", "--image", &image, text(&bundle)]);
    assert_eq!(fs::read(bundle.join("rootfs/bin/app")).unwrap(), b"program");
    fs::write(bundle.join("rootfs/bin/new"), "new").unwrap();
    fs::remove_file(bundle.join("rootfs/sh")).unwrap();
    fs::hard_link(bundle.join("rootfs/bin/app"), bundle.join("rootfs/bin/linked")).unwrap();
    run("umoci", &["repack", "--image", &format!("{}:2", text(&layout)), text(&bundle)]);
    let names = test.store.load(&layout, &LoadOptions::default()).unwrap();
    assert_eq!(names, ["app:1", "app:2"]);
    let image = test.store.resolve("app:2").unwrap();
    let dirs = test.store.lower_dirs(&image).unwrap();
    assert_eq!(dirs.len(), 2);
    assert_eq!(fs::read(dirs[0].join("bin/new")).unwrap(), b"new");
    assert_eq!(fs::read(dirs[0].join("bin/linked")).unwrap(), b"program");
    assert!(fs::symlink_metadata(dirs[0].join("sh")).is_ok(), "a whiteout");
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/app"]);
}

#[test]
fn skopeo_reads_every_format_saved_here_and_what_it_writes_is_read() {
    if missing_program(&["skopeo"]) {
        return;
    }
    let test = imported();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (format, file) in [(Format::Docker, "docker.tar"), (Format::Oci, "oci.tar")] {
        let out = fs::File::create(path(file)).unwrap();
        test.store.save(&["app:1".to_owned()], out, format).unwrap();
    }
    run(
        "skopeo",
        &["copy", &format!("docker-archive:{}", path("docker.tar")), &format!("oci:{}:from-docker:1", path("a"))],
    );
    run("skopeo", &["copy", &format!("oci-archive:{}", path("oci.tar")), &format!("oci:{}:from-oci:1", path("a"))]);
    let archive = format!("docker-archive:{}:archived:1", path("skopeo-docker.tar"));
    run("skopeo", &["copy", &format!("oci:{}:from-oci:1", path("a")), &archive]);
    let archive = format!("oci-archive:{}:archived:2", path("skopeo-oci.tar"));
    run("skopeo", &["copy", &format!("oci:{}:from-oci:1", path("a")), &archive]);
    let to = TestStore::new();
    let mut names = Vec::new();
    for source in ["a", "docker.tar", "oci.tar", "skopeo-docker.tar", "skopeo-oci.tar"] {
        names.extend(to.store.load(Path::new(&path(source)), &LoadOptions::default()).unwrap());
    }
    assert_eq!(names, ["from-docker:1", "from-oci:1", "app:1", "app:1", "archived:1", "archived:2"]);
    let ids: Vec<_> = names.iter().map(|name| to.store.resolve(name).unwrap().id).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    // The store itself is a layout.
    let whole = format!("oci:{}:docker.io/library/app:1", to.images().display());
    run("skopeo", &["copy", &whole, &format!("dir:{}", path("dir"))]);
}

#[test]
fn podman_archives() {
    if missing_program(&["podman", "umoci"]) {
        return;
    }
    let test = imported();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let podman = |arguments: &[&str]| {
        let (root, runroot) = (path("root"), path("runroot"));
        let mut all = vec!["--root", &root, "--runroot", &runroot, "--storage-driver", "vfs", "--events-backend=file"];
        all.extend(arguments);
        run("podman", &all);
    };
    let out = fs::File::create(path("ours.tar")).unwrap();
    test.store.save(&["app:1".to_owned()], out, Format::Docker).unwrap();
    podman(&["load", "-i", &path("ours.tar")]);
    podman(&["save", "--format", "docker-archive", "-o", &path("docker.tar"), "docker.io/library/app:1"]);
    podman(&["save", "--format", "oci-archive", "-o", &path("oci.tar"), "docker.io/library/app:1"]);
    let to = TestStore::new();
    for file in ["docker.tar", "oci.tar"] {
        assert_eq!(to.store.load(Path::new(&path(file)), &LoadOptions::default()).unwrap(), ["app:1"]);
        let image = to.store.resolve("app:1").unwrap();
        assert_eq!(fs::read(to.store.lower_dirs(&image).unwrap()[0].join("bin/app")).unwrap(), b"program");
    }
}
