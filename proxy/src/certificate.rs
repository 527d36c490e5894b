//! Certificates of clients: who signed them, and for which role they are.
//!
//! A handshake ends before the client has said which logical server it wants, and each server has authorities of its
//! own. So a handshake takes any certificate whose key the client shows to hold; what it is worth is decided here, when
//! the server and the role are known.

use crate::wire::reply::ErrorReply;
use quorate_model::ClientAuth;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Certificates that are no authorities for clients. Safe to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAuthorities {
    #[error("there is no certificate in it")]
    Empty,
    #[error("it is not PEM: {0}")]
    Malformed(String),
    #[error("certificate {number} cannot sign others: {reason}")]
    Unusable { number: usize, reason: String },
}

/// Why a client's certificate does not let it in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCertificate {
    #[error("it has shown none")]
    None,
    #[error("{0}")]
    NotTrusted(String),
    #[error("it has no common name, or several")]
    NoName,
    #[error("it is for \"{0}\"")]
    OtherRole(String),
}

/// Who signs the certificates of a server's clients.
#[derive(Debug)]
pub struct ClientAuthorities {
    verifier: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

impl ClientAuthorities {
    /// Reads PEM; everything in it must be a certificate that can sign.
    pub fn parse(pem: &str) -> Result<ClientAuthorities, BadAuthorities> {
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| BadAuthorities::Malformed(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        let mut names = Vec::with_capacity(certificates.len());
        for (i, certificate) in certificates.into_iter().enumerate() {
            let unusable = |reason: String| BadAuthorities::Unusable { number: i + 1, reason };
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|e| unusable(e.to_string()))?;
            if !parsed.is_ca() {
                return Err(unusable("it is not an authority's (basicConstraints CA:TRUE)".to_owned()));
            }
            let until = parsed.validity().not_after.to_datetime().date();
            names.push(format!("{} (until {until})", parsed.subject()));
            roots.add(certificate).map_err(|e| unusable(e.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|_| BadAuthorities::Empty)?;
        Ok(ClientAuthorities { verifier, names })
    }

    /// The authorities' names, and until when they are valid.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether one of them has signed for that role, as PostgreSQL's `verify-full`: the common name is the role.
    fn vouch_for(
        &self,
        role: &str,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), BadCertificate> {
        let (own, between) = chain.split_first().ok_or(BadCertificate::None)?;
        self.verifier
            .verify_client_cert(own, between, now)
            .map_err(|error| BadCertificate::NotTrusted(error.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(own).map_err(|_| BadCertificate::NoName)?;
        let mut names = parsed.subject().iter_common_name();
        match (names.next().and_then(|name| name.as_str().ok()), names.next()) {
            (Some(name), None) if name == role => Ok(()),
            (Some(name), None) => Err(BadCertificate::OtherRole(name.to_owned())),
            _ => Err(BadCertificate::NoName),
        }
    }
}

/// Whether a client that wants to be `role` has to know the password, by what its server asks of clients and by the
/// certificates that it has shown. An error: it may not come, whatever it knows.
pub fn needs_password(
    auth: ClientAuth,
    client_ca: &str,
    chain: &[CertificateDer<'_>],
    role: &str,
    now: UnixTime,
) -> Result<bool, BadCertificate> {
    let shown = || {
        let authorities = ClientAuthorities::parse(client_ca)
            .map_err(|error| BadCertificate::NotTrusted(format!("client_ca: {error}")))?;
        authorities.vouch_for(role, chain, now)
    };
    match auth {
        ClientAuth::Password => Ok(true),
        // A client may show one that it has for somebody else.
        ClientAuth::Either => Ok(chain.is_empty() || shown().is_err()),
        ClientAuth::Certificate => shown().map(|()| false),
        ClientAuth::Both => shown().map(|()| true),
    }
}

impl BadCertificate {
    /// What the client is told; in PostgreSQL's words.
    pub fn reply(&self, role: &str) -> ErrorReply {
        let hint = "Connect with TLS and with a certificate whose common name is the role (sslcert, sslkey), signed by who the server's client_ca names.";
        match self {
            BadCertificate::None => {
                ErrorReply::fatal("28000", "connection requires a valid client certificate").hint(hint)
            }
            why => {
                ErrorReply::fatal("28000", format!("certificate authentication failed for user \"{role}\""))
                    .detail(format!("The certificate is not accepted: {why}."))
                    .hint(hint)
            }
        }
    }
}

/// Takes any certificate in a handshake, and sees that the client holds its key.
#[derive(Debug)]
pub struct AnyCertificate(WebPkiSupportedAlgorithms);

impl AnyCertificate {
    pub fn new() -> Arc<AnyCertificate> {
        Arc::new(AnyCertificate(provider().signature_verification_algorithms))
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use std::time::Duration;

    struct Ca {
        issuer: Issuer<'static, KeyPair>,
        pem: String,
    }

    fn ca(name: &str) -> Ca {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { issuer: Issuer::new(params, key), pem }
    }

    impl Ca {
        fn signs(
            &self,
            names: &[&str],
            change: impl FnOnce(&mut CertificateParams),
        ) -> CertificateDer<'static> {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            for name in names {
                params.distinguished_name.push(DnType::CommonName, *name);
            }
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(&mut params);
            params.signed_by(&key, &self.issuer).unwrap().der().clone()
        }
    }

    fn now() -> UnixTime {
        UnixTime::now()
    }

    #[test]
    fn a_certificate_is_for_the_role_of_its_name_and_for_no_other() {
        let (ours, theirs) = (ca("ours"), ca("theirs"));
        let authorities = ClientAuthorities::parse(&ours.pem).unwrap();
        assert!(authorities.names()[0].starts_with("CN=ours (until "), "{:?}", authorities.names());
        let vouch = |chain: &[CertificateDer<'_>]| authorities.vouch_for("app", chain, now());
        assert_eq!(vouch(&[ours.signs(&["app"], |_| ())]), Ok(()));
        assert_eq!(vouch(&[]), Err(BadCertificate::None));
        assert_eq!(vouch(&[ours.signs(&["App"], |_| ())]), Err(BadCertificate::OtherRole("App".into())));
        assert_eq!(vouch(&[ours.signs(&[], |_| ())]), Err(BadCertificate::NoName));
        let of_others = theirs.signs(&["app"], |_| ());
        assert!(matches!(vouch(&[of_others]), Err(BadCertificate::NotTrusted(_))));
        let for_servers =
            ours.signs(&["app"], |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
        assert!(matches!(vouch(&[for_servers]), Err(BadCertificate::NotTrusted(_))));
        // rcgen's certificates begin in 1975 and end in 4096.
        let early = UnixTime::since_unix_epoch(Duration::from_secs(1));
        let chain = [ours.signs(&["app"], |_| ())];
        assert!(matches!(authorities.vouch_for("app", &chain, early), Err(BadCertificate::NotTrusted(_))));
    }

    #[test]
    fn what_a_server_asks_of_its_clients() {
        let ours = ca("ours");
        let (good, other) = ([ours.signs(&["app"], |_| ())], [ours.signs(&["else"], |_| ())]);
        let needs = |auth, chain: &[CertificateDer<'_>]| needs_password(auth, &ours.pem, chain, "app", now());
        for chain in [&good[..], &other[..], &[]] {
            assert_eq!(needs(ClientAuth::Password, chain), Ok(true));
            assert_eq!(needs(ClientAuth::Either, chain), Ok(chain != &good[..]));
        }
        assert_eq!(needs(ClientAuth::Certificate, &good), Ok(false));
        assert_eq!(needs(ClientAuth::Both, &good), Ok(true));
        for auth in [ClientAuth::Certificate, ClientAuth::Both] {
            assert_eq!(needs(auth, &[]), Err(BadCertificate::None));
            assert!(needs(auth, &other).is_err());
            assert!(needs_password(auth, "", &good, "app", now()).is_err(), "nobody signs");
        }
    }

    #[test]
    fn what_is_no_authority_is_told() {
        let ours = ca("ours");
        assert_eq!(ClientAuthorities::parse("").unwrap_err(), BadAuthorities::Empty);
        assert!(matches!(
            ClientAuthorities::parse("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"),
            Err(BadAuthorities::Malformed(_))
        ));
        let two = format!("{}{}", ours.pem, ca("second").pem);
        assert_eq!(ClientAuthorities::parse(&two).unwrap().names().len(), 2);
    }
}
