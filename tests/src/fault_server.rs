//! A registry in memory, plain HTTP on loopback, that serves one image layout and can be told to misbehave.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::layout;

/// What a request asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `HEAD`
    pub method: String,
    /// `/v2/…`
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// How many requests for the same method and path came before this one.
    pub earlier: usize,
}

/// What is answered.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Further header lines.
    pub headers: Vec<(String, String)>,
    /// The body; its length is told in advance.
    pub body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub cut_at: Option<usize>,
    /// Never answer: keep the connection open and silent.
    pub silent: bool,
}

impl Response {
    /// A status without content.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Fault = dyn Fn(&Request, &Response) -> Option<Response> + Send + Sync;

/// A server that runs until the test process ends; it takes nothing but a port.
pub struct FaultServer {
    address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl FaultServer {
    /// Serves the image with `tag` in `layout` under any name. `fault` sees each request with the right answer
    /// and may give another.
    pub fn serve(
        layout: &Path,
        fault: impl Fn(&Request, &Response) -> Option<Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        let layout: Arc<PathBuf> = Arc::new(layout.to_owned());
        let fault: Arc<Fault> = Arc::new(fault);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, layout, fault) = (Arc::clone(&log), Arc::clone(&layout), Arc::clone(&fault));
                std::thread::spawn(move || converse(stream, &layout, &*fault, &log));
            }
        });
        Self { address, requests }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// A reference to an image on this server.
    pub fn reference(&self, name_and_tag: &str) -> String {
        format!("{}/{name_and_tag}", self.address)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no holder panics").clone()
    }
}

/// Answers the requests of one connection until either side is done.
fn converse(stream: TcpStream, layout: &Path, fault: &Fault, log: &Mutex<Vec<Request>>) -> Option<()> {
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = read_request(&mut reader)?;
        {
            let mut log = log.lock().expect("no holder panics");
            let same = |other: &&Request| other.method == request.method && other.path == request.path;
            request.earlier = log.iter().filter(same).count();
            log.push(request.clone());
        }
        let right = answer(layout, &request);
        let response = fault(&request, &right).unwrap_or(right);
        if response.silent {
            // The client gives up first; a test does not last this long.
            std::thread::sleep(Duration::from_mins(10));
            return None;
        }
        let mut head = vec![format!("HTTP/1.1 {} X", response.status)];
        head.push(format!("Content-Length: {}", response.body.len()));
        head.extend(response.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        let head = head.join("\r\n") + "\r\n\r\n";
        writer.write_all(head.as_bytes()).ok()?;
        if request.method != "HEAD" {
            let end = response.cut_at.unwrap_or(response.body.len()).min(response.body.len());
            writer.write_all(&response.body[..end]).ok()?;
        }
        if response.cut_at.is_some() {
            let _ = writer.shutdown(std::net::Shutdown::Both);
            return None;
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace();
    let mut request =
        Request { method: words.next()?.to_owned(), path: words.next()?.to_owned(), ..Request::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim_end();
        let Some((name, value)) = line.split_once(':') else {
            return Some(request);
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_owned()),
            "authorization" => request.authorization = Some(value.trim().to_owned()),
            _ => {}
        }
    }
}

/// The right answer to a request, as the distribution specification has it.
fn answer(layout: &Path, request: &Request) -> Response {
    let not_found = Response { body: br#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#.to_vec(), ..Response::status(404) };
    if request.path == "/v2/" {
        return Response::status(200);
    }
    let blob = |digest: &str| fs::read(layout.join("blobs").join(digest.replace(':', "/"))).ok();
    if let Some((_, reference)) = request.path.split_once("/manifests/") {
        let digest = if reference.starts_with("sha256:") { Some(reference.to_owned()) } else { tag(layout, reference) };
        let Some((digest, body)) = digest.and_then(|digest| blob(&digest).map(|body| (digest, body))) else {
            return not_found;
        };
        let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
        let media_type = parsed["mediaType"].as_str().unwrap_or(layout::MANIFEST).to_owned();
        return Response { body, ..Response::status(200) }
            .header("Content-Type", &media_type)
            .header("Docker-Content-Digest", &digest);
    }
    if let Some((_, digest)) = request.path.split_once("/blobs/") {
        let Some(body) = blob(digest) else {
            return not_found;
        };
        let response = Response::status(200).header("Content-Type", "application/octet-stream");
        let start = request.range.as_deref().and_then(|range| {
            let (start, _) = range.strip_prefix("bytes=")?.split_once('-')?;
            start.parse::<usize>().ok().filter(|start| *start < body.len())
        });
        return match start {
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
                Response { status: 206, body: body[start..].to_vec(), ..response }.header("Content-Range", &range)
            }
            None => Response { body, ..response },
        };
    }
    not_found
}

/// The digest that a tag of the layout stands for.
fn tag(layout: &Path, tag: &str) -> Option<String> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).ok()?).ok()?;
    let manifests = index["manifests"].as_array()?;
    let entry = manifests.iter().find(|m| m["annotations"]["org.opencontainers.image.ref.name"] == tag)?;
    entry["digest"].as_str().map(str::to_owned)
}
