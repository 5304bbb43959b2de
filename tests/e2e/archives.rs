//! `load`, `save` and `import`, with images that skopeo, umoci and podman have written, read back by them.

use std::fs;
use std::path::{Path, PathBuf};

use berth_tests::command::Cmd;
use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::podman::Podman;

/// An OCI image layout written by umoci, with the image `busybox:latest` of two layers.
fn by_umoci(dir: &Path) -> PathBuf {
    let layout = dir.join("busybox");
    let umoci = |words: &str| {
        let mut command = Cmd::new("umoci", words);
        command.inner.current_dir(dir);
        command
    };
    let _ = umoci("init --layout busybox").ok();
    let _ = umoci("new --image busybox:latest").ok();
    let _ = umoci("unpack --image busybox:latest bundle").ok();
    let _ = Cmd::new("tar", "-C").arg(dir.join("bundle/rootfs")).arg("-xf").arg(fixtures::busybox_rootfs()).ok();
    let _ = umoci("repack --refresh-bundle --image busybox:latest bundle").ok();
    fs::write(dir.join("bundle/rootfs/by"), "umoci").unwrap();
    fs::remove_file(dir.join("bundle/rootfs/etc/group")).unwrap();
    let _ = umoci("repack --image busybox:latest bundle").ok();
    let _ = umoci("config --image busybox:latest --config.cmd cat --config.cmd /by").ok();
    layout
}

fn skopeo(words: &str, from: &str, to: &str) {
    let _ = Cmd::new("skopeo", &format!("--insecure-policy copy --quiet {words}")).args([from, to]).ok();
}

#[test]
fn a_layout_by_umoci_loads_as_folder_and_tar() {
    let home = Home::empty();
    let layout = by_umoci(&home.scratch());
    let out = home.berth("load -i").arg(&layout).ok();
    assert!(out.text().contains("busybox"), "{out:?}");
    assert_eq!(home.berth("run --rm busybox").ok().text(), "umoci");
    home.berth("run --rm busybox ls /etc/group").run().fails_with("no such file");

    let other = Home::empty();
    let tar = Cmd::new("tar", "-C").arg(&layout).args(["-c", "."]).ok().stdout;
    let _ = other.berth("load --name busybox").stdin(tar).ok();
    let id = other.berth("images -q").ok().trimmed();
    assert_eq!(other.berth("run --rm").arg(id).ok().text(), "umoci");
}

#[test]
fn archives_by_skopeo_load() {
    let home = Home::empty();
    let dir = home.scratch();
    let source = format!("oci:{}:latest", by_umoci(&dir).display());
    for (kind, flags) in [("docker-archive", ""), ("oci-archive", ""), ("docker-archive", "--format v2s2")] {
        let file = dir.join("archive.tar");
        let _ = fs::remove_file(&file);
        skopeo(flags, &source, &format!("{kind}:{}:example.org/boats/it:1", file.display()));
        let reader = Home::empty();
        let _ = reader.berth("load -i").arg(&file).ok();
        let name = if kind == "docker-archive" { "example.org/boats/it:1" } else { "it" };
        let listed = reader.berth("images").ok().text();
        assert!(listed.contains(name.split(':').next().unwrap()), "{kind} {flags}: {listed}");
        let id = reader.berth("images -q").ok().trimmed();
        assert_eq!(reader.berth("run --rm").arg(id).ok().text(), "umoci", "{kind} {flags}");
    }
}

#[test]
fn an_image_by_podman_loads() {
    let home = Home::empty();
    let podman = Podman::new(&home.scratch());
    let _ = podman
        .command("import --quiet --change CMD=[\"cat\",\"/etc/passwd\"]")
        .arg(fixtures::busybox_rootfs())
        .arg("made:1")
        .ok();
    for format in ["docker-archive", "oci-archive"] {
        let file = home.scratch().join(format);
        let _ = podman.command(&format!("save --quiet --format {format} -o")).arg(&file).arg("made:1").ok();
        let reader = Home::empty();
        let _ = reader.berth("load --input").arg(&file).ok();
        let id = reader.berth("images -q").ok().trimmed();
        assert!(reader.berth("run --rm").arg(id).ok().text().contains("berth"), "{format}");
    }
}

