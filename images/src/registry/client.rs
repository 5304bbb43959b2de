//! Requests to one registry: authorization, retries, bounded answers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::auth::{Challenge, MAX_TOKEN, basic, bearer};
use super::retry::{Retry, is_passing, retry_after};
use super::{Connection, Credentials, Progress, credentials};
use crate::error::{Error, Result};

/// A registry that answered.
pub struct Registry<'a> {
    pub name: String,
    pub connection: &'a Connection,
    pub progress: &'a dyn Progress,
    http: Client,
    base: Url,
    credentials: Option<Credentials>,
    /// `Authorization` by scope.
    tokens: Mutex<HashMap<String, HeaderValue>>,
}

impl<'a> Registry<'a> {
    /// Finds out how the registry is to be spoken to.
    pub async fn connect(name: &str, connection: &'a Connection, progress: &'a dyn Progress) -> Result<Self> {
        let credentials = match &connection.credentials {
            Some(credentials) => Some(credentials.clone()),
            None => credentials::load(name)?,
        };
        let mut first_error = None;
        for address in connection.addresses(name) {
            let http = connection.client(name, &address)?;
            let base = Url::parse(&format!("{address}/v2/")).map_err(|error| Error::invalid(name, error))?;
            let mut retry = Retry::new(connection);
            loop {
                match http.get(base.clone()).send().await {
                    // To HTTP on a TLS port, servers answer 400.
                    Ok(response) if response.status() == StatusCode::BAD_REQUEST && first_error.is_some() => {
                        break;
                    }
                    Ok(_) => {
                        let (name, tokens) = (name.to_owned(), Mutex::default());
                        return Ok(Self { name, connection, progress, http, base, credentials, tokens });
                    }
                    Err(error) => {
                        let another = connection.addresses(name).len() > 1;
                        let reason = Error::connection(name, &error);
                        let hopeless = another && !error.is_timeout();
                        if hopeless || !retry.again(&reason.to_string(), None, progress).await {
                            first_error.get_or_insert(reason);
                            break;
                        }
                    }
                }
            }
        }
        Err(first_error.unwrap_or_else(|| Error::invalid(name, "it has no address")))
    }

    /// `path` under `/v2/`.
    pub fn url(&self, path: &str) -> Result<Url> {
        self.base.join(path).map_err(|error| Error::invalid(format!("the path '{path}' on {}", self.name), error))
    }

    /// A `Location`, absolute or relative to `from`.
    pub fn location(&self, from: &Url, response: &Response) -> Result<Url> {
        let missing = || Error::invalid(format!("the answer of {}", self.name), "it has no usable Location");
        let location = response.headers().get(reqwest::header::LOCATION).ok_or_else(missing)?;
        from.join(location.to_str().map_err(|_| missing())?).map_err(|_| missing())
    }

    /// Sends what `build` makes, again where that may help, and returns the answer, whatever its status, except 401.
    pub async fn send(&self, scope: &str, build: impl Fn(&Client) -> Result<RequestBuilder>) -> Result<Response> {
        self.send_with(Retry::new(self.connection), scope, build).await
    }

    /// As [`Registry::send`], for requests that do no good a second time.
    pub async fn send_once(&self, scope: &str, build: impl Fn(&Client) -> Result<RequestBuilder>) -> Result<Response> {
        self.send_with(Retry::never(), scope, build).await
    }

