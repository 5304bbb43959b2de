//! Names, ids, removal, garbage collection, and many at once.

use std::fs;
use std::sync::Barrier;
use std::thread;

use berth_images::{Error, Image, ImportOptions, Store, Use};

use crate::support::{Tar, TestStore, write_layout};

fn import(test: &TestStore, name: &str, content: &str) -> Image {
    let layer = Tar::new().file("content", content).done();
    test.store.import(&layer[..], Some(name), &ImportOptions::default()).unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "the shape that removal wants")]
fn nobody() -> Result<Vec<Use>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(Vec::new())
}

fn used_by(test: &TestStore, image: &Image) -> Use {
    Use {
        user: "busy".to_owned(),
        manifest: image.manifest_digest.to_string(),
        layers: test.store.lower_dirs(image).unwrap(),
    }
}

fn count(test: &TestStore, directory: &str) -> usize {
    fs::read_dir(test.images().join(directory)).unwrap().count()
}

#[test]
fn images_are_found_by_name_id_and_prefix() {
    let test = TestStore::new();
    let image = import(&test, "busybox", "1");
    let digest = image.manifest_digest;
    for reference in [
        "busybox",
        "busybox:latest",
        "library/busybox",
        "docker.io/library/busybox:latest",
        &format!("busybox@{digest}"),
        &format!("busybox:latest@{digest}"),
        &digest.to_string(),
        &image.id.to_string(),
        &image.id.hex()[..12],
        &format!("sha256:{}", &digest.hex()[..8]),
    ] {
        let found = test.store.resolve(reference).unwrap_or_else(|error| panic!("{reference}: {error}"));
        assert_eq!((found.manifest_digest, found.reference.as_str()), (digest, "busybox:latest"), "{reference}");
    }
    for reference in ["busybox:2", "other", "quay.io/busybox", "ffffffffffff", &format!("other@{digest}")] {
        let error = test.store.resolve(reference).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{reference}: {error}");
        assert!(error.to_string().contains(&format!("berth pull {reference}")), "{error}");
    }
    assert!(matches!(test.store.resolve("Not A Name"), Err(Error::InvalidReference { .. })));
}

#[test]
fn a_short_prefix_may_fit_several() {
    let test = TestStore::new();
    // Among 20 images with two digests each, some two share their first digit.
    let images: Vec<_> = (0..20).map(|number| import(&test, &format!("i{number}"), &number.to_string())).collect();
    let mut prefixes: Vec<String> = images.iter().map(|image| image.id.hex()[..2].to_owned()).collect();
    prefixes.extend(images.iter().map(|image| image.manifest_digest.hex()[..2].to_owned()));
    for prefix in prefixes {
        let fits = images
            .iter()
            .filter(|image| image.id.hex().starts_with(&prefix) || image.manifest_digest.hex().starts_with(&prefix))
            .count();
        match test.store.resolve(&prefix) {
            Ok(_) => assert_eq!(fits, 1, "{prefix}"),
            Err(Error::Ambiguous { matches, .. }) => assert_eq!(matches.len(), fits, "{prefix}"),
            Err(error) => panic!("{prefix}: {error}"),
        }
    }
}

#[test]
fn tags_move() {
    let test = TestStore::new();
    let one = import(&test, "one", "1");
    let two = import(&test, "two", "2");
    test.store.tag("one", "quay.io/x/y:z").unwrap();
    test.store.tag("two", "one").unwrap();
    assert_eq!(test.store.resolve("one").unwrap().id, two.id);
    assert_eq!(test.store.resolve("quay.io/x/y:z").unwrap().id, one.id);
    assert!(matches!(test.store.tag("none", "x"), Err(Error::NotFound { .. })));
    assert!(matches!(test.store.tag("one", &format!("x@{}", one.id)), Err(Error::InvalidReference { .. })));
    import(&test, "two", "3");
    let list = test.store.list().unwrap();
    assert_eq!(list.len(), 3, "{list:?}");
}

