//! The orchestrator: who gets what of a cluster, and why.
//!
//! Start reading at [`allocator`]: a pure state machine that offers the resources of agents to frameworks, fairly.
//! Round it is the [`master`], which knows who is there and what runs where, and is as pure. The [`server`] puts the
//! master on a socket, the [`agent`] runs tasks in sandboxes, and the job framework in [`jobs`] is the client of the master
//! that people use; as processes they are in [`process`].

pub mod agent;
pub mod allocator;
pub mod api;
pub mod attributes;
pub mod cluster;
mod descriptors;
pub mod jobs;
pub mod master;
pub mod masters;
mod network;
pub mod process;
pub mod recordio;
pub mod resources;
pub mod server;
pub mod session;
pub mod simulator;
pub mod store;
pub mod tls;
