//! wasmtime's configuration, for the compiler and for the code it made.

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::error::{Error, Result};

/// Core instances, and as many tables, that a component may be made of: adapters are some.
const PARTS: u32 = 8;
/// Memories that a component may have.
const MEMORIES: u32 = 2;
/// Bytes of a memory, and of a table, that are cleared and kept for the next instance instead of given back to the kernel.
const KEPT: usize = 64 << 10;
/// Address space of one instance, bytes, with room to spare: its memories of 4 GiB with the guards between them, tables and stack.
pub const SLOT: usize = MEMORIES as usize * ((4 << 30) + (64 << 20)) + (64 << 20);

/// An engine that compiles. With `fuel`, the code counts what it executes.
#[cfg(feature = "compiler")]
pub fn compiler(fuel: bool) -> Result<Engine> {
    engine(&config(fuel))
}

/// An engine that runs what `compiler` made, and cannot compile.
pub fn runner(fuel: bool) -> Result<Engine> {
    engine(&running(fuel))
}

/// An engine that runs what `compiler` made in so many instances at once at most, whose memories are reserved now.
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
    let mut config = running(false);
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    engine(&config)
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

/// [`config`] of an engine without a compiler, in a program that has one as in a program that has none.
fn running(fuel: bool) -> Config {
    let config = config(fuel);
    #[cfg(feature = "compiler")]
    let config = {
        let mut config = config;
        config.enable_compiler(false);
        config
    };
    config
}
