//! One PostgreSQL instance: the data directory and postmaster of one replica.
//!
//! The rest of the agent decides what an instance is to be; this module makes it so and says what is there. It
//! promises:
//!
//! * an instance starts as a standby, always, except right after initdb: only [`Instance::promote`] makes a
//!   primary;
//! * `synchronous_standby_names` is never empty (R5), and the configuration is the daemon's alone;
//! * [`Instance::position`] is the end of the valid log, exactly: a promotion would go on there (R8);
//! * [`Instance::write_epoch`] and [`Instance::barrier`] return only what a quorum holds. Any doubt is an error;
//! * an instance whose storage failed it, or whose rewind did not end, is never started again ([`Instance::distrust`]);
//! * the postmaster does not outlive the daemon, and processes that an earlier one left are cleared before a start.
//!
//! It never decides a role, knows no peer (the tunnel's directory is the only way out), and never sees a tenant's
//! password: only its verifier, once.

mod bootstrap;
mod commit;
mod error;
mod files;
mod identify;
mod lifecycle;
mod limits;
mod locate;
mod observe;
mod orphan;
mod paths;
mod position;
mod process;
mod promote;
mod rewind;
mod seed;
mod session;
mod settings;
mod spawn;
mod stall;
mod sync_names;
#[cfg(test)]
mod tests;
mod tool;
mod torn;
mod trust;
mod user;
mod version;
pub mod wal;

pub use bootstrap::Bootstrap;
pub use error::InstanceError;
pub use lifecycle::ASIDE;
pub use limits::Limits;
pub use locate::{LocateError, Postgres};
pub use observe::{Progress, StandbyRow};
pub use paths::{PathError, Paths, SOCKET_NAME, SOCKET_PATH_LIMIT_BYTES};
pub use process::Process;
pub use promote::Promoted;
pub use seed::SeedProgress;
pub use settings::{MAINTENANCE_DATABASE, SUPERUSER};
pub use user::{OsUser, UserError};
pub use version::Version;

use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use quorate_model::{DatabaseId, ReplicaId};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// How an instance is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Sessions are ended and a checkpoint is written: nothing is replayed at the next start.
    Fast,
    /// At once, as in a crash.
    Immediate,
}

/// A handle to one instance; clones share it. The last one's end does not stop the postmaster: [`Instance::stop`]
/// does, and the end of the runtime.
#[derive(Clone)]
pub struct Instance {
    inner: Arc<Inner>,
}

struct Inner {
    pg: Arc<Postgres>,
    user: OsUser,
    database: DatabaseId,
    replica: ReplicaId,
    paths: Paths,
    limits: Limits,
    /// Held by whatever makes, starts or deletes the data directory.
    lifecycle: tokio::sync::Mutex<()>,
    process: watch::Sender<Process>,
    postmaster: Mutex<Option<Arc<process::Postmaster>>>,
    sessions: session::Sessions,
    /// What the generated configuration names now.
    sync_names: Mutex<String>,
    /// What sessions of this postmaster that begin now have, once that is certain.
    sync_names_in_force: Mutex<Option<(u32, String)>>,
    /// Orders changes of `sync_names`, and the file with them.
    reconfiguring: tokio::sync::Mutex<()>,
    /// Of the last promotion here: see [`promote`].
    horizon: Mutex<Option<i64>>,
    /// Held while the epoch row is between the log and its visibility.
    epoch_writer: tokio::sync::Mutex<()>,
    seed: watch::Sender<SeedProgress>,
    size: observe::SizeCache,
    timeline: observe::TimelineCache,
}

impl Instance {
    pub fn new(
        pg: Arc<Postgres>,
        user: OsUser,
        database: DatabaseId,
        replica: ReplicaId,
        paths: Paths,
        limits: Limits,
    ) -> Instance {
        let inner = Inner {
            pg,
            user,
            database,
            replica,
            sessions: session::Sessions::new(paths.sockets.clone()),
            paths,
            limits,
            lifecycle: tokio::sync::Mutex::new(()),
            process: watch::Sender::new(Process::Down),
            postmaster: Mutex::new(None),
            sync_names: Mutex::new(SENTINEL_SYNC_NAMES.to_owned()),
            sync_names_in_force: Mutex::new(None),
            reconfiguring: tokio::sync::Mutex::new(()),
            horizon: Mutex::new(None),
            epoch_writer: tokio::sync::Mutex::new(()),
            seed: watch::Sender::new(SeedProgress::default()),
            size: observe::SizeCache::default(),
            timeline: observe::TimelineCache::default(),
        };
        Instance { inner: Arc::new(inner) }
    }

    pub fn database(&self) -> DatabaseId {
        self.inner.database
    }

    pub fn replica(&self) -> ReplicaId {
        self.inner.replica
    }

    pub fn paths(&self) -> &Paths {
        &self.inner.paths
    }

    /// Whether the data directory was finished by bootstrap or seed.
    pub fn is_complete(&self) -> bool {
        self.inner.paths.complete.exists() && self.inner.paths.data.join("PG_VERSION").exists()
    }

    /// The state of the postmaster, now and as it changes.
    pub fn process(&self) -> watch::Receiver<Process> {
        self.inner.process.subscribe()
    }

    /// How far a base backup under way has come.
    pub fn seed_progress(&self) -> watch::Receiver<SeedProgress> {
        self.inner.seed.subscribe()
    }
}
