//! What the host counts, for Prometheus.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use super::HEADER_TIME;

/// Upper bounds of the histogram of how long instances take to be made, microseconds.
const BUCKETS: [u64; 9] = [5, 10, 15, 20, 30, 50, 100, 1_000, 10_000];

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub enum Outcome {
    /// The component answered.
    Answered,
    /// The component failed.
    Failed,
    /// The component took too long.
    TimedOut,
    /// There was no slot in time.
    Refused,
}

/// The counters.
#[derive(Debug, Default)]
pub struct Metrics {
    outcomes: [AtomicU64; 4],
    in_flight: AtomicU64,
    made: [AtomicU64; BUCKETS.len()],
    made_count: AtomicU64,
    made_nanoseconds: AtomicU64,
}

impl Metrics {
    /// A request has begun; it ends when the result is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    /// A request has ended.
    pub fn end(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// An instance was made.
    pub fn made(&self, time: Duration) {
        let bucket = BUCKETS.iter().position(|bound| time <= Duration::from_micros(*bound));
        if let Some(bucket) = bucket {
            self.made[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.made_count.fetch_add(1, Ordering::Relaxed);
        self.made_nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// In the text format of Prometheus.
    fn text(&self) -> String {
        let mut text = String::from("# TYPE berth_wasm_requests_total counter\n");
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, counter) in ["answered", "failed", "timed_out", "refused"].iter().zip(&self.outcomes) {
            let _ = writeln!(text, "berth_wasm_requests_total{{outcome=\"{name}\"}} {}", value(counter));
        }
        let _ = writeln!(text, "# TYPE berth_wasm_requests_in_flight gauge");
        let _ = writeln!(text, "berth_wasm_requests_in_flight {}", value(&self.in_flight));
        let _ = writeln!(text, "# TYPE berth_wasm_instantiation_seconds histogram");
        let mut sum = 0;
        for (bound, counter) in BUCKETS.iter().zip(&self.made) {
            sum += value(counter);
            let seconds = Duration::from_micros(*bound).as_secs_f64();
            let _ = writeln!(text, "berth_wasm_instantiation_seconds_bucket{{le=\"{seconds}\"}} {sum}");
        }
        let count = value(&self.made_count);
        let seconds = Duration::from_nanos(value(&self.made_nanoseconds)).as_secs_f64();
        let _ = writeln!(text, "berth_wasm_instantiation_seconds_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "berth_wasm_instantiation_seconds_sum {seconds}");
        let _ = writeln!(text, "berth_wasm_instantiation_seconds_count {count}");
        text
    }
}

/// A request under way.
#[derive(Debug)]
pub struct InFlight(Arc<Metrics>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells whoever asks for `/metrics`, one connection after the other.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(super::TICK).await;
            continue;
        };
        let service = service_fn(|request: Request<Incoming>| {
            let text = (request.uri().path() == "/metrics").then(|| metrics.text());
            let status = if text.is_some() { 200 } else { 404 };
            let mut response = Response::new(Full::new(Bytes::from(text.unwrap_or_default())));
            *response.status_mut() = status.try_into().expect("both are statuses");
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        let mut http = http1::Builder::new();
        http.keep_alive(false).timer(TokioTimer::new()).header_read_timeout(HEADER_TIME);
        // A reader that goes away has read enough.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let metrics = Arc::new(Metrics::default());
        for time in [3, 12, 12, 50_000] {
            metrics.made(Duration::from_micros(time));
        }
        metrics.end(Outcome::TimedOut);
        let in_flight = metrics.begin();
        let text = metrics.text();
        for line in [
            "bucket{le=\"0.000005\"} 1",
            "bucket{le=\"0.000015\"} 3",
            "bucket{le=\"0.01\"} 3",
            "bucket{le=\"+Inf\"} 4",
            "requests_total{outcome=\"timed_out\"} 1",
            "in_flight 1",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        drop(in_flight);
        assert!(metrics.text().contains("in_flight 0"));
    }
}
