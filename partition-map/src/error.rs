//! How starting the map, or asking it, can fail.

use quorate_model::Refusal;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Config(String),
    #[error("the map's log {path}: {reason}")]
    Storage { path: PathBuf, reason: String },
    #[error("starting Raft: {0}")]
    Raft(String),
}

/// Why a proposal has no outcome, or a barrier did not pass. Safe to show.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The map was asked and refused; nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody could be asked; nothing has changed.
    #[error("the partition map has no leader")]
    NoLeader,
    /// The command may still be carried out.
    #[error("no answer from the partition map within {0:?}")]
    Timeout(Duration),
    #[error("a command of {0} bytes is larger than is allowed")]
    TooLarge(usize),
    /// This node's part of the map has stopped, by order or because its disk failed.
    #[error("this node's copy of the partition map has stopped")]
    Stopped,
}
