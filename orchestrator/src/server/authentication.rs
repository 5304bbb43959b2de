//! Frameworks by name: a principal and its secret, as in Mesos, with the roles it may use and how often it may call.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::{AUTHORIZATION, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq as _;

use super::answer::Problem;
use super::limits::{Bucket, FRAMEWORK_CALLS, Rate};
use crate::api::framework::{LONGEST_PRINCIPAL, check_role};
use crate::api::{Invalid, decode, parse};
use crate::master::FrameworkInfo;
use crate::tls::{self, private};

/// The longest principal or secret, in bytes.
const LONGEST: usize = LONGEST_PRINCIPAL;

/// Who may be a framework.
#[derive(Clone)]
pub struct Credentials(Arc<HashMap<String, Arc<Principal>>>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// One of them.
pub struct Principal {
    /// Its name.
    pub name: Arc<str>,
    /// The SHA-256 of its secret: all have the same length.
    secret: [u8; 32],
    /// The only roles it may use, if they are named.
    roles: Option<BTreeSet<String>>,
    /// What bounds the calls of all its frameworks together.
    calls: Mutex<Bucket>,
}

/// A principal and its secret, as a framework has them.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    principal: String,
    secret: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({})", self.principal)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    credentials: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    principal: String,
    secret: String,
    roles: Option<BTreeSet<String>>,
    qps: Option<f64>,
    capacity: Option<u32>,
}

/// Why a file with secrets is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read, or others can read it.
    #[error(transparent)]
    File(#[from] tls::Error),
    /// It does not say what it should.
    #[error("{0}: {1}")]
    Wrong(String, Invalid),
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let wrong = |invalid| Error::Wrong(path.display().to_string(), invalid);
    parse(private(path)?.as_bytes()).and_then(decode).map_err(wrong)
}

impl Credential {
    /// Reads a file, which nobody else may read: `{"principal": "…", "secret": "…"}`.
    pub fn load(path: &Path) -> Result<Credential, Error> {
        let credential: Credential = read(path)?;
        let wrong = |invalid| Error::Wrong(path.display().to_string(), invalid);
        check(&credential.principal, &credential.secret).map_err(wrong)?;
        Ok(credential)
    }

    /// The header that says so (RFC 7617).
    pub(crate) fn header(&self) -> HeaderValue {
        let text = BASE64_STANDARD.encode(format!("{}:{}", self.principal, self.secret));
        let mut value = HeaderValue::try_from(format!("Basic {text}")).expect("base64 is printable");
        value.set_sensitive(true);
        value
    }
}

/// Whether they can be written in a header.
fn check(principal: &str, secret: &str) -> Result<(), Invalid> {
    let problem = format!("has to have between 1 and {LONGEST} bytes");
    for (field, text) in [("principal", principal), ("secret", secret)] {
        if text.is_empty() || text.len() > LONGEST {
            return Err(Invalid::new(field, problem));
        }
    }
    if principal.contains(|c: char| c == ':' || c.is_control()) {
        return Err(Invalid::new("principal", "must not contain colons or control characters"));
    }
    Ok(())
}

impl Entry {
    fn read(self) -> Result<Principal, Invalid> {
        check(&self.principal, &self.secret)?;
        for role in self.roles.iter().flatten() {
            check_role(role, "roles")?;
        }
        let qps = self.qps.unwrap_or(f64::from(FRAMEWORK_CALLS.each_second));
        if !(1.0..=1e6).contains(&qps) {
            return Err(Invalid::new("qps", "has to be between 1 and 1000000 calls a second"));
        }
        let each_second = qps as u32;
        // As generous as without a limit: four seconds of calls at once.
        let at_once = self.capacity.unwrap_or(4 * each_second).max(1);
        Ok(Principal {
            name: self.principal.into(),
            secret: hash(self.secret.as_bytes()),
            roles: self.roles,
            calls: Mutex::new(Bucket::new(Rate { each_second, at_once }, Duration::ZERO)),
        })
    }
}

