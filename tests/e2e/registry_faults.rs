//! Registries that fail, stall or lie.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use berth_tests::command::Output;
use berth_tests::fault_server::{FaultServer, Request, Response};
use berth_tests::fixtures;
use berth_tests::home::Home;
use berth_tests::layout::{self, Layer, Layout};
use serde_json::json;

/// Longer than berth tries again and again.
const PATIENT: Duration = Duration::from_mins(4);

fn image(home: &Home) -> Layout {
    let layout = Layout::new(home.scratch().join("layout"));
    layout.image("1", &[Layer::gzip(&fs::read(fixtures::busybox_rootfs()).unwrap())], &json!({ "Cmd": ["sh"] }));
    layout
}

fn largest_blob(layout: &Layout) -> String {
    let blobs = fs::read_dir(layout.path().join("blobs/sha256")).unwrap().flatten();
    let largest = blobs.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap();
    format!("/blobs/sha256:{}", largest.file_name().to_str().unwrap())
}

fn pull(home: &Home, server: &FaultServer) -> Output {
    home.berth("pull").arg(server.reference("it:1")).timeout(PATIENT).run()
}

#[track_caller]
fn fails(
    layout: &Path,
    home: &Home,
    words: &str,
    fault: impl Fn(&Request, &Response) -> Option<Response> + Send + Sync + 'static,
) {
    let server = FaultServer::serve(layout, fault);
    pull(home, &server).fails_with(words);
    assert_eq!(home.berth("images -q").ok().text(), "");
}

#[test]
fn plain_http_works_on_loopback() {
    let home = Home::empty();
    let layout = image(&home);
    let server = FaultServer::serve(layout.path(), |_, _| None);
    let _ = pull(&home, &server).code(0);
    let out = home.berth("run --rm").args([&*server.reference("it:1"), "echo", "fine"]).ok();
    assert_eq!(out.text(), "fine\n");
}

#[test]
fn refusals_are_told_with_what_to_do() {
    let home = Home::empty();
    let layout = image(&home);
    let realm = "Basic realm=\"test\"";
    fails(layout.path(), &home, "login", move |_, _| Some(Response::status(401).header("WWW-Authenticate", realm)));
    fails(layout.path(), &home, "it:1", |request, _| {
        request.path.contains("/manifests/").then(|| Response::status(404))
    });
    fails(layout.path(), &home, "", |request, _| request.path.contains("/blobs/").then(|| Response::status(404)));
    fails(layout.path(), &home, "login", |_, _| Some(Response::status(403)));
}

#[test]
fn errors_that_pass_are_tried_again() {
    let home = Home::empty();
    let layout = image(&home);
    for status in [429, 500, 502, 503] {
        let home = Home::empty();
        let server = FaultServer::serve(layout.path(), move |request, _| {
            (request.earlier == 0).then(|| Response::status(status).header("Retry-After", "0"))
        });
        let _ = pull(&home, &server).code(0);
    }
}

#[test]
fn errors_that_stay_are_given_up() {
    let home = Home::empty();
    let layout = image(&home);
    fails(layout.path(), &home, "429", |request, _| {
        request.path.contains("/manifests/").then(|| Response::status(429))
    });
    fails(layout.path(), &home, "500", |request, _| request.path.contains("/blobs/").then(|| Response::status(500)));
}

#[test]
fn an_interrupted_blob_is_resumed() {
    let home = Home::empty();
    let layout = image(&home);
    let blob = largest_blob(&layout);
    let path = blob.clone();
    let server = FaultServer::serve(layout.path(), move |request, right| {
        (request.path.ends_with(&path) && request.earlier == 0)
            .then(|| Response { cut_at: Some(right.body.len() / 2), ..right.clone() })
    });
    let _ = pull(&home, &server).code(0);
    let asked: Vec<_> =
        server.requests().into_iter().filter(|r| r.method == "GET" && r.path.ends_with(&blob)).collect();
    assert!(asked.len() >= 2, "{asked:?}");
    assert!(asked[1..].iter().any(|r| r.range.as_deref().is_some_and(|range| range != "bytes=0-")), "{asked:?}");
}

#[test]
fn a_registry_without_ranges_is_asked_for_the_whole() {
    let home = Home::empty();
    let layout = image(&home);
    let (blob, bytes) = (largest_blob(&layout), layout.path().join("blobs"));
    let server = FaultServer::serve(layout.path(), move |request, right| {
        if !request.path.ends_with(&blob) {
            return None;
        }
        let body = fs::read(bytes.join(blob["/blobs/".len()..].replace(':', "/"))).unwrap();
        let cut_at = (request.earlier == 0).then_some(body.len() / 2);
        Some(Response { status: 200, body, cut_at, headers: right.headers.clone(), silent: false })
    });
    let _ = pull(&home, &server).code(0);
    assert_eq!(home.berth("run --rm").args([&*server.reference("it:1"), "echo", "x"]).ok().text(), "x\n");
}

