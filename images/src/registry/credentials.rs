//! Credentials where docker keeps them: `~/.docker/config.json` (`DOCKER_CONFIG` names another folder), or the
//! `docker-credential-…` helpers it names.

use std::io::{Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::reference::DEFAULT_REGISTRY;

/// What docker calls `docker.io` in its file.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// A helper's user name for an identity token.
const TOKEN_USER: &str = "<token>";

/// Name and password, or an identity token.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password, access token or identity token.
    pub secret: String,
    /// Whether the secret is an `OAuth2` refresh token.
    pub is_identity_token: bool,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The credentials for a registry, where there are any.
pub fn load(registry: &str) -> Result<Option<Credentials>> {
    let Some(file) = File::open()? else {
        return Ok(None);
    };
    if let Some(helper) = file.helper(registry) {
        return from_helper(&helper, registry);
    }
    let Some(entry) = file.entry(registry) else {
        return Ok(None);
    };
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials { username: String::new(), secret: token.to_owned(), is_identity_token: true }));
    }
    let Some(encoded) = text("auth") else {
        return Ok(None);
    };
    let malformed =
        || Error::invalid(file.path.display().to_string(), format!("its 'auth' of {registry} is malformed"));
    let decoded = STANDARD.decode(encoded).map_err(|_| malformed())?;
    let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
    let (username, secret) = decoded.split_once(':').ok_or_else(malformed)?;
    // Docker used to pad passwords with NUL bytes.
    let secret = secret.trim_end_matches('\0').to_owned();
    Ok(Some(Credentials { username: username.to_owned(), secret, is_identity_token: false }))
}

/// Keeps the credentials for a registry. Returns where.
pub fn store(registry: &str, credentials: &Credentials) -> Result<String> {
    let mut file = File::open()?.map_or_else(File::new, Ok)?;
    if let Some(helper) = file.helper(registry) {
        let request =
            json!({ "ServerURL": key(registry), "Username": credentials.username, "Secret": credentials.secret });
        run_helper(&helper, "store", &request.to_string())?;
        return Ok(format!("docker-credential-{helper}"));
    }
    let auth = STANDARD.encode(format!("{}:{}", credentials.username, credentials.secret));
    let auths = file.content.entry("auths").or_insert_with(|| json!({}));
    if !auths.is_object() {
        *auths = json!({});
    }
    auths[key(registry)] = json!({ "auth": auth });
    file.write()?;
    Ok(file.path.display().to_string())
}

/// Forgets the credentials for a registry; `false` if there were none.
pub fn erase(registry: &str) -> Result<bool> {
    let Some(mut file) = File::open()? else {
        return Ok(false);
    };
    if let Some(helper) = file.helper(registry) {
        let known = from_helper(&helper, registry)?.is_some();
        run_helper(&helper, "erase", key(registry))?;
        return Ok(known);
    }
    let Some(auths) = file.content.get_mut("auths").and_then(Value::as_object_mut) else {
        return Ok(false);
    };
    let before = auths.len();
    auths.retain(|name, _| host(name) != host(key(registry)));
    let known = auths.len() < before;
    if known {
        file.write()?;
    }
    Ok(known)
}

/// Docker's configuration file; what is not about credentials stays as it is.
struct File {
    path: PathBuf,
    content: Map<String, Value>,
}

impl File {
    fn path() -> Result<PathBuf> {
        if let Some(folder) = std::env::var_os("DOCKER_CONFIG").filter(|folder| !folder.is_empty()) {
            return Ok(PathBuf::from(folder).join("config.json"));
        }
        let home = std::env::home_dir()
            .ok_or_else(|| Error::invalid("the credentials file", "there is no home folder; set DOCKER_CONFIG"))?;
        Ok(home.join(".docker/config.json"))
    }

    fn new() -> Result<Self> {
        Ok(Self { path: Self::path()?, content: Map::new() })
    }

    fn open() -> Result<Option<Self>> {
        let Ok(path) = Self::path() else {
            return Ok(None);
        };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", &path)(error)),
        };
        let content =
            serde_json::from_slice(&text).map_err(|error| Error::invalid(path.display().to_string(), error))?;
        Ok(Some(Self { path, content }))
    }

    /// Replaces the file in one step, readable by its owner alone.
    fn write(&self) -> Result<()> {
        // Where the file is a link, its target is replaced.
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        let folder = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let temporary = path.with_extension(format!("berth-{}", std::process::id()));
        let text =
            serde_json::to_vec_pretty(&self.content).map_err(|error| Error::invalid("the credentials", error))?;
        let written = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_data()))
            .and_then(|()| std::fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written.map_err(Error::io("write", path))
    }

    fn helper(&self, registry: &str) -> Option<String> {
        let helpers = self.content.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| {
            helpers.iter().find(|(name, _)| host(name) == host(key(registry))).map(|(_, helper)| helper)
        });
        let helper = own.or_else(|| self.content.get("credsStore"))?.as_str()?;
        (!helper.is_empty()).then(|| helper.to_owned())
    }

    fn entry(&self, registry: &str) -> Option<&Value> {
        let auths = self.content.get("auths")?.as_object()?;
        auths
            .get(key(registry))
            .or_else(|| auths.iter().find(|(name, _)| host(name) == host(key(registry))).map(|(_, entry)| entry))
    }
}

/// What the registry is called in the file.
fn key(registry: &str) -> &str {
    if registry == DEFAULT_REGISTRY { DOCKER_KEY } else { registry }
}

/// The host in a key, which may be an address.
fn host(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.split('/').next().unwrap_or(key)
}

fn from_helper(helper: &str, registry: &str) -> Result<Option<Credentials>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let answer = match run_helper(helper, "get", key(registry)) {
        Ok(answer) => answer,
        // Every helper says it in these words; the protocol has no code for it.
        Err(Error::Helper { reason, .. }) if reason.contains("credentials not found") => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|error| Error::Helper { helper: helper.to_owned(), reason: error.to_string() })?;
    let is_identity_token = answer.username == TOKEN_USER;
    Ok(Some(Credentials { username: answer.username, secret: answer.secret, is_identity_token }))
}

fn run_helper(helper: &str, action: &str, input: &str) -> Result<Vec<u8>> {
    let failed = |reason: String| Error::Helper { helper: helper.to_owned(), reason };
    if helper.contains('/') {
        return Err(failed("its name has a slash".to_owned()));
    }
    // A file, not a pipe: a helper that does not read must not end this process by a signal.
    let stdin = memfd_create("credentials", MemfdFlags::CLOEXEC)
        .map(std::fs::File::from)
        .map_err(std::io::Error::from)
        .and_then(|mut file| {
            file.write_all(input.as_bytes())?;
            file.rewind()?;
            Ok(file)
        })
        .map_err(|error| failed(error.to_string()))?;
    let output = Command::new(format!("docker-credential-{helper}"))
        .arg(action)
        .stdin(stdin)
        .output()
        .map_err(|error| failed(format!("it cannot be started: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = [output.stdout, output.stderr].concat();
    Err(failed(String::from_utf8_lossy(&words).trim().to_owned()))
}
