//! What an agent stands on: the instances of its node, their tunnels, and what survives a restart.
//!
//! The rules stand in the agent; what they act on is behind these traits. [`super::PostgresHost`] is the real one;
//! a simulation runs the same agent on another. Nothing here is on a path of bytes: tunnels are told whom to let
//! pass, and move the bytes by themselves.

use crate::instance::{Bootstrap, Instance, InstanceError, Process, Progress, Promoted, StopMode};
use crate::tunnel::{Downstream, DownstreamStatus, Route, Upstreams};
use quorate_model::{DatabaseId, Epoch, Lsn, Position, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Makes and finds what a node's replicas consist of.
pub trait Host: Send + Sync + 'static {
    /// The parts of one replica, made where they are missing. The instance is not started, nothing is attached.
    fn assemble(&self, database: DatabaseId, id: ReplicaId) -> Result<Parts, Failed>;
    /// Replicas of which anything is on this node's disk.
    fn found(&self) -> Vec<ReplicaId>;
    /// The primaries' ends of all tunnels here.
    fn upstreams(&self) -> Arc<dyn PrimaryTunnels>;
}

/// One replica's parts.
pub struct Parts {
    pub instance: Arc<dyn ReplicaInstance>,
    pub downstream: Arc<dyn StandbyTunnel>,
    pub promise: Box<dyn PromiseStore>,
    /// What was promised before.
    pub promised: Epoch,
}

/// Where a replica's promise survives. What may be written is decided by [`super::standing::Standing`].
pub trait PromiseStore: Send + Sync + 'static {
    /// Durable when it returns.
    fn write(&self, epoch: Epoch) -> io::Result<()>;
}

/// One instance, with the promises of [`crate::instance`].
#[async_trait::async_trait]
pub trait ReplicaInstance: Send + Sync + 'static {
    fn process(&self) -> watch::Receiver<Process>;
    /// Whether its data was made, or copied, to the end.
    fn is_complete(&self) -> bool;
    fn data_directory(&self) -> PathBuf;
    /// Where it is reached: what gates and tunnels are told.
    fn sockets(&self) -> &Path;
    async fn bootstrap(&self, plan: &Bootstrap) -> Result<(), InstanceError>;
    /// Copies the database from whoever the replica's own tunnel leads to.
    async fn seed(&self) -> Result<(), InstanceError>;
    async fn start(&self) -> Result<(), InstanceError>;
    async fn stop(&self, mode: StopMode, deadline: Duration) -> Result<(), InstanceError>;
    async fn destroy(&self) -> Result<(), InstanceError>;
    async fn position(&self) -> Result<Position, InstanceError>;
    async fn progress(&self) -> Result<Progress, InstanceError>;
    async fn promote(&self) -> Result<Promoted, InstanceError>;
    async fn set_sync_names(&self, names: &str) -> Result<(), InstanceError>;
    /// False: not yet exactly these; to be asked for again.
    async fn ensure_slots(&self, names: &BTreeSet<String>) -> Result<bool, InstanceError>;
    async fn write_epoch(
        &self,
        epoch: Epoch,
        uuid: uuid::Uuid,
        deadline: Duration,
    ) -> Result<Lsn, InstanceError>;
    async fn write_epoch_alone(
        &self,
        epoch: Epoch,
        uuid: uuid::Uuid,
        deadline: Duration,
    ) -> Result<Lsn, InstanceError>;
    async fn checkpoint(&self) -> Result<(), InstanceError>;

    // A host that cannot rewind is one whose divergent copies are rebuilt.

    /// See [`Instance::distrust`].
    fn distrust(&self) -> Option<String> {
        None
    }
    fn was_rewound(&self) -> bool {
        false
    }
    async fn prepare_source(&self) -> Result<(), InstanceError> {
        self.checkpoint().await
    }
    /// Rewinds to whoever the replica's own tunnel leads to.
    async fn rewind(&self) -> Result<(), InstanceError> {
        Err(InstanceError::NotRewound("this host cannot rewind".to_owned()))
    }
    async fn finish_rewind(&self) -> Result<(), InstanceError> {
        self.start().await
    }
    async fn forget_rewind(&self) -> Result<(), InstanceError> {
        Ok(())
    }
    async fn is_log_gone(&self) -> bool {
        false
    }
    /// See [`Instance::is_torn`].
    async fn is_torn(&self, _end: Lsn) -> Result<bool, InstanceError> {
        Ok(false)
    }
    async fn take_torn_off(&self, _end: Lsn) -> Result<(), InstanceError> {
        Ok(())
    }
}

