//! Registries that fail: a scripted server on loopback plays every part.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_images::{Connection, Digest, Error, PullOptions, Quiet, pull};

use crate::support::{Tar, TestStore, write_layout};

type Headers = HashMap<String, String>;
/// Path and headers of a request, and how many times this path was asked for before: what to send back, raw.
type Script = dyn Fn(&str, &Headers, usize) -> Option<Vec<u8>> + Send + Sync;

/// Serves one image with one layer, except where the script answers.
struct Faulty {
    host: String,
    layer: Vec<u8>,
    asked: Arc<Mutex<Vec<(String, Headers)>>>,
}

fn answer(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len())
            .into_bytes();
    answer.extend(body);
    answer
}

impl Faulty {
    fn start(script: impl Fn(&str, &Headers, usize) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layer = layer();
        write_layout(folder.path(), "x:1", std::slice::from_ref(&layer));
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        // By digest, in memory: the server outlives the test, and would leave the folder behind.
        let blobs: HashMap<String, Vec<u8>> = fs::read_dir(folder.path().join("blobs/sha256"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let digest = format!("sha256:{}", entry.file_name().into_string().unwrap());
                (digest, fs::read(entry.path()).unwrap())
            })
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let script: Arc<Script> = Arc::new(script);
        // Lives as long as the test program; its socket is nobody else's.
        std::thread::spawn(move || {
            let blobs = Arc::new(blobs);
            for stream in listener.incoming() {
                let (blobs, script, log) = (Arc::clone(&blobs), Arc::clone(&script), Arc::clone(&log));
                let manifest = manifest.clone();
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some((path, headers)) = read_request(&stream) else {
                        return;
                    };
                    let before = {
                        let mut log = log.lock().unwrap();
                        let before = log.iter().filter(|(other, _)| *other == path).count();
                        log.push((path.clone(), headers.clone()));
                        before
                    };
                    let reply = script(&path, &headers, before).unwrap_or_else(|| {
                        if path == "/v2/" {
                            answer("200 OK", "", b"")
                        } else if let Some(version) = path.strip_prefix("/v2/app/manifests/") {
                            let digest = if version.starts_with("sha256:") { version } else { &manifest };
                            let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
                            answer("200 OK", kind, &blobs[digest])
                        } else {
                            let content = &blobs[path.rsplit('/').next().unwrap()];
                            match headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'))
                            {
                                Some(start) => {
                                    let start: usize = start.parse().unwrap();
                                    let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
                                    answer(
                                        "206 Partial Content",
                                        &format!("Content-Range: {range}\r\n"),
                                        &content[start..],
                                    )
                                }
                                None => answer("200 OK", "", content),
                            }
                        }
                    });
                    // The client may have gone away on purpose.
                    let _ = stream.write_all(&reply);
                });
            }
        });
        Self { host, layer, asked }
    }

    fn pull(&self, test: &TestStore) -> berth_images::Result<berth_images::Image> {
        let connection = Connection {
            attempts: 3,
            delay: Duration::from_millis(5),
            timeout: Duration::from_millis(500),
            ..Connection::default()
        };
        let options = PullOptions { connection, platform: None };
        pull(&test.store, &format!("{}/app:1", self.host), &options, &Quiet)
    }

    fn asked(&self, path: &str) -> Vec<Headers> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(other, _)| other.contains(path)).map(|(_, headers)| headers.clone()).collect()
    }

    fn layer_path(&self) -> String {
        format!("blobs/{}", Digest::of(&self.layer))
    }
}

fn read_request(stream: &TcpStream) -> Option<(String, Headers)> {
    let mut lines = BufReader::new(stream).lines();
    // A TLS greeting is no text: berth tries that first.
    let first = lines.next()?.ok()?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = Headers::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some((path, headers))
}

/// The one layer of the image.
fn layer() -> Vec<u8> {
    Tar::new().file("content", (0..=255).cycle().take(2_000_000).collect::<Vec<u8>>()).done()
}

fn layer_digest() -> String {
    Digest::of(&layer()).to_string()
}

/// An answer that promises all of the layer and stops after a part.
fn cut_layer() -> Vec<u8> {
    let mut cut = answer("200 OK", "", &layer());
    cut.truncate(1_000_000);
    cut
}

#[test]
fn everything_well() {
    let server = Faulty::start(|_, _, _| None);
    let test = TestStore::new();
    let image = server.pull(&test).unwrap();
    assert!(test.store.lower_dirs(&image).unwrap()[0].join("content").exists());
}

