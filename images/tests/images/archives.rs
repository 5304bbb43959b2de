//! Import, load and save without other tools.

use std::fs;
use std::io::Cursor;

use berth_images::{Error, Format, ImportOptions, LoadOptions};

use crate::support::{Tar, TestStore, gzip, write_layout, zstd_frame};

#[test]
fn import_makes_an_image_of_one_layer() {
    let test = TestStore::new();
    let options = ImportOptions {
        changes: vec!["WORKDIR /srv".parse().unwrap()],
        message: Some("from the tests".to_owned()),
        platform: Some("linux/arm64/v8".parse().unwrap()),
    };
    let root = Tar::new().file("srv/a", "x").done();
    let image = test.store.import(&root[..], Some("imported"), &options).unwrap();
    assert_eq!(image.reference, "imported:latest");
    assert_eq!(image.layers.len(), 1);
    assert_eq!(image.layers[0].digest, berth_images::Digest::of(&root));
    assert_eq!(image.config.architecture().to_string(), "arm64");
    assert_eq!(image.config.config().as_ref().unwrap().working_dir().as_deref(), Some("/srv"));
    let history = test.store.history("imported").unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].comment.as_deref(), Some("from the tests"));
    assert_eq!(history[0].size, 1);
    assert_eq!(test.store.list().unwrap()[0].size, 1);
    // Without a name, and the same content again.
    let nameless = test.store.import(&root[..], None, &ImportOptions::default()).unwrap();
    assert_eq!(nameless.reference, nameless.manifest_digest.to_string());
    assert_eq!(nameless.layers[0].chain_id, image.layers[0].chain_id);
}

#[test]
fn import_refuses_what_is_no_root_file_system() {
    let test = TestStore::new();
    for input in [&b"hello"[..], &[0x1f, 0x8b, 8, 0][..]] {
        let error = test.store.import(input, Some("x"), &ImportOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Layer { .. }), "{error}");
        test.assert_untouched();
    }
}

#[test]
fn saved_archives_load_elsewhere() {
    let from = TestStore::new();
    let layers = [
        Tar::new().file("a", vec![1; 70_000]).done(),
        gzip(&Tar::new().file("b", "b").done()),
        zstd_frame(&Tar::new().file("c", "c").done()),
    ];
    let image = from.load(&layers).unwrap();
    from.store.tag("test", "other:2").unwrap();
    for format in [Format::Docker, Format::Oci] {
        let mut archive = Vec::new();
        from.store.save(&["test".to_owned(), "other:2".to_owned()], &mut archive, format).unwrap();
        for archive in [archive.clone(), gzip(&archive), zstd_frame(&archive)] {
            let to = TestStore::new();
            let names = to.store.load_stream(Cursor::new(archive), &LoadOptions::default()).unwrap();
            assert_eq!(names, ["test:latest", "other:2"]);
            let loaded = to.store.resolve("other:2").unwrap();
            assert_eq!(loaded.id, image.id);
            assert_eq!(loaded.manifest_digest == image.manifest_digest, format == Format::Oci);
            let dirs = to.store.lower_dirs(&loaded).unwrap();
            assert_eq!(fs::read(dirs[0].join("c")).unwrap(), b"c");
        }
    }
    // By its id, it goes without a name.
    let mut archive = Vec::new();
    from.store.save(&[image.id.to_string()], &mut archive, Format::Docker).unwrap();
    let to = TestStore::new();
    let names = to.store.load_stream(Cursor::new(archive), &LoadOptions::default()).unwrap();
    assert!(names[0].starts_with("sha256:"), "{names:?}");
    assert!(from.store.save(&["none".to_owned()], &mut Vec::new(), Format::Oci).is_err());
}

#[test]
fn the_same_tag_twice_is_saved_under_full_names() {
    let from = TestStore::new();
    from.store.import(&Tar::new().file("a", "").done()[..], Some("one"), &ImportOptions::default()).unwrap();
    from.store.import(&Tar::new().file("b", "").done()[..], Some("two"), &ImportOptions::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    from.store.save_folder(&["one".to_owned(), "two".to_owned()], folder.path()).unwrap();
    let index = fs::read_to_string(folder.path().join("index.json")).unwrap();
    assert!(index.contains("\"one:latest\"") && index.contains("\"two:latest\""), "{index}");
    assert!(from.store.save_folder(&["one".to_owned()], folder.path()).is_err(), "the folder is not empty");
}

#[test]
fn names_in_layouts() {
    let layer = || vec![Tar::new().file("a", "").done()];
    for (name, expected) in
        [("quay.io/a/b:1", "quay.io/a/b:1"), ("box:2", "box:2"), ("1.0", "folder:1.0"), ("latest", "folder:latest")]
    {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("Folder");
        write_layout(&folder, name, &layer());
        let test = TestStore::new();
        assert_eq!(test.store.load(&folder, &LoadOptions::default()).unwrap(), [expected]);
    }
}

#[test]
fn archives_that_are_none() {
    let test = TestStore::new();
    let cases = [
        (b"hello".to_vec(), "truncated"),
        (Tar::new().file("etc/passwd", "").done(), "berth import"),
        (Tar::new().file("manifest.json", "{").done(), "not valid"),
        (Tar::new().file("manifest.json", "[]").done(), "names no image"),
        (Tar::new().file("manifest.json", r#"[{"Config":"c.json","Layers":[]}]"#).done(), "has no 'c.json'"),
        (Tar::new().file("manifest.json", r#"[{"Config":"../../etc/passwd","Layers":[]}]"#).done(), "has no"),
        (Tar::new().symlink("manifest.json", "manifest.json").done(), "has no"),
        (Tar::new().file("oci-layout", "{}").file("index.json", "{}").done(), "not valid"),
    ];
    for (archive, expected) in cases {
        let error = test.store.load_stream(Cursor::new(archive), &LoadOptions::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        test.assert_untouched();
    }
    let error = test.store.load(std::path::Path::new("/nonexistent"), &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("cannot open /nonexistent"), "{error}");
}

#[test]
fn a_docker_archive_with_another_layer_than_it_says() {
    let from = TestStore::new();
    from.load(&[Tar::new().file("a", "right").done()]).unwrap();
    let mut archive = Vec::new();
    from.store.save(&["test".to_owned()], &mut archive, Format::Docker).unwrap();
    let place = archive.windows(5).position(|window| window == b"right").unwrap();
    archive[place..place + 5].copy_from_slice(b"wrong");
    let to = TestStore::new();
    let error = to.store.load_stream(Cursor::new(archive), &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    to.assert_untouched();
}
