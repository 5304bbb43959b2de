//! The master's process, from outside: bytes over a loopback socket.

mod authentication;
mod calls;
mod client;
mod etcd;
mod events;
mod executors;
mod files;
mod http;
mod lifecycle;
mod operators;
mod protobuf;
mod sessions;
mod standby;
mod tls;
mod wire;
