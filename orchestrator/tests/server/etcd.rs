//! An etcd of one member on loopback. Also for tests of other crates.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::{DEADLINE, connect};

/// It runs until it is dropped.
pub struct Etcd {
    dir: TempDir,
    /// Where clients reach it, and where members would reach each other.
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Child>,
}

impl Etcd {
    /// Starts one, and waits until it answers.
    pub fn start() -> Etcd {
        // Another process may take a free port first: then try others.
        for _ in 0..5 {
            let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
            let [client, peer] = free.map(|listener| listener.local_addr().unwrap());
            let dir = tempfile::Builder::new().prefix("etcd-").tempdir().unwrap();
            let mut etcd = Etcd { dir, client, peer, process: None };
            if etcd.run() {
                return etcd;
            }
        }
        panic!("etcd does not start");
    }

    /// Starts it, again after it was killed: with the data it had. Whether it answers.
    pub fn run(&mut self) -> bool {
        let path = |name: &str| self.dir.path().join(name);
        let log = File::options().create(true).append(true).open(path("log")).unwrap();
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(path("data")).args(["--listen-client-urls", &client]);
        command.args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer]);
        command.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().expect("etcd can be started: scripts/setup test installs it");
        let process = self.process.insert(process);
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(self.client).is_ok() {
                // It answers when it is ready.
                let _ = self.rows();
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("etcd does not answer");
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.client
    }

    /// What masters are told.
    pub fn url(&self) -> String {
        format!("etcd://{}", self.address())
    }

    /// All that is there, as etcd shows it: keys, values, and when they were written.
    pub fn rows(&self) -> Value {
        // From the least key to the greatest.
        let all = json!({ "key": "AA==", "range_end": "AA==" });
        self.ask("/v3/kv/range", &all)["kvs"].clone()
    }

    pub fn ask(&self, path: &str, request: &Value) -> Value {
        let body = request.to_string();
        let mut stream = connect(self.client);
        // An answer of HTTP 1.0 ends with the connection, and comes in no chunks.
        write!(stream, "POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
        assert!(head.contains(" 200 "), "{path}: {answer}");
        serde_json::from_str(body).unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
