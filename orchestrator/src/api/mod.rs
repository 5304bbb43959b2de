//! The JSON of the Mesos v1 APIs: what calls mean, and how events and answers are written. Those of clients that speak
//! [`protobuf`] become JSON first, or are made of it.
//!
//! Reading is lenient where clients of old differ (`null` stands for a field that is not there, unknown fields are
//! skipped) and strict in what is left: an error names the field. Nothing here knows a socket.

pub mod agent;
pub mod events;
pub mod executor;
pub mod framework;
pub mod operator;
pub mod protobuf;
pub mod resources;
pub mod scheduler;
pub mod sessions;

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of the Mesos API that is spoken; clients compare it, so it is dotted integers.
pub const VERSION: &str = "1.11.0";
/// The longest id, role or name, in bytes.
const NAME_LENGTH: usize = 255;

/// What a request as a whole is called in errors.
const WHOLE: &str = "request";

/// What is wrong with a request: which field, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The path of the field, as in `accept.offer_ids[0].value`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Invalid {
    /// Something is wrong with a field.
    pub fn new(field: impl Into<String>, problem: impl fmt::Display) -> Invalid {
        Invalid { field: field.into(), problem: problem.to_string() }
    }

    /// A field that has to be there is not.
    pub fn missing(field: impl Into<String>) -> Invalid {
        Invalid::new(field, "is missing")
    }

    /// The same, inside of something.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Invalid {
        self.field = match self.field.as_str() {
            WHOLE => outer.to_owned(),
            field if field.starts_with('[') => format!("{outer}{field}"),
            field => format!("{outer}.{field}"),
        };
        self
    }
}

/// A message around one text, as protobuf's `FrameworkID` and its kin are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Id {
    /// The text.
    pub value: String,
}

impl Id {
    /// The text, if it can be an id.
    fn checked(self, field: &str) -> Result<String, Invalid> {
        name(&self.value, field)?;
        Ok(self.value)
    }
}

/// Whether a text can be an id or the name of something.
fn name(text: &str, field: &str) -> Result<(), Invalid> {
    if text.is_empty() || text.len() > NAME_LENGTH {
        return Err(Invalid::new(field, format!("has to have between 1 and {NAME_LENGTH} bytes")));
    }
    if text.contains(|c: char| c == '/' || c.is_control()) {
        return Err(Invalid::new(field, "must not contain slashes or control characters"));
    }
    Ok(())
}

/// Reads the JSON of a request.
pub fn parse(body: &[u8]) -> Result<Value, Invalid> {
    let mut value = serde_json::from_slice(body).map_err(|error| Invalid::new(WHOLE, error))?;
    drop_nulls(&mut value);
    Ok(value)
}

/// Reads a message out of JSON.
pub fn decode<T: DeserializeOwned>(value: Value) -> Result<T, Invalid> {
    // A list would be taken for the fields of the message one after the other, and have no place for more of them.
    if !value.is_object() {
        return Err(Invalid::new(WHOLE, "has to be an object"));
    }
    deserialize(value)
}

/// Reads several messages out of JSON.
pub fn decode_list<T: DeserializeOwned>(value: Value) -> Result<Vec<T>, Invalid> {
    deserialize(value)
}

fn deserialize<T: DeserializeOwned>(value: Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => WHOLE.to_owned(),
            path => path,
        };
        Invalid::new(field, error.inner())
    })
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What a call of this type carries.
pub(crate) fn payload<T>(part: Option<T>, field: &str) -> Result<T, Invalid> {
    part.ok_or_else(|| Invalid::missing(field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(default)]
        list: Vec<Id>,
    }

    #[test]
    fn errors_name_the_field() {
        let wrong = decode::<Outer>(parse(br#"{"list": [{"value": "a"}, {"value": 1}]}"#).unwrap()).unwrap_err();
        assert_eq!(wrong.field, "list[1].value");
        assert_eq!(parse(b"{").unwrap_err().field, "request");
        for whole in ["7", "[]", r#"[["a"]]"#] {
            assert_eq!(decode::<Outer>(parse(whole.as_bytes()).unwrap()).unwrap_err().field, "request");
        }
        assert_eq!(wrong.within("outer").field, "outer.list[1].value");
    }

    #[test]
    fn nulls_are_fields_that_are_not_there() {
        let outer: Outer = decode(parse(br#"{"list": null, "other": {"deep": null}}"#).unwrap()).unwrap();
        assert!(outer.list.is_empty());
    }
}
