//! Commits that a quorum holds.
//!
//! A commit waits for the standbys named in `synchronous_standby_names`. PostgreSQL ends that wait early when the
//! statement is cancelled or the session terminated, and then reports success with a warning. So: no timeout of
//! the server runs in these sessions, any warning is an error, and what `pg_stat_replication` says has to agree.
//!
//! The epoch row is committed in two steps. First the row, locally: so that it is visible here as soon as it is in
//! the log, and the position of this replica never hides an epoch that its log holds. Then a message in a
//! transaction that waits: the quorum that acknowledges it holds everything before it, the row too.

use super::error::InstanceError;
use super::files::blocking;
use super::position::{EPOCH_ROW, EPOCH_WRITER, epoch_of};
use super::session::{Purpose, Session, lock, within};
use super::sync_names::SyncNames;
use super::{Inner, Instance};
use quorate_model::{Epoch, Lsn};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const SYNC_NAMES_DEADLINE: Duration = Duration::from_secs(5);
const RELOAD_POLL: Duration = Duration::from_millis(1);
const TERMINATE_DEADLINE: Duration = Duration::from_secs(5);
/// Epoch rows that are kept. They grow by one a reign, and all of them go with every order to attach. A copy that missed
/// more reigns than that is rebuilt instead of told apart.
pub(super) const MAX_REIGNS: usize = 512;
const BARRIER: &str = "the barrier";
const EPOCH: &str = "the epoch row";

/// A session that waits for a quorum: found again by this name when its caller gave up.
const WAITER: &str = "quorate_barrier";

impl Instance {
    /// Changes `synchronous_standby_names`; returns when sessions that begin from now on obey it. Sessions and
    /// walsenders that exist obey it in their own time (R2).
    pub async fn set_sync_names(&self, names: &str) -> Result<(), InstanceError> {
        SyncNames::parse(names)?;
        within("setting the sync names", SYNC_NAMES_DEADLINE, self.inner.set_sync_names(names)).await
    }

    /// Writes the epoch row and passes a barrier behind it: what lets a gate open (I6). Returns a position that the
    /// quorum holds and that the row is before. The row never goes back; writing the same epoch again is fine.
    pub async fn write_epoch(
        &self,
        epoch: Epoch,
        uuid: Uuid,
        deadline: Duration,
    ) -> Result<Lsn, InstanceError> {
        within(EPOCH, deadline, async {
            self.inner.promotion_is_logged_if_primary().await?;
            let waiter = Waiter::open(&self.inner, deadline);
            let row = self.inner.write_epoch_row(epoch, uuid, deadline);
            let (waiter, row) = tokio::join!(waiter, row);
            row?;
            waiter?.pass(EPOCH).await
        })
        .await
    }

    /// Writes the epoch row without a quorum: before anybody follows, or on a primary whose every commit waits because
    /// nobody does. Returns how far its log is flushed.
    pub async fn write_epoch_alone(
        &self,
        epoch: Epoch,
        uuid: Uuid,
        deadline: Duration,
    ) -> Result<Lsn, InstanceError> {
        within(EPOCH, deadline, async {
            self.inner.promotion_is_logged_if_primary().await?;
            self.inner.write_epoch_row(epoch, uuid, deadline).await?;
            let row = self.inner.sessions.row(EPOCH, "SELECT pg_current_wal_flush_lsn()", deadline).await?;
            row.lsn(0)
        })
        .await
    }

    /// Returns a position that the quorum holds: every commit that returned before this call is before it.
    pub async fn barrier(&self, deadline: Duration) -> Result<Lsn, InstanceError> {
        within(BARRIER, deadline, async { Waiter::open(&self.inner, deadline).await?.pass(BARRIER).await })
            .await
    }
}

impl Inner {
    async fn set_sync_names(self: &Arc<Self>, names: &str) -> Result<(), InstanceError> {
        const WHAT: &str = "setting the sync names";
        let _in_order = self.reconfiguring.lock().await;
        let Some(pid) = self.process.borrow().pid() else { return Err(InstanceError::NotRunning) };
        let in_force = (pid, names.to_owned());
        if lock(&self.sync_names_in_force).as_ref() == Some(&in_force) {
            return Ok(());
        }
        let (inner, wanted) = (self.clone(), names.to_owned());
        *lock(&self.sync_names_in_force) = None;
        *lock(&self.sync_names) = names.to_owned();
        blocking(WHAT, move || inner.settings(&wanted).write_daemon_file(&inner.user)).await?;
        self.reload();
        // The postmaster reads its configuration before it tells its children to: what a session that was there before
        // shows, a new one has.
        let session = self.sessions.quick(SYNC_NAMES_DEADLINE).await?;
        while session.row(WHAT, "SHOW synchronous_standby_names").await?.text(0) != Some(names) {
            tokio::time::sleep(RELOAD_POLL).await;
        }
        self.sessions.keep(session);
        *lock(&self.sync_names_in_force) = Some(in_force);
        Ok(())
    }