#[test]
fn errors_that_pass_are_tried_again() {
    let digest = layer_digest();
    let server = Faulty::start(move |path, _, before| match before {
        0 if path.contains("manifests") => Some(answer("429 Too Many Requests", "Retry-After: 0\r\n", b"")),
        1 if path.contains("manifests") => Some(answer("503 Service Unavailable", "", b"")),
        0 if path.ends_with(&digest) => Some(answer("500 Internal Server Error", "", b"")),
        _ => None,
    });
    let test = TestStore::new();
    server.pull(&test).unwrap();
    assert_eq!(server.asked("manifests").len(), 3);
    assert_eq!(server.asked(&server.layer_path()).len(), 2);
}

#[test]
fn errors_that_stay_are_told() {
    for (status, expected) in [
        ("429 Too Many Requests", "HTTP 429"),
        ("500 Internal Server Error", "HTTP 500"),
        ("404 Not Found", "has no"),
        ("403 Forbidden", "berth login"),
        ("401 Unauthorized", "berth login"),
    ] {
        let server = Faulty::start(move |path, _, _| {
            let body = br#"{"errors":[{"code":"X","message":"in its own words"}]}"#;
            path.contains("manifests").then(|| answer(status, "", body))
        });
        let test = TestStore::new();
        let error = server.pull(&test).unwrap_err().to_string();
        assert!(error.contains(expected), "{status}: {error}");
        let in_words = status.starts_with("429") || status.starts_with("500");
        assert_eq!(error.contains("in its own words"), in_words, "{error}");
        test.assert_untouched();
    }
}

