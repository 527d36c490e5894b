//! The position of a replica (R8): the highest epoch row in its log, and the end of its valid log.
//!
//! For a standby the end is where a promotion would go on: after the last whole record, replayed. It is exact only
//! once three things are true, and they are waited for in this order:
//!
//! 1. no walreceiver is left: it flushes what it had received when its stream ends, and then goes;
//! 2. replay has been to the end of the local log once since the start, which is when it first asks for a stream
//!    (`pg_last_wal_receive_lsn()` is null before);
//! 3. replay has passed every whole record. A stream may end inside a record: then what follows the last replayed
//!    record is judged by its length (see [`super::wal`]).
//!
//! The caller has cut the tunnel before, and keeps it cut: otherwise the answer is only a moment's.

use super::error::InstanceError;
use super::files::blocking;
use super::session::{Row, Session, within};
use super::wal::{self, Segments, Tail};
use super::{Inner, Instance, identify};
use quorate_model::{Epoch, Lsn, Position, Timeline};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A fence waits for this answer; one that takes longer is asked for again.
pub const POSITION_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);
/// Replay that is behind for this many looks may be asleep until its next attempt to stream
/// (`wal_retrieve_retry_interval`): a reload, which changes nothing, wakes it.
const WAKE_AFTER_LOOKS: u32 = 8;
const WHAT: &str = "finding the end of the log";

/// In the order in which the values are needed: a receiver that is gone has flushed before. `waiting` is a
/// receiver that came to the end of a timeline, and flushed there.
const LOOK: &str = "SELECT pg_is_in_recovery(), \
     EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status NOT IN ('waiting', 'stopped')), \
     pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()";

/// The name under which the epoch row is written; see [`super::commit`].
pub const EPOCH_WRITER: &str = "quorate_epoch";

pub const EPOCH_ROW: &str = "SELECT data_loss, primary_epoch, config FROM quorate.epoch";

impl Instance {
    /// Where this replica's log ends. Of a standby: call it with the tunnel cut.
    pub async fn position(&self) -> Result<Position, InstanceError> {
        within(WHAT, POSITION_DEADLINE, self.inner.position()).await
    }
}

/// What one look at a standby shows.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// It is attached, or has not read its own log to the end, or replay is behind.
    NotYet,
    /// Everything that was received is replayed.
    End(Lsn),
    /// Received bytes follow the last replayed record.
    More { replay: Lsn, receive: Lsn },
}

fn judge(detached: bool, receive: Option<Lsn>, replay: Option<Lsn>) -> Look {
    match (detached, receive, replay) {
        (true, Some(receive), Some(replay)) if replay >= receive => Look::End(replay),
        (true, Some(receive), Some(replay)) => Look::More { replay, receive },
        _ => Look::NotYet,
    }
}

impl Inner {
    pub(super) async fn position(self: &Arc<Self>) -> Result<Position, InstanceError> {
        let session = self.answering().await?;
        let first = session.row(WHAT, LOOK).await?;
        let position = if first.is_true(0)? {
            self.standby_position(&session, !first.is_true(1)?).await?
        } else {
            self.primary_position(&session).await?
        };
        self.sessions.keep(session);
        Ok(position)
    }

    /// A connection, as soon as the instance takes one.
    async fn answering(&self) -> Result<Session, InstanceError> {
        loop {
            if !self.process.borrow().is_live() {
                return Err(InstanceError::NotRunning);
            }
            match self.sessions.quick(POSITION_DEADLINE).await {
                Err(e) if e.is_not_ready() || matches!(e, InstanceError::Lost { .. }) => {
                    tokio::time::sleep(POLL).await;
                }
                other => return other,
            }
        }
    }

    async fn standby_position(
        self: &Arc<Self>,
        session: &Session,
        detached: bool,
    ) -> Result<Position, InstanceError> {
        let lsn = self.end_of_log(session, detached).await?;
        let (epoch, timeline) = tokio::join!(session.row(WHAT, EPOCH_ROW), self.replayed_timeline());
        Ok(Position { epoch: epoch_of(&epoch?, 0)?, lsn, timeline: timeline? })
    }

    /// The positions are taken from a look after the one that saw the receiver gone.
    async fn end_of_log(&self, session: &Session, mut detached: bool) -> Result<Lsn, InstanceError> {
        for look in 0u32.. {
            if look == WAKE_AFTER_LOOKS {
                self.reload();
            }
            let row = session.row(WHAT, LOOK).await?;
            let was_detached = detached;
            detached = !row.is_true(1)?;
            match judge(was_detached && detached, row.maybe(2)?, row.maybe(3)?) {
                Look::End(lsn) => return Ok(lsn),
                Look::More { replay, receive } if self.is_last(replay, receive).await? => {
                    return Ok(replay);
                }
                // Nothing to wait for: the next look counts.
                Look::NotYet if detached && !was_detached => continue,
                Look::More { .. } | Look::NotYet => tokio::time::sleep(POLL).await,
            }
        }
        Err(InstanceError::Timeout { what: WHAT, after: POSITION_DEADLINE })
    }

    /// Whether replay cannot pass what follows the last replayed record.
    async fn is_last(&self, replay: Lsn, receive: Lsn) -> Result<bool, InstanceError> {
        let pg_wal = self.paths.data.join("pg_wal");
        match blocking(WHAT, move || tail(&pg_wal, replay, receive)).await? {
            Tail::Whole { .. } => Ok(false),
            Tail::Partial => Ok(true),
            Tail::Invalid => {
                tracing::warn!(database = %self.database, replica = %self.replica, %replay, %receive, "no record follows the last replayed one");
                Ok(true)
            }
        }
    }

