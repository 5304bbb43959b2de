//! `berth login` and `berth logout`

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use berth_images::{Credentials, login, logout};
use clap::Args;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde_json::json;

use super::Context;
use super::transfer::RegistryFlags;
use crate::output::{self, Format};

/// Where `docker.io` is meant when no registry is named.
const DEFAULT: &str = "docker.io";
/// Longest password read, bytes.
const MAX_PASSWORD: u64 = 1 << 16;

/// Keep the credentials for a registry, in docker's configuration file or credential helper
#[derive(Debug, Args)]
pub struct Login {
    /// Host and optional port
    #[arg(value_name = "REGISTRY", default_value = DEFAULT)]
    registry: String,
    /// User name [default: asked for]
    #[arg(short, long)]
    username: Option<String>,
    /// Password or access token; other users of this machine can see it, --password-stdin is better
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    flags: RegistryFlags,
}

impl Login {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let registry = host(&self.registry);
        let username = match self.username {
            Some(username) => username,
            None if self.password_stdin => bail!("--password-stdin needs --username"),
            None => ask_name()?,
        };
        let secret = match self.password {
            Some(password) => password,
            None if self.password_stdin => read_password()?,
            None => ask_password()?,
        };
        let credentials = Credentials { username, secret, is_identity_token: false };
        let kept = login(registry, &credentials, &self.flags.connection())?;
        match context.format {
            Format::Json => {
                output::json(&json!({ "Registry": registry, "Username": credentials.username, "Kept": kept }))?;
            }
            Format::Table => output::print(&format!("Logged in to {registry}; the credentials are kept in {kept}\n"))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Forget the credentials for a registry
#[derive(Debug, Args)]
pub struct Logout {
    /// Host and optional port
    #[arg(value_name = "REGISTRY", default_value = DEFAULT)]
    registry: String,
}

impl Logout {
    pub fn run(self, context: &Context) -> Result<ExitCode> {
        let registry = host(&self.registry);
        let known = logout(registry)?;
        match context.format {
            Format::Json => output::json(&json!({ "Registry": registry, "Removed": known }))?,
            Format::Table if known => output::print(&format!("Logged out of {registry}\n"))?,
            Format::Table => output::print(&format!("There were no credentials for {registry}\n"))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The host of a registry that was given as an address.
fn host(registry: &str) -> &str {
    let rest = registry.split_once("://").map_or(registry, |(_, rest)| rest);
    match rest.split('/').next() {
        None | Some("" | "index.docker.io" | "registry-1.docker.io") => DEFAULT,
        Some(host) => host,
    }
}

fn ask_name() -> Result<String> {
    if !io::stdin().is_terminal() {
        bail!("there is no terminal to ask for the user name; give --username and --password-stdin");
    }
    eprint!("User name: ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let name = line.trim();
    if name.is_empty() {
        bail!("a login needs a user name");
    }
    Ok(name.to_owned())
}

fn read_password() -> Result<String> {
    let mut text = String::new();
    io::stdin().take(MAX_PASSWORD).read_to_string(&mut text).context("cannot read the password")?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("there is no password on standard input");
    }
    Ok(password.to_owned())
}

/// A terminal that does not echo; it is as before when this goes.
struct Silent(Termios);

impl Silent {
    fn new() -> Result<Self> {
        let before =
            tcgetattr(io::stdin()).context("there is no terminal to ask for the password; use --password-stdin")?;
        let mut silent = before.clone();
        // Without signals, so that Ctrl-C cannot leave the terminal silent.
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
        eprintln!();
    }
}

fn ask_password() -> Result<String> {
    /// Ctrl-C and Ctrl-D.
    const ABORT: [u8; 2] = [3, 4];
    const ERASE: [u8; 2] = [8, 127];
    let _silent = Silent::new()?;
    eprint!("Password: ");
    io::stderr().flush()?;
    let mut password = Vec::new();
    for byte in io::stdin().lock().take(MAX_PASSWORD).bytes() {
        match byte? {
            b'\n' | b'\r' => break,
            byte if ABORT.contains(&byte) => bail!("no password was given"),
            byte if ERASE.contains(&byte) => drop(password.pop()),
            byte => password.push(byte),
        }
    }
    String::from_utf8(password).context("the password is not UTF-8")
}
