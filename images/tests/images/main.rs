//! Tests of the image store from outside: what goes in as archives comes out as directories, and nothing else.

mod archives;
mod hostile;
mod interop;
mod layers;
mod store;
mod support;
