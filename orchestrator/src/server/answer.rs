//! Answers to requests, and what is read of them.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use super::core::Stopped;
use super::format::{Format, JSON, expect_accepted, unsupported};
use super::limits;
use crate::api::protobuf::Message;
use crate::api::{self, Invalid};
use crate::master::Refused;

/// What an answer carries.
pub type Body = BoxBody<Bytes, Infallible>;

/// Why a request is not done.
#[derive(Debug)]
pub struct Problem {
    pub status: StatusCode,
    pub message: String,
}

impl Problem {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Problem {
        Problem { status, message: message.into() }
    }

    pub fn bad(message: impl Into<String>) -> Problem {
        Problem::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn too_often() -> Problem {
        Problem::new(StatusCode::TOO_MANY_REQUESTS, "too many requests; try again in a second")
    }

    /// The answer that says so.
    pub fn answer(self) -> Response<Body> {
        let mut answer = text(self.status, self.message + "\n");
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(r#"Basic realm="berth""#));
        }
        answer
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Problem {
        Problem::bad(invalid.to_string())
    }
}

impl From<Stopped> for Problem {
    fn from(stopped: Stopped) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, stopped.to_string())
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Problem {
        let status = match refused {
            Refused::NotSubscribed(_) | Refused::OtherPrincipal(_) | Refused::Token => StatusCode::FORBIDDEN,
            Refused::UnknownFramework(_) | Refused::UnknownAgent(_) | Refused::UnknownToken(_) => StatusCode::NOT_FOUND,
            Refused::NotConnected(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refused::TooManyTokens(_) => StatusCode::CONFLICT,
            Refused::FrameworkGone(_) | Refused::Allocator(_) => StatusCode::BAD_REQUEST,
        };
        Problem::new(status, refused.to_string())
    }
}

/// A body of this type.
pub fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(Full::new(body.into()).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", body)
}

/// JSON in one line.
pub fn json(body: &Value) -> Response<Body> {
    with_type(StatusCode::OK, JSON, body.to_string())
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Full::default().boxed());
    *answer.status_mut() = status;
    answer
}

/// Reads a call of at most so many bytes of JSON, and in which format the answer is welcome.
pub async fn read_call(
    headers: &HeaderMap,
    body: Incoming,
    message: Message,
    most: usize,
) -> Result<(Value, Format), Problem> {
    Format::welcome(headers, &ACCEPT)?;
    let call = read_sent(headers, body, message, most).await?;
    let format = Format::of_answer(headers, &call, message)?;
    Ok((call, format))
}

/// Reads a call. In which format the answer is welcome depends on it.
pub async fn read_sent(headers: &HeaderMap, body: Incoming, message: Message, most: usize) -> Result<Value, Problem> {
    let format = Format::of_sent(headers)?;
    Ok(format.read(&read_body(body, format.most(most)).await?, message)?)
}

/// Reads a request whose body has to be JSON of at most so many bytes, as the answer will be.
pub async fn read_json(headers: &HeaderMap, body: Incoming, most: usize) -> Result<Value, Problem> {
    expect_accepted(headers, JSON)?;
    let sent = sent_type(headers)?;
    if sent != JSON {
        return Err(unsupported("Content-Type", &sent, &format!("{JSON} is")));
    }
    Ok(api::parse(&read_body(body, most).await?)?)
}

/// The type of what was sent.
pub fn sent_type(headers: &HeaderMap) -> Result<String, Problem> {
    let missing = || Problem::bad("the header Content-Type is missing");
    header(headers, &CONTENT_TYPE)?.map(media_type).ok_or_else(missing)
}

async fn read_body(body: Incoming, most: usize) -> Result<Vec<u8>, Problem> {
    let body = timeout(limits::PATIENCE, read_whole(body, most)).await;
    body.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive"))?
}

/// A body of at most so many bytes. Of one that has more some is read nevertheless: who is still sending when the connection is closed
/// would see that instead of the answer.
async fn read_whole(mut body: Incoming, most: usize) -> Result<Vec<u8>, Problem> {
    let (mut bytes, mut count) = (Vec::new(), 0);
    let too_large = || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {most} bytes"));
    let end = most + limits::IN_VAIN;
    if body.size_hint().lower() > end as u64 {
        return Err(too_large());
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::bad(format!("the body could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        count += data.len();
        match count {
            _ if count <= most => bytes.extend_from_slice(&data),
            _ if count <= end => bytes.clear(),
            _ => break,
        }
    }
    if count <= most { Ok(bytes) } else { Err(too_large()) }
}

/// Reads some of what else is in a body that nobody wants.
pub async fn read_in_vain(body: &mut Incoming) {
    let mut count = 0;
    while count < limits::IN_VAIN
        && let Some(Ok(frame)) = body.frame().await
    {
        count += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// A header as text.
pub fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let read = |value: &'a HeaderValue| {
        value.to_str().map_err(|_| Problem::bad(format!("the header {name} has characters that are not printable")))
    };
    headers.get(name).map(read).transpose()
}

/// `application/json` of `Application/JSON; charset=utf-8`.
pub fn media_type(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}
