//! What can go wrong with an instance, in words that an operator may read and a log may keep: no statement text,
//! no verifier, no row of a tenant.

use quorate_model::Epoch;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error(
        "the user {user} that runs PostgreSQL cannot enter {directory} (mode {mode:04o}); hint: give another directory, or allow it with chmod o+x"
    )]
    Blocked { user: String, directory: PathBuf, mode: u32 },

    #[error("{doing} {path}: {source}")]
    File { doing: &'static str, path: PathBuf, source: io::Error },

    #[error("starting {program}: {source}")]
    Spawn { program: String, source: io::Error },

    #[error("{program} failed ({status}): {message}")]
    Tool { program: &'static str, status: String, message: String },

    #[error("the data directory is not complete: it was never bootstrapped or seeded to its end")]
    Incomplete,

    #[error("the data cannot be trusted: {0}")]
    Distrusted(String),

    /// Nothing was touched yet: it can be tried again.
    #[error("the primary cannot be the source of a rewind yet: {0}")]
    SourceNotReady(String),

    #[error("the rewind was no use: {0}")]
    NotRewound(String),

    #[error("the data directory is complete already and is not overwritten")]
    AlreadyComplete,

    #[error("the instance runs as a primary and is not started again")]
    AlreadyRunning,

    #[error("the instance does not run")]
    NotRunning,

    #[error("PostgreSQL ended while it was starting: {0}")]
    Exited(String),

    #[error("{what} took longer than {} ms", after.as_millis())]
    Timeout { what: &'static str, after: Duration },

    #[error("{what}: {message} (SQLSTATE {sqlstate})")]
    Sql { what: &'static str, sqlstate: String, message: String },

    #[error("{what}: the connection to the instance was lost")]
    Lost { what: &'static str },

    #[error("{what}: unexpected answer: {detail}")]
    Protocol { what: &'static str, detail: String },

    /// The commit may have happened without its quorum; nobody may be told that it is safe.
    #[error("{what} was not acknowledged for certain: {detail}")]
    Doubt { what: &'static str, detail: String },

    #[error("the epoch row is at {found} and does not go back to {wanted}")]
    EpochWentBack { found: Epoch, wanted: Epoch },

    #[error("{0:?} is not a quorum of named standbys (expected ANY k (name, ...))")]
    BadSyncNames(String),

    #[error("{kind} {name:?} is reserved")]
    Reserved { kind: &'static str, name: String },

    #[error("processes of an earlier postmaster still hold the data directory: {pids:?}")]
    Leftovers { pids: Vec<i32> },
}

impl InstanceError {
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstanceError {
        let path = path.to_owned();
        move |source| InstanceError::File { doing, path, source }
    }

    /// From the driver. The server's primary message is kept, its detail, context and statement are not.
    pub(super) fn sql(what: &'static str, error: &tokio_postgres::Error) -> InstanceError {
        match error.as_db_error() {
            Some(db) => InstanceError::Sql {
                what,
                sqlstate: db.code().code().to_owned(),
                message: db.message().to_owned(),
            },
            None => InstanceError::Lost { what },
        }
    }

    /// The server answered, if only to refuse.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self, InstanceError::Sql { .. })
    }

    /// Refused because it starts or stops (57P03).
    pub(super) fn is_not_ready(&self) -> bool {
        matches!(self, InstanceError::Sql { sqlstate, .. } if sqlstate == "57P03")
    }
}
