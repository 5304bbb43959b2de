//! `pull`, `push` and `login` with a real registry: TLS, a password, tags, digests and indexes.

use std::fs;
use std::time::Duration;

use berth_tests::command::Cmd;
use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::layout::{self, Layer, Layout};
use berth_tests::registry::{PASSWORD, Registry, USER};
use serde_json::json;

/// `berth` with the registry's authority as one to trust.
fn trusting(home: &Home, registry: &Registry, words: &str) -> Cmd {
    home.berth(words).arg("--tls-ca").arg(registry.authority())
}

fn login(home: &Home, registry: &Registry) {
    let words = format!("login --username {USER} --password-stdin {}", registry.host());
    let _ = trusting(home, registry, &words).stdin(PASSWORD).ok();
}

fn skopeo(registry: &Registry, words: &str) -> Cmd {
    Cmd::new("skopeo", &format!("--insecure-policy {words}"))
        .arg(format!("--creds={USER}:{PASSWORD}"))
        .arg("--cert-dir")
        .arg(registry.certificate_dir())
}

/// The fixture image, put into the registry by skopeo.
fn copy_in(home: &Home, registry: &Registry, flags: &str, name: &str) {
    let rootfs = fs::read(fixtures::busybox_rootfs()).unwrap();
    copy_layer_in(home, registry, flags, name, Layer::gzip(&rootfs));
}

fn copy_layer_in(home: &Home, registry: &Registry, flags: &str, name: &str, layer: Layer) {
    let folder = format!("layout-{}", name.replace(['/', ':'], "-"));
    let layout = Layout::new(home.scratch().join(folder));
    layout.image("it", &[layer], &json!({ "Cmd": ["sh"] }));
    let _ = Cmd::new("skopeo", &format!("--insecure-policy copy --quiet {flags}"))
        .arg(format!("--dest-creds={USER}:{PASSWORD}"))
        .arg("--dest-cert-dir")
        .arg(registry.certificate_dir())
        .arg(format!("oci:{}:it", layout.path().display()))
        .arg(format!("docker://{}", registry.reference(name)))
        .ok();
}

#[test]
fn login_pull_and_push() {
    let home = Home::empty();
    let registry = Registry::start(&home.scratch());
    copy_in(&home, &registry, "", "boats/busybox:1");
    let name = registry.reference("boats/busybox:1");

    trusting(&home, &registry, "pull").arg(&name).run().fails_with("login");
    let words = format!("login --username {USER} --password-stdin {}", registry.host());
    trusting(&home, &registry, &words).stdin("wrong").run().fails_with("");
    login(&home, &registry);
    home.berth("pull").arg(&name).run().fails_with("certificate");

    let _ = trusting(&home, &registry, "pull").arg(&name).ok();
    assert_eq!(home.berth("run --rm").args([&name, "echo", "pulled"]).ok().text(), "pulled\n");

    let pushed = registry.reference("other/place:2");
    let _ = home.berth("tag").args([&name, &pushed]).ok();
    let _ = trusting(&home, &registry, "push").arg(&pushed).ok();
    let inspected = skopeo(&registry, "inspect").arg(format!("docker://{pushed}")).ok().json();
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 1);
    let copy = home.scratch().join("copy");
    let _ = Cmd::new("skopeo", "--insecure-policy copy --quiet")
        .arg(format!("--src-creds={USER}:{PASSWORD}"))
        .arg("--src-cert-dir")
        .arg(registry.certificate_dir())
        .arg(format!("docker://{pushed}"))
        .arg(format!("oci:{}:it", copy.display()))
        .ok();
    let _ =
        Cmd::new("umoci", "unpack --image").arg(format!("{}:it", copy.display())).arg(home.scratch().join("b")).ok();
    assert!(home.scratch().join("b/rootfs/bin/busybox").exists());
}

#[test]
fn pull_by_digest_and_docker_media_types() {
    let home = Home::empty();
    let registry = Registry::start(&home.scratch());
    copy_in(&home, &registry, "--format v2s2", "docker:1");
    let rootfs = fs::read(fixtures::busybox_rootfs()).unwrap();
    copy_layer_in(&home, &registry, "", "zstd:1", Layer::zstd(&rootfs));
    copy_in(&home, &registry, "", "digest:1");
    login(&home, &registry);
    let digest = skopeo(&registry, "inspect").arg(format!("docker://{}", registry.reference("digest:1"))).ok().json();
    let digest = digest["Digest"].as_str().unwrap().to_owned();
    for name in ["docker:1".to_owned(), "zstd:1".to_owned(), format!("digest@{digest}")] {
        let name = registry.reference(&name);
        let _ = trusting(&home, &registry, "pull --quiet").arg(&name).ok();
        assert_eq!(home.berth("run --rm").args([&name, "echo", "runs"]).ok().text(), "runs\n", "{name}");
    }
    let wrong = registry.reference(&format!("digest@{}", layout::digest(b"something else")));
    trusting(&home, &registry, "pull").arg(&wrong).run().fails_with("");
}

#[test]
fn run_pulls_what_is_missing() {
    let home = Home::empty();
    let registry = Registry::start(&home.scratch());
    copy_in(&home, &registry, "", "it:1");
    login(&home, &registry);
    let _trust = registry.trust();
    let name = registry.reference("it:1");
    let run = |pull: &str| {
        let command = home.berth(&format!("run --rm --pull {pull}"));
        command.args([&name, "echo", "x"]).timeout(Duration::from_mins(3)).run()
    };
    run("never").code(125).fails_with("it:1");
    let out = run("missing").code(0);
    assert_eq!(out.text(), "x\n", "progress does not mix with the command's output");
    assert_eq!(run("always").code(0).text(), "x\n");
    let host = registry.host();
    drop(registry);
    assert_eq!(run("missing").code(0).text(), "x\n");
    run("always").code(125).fails_with(&host);
}

#[test]
fn eight_pulls_at_once() {
    let home = Home::empty();
    let registry = Registry::start(&home.scratch());
    copy_in(&home, &registry, "", "it:1");
    login(&home, &registry);
    let pulls: Vec<_> =
        (0..8).map(|_| trusting(&home, &registry, "pull").arg(registry.reference("it:1")).spawn()).collect();
    for pull in pulls {
        let _ = pull.wait().code(0);
    }
    assert_eq!(home.berth("images -q").ok().text().lines().count(), 1);
    assert_eq!(home.berth("run --rm").args([&*registry.reference("it:1"), "echo", "x"]).ok().text(), "x\n");
}

#[test]
fn logout_forgets() {
    let home = Home::empty();
    let registry = Registry::start(&home.scratch());
    copy_in(&home, &registry, "", "it:1");
    login(&home, &registry);
    let config = home.path().join(".docker/config.json");
    assert!(fs::read_to_string(&config).unwrap().contains(&registry.host()));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&config).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "others can read the password");
    let _ = home.berth("logout").arg(registry.host()).ok();
    trusting(&home, &registry, "pull").arg(registry.reference("it:1")).run().fails_with("login");
}
