//! From a VMM's start to its guest's first output.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Starts `program`, prints the milliseconds until its output contains `mark` and its resident memory then, and waits for
/// its end.
pub fn run(mark: &str, program: &str, arguments: &[&str]) -> Result<()> {
    let start = Instant::now();
    let mut vmm = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().context("starting the VMM")?;
    let mut output = vmm.stdout.take().context("the VMM's output is not a pipe")?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !seen.windows(mark.len()).any(|window| window == mark.as_bytes()) {
        let read = output.read(&mut buffer)?;
        if read == 0 {
            bail!("the VMM ended without '{mark}': {}", String::from_utf8_lossy(&seen));
        }
        seen.extend(&buffer[..read]);
    }
    let elapsed = start.elapsed();
    let resident = resident(vmm.id())?;
    std::io::copy(&mut output, &mut std::io::sink())?;
    vmm.wait()?;
    println!("{:.0} ms, {resident} KiB resident outside guest memory", elapsed.as_secs_f64() * 1e3);
    Ok(())
}

/// KiB resident in `process`, without its guest's memory: that is the one run of adjacent mappings, anonymous or of files
/// other than the binary, which is longer than anything a VMM of a few MiB maps for itself.
fn resident(process: u32) -> Result<u64> {
    const GUEST: u64 = 32 << 20;
    let binary = fs::read_link(format!("/proc/{process}/exe"))?.to_string_lossy().into_owned();
    let maps = fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let (mut total, mut run, mut run_length, mut run_end) = (0, 0, 0, 0);
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
            let writable = words.next().unwrap_or_default().starts_with("rw");
            let file = words.nth(3).unwrap_or_default();
            if start != run_end || !writable || file == binary || file.starts_with(['[', 'a']) {
                total += if run_length < GUEST { run } else { 0 };
                (run, run_length) = (0, 0);
            }
            (run_length, run_end) = (run_length + end - start, end);
        } else if first == "Rss:" {
            run += words.next().unwrap_or_default().parse::<u64>()?;
        }
    }
    Ok(total + if run_length < GUEST { run } else { 0 })
}
