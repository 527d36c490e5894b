//! What the two ends of a tunnel say to each other before the first byte of Postgres.
//!
//! ```text
//! downstream → upstream   hello (with the opening of the stream)   Hello
//! upstream → downstream   one frame                                Answer
//! then, when accepted, bytes of the PostgreSQL protocol from the first message after the startup packet
//! ```
//! The upstream has already started the connection to its instance when it accepts, so an instance that cannot serve
//! yet is a refusal like any other, and the standby's connection survives it.

use quorate_model::{DatabaseId, Epoch, ReplicaId};
use serde::{Deserialize, Serialize};

/// The longest answer.
pub const ANSWER_LIMIT_BYTES: usize = 1024;

/// The longest text of a refusal.
pub const REASON_LIMIT_CHARS: usize = 200;

/// Who wants to replicate what from whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub database: DatabaseId,
    /// Who asks.
    pub replica: ReplicaId,
    /// Whom it takes for the primary.
    pub primary: ReplicaId,
    /// In which reign.
    pub epoch: Epoch,
    pub purpose: Purpose,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// The walreceiver of a standby. Its flushes are acknowledgements.
    Stream,
    /// A base backup, or the WAL that goes with it. It reports flushes of a directory that is not a replica yet,
    /// so they are never acknowledgements, and it bears a name that no synchronous set holds (I11).
    Copy,
    /// pg_rewind, which reads the primary's files by SQL. The one purpose that is no replication: it passes only while
    /// both ends were told of a rewind, and as a role that can do nothing else. Its data directory is none.
    Rewind,
}

impl Purpose {
    /// How pg_basebackup calls itself unless told otherwise.
    pub const COPY_APPLICATION: &str = "pg_basebackup";
    /// How a rewind calls itself.
    pub const REWIND_APPLICATION: &str = "pg_rewind";

    /// The name by which the primary knows the connection.
    pub fn application_name(self, replica: ReplicaId) -> String {
        match self {
            Purpose::Stream => replica.standby_name(),
            Purpose::Copy => format!("{}_copy", replica.standby_name()),
            Purpose::Rewind => format!("{}_rewind", replica.standby_name()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Accepted,
    Refused(Refusal),
}

/// Why a stream does not come about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("nothing is admitted to the database here")]
    NotAdmitted,
    #[error("the reign here is {0}")]
    WrongReign(Epoch),
    #[error("the primary here is {0}")]
    WrongPrimary(ReplicaId),
    #[error("the replica is not allowed to do this")]
    NotAllowed,
    #[error("the replica does not live on the node that asks")]
    WrongNode,
    #[error("the replica has too many streams")]
    TooMany,
    #[error("the hello could not be read")]
    BadHello,
    /// The instance does not take replication connections now.
    #[error("the primary's instance is not ready: {0}")]
    NotReady(String),
}

impl Refusal {
    pub fn not_ready(reason: impl std::fmt::Display) -> Refusal {
        Refusal::NotReady(reason.to_string().chars().take(REASON_LIMIT_CHARS).collect())
    }

    /// For metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Refusal::NotAdmitted => "not_admitted",
            Refusal::WrongReign(_) => "wrong_reign",
            Refusal::WrongPrimary(_) => "wrong_primary",
            Refusal::NotAllowed => "not_allowed",
            Refusal::WrongNode => "wrong_node",
            Refusal::TooMany => "too_many",
            Refusal::BadHello => "bad_hello",
            Refusal::NotReady(_) => "not_ready",
        }
    }
}
