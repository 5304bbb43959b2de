//! What a sandbox has used, in the shape of `runc events --stats`.

use std::time::Duration;

use berth_runtime::cgroup::Stats;
use serde_json::{Value, json};

/// The `data` of the event. Times are in nanoseconds, memory is in bytes; a limit that is not set is left out, and disks are
/// summed up under the device 0:0.
pub fn document(stats: &Stats) -> Value {
    let Stats { cpu, memory, pids, block_io } = stats;
    let disk = |op: &str, value: u64| json!({ "major": 0, "minor": 0, "op": op, "value": value });
    let mut document = json!({
        "cpu": {
            "usage": { "total": nanos(cpu.usage), "kernel": nanos(cpu.system), "user": nanos(cpu.user) },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": nanos(cpu.throttled),
            },
        },
        "memory": {
            "usage": { "limit": memory.limit, "usage": memory.usage, "max": memory.peak },
            "swap": { "usage": memory.swap },
        },
        "pids": { "current": pids.current, "limit": pids.limit },
        "blkio": {
            "ioServiceBytesRecursive": [disk("Read", block_io.read_bytes), disk("Write", block_io.write_bytes)],
            "ioServicedRecursive": [disk("Read", block_io.reads), disk("Write", block_io.writes)],
        },
    });
    leave_out_null(&mut document);
    document
}

/// As runc's type has them; 2^64 nanoseconds are 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn leave_out_null(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(leave_out_null);
    }
}
