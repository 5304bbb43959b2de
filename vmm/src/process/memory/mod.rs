//! One process's memory: areas say what stands where, page tables are filled from them on demand.
//!
//! - [`area`] what an area is; splitting and finding places;
//! - [`fault`] which page comes where, and copy on write;
//! - [`change`] mapping, unmapping, protecting, moving: what a program asks for;
//! - [`copy`] reads and writes of system calls;
//! - [`window`] files and shared memory.

pub mod area;
mod change;
mod copy;
mod fault;
mod fork;
#[cfg(test)]
mod tests;
pub mod window;

use std::collections::BTreeMap;
use std::sync::Arc;

use nix::errno::Errno;

use self::area::{Area, Protection};
use super::Result;
use super::vm::{Vm, layout};
use crate::paging::entry::PAGE_SIZE;
use crate::paging::tables::{AddressSpace, Rights};

pub use change::Place;
pub use copy::PATH_MAX;
pub use fault::{Failure, Resolution};

/// The memory of one process; threads share it.
#[derive(Debug)]
pub struct Memory {
    vm: Arc<Vm>,
    /// Always there, but for the moment when the memory is dropped.
    space: Option<AddressSpace>,
    /// By start; they never overlap.
    areas: BTreeMap<u64, Area>,
    /// Where the heap begins and ends.
    pub program_break: (u64, u64),
    /// A system call found no memory left for a page that it was to read or write.
    pub exhausted: bool,
}

/// The start of the page that holds `address`.
pub fn page_of(address: u64) -> u64 {
    address & !(PAGE_SIZE - 1)
}

impl Memory {
    /// Empty memory.
    pub fn new(vm: Arc<Vm>) -> Result<Self> {
        let space = vm.space().map_err(|_| Errno::ENOMEM)?;
        Ok(Self { vm, space: Some(space), areas: BTreeMap::new(), program_break: (0, 0), exhausted: false })
    }

    /// The root of the page tables.
    pub fn root(&self) -> u64 {
        self.space().root()
    }

    /// The areas, lowest first.
    pub fn areas(&self) -> impl Iterator<Item = (u64, &Area)> {
        self.areas.iter().map(|(&start, area)| (start, area))
    }

    fn space(&self) -> &AddressSpace {
        self.space.as_ref().expect("only dropping takes it")
    }

    fn space_mut(&mut self) -> &mut AddressSpace {
        self.space.as_mut().expect("only dropping takes it")
    }

    /// What ring 3 may do with a page of an area: a private page that others use too is not written in place.
    fn rights(&self, protection: Protection, private: bool, frame: u64) -> Rights {
        let write = protection.write && (!private || self.vm.is_sole(frame));
        Rights { user: protection.any(), write, execute: protection.execute }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let Some(space) = self.space.take() else { return };
        let pages = space.pages(self.vm.arena.memory(), 0, layout::USER_END);
        // The tables are gone for good: only frames nobody else uses matter, windows look after themselves.
        self.vm.retire(space);
        self.vm.release(pages.into_iter().map(|(_, mapping)| mapping.physical).collect());
    }
}
