//! Layers that want more than they may. Each is refused with its reason, or kept inside; nothing outside changes and
//! nothing is left behind.

use std::fs;

use berth_images::{Error, ImportOptions, LayerError, Limits};

use crate::support::{Tar, TestStore, gzip, zstd_frame};

/// Unpacks `layer`, which must be refused; returns the message.
fn refused(layer: Vec<u8>) -> String {
    let test = TestStore::new();
    let outside = test.dir.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    let error = test.unpack(&[layer]).expect_err("it must be refused");
    test.assert_untouched();
    assert_eq!(fs::read(outside).unwrap(), b"untouched");
    error.to_string()
}

#[test]
fn names_that_climb_out() {
    for name in ["../outside", "a/../../outside", "..", "./.././outside"] {
        let message = refused(Tar::new().file(name, "x").done());
        assert!(message.contains("leads out of the image"), "{message}");
    }
}

#[test]
fn absolute_names_count_from_the_root() {
    let test = TestStore::new();
    let layer = Tar::new().file("/etc/passwd", "mine").file("a/x/../b", "").file("//c", "").done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    assert_eq!(fs::read(root.join("etc/passwd")).unwrap(), b"mine");
    assert!(root.join("a/b").exists() && root.join("c").exists());
}

#[test]
fn symbolic_links_never_lead_outside() {
    let test = TestStore::new();
    let outside = test.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let absolute = outside.to_str().unwrap();
    let layer = Tar::new()
        .symlink("abs", absolute)
        .file("abs/file", "x")
        .symlink("climb", "../../../../../../../../../../../../tmp")
        .file("climb/berth-climbed", "x")
        .symlink("chain1", "chain2/..")
        .symlink("chain2", "/")
        .file("chain1/etc-like", "x")
        .symlink("self", "/proc/self/root")
        .file("self/inside", "x")
        .done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(root.join(absolute.trim_start_matches('/')).join("file").exists());
    assert!(root.join("tmp/berth-climbed").exists());
    assert!(!std::path::Path::new("/tmp/berth-climbed").exists());
    assert!(root.join("etc-like").exists());
    assert!(root.join("proc/self/root/inside").exists());
}

#[test]
fn a_directory_swapped_for_a_link() {
    // CVE-2019-14271 and kin: the directory is open, then a link takes its name.
    let test = TestStore::new();
    let outside = test.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let layer =
        Tar::new().dir("d").file("d/first", "").symlink("d", outside.to_str().unwrap()).file("d/second", "").done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert!(root.join("d").is_symlink());
}

#[test]
fn a_file_is_not_written_through_a_link() {
    let test = TestStore::new();
    let outside = test.dir.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    let layer = Tar::new().symlink("f", outside.to_str().unwrap()).file("f", "replaced the link").done();
    let root = &test.unpack(&[layer]).unwrap()[0];
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
    assert_eq!(fs::read(root.join("f")).unwrap(), b"replaced the link");
}

#[test]
fn link_loops() {
    let message = refused(Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "").done());
    assert!(message.contains("too many symbolic links"), "{message}");
}

#[test]
fn hard_links_outside() {
    let message = refused(Tar::new().hard_link("x", "../../outside").done());
    assert!(message.contains("outside the image"), "{message}");
    let message = refused(Tar::new().hard_link("x", "/etc/shadow").done());
    assert!(message.contains("does not exist"), "{message}");
    let message = refused(Tar::new().symlink("up", "/etc").hard_link("x", "up/shadow").done());
    assert!(message.contains("does not exist"), "{message}");
    let message = refused(Tar::new().dir("d").hard_link("x", "d").done());
    assert!(message.contains("is a directory"), "{message}");
}

