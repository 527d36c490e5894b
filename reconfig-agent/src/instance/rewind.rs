//! Making a divergent copy one of the primary again, without copying what both have: pg_rewind, run once.
//!
//! What PostgreSQL does to a rewind that is not careful, and what is done about it:
//!
//! * pg_rewind takes the source's timeline from its control file, which a promotion leaves behind: the source writes a
//!   checkpoint first ([`Instance::prepare_source`]), and the target checks that it did;
//! * a target that was not shut down cleanly is refused: it is recovered in single-user mode, which refuses a
//!   `standby.signal`, so that goes first;
//! * interrupted, it leaves a directory that nobody can use: `rewinding` is there from before the first change until
//!   the instance has answered, and whoever finds it trusts nothing ([`Instance::distrust`]);
//! * it overwrites the configuration, and keeps the daemon's signal files or not: both are made anew;
//! * where it sees no divergence it does nothing and calls that success: here it is a failure.

use super::error::InstanceError;
use super::files::{self, Durability, blocking};
use super::lifecycle::{Role, START_DEADLINE};
use super::position::timeline_of;
use super::session::{Purpose, Session, lock, within};
use super::settings::{MAINTENANCE_DATABASE, conninfo_value};
use super::{Inner, Instance, StopMode, process, spawn, tool};
use crate::tunnel::REWIND_USER;
use quorate_model::Timeline;
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use rustix::process::Signal;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const WHAT: &str = "the rewind";
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const SOURCE_DEADLINE: Duration = Duration::from_secs(10);
const ROLE_DEADLINE: Duration = Duration::from_secs(10);
/// Replaying what a crash left, in single-user mode.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(300);
/// A rewind copies what changed since the fork; one that takes longer than this is no better than a copy.
const REWIND_DEADLINE: Duration = Duration::from_secs(3600);
/// As pg_rewind calls itself: the tunnel lets nothing else of its kind through.
const APPLICATION: &str = "pg_rewind";

impl Instance {
    /// On a primary: makes it fit to be the source of a rewind. Its role is there, and its control file bears its
    /// timeline.
    pub async fn prepare_source(&self) -> Result<(), InstanceError> {
        within("preparing the source", ROLE_DEADLINE, self.inner.ensure_role()).await?;
        self.checkpoint().await?;
        let session = self.inner.sessions.fresh(Purpose::Quick, SOURCE_DEADLINE).await?;
        within(WHAT, SOURCE_DEADLINE, check_source(&session)).await
    }

    /// Rewinds this instance to the primary behind the socket in `source_dir`, and leaves it stopped, as a standby. After
    /// an error [`Instance::distrust`] tells whether the data was touched. Dropped in the middle, it was.
    pub async fn rewind(&self, source_dir: &Path) -> Result<(), InstanceError> {
        let _only_one = self.inner.lifecycle.lock().await;
        if !self.is_complete() {
            return Err(InstanceError::Incomplete);
        }
        if let Some(reason) = self.distrust() {
            return Err(InstanceError::Distrusted(reason));
        }
        process::stop(&self.inner, StopMode::Fast, STOP_DEADLINE).await?;
        let open = Session::open_as(REWIND_USER, APPLICATION, source_dir, Purpose::Quick);
        let source = within(WHAT, SOURCE_DEADLINE, async { check_source(&open.await?).await }).await;
        source.map_err(|e| match e {
            InstanceError::SourceNotReady(_) => e,
            other => InstanceError::SourceNotReady(other.to_string()),
        })?;

        let (paths, rewinding) = (self.inner.paths.clone(), self.inner.paths.rewinding.clone());
        blocking(WHAT, move || {
            super::orphan::clear(&paths)?;
            files::replace(&rewinding, "", Durability::Durable, None)?;
            files::remove(&paths.data.join("standby.signal"))?;
            files::remove(&paths.data.join("recovery.signal"))
        })
        .await?;
        self.inner.recover_alone().await?;
        self.inner.run_rewind(source_dir).await?;

        *lock(&self.inner.sync_names) = SENTINEL_SYNC_NAMES.to_owned();
        self.inner.prepare(Role::Standby).await?;
        let paths = self.inner.paths.clone();
        blocking(WHAT, move || {
            // Whatever it was promoted to is gone from its log.
            files::remove(&paths.promoting)?;
            files::sync_file_system(&paths.data)
        })
        .await
    }

    /// Starts an instance that [`Instance::rewind`] left, streaming as far as it must to be consistent: the tunnel is
    /// attached. From here on it is trusted again.
    pub async fn finish_rewind(&self) -> Result<(), InstanceError> {
        let _only_one = self.inner.lifecycle.lock().await;
        process::launch(&self.inner).await?;
        self.inner.wait_until_answering(START_DEADLINE).await?;
        let paths = self.inner.paths.clone();
        blocking(WHAT, move || {
            std::fs::rename(&paths.rewinding, &paths.rewound)
                .map_err(InstanceError::file("renaming", &paths.rewinding))?;
            files::sync_parent(&paths.rewound)
        })
        .await
    }