#[test]
fn what_berth_saves_is_read_by_skopeo_umoci_and_podman() {
    let home = Home::empty();
    let dir = home.scratch();
    let _ = home.berth("load -i").arg(by_umoci(&dir)).ok();
    let _ = home.berth("tag busybox example.org/busybox:saved").ok();

    let docker = dir.join("docker.tar");
    let _ = home.berth("save -o").arg(&docker).arg("example.org/busybox:saved").ok();
    let inspected = Cmd::new("skopeo", "inspect").arg(format!("docker-archive:{}", docker.display())).ok().json();
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 2);
    let podman = Podman::new(&dir);
    let loaded = podman.command("load --quiet -i").arg(&docker).ok().text();
    assert!(loaded.contains("example.org/busybox:saved"), "{loaded}");

    let oci = dir.join("oci.tar");
    let _ = home.berth("save --as oci -o").arg(&oci).arg("example.org/busybox:saved").ok();
    let copy = dir.join("copy");
    skopeo("", &format!("oci-archive:{}", oci.display()), &format!("oci:{}:it", copy.display()));
    let _ = Cmd::new("umoci", "unpack --image").arg(format!("{}:it", copy.display())).arg(dir.join("unpacked")).ok();
    assert_eq!(fs::read_to_string(dir.join("unpacked/rootfs/by")).unwrap(), "umoci");
    assert!(!dir.join("unpacked/rootfs/etc/group").exists());

    let folder = dir.join("folder");
    let _ = home.berth("save --as oci-dir -o").arg(&folder).arg("example.org/busybox:saved").ok();
    let _ = Cmd::new("umoci", "stat --image").arg(format!("{}:saved", folder.display())).run();
    let inspected = Cmd::new("skopeo", "inspect --raw").arg(format!("oci:{}", folder.display())).ok().json();
    assert_eq!(inspected["layers"].as_array().unwrap().len(), 2);

    // And by berth itself, from a pipe.
    let other = Home::empty();
    let _ = other.berth("load").stdin(home.berth("save example.org/busybox:saved").ok().stdout).ok();
    assert_eq!(other.berth("run --rm example.org/busybox:saved").ok().text(), "umoci");
}

#[test]
fn the_digest_survives_a_round_trip() {
    let home = Home::empty();
    let dir = home.scratch();
    let _ = home.berth("load -i").arg(by_umoci(&dir)).ok();
    let file = dir.join("oci.tar");
    let _ = home.berth("save --as oci -o").arg(&file).arg("busybox").ok();
    let other = Home::empty();
    let _ = other.berth("load -i").arg(&file).ok();
    let id = |home: &Home| home.berth("images -q --no-trunc").ok().trimmed();
    assert_eq!(id(&home), id(&other));
}

#[test]
fn import_takes_a_root_filesystem_however_compressed() {
    let home = Home::empty();
    let tar = fs::read(fixtures::busybox_rootfs()).unwrap();
    let gzip = berth_tests::layout::Layer::gzip(&tar).bytes;
    let zstd = berth_tests::layout::Layer::zstd(&tar).bytes;
    for (name, bytes) in [("plain", tar), ("gzip", gzip), ("zstd", zstd)] {
        let file = home.scratch().join(name);
        fs::write(&file, &bytes).unwrap();
        let _ = home.berth("import").arg(&file).arg(format!("{name}:from-file")).ok();
        let _ = home.berth("import -").arg(format!("{name}:from-pipe")).stdin(bytes).ok();
        for tag in ["from-file", "from-pipe"] {
            assert_eq!(home.berth(&format!("run --rm {name}:{tag} echo it runs")).ok().text(), "it runs\n");
        }
    }
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing() {
    let home = Home::empty();
    let dir = home.scratch();
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("text", b"this is no image\n".to_vec()),
        ("zeros", vec![0; 10240]),
        ("cut", fs::read(fixtures::busybox_rootfs()).unwrap()[..100_000].to_vec()),
    ] {
        let file = dir.join(name);
        fs::write(&file, bytes).unwrap();
        home.berth("load -i").arg(&file).run().fails_with(name);
        // An empty archive is an archive of nothing.
        if name != "zeros" && name != "empty" {
            home.berth("import").arg(&file).arg("it").run().fails_with("");
        }
    }
    home.berth("load -i /no/such/file").run().fails_with("/no/such/file");
    home.berth("import /no/such/file it").run().fails_with("/no/such/file");
    home.berth("save no-such-image").run().fails_with("no-such-image");
    let images = home.berth("images -q").ok().text();
    assert!(images.lines().count() <= 1, "{images}");
}
