//! `berth events`

use std::process::ExitCode;

use anyhow::Result;
use berth_engine::{Error, events, time};
use clap::Args;
use jiff::Timestamp;

use super::Context;
use crate::output::{self, Format};

/// Print what happens to containers, as it happens
#[derive(Debug, Args)]
pub struct Events {
    /// Begin with what has happened since then: 2026-01-31T12:00:00Z, seconds since 1970, or how long ago, as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// End then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only those that match: container=NAME, event=ACTION or image=REFERENCE
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

impl Events {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let now = Timestamp::now();
        let parse = |text: &Option<String>| text.as_deref().map(|text| time::parse(text, now)).transpose();
        let mut filter =
            events::Filter { since: parse(&self.since)?, until: parse(&self.until)?, ..events::Filter::default() };
        self.filter.iter().try_for_each(|text| filter.add(text))?;
        let format = context.format;
        let mut show = |event: &events::Event| {
            let printed = match format {
                Format::Json => output::json_line(event),
                Format::Table => output::print(&line(event)),
            };
            printed.map_err(|source| Error::Os { attempt: "print".to_owned(), source })
        };
        events::follow(&context.roots, &filter, &mut show)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// As docker words it: `TIME container ACTION ID (image=…, name=…)`.
fn line(event: &events::Event) -> String {
    let mut attributes = event.attributes.clone();
    attributes.insert("image".to_owned(), event.image.clone());
    attributes.insert("name".to_owned(), event.name.clone());
    let attributes: Vec<String> = attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{:.9} {} {} {} ({})\n", event.time, event.kind, event.action, event.id, attributes.join(", "))
}
