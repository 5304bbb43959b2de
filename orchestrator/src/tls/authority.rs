//! The cluster's certificate authority.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::files::{self, CERTIFICATE, KEY};
use super::request::{self, Key};
use super::{Error, Role, sha256};

/// Of the authority's certificate.
const CA: &str = "ca.pem";
/// Of its key.
const CA_KEY: &str = "ca-key.pem";
/// How long the authority's certificate is valid: ten years.
const AUTHORITY_VALID: Duration = Duration::from_hours(10 * 365 * 24);
/// How long those it signs are: a year.
const VALID: Duration = Duration::from_hours(365 * 24);
/// Clocks of other machines may be behind by so much.
const SKEW: Duration = Duration::from_hours(1);
/// The longest name of a certificate's owner: `ub-common-name` of RFC 5280.
const LONGEST_NAME: usize = 64;

/// What signs certificates.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// The authority of a directory; none if its key is not there.
    pub fn load(directory: &Path) -> Result<Option<Authority>, Error> {
        let path = directory.join(CA_KEY);
        if !path.exists() {
            return Ok(None);
        }
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&files::key(&path)?, &PKCS_ECDSA_P256_SHA256);
        let key = key.map_err(|error| Error::Unusable { path, reason: error.to_string() })?;
        Ok(Some(Authority(Issuer::new(authority_params(&key), key))))
    }

    /// Signs what was requested (RFC 2986): a certificate for an agent, in PEM. Of the request the key counts, and that whoever
    /// sends it has its private half; what else it asks for is not given.
    pub fn sign_agent(&self, request: &[u8], name: &str) -> Result<String, Error> {
        let key = request::read(request)?;
        let certificate = self.sign(Role::Agent, name, &[], &key)?;
        Ok(files::pem(CERTIFICATE, &certificate))
    }

    /// Certificates and keys for a master and an operator. `own`: the authority's certificate.
    fn issue(&self, own: &CertificateDer<'_>, hosts: &[String]) -> Result<Vec<(String, String)>, Error> {
        let mut names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        for host in hosts {
            if !names.contains(host) {
                names.push(host.clone());
            }
        }
        let mut files = Vec::new();
        for (role, hosts) in [(Role::Master, &names[..]), (Role::Operator, &[])] {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut text = files::pem(CERTIFICATE, &self.sign(role, role.stem(), hosts, &key)?);
            if role == Role::Master {
                // A master sends both: whoever knows the fingerprint of the authority's then knows the authority.
                text += &files::pem(CERTIFICATE, own);
            }
            let (name, key_name) = files::names(role);
            files.extend([(name, text), (key_name, files::pem(KEY, key.serialized_der()))]);
        }
        Ok(files)
    }

    fn sign(
        &self,
        role: Role,
        name: &str,
        hosts: &[String],
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, Error> {
        let mut params = params(name, VALID);
        params.use_authority_key_identifier_extension = true;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![match role {
            Role::Master => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Agent | Role::Operator => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.subject_alt_names = vec![dns(role.name())?];
        for host in hosts {
            params.subject_alt_names.push(match host.parse() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => dns(host)?,
            });
        }
        Ok(params.signed_by(key, &self.0)?.der().clone())
    }
}

/// Where the authority's certificate is.
pub(super) fn certificate(directory: &Path) -> Result<CertificateDer<'static>, Error> {
    Ok(files::certificates(&directory.join(CA))?.swap_remove(0))
}

/// What an agent keeps: the authority's certificate, its own, and its key.
pub(crate) fn agent_files(authority: &CertificateDer<'_>, certificate: &str, key: &Key) -> Vec<(String, String)> {
    let (name, key_name) = files::names(Role::Agent);
    vec![
        (CA.to_owned(), files::pem(CERTIFICATE, authority)),
        (name, certificate.to_owned()),
        (key_name, files::pem(KEY, key.der())),
    ]
}

/// Makes an authority, and certificates for a master and for an operator, in a directory that is not there or empty. The
/// master's is good for `hosts`, DNS names and IP addresses, besides this machine's own.
pub fn init(directory: &Path, hosts: &[String]) -> Result<(), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = authority_params(&key).self_signed(&key)?.der().clone();
    let mut files = vec![
        (CA_KEY.to_owned(), files::pem(KEY, key.serialized_der())),
        (CA.to_owned(), files::pem(CERTIFICATE, &certificate)),
    ];
    let authority = Authority(Issuer::new(authority_params(&key), key));
    files.extend(authority.issue(&certificate, hosts)?);
    files::install(directory, &files)
}

/// Puts new certificates of the same authority in the place of those that [`init`] made, with new keys.
pub fn renew(directory: &Path, hosts: &[String]) -> Result<(), Error> {
    let missing = || Error::Unusable {
        path: directory.to_owned(),
        reason: format!("there is no {CA_KEY} in it, and so nothing that certificates are signed with"),
    };
    let authority = Authority::load(directory)?.ok_or_else(missing)?;
    files::replace(directory, &authority.issue(&certificate(directory)?, hosts)?)
}

/// The same for the same key: what it signed is found to be its own by its name, which no other authority has.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let number = sha256(key.der_bytes()).iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
    let mut params = params(&format!("berth cluster authority {number:016x}"), AUTHORITY_VALID);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params(name: &str, valid: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.chars().take(LONGEST_NAME).collect::<String>());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (params.not_before, params.not_after) = (instant(now.saturating_sub(SKEW)), instant(now + valid));
    params
}

/// A time since 1970.
fn instant(since: Duration) -> OffsetDateTime {
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn dns(name: &str) -> Result<SanType, Error> {
    let wrong = || Error::Host(name.to_owned());
    if rustls::pki_types::DnsName::try_from(name).is_err() {
        return Err(wrong());
    }
    Ok(SanType::DnsName(name.to_owned().try_into().map_err(|_| wrong())?))
}
