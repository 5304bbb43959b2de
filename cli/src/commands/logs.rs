//! `berth logs`

use std::io;
use std::process::ExitCode;

use anyhow::Result;
use berth_engine::{Container, logs, time};
use clap::Args;
use jiff::Timestamp;

use super::Context;

/// Print what a container has written
#[derive(Debug, Args)]
pub struct Logs {
    #[command(flatten)]
    flags: Flags,
    /// Name or id
    container: String,
}

/// What of a log is wanted.
#[derive(Debug, Args)]
pub struct Flags {
    /// Go on with what it writes until it ends
    #[arg(short, long)]
    follow: bool,
    /// Not before this time: 2026-01-31T12:00:00Z, seconds since 1970, or how long ago, as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only the last lines: a number, or all
    #[arg(short = 'n', long, value_name = "N", default_value = "all", allow_negative_numbers = true, value_parser = tail)]
    tail: Tail,
    /// Put the time before each line
    #[arg(short, long)]
    timestamps: bool,
}

#[derive(Debug, Clone, Copy)]
struct Tail(Option<u64>);

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        // As in docker, less than nothing is all.
        _ => match text.parse::<i64>() {
            Ok(lines) => Ok(Tail(u64::try_from(lines).ok())),
            Err(_) => Err("give a number of lines, or all".to_owned()),
        },
    }
}

impl Flags {
    /// The same, with times as they are.
    pub fn wanted(&self) -> Result<logs::Wanted> {
        let now = Timestamp::now();
        let parse = |text: &Option<String>| text.as_deref().map(|text| time::parse(text, now)).transpose();
        Ok(logs::Wanted {
            follow: self.follow,
            since: parse(&self.since)?,
            until: parse(&self.until)?,
            tail: self.tail.0,
            timestamps: self.timestamps,
        })
    }
}

impl Logs {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let wanted = self.flags.wanted()?;
        let container = Container::find(&context.roots, &self.container)?;
        let mut stdout = io::BufWriter::new(io::stdout().lock());
        let mut stderr = io::BufWriter::new(io::stderr().lock());
        logs::show(&container, &wanted, &mut stdout, &mut stderr)?;
        Ok(ExitCode::SUCCESS)
    }
}
