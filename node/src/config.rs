//! The configuration of a node: one TOML file, checked once, all faults reported together.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of this node, 1 or more, never reused for another machine.
    pub id: u64,
    pub name: String,
    /// What fails together with this node: a rack, a power feed. Replicas of a database are kept apart by it.
    pub fault_domain: String,
    /// What is upgraded together with this node.
    pub update_domain: String,
    #[serde(default = "default_region")]
    pub region: String,
    /// Replicas and the node's copy of the partition map. Absolute.
    pub data_dir: PathBuf,
    /// Sockets; short, because their paths end at 107 bytes. Absolute.
    pub run_dir: PathBuf,
    /// Holds ca.pem, node.pem and node.key, from the cluster's authority.
    pub tls_dir: PathBuf,
    /// 64 hexadecimal digits that all nodes share: they authenticate the ring's datagrams.
    pub cluster_key_file: PathBuf,
    /// Directory of PostgreSQL's programs; found by itself when absent.
    #[serde(default)]
    pub pg_bin: Option<PathBuf>,
    pub listen: Listen,
    pub admin: Admin,
    /// Every node of the cluster, this one included.
    pub peers: Vec<Peer>,
    #[serde(default)]
    pub timings: Timings,
    #[serde(default)]
    pub limits: Limits,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// Applications.
    pub client: SocketAddr,
    /// Operators.
    pub admin: SocketAddr,
    /// Other nodes (TCP); the ring uses the same address with UDP.
    pub peer: SocketAddr,
    /// Metrics and health.
    pub http: SocketAddr,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    pub user: String,
    /// A file that only the daemon's user can read, with the admin port's password.
    pub password_file: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub id: u64,
    pub name: String,
    pub peer: SocketAddr,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timings {
    /// How long a client is held while no primary is open, seconds.
    pub hold_s: u64,
    /// A replica that is lost for so long is built anew elsewhere, seconds.
    pub replace_after_s: u64,
    /// A voter that is unwell for so long is taken out of the configuration, milliseconds.
    pub shrink_after_ms: u64,
    /// A neighbour that is silent for so long is suspected, milliseconds.
    pub suspect_after_ms: u64,
    /// How long results may leave without a renewed grant of the voters, milliseconds; at most 400.
    pub lease_ms: u64,
    /// How long a switchover waits for open transactions, milliseconds.
    pub drain_ms: u64,
    /// How long the relay of a session that works alone looks for the next message before it sleeps, microseconds: round
    /// trips are shorter by two wake-ups, for time of a processor that is idle otherwise. 0: it sleeps at once.
    pub busy_poll_us: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            hold_s: 30,
            replace_after_s: 300,
            shrink_after_ms: 2_000,
            suspect_after_ms: 300,
            lease_ms: 400,
            drain_ms: 1_000,
            busy_poll_us: 200,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Client sessions on this node.
    pub max_sessions: u32,
    /// Client sessions of one logical server on this node.
    pub max_sessions_per_server: u32,
    /// Sessions of one logical server that may begin in a second on this node.
    pub max_logins_per_second_per_server: u32,
    /// Server connections that the clients of databases in transaction mode share, of all databases on this node.
    pub max_pooled_connections: u32,
    /// Connections of one instance.
    pub max_connections: u32,
    /// Shared buffers of one instance, MiB.
    pub shared_buffers_mib: u32,
    /// Threads that relay sessions; 0 means one for two processors.
    pub workers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_sessions: 20_000,
            max_sessions_per_server: 10_000,
            max_logins_per_second_per_server: 1_000,
            max_pooled_connections: 1_000,
            max_connections: 120,
            shared_buffers_mib: 64,
            workers: 0,
        }
    }
}

