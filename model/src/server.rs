//! A logical server, and what may be set of it.

use crate::map::PartitionMap;
use crate::{AllowList, Applied, Refusal, ServerId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes of certificates that one server may have for its clients: a few authorities.
pub const MAX_CLIENT_CA_BYTES: usize = 32 * 1024;

/// A logical server: a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    pub id: ServerId,
    pub name: String,
    /// The tenant's login, made in each of its databases.
    pub admin: String,
    /// Its SCRAM-SHA-256 verifier, in PostgreSQL's form. Never a password.
    pub verifier: String,
    /// From where its clients may come.
    pub allow: AllowList,
    /// How its clients show who they are.
    pub client_auth: ClientAuth,
    /// Who signs the certificates of its clients: certificates in PEM, or nothing.
    pub client_ca: String,
}

/// How a client shows that it is the role that it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientAuth {
    /// By the role's password.
    #[default]
    Password,
    /// By a certificate for the role; as PostgreSQL's method `cert`.
    Certificate,
    /// By a certificate where it shows one for the role, else by the password.
    Either,
    /// By both; as PostgreSQL's `clientcert=verify-full` beside a password.
    Both,
}

impl ClientAuth {
    /// As an operator writes it.
    pub const NAMES: [(&'static str, ClientAuth); 4] = [
        ("password", ClientAuth::Password),
        ("certificate", ClientAuth::Certificate),
        ("either", ClientAuth::Either),
        ("both", ClientAuth::Both),
    ];

    pub fn named(text: &str) -> Option<ClientAuth> {
        Self::NAMES.iter().find(|(name, _)| text.trim().eq_ignore_ascii_case(name)).map(|(_, auth)| *auth)
    }

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, auth)| *auth == self).map_or("", |(name, _)| name)
    }

    /// Whether certificates count.
    pub fn takes_certificates(self) -> bool {
        self != ClientAuth::Password
    }
}

/// One thing to be set of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerOption {
    Allow(AllowList),
    ClientAuth(ClientAuth),
    /// PEM; empty: none. Whoever proposes it has seen that it can be used.
    ClientCa(String),
}

impl fmt::Display for ServerOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerOption::Allow(allow) => write!(f, "allow {allow}"),
            ServerOption::ClientAuth(auth) => write!(f, "client_auth {}", auth.name()),
            ServerOption::ClientCa(pem) => write!(f, "client_ca ({} bytes)", pem.len()),
        }
    }
}

impl PartitionMap {
    pub(crate) fn set_server_option(&mut self, name: &str, option: ServerOption) -> Result<Applied, Refusal> {
        let server = self.servers.values_mut().find(|s| s.name == name);
        let server = server.ok_or_else(|| Refusal::NoSuchServer(name.to_owned()))?;
        let mut changed = server.clone();
        match option {
            ServerOption::Allow(allow) => changed.allow = allow,
            ServerOption::ClientAuth(auth) => changed.client_auth = auth,
            ServerOption::ClientCa(pem) if pem.len() > MAX_CLIENT_CA_BYTES => {
                let said = format!("certificates of more than {MAX_CLIENT_CA_BYTES} bytes");
                return Err(Refusal::LimitReached(said));
            }
            ServerOption::ClientCa(pem) => changed.client_ca = pem,
        }
        // It would shut everybody out, or let nobody in by what he was told to use.
        if changed.client_auth.takes_certificates() && changed.client_ca.is_empty() {
            return Err(Refusal::Unsafe(format!(
                "server \"{name}\" has no client_ca, and client_auth = '{}' needs one",
                changed.client_auth.name()
            )));
        }
        *server = changed;
        Ok(Applied::Done)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Command;

    #[test]
    fn certificates_are_asked_for_only_where_somebody_signs_them() {
        let mut map = PartitionMap::default();
        let create = Command::CreateServer { name: "s".into(), admin: "u".into(), verifier: "v".into() };
        map.apply(create).unwrap();
        let mut set =
            |option: ServerOption| map.apply(Command::SetServerOption { server: "s".into(), option });
        for (name, auth) in ClientAuth::NAMES {
            assert_eq!((ClientAuth::named(name), auth.name()), (Some(auth), name));
            let applied = set(ServerOption::ClientAuth(auth));
            assert_eq!(applied.is_ok(), auth == ClientAuth::Password, "{name}");
        }
        set(ServerOption::ClientCa("pem".into())).unwrap();
        set(ServerOption::ClientAuth(ClientAuth::Both)).unwrap();
        assert!(matches!(set(ServerOption::ClientCa(String::new())), Err(Refusal::Unsafe(_))));
        let much = ServerOption::ClientCa("x".repeat(MAX_CLIENT_CA_BYTES + 1));
        assert!(matches!(set(much), Err(Refusal::LimitReached(_))));
        set(ServerOption::ClientAuth(ClientAuth::Password)).unwrap();
        set(ServerOption::ClientCa(String::new())).unwrap();
    }
}
