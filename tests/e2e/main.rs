//! End-to-end tests: they drive the built binaries as a user does. A new test goes into the module of its subject.

mod harness;
