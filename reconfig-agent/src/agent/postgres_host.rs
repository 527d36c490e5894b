//! The host of a real node: PostgreSQL, Unix sockets and files.

use super::host::{Failed, Host, Parts, PrimaryTunnels, PromiseStore};
use super::promise::PromiseFile;
use crate::instance::{ASIDE, Instance, Limits, OsUser, Paths, Postgres};
use crate::tunnel::{Downstream, Upstreams};
use quorate_model::{DatabaseId, Epoch, ReplicaId};
use quorate_transport::{Peers, StreamKind};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub struct HostConfig {
    /// Where replicas' directories are.
    pub replicas_dir: PathBuf,
    /// Where sockets are; short, because socket paths end at 107 bytes.
    pub run_dir: PathBuf,
    pub postgres: Arc<Postgres>,
    pub user: OsUser,
    pub limits: Limits,
}

pub struct PostgresHost {
    config: HostConfig,
    peers: Arc<Peers>,
    upstreams: Arc<Upstreams>,
}

impl PostgresHost {
    /// Takes the tunnels' streams at the peer port; none is admitted yet.
    pub fn new(config: HostConfig, peers: Arc<Peers>) -> Arc<PostgresHost> {
        let upstreams = Upstreams::new();
        peers.register_stream(StreamKind::Tunnel, upstreams.clone());
        Arc::new(PostgresHost { config, peers, upstreams })
    }
}

impl Host for PostgresHost {
    fn assemble(&self, database: DatabaseId, id: ReplicaId) -> Result<Parts, Failed> {
        let config = &self.config;
        let paths = Paths::new(&config.replicas_dir, &config.run_dir, id)?;
        paths.prepare(&config.user)?;
        let (promise, promised) = PromiseFile::load(&paths.promise)?;
        let downstream =
            Downstream::start(database, id, &paths.tunnel, config.user.switch(), self.peers.clone())?;
        let instance = Instance::new(
            config.postgres.clone(),
            config.user.clone(),
            database,
            id,
            paths,
            config.limits.clone(),
        );
        Ok(Parts {
            instance: Arc::new(instance),
            downstream: Arc::new(downstream),
            promise: Box::new(promise),
            promised,
        })
    }

    fn found(&self) -> Vec<ReplicaId> {
        // A directory that cannot be read now is looked at again at the next change of the map.
        let Ok(entries) = std::fs::read_dir(&self.config.replicas_dir) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(replica_of)).collect()
    }

    fn upstreams(&self) -> Arc<dyn PrimaryTunnels> {
        self.upstreams.clone()
    }
}

/// Whose directory that is: its own, or what a daemon left that was lost while it deleted one.
fn replica_of(directory: &str) -> Option<ReplicaId> {
    let own = directory.strip_suffix(ASIDE).and_then(|own| own.strip_suffix('.')).unwrap_or(directory);
    ReplicaId::from_standby_name(own)
}

impl PromiseStore for PromiseFile {
    fn write(&self, epoch: Epoch) -> io::Result<()> {
        PromiseFile::write(self, epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node was lost in the middle of deleting a copy, and what was left of it stayed for ever.
    #[test]
    fn what_was_moved_aside_is_found_too() {
        assert_eq!(replica_of("r7"), Some(ReplicaId(7)));
        assert_eq!(replica_of("r40.dropped"), Some(ReplicaId(40)));
        for other in ["", "x", "r", "r7x", "r7.other", ".dropped", "r7dropped"] {
            assert_eq!(replica_of(other), None, "{other}");
        }
    }
}
