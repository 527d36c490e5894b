//! Clients that show certificates, as libpq does: psql through the proxy.
use crate::common::*;
use quorate_model::{ClientAuth, NodeId, ServerOption};
use quorate_transport::authority::Authority;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// An authority for clients, and a node's own certificate.
struct Papers {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca: String,
}

impl Papers {
    fn new() -> Papers {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::create(&directory.path().join("ca")).unwrap();
        authority.issue(NodeId(1), directory.path()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "tenant");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        Papers { directory, issuer: Issuer::new(params, key), ca }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate for that role, and its key, as libpq wants them.
    fn issue(&self, role: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, role);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let (chain, secret) = (self.file(&format!("{role}.crt")), self.file(&format!("{role}.key")));
        std::fs::write(&chain, certificate).unwrap();
        std::fs::write(&secret, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        (chain, secret)
    }
}

/// What psql says as that role: its output, or its error with the SQLSTATE in it.
async fn psql(port: u16, role: &str, papers: Option<&(PathBuf, PathBuf)>, password: &str) -> String {
    let options = match papers {
        Some((chain, key)) => format!("sslmode=require&sslcert={}&sslkey={}", escaped(chain), escaped(key)),
        None => "sslmode=require&sslcert=/nowhere".to_owned(),
    };
    let url = format!("postgresql://{role}@127.0.0.1:{port}/app?{options}");
    let password = password.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        std::process::Command::new(bin("psql"))
            .args(["-XAtw", "-v", "VERBOSITY=verbose", "-c", "select 'in as ' || current_user", &url])
            .env("PGPASSWORD", password)
            .output()
            .unwrap()
    });
    let output = soon(output).await.unwrap();
    String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr })
        .into_owned()
}

fn escaped(path: &Path) -> String {
    path.to_str().unwrap().replace('/', "%2F")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_the_role_stands_in_for_its_password_where_the_server_says_so() {
    let postgres = Postgres::start().await;
    let papers = Papers::new();
    let tls = quorate_proxy::ClientTls::load(&papers.file("node.pem"), &papers.file("node.key")).unwrap();
    let cluster = Cluster::with(|c| c.tls = Some(std::sync::Arc::clone(&tls))).await;
    cluster.open(1, &postgres);
    let (own, other) = (papers.issue("demo"), papers.issue("other"));
    let foreign = Papers::new().issue_in(&papers, "demo");
    cluster.set_server(ServerOption::ClientCa(papers.ca.clone()));
    let port = |node: usize| cluster.nodes[node - 1].proxy.address().port();
    let (good, wrong) = ("in as demo\n", "password authentication failed");
    let (none, refused) =
        ("connection requires a valid client certificate", "certificate authentication failed");
    for (auth, expected) in [
        // With the role's own, without one, with another role's, of a foreign authority; then the same without a
        // password that is right.
        (ClientAuth::Password, [good, good, good, good, wrong, wrong, wrong, wrong]),
        (ClientAuth::Either, [good, good, good, good, good, wrong, wrong, wrong]),
        (ClientAuth::Certificate, [good, none, refused, refused, good, none, refused, refused]),
        (ClientAuth::Both, [good, none, refused, refused, wrong, none, refused, refused]),
    ] {
        cluster.set_server(ServerOption::ClientAuth(auth));
        let shown = [Some(&own), None, Some(&other), Some(&foreign)];
        for (i, expected) in expected.into_iter().enumerate() {
            let password = if i < shown.len() { "demo" } else { "wrong" };
            let said = psql(port(1 + i % 2), "demo", shown[i % shown.len()], password).await;
            assert!(said.contains(expected), "{auth:?} {i}: {said}");
        }
    }
    // Without TLS there is nothing to show.
    cluster.set_server(ServerOption::ClientAuth(ClientAuth::Certificate));
    let error = soon(connect(&cluster.config(2))).await.err().unwrap();
    assert_eq!(code(&error), "28000");
    assert!(error.as_db_error().unwrap().hint().unwrap().contains("sslcert"), "{error:?}");
    // A role that the database does not have, and one that may not log in, are told as Postgres tells them.
    for (role, expected) in
        [("stranger", "role \"stranger\" does not exist"), ("nologin", "is not permitted to log in")]
    {
        let said = psql(port(1), role, Some(&papers.issue(role)), "").await;
        assert!(said.contains(expected), "{said}");
    }
}

impl Papers {
    /// A certificate of this authority, in the directory of another.
    fn issue_in(&self, home: &Papers, role: &str) -> (PathBuf, PathBuf) {
        let (chain, key) = self.issue(role);
        let (to_chain, to_key) = (home.file("foreign.crt"), home.file("foreign.key"));
        std::fs::rename(chain, &to_chain).unwrap();
        std::fs::rename(key, &to_key).unwrap();
        (to_chain, to_key)
    }
}
