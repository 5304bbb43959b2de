//! The same messages as protobuf: between their bytes and the JSON that everything else is written for.
//!
//! What they are is in `proto/`. JSON has the names of fields as they are there, names for enumerated values, and base 64 for
//! bytes. What only one of the two can say is left out in the other, so that there is always an answer.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use prost_reflect::prost::Message as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    Value,
};
use serde::Deserialize as _;
use serde_json::Value as Json;

use super::{Invalid, WHOLE};
use crate::recordio;

/// What enumerations call what is not one of their values.
const UNKNOWN: &str = "UNKNOWN";

/// All messages that there are, as the build has compiled them.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let compiled: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mesos.bin"));
    DescriptorPool::decode(compiled).expect("the build writes what can be read")
});

/// What is sent as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// From a framework.
    SchedulerCall,
    /// To a framework.
    SchedulerEvent,
    /// From an executor.
    ExecutorCall,
    /// To an executor.
    ExecutorEvent,
    /// To a master, from people.
    MasterCall,
    /// What it answers.
    MasterResponse,
    /// What it tells those who subscribe.
    MasterEvent,
    /// To an agent, from people.
    AgentCall,
    /// What it answers.
    AgentResponse,
    /// What a program beside a task writes.
    ProcessIo,
}

impl Message {
    fn descriptor(self) -> MessageDescriptor {
        let name = match self {
            Message::SchedulerCall => "mesos.v1.scheduler.Call",
            Message::SchedulerEvent => "mesos.v1.scheduler.Event",
            Message::ExecutorCall => "mesos.v1.executor.Call",
            Message::ExecutorEvent => "mesos.v1.executor.Event",
            Message::MasterCall => "mesos.v1.master.Call",
            Message::MasterResponse => "mesos.v1.master.Response",
            Message::MasterEvent => "mesos.v1.master.Event",
            Message::AgentCall => "mesos.v1.agent.Call",
            Message::AgentResponse => "mesos.v1.agent.Response",
            Message::ProcessIo => "mesos.v1.agent.ProcessIO",
        };
        POOL.get_message_by_name(name).expect("it is in proto/")
    }

    /// Whether it can be of this type.
    pub fn has_type(self, name: &str) -> bool {
        let kind = self.descriptor().get_field_by_name("type").map(|field| field.kind());
        matches!(kind, Some(Kind::Enum(all)) if all.get_value_by_name(name).is_some())
    }

    /// Reads its bytes.
    pub fn read(self, bytes: &[u8]) -> Result<Json, Invalid> {
        let message = DynamicMessage::decode(self.descriptor(), bytes);
        Ok(object(&message.map_err(|error| Invalid::new(WHOLE, format!("is no message of protobuf: {error}")))?))
    }

    /// Its bytes, of JSON.
    pub fn write(self, json: &Json) -> Vec<u8> {
        message(json, &self.descriptor()).encode_to_vec()
    }

    /// A record of it, of one of JSON that was written here.
    pub fn write_record(self, framed: &[u8]) -> Bytes {
        let mut reader = serde_json::Deserializer::from_slice(recordio::unframe(framed));
        // It is no deeper than what was read to write it, and that has a limit.
        reader.disable_recursion_limit();
        recordio::frame(&self.write(&Json::deserialize(&mut reader).unwrap_or_default()))
    }
}

/// A message as JSON: those of its fields that are set.
fn object(message: &DynamicMessage) -> Json {
    let fields = message.fields();
    fields.filter_map(|(field, value)| Some((field.name().to_owned(), read(value, &field.kind())?))).collect()
}

/// A value as JSON, if there is a word for it.
fn read(value: &Value, kind: &Kind) -> Option<Json> {
    let number = |number: f64| {
        // Whoever expects a number names the field that has none.
        if number.is_finite() { Json::from(number) } else { Json::from(number.to_string()) }
    };
    Some(match value {
        Value::Bool(value) => Json::from(*value),
        Value::I32(value) => Json::from(*value),
        Value::I64(value) => Json::from(*value),
        Value::U32(value) => Json::from(*value),
        Value::U64(value) => Json::from(*value),
        Value::F32(value) => number(f64::from(*value)),
        Value::F64(value) => number(*value),
        Value::String(value) => Json::from(value.as_str()),
        Value::Bytes(value) => Json::from(BASE64_STANDARD.encode(value)),
        Value::EnumNumber(value) => Json::from(name_of(*value, kind.as_enum()?)?),
        Value::Message(value) => object(value),
        Value::List(values) => values.iter().filter_map(|value| read(value, kind)).collect(),
        Value::Map(values) => {
            let kind = kind.as_message()?.map_entry_value_field().kind();
            let entry = |(key, value): (&MapKey, &Value)| Some((key.as_str()?.to_owned(), read(value, &kind)?));
            values.iter().filter_map(entry).collect()
        }
    })
}

