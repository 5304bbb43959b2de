//! wasmtime's configuration, for the compiler and for the code it made.

use std::hash::{Hash, Hasher};

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::code::hex;
use crate::error::{Error, Result};

/// Bytes of a compatibility key, before it is written in hexadecimal digits.
const KEY_LENGTH: usize = 8;

/// Core instances, and as many tables, that a component may be made of: adapters are some.
const PARTS: u32 = 8;
/// Memories that a component may have.
const MEMORIES: u32 = 2;
/// Bytes of a memory, and of a table, that are cleared and kept for the next instance instead of given back to the kernel.
const KEPT: usize = 64 << 10;
/// Address space of one instance, bytes, with room to spare: its memories of 4 GiB with the guards between them, tables and stack.
pub const SLOT: usize = MEMORIES as usize * ((4 << 30) + (64 << 20)) + (64 << 20);

/// An engine that compiles. With `fuel`, the code counts what it executes.
pub fn compiler(fuel: bool) -> Result<Engine> {
    engine(&config(fuel))
}

/// An engine that runs what [`compiler`] made, and cannot compile.
pub fn runner(fuel: bool) -> Result<Engine> {
    engine(config(fuel).enable_compiler(false))
}

/// An engine that runs what [`compiler`] made in so many instances at once at most, whose memories are reserved now.
pub fn server(instances: u32) -> Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(PARTS))
        .total_memories(instances.saturating_mul(MEMORIES))
        .total_tables(instances.saturating_mul(PARTS))
        .total_stacks(instances)
        .max_core_instances_per_component(PARTS)
        .max_memories_per_component(MEMORIES)
        .max_tables_per_component(PARTS)
        .linear_memory_keep_resident(KEPT)
        .table_keep_resident(KEPT)
        .pagemap_scan(Enabled::No);
    let mut config = config(false);
    config.enable_compiler(false).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    engine(&config)
}

/// What must be equal for code to suit an engine: wasmtime's version and settings, and what this processor has.
pub fn compatibility(engine: &Engine) -> String {
    let mut hasher = KeyHasher(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hex(&hasher.0.finalize()[..KEY_LENGTH])
}

fn engine(config: &Config) -> Result<Engine> {
    Engine::new(config).map_err(Error::Engine)
}

fn config(fuel: bool) -> Config {
    let mut config = Config::new();
    // Whoever asks for the end of a module need not wait for it to call out.
    config.epoch_interruption(true).consume_fuel(fuel).wasm_component_model_async(true);
    config
}

/// A hasher whose result is the same in every build of this program, unlike the standard library's.
struct KeyHasher(Sha256);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        u64::from_le_bytes(std::array::from_fn(|place| digest[place]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_tells_settings_apart_and_nothing_else() {
        let key = |fuel| compatibility(&compiler(fuel).unwrap());
        assert_eq!(key(false), key(false));
        assert_ne!(key(false), key(true));
        assert_eq!(key(true).len(), 2 * KEY_LENGTH);
    }
}