#[test]
fn content_that_is_not_what_was_asked_for() {
    let home = Home::empty();
    let layout = image(&home);
    let blob = largest_blob(&layout);
    fails(layout.path(), &home, "sha256", move |request, right| {
        request.path.ends_with(&blob).then(|| {
            let mut wrong = right.clone();
            let at = wrong.body.len() / 3;
            wrong.body[at] ^= 1;
            wrong
        })
    });
    let blob = largest_blob(&layout);
    fails(layout.path(), &home, "", move |request, right| {
        request.path.ends_with(&blob).then(|| Response { status: 200, body: b"short".to_vec(), ..right.clone() })
    });
    // More than the manifest says, without an end in sight.
    let blob = largest_blob(&layout);
    fails(layout.path(), &home, "", move |request, right| {
        request.path.ends_with(&blob).then(|| {
            let mut wrong = right.clone();
            wrong.body.extend_from_slice(&vec![0; 32 << 20]);
            wrong
        })
    });
    // A manifest by digest that is another one.
    let manifest = json!({ "schemaVersion": 2 }).to_string();
    let server = FaultServer::serve(layout.path(), move |request, right| {
        request.path.contains("/manifests/sha256:").then(|| Response { body: manifest.clone().into(), ..right.clone() })
    });
    let name = server.reference(&format!("it@{}", layout::digest(b"asked for")));
    home.berth("pull").arg(name).timeout(PATIENT).run().fails_with("");
    // A manifest without bounds.
    fails(layout.path(), &home, "", |request, right| {
        request.path.contains("/manifests/").then(|| Response { body: vec![b' '; 64 << 20], ..right.clone() })
    });
}

#[test]
fn a_registry_that_falls_silent_is_given_up() {
    let home = Home::empty();
    let layout = image(&home);
    let blob = largest_blob(&layout);
    fails(layout.path(), &home, "", move |request, right| {
        request.path.ends_with(&blob).then(|| Response { silent: true, ..right.clone() })
    });
}

#[test]
fn an_index_is_searched_for_this_platform() {
    let home = Home::empty();
    let layout = Layout::new(home.scratch().join("layout"));
    let layer = Layer::gzip(&fs::read(fixtures::busybox_rootfs()).unwrap());
    let mut right =
        layout.manifest(&layout.config(std::slice::from_ref(&layer), &json!({ "Cmd": ["echo", "mine"] })), &[layer]);
    right["platform"] = json!({ "os": "linux", "architecture": layout::architecture() });
    let other = |os: &str, architecture: &str| {
        let mut descriptor =
            layout.blob(layout::MANIFEST, json!({ "other": [os, architecture] }).to_string().as_bytes());
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    };
    let others = [other("windows", layout::architecture()), other("linux", "s390x")];
    let index = |manifests: Vec<serde_json::Value>| {
        let index = json!({ "schemaVersion": 2, "mediaType": layout::INDEX, "manifests": manifests });
        layout.blob(layout::INDEX, index.to_string().as_bytes())
    };
    layout
        .write_index(&[("1", index(vec![others[0].clone(), others[1].clone(), right])), ("2", index(others.to_vec()))]);
    let server = FaultServer::serve(layout.path(), |_, _| None);
    let _ = pull(&home, &server).code(0);
    assert_eq!(home.berth("run --rm").arg(server.reference("it:1")).ok().text(), "mine\n");
    home.berth("pull").arg(server.reference("it:2")).run().fails_with("s390x");
}

#[test]
fn an_interrupt_while_pulling_leaves_nothing_half() {
    let home = Home::empty();
    let layout = image(&home);
    let blob = largest_blob(&layout);
    let stall = Arc::new(AtomicBool::new(true));
    let stalled = Arc::clone(&stall);
    let server = FaultServer::serve(layout.path(), move |request, right| {
        (request.path.ends_with(&blob) && stalled.load(Ordering::Relaxed))
            .then(|| Response { silent: true, ..right.clone() })
    });
    for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGKILL] {
        let running = home.berth("pull").arg(server.reference("it:1")).spawn();
        berth_tests::wait::until("the layer is asked for", || {
            server.requests().iter().any(|r| r.path.contains("/blobs/"))
        });
        running.signal(signal);
        assert!(running.wait().exit_code() != 0);
        assert_eq!(home.berth("images -q").ok().text(), "");
    }
    stall.store(false, Ordering::Relaxed);
    let _ = pull(&home, &server).code(0);
    let ingest = fs::read_dir(home.data().join("images/ingest")).map_or(0, Iterator::count);
    assert_eq!(ingest, 0, "what the interrupted pulls left is gone");
}