/// What a number stands for: a newer client may have some that nobody knew of here.
fn name_of(number: i32, all: &EnumDescriptor) -> Option<String> {
    let value = all.get_value(number).or_else(|| all.get_value_by_name(UNKNOWN))?;
    Some(value.name().to_owned())
}

/// The message that JSON describes. What it has to have and JSON has not is empty, because nobody reads it otherwise.
fn message(json: &Json, descriptor: &MessageDescriptor) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        let value = json.get(field.name()).and_then(|json| write(json, &field));
        let value = value.or_else(|| (field.cardinality() == Cardinality::Required).then(|| empty(&field)));
        if let Some(value) = value {
            message.set_field(&field, value);
        }
    }
    message
}

fn empty(field: &FieldDescriptor) -> Value {
    match field.kind() {
        Kind::Message(inner) => Value::Message(message(&Json::Null, &inner)),
        _ => Value::default_value_for_field(field),
    }
}

/// What JSON says of a field, if it is of its kind.
fn write(json: &Json, field: &FieldDescriptor) -> Option<Value> {
    let kind = field.kind();
    if field.is_map() {
        let kind = kind.as_message()?.map_entry_value_field().kind();
        let entry = |(key, json): (&String, &Json)| Some((MapKey::String(key.clone()), write_one(json, &kind)?));
        Some(Value::Map(json.as_object()?.iter().filter_map(entry).collect()))
    } else if field.is_list() {
        Some(Value::List(json.as_array()?.iter().filter_map(|json| write_one(json, &kind)).collect()))
    } else {
        write_one(json, &kind)
    }
}

