//! wasmtime's configuration, for the compiler and for the code it made.

use std::hash::{Hash, Hasher};

use sha2::{Digest as _, Sha256};
use wasmtime::{Config, Engine};

use crate::code::hex;
use crate::error::{Error, Result};

/// Bytes of a compatibility key, before it is written in hexadecimal digits.
const KEY_LENGTH: usize = 8;

/// An engine that compiles. With `fuel`, the code counts what it executes.
pub fn compiler(fuel: bool) -> Result<Engine> {
    engine(&config(fuel))
}

/// An engine that runs what [`compiler`] made, and cannot compile.
pub fn runner(fuel: bool) -> Result<Engine> {
    engine(config(fuel).enable_compiler(false))
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
