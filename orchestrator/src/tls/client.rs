//! The other end: of agents, frameworks and people.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Error, Fingerprint, Role, Token, VERSIONS, authority, files, provider};
use crate::masters::SILENCE;

/// A connection, with or without TLS.
pub type Stream = Box<dyn Transport>;

/// What a connection can do.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// What a client is known by, and knows its master by.
#[derive(Clone)]
pub struct Client(TlsConnector);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Reads what [`init`](super::init), or joining, has made for a role.
    pub fn load(directory: &Path, role: Role) -> Result<Client, Error> {
        let (name, key_name) = files::names(role);
        let path = directory.join(name);
        let unusable = |error: rustls::Error| Error::Unusable { path: path.clone(), reason: error.to_string() };
        let mut roots = RootCertStore::empty();
        roots.add(authority::certificate(directory)?).map_err(unusable)?;
        let chain = files::certificates(&path)?;
        if Role::of(&chain[0]) != Some(role) {
            let reason = format!("it is no certificate for {}", role.name());
            return Err(Error::Unusable { path, reason });
        }
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&VERSIONS)
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, files::key(&directory.join(key_name))?.into());
        Ok(Client(TlsConnector::from(Arc::new(config.map_err(unusable)?))))
    }
}

/// Connects with a master. One that has no certificate for it is none.
pub async fn connect(master: SocketAddr, client: Option<&Client>) -> io::Result<Stream> {
    let stream = TcpStream::connect(master).await?;
    // Calls are small and wanted at once; a master that vanished is noticed.
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, SILENCE.as_millis() as u32)?;
    let Some(Client(connector)) = client else { return Ok(Box::new(stream)) };
    let stream = connector.connect(Role::Master.server_name(), stream).await.map_err(no_tls)?;
    Ok(Box::new(stream))
}

/// What went wrong while TLS was to begin.
fn no_tls(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidMessage(_)) => io::Error::new(
            error.kind(),
            format!("what answers does not speak TLS ({error}); was it started with --tls?"),
        ),
        _ => error,
    }
}

/// What went wrong with a request, after [`connect`]. A master tells what it has against a certificate only then.
pub(crate) fn explained(error: &hyper::Error, client: Option<&Client>) -> io::Error {
    let said = chain(error);
    match client {
        None if error.is_incomplete_message() || error.is_parse() => {
            io::Error::other(format!("{said}; if the master was started with --tls, this takes --tls as well"))
        }
        _ => io::Error::other(said),
    }
}

/// An error and what caused it, which some libraries keep to themselves.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// Knows a master by the fingerprint of its authority, which a token carries.
#[derive(Debug)]
pub(crate) struct Pinned {
    authority: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
    /// The authority's certificate, once the master has shown it.
    found: Mutex<Option<CertificateDer<'static>>>,
}

impl Pinned {
    /// Connects with a master, and returns the certificate of its authority.
    pub(crate) async fn connect(master: SocketAddr, token: &Token) -> io::Result<(Stream, CertificateDer<'static>)> {
        let provider = provider();
        let pinned = Arc::new(Pinned {
            authority: token.authority,
            algorithms: provider.signature_verification_algorithms,
            found: Mutex::default(),
        });
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&VERSIONS)
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Pinned>::clone(&pinned))
            .with_no_client_auth();
        let client = Client(TlsConnector::from(Arc::new(config)));
        let stream = connect(master, Some(&client)).await?;
        let found = pinned.found.lock().ok().and_then(|mut found| found.take());
        Ok((stream, found.ok_or_else(|| io::Error::other("the master has shown no certificate"))?))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_it = |certificate: &&CertificateDer<'_>| Fingerprint::of(certificate) == self.authority;
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let authority = intermediates.iter().find(is_it).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider()).build();
        let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        *self.found.lock().map_err(|_| unknown())? = Some(authority.clone().into_owned());
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
