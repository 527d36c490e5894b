//! Waiting for a database to have an open primary: where it is now, whether it has moved, and for how long.

use super::shared::{Crowded, Held, Shared};
use crate::config::RETRY_PAUSE;
use crate::route::{Place, Target, phase_of, place};
use crate::wire::reply::ErrorReply;
use quorate_model::{DatabaseId, Epoch, NodeId, PartitionMap, ReplicaId, ServerId};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// A primary, as the map knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Primary {
    pub node: NodeId,
    pub replica: ReplicaId,
    pub epoch: Epoch,
}

/// Why something at the primary did not succeed.
#[derive(Clone, Debug)]
pub enum Attempt {
    /// It may elsewhere or later.
    Again(String),
    /// Never, and why.
    Refused(Denied),
}

/// The answer to somebody who gets no server.
#[derive(Clone, Debug)]
pub enum Denied {
    Ours(ErrorReply),
    /// Postgres's own words: an ErrorResponse that ended its session.
    Theirs(Vec<u8>),
}

impl Denied {
    /// The message for a client whose session ends with it.
    pub fn fatal(self) -> Vec<u8> {
        match self {
            Denied::Ours(reply) => ErrorReply { severity: "FATAL", ..reply }.bytes(),
            Denied::Theirs(bytes) => bytes,
        }
    }
}

impl From<ErrorReply> for Denied {
    fn from(reply: ErrorReply) -> Self {
        Denied::Ours(reply)
    }
}

pub struct Follow<'a> {
    shared: &'a Shared,
    map: watch::Receiver<Arc<PartitionMap>>,
    database: DatabaseId,
    server: ServerId,
    pub until: Instant,
    held: Option<Held<'a>>,
    /// Why the last attempt failed.
    why: String,
}

impl<'a> Follow<'a> {
    pub fn new(shared: &'a Shared, target: &Target, until: Instant) -> Self {
        let (database, server) = (target.database, target.server);
        Follow { shared, map: shared.map.clone(), database, server, until, held: None, why: String::new() }
    }

    fn look(&mut self) -> Place {
        place(&self.map.borrow_and_update(), self.database)
    }

    /// Waits until the map knows a primary.
    pub async fn primary(&mut self) -> Result<Primary, ErrorReply> {
        loop {
            match self.look() {
                Place::At { node, replica, epoch } => return Ok(Primary { node, replica, epoch }),
                Place::Gone => {
                    return Err(ErrorReply::fatal("3D000", "the database was dropped")
                        .hint("Connect to another database."));
                }
                Place::Nowhere(_) => {}
            }
            self.begin_hold()?;
            if !matches!(timeout_at(self.until, self.map.changed()).await, Ok(Ok(()))) {
                return Err(self.too_late());
            }
        }
    }

    /// Ends when the map no longer says that this is the primary, in this reign.
    pub async fn moved(&self, from: Primary) {
        let mut map = self.map.clone();
        loop {
            let same = match place(&map.borrow_and_update(), self.database) {
                Place::At { node, replica, epoch } => {
                    node == from.node && replica == from.replica && epoch.same_reign(from.epoch)
                }
                _ => false,
            };
            if !same || map.changed().await.is_err() {
                return;
            }
        }
    }

    /// Pauses before the next attempt.
    pub async fn again(&mut self, why: String) -> Result<(), ErrorReply> {
        self.why = why;
        self.begin_hold()?;
        if Instant::now() >= self.until {
            return Err(self.too_late());
        }
        let pause = (Instant::now() + RETRY_PAUSE).min(self.until);
        // A change of the map ends the pause early.
        let _ = timeout_at(pause, self.map.changed()).await;
        Ok(())
    }

    fn begin_hold(&mut self) -> Result<(), ErrorReply> {
        if self.held.is_none() {
            let held = self.shared.hold(self.server).map_err(|crowded| {
                let whose = match crowded {
                    Crowded::Node => "too many clients wait for their databases on this node",
                    Crowded::Server => {
                        "too many clients of this logical server wait for their databases on this node"
                    }
                };
                ErrorReply::error("53200", whose)
                    .hint("Retry the request after 10 seconds, or at another node.")
            })?;
            self.held = Some(held);
        }
        Ok(())
    }

    fn too_late(&self) -> ErrorReply {
        let phase = phase_of(&self.map.borrow(), self.database);
        let mut detail = format!("The database is {phase}");
        if !self.why.is_empty() {
            detail += &format!("; at the last attempt: {}", self.why);
        }
        let hint = match phase {
            "creating" => "Wait until CREATE DATABASE has ended, and connect again.",
            "quorum lost" => {
                "Too many of its replicas are lost; see SHOW REPLICAS on the admin port, and bring their nodes back."
            }
            _ => "Retry the request after 10 seconds; see SHOW DATABASES and SHOW EVENTS on the admin port.",
        };
        ErrorReply::error("57P03", "the database has no open primary now").detail(detail + ".").hint(hint)
    }
}
