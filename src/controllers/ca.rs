//! The installation's certificate authority and the leaf that this process serves with: making and reading, no I/O.
//!
//! A renewed authority signs at once, but the bundle names its predecessor for as long as that is valid: old leaves stay good.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long an authority lives. It is renewed when a third of that is left.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long a leaf lives, where nothing else is set.
pub const LEAF_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// Clocks may differ by this much.
const BACKDATED: Duration = Duration::from_secs(300);

/// A certificate that can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Making it.
    #[error("a certificate can't be made: {0}")]
    Make(#[from] rcgen::Error),
    /// Reading it.
    #[error("{what} can't be read: {why}")]
    Read { what: &'static str, why: String },
}

fn unreadable(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> CertificateError {
    move |why| CertificateError::Read { what, why: why.to_string() }
}

/// What this process serves with.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Certificate, PEM.
    pub certificate: String,
    /// Key, PEM (PKCS #8).
    pub key: String,
    /// When it should be replaced.
    pub replace_at: Timestamp,
}

/// The authority.
#[derive(Clone, Debug, PartialEq)]
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    /// Its key, PEM (PKCS #8).
    pub key: String,
    /// Every certificate to trust, PEM: its own first, then predecessors that are still valid.
    pub bundle: String,
}

impl Authority {
    /// A new one. `predecessors`: the bundle to go on naming, as far as it is still valid.
    pub fn new(now: Timestamp, life: Duration, predecessors: &str) -> Result<Self, CertificateError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("remit-ca {}", now.as_second()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, now, life);
        let certificate = params.self_signed(&key)?.pem();
        let mut bundle = certificate.clone();
        for old in CertificateDer::pem_slice_iter(predecessors.as_bytes()).flatten() {
            if validity_of(&old)?.1 > now {
                bundle.push_str(&pem(&old));
            }
        }
        Ok(Self { certificate, key: key.serialize_pem(), bundle })
    }

    /// From when it should be renewed.
    pub fn renew_at(&self) -> Result<Timestamp, CertificateError> {
        let der = CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_err(|e| unreadable("the CA's certificate")(&e))?;
        let (from, to) = validity_of(&der)?;
        Ok(two_thirds(from, to))
    }

    /// Whether whoever trusts this bundle still trusts what the authority of `other` signed.
    pub fn vouches_for(&self, other: &str) -> bool {
        let Some(Ok(first)) = CertificateDer::pem_slice_iter(other.as_bytes()).next() else { return false };
        CertificateDer::pem_slice_iter(self.bundle.as_bytes()).flatten().any(|der| der == first)
    }

    /// A leaf for these names (DNS names and IP addresses).
    pub fn leaf(&self, names: &[String], now: Timestamp, life: Duration) -> Result<Leaf, CertificateError> {
        let issuer_key = KeyPair::from_pem(&self.key)?;
        let issuer = Issuer::from_ca_cert_pem(&self.certificate, issuer_key)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.distinguished_name.push(DnType::CommonName, "remit");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now, life);
        let certificate = params.signed_by(&key, &issuer)?.pem();
        let end = now.checked_add(life).unwrap_or(Timestamp::MAX);
        Ok(Leaf { certificate, key: key.serialize_pem(), replace_at: two_thirds(now, end) })
    }
}

fn validity(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let epoch = date_time_ymd(1970, 1, 1);
    let since = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    params.not_before = epoch + since.saturating_sub(BACKDATED);
    params.not_after = epoch + since + life;
}

fn validity_of(der: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), CertificateError> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|e| unreadable("a certificate")(&e))?;
    let at = |t: i64| Timestamp::from_second(t).map_err(|e| unreadable("a certificate's validity")(&e));
    Ok((at(parsed.validity().not_before.timestamp())?, at(parsed.validity().not_after.timestamp())?))
}

fn two_thirds(from: Timestamp, to: Timestamp) -> Timestamp {
    let life = to.as_second() - from.as_second();
    Timestamp::from_second(from.as_second() + life / 3 * 2).unwrap_or(to)
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    let text = BASE64_STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn bundle_of(a: &Authority) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(a.bundle.as_bytes()).map(Result::unwrap).collect()
    }

    #[test]
    fn a_renewed_authority_names_its_predecessor_until_that_expires() {
        let day = Duration::from_secs(86_400);
        let first = Authority::new(at(1_000_000_000), 30 * day, "").unwrap();
        assert_eq!(bundle_of(&first).len(), 1);
        let renew = first.renew_at().unwrap();
        assert!(renew > at(1_000_000_000 + 19 * 86_400) && renew < at(1_000_000_000 + 21 * 86_400));
        let second = Authority::new(renew, 30 * day, &first.bundle).unwrap();
        assert_eq!(bundle_of(&second).len(), 2);
        assert!(second.vouches_for(&first.bundle) && !first.vouches_for(&second.bundle));
        let third = Authority::new(at(1_000_000_000 + 31 * 86_400), 30 * day, &second.bundle).unwrap();
        assert_eq!(bundle_of(&third).len(), 2, "the first has expired");
    }

    #[test]
    fn a_leaf_verifies_under_the_bundle_for_its_names_only() {
        use rustls::client::WebPkiServerVerifier;
        use rustls::client::danger::ServerCertVerifier;
        let now = Timestamp::now();
        let authority = Authority::new(now, AUTHORITY_LIFE, "").unwrap();
        let leaf = authority.leaf(&["remit.x.svc".into(), "127.0.0.1".into()], now, LEAF_LIFE).unwrap();
        assert!(leaf.replace_at > now && leaf.replace_at < now.checked_add(LEAF_LIFE).unwrap());
        let mut roots = rustls::RootCertStore::empty();
        for certificate in bundle_of(&authority) {
            roots.add(certificate).unwrap();
        }
        let end = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(std::sync::Arc::new(roots), provider).build().unwrap();
        let time = rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(now.as_second() as u64));
        let verify = |name: &'static str| {
            let name = rustls::pki_types::ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(&end, &[], &name, &[], time)
        };
        verify("remit.x.svc").unwrap();
        verify("127.0.0.1").unwrap();
        verify("other.x.svc").unwrap_err();
    }
}
