//! What people ask of the job framework, and how: JSON in HTTP over a socket in the file system, which only its owner
//! may connect to.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::umask;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use super::manifest::LONGEST;
use super::process::Happening;
use super::view::Until;
use crate::api::{Invalid, decode, parse};
use crate::server::PATIENCE;

/// Where requests go.
pub const PATH: &str = "/jobs";
/// The largest request: a manifest as a text in JSON.
const MOST: usize = 6 * LONGEST + 4096;
/// The most connections at once.
const CONNECTIONS: usize = 1000;

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// To run a job.
    Submit {
        /// As it was written.
        manifest: String,
    },
    /// Which jobs there are.
    Jobs {},
    /// How a job is doing.
    Job {
        /// Its name.
        job: String,
    },
    /// The same, once something has come, or after a while.
    Wait {
        /// Its name.
        job: String,
        /// What.
        until: Until,
    },
    /// To have another count of replicas.
    Scale {
        /// Of this job,
        job: String,
        /// this service,
        group: String,
        /// so many.
        replicas: u32,
    },
    /// To end a job.
    Stop {
        /// Its name.
        job: String,
        /// How long its tasks may take to end by themselves; as long as its manifest says, if none.
        grace: Option<Duration>,
    },
}

/// Why a request is not done, with the answer's status.
pub type Problem = (StatusCode, String);

impl From<Invalid> for Answer {
    fn from(invalid: Invalid) -> Answer {
        Answer(Err((StatusCode::BAD_REQUEST, invalid.to_string())))
    }
}

/// What is answered.
#[derive(Debug)]
pub struct Answer(pub Result<Value, Problem>);

/// Listens at a path, in place of whoever did before.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Nobody may connect between its making and a change of its mode.
    let before = umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// Serves for ever. Requests become happenings.
pub async fn serve(listener: UnixListener, happenings: UnboundedSender<Happening>) {
    let slots = std::sync::Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Without descriptors for more, those that are there go on.
        let Ok((stream, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Ok(slot) = std::sync::Arc::clone(&slots).try_acquire_owned() else { continue };
        let happenings = happenings.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let happenings = happenings.clone();
                async move { Ok::<_, Infallible>(answer(request, &happenings).await.response()) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // What goes wrong on a connection is the client's affair.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(slot);
        });
    }
}

async fn answer(request: HttpRequest<Incoming>, happenings: &UnboundedSender<Happening>) -> Answer {
    let problem = |status, message: &str| Answer(Err((status, message.to_owned())));
    if request.uri().path() != PATH {
        return problem(StatusCode::NOT_FOUND, "there is nothing here");
    }
    if request.method() != hyper::Method::POST {
        return problem(StatusCode::METHOD_NOT_ALLOWED, "this takes POST requests");
    }
    let body = match timeout(PATIENCE, Limited::new(request.into_body(), MOST).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return problem(StatusCode::BAD_REQUEST, &format!("the request cannot be read: {error}")),
        Err(_) => return problem(StatusCode::REQUEST_TIMEOUT, "the request took too long to arrive"),
    };
    let request: Request = match parse(&body).and_then(decode) {
        Ok(request) => request,
        Err(invalid) => return invalid.into(),
    };
    let (sender, receiver) = oneshot::channel();
    let gone = || problem(StatusCode::SERVICE_UNAVAILABLE, "the job framework is shutting down");
    if happenings.send(Happening::Asked(request, sender)).is_err() {
        return gone();
    }
    receiver.await.unwrap_or_else(|_| gone())
}

impl Answer {
    fn response(self) -> Response<Full<Bytes>> {
        let (status, body) = match self.0 {
            Ok(value) => (StatusCode::OK, value.to_string()),
            Err((status, message)) => (status, message),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response
    }
}
