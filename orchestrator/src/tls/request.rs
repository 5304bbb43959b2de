//! Certificate requests (PKCS #10, RFC 2986), as an agent makes them and a master reads them.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result};

use super::Error;

/// The object identifiers of a key on the curve P-256 (RFC 5480).
const EC_PUBLIC_KEY: &[u64] = &[1, 2, 840, 10045, 2, 1];
const P256: &[u64] = &[1, 2, 840, 10045, 3, 1, 7];
/// And of a signature with it (RFC 5758).
const ECDSA_WITH_SHA256: &[u64] = &[1, 2, 840, 10045, 4, 3, 2];

/// A new key.
pub(crate) struct Key(KeyPair);

impl Key {
    pub(crate) fn generate() -> Result<Key, Error> {
        Ok(Key(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// A request for a certificate for it.
    pub(crate) fn request(&self) -> Result<Vec<u8>, Error> {
        Ok(CertificateParams::default().serialize_request(&self.0)?.der().to_vec())
    }

    pub(super) fn der(&self) -> &[u8] {
        self.0.serialized_der()
    }
}

/// A public key on P-256.
#[derive(Debug)]
pub(super) struct PublicKey(Vec<u8>);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// The key of a request that was signed with it.
pub(super) fn read(request: &[u8]) -> Result<PublicKey, Error> {
    let wrong = || Error::Certificate("the request is none for a key on P-256, in DER (RFC 2986)".to_owned());
    let (signed, key, signature) = parse(request).map_err(|_| wrong())?;
    let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key).verify(&signed, &signature);
    verified.map_err(|_| Error::Certificate("the request is not signed with its own key".to_owned()))?;
    Ok(PublicKey(key))
}

/// What of a request is signed, the key it is for, and the signature.
fn parse(request: &[u8]) -> ASN1Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let (signed, signature) = yasna::parse_der(request, |reader| {
        reader.read_sequence(|parts| {
            let signed = parts.next().read_der()?;
            let algorithm = parts.next().read_sequence(|algorithm| algorithm.next().read_oid())?;
            let signature = bits(parts.next().read_bitvec_bytes()?)?;
            if **algorithm.components() == *ECDSA_WITH_SHA256 { Ok((signed, signature)) } else { Err(invalid()) }
        })
    })?;
    let key = yasna::parse_der(&signed, |reader| {
        reader.read_sequence(|parts| {
            parts.next().read_u8()?;
            let _subject = parts.next().read_der()?;
            let key = parts.next().read_sequence(|info| {
                let is_p256 = info.next().read_sequence(|algorithm| {
                    let kind = algorithm.next().read_oid()?;
                    Ok(**kind.components() == *EC_PUBLIC_KEY && **algorithm.next().read_oid()?.components() == *P256)
                })?;
                if is_p256 { bits(info.next().read_bitvec_bytes()?) } else { Err(invalid()) }
            })?;
            let _attributes = parts.next().read_der()?;
            Ok(key)
        })
    })?;
    Ok((signed, key, signature))
}

/// A string of bits that is one of bytes.
fn bits((bytes, count): (Vec<u8>, usize)) -> ASN1Result<Vec<u8>> {
    if count == bytes.len() * 8 { Ok(bytes) } else { Err(invalid()) }
}

fn invalid() -> ASN1Error {
    ASN1Error::new(ASN1ErrorKind::Invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_has_the_key_it_is_signed_with() {
        let key = Key::generate().unwrap();
        let request = key.request().unwrap();
        assert_eq!(read(&request).unwrap().0, key.0.der_bytes());
        // The last byte belongs to the signature.
        let mut forged = request.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(read(&forged).unwrap_err().to_string().contains("not signed with its own key"));
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let other = CertificateParams::default().serialize_request(&other).unwrap();
        assert!(read(other.der()).unwrap_err().to_string().contains("P-256"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much(bytes: Vec<u8>, at: prop::sample::Index, bit in 0..8_u32, cut: prop::sample::Index) {
            let request = Key::generate().unwrap().request().unwrap();
            prop_assert!(read(&bytes).is_err());
            let mut damaged = request.clone();
            damaged[at.index(request.len())] ^= 1 << bit;
            prop_assert!(read(&damaged).is_err());
            prop_assert!(read(&request[..cut.index(request.len())]).is_err());
        }
    }
}
