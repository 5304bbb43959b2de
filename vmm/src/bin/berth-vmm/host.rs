//! `berth-vmm host`: what this host's KVM can do, for `berth info`.

use anyhow::Result;
use berth_vmm::host::{self, Host};
use serde_json::{json, to_value};

/// Prints [`Host`] as JSON, with `linux`: whether a Linux guest can run, and `reason`: why not.
pub fn run() -> Result<()> {
    let host = Host::probe(&host::kvm(host::open()?)?);
    let linux = host.runs_linux();
    let mut document = to_value(&host)?;
    document["linux"] = json!(linux.is_ok());
    document["reason"] = json!(linux.err().map(|error| error.to_string()));
    println!("{document}");
    Ok(())
}
