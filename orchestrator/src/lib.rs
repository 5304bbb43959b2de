//! The orchestrator: who gets what of a cluster, and why.
//!
//! Start reading at [`allocator`]: a pure state machine that offers the resources of agents to frameworks, fairly. Round it is the
//! [`master`], which knows who is there and what runs where, and is as pure.

pub mod allocator;
pub mod attributes;
pub mod master;
pub mod resources;
pub mod simulator;
