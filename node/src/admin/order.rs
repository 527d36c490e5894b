//! One order of the admin language. Each stands in its own file under `orders/` with its syntax, its help, its
//! columns and what it does.

use super::answer::{Answer, Column};
use super::context::AdminContext;
use super::error::AdminError;
use quorate_model::{Applied, Command, OperationId, PartitionMap};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a report waits to be as new as the leader's map before it shows what this node has.
pub const FRESH_LIMIT: Duration = Duration::from_secs(2);
/// Notices that may wait to be sent to one client.
pub const NOTICE_QUEUE: usize = 16;

#[async_trait::async_trait]
pub trait Order: Debug + Send + Sync {
    /// Columns of the rows it answers with; none, when it answers with a tag only.
    fn columns(&self) -> &'static [Column];
    async fn run(&self, session: &Session) -> Result<Answer, AdminError>;
}

/// Told to the client while an order runs, or beside its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub severity: &'static str,
    pub code: &'static str,
    pub message: String,
    pub hint: Option<String>,
}

/// What an order sees of the connection that gave it.
pub struct Session {
    pub context: Arc<dyn AdminContext>,
    pub user: String,
    pub notices: mpsc::Sender<Notice>,
}

impl Session {
    /// The map, as new as the leader's when there is one; older with a warning otherwise.
    pub async fn fresh_map(&self) -> Arc<PartitionMap> {
        let caught_up = tokio::time::timeout(FRESH_LIMIT, self.context.read_barrier()).await;
        if !matches!(caught_up, Ok(Ok(()))) {
            let node = self.context.node();
            self.tell(Notice {
                severity: "WARNING",
                code: "01000",
                message: format!("no leader could be asked; this is what {node} knew last"),
                hint: None,
            })
            .await;
        }
        self.context.map()
    }

    /// Has the map changed, and logs who asked for what. `what` never holds a secret.
    pub async fn propose(&self, what: &str, command: Command) -> Result<Applied, AdminError> {
        let result = self.context.propose(command).await.map_err(AdminError::from);
        match &result {
            Ok(_) => tracing::info!(user = %self.user, order = %what, "admin order carried out"),
            Err(e) => {
                tracing::info!(user = %self.user, order = %what, code = e.code, reason = %e.message, "admin order refused");
            }
        }
        result
    }

    /// The same for an order that begins an operation: with a key, it begins at most one.
    pub async fn propose_once(
        &self,
        what: &str,
        key: Option<&String>,
        command: Command,
    ) -> Result<Applied, AdminError> {
        let command = match key {
            Some(key) => Command::Keyed { key: key.clone(), command: Box::new(command) },
            None => command,
        };
        self.propose(what, command).await
    }

    pub async fn notice(&self, message: String) {
        self.tell(Notice { severity: "NOTICE", code: "00000", message, hint: None }).await;
    }

    async fn tell(&self, notice: Notice) {
        // Fails only when the connection that gave the order is gone.
        let _ = self.notices.send(notice).await;
    }

    /// The answer to an order that began an operation: its id, and how to wait for it.
    pub async fn begun(&self, tag: &'static str, applied: Applied) -> Result<Answer, AdminError> {
        let Applied::Operation { id, .. } = applied else {
            return Err(AdminError::new("XX000", format!("the map answered {tag} with {applied:?}")));
        };
        self.notice(format!("operation {id} has begun; WAIT OPERATION {id} follows it to its end")).await;
        Ok(operation_answer(tag, id))
    }
}

/// Columns of every order that begins an operation.
pub const OPERATION_COLUMNS: &[Column] = &[super::answer::text("operation")];

fn operation_answer(tag: &'static str, id: OperationId) -> Answer {
    Answer::Rows { tag, columns: OPERATION_COLUMNS, rows: vec![vec![id.to_string().into()]] }
}