/// A standby's end of its tunnel, with the promises of [`Downstream`].
#[async_trait::async_trait]
pub trait StandbyTunnel: Send + Sync + 'static {
    fn attach(&self, route: Route);
    /// Lets pg_rewind pass, and nothing else.
    fn attach_rewind(&self, _route: Route) {}
    async fn cut(&self);
    async fn cut_older(&self, epoch: Epoch);
    fn status(&self) -> DownstreamStatus;
    fn watch(&self) -> watch::Receiver<Option<Epoch>>;
    async fn stop(&self);
}

/// The primaries' ends, with the promises of [`Upstreams`].
#[async_trait::async_trait]
pub trait PrimaryTunnels: Send + Sync + 'static {
    fn admit(
        &self,
        database: DatabaseId,
        primary: ReplicaId,
        epoch: Epoch,
        sockets: PathBuf,
        allowed: BTreeSet<ReplicaId>,
    );
    /// Who of them may rewind.
    fn admit_rewinds(&self, _database: DatabaseId, _epoch: Epoch, _rewinders: BTreeSet<ReplicaId>) {}
    /// The voters, for how many of which a commit waits; `settled` while that is not being changed.
    fn count(&self, _database: DatabaseId, _voters: &BTreeSet<ReplicaId>, _k: usize, _settled: bool) {}
    async fn cut_all(&self, database: DatabaseId);
    /// How far each replica has acknowledged the log to the primary here, in the current reign.
    fn flushes(&self, _database: DatabaseId) -> BTreeMap<ReplicaId, Lsn> {
        BTreeMap::new()
    }
    /// Waits until a replica has acknowledged `lsn`; false when `limit` is over.
    async fn flushed(&self, _database: DatabaseId, _replica: ReplicaId, _lsn: Lsn, _limit: Duration) -> bool {
        false
    }
}

#[async_trait::async_trait]
impl ReplicaInstance for Instance {
    fn process(&self) -> watch::Receiver<Process> {
        Instance::process(self)
    }

    fn is_complete(&self) -> bool {
        Instance::is_complete(self)
    }

    fn data_directory(&self) -> PathBuf {
        self.paths().data.clone()
    }

    fn sockets(&self) -> &Path {
        &self.paths().sockets
    }

    async fn bootstrap(&self, plan: &Bootstrap) -> Result<(), InstanceError> {
        Instance::bootstrap(self, plan).await
    }

    async fn seed(&self) -> Result<(), InstanceError> {
        Instance::seed(self, &self.paths().tunnel).await
    }

    async fn start(&self) -> Result<(), InstanceError> {
        Instance::start(self).await
    }

    async fn stop(&self, mode: StopMode, deadline: Duration) -> Result<(), InstanceError> {
        Instance::stop(self, mode, deadline).await
    }

    async fn destroy(&self) -> Result<(), InstanceError> {
        Instance::destroy(self).await
    }

    async fn position(&self) -> Result<Position, InstanceError> {
        Instance::position(self).await
    }

    async fn progress(&self) -> Result<Progress, InstanceError> {
        Instance::progress(self).await
    }

    async fn promote(&self) -> Result<Promoted, InstanceError> {
        Instance::promote(self).await
    }

    async fn set_sync_names(&self, names: &str) -> Result<(), InstanceError> {
        Instance::set_sync_names(self, names).await
    }

