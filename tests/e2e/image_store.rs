//! The image store: names, tags, removal, garbage, and many processes at once.

use std::fs;

use berth_tests::home::Home;
use berth_tests::layout::{Layer, Layout};
use berth_tests::tar_file::TarFile;
use serde_json::json;

/// A layout with a small image of its own content.
fn small(home: &Home, name: &str) -> Layout {
    let layout = Layout::new(home.scratch().join(name));
    let layer = Layer::gzip(&TarFile::new().file("name", name).finish());
    layout.image(&format!("{name}:1"), &[layer], &json!({ "Cmd": ["/name"] }));
    layout
}

fn load(home: &Home, name: &str) {
    let layout = small(home, name);
    let _ = home.berth("load -i").arg(layout.path()).ok();
}

fn blobs(home: &Home) -> usize {
    fs::read_dir(home.data().join("images/blobs/sha256")).unwrap().count()
}

#[test]
fn images_lists() {
    let home = Home::new();
    load(&home, "other");
    let text = home.berth("images").ok().text();
    let busybox = text.lines().find(|line| line.starts_with("busybox")).unwrap_or_else(|| panic!("{text}"));
    assert!(busybox.contains("latest") && busybox.contains('B'), "{busybox}");
    assert!(text.contains("other"), "{text}");
    assert_eq!(home.berth("images -q").ok().text().lines().count(), 2);
    assert_eq!(home.berth("images -q busybox").ok().text().lines().count(), 1);
}

