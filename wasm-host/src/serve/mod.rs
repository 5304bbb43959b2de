//! `berth wasm serve`: a host that lives on, for a component that answers HTTP requests. Each request gets an instance
//! of its own unless the person says that it may have a used one, out of slots that are reserved when the host starts;
//! one sandbox, one component, one tenant.
//!
//! The sockets were opened before the sandbox was closed and are handed over: the host itself can open none.

mod metrics;
mod request;
mod slots;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::{FromRawFd as _, RawFd};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use nix::sys::signal::{SigSet, Signal};
use oci_spec::runtime::{Process, Spec};
use tokio::net::{TcpListener as Listener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::code::{self, Code};
use crate::confine::{self, Sockets};
use crate::engine;
use crate::error::{Error, Result};
use crate::run::{CODE, Ended, take};
use crate::settings::{Serve, Settings};
use request::{Given, Handler};

/// What the handover calls the socket for requests, and the one for metrics.
const REQUESTS: &str = "requests";
const METRICS: &str = "metrics";
/// How often a component that computes lets others go first, and its time is looked at.
const TICK: Duration = Duration::from_millis(10);
/// How long a client may take to say what it wants.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// How long a request may take unless told otherwise.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// Connections for each request that may be served at once: most of them are idle.
const CONNECTIONS_PER_REQUEST: usize = 4;
/// Time for the last requests after a signal, beyond what each has.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Serves until a signal comes, and then until the last request is answered.
pub fn start(
    files: &BTreeMap<String, RawFd>,
    spec: &Spec,
    process: &Process,
    settings: &Settings,
    serve: &Serve,
) -> Result<Ended> {
    let file = files.get(CODE).copied().map(take);
    let (Some(file), Some(sha256)) = (file, &settings.code) else {
        return Err(Error::Handover("a component that serves is compiled before".to_owned()));
    };
    let requests =
        listener(files, REQUESTS)?.ok_or_else(|| Error::Handover("there is no socket to serve".to_owned()))?;
    let metrics = listener(files, METRICS)?;
    let slots = slots::available(serve.concurrency)?;
    if slots < serve.concurrency {
        eprintln!(
            "berth-wasm: serving {slots} requests at once, not {}: there is no address space for more",
            serve.concurrency
        );
    }
    let engine = engine::server(slots)?;
    let code = code::load(&engine, file, sha256)?;
    let Code::Component(component) = code else {
        return Err(Error::World("it is a core module, which cannot answer requests; `berth run` runs it".to_owned()));
    };
    let time = settings.timeout_ms.map_or(REQUEST_TIME, Duration::from_millis);
    let given = Given {
        spec: spec.clone(),
        process: process.clone(),
        settings: settings.clone(),
        memory: serve.memory,
        requests: serve.requests,
        time,
    };
    let handler = Arc::new(Handler::new(&engine, &component, slots, given)?);
    let ending = signals()?;
    confine::open_files()?;
    confine::module(Sockets::Given)?;
    let ticker = engine.clone();
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(TICK);
            ticker.increment_epoch();
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(Error::io("start the event loop"))?;
    runtime.block_on(serve_all(requests, metrics, handler, slots as usize, ending, time))?;
    runtime.shutdown_background();
    Ok(Ended { code: 0, message: None })
}

fn listener(files: &BTreeMap<String, RawFd>, name: &str) -> Result<Option<TcpListener>> {
    let Some(&number) = files.get(name) else { return Ok(None) };
    // SAFETY: the socket was opened for this process alone to own, see `berth_runtime::executor`.
    let listener = unsafe { TcpListener::from_raw_fd(number) };
    listener.set_nonblocking(true).map_err(Error::io("use the socket"))?;
    Ok(Some(listener))
}

/// Becomes true with the first signal that ends the host. A second one ends it at once.
fn signals() -> Result<watch::Receiver<bool>> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
    // Before there are threads, which take over the mask.
    signals.thread_block().map_err(Error::io("wait for signals"))?;
    let (sender, ending) = watch::channel(false);
    std::thread::spawn(move || {
        let first = signals.wait();
        let _ = sender.send(true);
        if let (Ok(_), Ok(second)) = (first, signals.wait()) {
            std::process::exit(128 + second as i32);
        }
    });
    Ok(ending)
}

async fn serve_all(
    requests: TcpListener,
    metrics: Option<TcpListener>,
    handler: Arc<Handler>,
    slots: usize,
    mut ending: watch::Receiver<bool>,
    time: Duration,
) -> Result<()> {
    let listen = |listener| Listener::from_std(listener).map_err(Error::io("use the socket"));
    if let Some(metrics) = metrics {
        tokio::spawn(metrics::serve(listen(metrics)?, Arc::clone(&handler.metrics)));
    }
    let requests = listen(requests)?;
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(slots.saturating_mul(CONNECTIONS_PER_REQUEST)));
    loop {
        let stream = tokio::select! {
            accepted = accept(&requests, &connections) => accepted,
            _ = ending.changed() => break,
        };
        let Some((stream, permit)) = stream else { continue };
        let handler = Arc::clone(&handler);
        let connection = graceful.watch(connection(stream, handler));
        tokio::spawn(async move {
            // What ends a connection early is the client's business.
            let _ = connection.await;
            drop(permit);
        });
    }
    drop(requests);
    if tokio::time::timeout(time + DRAIN_TIME, graceful.shutdown()).await.is_err() {
        eprintln!("berth-wasm: some requests were not answered in time");
    }
    Ok(())
}

/// The next connection, when there may be one more.
async fn accept(
    listener: &Listener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    if let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        return Some((stream, permit));
    }
    // Out of descriptors, or the client has gone: others may still be there.
    tokio::time::sleep(TICK).await;
    None
}

fn connection(stream: TcpStream, handler: Arc<Handler>) -> impl GracefulConnection<Error = hyper::Error> {
    let service = service_fn(move |request| {
        let handler = Arc::clone(&handler);
        async move { Ok::<_, std::convert::Infallible>(handler.answer(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .serve_connection(TokioIo::new(stream), service)
}