    /// A promotion whose caller gave up may have ended well since.
    async fn promotion_is_logged_if_primary(&self) -> Result<(), InstanceError> {
        if self.paths.promoting.exists() && !self.is_in_recovery(TERMINATE_DEADLINE).await? {
            self.promotion_is_logged().await?;
        }
        Ok(())
    }

    async fn write_epoch_row(
        &self,
        epoch: Epoch,
        uuid: Uuid,
        deadline: Duration,
    ) -> Result<(), InstanceError> {
        let known = self.sessions.row(EPOCH, EPOCH_ROW, deadline).await?;
        if epoch_of(&known, 0)? == epoch {
            return Ok(());
        }
        let Epoch { data_loss, primary, config } = epoch;
        // The row as it is now, and for good that this reign wrote it, on which timeline. The first row of a timeline
        // tells where transaction ids were handed out anew (see `super::promote`).
        let horizon = lock(&self.horizon).map_or(-1, |horizon| horizon);
        let update = format!(
            "WITH now AS ( \
                 UPDATE quorate.epoch SET data_loss = {data_loss}, primary_epoch = {primary}, \
                     config = {config}, uuid = '{uuid}' \
                 WHERE (data_loss, primary_epoch, config) <= ({data_loss}, {primary}, {config}) \
                 RETURNING the_row \
             ), ever AS ( \
                 INSERT INTO quorate.reigns \
                 SELECT {data_loss}, {primary}, line, CASE \
                     WHEN EXISTS (SELECT FROM quorate.reigns WHERE timeline = line) THEN NULL \
                     ELSE {horizon} END \
                 FROM now, CAST(('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32) AS int8) line \
                 ON CONFLICT DO NOTHING \
             ), old AS ( \
                 DELETE FROM quorate.reigns WHERE (data_loss, primary_epoch) < ( \
                     SELECT data_loss, primary_epoch FROM quorate.reigns \
                     ORDER BY data_loss DESC, primary_epoch DESC OFFSET {MAX_REIGNS} - 1 LIMIT 1) \
             ) SELECT the_row FROM now"
        );
        let _only_writer = self.epoch_writer.lock().await;
        let session = self.sessions.fresh(Purpose::Local, deadline).await?;
        session.rows(EPOCH, &format!("SET application_name = {EPOCH_WRITER}")).await?;
        if !session.rows(EPOCH, &update).await?.is_empty() {
            return Ok(());
        }
        let found = epoch_of(&session.row(EPOCH, EPOCH_ROW).await?, 0)?;
        Err(InstanceError::EpochWentBack { found, wanted: epoch })
    }
}

/// A session for one commit that waits. When the caller gives up, its backend would wait on until some quorum
/// answers, and hold a connection that long: it is ended instead. Nobody is told that such a commit succeeded.
struct Waiter {
    inner: Arc<Inner>,
    session: Session,
    backend: u32,
    waiting: bool,
}

impl Waiter {
    async fn open(inner: &Arc<Inner>, deadline: Duration) -> Result<Waiter, InstanceError> {
        let session = inner.sessions.fresh(Purpose::Patient, deadline).await?;
        let name = format!("SET application_name = {WAITER}; SELECT pg_backend_pid()");
        let backend = session.row(BARRIER, &name).await?.get(0)?;
        Ok(Waiter { inner: inner.clone(), session, backend, waiting: false })
    }

    async fn pass(mut self, what: &'static str) -> Result<Lsn, InstanceError> {
        const COMMIT: &str = "BEGIN; SET LOCAL synchronous_commit = on; \
            SELECT pg_logical_emit_message(true, 'quorate', 'barrier'); COMMIT";
        let names = SyncNames::parse(&lock(&self.inner.sync_names).clone())?;
        self.waiting = true;
        let outcome = self.session.row(what, COMMIT).await;
        self.waiting = false;
        // The end of the message, which is before the end of its commit.
        let lsn = outcome?.lsn(0)?;
        if let Some(warning) = self.session.take_warnings().pop() {
            return Err(InstanceError::Doubt { what, detail: warning });
        }
        const FLUSHED: &str = "SELECT application_name, flush_lsn FROM pg_stat_replication \
            WHERE flush_lsn IS NOT NULL";
        let mut flushed = Vec::new();
        for row in self.session.rows(what, FLUSHED).await? {
            flushed.push((row.text(0).unwrap_or_default().to_owned(), row.lsn(1)?));
        }
        if !names.is_met(&flushed, lsn) {
            let detail = format!("too few of the named standbys say that they have {lsn}");
            return Err(InstanceError::Doubt { what, detail });
        }
        Ok(lsn)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.waiting {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (inner, backend) = (self.inner.clone(), self.backend);
        runtime.spawn(async move {
            let end = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE pid = {backend} AND application_name = '{WAITER}'"
            );
            // An instance that does not take this has ended, or will be.
            let _ = inner.sessions.rows("ending a barrier", &end, TERMINATE_DEADLINE).await;
        });
    }
}