#[test]
fn an_image_goes_by_name_tag_digest_and_prefix() {
    let home = Home::new();
    let info = home.berth("image inspect busybox").ok().json();
    let id = info[0]["Id"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    for name in ["busybox", "busybox:latest", "docker.io/library/busybox", &id, &id[..12], &format!("sha256:{id}")] {
        let found = home.berth("image inspect").arg(name).ok().json();
        assert!(found[0]["Id"].as_str().unwrap().ends_with(&id), "{name}");
    }
    assert_eq!(home.berth("run --rm").args([&id[..12], "echo", "x"]).ok().text(), "x\n");
    home.berth("image inspect busybox:other").run().fails_with("busybox:other");
    home.berth("run --pull never busybox:other true").run().code(125).fails_with("busybox:other");
    home.berth("run --pull never UPPER/case true").run().code(125).fails_with("UPPER/case");
}

#[test]
fn tag_and_rmi() {
    let home = Home::new();
    let _ = home.berth("tag busybox example.org:5000/boats/busybox:v1").ok();
    assert_eq!(home.berth("run --rm example.org:5000/boats/busybox:v1 echo x").ok().text(), "x\n");
    let _ = home.berth("rmi busybox").ok();
    home.berth("image inspect busybox").run().fails_with("busybox");
    assert_eq!(home.berth("run --rm example.org:5000/boats/busybox:v1 echo x").ok().text(), "x\n");
    let _ = home.berth("rmi example.org:5000/boats/busybox:v1").ok();
    assert_eq!(home.berth("images -q").ok().text(), "");
    assert_eq!(blobs(&home), 0, "nothing needs the blobs any more");
    home.berth("rmi busybox").run().fails_with("busybox");
    home.berth("tag no-such other").run().fails_with("no-such");
}

#[test]
fn rmi_leaves_what_a_container_uses() {
    let home = Home::new();
    let id = home.detached("", "exec sleep 1000");
    let name = home.inspect(&id)["Name"].as_str().unwrap().trim_start_matches('/').to_owned();
    home.berth("rmi busybox").run().fails_with(&name);
    let _ = home.berth("run --rm busybox true").ok();
    let _ = home.berth("rmi -f busybox").ok();
    let _ = home.berth("image prune -a -f").ok();
    assert_eq!(home.berth("exec").args([&id, "cat", "/etc/passwd"]).ok().text().lines().count(), 3);
    let _ = home.berth("restart -t 0").arg(&id).ok();
    assert_eq!(home.status(&id), "running", "its image was kept");
    let _ = home.berth("rm -f").arg(&id).ok();
    let _ = home.berth("image prune -a -f").ok();
    assert_eq!(blobs(&home), 0);
}

#[test]
fn prune_removes_what_nothing_names() {
    let home = Home::new();
    load(&home, "other");
    let _ = home.berth("tag busybox other:1").ok();
    let before = blobs(&home);
    let _ = home.berth("image prune -f").ok();
    assert!(blobs(&home) < before, "the image that lost its name is still there");
    let _ = home.berth("run --rm busybox true").ok();
    let _ = home.berth("image prune -a -f").ok();
    assert_eq!(blobs(&home), 0);
}

#[test]
fn history_and_inspect_describe() {
    let home = Home::new();
    let text = home.berth("image history busybox").ok().text();
    assert!(text.lines().count() >= 2, "a heading and a layer: {text}");
    let info = home.berth("image inspect busybox").ok().json();
    assert_eq!((&info[0]["Os"], &info[0]["Architecture"]), (&"linux".into(), &"amd64".into()));
    assert_eq!(info[0]["RootFS"]["Layers"].as_array().unwrap().len(), 1);
}

#[test]
fn the_store_is_an_oci_layout() {
    let home = Home::new();
    let images = home.data().join("images");
    let layout: serde_json::Value = serde_json::from_slice(&fs::read(images.join("oci-layout")).unwrap()).unwrap();
    assert_eq!(layout["imageLayoutVersion"], "1.0.0");
    for blob in fs::read_dir(images.join("blobs/sha256")).unwrap() {
        let path = blob.unwrap().path();
        let digest = berth_tests::layout::digest(&fs::read(&path).unwrap());
        assert!(digest.ends_with(path.file_name().unwrap().to_str().unwrap()), "{}", path.display());
    }
}

#[test]
fn eight_loads_at_once() {
    let home = Home::empty();
    let busybox = small(&home, "shared");
    let layouts: Vec<_> = (0..4).map(|n| small(&home, &format!("own-{n}"))).collect();
    let running: Vec<_> = layouts
        .iter()
        .flat_map(|own| [own.path(), busybox.path()])
        .map(|path| home.berth("load -i").arg(path).spawn())
        .collect();
    for command in running {
        let _ = command.wait().code(0);
    }
    assert_eq!(home.berth("images -q").ok().text().lines().count(), 5);
    for name in ["shared", "own-0", "own-3"] {
        let _ = home.berth(&format!("image inspect {name}:1")).ok();
    }
}

#[test]
fn garbage_is_collected_while_images_come_and_containers_run() {
    let home = Home::new();
    let layouts: Vec<_> = (0..6).map(|n| small(&home, &format!("own-{n}"))).collect();
    let keep = home.detached("", "exec sleep 1000");
    let mut running = Vec::new();
    for own in &layouts {
        running.push(home.berth("load -i").arg(own.path()).spawn());
        running.push(home.berth("image prune -f").spawn());
        running.push(home.berth("run --rm busybox cat /etc/passwd").spawn());
    }
    for command in running {
        let _ = command.wait().code(0);
    }
    assert_eq!(home.berth("images -q").ok().text().lines().count(), 7);
    assert_eq!(home.berth("exec").args([&keep, "echo", "fine"]).ok().trimmed(), "fine");
}

#[test]
fn twenty_containers_at_once() {
    let home = Home::new();
    let running: Vec<_> = (0..20).map(|n| home.shell("", &format!("echo {n}; exit {n}")).spawn()).collect();
    for (n, command) in running.into_iter().enumerate() {
        let out = command.wait();
        assert_eq!((out.exit_code(), out.trimmed()), (n as i32, n.to_string()), "{out:?}");
    }
}

#[test]
fn run_takes_an_image_of_the_platform_asked_for() {
    let home = Home::new();
    let _ = home.berth("run --rm --platform linux/amd64 busybox true").ok();
    home.berth("run --rm --platform linux/arm64 busybox true").run().code(125).fails_with("linux/amd64");
}