    async fn ensure_slots(&self, names: &BTreeSet<String>) -> Result<bool, InstanceError> {
        Instance::ensure_slots(self, names).await
    }

    async fn write_epoch(
        &self,
        epoch: Epoch,
        uuid: uuid::Uuid,
        deadline: Duration,
    ) -> Result<Lsn, InstanceError> {
        Instance::write_epoch(self, epoch, uuid, deadline).await
    }

    async fn write_epoch_alone(
        &self,
        epoch: Epoch,
        uuid: uuid::Uuid,
        deadline: Duration,
    ) -> Result<Lsn, InstanceError> {
        Instance::write_epoch_alone(self, epoch, uuid, deadline).await
    }

    async fn checkpoint(&self) -> Result<(), InstanceError> {
        Instance::checkpoint(self).await
    }

    fn distrust(&self) -> Option<String> {
        Instance::distrust(self)
    }

    fn was_rewound(&self) -> bool {
        Instance::was_rewound(self)
    }

    async fn prepare_source(&self) -> Result<(), InstanceError> {
        Instance::prepare_source(self).await
    }

    async fn rewind(&self) -> Result<(), InstanceError> {
        Instance::rewind(self, &self.paths().tunnel).await
    }

    async fn finish_rewind(&self) -> Result<(), InstanceError> {
        Instance::finish_rewind(self).await
    }

    async fn forget_rewind(&self) -> Result<(), InstanceError> {
        Instance::forget_rewind(self).await
    }

    async fn is_log_gone(&self) -> bool {
        Instance::is_log_gone(self).await
    }

    async fn is_torn(&self, end: Lsn) -> Result<bool, InstanceError> {
        Instance::is_torn(self, end).await
    }

    async fn take_torn_off(&self, end: Lsn) -> Result<(), InstanceError> {
        Instance::take_torn_off(self, end).await
    }
}

#[async_trait::async_trait]
impl StandbyTunnel for Downstream {
    fn attach(&self, route: Route) {
        Downstream::attach(self, route);
    }

    fn attach_rewind(&self, route: Route) {
        Downstream::attach_rewind(self, route);
    }

    async fn cut(&self) {
        Downstream::cut(self).await;
    }

    async fn cut_older(&self, epoch: Epoch) {
        Downstream::cut_older(self, epoch).await;
    }

    fn status(&self) -> DownstreamStatus {
        Downstream::status(self)
    }

    fn watch(&self) -> watch::Receiver<Option<Epoch>> {
        Downstream::watch(self)
    }

    async fn stop(&self) {
        Downstream::stop(self).await;
    }
}

#[async_trait::async_trait]
impl PrimaryTunnels for Upstreams {
    fn admit(
        &self,
        database: DatabaseId,
        primary: ReplicaId,
        epoch: Epoch,
        sockets: PathBuf,
        allowed: BTreeSet<ReplicaId>,
    ) {
        Upstreams::admit(self, database, primary, epoch, sockets, allowed);
    }

    fn admit_rewinds(&self, database: DatabaseId, epoch: Epoch, rewinders: BTreeSet<ReplicaId>) {
        Upstreams::admit_rewinds(self, database, epoch, rewinders);
    }

    fn count(&self, database: DatabaseId, voters: &BTreeSet<ReplicaId>, k: usize, settled: bool) {
        Upstreams::count(self, database, voters, k, settled);
    }

    async fn cut_all(&self, database: DatabaseId) {
        Upstreams::cut_all(self, database).await;
    }

    fn flushes(&self, database: DatabaseId) -> BTreeMap<ReplicaId, Lsn> {
        Upstreams::flushes(self, database).into_iter().map(|(replica, flush)| (replica, flush.lsn)).collect()
    }

    async fn flushed(&self, database: DatabaseId, replica: ReplicaId, lsn: Lsn, limit: Duration) -> bool {
        Upstreams::flushed(self, database, replica, lsn, limit).await
    }
}
