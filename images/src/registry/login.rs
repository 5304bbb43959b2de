//! `berth login` and `berth logout`.

use super::client::Registry;
use super::{Connection, Credentials, Quiet, credentials, run};
use crate::error::{Error, Result};

/// Checks the credentials with the registry and keeps them. Returns where they are kept.
pub fn login(registry: &str, given: &Credentials, connection: &Connection) -> Result<String> {
    let connection = Connection { credentials: Some(given.clone()), ..connection.clone() };
    run(async {
        let registry = Registry::connect(registry, &connection, &Quiet).await?;
        let url = registry.url("")?;
        let response = registry.send("", |http| Ok(http.get(url.clone()))).await?;
        if response.status().is_success() { Ok(()) } else { Err(registry.failure("log in", response).await) }
    })
    .map_err(|error| match error {
        Error::Unauthorized { registry, .. } => Error::LoginRefused { registry },
        other => other,
    })?;
    credentials::store(registry, given)
}

/// Forgets the credentials; `false` if there were none.
pub fn logout(registry: &str) -> Result<bool> {
    credentials::erase(registry)
}