fn hash(secret: &[u8]) -> [u8; 32] {
    digest(&SHA256, secret).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl Credentials {
    /// Reads a file, which nobody else may read: `{"credentials": [{"principal": "…", "secret": "…"}]}`, as Mesos has it. An
    /// entry may also have `roles`, the only ones it may use, and `qps` and `capacity`: how often it may call a second, and at
    /// once after a pause.
    pub fn load(path: &Path) -> Result<Credentials, Error> {
        let file: File = read(path)?;
        let mut all = HashMap::new();
        for (index, entry) in file.credentials.into_iter().enumerate() {
            let wrong = |invalid: Invalid| {
                Error::Wrong(path.display().to_string(), invalid.within(&format!("credentials[{index}]")))
            };
            let principal = entry.read().map_err(wrong)?;
            let name = principal.name.to_string();
            if all.insert(name, Arc::new(principal)).is_some() {
                return Err(wrong(Invalid::new("principal", "is there twice")));
            }
        }
        Ok(Credentials(Arc::new(all)))
    }

    /// Who says so with the right secret (RFC 7617).
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Principal>, Problem> {
        let said = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|text| {
            let (scheme, text) = text.split_once(' ')?;
            let text = if scheme.eq_ignore_ascii_case("basic") { text.trim() } else { return None };
            let text = String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()?;
            text.split_once(':').map(|(name, secret)| (name.to_owned(), secret.to_owned()))
        });
        let unauthorized = |message: &str| Problem::new(StatusCode::UNAUTHORIZED, message);
        let needed = "this takes a principal and its secret, by HTTP's Basic authentication";
        let (name, secret) = said.ok_or_else(|| unauthorized(needed))?;
        let known = self.0.get(&name);
        // Of a principal that is not there, this takes as long to find out.
        let expected = known.map_or([0; 32], |principal| principal.secret);
        let is_right: bool = expected.ct_eq(&hash(secret.as_bytes())).into();
        let known = known.filter(|_| is_right);
        known.cloned().ok_or_else(|| unauthorized("the principal is not known, or the secret is not its own"))
    }
}

impl Principal {
    /// Whether its frameworks have not called too often.
    pub(super) fn may_call(&self, now: Duration) -> bool {
        self.calls.lock().is_ok_and(|mut calls| calls.take(now))
    }

    /// Makes it a framework's: what that says of its principal has to be true.
    pub(super) fn claim(&self, info: &mut FrameworkInfo) -> Result<(), Problem> {
        match &info.principal {
            Some(said) if **said != *self.name => Err(Problem::bad(format!(
                "framework_info.principal: is `{said}`, but it was `{}` that authenticated",
                self.name
            ))),
            _ => {
                info.principal = Some(Arc::clone(&self.name));
                Ok(())
            }
        }
    }

    /// What keeps it from using the roles of a framework.
    pub(super) fn refusal(&self, info: &FrameworkInfo) -> Option<String> {
        let allowed = self.roles.as_ref()?;
        let refused: Vec<&str> =
            info.roles.keys().filter(|role| !allowed.contains(*role)).map(String::as_str).collect();
        let roles = refused.join("`, `");
        (!refused.is_empty()).then(|| format!("the principal `{}` may not use `{roles}` as a role", self.name))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn credentials(text: &str) -> Result<Credentials, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        Credentials::load(&path)
    }

    #[test]
    fn what_is_wrong_with_credentials_names_the_field() {
        for (text, says) in [
            (r#"{"credentials": [{"principal": "a"}]}"#, "secret"),
            (r#"{"credentials": [{"principal": "a:b", "secret": "s"}]}"#, "credentials[0].principal: must not"),
            (r#"{"credentials": [{"principal": "a", "secret": ""}]}"#, "credentials[0].secret"),
            (r#"{"credentials": [{"principal": "a", "secret": "s", "qps": 0}]}"#, "credentials[0].qps"),
            (r#"{"credentials": [{"principal": "a", "secret": "s", "roles": [".."]}]}"#, "credentials[0].roles"),
            (r#"{"credentials": [{"principal": "a", "secret": "s", "role": "x"}]}"#, "role"),
            (
                r#"{"credentials": [{"principal": "a", "secret": "s"}, {"principal": "a", "secret": "t"}]}"#,
                "credentials[1].principal: is there twice",
            ),
            ("[]", "request"),
        ] {
            let error = credentials(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn who_has_the_secret_is_the_principal() {
        let known = credentials(r#"{"credentials": [{"principal": "a", "secret": "s:t"}]}"#).unwrap();
        let authenticate = |value: &str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
            known.authenticate(&headers).ok().map(|principal| principal.name.to_string())
        };
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        assert_eq!(authenticate(&basic("a:s:t")).as_deref(), Some("a"));
        assert_eq!(authenticate(&basic("a:s:t").replace("Basic", "basic")).as_deref(), Some("a"));
        for wrong in ["a:s", "a:", "a", "b:s:t", ":s:t", ""] {
            assert_eq!(authenticate(&basic(wrong)), None, "{wrong}");
        }
        assert_eq!(authenticate("Basic ???"), None);
        assert_eq!(authenticate("Bearer YTpzOnQ="), None);
        let credential = Credential { principal: "a".to_owned(), secret: "s:t".to_owned() };
        assert_eq!(authenticate(credential.header().to_str().unwrap()).as_deref(), Some("a"));
        assert!(!format!("{credential:?} {known:?}").contains("s:t"));
    }
}
