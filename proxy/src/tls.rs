//! The certificate that clients see: read from files, and read again when they have changed, without a restart.
//!
//! Sessions that exist keep what they began with. A new pair that cannot be used is told in the log and the former one
//! goes on: a renewal that goes wrong must not close the port.

use crate::certificate::AnyCertificate;
use crate::gate::slot::locked;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoClientAuth;
use rustls::server::danger::ClientCertVerifier;
use sha2::{Digest, Sha256, Sha384, Sha512};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a client that begins with TLS names (PostgreSQL documentation, "SSL Session Encryption").
pub const ALPN: &[u8] = b"postgresql";
/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why there is no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("the certificate or its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// What one certificate is served with.
pub struct Served {
    pub config: Arc<ServerConfig>,
    /// The same, and the client is asked for its certificate.
    pub asking: Arc<ServerConfig>,
    /// The channel binding `tls-server-end-point` (RFC 5929); none for signatures without a hash of their own.
    pub end_point: Option<Vec<u8>>,
}

/// When a file was written, as far as it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
}

struct Loaded {
    served: Arc<Served>,
    stamps: [Stamp; 2],
    looked: Instant,
    /// The present files were found unusable, and that was told.
    told: Option<[Stamp; 2]>,
}

/// A chain of certificates and its key, in PEM files.
pub struct ClientTls {
    chain: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
}

impl ClientTls {
    pub fn load(chain: &Path, key: &Path) -> Result<Arc<ClientTls>, TlsError> {
        let stamps = stamps(chain, key)?;
        let loaded = Loaded { served: serve(chain, key)?, stamps, looked: Instant::now(), told: None };
        Ok(Arc::new(ClientTls { chain: chain.to_owned(), key: key.to_owned(), loaded: Mutex::new(loaded) }))
    }

    /// What a client that comes now is served with.
    pub fn current(&self) -> Arc<Served> {
        let mut loaded = locked(&self.loaded);
        if loaded.looked.elapsed() >= LOOK_EVERY {
            loaded.looked = Instant::now();
            self.look(&mut loaded);
        }
        Arc::clone(&loaded.served)
    }

    /// As [`ClientTls::current`], for who binds nothing to the channel.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().config)
    }

    fn look(&self, loaded: &mut Loaded) {
        // A file that is being replaced may be missing for a moment.
        let Ok(stamps) = stamps(&self.chain, &self.key) else { return };
        if stamps == loaded.stamps || loaded.told == Some(stamps) {
            return;
        }
        match serve(&self.chain, &self.key) {
            Ok(served) => {
                tracing::info!(chain = %self.chain.display(), "clients are shown a new certificate");
                (loaded.served, loaded.stamps, loaded.told) = (served, stamps, None);
            }
            Err(error) => {
                tracing::warn!(%error, "the new certificate is not used; the former one is");
                loaded.told = Some(stamps);
            }
        }
    }
}

fn stamps(chain: &Path, key: &Path) -> Result<[Stamp; 2], TlsError> {
    let stamp = |path: &Path| {
        let found =
            std::fs::metadata(path).and_then(|m| Ok(Stamp { modified: m.modified()?, bytes: m.len() }));
        found.map_err(|e| TlsError::File { path: path.to_owned(), reason: e.to_string() })
    };
    Ok([stamp(chain)?, stamp(key)?])
}

fn serve(chain: &Path, key: &Path) -> Result<Arc<Served>, TlsError> {
    let file = |path: &Path, reason: String| TlsError::File { path: path.to_owned(), reason };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect)
        .map_err(|e| file(chain, e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| file(key, e.to_string()))?;
    let end_point = certificates.first().and_then(|c| end_point(c));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = |verifier: Arc<dyn ClientCertVerifier>| {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates.clone(), secret.clone_key())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok::<_, rustls::Error>(Arc::new(config))
    };
    let plain = config(Arc::new(NoClientAuth))?;
    Ok(Arc::new(Served { config: plain, asking: config(AnyCertificate::new())?, end_point }))
}

/// The hash of a certificate by the hash of its signature, where that is not older than SHA-256.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        // RSA and ECDSA with MD5, SHA-1 (both replaced by SHA-256) and SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2" => Some(Sha256::digest(certificate).to_vec()),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(certificate).to_vec()),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use quorate_model::NodeId;
    use quorate_transport::authority::Authority;

    #[test]
    fn a_new_certificate_is_served_and_a_broken_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (chain, key) = (directory.path().join("node.pem"), directory.path().join("node.key"));
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        authority.issue(NodeId(1), directory.path()).unwrap();
        let tls = ClientTls::load(&chain, &key).unwrap();
        let first = tls.current();
        assert_eq!(first.end_point.as_ref().unwrap().len(), 32);
        std::thread::sleep(LOOK_EVERY);
        assert!(Arc::ptr_eq(&first, &tls.current()), "nothing has changed");
        std::fs::write(&chain, "no certificate").unwrap();
        std::thread::sleep(LOOK_EVERY);
        assert!(Arc::ptr_eq(&first, &tls.current()), "the former one goes on");
        authority.issue(NodeId(2), directory.path()).unwrap();
        std::thread::sleep(LOOK_EVERY);
        let second = tls.current();
        assert_ne!(first.end_point, second.end_point);
    }
}
