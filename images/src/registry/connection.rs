//! How a registry is reached: certificates, time limits, plain HTTP.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client};

use super::Credentials;
use crate::error::{Error, Result};
use crate::reference::DEFAULT_REGISTRY;

/// Where the registry called `docker.io` really is.
const DOCKER_HOST: &str = "registry-1.docker.io";
/// Folders with certificate authorities for one registry, as docker and podman have them.
const CERTIFICATE_FOLDERS: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];

/// How a registry is reached.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Credentials to use instead of the stored ones.
    pub credentials: Option<Credentials>,
    /// A file with certificate authorities (PEM) to trust besides the system's.
    pub tls_ca: Option<PathBuf>,
    /// Accept any certificate, and plain HTTP.
    pub insecure: bool,
    /// How long a registry may be silent.
    pub timeout: Duration,
    /// Tries of one request or of one stretch of a blob without progress.
    pub attempts: u32,
    /// Wait before the second try; doubled for every further one.
    pub delay: Duration,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            credentials: None,
            tls_ca: None,
            insecure: false,
            timeout: Duration::from_secs(20),
            attempts: 4,
            delay: Duration::from_millis(500),
        }
    }
}

impl Connection {
    /// The addresses to try, best first.
    pub(super) fn addresses(&self, registry: &str) -> Vec<String> {
        let host = if registry == DEFAULT_REGISTRY { DOCKER_HOST } else { registry };
        let mut addresses = vec![format!("https://{host}")];
        if self.insecure || is_loopback(host) {
            addresses.push(format!("http://{host}"));
        }
        addresses
    }

    /// An HTTP client for the registry.
    pub(super) fn client(&self, registry: &str, address: &str) -> Result<Client> {
        // The process's default provider; a second installation is refused and that is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.timeout)
            .read_timeout(self.timeout);
        let builder = if address.starts_with("http:") {
            // No TLS: the system's certificates need not even exist.
            builder.tls_certs_only([])
        } else if self.insecure {
            builder.tls_danger_accept_invalid_certs(true)
        } else {
            builder.tls_certs_merge(self.certificates(registry)?)
        };
        builder.build().map_err(|error| Error::connection(registry, &error))
    }

    fn certificates(&self, registry: &str) -> Result<Vec<Certificate>> {
        let mut certificates = Vec::new();
        if let Some(path) = &self.tls_ca {
            certificates.extend(read_certificates(path)?);
        }
        for folder in CERTIFICATE_FOLDERS {
            let Ok(entries) = std::fs::read_dir(Path::new(folder).join(registry)) else {
                continue;
            };
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                if path.extension().is_some_and(|extension| extension == "crt") {
                    certificates.extend(read_certificates(&path)?);
                }
            }
        }
        Ok(certificates)
    }
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate>> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let what = || format!("the certificate file {}", path.display());
    let certificates = Certificate::from_pem_bundle(&text).map_err(|error| Error::invalid(what(), error))?;
    if certificates.is_empty() {
        Err(Error::invalid(what(), "it has no certificate in PEM form"))
    } else {
        Ok(certificates)
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_only_for_loopback_or_when_asked() {
        let strict = Connection::default();
        let insecure = Connection { insecure: true, ..Connection::default() };
        assert_eq!(strict.addresses("docker.io"), ["https://registry-1.docker.io"]);
        assert_eq!(strict.addresses("example.com:80"), ["https://example.com:80"]);
        assert_eq!(strict.addresses("localhost.example.com"), ["https://localhost.example.com"]);
        for host in ["localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert_eq!(strict.addresses(host), [format!("https://{host}"), format!("http://{host}")]);
        }
        assert_eq!(insecure.addresses("example.com").len(), 2);
    }
}