fn write_one(json: &Json, kind: &Kind) -> Option<Value> {
    Some(match kind {
        Kind::Bool => Value::Bool(json.as_bool()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(json.as_i64()?.try_into().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(json.as_i64()?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(json.as_u64()?.try_into().ok()?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(json.as_u64()?),
        Kind::Float => Value::F32(json.as_f64()? as f32),
        Kind::Double => Value::F64(json.as_f64()?),
        Kind::String => Value::String(json.as_str()?.to_owned()),
        Kind::Bytes => Value::Bytes(BASE64_STANDARD.decode(json.as_str()?).ok()?.into()),
        Kind::Enum(all) => Value::EnumNumber(all.get_value_by_name(json.as_str()?)?.number()),
        Kind::Message(inner) => Value::Message(json.is_object().then(|| message(json, inner))?),
    })
}

/// Reads bytes as every message that clients send; for `fuzz/`.
///
/// # Panics
/// If what was read once is something else when it is written and read again.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz_calls(bytes: &[u8]) {
    use super::{agent, executor, operator, scheduler, sessions};
    for sent in [Message::SchedulerCall, Message::ExecutorCall, Message::MasterCall, Message::AgentCall] {
        let Ok(first) = sent.read(bytes) else { continue };
        // Which calls are right is for others to say.
        let _ = match sent {
            Message::SchedulerCall => scheduler::read(first.clone(), "m").err(),
            Message::ExecutorCall => executor::read(first.clone()).err(),
            Message::MasterCall => operator::read(first.clone()).err(),
            _ => agent::read(first.clone()).err().or(sessions::record(first.clone()).err()),
        };
        // The first time fields are added that a message has to have.
        let again = |json: &Json| sent.read(&sent.write(json)).expect("what is written can be read");
        let second = again(&first);
        assert_eq!(again(&second), second);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Bytes as they are in definitions and captures.
    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn bytes_are_those_of_mesos() {
        let id = |text: &str| json!({ "value": text });
        let cases = [
            (
                Message::SchedulerCall,
                "0a03 0a0166 1008 421c 0a03 0a0161 1203 0a0174 1a10 00000000000000000000000000000007",
                json!({
                    "framework_id": id("f"),
                    "type": "ACKNOWLEDGE",
                    "acknowledge": { "agent_id": id("a"), "task_id": id("t"), "uuid": "AAAAAAAAAAAAAAAAAAAABw==" },
                }),
            ),
            (
                Message::SchedulerCall,
                "1005 7a06 0a0161 0a0162",
                json!({ "type": "REVIVE", "revive": { "roles": ["a", "b"] } }),
            ),
            (Message::SchedulerEvent, "0808", json!({ "type": "HEARTBEAT" })),
            (
                Message::SchedulerEvent,
                "0806 3a0d 0a03 0a0161 1203 0a0165 1880 06",
                json!({ "type": "FAILURE", "failure": { "agent_id": id("a"), "executor_id": id("e"), "status": 768 } }),
            ),
            (
                Message::ExecutorCall,
                "0a03 0a0165 1203 0a0166 1803 3204 12027870",
                json!({ "executor_id": id("e"), "framework_id": id("f"), "type": "MESSAGE", "message": { "data": "eHA=" } }),
            ),
            (
                Message::ExecutorEvent,
                "0803 2a0f 0a03 0a0174 1208 0a06 0880d0acf30e",
                json!({ "type": "KILL", "kill": {
                    "task_id": id("t"), "kill_policy": { "grace_period": { "nanoseconds": 4_000_000_000_u64 } },
                } }),
            ),
            (
                Message::MasterCall,
                "0824 a20118 1216 0a0161 1211 0a0463707573 1209 09000000000000f03f",
                json!({ "type": "UPDATE_QUOTA", "update_quota": { "quota_configs": [
                    { "role": "a", "guarantees": { "cpus": { "value": 1.0 } } },
                ] } }),
            ),
            (
                Message::AgentCall,
                "0817 7209 0a07 0a0173 1202 0a00",
                json!({ "type": "WAIT_CONTAINER", "wait_container": {
                    "container_id": { "value": "s", "parent": id("") },
                } }),
            ),
        ];
        for (message, bytes, json) in cases {
            assert_eq!(message.read(&hex(bytes)).unwrap(), json, "{bytes}");
            assert_eq!(message.write(&json), hex(bytes), "{json}");
        }
    }

    #[test]
    fn what_protobuf_cannot_say_is_left_out() {
        let json = json!({
            "type": "UPDATE",
            "own": {},
            "update": { "status": {
                "state": "TASK_RUNNING", "task_id": { "value": 7 }, "reason": "REASON_OWN", "healthy": "yes", "data": "?",
                "timestamp": "now", "labels": { "labels": [{ "key": "k" }, 7] }, "check_status": { "http": { "status_code": -1 } },
                "container_status": null,
            } },
        });
        // Where something has to be there it is empty.
        let expected = json!({ "type": "UPDATE", "update": { "status": {
            "state": "TASK_RUNNING", "task_id": { "value": "" }, "labels": { "labels": [{ "key": "k" }] },
            "check_status": { "http": {} },
        } } });
        assert_eq!(Message::SchedulerEvent.read(&Message::SchedulerEvent.write(&json)).unwrap(), expected);
        assert_eq!(Message::SchedulerEvent.write(&Json::Null), [0_u8; 0]);
    }

    #[test]
    fn what_json_cannot_say_is_left_out_or_unknown() {
        let read = |bytes: &str| Message::SchedulerCall.read(&hex(bytes)).unwrap();
        assert_eq!(read("1063"), json!({ "type": "UNKNOWN" }));
        assert_eq!(read("1005 f80101 fa0100"), json!({ "type": "REVIVE" }), "fields of the future");
        let decline = read("2a0b 120909000000000000f07f");
        assert_eq!(decline["decline"]["filters"]["refuse_seconds"], "inf", "which is no number to anybody");
        assert_eq!(read("0a03 0a0166 0a03 0a0167"), json!({ "framework_id": { "value": "g" } }), "the last one counts");
        let status = Message::ExecutorCall.read(&hex("2a06 0a04 1063 4801")).unwrap();
        assert_eq!(status["update"]["status"], json!({ "source": "SOURCE_AGENT" }), "there is no unknown state");
    }

    #[test]
    fn records_become_those_of_protobuf_however_deep_they_are() {
        let deep = (0..200).fold(json!({}), |inner, _| json!({ "x": inner }));
        let record = recordio::frame(json!({ "type": "HEARTBEAT", "deep": deep }).to_string().as_bytes());
        assert_eq!(Message::SchedulerEvent.write_record(&record), b"2\n\x08\x08"[..]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn any_bytes_are_a_call_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz_calls(&bytes);
        }

        /// Keys of fields that there are, with lengths that may be right.
        #[test]
        fn fields_in_any_order_are_a_call_or_none(
            fields in prop::collection::vec((0..20_u8, 0..3_u8, prop::collection::vec(0..30_u8, 0..9)), 0..9),
        ) {
            let field = |(number, kind, rest): (u8, u8, Vec<u8>)| [vec![number << 3 | kind, rest.len() as u8], rest].concat();
            fuzz_calls(&fields.into_iter().flat_map(field).collect::<Vec<u8>>());
        }
    }
}