    async fn send_with(
        &self,
        mut retry: Retry,
        scope: &str,
        build: impl Fn(&Client) -> Result<RequestBuilder>,
    ) -> Result<Response> {
        let mut authorized = false;
        loop {
            let request = build(&self.http)?.build().map_err(|error| Error::connection(&self.name, &error))?;
            // Credentials are for the registry alone, not for hosts that a Location names.
            let ours = request.url().origin() == self.base.origin();
            let request = self.authorize(request, scope, ours);
            let (reason, wait) = match self.http.execute(request).await {
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED && ours && !authorized => {
                    authorized = true;
                    self.authenticate(&response, scope).await?;
                    continue;
                }
                Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
                    return Err(self.unauthorized(StatusCode::UNAUTHORIZED));
                }
                Ok(response) if is_passing(response.status()) => {
                    let wait = retry_after(&response);
                    (self.failure("answer", response).await, wait)
                }
                Ok(response) => return Ok(response),
                Err(error) => (Error::connection(&self.name, &error), None),
            };
            if !retry.again(&reason.to_string(), wait, self.progress).await {
                return Err(reason);
            }
        }
    }

    fn authorize(&self, mut request: reqwest::Request, scope: &str, ours: bool) -> reqwest::Request {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let (true, Some(token)) = (ours, tokens.get(scope)) {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        request
    }

    /// Gets what the registry wants to see from now on for requests of this scope.
    async fn authenticate(&self, response: &Response, scope: &str) -> Result<()> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenges.iter().filter_map(|value| value.to_str().ok()).find_map(Challenge::parse);
        let value = match (challenge, &self.credentials) {
            (Some(Challenge::Basic), Some(credentials)) => basic(credentials),
            (Some(Challenge::Bearer { realm, service, scope: asked }), credentials) => {
                let scope = if scope.is_empty() { asked.unwrap_or_default() } else { scope.to_owned() };
                self.token(&realm, service.as_deref(), &scope, credentials.as_ref()).await?
            }
            _ => return Err(self.unauthorized(StatusCode::UNAUTHORIZED)),
        };
        let mut value = HeaderValue::try_from(value).map_err(|_| self.unauthorized(StatusCode::UNAUTHORIZED))?;
        value.set_sensitive(true);
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(scope.to_owned(), value);
        Ok(())
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credentials: Option<&Credentials>,
    ) -> Result<String> {
        let realm =
            Url::parse(realm).map_err(|error| Error::invalid(format!("the token server of {}", self.name), error))?;
        if credentials.is_some() && realm.scheme() != "https" && self.base.scheme() == "https" {
            let reason = format!("it would have the password sent to {realm} without encryption");
            return Err(Error::invalid(format!("the token server of {}", self.name), reason));
        }
        let scopes = scope.split(' ').filter(|scope| !scope.is_empty()).map(|scope| ("scope", scope));
        let parameters: Vec<_> = service.map(|service| ("service", service)).into_iter().chain(scopes).collect();
        let mut retry = Retry::new(self.connection);
        loop {
            let request = match credentials {
                Some(credentials) if credentials.is_identity_token => {
                    let grant = [
                        ("grant_type", "refresh_token"),
                        ("client_id", "berth"),
                        ("refresh_token", &credentials.secret),
                    ];
                    let body = encode(grant.into_iter().chain(parameters.iter().copied()));
                    let form = "application/x-www-form-urlencoded";
                    self.http.post(realm.clone()).header(reqwest::header::CONTENT_TYPE, form).body(body)
                }
                _ => {
                    let mut url = realm.clone();
                    url.query_pairs_mut().extend_pairs(&parameters);
                    let request = self.http.get(url);
                    match credentials {
                        Some(credentials) => request.header(AUTHORIZATION, basic(credentials)),
                        None => request,
                    }
                }
            };
            let (reason, wait) = match request.send().await {
                Ok(response) if response.status().is_success() => {
                    return bearer(&self.name, &self.body(response, MAX_TOKEN).await?);
                }
                Ok(response) if is_passing(response.status()) => {
                    let wait = retry_after(&response);
                    (self.failure("give a token", response).await, wait)
                }
                Ok(_) => return Err(self.unauthorized(StatusCode::UNAUTHORIZED)),
                Err(error) => (Error::connection(&self.name, &error), None),
            };
            if !retry.again(&reason.to_string(), wait, self.progress).await {
                return Err(reason);
            }
        }
    }

    /// An answer's body, refused when it is longer than `limit` bytes.
    pub async fn body(&self, mut response: Response, limit: u64) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| Error::connection(&self.name, &error))? {
            body.extend_from_slice(&piece);
            if body.len() as u64 > limit {
                return Err(Error::invalid(
                    format!("the answer of {}", self.name),
                    format!("it is longer than {limit} bytes"),
                ));
            }
        }
        Ok(body)
    }

    /// The error for an answer that is no success.
    pub async fn failure(&self, action: &'static str, response: Response) -> Error {
        /// Longest error document read, bytes.
        const MAX_ERROR: u64 = 64 << 10;
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return self.unauthorized(status);
        }
        let body = self.body(response, MAX_ERROR).await.unwrap_or_default();
        Error::Registry { registry: self.name.clone(), action, status: status.as_u16(), reason: reason(status, &body) }
    }

    fn unauthorized(&self, status: StatusCode) -> Error {
        Error::Unauthorized { registry: self.name.clone(), known: self.credentials.is_some(), status: status.as_u16() }
    }
}

fn encode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut url = Url::parse("data:,").expect("a constant");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

/// What the registry says in words: the distribution specification's error document, or else the status.
fn reason(status: StatusCode, body: &[u8]) -> String {
    let document: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let message = document.as_ref().and_then(|document| document.pointer("/errors/0/message")?.as_str());
    let words = message.unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason given"));
    words.chars().filter(|character| !character.is_control()).take(300).collect()
}