    /// The timeline of the last replayed record: at least the one that replay was seen on before, at most the
    /// highest that pg_wal knows. Where the two agree nobody is asked.
    ///
    /// After a promotion that did not reach its end, the timeline that it chose is in files, perhaps not yet in a
    /// record: then the highest is told, so that the replica counts as having left the history.
    pub async fn replayed_timeline(self: &Arc<Self>) -> Result<Timeline, InstanceError> {
        let pg_wal = self.paths.data.join("pg_wal");
        let promoting = self.paths.promoting.clone();
        let (highest, mid_promotion) =
            blocking(WHAT, move || Ok((highest_timeline(&pg_wal)?, promoting.exists()))).await?;
        if mid_promotion || self.timeline.seen() == highest {
            return Ok(highest);
        }
        let exact = identify::timeline(&self.paths.sockets).await?;
        self.timeline.see(exact);
        Ok(exact)
    }

    /// The log's end first, then the epoch: so every row up to that end is seen. The row is committed without
    /// waiting for a quorum and visible as soon as it is in the log, but for the moment in which its writer holds
    /// `epoch_writer`, or runs on after its caller gave up.
    async fn primary_position(&self, session: &Session) -> Result<Position, InstanceError> {
        const END: &str = "SELECT pg_current_wal_flush_lsn(), pg_walfile_name(pg_current_wal_flush_lsn())";
        let writing = format!(
            "SELECT EXISTS (SELECT FROM pg_stat_activity \
                 WHERE application_name = '{EPOCH_WRITER}' AND state = 'active')"
        );
        let _no_writer = self.epoch_writer.lock().await;
        let end = session.row(WHAT, END).await?;
        while session.row(WHAT, &writing).await?.is_true(0)? {
            tokio::time::sleep(POLL).await;
        }
        let epoch = epoch_of(&session.row(WHAT, EPOCH_ROW).await?, 0)?;
        Ok(Position { epoch, lsn: end.lsn(0)?, timeline: timeline_of(&end, 1)? })
    }
}

/// The epoch in three columns.
pub fn epoch_of(row: &Row, first: usize) -> Result<Epoch, InstanceError> {
    Ok(Epoch::new(row.get(first)?, row.get(first + 1)?, row.get(first + 2)?))
}

/// The timeline in the name of a segment file.
pub fn timeline_of(row: &Row, column: usize) -> Result<Timeline, InstanceError> {
    row.text(column).and_then(wal::timeline_of_file).ok_or_else(|| InstanceError::Protocol {
        what: WHAT,
        detail: format!("{:?} is no segment file", row.text(column)),
    })
}

/// Judges what follows the last replayed record. Blocking.
fn tail(pg_wal: &Path, replay: Lsn, receive: Lsn) -> Result<Tail, InstanceError> {
    let segments = segments(pg_wal)?;
    // Received bytes are in the file of the newest timeline that has this segment.
    let start = segments.skip_header(replay);
    let segment = segments.name(Timeline(0), start).split_off(8);
    let newest = newest(pg_wal, |name| name.len() == 24 && name.ends_with(&segment))?;
    Ok(segments.tail(replay, receive, |at| {
        let name = segments.name(newest?, at);
        let file = std::fs::File::open(pg_wal.join(name)).ok()?;
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, segments.offset(at)).ok()?;
        Some(u32::from_le_bytes(bytes))
    }))
}

/// How the log in `pg_wal` is divided. Blocking.
pub fn segments(pg_wal: &Path) -> Result<Segments, InstanceError> {
    let entries = std::fs::read_dir(pg_wal).map_err(InstanceError::file("listing", pg_wal))?;
    let is_segment = |name: &str| name.len() == 24 && wal::timeline_of_file(name).is_some();
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_segment))
        .find_map(|entry| Segments::of(entry.metadata().ok()?.len()))
        .ok_or_else(|| InstanceError::Protocol { what: WHAT, detail: "pg_wal holds no segment".to_owned() })
}

/// The highest timeline that a segment or a history file bears. Blocking.
fn highest_timeline(pg_wal: &Path) -> Result<Timeline, InstanceError> {
    newest(pg_wal, |_| true)?
        .ok_or_else(|| InstanceError::Protocol { what: WHAT, detail: "pg_wal holds no segment".to_owned() })
}

fn newest(pg_wal: &Path, counts: impl Fn(&str) -> bool) -> Result<Option<Timeline>, InstanceError> {
    let entries = std::fs::read_dir(pg_wal).map_err(InstanceError::file("listing", pg_wal))?;
    let timeline = |name: &str| wal::timeline_of_file(name).filter(|_| counts(name));
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(timeline)).max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_before_the_log_was_read_to_its_end() {
        assert_eq!(judge(true, None, Some(Lsn(100))), Look::NotYet);
        assert_eq!(judge(false, Some(Lsn(90)), Some(Lsn(100))), Look::NotYet);
        assert_eq!(judge(true, Some(Lsn(90)), Some(Lsn(100))), Look::End(Lsn(100)));
        assert_eq!(
            judge(true, Some(Lsn(110)), Some(Lsn(100))),
            Look::More { replay: Lsn(100), receive: Lsn(110) }
        );
    }
}