#[test]
fn removal_takes_what_nobody_else_needs() {
    let test = TestStore::new();
    let base = Tar::new().file("base", "shared").done();
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("a:1", "a"), ("b:1", "b")] {
        let path = folder.path().join(content);
        write_layout(&path, name, &[base.clone(), Tar::new().file("own", content).done()]);
        test.store.load(&path, &berth_images::LoadOptions::default()).unwrap();
    }
    assert_eq!((count(&test, "layers"), count(&test, "blobs/sha256")), (3, 7));
    test.store.tag("a:1", "a:2").unwrap();
    let removed = test.store.remove("a:1", false, nobody).unwrap();
    assert_eq!((removed.untagged, removed.deleted), (vec!["a:1".to_owned()], vec![]));
    assert_eq!(count(&test, "layers"), 3);
    let removed = test.store.remove("a:2", false, nobody).unwrap();
    assert_eq!(removed.deleted.len(), 1);
    assert!(removed.reclaimed > 0);
    assert_eq!((count(&test, "layers"), count(&test, "blobs/sha256"), count(&test, "ingest")), (2, 4, 0));
    let b = test.store.resolve("b:1").unwrap();
    assert!(test.store.lower_dirs(&b).unwrap().iter().all(|dir| dir.exists()));
    test.store.tag("b:1", "b:2").unwrap();
    let id = b.id.to_string();
    assert!(matches!(test.store.remove(&id, false, nobody), Err(Error::SeveralNames { .. })));
    test.store.remove(&id, true, nobody).unwrap();
    assert_eq!((count(&test, "layers"), count(&test, "blobs/sha256")), (0, 0));
}

#[test]
fn what_a_container_uses_stays() {
    let test = TestStore::new();
    let image = import(&test, "used", "1");
    let user = used_by(&test, &image);
    let error = test.store.remove("used", false, || Ok(vec![user.clone()])).unwrap_err();
    assert!(error.to_string().contains("container busy"), "{error}");
    // A second name may go.
    test.store.tag("used", "alias").unwrap();
    test.store.remove("alias", false, || Ok(vec![user.clone()])).unwrap();
    test.store.prune(true, || Ok(vec![user.clone()])).unwrap();
    assert!(test.store.resolve("used").is_ok());
    test.store.remove("used", true, || Ok(vec![user.clone()])).unwrap();
    assert!(test.store.resolve("used").is_err());
    assert!(user.layers[0].join("content").exists());
    test.store.prune(false, || Ok(vec![user.clone()])).unwrap();
    assert!(user.layers[0].join("content").exists());
    test.store.prune(false, nobody).unwrap();
    assert!(!user.layers[0].exists());
    assert_eq!(count(&test, "blobs/sha256"), 0);
    // Where containers cannot be asked, nothing goes.
    import(&test, "kept", "2");
    assert!(matches!(test.store.prune(true, || Err("broken record".into())), Err(Error::Users(_))));
    assert!(test.store.resolve("kept").is_ok());
}

#[test]
fn pruning() {
    let test = TestStore::new();
    import(&test, "moved", "old");
    import(&test, "moved", "new");
    import(&test, "other", "x");
    fs::create_dir(test.images().join("partial")).unwrap();
    let abandoned = test.images().join("partial").join("0".repeat(64));
    fs::write(&abandoned, "half").unwrap();
    let pruned = test.store.prune(false, nobody).unwrap();
    assert_eq!((pruned.untagged.len(), pruned.deleted.len()), (0, 1));
    assert!(!abandoned.exists());
    assert_eq!(test.store.list().unwrap().len(), 2);
    let pruned = test.store.prune(true, nobody).unwrap();
    assert_eq!(pruned.untagged.len(), 2);
    assert_eq!((count(&test, "layers"), count(&test, "blobs/sha256")), (0, 0));
}

