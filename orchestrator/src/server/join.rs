//! `/berth/join`: a machine with a join token gets an agent's certificate. `berth cluster join` asks, with JSON:
//! `{"token": ID, "secret": …, "name": …, "request": a certificate request, DER in base64}`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::body::Incoming;
use hyper::{HeaderMap, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Shared;
use super::answer::{self, Body, Problem};
use super::core::Core;
use super::limits;
use crate::api::operator::TokenCall;
use crate::api::{Invalid, decode};
use crate::tls::{JoinToken, Server, TokenId};

/// Where machines ask.
pub const PATH: &str = "/berth/join";

/// What they say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// The token's id.
    pub token: TokenId,
    /// Its secret.
    pub secret: String,
    /// What the machine is called.
    pub name: String,
    /// For which key it wants a certificate.
    pub request: String,
}

/// What they are given.
#[derive(Debug, Serialize, Deserialize)]
pub struct Joined {
    /// The certificate, in PEM.
    pub certificate: String,
}

/// Answers such a machine.
pub async fn answer(shared: &Shared, headers: &HeaderMap, body: Incoming) -> Result<Response<Body>, Problem> {
    shared.admit()?;
    let authority = tls(shared)?.authority().cloned().ok_or_else(|| {
        let message = "this master has no ca-key.pem in its --tls directory, so it gives no certificates";
        Problem::new(StatusCode::FORBIDDEN, message)
    })?;
    let join: Join = decode(answer::read_json(headers, body, limits::JOIN).await?)?;
    if join.name.is_empty() || join.name.chars().any(char::is_control) {
        return Err(Invalid::new("name", "has to have printable characters").into());
    }
    let request = BASE64_STANDARD.decode(&join.request).map_err(|error| Invalid::new("request", error))?;
    // It is signed before the token is spent: what cannot be signed costs nothing. Nobody sees it until the token was good.
    let certificate = authority.sign_agent(&request, &join.name).map_err(|error| Invalid::new("request", error))?;
    let (token, secret) = (join.token.clone(), join.secret);
    shared.core.ask(move |core| core.master.use_join_token(&token, &secret, Core::seconds())).await??;
    tracing::info!(name = join.name, token = %join.token, "an agent has got a certificate");
    Ok(answer::json(&json!(Joined { certificate })))
}

/// What an operator wants of tokens.
pub async fn operate(shared: &Shared, call: TokenCall) -> Result<Value, Problem> {
    match call {
        TokenCall::Create { seconds, uses } => {
            let tls = tls(shared)?;
            let token =
                tls.token().map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
            let expires = Core::seconds() + u64::from(seconds);
            let (id, kept) = (token.id.clone(), token.to_keep(expires, uses));
            shared.core.ask(move |core| core.master.add_join_token(id, kept, Core::seconds())).await??;
            let token = json!({ "token": token.to_string(), "expires": expires });
            Ok(json!({ "type": "CREATE_JOIN_TOKEN", "create_join_token": token }))
        }
        TokenCall::List => {
            let all = shared.core.ask(|core| core.master.join_tokens(Core::seconds())).await?;
            let token = |(id, JoinToken { expires, uses, .. }): &(TokenId, JoinToken)| json!({ "id": id, "expires": expires, "uses": uses });
            let tokens: Vec<Value> = all.iter().map(token).collect();
            Ok(json!({ "type": "GET_JOIN_TOKENS", "get_join_tokens": { "tokens": tokens } }))
        }
        TokenCall::Revoke(id) => {
            shared.core.ask(move |core| core.master.revoke_join_token(&id)).await??;
            Ok(Value::Null)
        }
    }
}

fn tls(shared: &Shared) -> Result<&Server, Problem> {
    let message = "this master speaks no TLS, and so its agents need no certificates; start it with --tls";
    shared.tls.as_ref().ok_or_else(|| Problem::new(StatusCode::FORBIDDEN, message))
}
