//! A master's end of TLS.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Authority, Error, Fingerprint, Role, Token, VERSIONS, authority, files, provider};

/// What a master is known by, and knows others by.
#[derive(Clone)]
pub struct Server {
    acceptor: TlsAcceptor,
    certificate: CertificateDer<'static>,
    authority: Option<Arc<Authority>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("signs", &self.authority.is_some()).finish_non_exhaustive()
    }
}

impl Server {
    /// Reads what [`init`](super::init) has made. Without the authority's key no agent can join, and nothing else is missing.
    pub fn load(directory: &Path) -> Result<Server, Error> {
        let certificate = authority::certificate(directory)?;
        let (name, key) = files::names(Role::Master);
        let unusable = |path: &Path, reason: &dyn fmt::Display| {
            let (path, reason) = (path.to_owned(), reason.to_string());
            Error::Unusable { path, reason }
        };
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).map_err(|error| unusable(&directory.join("ca.pem"), &error))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider())
            // Frameworks have a secret instead, and new agents a token. Who may do what is decided request by request.
            .allow_unauthenticated()
            .build()
            .map_err(|error| unusable(&directory.join("ca.pem"), &error))?;
        let chain = files::certificates(&directory.join(&name))?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&VERSIONS)
            .map_err(|error| Error::Certificate(error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, files::key(&directory.join(key))?.into());
        let mut config = config.map_err(|error| unusable(&directory.join(&name), &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let authority = Authority::load(directory)?.map(Arc::new);
        Ok(Server { acceptor: TlsAcceptor::from(Arc::new(config)), certificate, authority })
    }

    /// What signs certificates, if its key is here.
    pub fn authority(&self) -> Option<&Arc<Authority>> {
        self.authority.as_ref()
    }

    /// A new join token.
    pub fn token(&self) -> Result<Token, Error> {
        Token::new(&self.certificate)
    }

    /// Shakes hands with a client: what it has a certificate for, if it has one, and which.
    pub async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<(Option<Role>, Fingerprint)>)> {
        let stream = self.acceptor.accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let known = certificate.map(|certificate| (Role::of(certificate), Fingerprint::of(certificate)));
        Ok((stream, known))
    }
}
