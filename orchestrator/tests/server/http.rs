//! HTTP as bytes, and a framework that knows of a master what the public API says. Also for tests of other crates.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends bytes over a connection of its own and reads the answer.
pub fn send(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    Answer::read(&mut BufReader::new(stream))
}

pub fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\nContent-Type: application/json\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// An answer, its body without the chunks it came in.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn read(reader: &mut impl BufRead) -> Answer {
        let mut answer = Answer::read_head(reader);
        let length = answer.header("content-length").map(|length| length.parse::<usize>().unwrap());
        let mut body = vec![0; length.unwrap_or_default()];
        reader.read_exact(&mut body).unwrap();
        answer.body = String::from_utf8(body).unwrap();
        answer
    }

    pub fn read_head(reader: &mut impl BufRead) -> Answer {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the answer ends in its head: {lines:?}");
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &String| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Answer { status, headers: lines[1..].iter().map(header).collect(), body: String::new() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The next event of a stream: one chunk, which is one record, which is one line of JSON. None at the end.
pub fn next_event(stream: &mut impl BufRead) -> Option<Value> {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
    if size == 0 {
        return None;
    }
    let mut chunk = vec![0; size + 2];
    stream.read_exact(&mut chunk).unwrap();
    let chunk = std::str::from_utf8(&chunk[..size]).unwrap();
    let (length, record) = chunk.split_once('\n').unwrap();
    assert_eq!(length.parse(), Ok(record.len()));
    assert!(!record.contains('\n'));
    Some(serde_json::from_str(record).unwrap())
}

/// A framework that is subscribed.
pub struct Framework {
    master: SocketAddr,
    stream: BufReader<TcpStream>,
    pub stream_id: String,
    pub id: String,
    pub subscribed: Value,
    /// Offers that came while something else was waited for.
    passed: VecDeque<Value>,
}

pub fn subscribe_call(id: Option<&str>) -> Value {
    let capabilities = json!([{ "type": "MULTI_ROLE" }, { "type": "PARTITION_AWARE" }]);
    let mut call = json!({
        "type": "SUBSCRIBE",
        "subscribe": { "framework_info": {
            "user": "root", "name": "test", "roles": ["a"], "capabilities": capabilities, "failover_timeout": 1000.0,
        } },
    });
    if let Some(id) = id {
        call["framework_id"] = json!({ "value": id });
        call["subscribe"]["framework_info"]["id"] = json!({ "value": id });
    }
    call
}

impl Framework {
    pub fn subscribe(master: SocketAddr, call: &Value) -> Framework {
        let mut stream = connect(master);
        // A client of old: no keep-alive, and a body in chunks.
        let body = call.to_string();
        let (first, second) = body.split_at(body.len() / 2);
        write!(
            stream,
            "POST /api/v1/scheduler HTTP/1.1\r\nHost: m\r\nConnection: close\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
            first.len(),
            second.len()
        )
        .unwrap();
        let mut stream = BufReader::new(stream);
        let head = Answer::read_head(&mut stream);
        assert_eq!(head.status, 200, "{head:?}");
        assert_eq!(head.header("transfer-encoding"), Some("chunked"), "even with Connection: close");
        assert_eq!(head.header("content-type"), Some("application/json"));
        let stream_id = head.header("mesos-stream-id").unwrap().to_owned();
        let (id, subscribed) = (String::new(), Value::Null);
        Framework { master, stream, stream_id, id, subscribed, passed: VecDeque::new() }
    }

    /// Subscribes, and is told its id.
    pub fn new(master: SocketAddr, call: &Value) -> Framework {
        let mut framework = Framework::subscribe(master, call);
        framework.subscribed = framework.next().expect("an event");
        assert_eq!(framework.subscribed["type"], "SUBSCRIBED");
        framework.id = framework.subscribed["subscribed"]["framework_id"]["value"].as_str().unwrap().to_owned();
        framework
    }

    /// The next event; none at the end of the stream.
    pub fn next(&mut self) -> Option<Value> {
        next_event(&mut self.stream)
    }

    /// The next event that is not a heartbeat.
    pub fn event(&mut self) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let event = self.next().expect("the stream goes on");
            let rescinded = &event["rescind"]["offer_id"];
            self.passed.retain(|offers| offers["offers"][0]["id"] != *rescinded);
            if event["type"] != "HEARTBEAT" {
                return event;
            }
            assert!(Instant::now() < end, "nothing but heartbeats");
        }
    }

    /// The next event of a type, whatever comes before it. Offers that do are kept for [`Self::offer`].
    pub fn expect(&mut self, kind: &str) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let mut event = self.event();
            if event["type"] == kind {
                return event[kind.to_ascii_lowercase()].take();
            }
            assert!(Instant::now() < end, "no {kind}, but {event}");
            if event["type"] == "OFFERS" {
                self.passed.push_back(event["offers"].take());
            }
        }
    }

    pub fn offer(&mut self) -> Value {
        let mut offers = self.passed.pop_front().unwrap_or_else(|| self.expect("OFFERS"));
        assert_eq!(offers["offers"].as_array().unwrap().len(), 1);
        offers["offers"][0].take()
    }

    pub fn status(&mut self) -> Value {
        self.expect("UPDATE")["status"].take()
    }

    pub fn try_call(&self, mut call: Value) -> Answer {
        call["framework_id"] = json!({ "value": self.id });
        let stream_id = format!("Mesos-Stream-Id: {}\r\n", self.stream_id);
        send(self.master, post("/api/v1/scheduler", &stream_id, &call.to_string()).as_bytes())
    }

    pub fn call(&self, call: Value) {
        let answer = self.try_call(call);
        assert_eq!((answer.status, &*answer.body), (202, ""));
    }

    /// Launches a task with an offer. Memory is in MiB; `what` has the fields that say what it is.
    pub fn launch_as(&self, offer: &Value, task: &str, cpus: f64, memory: f64, what: Value) {
        let mut task = json!({
            "name": "a task",
            "task_id": { "value": task },
            "agent_id": offer["agent_id"],
            "resources": [
                { "name": "cpus", "type": "SCALAR", "scalar": { "value": cpus }, "role": null, "reservations": null },
                { "name": "mem", "type": "SCALAR", "scalar": { "value": memory } },
            ],
        });
        let Value::Object(fields) = what else { panic!("{what} has no fields") };
        task.as_object_mut().unwrap().extend(fields);
        let operations = json!([{ "type": "LAUNCH", "launch": { "task_infos": [task] } }]);
        self.call(json!({
            "type": "ACCEPT",
            "accept": { "offer_ids": [offer["id"]], "operations": operations, "filters": { "refuse_seconds": 0.0 } },
        }));
    }
}
