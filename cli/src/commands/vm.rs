//! `berth vm`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::{Container, size, vm};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::Context;
use crate::output::{self, Format, Table};

/// Look into running microVMs, and change how much memory they keep
#[derive(Debug, Args)]
pub struct Vm {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Translate(Translate),
    Balloon(Balloon),
    Exits(Exits),
}

impl Vm {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            Command::Translate(command) => command.run(context),
            Command::Balloon(command) => command.run(context),
            Command::Exits(command) => command.run(context),
        }
    }
}

/// Follow an address of the guest through every page table to the host, and compare with KVM's own answer
///
/// The tables are those the vCPU uses at this moment; of a process guest those of one of its processes. KVM answers as to a read in ring 0; it has no address where such a read is not
/// allowed, as in a program's page with SMAP on, and then it is the refusal that is compared.
///
///  Flags of an entry: P present, W writable, U user, T write-through, C cache
/// disabled, A accessed, D dirty, L large page, G global, N no-execute. The rights after the page are what a read, a write and an
/// instruction fetch meet. An address without a page is no error.
#[derive(Debug, Args)]
struct Translate {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Guest-virtual address, as 0xffffffff81000000 or decimal
    #[arg(value_parser = address)]
    address: u64,
    /// By the page tables of which vCPU, counted from 0 (a Linux guest's; the first if not given)
    #[arg(long, value_name = "NUMBER", conflicts_with = "pid")]
    vcpu: Option<u8>,
    /// By the page tables of which process, by its id in the guest (a process guest's; the first if not given)
    #[arg(long, value_name = "PID")]
    pid: Option<i32>,
}

impl Translate {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let container = Container::find(&context.roots, &self.container)?;
        let translated = vm::translate(&container, self.vcpu, self.pid, self.address)?;
        match context.format {
            Format::Json => output::json(&translated)?,
            Format::Table => output::print(&translated.text)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Set how much of its memory a guest keeps; the rest goes back to the host
///
/// Waits until the guest has given it back, or taken it again. A guest gives what it can spare: with a size its programs cannot do
/// with it stops on the way and stays there, which is an error.
#[derive(Debug, Args)]
struct Balloon {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// What the guest keeps, for example 64m: at least 16m, at most the --memory it was made with
    #[arg(value_parser = size::some_bytes)]
    size: u64,
}

impl Balloon {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let container = Container::find(&context.roots, &self.container)?;
        let style =
            ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let line = ProgressBar::new_spinner().with_style(style);
        let told = vm::balloon(&container, self.size, |balloon| line.set_message(said(container.name(), balloon)));
        line.finish_and_clear();
        let balloon = told?;
        match context.format {
            Format::Json => output::json(&balloon)?,
            Format::Table => output::lines([said(container.name(), &balloon)])?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn said(name: &str, balloon: &vm::Balloon) -> String {
    let vm::Balloon { memory, wanted, kept, .. } = balloon;
    let towards = if kept == wanted { String::new() } else { format!(", wanted {}", output::bytes(*wanted)) };
    format!("{name} keeps {} of {}{towards}", output::bytes(*kept), output::bytes(*memory))
}

/// Count what made the guest leave to the VMM, by reason
///
/// Only exits that reach the VMM: those KVM serves itself, such as page faults of the guest, are not among them. Each question to a
/// vCPU is a kick.
#[derive(Debug, Args)]
struct Exits {
    /// Name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Exits {
    fn run(self, context: &Context) -> Result<ExitCode> {
        let exits = vm::exits(&Container::find(&context.roots, &self.container)?)?;
        if context.format == Format::Json {
            output::json(&exits)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(&["REASON", "EXITS"]);
        for (reason, count) in exits {
            table.row(vec![reason, count.to_string()]);
        }
        table.print()?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A number, hexadecimal after `0x`.
fn address(text: &str) -> Result<u64, String> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = hexadecimal.map_or((text, 10), |digits| (digits, 16));
    let number = if digits.starts_with('+') { None } else { u64::from_str_radix(digits, radix).ok() };
    number.ok_or_else(|| String::from("not an address of 64 bits; give it as 0xffffffff81000000 or in decimal"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal_or_decimal() {
        for (text, expected) in [("0x1F", 31), ("0Xffffffffffffffff", u64::MAX), ("4096", 4096), ("0", 0)] {
            assert_eq!(address(text), Ok(expected));
        }
        for text in ["", "0x", "ff", "-1", "+1", "0x+1", "1k", "0x1ffffffffffffffff", "18446744073709551616", "１"] {
            assert!(address(text).unwrap_err().contains("not an address"), "{text}");
        }
    }
}
