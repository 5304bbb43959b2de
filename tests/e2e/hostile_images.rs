//! Images that are damaged or hostile: a clear error, and nothing kept of them.

use std::fs;

use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::layout::{self, Layer, Layout};
use berth_tests::tar_file::{Meta, TarFile};
use serde_json::json;
use tar::EntryType;

/// Loads the layout and insists that it is refused with these words, and that the store is as before.
#[track_caller]
fn refused(home: &Home, layout: &Layout, words: &str) {
    home.berth("load -i").arg(layout.path()).run().fails_with(words);
    nothing_kept(home);
}

#[track_caller]
fn nothing_kept(home: &Home) {
    assert_eq!(home.berth("images -q -a").run().text(), "");
    let _ = home.berth("image prune -a -f").ok();
    for folder in ["blobs/sha256", "layers", "ingest"] {
        let entries = fs::read_dir(home.data().join("images").join(folder)).map_or(0, Iterator::count);
        assert_eq!(entries, 0, "left in {folder}");
    }
}

fn busybox() -> Layer {
    Layer::gzip(&fs::read(fixtures::busybox_rootfs()).unwrap())
}

#[test]
fn a_blob_that_is_not_its_digest() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    let layer = busybox();
    layout.image("bad:1", std::slice::from_ref(&layer), &json!({}));
    let path = layout.blob_path(&layout::digest(&layer.bytes));
    let mut bytes = layer.bytes.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).unwrap();
    refused(&home, &layout, "sha256");
    fs::write(&path, &layer.bytes[..middle]).unwrap();
    refused(&home, &layout, "");
    fs::remove_file(&path).unwrap();
    refused(&home, &layout, &layout::digest(&layer.bytes)[7..20]);
}

#[test]
fn a_layer_that_is_not_its_diff_id() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    let mut layer = busybox();
    layer.diff_id = layout::digest(b"something else");
    layout.image("bad:1", &[layer], &json!({}));
    refused(&home, &layout, "diff id");
}

#[test]
fn a_layer_that_unpacks_to_far_more_than_it_says() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    // A gigabyte of zeros in a megabyte, with a configuration that tells another story.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let tar = TarFile::new().lying_file("zeros", 64 << 30, &[]).finish();
    std::io::Write::write_all(&mut encoder, &tar[..512]).unwrap();
    let zeros = vec![0; 1 << 20];
    for _ in 0..1024 {
        std::io::Write::write_all(&mut encoder, &zeros).unwrap();
    }
    let bytes = encoder.finish().unwrap();
    let layer = Layer { diff_id: layout::digest(b"x"), media_type: format!("{}+gzip", layout::LAYER), bytes };
    layout.image("bomb:1", &[layer], &json!({}));
    refused(&home, &layout, "");
    let used: u64 = walk(&home.data()).iter().map(|path| fs::symlink_metadata(path).map_or(0, |m| m.len())).sum();
    assert!(used < 1 << 20, "{used} bytes are left of it");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

#[test]
fn paths_that_lead_out_of_the_layer() {
    let home = Home::empty();
    let outside = home.scratch().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("target"), "untouched").unwrap();
    let out = outside.display().to_string();
    let up = format!("{}{out}", "../".repeat(20).trim_end_matches('/'));
    let archives = [
        ("dot-dot", TarFile::new().file(&format!("{up}/planted"), "x")),
        ("absolute", TarFile::new().file(&format!("{out}/planted"), "x")),
        ("symlink", TarFile::new().symlink("link", &out).file("link/planted", "x")),
        ("relative symlink", TarFile::new().symlink("link", &up).file("link/planted", "x")),
        ("symlink over a folder", TarFile::new().folder("d/").symlink("d", &out).file("d/planted", "x")),
        ("chain", TarFile::new().symlink("a", "b").symlink("b", &out).file("a/planted", "x")),
        ("file through a link", TarFile::new().symlink("f", &format!("{out}/target")).file("f", "overwritten")),
        ("hard link out", TarFile::new().hard_link("f", &format!("{up}/target")).file("f", "overwritten")),
        (
            "hard link through a link",
            TarFile::new().symlink("l", &out).hard_link("f", "l/target").file("f", "overwritten"),
        ),
        ("whiteout up", TarFile::new().file(&format!("{up}/.wh.target"), "")),
        ("whiteout through a link", TarFile::new().symlink("l", &out).file("l/.wh.target", "")),
        ("opaque through a link", TarFile::new().symlink("l", &out).file("l/.wh..wh..opq", "")),
        ("whiteout of dot-dot", TarFile::new().file(".wh...", "")),
        (
            "mode of a folder through a link",
            TarFile::new().symlink("l", &out).entry(EntryType::Directory, b"l/", b"", Meta::mode(0o777), b""),
        ),
        ("dot-dot in the middle", TarFile::new().folder("a/").file(&format!("a/../..{out}/planted"), "x")),
    ];
    let before = fs::metadata(&outside).unwrap();
    for (name, archive) in archives {
        // Each as the only layer, and over a layer of its own. It may be refused or kept inside: never outside.
        let bytes = archive.finish();
        for below in [vec![], vec![busybox()]] {
            let home = Home::empty();
            let layout = Layout::new(home.scratch().join("layout"));
            let layers: Vec<_> = below.into_iter().chain([Layer::plain(bytes.clone())]).collect();
            layout.image("bad:1", &layers, &json!({}));
            let result = home.berth("load -i").arg(layout.path()).run();
            if result.exit_code() != 0 {
                result.fails_with("");
                nothing_kept(&home);
            }
            assert!(!outside.join("planted").exists(), "{name}: planted");
            assert_eq!(fs::read_to_string(outside.join("target")).unwrap(), "untouched", "{name}");
            let after = fs::metadata(&outside).unwrap();
            assert_eq!(before.permissions(), after.permissions(), "{name}");
        }
    }
}

