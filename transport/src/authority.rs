//! The cluster's own certificate authority: made once, by whoever sets a cluster up, and asked for one
//! certificate a node. The daemon itself never needs the authority's key, only its certificate.

use crate::identity::{CA_FILE, CERTIFICATE_FILE, IdentityError, KEY_FILE, node_name};
use quorate_model::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

pub type Result<T> = std::result::Result<T, IdentityError>;

const CA_KEY_FILE: &str = "ca.key";

/// A loaded certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Makes a new authority: `ca.pem` and `ca.key` (0600) in `dir`. Never overwrites one.
    pub fn create(dir: &Path) -> Result<Self> {
        make_dir(dir)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "quorate cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        // The key first: a certificate without its key would be an authority that can never sign.
        write(dir, CA_KEY_FILE, key.serialize_pem().as_bytes(), Secrecy::Secret)?;
        let pem = certificate.pem();
        write(dir, CA_FILE, pem.as_bytes(), Secrecy::Public)?;
        Ok(Authority { issuer: Issuer::new(params, key), pem })
    }

    /// Loads the authority that `create` made in `dir`.
    pub fn load(dir: &Path) -> Result<Self> {
        let pem = read(&dir.join(CA_FILE))?;
        let key = KeyPair::from_pem(&read(&dir.join(CA_KEY_FILE))?)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)?;
        Ok(Authority { issuer, pem })
    }

    /// Gives a node its identity: `ca.pem`, `node.pem` and `node.key` (0600) in `dir`, replacing an older
    /// one.
    pub fn issue(&self, node: NodeId, dir: &Path) -> Result<()> {
        make_dir(dir)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![node_name(node)])?;
        params.distinguished_name.push(DnType::CommonName, node_name(node));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        for file in [CA_FILE, CERTIFICATE_FILE, KEY_FILE] {
            remove(&dir.join(file))?;
        }
        write(dir, KEY_FILE, key.serialize_pem().as_bytes(), Secrecy::Secret)?;
        write(dir, CERTIFICATE_FILE, certificate.pem().as_bytes(), Secrecy::Public)?;
        write(dir, CA_FILE, self.pem.as_bytes(), Secrecy::Public)
    }
}

enum Secrecy {
    Public,
    Secret,
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| IdentityError::file(dir, e))
}

fn write(dir: &Path, file: &str, content: &[u8], secrecy: Secrecy) -> Result<()> {
    let path = dir.join(file);
    let mode = match secrecy {
        Secrecy::Public => 0o644,
        Secrecy::Secret => 0o600,
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&path)
        .map_err(|e| IdentityError::file(&path, e))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(|e| IdentityError::file(&path, e))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| IdentityError::file(path, e))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(IdentityError::file(path, e)),
        _ => Ok(()),
    }
}
