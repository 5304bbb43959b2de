//! `berth cluster init`, `berth cluster token` and `berth cluster join`: who belongs to a cluster that spans machines

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_orchestrator::masters::Masters;
use berth_orchestrator::{process, tls};
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use nix::unistd::gethostname;
use serde_json::json;

use super::Context;
use super::cluster::{Asked, MASTER, items, text};
use crate::flags::time;
use crate::output::{self, Format, Table};

/// The longest token that is read, in bytes.
const LONGEST_TOKEN: u64 = 4096;

/// Make what a cluster with TLS begins with: an authority, and certificates for the master and an operator
#[derive(Debug, Args)]
pub struct Init {
    /// Where to keep them: a directory that is not there yet, or empty
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Replace the master's and the operator's certificates, which are good for a year, by new ones of the same authority
    #[arg(long)]
    renew: bool,
    /// Where other programs than berth reach the master, besides localhost; may be given several times
    #[arg(long, value_name = "NAME|ADDRESS")]
    host: Vec<String>,
}

impl Init {
    pub fn run(self) -> Result<ExitCode> {
        let make = if self.renew { tls::renew } else { tls::init };
        make(&self.directory, &self.host)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Make a token by which machines can join as agents, for a while
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Token {
    #[command(subcommand)]
    command: Option<TokenCommand>,
    /// How long it is good: 30 days at most
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = time)]
    ttl: Duration,
    /// How many machines it lets in
    #[arg(long, default_value = "1", value_name = "N", value_parser = RangedU64ValueParser::<u32>::new().range(1..=10_000))]
    uses: u32,
    #[command(flatten)]
    asked: Asked,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    List(List),
    Revoke(Revoke),
}

/// List the tokens that are good yet, by their ids
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    asked: Asked,
}

/// Make a token good for nothing
#[derive(Debug, Args)]
struct Revoke {
    /// Its id: what it begins with
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    asked: Asked,
}

impl Token {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        match self.command {
            None => {
                let seconds = self.ttl.as_secs().max(1);
                let wanted = json!({ "ttl_seconds": seconds, "uses": self.uses });
                let call = json!({ "type": "CREATE_JOIN_TOKEN", "create_join_token": wanted });
                let token = self.asked.ask(context, &call)?;
                match context.format {
                    Format::Json => output::json(&token)?,
                    Format::Table => output::lines([text(&token["token"]).to_owned()])?,
                }
            }
            Some(TokenCommand::List(List { asked })) => {
                let all = asked.ask(context, &json!({ "type": "GET_JOIN_TOKENS" }))?;
                if context.format == Format::Json {
                    output::json(&all["tokens"])?;
                    return Ok(ExitCode::SUCCESS);
                }
                let mut table = Table::new(&["TOKEN", "EXPIRES", "USES LEFT"]);
                for token in items(&all["tokens"]) {
                    let expires = Timestamp::from_second(token["expires"].as_i64().unwrap_or_default())?;
                    table.row(vec![text(&token["id"]).to_owned(), expires.to_string(), token["uses"].to_string()]);
                }
                table.print()?;
            }
            Some(TokenCommand::Revoke(Revoke { id, asked })) => {
                let id = id.split('.').next().unwrap_or_default();
                asked.ask(context, &json!({ "type": "REVOKE_JOIN_TOKEN", "revoke_join_token": { "id": id } }))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Get an agent's certificate from a master, with a token
#[derive(Debug, Args)]
pub struct Join {
    /// Where to keep the certificate and its key: a directory that is not there yet, or empty
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Where the master listens; where all of them do, if there are several
    #[arg(long, default_value = MASTER, value_name = "ADDRESS:PORT[,…]")]
    master: Masters,
    /// What `berth cluster token` printed; `-` to read it from standard input, where other users of this machine do not see it
    #[arg(long, env = "BERTH_JOIN_TOKEN", value_name = "TOKEN", hide_env = true, hide_env_values = true)]
    token: String,
    /// What the certificate calls this machine [default: its host name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Join {
    pub fn run(self) -> Result<ExitCode> {
        let mut token = self.token;
        if token == "-" {
            token.clear();
            let read = io::stdin().take(LONGEST_TOKEN).read_to_string(&mut token);
            read.context("cannot read the token from standard input")?;
        }
        let token = token.parse().map_err(|problem| anyhow::anyhow!("what was given as --token {problem}"))?;
        let name = match self.name {
            Some(name) => name,
            None => gethostname().context("cannot find the name of this host")?.to_string_lossy().into_owned(),
        };
        process::join(&self.master, &token, &name, &self.directory)?;
        Ok(ExitCode::SUCCESS)
    }
}
