//! Protobuf by hand: what is written and read here are the numbers that Mesos' definitions have, whatever berth makes of them.

use std::io::{BufRead, Read as _, Write as _};
use std::net::SocketAddr;

use crate::http::{Answer, connect};

pub const PROTOBUF: &str = "application/x-protobuf";

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A field that is a text, bytes or a message.
pub fn field(number: u64, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

/// A field that is a whole number, a truth or one of an enumeration.
pub fn number(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

/// A field that is a double.
pub fn double(number: u64, value: f64) -> Vec<u8> {
    [varint(number << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

/// A message whose first field is a text.
pub fn id(text: &str) -> Vec<u8> {
    field(1, text)
}

/// What is in a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    Number(u64),
    Double(f64),
    Bytes(Vec<u8>),
}

/// A message that was received.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(pub Vec<(u64, Part)>);

impl Message {
    pub fn read(mut bytes: &[u8]) -> Message {
        fn varint(bytes: &mut &[u8]) -> u64 {
            let end = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (head, rest) = bytes.split_at(end);
            *bytes = rest;
            head.iter().rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f))
        }
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let part = match key & 7 {
                0 => Part::Number(varint(&mut bytes)),
                1 => {
                    let (double, rest) = bytes.split_at(8);
                    bytes = rest;
                    Part::Double(f64::from_le_bytes(double.try_into().unwrap()))
                }
                2 => {
                    let length = varint(&mut bytes) as usize;
                    let (content, rest) = bytes.split_at(length);
                    bytes = rest;
                    Part::Bytes(content.to_vec())
                }
                other => panic!("there are no fields of wire type {other}"),
            };
            parts.push((key >> 3, part));
        }
        Message(parts)
    }

    pub fn all(&self, number: u64) -> impl Iterator<Item = &Part> {
        self.0.iter().filter(move |(known, _)| *known == number).map(|(_, part)| part)
    }

    /// The first part with this number.
    pub fn part(&self, number: u64) -> &Part {
        self.all(number).next().unwrap_or_else(|| panic!("there is no {number} in {self:?}"))
    }

    pub fn bytes(&self, number: u64) -> &[u8] {
        let Part::Bytes(bytes) = self.part(number) else { panic!("{number} of {self:?} is a number") };
        bytes
    }

    pub fn text(&self, number: u64) -> &str {
        std::str::from_utf8(self.bytes(number)).unwrap()
    }

    pub fn number(&self, number: u64) -> u64 {
        let Part::Number(value) = self.part(number) else { panic!("{number} of {self:?} is no number") };
        *value
    }

    pub fn double(&self, number: u64) -> f64 {
        let Part::Double(value) = self.part(number) else { panic!("{number} of {self:?} is no double") };
        *value
    }

    /// The message at a path of numbers.
    pub fn at(&self, path: &[u64]) -> Message {
        path.iter().fold(self.clone(), |message, number| Message::read(message.bytes(*number)))
    }

    pub fn messages(&self, number: u64) -> Vec<Message> {
        let message = |part: &Part| {
            let Part::Bytes(bytes) = part else { panic!("{number} of {self:?} is a number") };
            Message::read(bytes)
        };
        self.all(number).map(message).collect()
    }
}

/// A request with a body of bytes.
pub fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// The headers of who speaks nothing but protobuf.
pub fn only_protobuf() -> String {
    format!("Content-Type: {PROTOBUF}\r\nAccept: {PROTOBUF}\r\n")
}

/// Sends protobuf, and begins to read the answer.
pub fn begin(to: SocketAddr, request: &[u8]) -> (Answer, impl BufRead + use<>) {
    let mut stream = connect(to);
    stream.write_all(request).unwrap();
    let mut stream = std::io::BufReader::new(stream);
    (Answer::read_head(&mut stream), stream)
}

/// Sends bytes: the status, the content type and the body of the answer.
pub fn exchange(to: SocketAddr, request: &[u8]) -> (u16, Option<String>, Vec<u8>) {
    let (head, mut stream) = begin(to, request);
    let length = head.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head.status, head.header("content-type").map(str::to_owned), body)
}

/// The next message of a stream: one chunk, which is one record. None at the end.
pub fn next(stream: &mut impl BufRead) -> Option<Message> {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
    if size == 0 {
        return None;
    }
    let mut chunk = vec![0; size + 2];
    stream.read_exact(&mut chunk).unwrap();
    let head = chunk.iter().position(|byte| *byte == b'\n').unwrap();
    let record = &chunk[head + 1..size];
    assert_eq!(std::str::from_utf8(&chunk[..head]).unwrap().parse(), Ok(record.len()));
    Some(Message::read(record))
}

/// The next message of this type, which is field `kind`.
pub fn expect(stream: &mut impl BufRead, kind: u64, wanted: u64) -> Message {
    loop {
        let message = next(stream).expect("the stream goes on");
        if message.number(kind) == wanted {
            return message;
        }
    }
}
