//! `berth images`

use std::process::ExitCode;

use anyhow::{Result, bail};
use berth_engine::ps;
use berth_images::{Digest, Reference, Store, Summary};
use clap::Args;
use jiff::Timestamp;

use super::Context;
use crate::output::{self, Format, Table};

/// List images
#[derive(Debug, Args)]
pub struct Images {
    /// Only images of this name, and of this tag if one is given
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// As in docker; there are no intermediate images here
    #[arg(short, long, hide = true)]
    all: bool,
    /// Only those that match: dangling=true|false or reference=NAME[:TAG]
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Also the digests of manifests
    #[arg(long)]
    digests: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
}

impl Images {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let mut list = Store::open(context.roots.data())?.list()?;
        if let Some(name) = &self.name {
            retain_named(&mut list, name)?;
        }
        for filter in &self.filter {
            match filter.split_once('=') {
                Some(("dangling", "true" | "1")) => list.retain(|line| line.repository.is_none()),
                Some(("dangling", "false" | "0")) => list.retain(|line| line.repository.is_some()),
                Some(("reference", name)) => retain_named(&mut list, name)?,
                _ => bail!("`{filter}` is no filter here; use dangling=true|false or reference=NAME[:TAG]"),
            }
        }
        if self.quiet {
            let mut ids: Vec<String> = list.iter().map(|line| self.id(line.id)).collect();
            ids.dedup();
            output::lines(ids)?;
        } else if context.format == Format::Json {
            output::json(&list)?;
        } else {
            self.table(&list).print()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn id(&self, id: Digest) -> String {
        if self.no_trunc { id.to_string() } else { id.hex()[..12].to_owned() }
    }

    fn table(&self, list: &[Summary]) -> Table {
        let mut headings = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        if self.digests {
            headings.insert(2, "DIGEST");
        }
        let mut table = Table::new(&headings);
        let now = Timestamp::now();
        for line in list {
            let none = || "<none>".to_owned();
            let mut row = vec![
                line.repository.clone().unwrap_or_else(none),
                line.tag.clone().unwrap_or_else(none),
                self.id(line.id),
                age(line.created.as_deref(), now),
                output::bytes(line.size),
            ];
            if self.digests {
                row.insert(2, line.digest.to_string());
            }
            table.row(row);
        }
        table
    }
}

/// How long ago an image says it was made.
pub fn age(created: Option<&str>, now: Timestamp) -> String {
    let created = created.and_then(|text| text.parse::<Timestamp>().ok());
    created.map_or_else(|| "N/A".to_owned(), |time| format!("{} ago", ps::age(time, now)))
}

fn retain_named(list: &mut Vec<Summary>, text: &str) -> Result<()> {
    let wanted: Reference = text.parse()?;
    let last = text.rsplit('/').next().unwrap_or(text);
    let tag = wanted.tag().filter(|_| last.contains(':'));
    let name = wanted.familiar_name();
    list.retain(|line| {
        line.repository.as_ref() == Some(&name)
            && tag.is_none_or(|tag| line.tag.as_deref() == Some(tag))
            && wanted.digest().is_none_or(|digest| line.digest == digest)
    });
    Ok(())
}
