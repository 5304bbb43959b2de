//! One request for entropy.

use crate::devices::virtqueue::{Chain, Served};

/// The most one request is given, in bytes: a guest's driver asks for 64, its hwrng core for 4 KiB at most. Bounds the
/// time the host's generator is kept busy for one chain.
const MAX_REQUEST: usize = 64 << 10;

/// Fills the writable part of `chain`. Fewer bytes than there is room for are a legal answer.
pub fn fill(mut chain: Chain<'_>) -> Served {
    let mut left = chain.writable.len().min(MAX_REQUEST);
    let mut written = 0;
    let mut entropy = [0; 256];
    while left > 0 {
        let length = left.min(entropy.len());
        // Requests of up to 256 bytes are answered whole once the host's pool is initialised (getrandom(2)).
        let Ok(random) = rustix::rand::getrandom(&mut entropy[..length], rustix::rand::GetRandomFlags::empty()) else {
            break;
        };
        if chain.writable.write(&entropy[..random]).is_err() {
            break;
        }
        written += random;
        left -= random;
    }
    Served::Used(written as u32)
}
