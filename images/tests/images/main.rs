//! Tests of the image store from outside: what goes in as archives comes out as directories, and nothing else.

mod archives;
mod disks;
mod faults;
mod hostile;
mod interop;
mod layers;
mod registry;
mod store;
mod support;