#[test]
fn entries_that_make_no_sense() {
    for (layer, reason) in [
        (Tar::new().file("f", "").file("f/x", ""), "is not a directory"),
        (Tar::new().file(".wh.", ""), "whiteout of nothing"),
        (Tar::new().file(".wh...", ""), "whiteout of nothing"),
        (Tar::new().file("./", "x").entry("/", b'2', "x", 0, b""), "root directory"),
        (Tar::new().entry("x", b'Z', "", 0, b""), "does not know"),
        (Tar::new().symlink("x", ""), "empty"),
        (Tar::new().pax(&[("path", b"a\0b")]).file("x", ""), "NUL"),
        (Tar::new().pax(&[("path", "p".repeat(256).as_bytes())]).file("x", ""), "too long"),
        (Tar::new().pax(&[("path", "p/".repeat(3000).as_bytes())]).file("x", ""), "too long"),
        (Tar::new().pax(&[("uid", b"4294967295")]).file("x", ""), "out of range"),
        (Tar::new().pax(&[("SCHILY.xattr.user.x", &vec![0; 70_000])]).file("x", ""), "too large"),
        (Tar::new().pax(&[("comment", &vec![0; 2 << 20])]).file("x", ""), "longer than"),
        (Tar::new().pax(&[("size", b"18446744073709551615")]).file("x", ""), "out of range"),
        (Tar::new().entry("x", b'L', "", 0, &vec![b'x'; 20_000]), "longer than"),
        (Tar::new().data(&[1; 512]), "damaged"),
    ] {
        let message = refused(layer.done());
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn sparse_maps_that_lie() {
    let sparse = |map: &[u8], size: &[u8]| {
        Tar::new().pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)]).file("x", [1; 512]).done()
    };
    for (map, size) in [
        (&b"0,512"[..], &b"100"[..]),
        (b"0,1024", b"4096"),
        (b"512,256,0,256", b"4096"),
        (b"18446744073709551615,512", b"4096"),
        (b"0,256,256,18446744073709551615", b"4096"),
    ] {
        let message = refused(sparse(map, size));
        assert!(message.contains("map does not fit"), "{message}");
    }
    let message = refused(sparse(b"0,512", b"9000000000000000"));
    assert!(message.contains("1 TiB"), "{message}");
}

#[test]
fn truncated_and_damaged_streams() {
    let whole = Tar::new().file("a", vec![3; 200_000]).file("b", "x").done();
    for layer in [&gzip(&whole)[..], &zstd_frame(&whole)[..], &whole[..100_000]] {
        let cut = layer[..layer.len() / 2].to_vec();
        let message = refused(cut);
        assert!(message.contains("truncated"), "{message}");
    }
    let mut flipped = gzip(&whole);
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let message = refused(flipped);
    assert!(message.contains("damaged") || message.contains("digest") || message.contains("truncated"), "{message}");
}

fn small_limits() -> Limits {
    Limits { max_unpacked: 6 << 20, ratio_floor: 1 << 20, max_ratio: 100, max_entries: 1000, ..Limits::default() }
}

#[test]
fn decompression_bombs() {
    for bomb in [gzip(&vec![0; 4 << 20]), zstd_frame(&vec![0; 4 << 20])] {
        let mut test = TestStore::new();
        test.store = test.store.clone().with_limits(small_limits());
        let error = test.unpack(&[bomb]).unwrap_err();
        let Error::Layer { error: source, .. } = error else { panic!("{error}") };
        assert!(matches!(*source, LayerError::TooLarge(_)), "{source}");
        test.assert_untouched();
    }
}