#[test]
fn a_token_is_fetched_and_shown() {
    let host = Arc::new(Mutex::new(String::new()));
    let realm = Arc::clone(&host);
    let server = Faulty::start(move |path, headers, _| {
        if path.starts_with("/token") {
            return Some(answer("200 OK", "", br#"{"token":"open-sesame"}"#));
        }
        let shown = headers.get("authorization").map(String::as_str) == Some("Bearer open-sesame");
        let header =
            format!("WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"s\"\r\n", realm.lock().unwrap());
        (path.contains("/app/") && !shown).then(|| answer("401 Unauthorized", &header, b""))
    });
    host.lock().unwrap().clone_from(&server.host);
    let test = TestStore::new();
    server.pull(&test).unwrap();
    let asked = server.asked.lock().unwrap();
    let token = asked.iter().find(|(path, _)| path.starts_with("/token")).unwrap();
    assert_eq!(token.0, "/token?service=s&scope=repository%3Aapp%3Apull");
}

#[test]
fn a_silent_registry() {
    let server = Faulty::start(|path, _, _| {
        if path.contains("manifests") {
            std::thread::sleep(Duration::from_secs(3));
        }
        None
    });
    let test = TestStore::new();
    let error = server.pull(&test).unwrap_err().to_string();
    assert!(error.contains("did not answer in time"), "{error}");
    test.assert_untouched();
}

#[test]
fn nobody_listens() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let test = TestStore::new();
    let connection = Connection { attempts: 1, ..Connection::default() };
    let options = PullOptions { connection, platform: None };
    let error = pull(&test.store, &format!("127.0.0.1:{port}/a"), &options, &Quiet).unwrap_err();
    assert!(matches!(error, Error::Connection { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn an_interrupted_blob_is_resumed() {
    let digest = layer_digest();
    let server = Faulty::start(move |path, headers, before| {
        if !path.ends_with(&digest) || before > 0 {
            return None;
        }
        assert!(!headers.contains_key("range"));
        Some(cut_layer())
    });
    let test = TestStore::new();
    server.pull(&test).unwrap();
    let asked = server.asked(&server.layer_path());
    assert_eq!(asked.len(), 2);
    let range = asked[1]["range"].strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap();
    assert!(range.parse::<usize>().unwrap() > 900_000, "{range}");
}

#[test]
fn a_later_process_resumes() {
    let digest = layer_digest();
    let working = Arc::new(Mutex::new(false));
    let works = Arc::clone(&working);
    let server = Faulty::start(move |path, _, _| {
        if !path.ends_with(&digest) || *works.lock().unwrap() {
            return None;
        }
        Some(cut_layer())
    });
    let test = TestStore::new();
    let error = server.pull(&test).unwrap_err();
    assert!(matches!(error, Error::Connection { .. } | Error::SizeMismatch { .. }), "{error}");
    assert_eq!(test.store.list().unwrap(), []);
    *working.lock().unwrap() = true;
    // As another process would.
    let store = berth_images::Store::open(test.dir.path()).unwrap().with_unpacker(berth_images::Unpacker::InProcess);
    let before = server.asked(&server.layer_path()).len();
    let test = TestStore { store, dir: test.dir };
    server.pull(&test).unwrap();
    assert!(server.asked(&server.layer_path())[before]["range"].starts_with("bytes=9"));
    assert_eq!(fs::read_dir(test.images().join("ingest")).unwrap().count(), 0);
}

#[test]
fn a_resumed_blob_with_a_bad_start_is_fetched_anew() {
    let server = Faulty::start(|_, _, _| None);
    let test = TestStore::new();
    fs::create_dir(test.images().join("partial")).unwrap();
    let partial = test.images().join("partial").join(Digest::of(&server.layer).hex());
    fs::write(&partial, vec![9; 5000]).unwrap();
    server.pull(&test).unwrap();
    let asked = server.asked(&server.layer_path());
    assert_eq!(asked[0]["range"], "bytes=5000-");
    assert!(!asked[1].contains_key("range"));
}

#[test]
fn wrong_content() {
    let digest = layer_digest();
    let wrong = digest.clone();
    let server =
        Faulty::start(move |path, _, _| path.ends_with(&wrong).then(|| answer("200 OK", "", &vec![7; 2_001_920])));
    let test = TestStore::new();
    let error = server.pull(&test).unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. } | Error::SizeMismatch { .. }), "{error}");
    test.assert_untouched();
    // More than the descriptor says: not even read.
    let server =
        Faulty::start(move |path, _, _| path.ends_with(&digest).then(|| answer("200 OK", "", &vec![7; 9 << 20])));
    let error = server.pull(&test).unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");
}

#[test]
fn documents_that_are_none() {
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    for (kind, body, expected) in [
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}".to_vec(), "does not know"),
        (manifest, b"{}".to_vec(), "not valid"),
        (manifest, b"<html>".to_vec(), "not valid"),
        (manifest, vec![b' '; 5 << 20], "longer than"),
        (manifest, b"[".repeat(100_000), "not valid"),
    ] {
        let header = format!("Content-Type: {kind}\r\n");
        let server =
            Faulty::start(move |path, _, _| path.contains("manifests").then(|| answer("200 OK", &header, &body)));
        let test = TestStore::new();
        let error = server.pull(&test).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        test.assert_untouched();
    }
}

#[test]
fn garbage_collection_spares_a_pull_under_way() {
    let digest = layer_digest();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let server = Faulty::start(move |path, _, before| {
        if path.ends_with(&digest) && before == 0 {
            // Until the test has pruned, or given up.
            let _ = released.lock().unwrap().recv();
        }
        None
    });
    let test = TestStore::new();
    std::thread::scope(|scope| {
        let patient = Connection { timeout: Duration::from_mins(1), ..Connection::default() };
        let pulled = scope.spawn(|| {
            let options = PullOptions { connection: patient, platform: None };
            pull(&test.store, &format!("{}/app:1", server.host), &options, &Quiet)
        });
        while server.asked(&server.layer_path()).is_empty() && !pulled.is_finished() {
            std::thread::yield_now();
        }
        // The configuration is here, and no image names it yet.
        let blobs = || fs::read_dir(test.images().join("blobs/sha256")).unwrap().count();
        assert_eq!(blobs(), 1);
        test.store.prune(true, || Ok(Vec::new())).unwrap();
        assert_eq!(blobs(), 1);
        drop(release);
        let image = pulled.join().unwrap().unwrap();
        assert!(test.store.lower_dirs(&image).unwrap()[0].join("content").exists());
    });
}

#[test]
fn a_registry_that_goes_round_in_circles_is_given_up() {
    let digest = layer_digest();
    let server = Faulty::start(move |path, headers, _| {
        if !path.ends_with(&digest) {
            return None;
        }
        Some(match headers.get("range") {
            Some(_) => answer("416 Range Not Satisfiable", "", b""),
            // Without a length: it ends where it ends.
            None => [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", &layer()[..100]].concat(),
        })
    });
    let test = TestStore::new();
    let error = server.pull(&test).unwrap_err();
    assert!(matches!(error, Error::SizeMismatch { .. }), "{error}");
}
