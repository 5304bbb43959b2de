//! Authorization: `Basic` (RFC 7617), and the token scheme of the distribution project's "Token Authentication
//! Specification", with docker's `OAuth2` extension for identity tokens.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::Credentials;
use crate::error::{Error, Result};

/// Longest answer of a token server, bytes.
pub const MAX_TOKEN: u64 = 1 << 20;

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Challenge {
    /// The strongest scheme offered that is known here.
    pub fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parameters(rest);
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// `key="value", key=value`, RFC 9110, 11.2.
fn parameters(mut text: &str) -> HashMap<String, String> {
    let mut parameters = HashMap::new();
    while let Some((key, rest)) = text.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let mut value = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((index, character)) = characters.next() {
                match character {
                    '"' => {
                        end = index + 1;
                        break;
                    }
                    '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                    _ => value.push(character),
                }
            }
            text = &quoted[end..];
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            value.push_str(rest[..end].trim());
            text = &rest[end..];
        }
        parameters.insert(key, value);
    }
    parameters
}

/// The value of `Authorization` for name and password.
pub fn basic(credentials: &Credentials) -> String {
    let Credentials { username, secret, .. } = credentials;
    format!("Basic {}", STANDARD.encode(format!("{username}:{secret}")))
}

/// The value of `Authorization` from a token server's answer.
pub fn bearer(registry: &str, answer: &[u8]) -> Result<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let what = || format!("the answer of the token server of {registry}");
    let answer: Answer = serde_json::from_slice(answer).map_err(|error| Error::invalid(what(), error))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| Error::invalid(what(), "it has no token"))?;
    Ok(format!("Bearer {token}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        assert_eq!(Challenge::parse("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(
            Challenge::parse(r#"Bearer realm="https://a/t",service="r \"q\"",scope="repository:a/b:pull,push""#),
            Some(Challenge::Bearer {
                realm: "https://a/t".to_owned(),
                service: Some("r \"q\"".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
        let bare = Challenge::parse("bearer realm=https://a/t, service=r");
        assert!(matches!(bare, Some(Challenge::Bearer { service: Some(service), .. }) if service == "r"));
        assert_eq!(Challenge::parse("Bearer service=r"), None);
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(
            Challenge::parse("Bearer realm=\"open"),
            Some(Challenge::Bearer { realm: "open".to_owned(), service: None, scope: None })
        );
    }
}
