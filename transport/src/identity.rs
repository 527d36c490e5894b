//! Who a node is: its certificate, its key, and the authority that it believes.

use quorate_model::NodeId;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub(crate) const CA_FILE: &str = "ca.pem";
pub(crate) const CERTIFICATE_FILE: &str = "node.pem";
pub(crate) const KEY_FILE: &str = "node.key";

const DOMAIN: &str = "quorate";

/// The name in the certificate of a node.
pub(crate) fn node_name(node: NodeId) -> String {
    format!("{node}.{DOMAIN}")
}

/// The inverse of [`node_name`].
fn node_named(name: &str) -> Option<NodeId> {
    let id = name.strip_suffix(DOMAIN)?.strip_suffix('.')?.strip_prefix('n')?.parse().ok().map(NodeId)?;
    // One spelling only: `n007` is nobody.
    (node_name(id) == name).then_some(id)
}

/// Between nodes, all of one release, one cipher is enough: the cheapest that is safe, since every commit passes it
/// several times.
fn provider() -> CryptoProvider {
    let cipher_suites = vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    CryptoProvider { cipher_suites, ..rustls::crypto::aws_lc_rs::default_provider() }
}

/// What a node proves itself with and checks others by. Both directions are TLS 1.3, both sides show a
/// certificate.
pub struct Identity {
    node: NodeId,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}: no usable PEM: {reason}")]
    Pem { path: PathBuf, reason: String },
    #[error("the certificate is of {found}, not of node {expected}")]
    NotMine { expected: NodeId, found: String },
    #[error("the certificate or its key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the authority's certificate cannot be used: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("making a certificate: {0}")]
    Making(#[from] rcgen::Error),
}

impl IdentityError {
    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        IdentityError::File { path: path.to_owned(), source }
    }
}

impl Identity {
    /// Loads what [`crate::authority::Authority::issue`] wrote into `dir`, and checks that it is this node's.
    pub fn load(node: NodeId, dir: &Path) -> Result<Arc<Identity>, IdentityError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&dir.join(CA_FILE))? {
            roots.add(certificate)?;
        }
        let chain = certificates(&dir.join(CERTIFICATE_FILE))?;
        match chain.first().and_then(node_of) {
            Some(found) if found == node => {}
            Some(found) => {
                return Err(IdentityError::NotMine { expected: node, found: format!("node {found}") });
            }
            None => return Err(IdentityError::NotMine { expected: node, found: "no node".to_owned() }),
        }
        let key_path = dir.join(KEY_FILE);
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|e| pem_error(&key_path, &e))?;
        let roots = Arc::new(roots);
        let provider = Arc::new(provider());
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        Ok(Arc::new(Identity { node, client: Arc::new(client), server: Arc::new(server) }))
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }
}

/// What the certificate of `node` must be valid for.
pub(crate) fn server_name(node: NodeId) -> Option<ServerName<'static>> {
    ServerName::try_from(node_name(node)).ok()
}

/// The one node that a certificate names. The chain must have been verified before.
pub(crate) fn node_of(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut nodes = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => node_named(name),
        _ => None,
    });
    // A certificate of two nodes would let one speak for the other.
    match (nodes.next(), nodes.next()) {
        (Some(node), None) => Some(node),
        _ => None,
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| pem_error(path, &e))?;
    if found.is_empty() {
        return Err(IdentityError::Pem { path: path.to_owned(), reason: "no certificate in it".to_owned() });
    }
    Ok(found)
}

fn pem_error(path: &Path, error: &rustls::pki_types::pem::Error) -> IdentityError {
    IdentityError::Pem { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_nodes_match_one_to_one() {
        assert_eq!(node_named(&node_name(NodeId(12))), Some(NodeId(12)));
        for wrong in [
            "n012.quorate",
            "n.quorate",
            "12.quorate",
            "n12",
            "n12.quorate.",
            "n12.quorate.org",
            "n+1.quorate",
        ] {
            assert_eq!(node_named(wrong), None, "{wrong}");
        }
    }
}
