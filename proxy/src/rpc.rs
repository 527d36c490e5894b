//! What proxies ask each other (`Service::Proxy`).

use crate::cancel::Cancels;
use crate::gate::Gates;
use crate::gate::control::RoleRecord;
use crate::gate::door::Passing;
use async_trait::async_trait;
use bytes::Bytes;
use quorate_model::{DatabaseId, NodeId};
use quorate_transport::{Fault, Handler, decode, encode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Question {
    /// What a login role of that database is checked against.
    Role { database: DatabaseId, role: String },
    /// A client asked another node to cancel a session that entered here.
    Cancel { pid: i32, secret: Vec<u8> },
    /// Cancel what a backend here is doing.
    CancelBackend { database: DatabaseId, pid: i32, secret: u32 },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Role(Option<RoleRecord>),
    /// The gate is not open here.
    NotOpen(String),
    Done,
}

pub struct ProxyService {
    pub gates: Arc<Gates>,
    pub cancels: Arc<Cancels>,
}

#[async_trait]
impl Handler for ProxyService {
    async fn call(&self, _from: NodeId, body: Bytes) -> Result<Bytes, Fault> {
        let reply = match decode(&body)? {
            Question::Role { database, role } => role_record(&self.gates, database, &role).await,
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
        };
        Ok(encode(&reply))
    }
}

/// Asks the database itself. The answer is a result as any other: it leaves under a lease or a confirmation only.
pub async fn role_record(gates: &Gates, database: DatabaseId, role: &str) -> Reply {
    let Some(gate) = gates.find(database) else {
        return Reply::NotOpen("there is no replica of this database here".to_owned());
    };
    let Passing { generation, socket, .. } = match gate.passing() {
        Ok(passing) => passing,
        Err(why) => return Reply::NotOpen(why.to_string()),
    };
    match gate.control.role(generation, &socket, role).await {
        Ok(record) if gate.vouches(generation, Instant::now()).await => Reply::Role(record),
        Ok(_) => Reply::NotOpen("nobody vouches for what the gate lets out".to_owned()),
        Err(error) => {
            tracing::info!(%database, %error, "the verifier of a login could not be read");
            Reply::NotOpen("the server does not answer".to_owned())
        }
    }
}
