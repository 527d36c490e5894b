//! One run of a postmaster: what is lost when it ends.

use super::disk::Disk;
use super::wal::{self, KEYS, Record, What};
use crate::oracle::Oracle;
use crate::scene::{Conditions, Plant};
use crate::trace;
use quorate_model::{DatabaseId, Epoch, Lsn, NodeId, ReplicaId, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A walsender takes a change of the sync names within this time.
const RELOAD_MS: u64 = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Standby,
    Primary,
    /// It takes nothing any more and lets its walsenders finish.
    Stopping,
}

/// `ANY k (names)`. The sentinel names nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncNames {
    pub k: usize,
    pub names: BTreeSet<ReplicaId>,
}

impl SyncNames {
    pub fn parse(text: &str) -> Option<SyncNames> {
        let (k, names) = text.strip_prefix("ANY ")?.split_once(" (")?;
        let names = names.strip_suffix(')')?.split(", ").filter_map(ReplicaId::from_standby_name).collect();
        Some(SyncNames { k: k.parse().ok()?, names })
    }
}

/// Why a statement brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoResult {
    /// Nothing was done.
    Refused,
    /// The server ended: what became of it is not known.
    Lost,
}

/// Where a commit stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub index: usize,
    pub serial: u64,
}

pub struct Server {
    pub node: NodeId,
    pub database: DatabaseId,
    pub replica: ReplicaId,
    pub disk: Disk,
    pub conditions: Arc<Conditions>,
    pub oracle: Arc<Oracle>,
    state: Mutex<State>,
    /// One flush at a time; those who come meanwhile share the next.
    flushing: tokio::sync::Mutex<()>,
    pub flushed: watch::Sender<usize>,
    released: watch::Sender<Lsn>,
    rows: [tokio::sync::Mutex<()>; KEYS],
    /// All its processes are stopped (SIGSTOP).
    pub frozen: watch::Sender<bool>,
    /// Cancelled at its end.
    pub ended: CancellationToken,
}

struct State {
    role: Role,
    names: SyncNames,
    senders: BTreeMap<u64, Sender>,
    visible: [Option<Placed>; KEYS],
}

struct Sender {
    replica: ReplicaId,
    flush: Lsn,
    /// The sync names as this walsender has them, and those it will take, and when.
    view: SyncNames,
    next: Option<(u64, SyncNames)>,
}