fn default_region() -> String {
    "local".to_owned()
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration {path} cannot be used:\n  - {}", faults.join("\n  - "))]
pub struct BadConfig {
    path: String,
    faults: Vec<String>,
}

impl Config {
    pub fn load(path: &Path) -> Result<Config, BadConfig> {
        let bad = |fault: String| BadConfig { path: path.display().to_string(), faults: vec![fault] };
        let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
        let config: Config = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let faults = config.faults();
        if faults.is_empty() {
            return Ok(config);
        }
        Err(BadConfig { path: path.display().to_string(), faults })
    }

    /// All faults that can be told from the values alone.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut require = |ok: bool, fault: &str| {
            if !ok {
                faults.push(fault.to_owned());
            }
        };
        require(self.id >= 1, "id: must be 1 or more");
        require(!self.name.is_empty(), "name: must not be empty");
        require(!self.fault_domain.is_empty(), "fault_domain: must not be empty");
        for (name, path) in [
            ("data_dir", &self.data_dir),
            ("run_dir", &self.run_dir),
            ("tls_dir", &self.tls_dir),
            ("cluster_key_file", &self.cluster_key_file),
            ("admin.password_file", &self.admin.password_file),
        ] {
            require(path.is_absolute(), &format!("{name}: must be an absolute path"));
        }
        let ids: BTreeSet<u64> = self.peers.iter().map(|p| p.id).collect();
        require(ids.len() == self.peers.len(), "peers: two have the same id");
        require(ids.contains(&self.id), "peers: must name this node as well");
        let ports: BTreeSet<SocketAddr> =
            [self.listen.client, self.listen.admin, self.listen.peer, self.listen.http].into();
        require(ports.len() == 4, "listen: two ports are the same");
        let t = &self.timings;
        require((100..=400).contains(&t.lease_ms), "timings.lease_ms: must be between 100 and 400");
        require(t.suspect_after_ms >= 100, "timings.suspect_after_ms: must be 100 or more");
        require(t.hold_s <= 600, "timings.hold_s: must be 600 or less");
        require(t.busy_poll_us <= 1_000, "timings.busy_poll_us: must be 1000 or less");
        require(
            t.replace_after_s * 1000 > t.shrink_after_ms,
            "timings.replace_after_s: must be longer than shrink_after_ms",
        );
        let l = &self.limits;
        require(l.max_sessions >= 1, "limits.max_sessions: must be 1 or more");
        require(l.max_sessions_per_server >= 1, "limits.max_sessions_per_server: must be 1 or more");
        require(
            l.max_logins_per_second_per_server >= 1,
            "limits.max_logins_per_second_per_server: must be 1 or more",
        );
        require(l.max_pooled_connections >= 1, "limits.max_pooled_connections: must be 1 or more");
        require(l.max_connections >= 20, "limits.max_connections: must be 20 or more");
        require(l.shared_buffers_mib >= 1, "limits.shared_buffers_mib: must be 1 or more");
        faults
    }

    /// The ring's key.
    pub fn cluster_key(&self) -> anyhow::Result<[u8; 32]> {
        let path = &self.cluster_key_file;
        let text = std::fs::read_to_string(path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        let text = text.trim();
        anyhow::ensure!(text.len() == 64, "{}: must hold 64 hexadecimal digits", path.display());
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair)?;
            *byte = u8::from_str_radix(pair, 16)
                .map_err(|_| anyhow::anyhow!("{}: must hold 64 hexadecimal digits", path.display()))?;
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
        id = 1
        name = "n1"
        fault_domain = "fd1"
        update_domain = "ud1"
        data_dir = "/var/lib/quorate/n1"
        run_dir = "/run/quorate/n1"
        tls_dir = "/etc/quorate/tls"
        cluster_key_file = "/etc/quorate/cluster.key"
        listen = { client = "127.0.0.1:6432", admin = "127.0.0.1:6532", peer = "127.0.0.1:6632", http = "127.0.0.1:6732" }
        admin = { user = "admin", password_file = "/etc/quorate/admin.password" }
        peers = [{ id = 1, name = "n1", peer = "127.0.0.1:6632" }]
    "#;

    #[test]
    fn takes_a_good_one() {
        let config: Config = toml::from_str(GOOD).unwrap();
        assert_eq!(config.faults(), Vec::<String>::new());
        assert_eq!(config.timings.hold_s, 30);
    }

    #[test]
    fn reports_all_faults_together() {
        let text = GOOD.replace("id = 1\n", "id = 0\n").replace("/run/quorate/n1", "run")
            + "[timings]\nlease_ms = 5000\n";
        let config: Config = toml::from_str(&text).unwrap();
        let faults = config.faults().join("\n");
        for part in ["id:", "run_dir:", "lease_ms:", "peers:"] {
            assert!(faults.contains(part), "{part} in {faults}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(toml::from_str::<Config>(&(GOOD.to_owned() + "\nlisten_port = 3\n")).is_err());
    }
}
