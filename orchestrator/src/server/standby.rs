//! What a master answers that does not lead: that it is there, and who does.

use std::net::SocketAddr;

use hyper::header::{HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode, Uri};

use super::answer::{self, Body, Problem};
use super::metrics;
use crate::api;

/// Answers a request for something that there is. What only a leader can do is for the leader, as with Mesos
/// (<https://mesos.apache.org/documentation/latest/scheduler-http-api/#master-detection>).
pub fn answer(path: &str, uri: &Uri, leader: Option<SocketAddr>) -> Result<Response<Body>, Problem> {
    match (path, leader) {
        ("/version", _) => Ok(answer::json(&api::operator::version())),
        ("/health", _) => Ok(answer::empty(StatusCode::OK)),
        ("/metrics", _) => Ok(answer::text(StatusCode::OK, metrics::STANDBY)),
        (_, Some(leader)) => {
            let location = format!("//{leader}{}", uri.path_and_query().map_or(path, |it| it.as_str()));
            let location = HeaderValue::try_from(location).map_err(|_| Problem::bad("the path is not printable"))?;
            let mut answer = answer::empty(StatusCode::TEMPORARY_REDIRECT);
            answer.headers_mut().insert(LOCATION, location);
            Ok(answer)
        }
        (_, None) => {
            let message = "no master leads at the moment, as far as this one knows; try again in a second\n";
            let mut answer = answer::text(StatusCode::SERVICE_UNAVAILABLE, message);
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            Ok(answer)
        }
    }
}
