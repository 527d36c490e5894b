//! Making a primary of a standby.
//!
//! The server chooses the timeline, leaves the history at the end of what it replayed, and logs that it did. A
//! crash between the choice and the log entry leaves a timeline in files that no record bears: the mark
//! `promoting` stands beside the data from before the order until the end is known.
//!
//! A new primary hands out the transaction ids anew that its log does not know. So before the promotion it is noted which
//! is the first id that the log does not know as ended (the *horizon*), and the epoch row bears it: whoever asks later what
//! became of an id of the former primary can tell it from the same number of the new one. Looked up after the promotion it
//! could be too high, because whatever writes first (autovacuum) would have been given some.

use super::error::InstanceError;
use super::files::{self, Durability, blocking};
use super::position::timeline_of;
use super::session::{Purpose, Row, lock, within};
use super::{Inner, Instance, wal};
use quorate_model::{Epoch, Lsn, Timeline};
use std::sync::Arc;
use std::time::Duration;

/// Ending recovery copies one segment and flushes it; storage that is slow for this long is not fit for a primary.
pub const PROMOTE_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);
/// The log has been replayed to its end when a replica is elected, so this is known at once.
const HORIZON_DEADLINE: Duration = Duration::from_millis(200);
const WHAT: &str = "promoting";
const QUICK: Duration = Duration::from_secs(5);

/// What a promotion made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promoted {
    pub timeline: Timeline,
    /// The timelines before, oldest first, each with the position at which it was left.
    pub history: Vec<(Timeline, Lsn)>,
    /// The epoch rows that the log holds, oldest first, each with the timeline that it is on; of very many the latest.
    pub rows: Vec<(Epoch, Timeline)>,
    /// Where `timeline` left the one before: the start of this lineage entry.
    pub lsn: Lsn,
}

impl Instance {
    /// Ends recovery and returns when the instance takes writes. The sync names are set before (R6). A primary
    /// already is fine: it tells what its promotion made.
    pub async fn promote(&self) -> Result<Promoted, InstanceError> {
        within(WHAT, PROMOTE_DEADLINE, self.inner.promote()).await
    }
}

impl Inner {
    async fn promote(self: &Arc<Self>) -> Result<Promoted, InstanceError> {
        if self.is_in_recovery(QUICK).await? {
            let mark = self.paths.promoting.clone();
            blocking(WHAT, move || files::replace(&mark, "", Durability::Durable, None)).await?;
            let horizon = self.find_horizon().await;
            *lock(&self.horizon) = horizon;
            self.sessions.rows(WHAT, "SELECT pg_promote(false)", QUICK).await?;
            let promoted = async {
                while self.is_in_recovery(QUICK).await? {
                    tokio::time::sleep(POLL).await;
                }
                Ok::<_, InstanceError>(())
            };
            // What the epoch row and the barrier behind it will be written in.
            let ahead = async {
                self.sessions.open_ahead(Purpose::Local).await;
                self.sessions.open_ahead(Purpose::Patient).await;
            };
            tokio::join!(promoted, ahead).0?;
        }
        // The record that names the timeline was flushed before recovery ended.
        self.promotion_is_logged().await?;
        self.read_history().await
    }

    /// The first transaction id that the log, replayed to its end, does not know as ended. None: it cannot be told, and
    /// then nobody is told of a transaction that was lost here; a promotion does not wait for that.
    async fn find_horizon(self: &Arc<Self>) -> Option<i64> {
        let finding = async {
            self.position().await?;
            const HORIZON: &str = "SELECT pg_snapshot_xmax(pg_current_snapshot()), pg_is_in_recovery()";
            let row = self.sessions.row(WHAT, HORIZON, QUICK).await?;
            Ok::<_, InstanceError>(if row.is_true(1)? { Some(row.get(0)?) } else { None })
        };
        within(WHAT, HORIZON_DEADLINE, finding).await.unwrap_or_else(|error| {
            tracing::warn!(replica = %self.replica, %error, "the end of transaction ids could not be found");
            None
        })
    }

    pub async fn promotion_is_logged(&self) -> Result<(), InstanceError> {
        let mark = self.paths.promoting.clone();
        blocking(WHAT, move || files::remove(&mark)).await
    }

    async fn read_history(&self) -> Result<Promoted, InstanceError> {
        const CURRENT: &str = "SELECT pg_walfile_name(pg_current_wal_lsn()), \
            data_loss, primary_epoch, timeline FROM quorate.reigns ORDER BY data_loss, primary_epoch";
        let found = self.sessions.rows(WHAT, CURRENT, QUICK).await?;
        let first = found
            .first()
            .ok_or_else(|| InstanceError::Protocol { what: WHAT, detail: "no reign has a row".to_owned() })?;
        let timeline = timeline_of(first, 0)?;
        let reign = |row: &Row| Ok((Epoch::new(row.get(1)?, row.get(2)?, 0), Timeline(row.get(3)?)));
        let rows = found.iter().map(reign).collect::<Result<_, InstanceError>>()?;
        if timeline == Timeline(1) {
            return Ok(Promoted { timeline, history: Vec::new(), rows, lsn: Lsn(0) });
        }
        let path = self.paths.data.join("pg_wal").join(wal::history_name(timeline));
        let text = blocking(WHAT, move || {
            std::fs::read_to_string(&path).map_err(InstanceError::file("reading", &path))
        })
        .await?;
        let history = wal::parse_history(&text).filter(|history| !history.is_empty());
        let history = history.ok_or_else(|| InstanceError::Protocol {
            what: WHAT,
            detail: "the history file is not one".to_owned(),
        })?;
        let lsn = history.last().map(|(_, left_at)| *left_at).unwrap_or_default();
        Ok(Promoted { timeline, history, rows, lsn })
    }
}