#[test]
fn removal_waits_for_whoever_holds_the_guard() {
    let test = TestStore::new();
    let image = import(&test, "guarded", "1");
    let guard = test.store.read_guard().unwrap();
    thread::scope(|scope| {
        let removal = scope.spawn(|| test.store.remove("guarded", false, || Ok(vec![used_by(&test, &image)])));
        // What the guard is for: find the image, then record the use.
        let found = test.store.resolve("guarded").unwrap();
        assert!(test.store.lower_dirs(&found).unwrap()[0].exists());
        drop(guard);
        assert!(matches!(removal.join().unwrap(), Err(Error::InUse { .. })));
    });
}

#[test]
fn many_at_once() {
    let test = TestStore::new();
    let layers: Vec<_> =
        (0..6).map(|number| Tar::new().file(&format!("f{number}"), vec![number; 50_000]).done()).collect();
    let folder = tempfile::tempdir().unwrap();
    write_layout(folder.path(), "shared:1", &layers);
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for number in 0..8 {
            let (start, layers, folder, test) = (&start, &layers, &folder, &test);
            scope.spawn(move || {
                // Each as a process of its own would.
                let store = Store::open(test.dir.path()).unwrap().with_unpacker(berth_images::Unpacker::InProcess);
                start.wait();
                for round in 0..5 {
                    store.load(folder.path(), &berth_images::LoadOptions::default()).unwrap();
                    let image = store.resolve("shared:1").unwrap();
                    let name = format!("own{number}:{round}");
                    store.tag("shared:1", &name).unwrap();
                    let guard = store.read_guard().unwrap();
                    if let Ok(image) = store.resolve(&name) {
                        assert_eq!(store.lower_dirs(&image).unwrap().len(), layers.len());
                    }
                    drop(guard);
                    store.remove(&name, true, nobody).unwrap();
                    assert_eq!(image.layers.len(), layers.len());
                }
            });
        }
    });
    let image = test.store.resolve("shared:1").unwrap();
    assert!(test.store.lower_dirs(&image).unwrap().iter().all(|dir| dir.exists()));
    assert_eq!(test.store.list().unwrap().len(), 1);
    assert_eq!((count(&test, "layers"), count(&test, "ingest")), (6, 0));
}

#[test]
fn missing_layers_are_unpacked_again() {
    let test = TestStore::new();
    let image = test.load(&[Tar::new().file("a", "1").done(), Tar::new().hard_link("b", "a").done()]).unwrap();
    let dirs = test.store.lower_dirs(&image).unwrap();
    fs::remove_dir_all(dirs[0].parent().unwrap()).unwrap();
    assert_eq!(test.store.lower_dirs(&image).unwrap(), dirs);
    assert_eq!(fs::read(dirs[0].join("b")).unwrap(), b"1");
}

#[test]
fn damage_is_told() {
    let test = TestStore::new();
    let image = import(&test, "hurt", "1");
    let other = import(&test, "well", "2");
    let blob = |digest: berth_images::Digest| test.images().join("blobs/sha256").join(digest.hex());
    fs::remove_file(blob(image.id)).unwrap();
    let error = test.store.resolve("hurt").unwrap_err().to_string();
    assert!(error.contains("configuration") && error.contains("pull or load it again"), "{error}");
    assert_eq!(test.store.list().unwrap().len(), 1);
    assert!(test.store.resolve(&other.id.hex()[..10]).is_ok());
    let text = fs::read_to_string(blob(other.manifest_digest)).unwrap();
    fs::write(blob(other.manifest_digest), text.replace("sha256", "sha257")).unwrap();
    let error = test.store.resolve("well").unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    // It can be removed all the same.
    test.store.remove("hurt", false, nobody).unwrap();
    fs::write(test.images().join("index.json"), "{").unwrap();
    let error = test.store.list().unwrap_err().to_string();
    assert!(error.contains("index.json is not valid"), "{error}");
}

#[test]
fn sweeping_removes_what_killed_processes_left() {
    let test = TestStore::new();
    let ingest = test.images().join("ingest");
    fs::create_dir_all(ingest.join("1-dead/fs/deep")).unwrap();
    fs::write(ingest.join("2-dead"), "").unwrap();
    test.store.sweep().unwrap();
    assert_eq!(count(&test, "ingest"), 0);
}