#[test]
fn archives_that_break_off_or_lie() {
    let home = Home::empty();
    let whole = fs::read(fixtures::busybox_rootfs()).unwrap();
    for (name, bytes) in [
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("size", TarFile::new().lying_file("f", 1 << 40, b"little").finish()),
        ("noise", (0..100_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()),
        ("empty name", TarFile::new().file("", "x").finish()),
        ("nul path", TarFile::new().pax(&[("path", b"a\0b")]).file("x", "").finish()),
        ("huge pax", TarFile::new().pax(&[("comment", &vec![b'x'; 64 << 20])]).file("x", "").finish()),
        ("long path", TarFile::new().pax(&[("path", "d/".repeat(100_000).as_bytes())]).file("x", "").finish()),
    ] {
        let home = Home::empty();
        let layout = Layout::new(home.scratch().join("layout"));
        layout.image("bad:1", &[Layer::plain(bytes)], &json!({}));
        let out = home.berth("load -i").arg(layout.path()).run();
        assert!(out.exit_code() != 0, "{name} was taken: {out:?}");
        out.fails_with("");
        nothing_kept(&home);
    }
    drop(home);
}

#[test]
fn unknown_media_types_and_platforms() {
    let home = Home::empty();
    let mut layer = busybox();
    layer.media_type = "application/vnd.example.layer".into();
    let layout = Layout::new(home.scratch().join("media-type"));
    layout.image("bad:1", &[layer], &json!({}));
    refused(&home, &layout, "application/vnd.example.layer");

    let layout = Layout::new(home.scratch().join("platform"));
    let layer = busybox();
    let mut manifest = layout.manifest(&layout.config(std::slice::from_ref(&layer), &json!({})), &[layer]);
    manifest["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let index = json!({ "schemaVersion": 2, "mediaType": layout::INDEX, "manifests": [manifest] });
    let index = layout.blob(layout::INDEX, index.to_string().as_bytes());
    layout.write_index(&[("bad:1", index)]);
    refused(&home, &layout, "s390x");
}

#[test]
fn documents_that_make_no_sense() {
    let home = Home::empty();
    let layer = busybox();
    for (name, config, manifest) in [
        ("no json", "{", None),
        ("other type", "[]", None),
        (
            "layers and diff ids differ",
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
            None,
        ),
        ("manifest", "{}", Some("{\"schemaVersion\":2}")),
        ("deep", "{}", Some(&*format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)))),
    ] {
        let layout = Layout::new(home.scratch().join(name));
        let config = layout.blob(layout::CONFIG, config.as_bytes());
        let descriptor = match manifest {
            Some(text) => layout.blob(layout::MANIFEST, text.as_bytes()),
            None => layout.manifest(&config, std::slice::from_ref(&layer)),
        };
        layout.write_index(&[("bad:1", descriptor)]);
        refused(&home, &layout, "");
    }
    let layout = Layout::new(home.scratch().join("index"));
    fs::write(layout.path().join("index.json"), "{").unwrap();
    refused(&home, &layout, "index.json");
    fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    refused(&home, &layout, "");
}

#[test]
fn digests_that_are_paths() {
    let home = Home::empty();
    for digest in
        ["sha256:../../../../etc/passwd", "../x", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:", "sha256:ABC"]
    {
        let layout = Layout::new(home.scratch().join("layout"));
        let descriptor = json!({ "mediaType": layout::MANIFEST, "digest": digest, "size": 2 });
        layout.write_index(&[("bad:1", descriptor)]);
        refused(&home, &layout, "valid");
    }
}

#[test]
fn a_full_disk_leaves_nothing_half() {
    let home = Home::empty();
    let small = home.path().join("data");
    fs::create_dir(&small).unwrap();
    nix::mount::mount(Some("none"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=1m")).unwrap();
    let out = home.berth("import").arg(fixtures::busybox_rootfs()).arg("busybox").run();
    let images = home.berth("images -q").run();
    let ingest = fs::read_dir(small.join("images/ingest")).map_or(0, Iterator::count);
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    out.fails_with("no space");
    assert_eq!(images.text(), "");
    assert_eq!(ingest, 0, "left in ingest");
}

#[test]
fn what_an_image_says_is_no_command_to_the_terminal() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    layout.image("bad:1", &[busybox()], &json!({ "User": "a\u{1b}[2Jb\nc", "Cmd": ["true"] }));
    let _ = home.berth("load -i").arg(home.scratch().join("layout")).ok();
    let out = home.berth("run --rm bad:1").run().code(125);
    out.fails_with("a\\u{1b}[2Jb; c");
    assert_eq!(out.stderr_text().lines().count(), 1, "{out:?}");
}

#[test]
fn users_in_a_fifo_keep_nobody_waiting() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    let users = ["etc/passwd", "etc/group"]
        .into_iter()
        .fold(TarFile::new(), |tar, path| tar.entry(EntryType::Fifo, path.as_bytes(), b"", Meta::mode(0o644), b""));
    layout.image("bad:1", &[busybox(), Layer::plain(users.finish())], &json!({}));
    let _ = home.berth("load -i").arg(home.scratch().join("layout")).ok();
    let wait = std::time::Duration::from_secs(20);
    assert_eq!(home.berth("run --rm -u 7 bad:1 echo ran").timeout(wait).ok().text(), "ran\n");
    home.berth("run --rm -u berth bad:1 id").timeout(wait).run().fails_with("berth");
}