    /// Whether it was rewound and is not known to be past its floor: a second rewind would be no better.
    pub fn was_rewound(&self) -> bool {
        self.inner.paths.rewound.exists()
    }

    /// It is past its floor.
    pub async fn forget_rewind(&self) -> Result<(), InstanceError> {
        let rewound = self.inner.paths.rewound.clone();
        blocking(WHAT, move || files::remove(&rewound)).await
    }
}

impl Inner {
    async fn ensure_role(&self) -> Result<(), InstanceError> {
        // Local: nothing that is acknowledged depends on it, and a rewind waits for no quorum.
        make_role(&self.sessions.fresh(Purpose::Local, ROLE_DEADLINE).await?).await
    }

    /// Brings a data directory that was not shut down cleanly to the end of its log.
    async fn recover_alone(self: &Arc<Self>) -> Result<(), InstanceError> {
        let control = self.paths.data.join("global/pg_control");
        if blocking(WHAT, move || is_shut_down(&control)).await? {
            return Ok(());
        }
        let mut command = spawn::command(&self.pg.bin("postgres"), &self.user, Signal::KILL);
        // Commands come from the standard input, which is empty.
        command.arg("--single").arg("-D").arg(&self.paths.data).arg(MAINTENANCE_DATABASE);
        tool::run("postgres --single", command, RECOVERY_DEADLINE, |_| ()).await
    }

    async fn run_rewind(&self, source_dir: &Path) -> Result<(), InstanceError> {
        const NOTHING_DONE: &str = "no rewind required";
        let source = format!(
            "host={} port=5432 user={REWIND_USER} dbname={MAINTENANCE_DATABASE} \
             application_name={APPLICATION} sslmode=disable gssencmode=disable",
            conninfo_value(&source_dir.to_string_lossy()),
        );
        let mut command = spawn::command(&self.pg.bin("pg_rewind"), &self.user, Signal::KILL);
        command.arg("-D").arg(&self.paths.data).arg(format!("--source-server={source}"));
        // It was recovered above, and is flushed once before it is started.
        command.args(["--no-ensure-shutdown", "--no-sync"]);
        let mut said = String::new();
        tool::run("pg_rewind", command, REWIND_DEADLINE, |text| said.push_str(text)).await?;
        if said.contains(NOTHING_DONE) {
            return Err(InstanceError::NotRewound(NOTHING_DONE.to_owned()));
        }
        tracing::info!(database = %self.database, replica = %self.replica, "rewound");
        Ok(())
    }
}

/// The role by which other replicas rewind, with the rights that the documentation of pg_rewind lists. Without a
/// password: nobody can be authenticated as it, and only the tunnel and the daemon reach the socket.
pub async fn make_role(session: &Session) -> Result<(), InstanceError> {
    let make = format!(
        "DO $do$ BEGIN
             IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{REWIND_USER}') THEN RETURN; END IF;
             CREATE ROLE {REWIND_USER} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
             GRANT CONNECT ON DATABASE {MAINTENANCE_DATABASE} TO {REWIND_USER};
             GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean),
                 pg_read_binary_file(text), pg_read_binary_file(text, bigint, bigint, boolean)
                 TO {REWIND_USER};
         END $do$"
    );
    session.rows("making the role of rewinds", &make).await.map(|_| ())
}

/// Asks whoever is behind a session whether a rewind from there would see its timeline.
async fn check_source(session: &Session) -> Result<(), InstanceError> {
    const TIMELINES: &str = "SELECT (SELECT timeline_id FROM pg_control_checkpoint()), \
        pg_walfile_name(pg_current_wal_lsn())";
    let row = session.row(WHAT, TIMELINES).await?;
    let (checkpoint, present) = (Timeline(row.get(0)?), timeline_of(&row, 1)?);
    if checkpoint == present {
        return Ok(());
    }
    let detail = format!("its checkpoint is on timeline {checkpoint} and its log on {present}");
    Err(InstanceError::SourceNotReady(detail))
}

/// Whether a server of this data directory ended in order. The state is the fifth word of the control file since 9.0
/// (`src/include/catalog/pg_control.h`: system_identifier u64, two versions u32, state). Blocking.
fn is_shut_down(control: &Path) -> Result<bool, InstanceError> {
    const STATE_AT: u64 = 16;
    const SHUT_DOWN: u32 = 1;
    const SHUT_DOWN_IN_RECOVERY: u32 = 2;
    let mut state = [0; 4];
    std::fs::File::open(control)
        .and_then(|file| file.read_exact_at(&mut state, STATE_AT))
        .map_err(InstanceError::file("reading", control))?;
    Ok(matches!(u32::from_le_bytes(state), SHUT_DOWN | SHUT_DOWN_IN_RECOVERY))
}
