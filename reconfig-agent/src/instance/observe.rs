//! What an instance shows without being stopped for it, and its replication slots.

use super::error::InstanceError;
use super::position::{epoch_of, timeline_of};
use super::session::{Purpose, lock, quote_literal, within};
use super::{Inner, Instance};
use quorate_model::{Epoch, Lsn, ReplicaId, Timeline};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const QUICK: Duration = Duration::from_secs(2);
const SLOTS_DEADLINE: Duration = Duration::from_secs(10);
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(120);
/// Adding up the sizes of files costs a stat each.
const SIZE_MAX_AGE: Duration = Duration::from_secs(5);

/// How far an instance is. For reports, and for following a lag; the end of a log is [`Instance::position`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub in_recovery: bool,
    pub receive_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
    /// Of a primary its flush position, of a standby the farther of received and replayed.
    pub flush_lsn: Lsn,
    /// Of the last record written or replayed.
    pub timeline: Timeline,
    pub epoch: Epoch,
    /// Of the tenant's database; some seconds old, zero before it was first measured.
    pub size_bytes: u64,
}

/// A row of `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyRow {
    pub name: String,
    pub state: String,
    pub sync_state: String,
    pub flush_lsn: Option<Lsn>,
    pub replay_lsn: Option<Lsn>,
}

#[derive(Default)]
pub struct SizeCache(Mutex<Size>);

#[derive(Default)]
struct Size {
    bytes: u64,
    /// When it was last asked for, so that it is asked for once at a time.
    asked: Option<Instant>,
}

/// The highest timeline that replay was seen on since the start: it never goes back.
#[derive(Default)]
pub struct TimelineCache(Mutex<Timeline>);

impl TimelineCache {
    pub fn seen(&self) -> Timeline {
        *lock(&self.0)
    }

    pub fn see(&self, timeline: Timeline) {
        *lock(&self.0) = timeline;
    }

    pub fn clear(&self) {
        *lock(&self.0) = Timeline::default();
    }
}

impl Instance {
    /// One quick statement, most of the time.
    pub async fn progress(&self) -> Result<Progress, InstanceError> {
        within("looking at the progress", QUICK, self.inner.progress()).await
    }

    /// Who streams from here.
    pub async fn replication(&self) -> Result<Vec<StandbyRow>, InstanceError> {
        const WHAT: &str = "looking at the replication";
        const ROWS: &str = "SELECT application_name, state, sync_state, flush_lsn, replay_lsn \
            FROM pg_stat_replication ORDER BY application_name";
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        let rows = self.inner.sessions.rows(WHAT, ROWS, QUICK).await?;
        rows.iter()
            .map(|row| {
                Ok(StandbyRow {
                    name: text(row.text(0)),
                    state: text(row.text(1)),
                    sync_state: text(row.text(2)),
                    flush_lsn: row.maybe(3)?,
                    replay_lsn: row.maybe(4)?,
                })
            })
            .collect()
    }

    /// Makes the slots that are missing and drops those of replicas that are not named and not streaming. A slot
    /// made on a primary holds the log from now on; one on a standby, which may become primary any time, holds nothing
    /// before it is used. False: one that is not named is still in use (a walsender whose tunnel was cut ends a moment
    /// later), and is to be dropped another time.
    pub async fn ensure_slots(&self, names: &BTreeSet<String>) -> Result<bool, InstanceError> {
        within("arranging the slots", SLOTS_DEADLINE, self.inner.ensure_slots(names)).await
    }

    pub async fn checkpoint(&self) -> Result<(), InstanceError> {
        const WHAT: &str = "the checkpoint";
        let session = self.inner.sessions.fresh(Purpose::Patient, QUICK).await?;
        within(WHAT, CHECKPOINT_DEADLINE, session.rows(WHAT, "CHECKPOINT")).await.map(|_| ())
    }
}

impl Inner {
    async fn progress(self: &Arc<Self>) -> Result<Progress, InstanceError> {
        const WHAT: &str = "looking at the progress";
        const ROW: &str = "SELECT data_loss, primary_epoch, config, \
                pg_is_in_recovery(), pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), \
                CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END, \
                CASE WHEN pg_is_in_recovery() THEN NULL \
                     ELSE pg_walfile_name(pg_current_wal_flush_lsn()) END \
            FROM quorate.epoch";
        let row = self.sessions.row(WHAT, ROW, QUICK).await?;
        let in_recovery = row.is_true(3)?;
        let (receive_lsn, replay_lsn) = (row.maybe(4)?, row.maybe(5)?);
        let (flush_lsn, timeline) = if in_recovery {
            let farthest = receive_lsn.max(replay_lsn).unwrap_or_default();
            (farthest, self.replayed_timeline().await?)
        } else {
            (row.lsn(6)?, timeline_of(&row, 7)?)
        };
        Ok(Progress {
            in_recovery,
            receive_lsn,
            replay_lsn,
            flush_lsn,
            timeline,
            epoch: epoch_of(&row, 0)?,
            size_bytes: self.size(),
        })
    }

    /// The size as last measured; measures it again in the background when that is long ago.
    fn size(self: &Arc<Self>) -> u64 {
        let mut size = lock(&self.size.0);
        let now = Instant::now();
        let fresh = size.asked.is_some_and(|asked| now.duration_since(asked) < SIZE_MAX_AGE);
        if !fresh {
            size.asked = Some(now);
            let inner = self.clone();
            tokio::spawn(async move {
                if let Ok(bytes) = inner.measure_size().await {
                    lock(&inner.size.0).bytes = bytes;
                }
            });
        }
        size.bytes
    }

    async fn measure_size(&self) -> Result<u64, InstanceError> {
        const SIZE: &str = "SELECT coalesce(sum(pg_database_size(oid)), 0) FROM pg_database \
            WHERE datname NOT IN ('postgres', 'template0', 'template1')";
        self.sessions.row("measuring the size", SIZE, SIZE_MAX_AGE).await?.get(0)
    }

    async fn ensure_slots(&self, names: &BTreeSet<String>) -> Result<bool, InstanceError> {
        const WHAT: &str = "arranging the slots";
        const SLOTS: &str = "SELECT slot_name, active, restart_lsn IS NOT NULL \
            FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary";
        let found = self.sessions.rows(WHAT, SLOTS, SLOTS_DEADLINE).await?;
        let reserve = !self.is_in_recovery(SLOTS_DEADLINE).await?;
        let mut present = BTreeSet::new();
        let mut statements = Vec::new();
        let mut all_gone = true;
        for row in &found {
            let name = row.text(0).unwrap_or_default();
            let ours = ReplicaId::from_standby_name(name).is_some();
            // A former primary's would hold the log for ever: nobody streams from a standby.
            let holds_in_vain = !reserve && row.is_true(2)?;
            let is_spare = ours && (!names.contains(name) || holds_in_vain);
            let in_use = row.is_true(1)?;
            all_gone &= !(is_spare && in_use);
            if is_spare && !in_use {
                let name = quote_literal(name);
                statements.push(format!("SELECT pg_drop_replication_slot({name})"));
            } else {
                present.insert(name.to_owned());
            }
        }
        for name in names.difference(&present) {
            let name = quote_literal(name);
            statements.push(format!("SELECT pg_create_physical_replication_slot({name}, {reserve})"));
        }
        for statement in statements {
            self.sessions.rows(WHAT, &statement, SLOTS_DEADLINE).await?;
        }
        Ok(all_gone)
    }
}
