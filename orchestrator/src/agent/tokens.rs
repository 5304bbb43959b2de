//! By what executors show their agent which they are: the name of the sandbox, signed by the agent.

use ring::hmac::{HMAC_SHA256, Key, sign, verify};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// Makes tokens, and knows its own.
#[derive(Debug, Clone)]
pub struct Tokens(Key);

impl Tokens {
    /// Those that are made with this secret.
    pub fn new(secret: &[u8]) -> Tokens {
        Tokens(Key::new(HMAC_SHA256, secret))
    }

    /// The token of whoever is in the sandbox of this name.
    pub fn of(&self, sandbox: &str) -> String {
        let signature = sign(&self.0, sandbox.as_bytes());
        format!("{sandbox}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    /// Whose token it is, if it is one.
    pub fn read<'a>(&self, token: &'a str) -> Option<&'a str> {
        let (sandbox, signature) = token.rsplit_once('.')?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        verify(&self.0, sandbox.as_bytes(), &signature).ok()?;
        Some(sandbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_sandbox_and_agent() {
        let tokens = Tokens::new(b"secret");
        let token = tokens.of("task-1-a");
        assert_eq!(tokens.read(&token), Some("task-1-a"));
        assert_eq!(Tokens::new(b"other").read(&token), None);
        for wrong in ["", ".", "task-1-a", "task-1-a.", &token.replace("-a.", "-b."), &token[..token.len() - 1]] {
            assert_eq!(tokens.read(wrong), None, "{wrong}");
        }
    }
}
