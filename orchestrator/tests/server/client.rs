//! A master of one's own, and agents.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use berth_orchestrator::master::{AgentId, AgentInfo, FromAgent, Registration, ToAgent};
use berth_orchestrator::resources::{Quantities, Resources};
use berth_orchestrator::server::{Config, Server};
use berth_orchestrator::store::{MemoryStore, Store};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::http::{Answer, DEADLINE, Framework, connect, post, send};

pub const GIB: u64 = 1 << 30;

/// A master in a thread, which ends when it is dropped.
pub struct Master {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Master {
    pub fn start() -> Master {
        Master::with(Box::<MemoryStore>::default(), |_| {})
    }

    pub fn with(store: Box<dyn Store>, adjust: impl FnOnce(&mut Config)) -> Master {
        let mut config = Config::new("127.0.0.1:0".parse().unwrap());
        adjust(&mut config);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = runtime.block_on(Server::bind(config, store)).unwrap();
        let address = server.address();
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let shutdown = async { drop(stopped.await) };
            runtime.block_on(server.serve(shutdown)).unwrap();
        };
        Master { address, stop: Some(stop), thread: Some(std::thread::spawn(run)) }
    }

    /// Sends bytes and reads the answer.
    pub fn send(&self, request: &[u8]) -> Answer {
        send(self.address, request)
    }

    /// Sends a request again and again over one connection, and reads all answers: their status codes.
    pub fn flood(&self, request: &str, count: usize) -> Vec<u16> {
        let stream = connect(self.address);
        let mut writer = stream.try_clone().unwrap();
        let requests = request.repeat(count);
        let writing = std::thread::spawn(move || writer.write_all(requests.as_bytes()));
        let mut reader = BufReader::new(stream);
        let statuses = (0..count).map(|_| Answer::read(&mut reader).status).collect();
        writing.join().unwrap().unwrap();
        statuses
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").as_bytes())
    }

    /// Posts JSON with further headers.
    pub fn post(&self, path: &str, headers: &str, body: &Value) -> Answer {
        let body = body.to_string();
        self.send(post(path, headers, &body).as_bytes())
    }

    /// An operator's call: what it answers.
    pub fn operator(&self, call: &Value) -> Value {
        let answer = self.post("/api/v1", "", call);
        assert_eq!(answer.status, 200, "{call}: {}", answer.body);
        if answer.body.is_empty() { Value::Null } else { serde_json::from_str(&answer.body).unwrap() }
    }

    /// Asks again until the answer is as it should be.
    pub fn until(&self, call: &Value, condition: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = self.operator(call);
            if condition(&answer) {
                return answer;
            }
            assert!(Instant::now() < end, "waited in vain; {call} answers {answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the master panicked");
    }
}

impl Framework {
    /// Launches a task with the next offer, of which there is one.
    pub fn launch_next(&mut self, task: &str, cpus: f64, memory: f64) {
        let offer = self.offer();
        self.launch(&offer, task, cpus, memory);
    }

    /// Launches a task that does nothing with an offer.
    pub fn launch(&self, offer: &Value, task: &str, cpus: f64, memory: f64) {
        self.launch_as(offer, task, cpus, memory, json!({ "command": { "value": "true" } }));
    }
}

/// An agent.
pub struct Agent {
    stream: BufReader<TcpStream>,
    pub id: AgentId,
}

pub fn registration(id: Option<AgentId>) -> Registration {
    let ports = [31_000..=31_009].into_iter().collect();
    let resources = Resources { quantities: Quantities::new(4000, 8 * GIB), ports };
    let attributes = [("zone".to_owned(), "b".to_owned())].into();
    let info = AgentInfo { hostname: "127.0.0.1".to_owned(), port: 5051, resources, attributes };
    Registration { id, info, ..Registration::default() }
}

impl Agent {
    /// Connects, and says something before anything else.
    pub fn connect(master: &Master, first: &[u8]) -> BufReader<TcpStream> {
        let mut stream = connect(master.address);
        let upgrade = "GET /berth/agent HTTP/1.1\r\nHost: m\r\nConnection: upgrade\r\nUpgrade: berth-agent-1\r\n\r\n";
        stream.write_all(upgrade.as_bytes()).unwrap();
        let mut stream = BufReader::new(stream);
        assert_eq!(Answer::read_head(&mut stream).status, 101);
        stream.get_mut().write_all(first).unwrap();
        stream
    }

    pub fn register(master: &Master, registration: &Registration) -> Agent {
        let stream = Agent::connect(master, &record(&serde_json::to_string(registration).unwrap()));
        let mut agent = Agent { stream, id: "".into() };
        let ToAgent::Registered(id) = agent.next().unwrap() else { panic!("not registered") };
        agent.id = id;
        agent
    }

    /// What it is told next; none when the master has closed the connection.
    pub fn next(&mut self) -> Option<ToAgent> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        let mut record = vec![0; line.trim_end().parse().unwrap()];
        self.stream.read_exact(&mut record).unwrap();
        Some(serde_json::from_slice(&record).unwrap())
    }

    pub fn say(&mut self, message: &FromAgent) {
        let message = record(&serde_json::to_string(message).unwrap());
        self.stream.get_mut().write_all(&message).unwrap();
    }
}

pub fn record(text: &str) -> Vec<u8> {
    format!("{}\n{text}", text.len()).into_bytes()
}