#[test]
fn too_much_content_or_too_many_entries() {
    let mut test = TestStore::new();
    test.store = test.store.clone().with_limits(small_limits());
    let mut random = vec![0; 7 << 20];
    let mut state = 1_u32;
    for byte in &mut random {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let big = Tar::new().file("big", random).done();
    let error = test.store.import(&big[..], None, &ImportOptions::default()).unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");
    test.assert_untouched();
    let many = (0..1001).fold(Tar::new(), |tar, number| tar.file(&format!("f{number}"), ""));
    let error = test.unpack(&[many.done()]).unwrap_err().to_string();
    assert!(error.contains("1000 entries"), "{error}");
    test.assert_untouched();
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says() {
    let test = TestStore::new();
    let folder = tempfile::tempdir().unwrap();
    let layer = Tar::new().file("a", "x").done();
    crate::support::write_layout(folder.path(), "test:latest", std::slice::from_ref(&layer));
    // The same blob, but the configuration names other content.
    let blobs = folder.path().join("blobs/sha256");
    let right = berth_images::Digest::of(&layer).to_string();
    let wrong = berth_images::Digest::of(b"else").to_string();
    let mut rename = std::collections::HashMap::new();
    let rewrite = |path: &std::path::Path, from: &str, to: &str| {
        let text = fs::read_to_string(path).unwrap().replace(from, to);
        fs::write(path, &text).unwrap();
        text
    };
    for entry in fs::read_dir(&blobs).unwrap() {
        let path = entry.unwrap().path();
        if fs::read(&path).unwrap().windows(8).any(|window| window == b"diff_ids") {
            let old = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = rewrite(&path, &right, &wrong);
            let new = berth_images::Digest::of(text.as_bytes()).hex();
            fs::rename(&path, blobs.join(&new)).unwrap();
            rename.insert(old, new);
        }
    }
    let (old, new) = rename.into_iter().next().unwrap();
    for entry in fs::read_dir(&blobs).unwrap() {
        let path = entry.unwrap().path();
        if fs::read_to_string(&path).is_ok_and(|text| text.contains(&old)) {
            let before = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = rewrite(&path, &old, &new);
            let after = berth_images::Digest::of(text.as_bytes()).hex();
            fs::rename(&path, blobs.join(&after)).unwrap();
            rewrite(&folder.path().join("index.json"), &before, &after);
        }
    }
    let error = test.store.load(folder.path(), &berth_images::LoadOptions::default()).unwrap_err();
    let Error::Layer { error: source, .. } = error else { panic!("{error}") };
    assert!(matches!(*source, LayerError::DigestMismatch { .. }), "{source}");
    test.assert_untouched();
}

#[test]
fn a_blob_with_another_digest_or_length() {
    for (what, change) in [("digest", false), ("should be", true)] {
        let test = TestStore::new();
        let folder = tempfile::tempdir().unwrap();
        let layer = Tar::new().file("a", "x").done();
        crate::support::write_layout(folder.path(), "test:latest", std::slice::from_ref(&layer));
        let path = folder.path().join("blobs/sha256").join(berth_images::Digest::of(&layer).hex());
        let mut content = fs::read(&path).unwrap();
        if change {
            content.truncate(512);
        } else {
            content[600] ^= 1;
        }
        fs::write(&path, content).unwrap();
        let error = test.store.load(folder.path(), &berth_images::LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
        test.assert_untouched();
    }
}

#[test]
fn a_blob_that_is_here_with_another_length() {
    let test = TestStore::new();
    let folder = tempfile::tempdir().unwrap();
    let layer = Tar::new().file("a", "x").done();
    crate::support::write_layout(folder.path(), "test:latest", std::slice::from_ref(&layer));
    let load = || test.store.load(folder.path(), &berth_images::LoadOptions::default());
    load().unwrap();
    let read =
        |path: &std::path::Path| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let (index, blobs) = (folder.path().join("index.json"), folder.path().join("blobs/sha256"));
    let mut entries = read(&index);
    let entry = &mut entries["manifests"][0];
    let mut manifest = read(&blobs.join(entry["digest"].as_str().unwrap().trim_start_matches("sha256:")));
    manifest["layers"][0]["size"] = 7.into();
    let text = manifest.to_string();
    let digest = berth_images::Digest::of(text.as_bytes());
    fs::write(blobs.join(digest.hex()), &text).unwrap();
    entry["digest"] = digest.to_string().into();
    entry["size"] = text.len().into();
    fs::write(&index, entries.to_string()).unwrap();
    let error = load().unwrap_err().to_string();
    assert!(error.contains("should be 7 bytes"), "{error}");
}

#[test]
fn a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
        .arg(dir.path())
        .status()
        .unwrap();
    if !mounted.success() {
        println!("not run: this host does not let us mount a small tmpfs to fill");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        let store = berth_images::Store::open(dir.path()).unwrap().with_unpacker(berth_images::Unpacker::InProcess);
        // Fits as a blob, but not unpacked.
        let layer = gzip(&Tar::new().file("big", vec![0; 60 << 20]).done());
        let error = store.import(&layer[..], Some("full"), &ImportOptions::default()).unwrap_err().to_string();
        let left = fs::read_dir(dir.path().join("images/ingest")).unwrap().count();
        (error, left)
    });
    std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    let (error, left) = result.unwrap();
    assert!(error.contains("no space is left"), "{error}");
    assert_eq!(left, 0);
}