impl Server {
    pub fn new(
        (node, database, replica): (NodeId, DatabaseId, ReplicaId),
        disk: Disk,
        conditions: Arc<Conditions>,
        oracle: Arc<Oracle>,
    ) -> Arc<Server> {
        let flushed = disk.content().flushed;
        Arc::new(Server {
            node,
            database,
            replica,
            disk,
            conditions,
            oracle,
            state: Mutex::new(State {
                role: Role::Standby,
                names: SyncNames::default(),
                senders: BTreeMap::new(),
                visible: [None; KEYS],
            }),
            flushing: tokio::sync::Mutex::new(()),
            flushed: watch::Sender::new(flushed),
            released: watch::Sender::new(Lsn(0)),
            rows: Default::default(),
            frozen: watch::Sender::new(false),
            ended: CancellationToken::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn role(&self) -> Role {
        self.state().role
    }

    pub fn set_role(&self, role: Role) {
        self.state().role = role;
        if role == Role::Primary {
            self.see_everything();
        }
    }

    /// Recovery is over: whatever is in the log is visible, acknowledged or not.
    fn see_everything(&self) {
        let mut visible = [None; KEYS];
        for (index, record) in self.disk.content().records.iter().enumerate() {
            if let What::Commit { key } = record.what {
                visible[key] = Some(Placed { index, serial: record.serial });
            }
        }
        self.state().visible = visible;
    }

    pub fn is_over(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Adds a record; its number in the log. Nothing is written by a server that has ended.
    pub fn append(&self, what: What, serial: u64) -> Option<usize> {
        if self.is_over() {
            return None;
        }
        let mut content = self.disk.content();
        let timeline = content.timeline();
        content.records.push(Record { serial, timeline, what });
        Some(content.records.len() - 1)
    }

    /// Waits while it is stopped.
    pub async fn thawed(&self) -> Result<(), NoResult> {
        let mut frozen = self.frozen.subscribe();
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(NoResult::Lost),
            runs = frozen.wait_for(|frozen| !frozen) => runs.map(|_| ()).map_err(|_| NoResult::Lost),
        }
    }

    /// Returns when so many records are durable.
    pub async fn flush(&self, count: usize) -> Result<(), NoResult> {
        loop {
            if self.is_over() {
                return Err(NoResult::Lost);
            }
            if self.disk.content().flushed >= count {
                return Ok(());
            }
            let _alone = self.flushing.lock().await;
            let target = self.disk.content().records.len();
            if self.disk.content().flushed < count {
                let takes = self.conditions.fsync(self.node);
                if !takes.is_zero() {
                    tokio::time::sleep(takes).await;
                }
                self.thawed().await?;
                if self.is_over() {
                    return Err(NoResult::Lost);
                }
                let rows = {
                    let mut content = self.disk.content();
                    let from = content.flushed;
                    content.flushed = content.flushed.max(target);
                    wal::epoch_of(&content.records[from.min(target)..target])
                };
                if rows != Epoch::default() {
                    self.oracle.epoch_row_flushed(self.database, self.replica, rows);
                }
                self.flushed.send_replace(target);
            }
        }
    }

    pub fn set_names(&self, names: SyncNames) {
        let now = trace::now_ms();
        let mut state = self.state();
        state.names = names.clone();
        for sender in state.senders.values_mut() {
            let at = now + self.conditions.below(RELOAD_MS);
            sender.next = Some((at, names.clone()));
        }
    }

    pub fn begin_sender(&self, id: u64, replica: ReplicaId) {
        let mut state = self.state();
        let view = state.names.clone();
        state.senders.insert(id, Sender { replica, flush: Lsn(0), view, next: None });
    }

    pub fn end_sender(&self, id: u64) {
        self.state().senders.remove(&id);
    }

    /// A standby says that its log is durable up to there; whoever waited for that many goes on.
    pub fn acknowledged(&self, id: u64, flush: Lsn, reign: Epoch) {
        let now = trace::now_ms();
        let mut state = self.state();
        let Some(sender) = state.senders.get_mut(&id) else { return };
        sender.flush = sender.flush.max(flush);
        let (by, view) = {
            if let Some((_, names)) = sender.next.take_if(|(at, _)| *at <= now) {
                sender.view = names;
            }
            (sender.replica, sender.view.clone())
        };
        let anybody = self.conditions.plant == Some(Plant::CountsAnybody);
        if !anybody && !view.names.contains(&by) {
            return;
        }
        let counts = |s: &&Sender| anybody || s.view.names.contains(&s.replica);
        let mut flushes: Vec<Lsn> = state.senders.values().filter(counts).map(|s| s.flush).collect();
        flushes.sort_unstable_by(|a, b| b.cmp(a));
        let Some(&released) = view.k.checked_sub(1).and_then(|at| flushes.get(at)) else { return };
        drop(state);
        self.oracle.counted(self.database, self.replica, reign, by);
        self.released.send_if_modified(|now| {
            let further = released > *now;
            *now = released.max(*now);
            further
        });
    }

    /// Whether the walsenders say that enough of the named have that much.
    pub fn is_met(&self, lsn: Lsn) -> bool {
        let state = self.state();
        let met: BTreeSet<ReplicaId> = state
            .senders
            .values()
            .filter(|s| s.flush >= lsn && state.names.names.contains(&s.replica))
            .map(|s| s.replica)
            .collect();
        state.names.k >= 1 && met.len() >= state.names.k
    }

    /// How far each standby is known to be durable.
    pub fn flushes(&self) -> BTreeMap<ReplicaId, Lsn> {
        self.state().senders.values().map(|s| (s.replica, s.flush)).collect()
    }

    /// Whether every walsender's standby has that much: what a fast stop waits for.
    pub fn all_have(&self, lsn: Lsn) -> bool {
        self.state().senders.values().all(|s| s.flush >= lsn)
    }

    /// Waits for the quorum.
    pub async fn released(&self, lsn: Lsn) -> Result<(), NoResult> {
        let mut released = self.released.subscribe();
        tokio::select! {
            biased;
            () = self.ended.cancelled() => Err(NoResult::Lost),
            reached = released.wait_for(|now| *now >= lsn) => reached.map(|_| ()).map_err(|_| NoResult::Lost),
        }
    }

    /// A client's commit.
    pub async fn commit(&self, key: usize, serial: u64) -> Result<Placed, NoResult> {
        // The row stays locked until the commit is over.
        let _row = self.rows[key].lock().await;
        let index = {
            // Where no standby counts, sessions begin read-only.
            if self.role() != Role::Primary || self.state().names.names.is_empty() {
                return Err(NoResult::Refused);
            }
            self.append(What::Commit { key }, serial).ok_or(NoResult::Refused)?
        };
        self.flush(index + 1).await?;
        self.released(wal::end_of(index + 1)).await?;
        self.thawed().await?;
        let placed = Placed { index, serial };
        self.state().visible[key] = Some(placed);
        Ok(placed)
    }

    /// A client's read.
    pub fn read(&self, key: usize) -> Result<Option<Placed>, NoResult> {
        if self.is_over() || self.role() != Role::Primary {
            return Err(NoResult::Refused);
        }
        Ok(self.state().visible[key])
    }

    /// Takes a walsender's records. False when they do not fit the end of the log.
    pub fn receive(&self, from: usize, before: u64, records: &[Record], history: &[(Timeline, Lsn)]) -> bool {
        let mut content = self.disk.content();
        if self.is_over() || content.records.len() != from {
            return false;
        }
        let own = content.records.last().map_or(0, |r| r.serial);
        if own != before {
            self.oracle.garbage(self.database, self.replica, from, own, before);
        }
        if let Some(last) = records.last() {
            content.history = history.to_vec();
            content.highest = content.highest.max(last.timeline);
        }
        content.records.extend_from_slice(records);
        true
    }
}
