//! What `scripts/bench-vm` measures with.
//!
//! `bench first-instruction` compares, on this host's KVM, a machine of berth with the bare calls to KVM it consists of,
//! from opening `/dev/kvm` to the guest's first instruction. `bench boot MARK COMMAND…` runs a VMM and prints how long it
//! took until its output contained MARK, and how much memory it then had outside its guest's. `bench idle VMM COUNT` keeps many
//! machines alive that do nothing and prints what each costs the host, beside processes (`bench bare`) of bare calls.

mod boot;
mod first_instruction;
mod idle;
mod kernel;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["first-instruction"] => first_instruction::run(),
        ["bare"] => idle::bare(),
        ["idle", vmm, count] => idle::run(vmm, count.parse()?),
        ["boot", mark, program, rest @ ..] => boot::run(mark, program, rest),
        _ => bail!("usage: bench first-instruction | bench boot MARK COMMAND… | bench idle VMM COUNT"),
    }
}
