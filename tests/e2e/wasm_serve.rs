//! `berth wasm serve`: a component answers HTTP requests, and outlives what they do to it.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use berth_tests::home::Home;
use berth_tests::{fixtures, wait, wasm};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How long an answer may take before a test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// An address that nobody listened on just now.
fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("a free port")
}

/// Status and body of the answer to a GET.
fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.unwrap_or_else(|| panic!("no status in {text:?}")), body.to_owned()))
}

#[track_caller]
fn expect(address: SocketAddr, path: &str, status: u16) {
    assert_eq!(get(address, path).unwrap_or_else(|error| panic!("{path}: {error}")).0, status, "{path}");
}

/// How many requests for `/count` the instance has had that answers this one.
fn count(address: SocketAddr) -> String {
    let (_, body) = get(address, "/count").unwrap();
    // It may come in chunks, between the lengths of which it is the line that ends as the component's do.
    body.split("\r\n").find_map(|part| part.strip_suffix('\n')).unwrap_or_default().to_owned()
}

/// What the host has counted.
fn metric(metrics: SocketAddr, name: &str) -> f64 {
    let (_, text) = get(metrics, "/metrics").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// The handler, served as the container `it`.
fn served(home: &Home, flags: &str) -> SocketAddr {
    let address = free_address();
    let handler = wasm::handler(&home.scratch());
    let _ = home.berth(&format!("wasm serve -d --name it --listen {address} {flags}")).arg(handler).ok();
    address
}

#[test]
fn a_component_answers_and_survives_what_goes_wrong() {
    let home = Home::empty();
    let metrics = free_address();
    let flags = format!("--timeout 700ms --memory 128m --request-memory 16m --concurrency 4 --metrics {metrics}");
    let address = served(&home, &flags);
    let (status, body) = get(address, "/").unwrap();
    assert_eq!((status, body.contains("hello")), (200, true), "{body:?}");
    for (path, status) in [("/spin", 504), ("/wait", 504), ("/trap", 500), ("/eat", 200), ("/none", 502), ("/", 200)] {
        expect(address, path, status);
    }
    // More spin at once than there is room for; the others still get their turn.
    let spinning: Vec<_> =
        (0..6).map(|_| thread::spawn(move || get(address, "/spin").map(|(status, _)| status))).collect();
    for thread in spinning {
        let status = thread.join().unwrap().unwrap();
        assert!([503, 504].contains(&status), "{status}");
    }
    let many: Vec<_> = (0..8)
        .map(|_| thread::spawn(move || (0..25).all(|_| get(address, "/").is_ok_and(|(status, _)| status == 200))))
        .collect();
    assert!(many.into_iter().all(|thread| thread.join().unwrap()), "all are answered");

    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n").unwrap();
    drop(stream);
    expect(address, "/", 200);

    let many = |name: &str, least: f64| assert!(metric(metrics, name) >= least, "{name}");
    many("berth_wasm_requests_total{outcome=\"answered\"}", 203.0);
    many("berth_wasm_requests_total{outcome=\"timed_out\"}", 2.0);
    many("berth_wasm_instantiation_seconds_count", 203.0);
    expect(metrics, "/other", 404);
    assert!(home.berth("ps").ok().text().contains("handler.wasm"));
    home.expect_log("it", "");
    assert!(home.berth("logs it").ok().stderr_text().contains("unreachable"), "a failure is in the log");
}

#[test]
fn an_instance_answers_as_many_requests_as_it_may() {
    let home = Home::empty();
    let counts = |address, times| (0..times).map(|_| count(address)).collect::<String>();
    let address = served(&home, "");
    assert_eq!(counts(address, 3), "111", "each has an instance of its own");
    let _ = home.berth("rm -f it").ok();

    let address = served(&home, "--requests-per-instance 3 --timeout 700ms");
    assert_eq!(counts(address, 7), "1231231");
    // What fails, or takes too long, is not used again.
    for (path, status) in [("/trap", 500), ("/spin", 504), ("/none", 502)] {
        assert_eq!(count(address), if path == "/trap" { "2" } else { "1" });
        expect(address, path, status);
    }
}

#[test]
fn thousands_of_instances_are_at_work_at_once() {
    const INSTANCES: u32 = 2_000;
    // A socket each, beside those of the other tests.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(soft.max(u64::from(3 * INSTANCES))), hard).unwrap();
    let home = Home::empty();
    let metrics = free_address();
    let address = served(&home, &format!("--concurrency {INSTANCES} --timeout 5m --metrics {metrics}"));
    let _waiting: Vec<TcpStream> = (0..INSTANCES)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(b"GET /long HTTP/1.1\r\nHost: berth\r\n\r\n").unwrap();
            stream
        })
        .collect();
    wait::until("all have an instance", || {
        metric(metrics, "berth_wasm_instantiation_seconds_count") >= f64::from(INSTANCES)
    });
    assert!(metric(metrics, "berth_wasm_requests_in_flight") >= f64::from(INSTANCES));
    let _ = home.berth("kill it").ok();
}

#[test]
fn a_stop_waits_for_the_last_answer() {
    let home = Home::empty();
    let address = served(&home, "");
    expect(address, "/", 200);
    let last = thread::spawn(move || get(address, "/wait").map(|(status, _)| status));
    // The request is under way when the host has connections beside its listening socket.
    let pid = home.pid("it");
    wait::until("the request has been taken", || {
        let sockets = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let is_socket = |entry: &std::fs::DirEntry| {
            std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        sockets.filter(is_socket).count() > 1
    });
    let before = Instant::now();
    let _ = home.berth("stop it").ok();
    assert_eq!(last.join().unwrap().unwrap(), 200);
    assert!(before.elapsed() < Duration::from_secs(8), "it ended by itself");
    assert_eq!(home.inspect("it")["State"]["ExitCode"], 0);
    assert!(get(address, "/").is_err(), "nobody listens any more");
}

#[test]
fn what_cannot_serve_is_refused() {
    let home = Home::empty();
    let address = free_address();
    let serve = |words: &str| home.berth(&format!("wasm serve --rm --listen {address} {words}"));
    serve("").arg(fixtures::wasm_program()).run().code(126).fails_with("berth run");
    serve("").arg(wasm::component(&home.scratch())).run().code(126).fails_with("berth run");
    serve("--fuel 5").arg(fixtures::wasm_program()).run().code(125).fails_with("--fuel");
    let _taken = TcpListener::bind(address).unwrap();
    serve("").arg(wasm::handler(&home.scratch())).run().code(125).fails_with("listen");
}
