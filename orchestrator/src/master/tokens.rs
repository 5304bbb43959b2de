//! Join tokens: those are kept that are good yet.

use super::{Change, Master, Refused};
use crate::tls::{JoinToken, TokenId};

/// The most at a time.
const MOST: usize = 1000;

impl Master {
    /// The tokens that are good at a time, in seconds since 1970.
    pub fn join_tokens(&self, now: u64) -> Vec<(TokenId, JoinToken)> {
        let tokens = self.registry.tokens.iter().filter(|(_, token)| token.expires > now);
        tokens.map(|(id, token)| (id.clone(), token.clone())).collect()
    }

    /// There is another one.
    pub fn add_join_token(&mut self, id: TokenId, token: JoinToken, now: u64) -> Result<(), Refused> {
        let expired = self.registry.tokens.iter().filter(|(_, token)| token.expires <= now);
        for id in expired.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.store(Change::TokenGone(id));
        }
        if self.registry.tokens.len() >= MOST {
            return Err(Refused::TooManyTokens(MOST));
        }
        self.store(Change::Token(id, token));
        Ok(())
    }

    /// A machine that has one joins. What is wrong with one it does not hear.
    pub fn use_join_token(&mut self, id: &TokenId, secret: &str, now: u64) -> Result<(), Refused> {
        let token = self.registry.tokens.get(id).filter(|token| token.has_secret(secret) && token.expires > now);
        let token = token.cloned().ok_or(Refused::Token)?;
        self.store(match token.after_use() {
            None => Change::TokenGone(id.clone()),
            Some(token) => Change::Token(id.clone(), token),
        });
        Ok(())
    }

    /// One is not good any more.
    pub fn revoke_join_token(&mut self, id: &TokenId) -> Result<(), Refused> {
        if !self.registry.tokens.contains_key(id) {
            return Err(Refused::UnknownToken(id.clone()));
        }
        self.store(Change::TokenGone(id.clone()));
        Ok(())
    }
}
