//! The allocator, from outside.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `oracles` | what the DRF paper computes by hand |
//! | `properties` | what it proves of the policies, over random clusters |
//! | `invariants` | random events against accounts kept apart from the allocator's |
//! | `offers` | who is offered what: roles, quota, constraints, refusals, timeouts |
//! | `explanations` | whether it can say why |

mod explanations;
mod invariants;
mod offers;
mod oracles;
mod paper;
mod properties;
