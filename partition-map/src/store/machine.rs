//! Applies what is committed, shows it to this node, and keeps snapshots.
//!
//! The state itself is not written: a restarted node has its last snapshot and the committed log behind it.

use super::disk::{Change, StoredSnapshot};
use super::writer::Writer;
use crate::state::MapState;
use crate::types::{Entry, LogId, Membership, Outcomes, StorageError, Types};
use openraft::storage::RaftStateMachine;
use openraft::{
    EmptyNode, EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageIOError,
};
use quorate_model::{NodeId, PartitionMap};
use std::io::Cursor;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};

/// What the rest of the node sees.
#[derive(Clone)]
pub(crate) struct Views {
    pub(crate) map: watch::Receiver<Arc<PartitionMap>>,
    /// The map is at least this new.
    pub(crate) applied: watch::Receiver<Option<LogId>>,
}

type Current = Arc<Mutex<Option<StoredSnapshot>>>;

pub(crate) struct Machine {
    state: MapState,
    current: Current,
    writer: Writer,
    node: NodeId,
    map: watch::Sender<Arc<PartitionMap>>,
    applied: watch::Sender<Option<LogId>>,
}

impl Machine {
    pub(crate) fn new(
        writer: Writer,
        state: MapState,
        snapshot: Option<StoredSnapshot>,
        node: NodeId,
    ) -> (Machine, Views) {
        let (map, map_view) = watch::channel(state.map.clone());
        let (applied, applied_view) = watch::channel(state.last_applied);
        let current = Arc::new(Mutex::new(snapshot));
        let machine = Machine { state, current, writer, node, map, applied };
        (machine, Views { map: map_view, applied: applied_view })
    }

    /// The map first, so that who waits for an index finds the map that goes with it.
    fn show(&self) {
        if !Arc::ptr_eq(&self.map.borrow(), &self.state.map) {
            self.map.send_replace(self.state.map.clone());
        }
        self.applied.send_replace(self.state.last_applied);
    }

    fn apply_one(&mut self, entry: Entry) -> Outcomes {
        self.state.last_applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Outcomes::default(),
            EntryPayload::Membership(membership) => {
                self.state.membership = Membership::new(Some(entry.log_id), membership);
                Outcomes::default()
            }
            EntryPayload::Normal(proposals) => {
                Outcomes(proposals.0.into_iter().map(|proposal| self.state.apply(proposal)).collect())
            }
        }
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        Ok((self.state.last_applied, self.state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let outcomes = entries.into_iter().map(|entry| self.apply_one(entry)).collect();
        self.show();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.state.clone(),
            current: self.current.clone(),
            writer: self.writer.clone(),
            node: self.node,
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, EmptyNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = snapshot.into_inner();
        let state = MapState::decode(&data).map_err(|reason| {
            StorageIOError::read_snapshot(Some(meta.signature()), &std::io::Error::other(reason))
        })?;
        let stored = StoredSnapshot { meta: meta.clone(), data: Arc::new(data) };
        keep(&self.writer, &self.current, stored).await?;
        self.state = state;
        // What the snapshot says of itself holds, as Raft counts by it.
        self.state.last_applied = meta.last_log_id;
        self.state.membership = meta.last_membership.clone();
        self.show();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError> {
        Ok(self.current.lock().await.as_ref().map(readable))
    }
}

/// Makes a snapshot of the state as it was when this was made.
pub(crate) struct Builder {
    state: MapState,
    current: Current,
    writer: Writer,
    node: NodeId,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError> {
        let data = self.state.encode().map_err(|e| StorageIOError::write_snapshot(None, &e))?;
        let at = self.state.last_applied.map_or(0, |id| id.index);
        let meta = SnapshotMeta {
            last_log_id: self.state.last_applied,
            last_membership: self.state.membership.clone(),
            snapshot_id: format!("{}-{at}", self.node),
        };
        let stored = StoredSnapshot { meta, data: Arc::new(data) };
        let snapshot = readable(&stored);
        keep(&self.writer, &self.current, stored).await?;
        Ok(snapshot)
    }
}

fn readable(stored: &StoredSnapshot) -> Snapshot<Types> {
    Snapshot { meta: stored.meta.clone(), snapshot: Box::new(Cursor::new(stored.data.to_vec())) }
}

/// Makes a snapshot durable, unless there is a newer one: building one and receiving one may overlap, and the
/// log may have been purged up to the newer one.
async fn keep(writer: &Writer, current: &Current, stored: StoredSnapshot) -> Result<(), StorageError> {
    let mut current = current.lock().await;
    if current.as_ref().is_some_and(|c| c.meta.last_log_id > stored.meta.last_log_id) {
        return Ok(());
    }
    let signature = stored.meta.signature();
    let written = writer.write(Change::Snapshot(stored.clone())).await;
    written.map_err(|e| StorageIOError::write_snapshot(Some(signature), &e))?;
    *current = Some(stored);
    Ok(())
}
