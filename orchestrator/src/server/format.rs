//! JSON or protobuf: what clients send, and what they want to be sent.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::Value;

use super::answer::{Body, Problem, header, json, media_type, sent_type, with_type};
use crate::api::protobuf::Message;
use crate::api::{self, Invalid};

/// What all requests and answers can be.
pub const JSON: &str = "application/json";
/// What calls of Mesos' APIs and their answers can be as well.
const PROTOBUF: &str = "application/x-protobuf";
/// What streams of records are that agents send and take.
pub const RECORDS: &str = "application/recordio";
/// What is in their records.
const MESSAGE_CONTENT_TYPE: HeaderName = HeaderName::from_static("message-content-type");
/// What is welcome in them.
const MESSAGE_ACCEPT: HeaderName = HeaderName::from_static("message-accept");

/// What clients write and read. All is JSON behind this file, which alone knows the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As it is.
    Json,
    /// As a [`Message`].
    Protobuf,
}

impl Format {
    fn media_type(self) -> &'static str {
        match self {
            Format::Json => JSON,
            Format::Protobuf => PROTOBUF,
        }
    }

    /// That of a body.
    pub fn of_sent(headers: &HeaderMap) -> Result<Format, Problem> {
        Format::named(&sent_type(headers)?, "Content-Type")
    }

    fn named(media_type: &str, by: &str) -> Result<Format, Problem> {
        let known = [Format::Json, Format::Protobuf].into_iter().find(|format| format.media_type() == media_type);
        known.ok_or_else(|| unsupported(by, media_type, &format!("{JSON} and {PROTOBUF} are")))
    }

    /// That which is welcome: JSON where both are, as in Mesos.
    pub fn welcome(headers: &HeaderMap, name: &HeaderName) -> Result<Format, Problem> {
        let accepted = Accepted::read(headers, name)?;
        match accepted {
            _ if accepted.names(JSON) => Ok(Format::Json),
            _ if accepted.names(PROTOBUF) => Ok(Format::Protobuf),
            _ if accepted.is_anything() => Ok(Format::Json),
            _ => Err(accepted.problem(&format!("{JSON} or {PROTOBUF}"))),
        }
    }

    /// That of the answer to a call.
    pub fn of_answer(headers: &HeaderMap, call: &Value, message: Message) -> Result<Format, Problem> {
        let format = Format::welcome(headers, &ACCEPT)?;
        let kind = call["type"].as_str();
        if let Some(kind) = kind.filter(|kind| format == Format::Protobuf && !message.has_type(kind)) {
            let message =
                format!("`{kind}` is no call of Mesos', so {PROTOBUF} cannot say what it answers; {JSON} can");
            return Err(Problem::new(StatusCode::NOT_ACCEPTABLE, message));
        }
        Ok(format)
    }

    /// That of the records of an answer that is [`RECORDS`].
    pub fn of_records(headers: &HeaderMap) -> Result<Format, Problem> {
        expect_accepted(headers, RECORDS)?;
        Format::welcome(headers, &MESSAGE_ACCEPT)
    }

    /// That of the records of a body that is [`RECORDS`].
    pub fn of_sent_records(headers: &HeaderMap) -> Result<Format, Problem> {
        let sent = header(headers, &MESSAGE_CONTENT_TYPE)?;
        sent.map_or(Ok(Format::Json), |sent| Format::named(&media_type(sent), "Message-Content-Type"))
    }

    /// How many bytes of it may be sent where it is so many of JSON. Protobuf says the same in fewer, and for each of them takes up to
    /// four times as much memory while it is read.
    pub fn most(self, of_json: usize) -> usize {
        match self {
            Format::Json => of_json,
            Format::Protobuf => of_json / 4,
        }
    }

    /// Reads what was sent.
    pub fn read(self, bytes: &[u8], message: Message) -> Result<Value, Invalid> {
        match self {
            Format::Json => api::parse(bytes),
            Format::Protobuf => message.read(bytes),
        }
    }

    /// An answer.
    pub fn answer(self, body: &Value, message: Message) -> Response<Body> {
        match self {
            Format::Json => json(body),
            Format::Protobuf => with_type(StatusCode::OK, PROTOBUF, message.write(body)),
        }
    }

    /// A stream of records, which are JSON in `body`, one a frame.
    pub fn stream(self, body: Body, message: Message) -> Response<Body> {
        let body = match self {
            Format::Json => body,
            Format::Protobuf => {
                let write = move |record: Bytes| message.write_record(&record);
                body.map_frame(move |record| record.map_data(write)).boxed()
            }
        };
        let mut answer = Response::new(body);
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(self.media_type()));
        answer
    }

    /// The same, of type [`RECORDS`].
    pub fn records(self, body: Body, message: Message) -> Response<Body> {
        let mut answer = self.stream(body, message);
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(RECORDS));
        answer.headers_mut().insert(MESSAGE_CONTENT_TYPE, HeaderValue::from_static(self.media_type()));
        answer
    }
}

/// What a header says is welcome.
struct Accepted<'a>(&'a str);

impl<'a> Accepted<'a> {
    fn read(headers: &'a HeaderMap, name: &HeaderName) -> Result<Accepted<'a>, Problem> {
        Ok(Accepted(header(headers, name)?.unwrap_or("*/*")))
    }

    fn names(&self, wanted: &str) -> bool {
        self.0.split(',').any(|accepted| media_type(accepted) == wanted)
    }

    fn is_anything(&self) -> bool {
        self.names("application/*") || self.names("*/*")
    }

    /// It is not what the answer is.
    fn problem(&self, answer: &str) -> Problem {
        let message = format!("the answer is {answer}, which `{}` does not accept", self.0);
        Problem::new(StatusCode::NOT_ACCEPTABLE, message)
    }
}

/// Insists that an answer of this type is welcome.
pub fn expect_accepted(headers: &HeaderMap, answer: &str) -> Result<(), Problem> {
    let accepted = Accepted::read(headers, &ACCEPT)?;
    if accepted.names(answer) || accepted.is_anything() { Ok(()) } else { Err(accepted.problem(answer)) }
}

/// What was sent is of another type than what is read.
pub fn unsupported(header: &str, sent: &str, supported: &str) -> Problem {
    let message = format!("the {header} `{sent}` is not supported; {supported}");
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
}
