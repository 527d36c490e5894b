//! What proxies ask each other (`Service::Proxy`).

use crate::cancel::Cancels;
use crate::config::FATE_BARRIER_DEADLINE;
use crate::gate::Gates;
use crate::gate::control::{Fate, RoleRecord};
use crate::gate::door::{Gate, Passing};
use async_trait::async_trait;
use bytes::Bytes;
use quorate_model::{DatabaseId, Epoch, NodeId};
use quorate_transport::{Fault, Handler, decode, encode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Question {
    /// What a login role of that database, which has this name in its instance, is checked against.
    Role { database: DatabaseId, role: String, name: String },
    /// A client asked another node to cancel a session that entered here.
    Cancel { pid: i32, secret: Vec<u8> },
    /// Cancel what a backend here is doing.
    CancelBackend { database: DatabaseId, pid: i32, secret: u32 },
    /// What became of a transaction that a primary of the reign of `since` was committing, asked of the primary of the
    /// reign of `epoch` or a later one.
    Fate { database: DatabaseId, epoch: Epoch, since: Epoch, id: u64 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Role(Option<RoleRecord>),
    /// The gate is not open here.
    NotOpen(String),
    Done,
    Fate(Fate),
}

pub struct ProxyService {
    pub gates: Arc<Gates>,
    pub cancels: Arc<Cancels>,
}

#[async_trait]
impl Handler for ProxyService {
    async fn call(&self, _from: NodeId, body: Bytes) -> Result<Bytes, Fault> {
        let reply = match decode(&body)? {
            Question::Cancel { pid, secret } => {
                self.cancels.cancel_here(pid, &secret).await;
                Reply::Done
            }
            Question::CancelBackend { database, pid, secret } => {
                if let Some(gate) = self.gates.find(database) {
                    gate.cancel(pid, secret).await;
                }
                Reply::Done
            }
            question => answer(&self.gates, question).await,
        };
        Ok(encode(&reply))
    }
}

/// What the primary of a database here says. The answer is a result as any other: it leaves under a lease or a
/// confirmation only.
pub async fn answer(gates: &Gates, question: Question) -> Reply {
    let database = match &question {
        Question::Role { database, .. } | Question::Fate { database, .. } => *database,
        Question::Cancel { .. } | Question::CancelBackend { .. } => return Reply::Done,
    };
    let Some(gate) = gates.find(database) else {
        return Reply::NotOpen("there is no replica of this database here".to_owned());
    };
    let passing = match gate.passing() {
        Ok(passing) => passing,
        Err(why) => return Reply::NotOpen(why.to_string()),
    };
    let generation = passing.generation;
    match ask(&gate, passing, question).await {
        Ok(reply) if gate.vouches(generation, Instant::now()).await => reply,
        Ok(_) => Reply::NotOpen("nobody vouches for what the gate lets out".to_owned()),
        Err(why) => Reply::NotOpen(why),
    }
}

async fn ask(gate: &Gate, passing: Passing, question: Question) -> Result<Reply, String> {
    let Passing { generation, epoch: open, socket } = passing;
    let silent = |error| {
        tracing::info!(database = %gate.database(), %error, "a primary did not answer its gate");
        "the server does not answer".to_owned()
    };
    match question {
        Question::Role { role, name, .. } => {
            gate.control.role(generation, &socket, &role, &name).await.map(Reply::Role).map_err(silent)
        }
        Question::Fate { epoch, .. } if open.reign() < epoch.reign() => {
            Err("the gate is open in an older epoch only".to_owned())
        }
        Question::Fate { since, id, .. } => {
            let fate = gate.control.fate(generation, &socket, since, id).await.map_err(silent)?;
            // Not after a promotion: what it found was on a quorum before the gate opened, and a barrier for each of
            // the many who ask then would have them wait for one another.
            if fate == Fate::CommittedHere
                && !gate.control.barrier(generation, &socket, FATE_BARRIER_DEADLINE).await
            {
                return Err("a barrier behind the transaction did not pass".to_owned());
            }
            Ok(Reply::Fate(fate))
        }
        Question::Cancel { .. } | Question::CancelBackend { .. } => Ok(Reply::Done),
    }
}
