//! Who is who in a cluster that spans machines: TLS with certificates of the cluster's own authority, at both ends.
//!
//! ```text
//! DIR of the master (`berth cluster init`)        DIR of an agent (`berth cluster join`)
//! ca.pem        the authority's certificate       ca.pem
//! ca-key.pem    what it signs with
//! master.pem    master-key.pem
//! operator.pem  operator-key.pem                  agent.pem  agent-key.pem
//! ```
//!
//! What a certificate is good for is a name in it (a DNS name among the subject's alternative names), as in Nomad: it stands for
//! one [`Role`], wherever its owner runs. So no agent can pass for a master, and clients reach a master by whatever address
//! they like. Keys are ECDSA on P-256, all files PEM; TLS is 1.3, or 1.2 for clients that know no better.

mod authority;
mod client;
mod files;
mod request;
mod server;
mod token;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::SupportedProtocolVersion;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use serde::{Deserialize, Serialize};

pub use authority::{Authority, init, renew};
pub use client::{Client, Stream, connect};
pub(crate) use files::private;
pub use server::Server;
pub use token::{JoinToken, Token, TokenId};

pub(crate) use authority::agent_files;
pub(crate) use client::{Pinned, explained};
pub(crate) use files::{expect_vacant, install};
pub(crate) use request::Key;

/// What a certificate's owner may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What agents and everybody else connect to.
    Master,
    /// Speaks the agents' protocol, and nothing else.
    Agent,
    /// A person, or a program that acts for one: may do all that the user may who runs the master.
    Operator,
}

impl Role {
    const ALL: [Role; 3] = [Role::Master, Role::Agent, Role::Operator];

    /// The name in certificates that stands for the role. `internal` is kept for private use: nobody else gives such names.
    pub fn name(self) -> &'static str {
        match self {
            Role::Master => "master.berth.internal",
            Role::Agent => "agent.berth.internal",
            Role::Operator => "operator.berth.internal",
        }
    }

    /// What the files of its certificate and key begin with.
    fn stem(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Agent => "agent",
            Role::Operator => "operator",
        }
    }

    /// The role that a certificate stands for, whose signature was verified before.
    fn of(certificate: &CertificateDer<'_>) -> Option<Role> {
        let certificate = ParsedCertificate::try_from(certificate).ok()?;
        let is = |role: &Role| rustls::client::verify_server_name(&certificate, &role.server_name()).is_ok();
        Role::ALL.into_iter().find(is)
    }

    fn server_name(self) -> ServerName<'static> {
        ServerName::try_from(self.name()).expect("roles have names of DNS")
    }
}

/// The SHA-256 of a certificate: what `openssl x509 -fingerprint -sha256` shows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
        Fingerprint(sha256(certificate))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why something about certificates cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {attempt} {path}: {cause}", path = .path.display())]
    File {
        /// What was tried.
        attempt: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// There is something already.
    #[error("{path} is there already; nothing in it is overwritten: choose another directory", path = .0.display())]
    Exists(PathBuf),
    /// A secret is none.
    #[error("{path} can be read by others, and holds a secret: `chmod 600 {path}`", path = .0.display())]
    Open(PathBuf),
    /// A file does not hold what it should.
    #[error("{path} is not usable: {reason}", path = .path.display())]
    Unusable {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What `--host` names can be in no certificate.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    Host(String),
    /// The cryptography failed.
    #[error("cannot make a certificate: {0}")]
    Certificate(String),
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Error {
        Error::Certificate(error.to_string())
    }
}

/// The cryptography of all connections.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The best first.
const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    filled.map_err(|_| Error::Certificate("the kernel gives no random numbers".to_owned()))?;
    Ok(bytes)
}
