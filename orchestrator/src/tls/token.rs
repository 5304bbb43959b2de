//! Join tokens: what lets a machine ask for an agent's certificate.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::{Error, Fingerprint, random, sha256};

/// The bytes of a token's secret: 192 bits.
const SECRET: usize = 24;
/// The bytes of a token's id.
const ID: usize = 8;

/// What a token is called where it must not be known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenId(String);

impl TokenId {
    /// The name, as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<TokenId, Self::Err> {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 2 * ID && text.bytes().all(digit) {
            Ok(TokenId(text.to_owned()))
        } else {
            Err("is no token's id: those are 16 hexadecimal digits, and are what a token begins with")
        }
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A token as it is handed over, `ID.SECRET.AUTHORITY`: the last is the fingerprint of the authority's certificate, by which the
/// new agent knows that it talks to the right master.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    secret: [u8; SECRET],
    pub(super) authority: Fingerprint,
}

impl Token {
    /// A new one, of an authority.
    pub(super) fn new(authority: &CertificateDer<'_>) -> Result<Token, Error> {
        let id = TokenId(format!("{:016x}", u64::from_be_bytes(random::<ID>()?)));
        Ok(Token { id, secret: random()?, authority: Fingerprint::of(authority) })
    }

    /// The secret, as it is sent to the master.
    pub(crate) fn secret(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.secret)
    }

    /// What a master keeps of it.
    pub(crate) fn to_keep(&self, expires: u64, uses: u32) -> JoinToken {
        JoinToken { hash: Fingerprint(sha256(self.secret().as_bytes())), expires, uses }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret(), BASE64_URL_SAFE_NO_PAD.encode(self.authority.0))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl FromStr for Token {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Token, Self::Err> {
        let wrong = "is no join token; `berth cluster token` makes one";
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(authority), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong);
        };
        let bytes = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| wrong);
        Ok(Token {
            id: id.parse().map_err(|_| wrong)?,
            secret: bytes(secret)?.try_into().map_err(|_| wrong)?,
            authority: Fingerprint(bytes(authority)?.try_into().map_err(|_| wrong)?),
        })
    }
}

/// What a master keeps of a token: nothing it could be made of again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The SHA-256 of its secret. That is random, so there is nothing to guess that a slower function would protect.
    hash: Fingerprint,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
    /// How many agents it lets in yet.
    pub uses: u32,
}

impl JoinToken {
    /// What is left of it after an agent has used it.
    pub(crate) fn after_use(self) -> Option<JoinToken> {
        if self.uses > 1 { Some(JoinToken { uses: self.uses - 1, ..self }) } else { None }
    }

    /// Whether this is its secret; found out in the same time whatever is wrong with it.
    pub(crate) fn has_secret(&self, secret: &str) -> bool {
        self.hash.0.ct_eq(&sha256(secret.as_bytes())).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_are_written_and_kept_without_their_secret() {
        let authority = CertificateDer::from(vec![1, 2, 3]);
        let token = Token::new(&authority).unwrap();
        assert_eq!(token.to_string().parse(), Ok(token.clone()));
        assert_ne!(Token::new(&authority).unwrap(), token);
        let kept = token.to_keep(7, 1);
        assert!(kept.has_secret(&token.secret()));
        assert!(!kept.has_secret("") && !kept.has_secret(&token.secret()[1..]));
        let written = serde_json::to_string(&kept).unwrap() + &format!("{token:?}");
        assert!(!written.contains(&token.secret()), "{written}");
        let text = token.to_string();
        for wrong in ["", "a.b.c", &text[1..], &text[..text.len() - 4], &format!("{text}.x"), &text.replace('.', "")] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }
}
