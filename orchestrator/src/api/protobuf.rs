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

    /// Whether it can say the type that this JSON is of.
    pub fn has_type(self, json: &Json) -> bool {
        let kind = self.descriptor().get_field_by_name("type").map(|field| field.kind());
        matches!((kind, json["type"].as_str()), (Some(Kind::Enum(all)), Some(name)) if all.get_value_by_name(name).is_some())
    }

    /// Reads its bytes.
    pub fn read(self, bytes: &[u8]) -> Result<Json, Invalid> {
        let message = DynamicMessage::decode(self.descriptor(), bytes);
        Ok(object(&message.map_err(|error| Invalid::new(WHOLE, format!("is no message of protobuf: {error}")))?))
    }

    /// Its bytes, of JSON.
    pub fn write(self, json: &Json) -> Vec<u8> {
        message(json, self.descriptor()).encode_to_vec()
    }

    /// A record of it, of one of JSON that was written here.
    pub fn write_record(self, framed: &[u8]) -> Bytes {
        let mut reader = serde_json::Deserializer::from_slice(recordio::unframe(framed));
        // It is no deeper than what was read to write it, and that has a limit.
        reader.disable_recursion_limit();
        let json = Json::deserialize(&mut reader).expect("records that are written here are JSON");
        recordio::frame(&self.write(&json))
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
fn message(json: &Json, descriptor: MessageDescriptor) -> DynamicMessage {
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
        Kind::Message(inner) => Value::Message(self::message(&Json::Null, inner)),
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
        Kind::Message(inner) => Value::Message(json.is_object().then(|| message(json, inner.clone()))?),
    })
}
