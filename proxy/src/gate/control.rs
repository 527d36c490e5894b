//! What the gate itself asks of its Postgres: verifiers, what a backend waits for, and barriers.
//!
//! Two connections, made when they are needed and again when the gate's generation changes: a barrier waits
//! for the quorum, and logins must not wait behind it. Each question has a deadline.

use crate::wire::egress::is_cancelled_wait_routine;
use serde::{Deserialize, Serialize};
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, NoTls};

/// Longest wait for the answer to a question.
const QUESTION_DEADLINE: Duration = Duration::from_secs(5);

/// What a login is checked against.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleRecord {
    /// `pg_authid.rolpassword`.
    pub password: Option<String>,
    /// `rolvaliduntil` is over.
    pub expired: bool,
}

impl std::fmt::Debug for RoleRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RoleRecord")
    }
}

/// The instance did not answer; the text is for the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(String);

impl From<tokio_postgres::Error> for NoAnswer {
    fn from(error: tokio_postgres::Error) -> Self {
        NoAnswer(error.to_string())
    }
}

#[derive(Debug, Default)]
pub struct Control {
    questions: Mutex<Option<Line>>,
    barriers: Mutex<Option<Line>>,
}

struct Line {
    generation: u64,
    client: Client,
    /// A commit on this connection did not wait for its quorum.
    cut_short: Arc<AtomicBool>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({})", self.generation)
    }
}

async fn connect(generation: u64, socket: &Path) -> Result<Line, NoAnswer> {
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(socket)
        .port(5432)
        .user("quorate")
        .dbname("postgres")
        .application_name("quorate gate")
        .options("-c search_path=pg_catalog -c synchronous_commit=on -c statement_timeout=0")
        .connect_timeout(QUESTION_DEADLINE);
    let (client, mut connection) = config.connect(NoTls).await?;
    let cut_short = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&cut_short);
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message
                && notice.routine().is_some_and(is_cancelled_wait_routine)
            {
                seen.store(true, Ordering::Release);
            }
        }
    });
    Ok(Line { generation, client, cut_short })
}

/// The connection of that generation, made anew if need be.
async fn line<'a>(
    held: &'a mut Option<Line>,
    generation: u64,
    socket: &Path,
) -> Result<&'a mut Line, NoAnswer> {
    if held.as_ref().is_some_and(|l| l.generation != generation || l.client.is_closed()) {
        *held = None;
    }
    match held {
        Some(line) => Ok(line),
        None => Ok(held.insert(connect(generation, socket).await?)),
    }
}

impl Control {
    async fn ask<T>(
        &self,
        generation: u64,
        socket: &Path,
        question: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, NoAnswer> {
        let asking = async {
            let mut held = self.questions.lock().await;
            let line = line(&mut held, generation, socket).await?;
            Ok(question(&line.client).await?)
        };
        match tokio::time::timeout(QUESTION_DEADLINE, asking).await {
            Ok(answer) => answer,
            Err(_) => {
                // Whoever comes next does not wait behind an answer that may never come.
                if let Ok(mut held) = self.questions.try_lock() {
                    *held = None;
                }
                Err(NoAnswer("no answer in time".to_owned()))
            }
        }
    }

    /// The record of a login role, if there is one.
    pub async fn role(
        &self,
        generation: u64,
        socket: &Path,
        role: &str,
    ) -> Result<Option<RoleRecord>, NoAnswer> {
        const SQL: &str =
            "SELECT rolpassword, coalesce(rolvaliduntil < now(), false) FROM pg_authid WHERE rolname = $1";
        self.ask(generation, socket, async |client| {
            let rows = client.query_typed(SQL, &[(&role, Type::TEXT)]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            Ok(Some(RoleRecord { password: row.try_get(0)?, expired: row.try_get(1)? }))
        })
        .await
    }

    /// Whether a backend waits for the quorum of its commit.
    pub async fn waits_for_quorum(&self, generation: u64, socket: &Path, pid: i32) -> Result<bool, NoAnswer> {
        const SQL: &str = "SELECT 1 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
        self.ask(generation, socket, async |client| {
            Ok(!client.query_typed(SQL, &[(&pid, Type::INT4)]).await?.is_empty())
        })
        .await
    }

    /// Writes something and waits for its quorum; then all that was written before is on one too.
    pub async fn barrier(&self, generation: u64, socket: &Path, limit: Duration) -> bool {
        let passing = async {
            let mut held = self.barriers.lock().await;
            let line = line(&mut held, generation, socket).await?;
            line.cut_short.store(false, Ordering::Release);
            line.client.batch_execute("SELECT pg_logical_emit_message(true, 'quorate', 'barrier')").await?;
            Ok::<bool, NoAnswer>(!line.cut_short.load(Ordering::Acquire))
        };
        match tokio::time::timeout(limit, passing).await {
            Ok(Ok(passed)) => passed,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a barrier failed");
                false
            }
            Err(_) => {
                if let Ok(mut held) = self.barriers.try_lock() {
                    *held = None;
                }
                tracing::warn!(limit_ms = limit.as_millis() as u64, "a barrier did not pass in time");
                false
            }
        }
    }
}
