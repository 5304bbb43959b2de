//! The orchestrator: who gets what of a cluster, and why.
//!
//! Start reading at [`allocator`]: a pure state machine that offers the resources of agents to frameworks, fairly.

pub mod allocator;
pub mod attributes;
pub mod resources;
