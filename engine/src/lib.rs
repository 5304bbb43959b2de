//! Containers as people know them: a record with a name, an image and a bundle, over the image store
//! (`berth-images`) and the sandbox (`berth-runtime`).
//!
//! Start reading at [`options`] (what a person can ask for), [`record`] (what is kept of it) and [`spec`] (the OCI
//! configuration made of it).

pub mod options;
pub mod record;
pub mod spec;
pub mod volumes;
