//! What the gate itself asks of its Postgres: verifiers, what a backend waits for, and barriers.
//!
//! Two connections, made when they are needed and again when the gate's generation changes: a barrier waits
//! for the quorum, and logins must not wait behind it. Each question has a deadline.

use super::audit::{Finding, weakens};
use crate::wire::egress::is_cancelled_wait_routine;
use quorate_model::{Epoch, Lsn};
use serde::{Deserialize, Serialize};
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_postgres::types::{PgLsn, Type};
use tokio_postgres::{AsyncMessage, Client, NoTls};

/// Where questions are asked that every database of an instance answers alike. Tenants have nothing in it.
const MAINTENANCE_DATABASE: &str = "postgres";
/// Longest wait for the answer to a question.
const QUESTION_DEADLINE: Duration = Duration::from_secs(5);

/// What a login is checked against.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleRecord {
    /// `pg_authid.rolpassword`.
    pub password: Option<String>,
    /// `rolvaliduntil` is over.
    pub expired: bool,
    pub may_log_in: bool,
    /// To the database that was asked for.
    pub may_connect: bool,
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

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// And what was there when the gate opened holds it: it is on a quorum.
    Committed,
    /// By the present primary, which may not have waited for a quorum.
    CommittedHere,
    Aborted,
    /// Its backend has not ended.
    InProgress,
    /// Nobody can tell any more: too long ago, or in a reign of which the log knows nothing.
    Unknown,
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

async fn connect(generation: u64, socket: &Path, database: &str) -> Result<Line, NoAnswer> {
    let mut config = tokio_postgres::Config::new();
    config
        .host_path(socket)
        .port(5432)
        .user("quorate")
        .dbname(database)
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
        None => Ok(held.insert(connect(generation, socket, MAINTENANCE_DATABASE).await?)),
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
        database: &str,
    ) -> Result<Option<RoleRecord>, NoAnswer> {
        // A database that is not there is for Postgres to tell.
        const SQL: &str = "SELECT rolpassword, coalesce(rolvaliduntil < now(), false), rolcanlogin, \
            coalesce((SELECT has_database_privilege(r.oid, d.oid, 'CONNECT') FROM pg_database d WHERE datname = $2), true) \
            FROM pg_authid r WHERE rolname = $1";
        self.ask(generation, socket, async |client| {
            let rows = client.query_typed(SQL, &[(&role, Type::TEXT), (&database, Type::TEXT)]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let (password, expired) = (row.try_get(0)?, row.try_get(1)?);
            let (may_log_in, may_connect) = (row.try_get(2)?, row.try_get(3)?);
            Ok(Some(RoleRecord { password, expired, may_log_in, may_connect }))
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

    /// What became of a transaction that had its id from the primary of the reign of `since`, or of one after it.
    ///
    /// Ids are handed out anew after a promotion: one that had never been shipped is given to somebody else, whose fate
    /// `pg_xact_status` would tell. So each promotion records, before it begins, the first id that its log does not know
    /// as ended (`quorate.reigns.horizon`, see `instance::promote`); at or above it, nothing was committed.
    pub async fn fate(
        &self,
        generation: u64,
        socket: &Path,
        since: Epoch,
        id: u64,
    ) -> Result<Fate, NoAnswer> {
        const SQL: &str = "WITH later AS (SELECT horizon FROM quorate.reigns \
                WHERE (data_loss, primary_epoch) > ($1, $2) AND horizon IS NOT NULL) \
            SELECT CASE \
                WHEN NOT EXISTS (SELECT FROM quorate.reigns WHERE (data_loss, primary_epoch) = ($1, $2)) THEN NULL \
                WHEN (SELECT min(horizon) < 0 FROM later) THEN NULL \
                WHEN (SELECT min(horizon) <= $3 FROM later) THEN 'aborted' \
                ELSE pg_xact_status($3::text::xid8) END, EXISTS (SELECT FROM later)";
        let (data_loss, primary, id) = (since.data_loss as i64, since.primary as i64, id as i64);
        self.ask(generation, socket, async |client| {
            let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
                [(&data_loss, Type::INT8), (&primary, Type::INT8), (&id, Type::INT8)];
            let (told, promoted): (Option<String>, bool) = match client
                .query_typed_one(SQL, &parameters)
                .await
            {
                Ok(row) => (row.try_get(0)?, row.try_get(1)?),
                // A database of before horizons were recorded, or an id that nobody was ever given.
                Err(error) if error.code().is_some_and(|code| matches!(&code.code()[..2], "42" | "22")) => {
                    (None, false)
                }
                Err(error) => return Err(error),
            };
            Ok(match told.as_deref() {
                Some("committed") if promoted => Fate::Committed,
                Some("committed") => Fate::CommittedHere,
                Some("aborted") => Fate::Aborted,
                Some("in progress") => Fate::InProgress,
                _ => Fate::Unknown,
            })
        })
        .await
    }

    /// The end of the log as it is now, what is not flushed yet included.
    pub async fn end_of_log(&self, generation: u64, socket: &Path) -> Result<Lsn, NoAnswer> {
        const SQL: &str = "SELECT pg_current_wal_insert_lsn()";
        self.ask(generation, socket, async |client| {
            let end: PgLsn = client.query_typed_one(SQL, &[]).await?.try_get(0)?;
            Ok(Lsn(end.into()))
        })
        .await
    }

    /// Settings of roles, databases and functions that could weaken commits. On a connection of its own: functions
    /// are seen from inside their database only.
    pub async fn weakening_settings(&self, socket: &Path, name: &str) -> Result<Vec<Finding>, NoAnswer> {
        const OF_ROLES: &str = "SELECT concat_ws(' in ', 'role ' || quote_ident(r.rolname), \
            'database ' || quote_ident(d.datname)), s FROM pg_db_role_setting x \
            CROSS JOIN LATERAL unnest(x.setconfig) s \
            LEFT JOIN pg_roles r ON r.oid = x.setrole LEFT JOIN pg_database d ON d.oid = x.setdatabase";
        const OF_FUNCTIONS: &str = "SELECT 'function ' || p.oid::regprocedure::text, s \
            FROM pg_proc p CROSS JOIN LATERAL unnest(p.proconfig) s";
        let looking = async {
            let line = connect(0, socket, name).await?;
            let mut findings = Vec::new();
            for sql in [OF_ROLES, OF_FUNCTIONS] {
                for row in line.client.query_typed(sql, &[]).await? {
                    let (of, setting): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                    if weakens(&setting) {
                        findings.push(Finding { of, setting });
                    }
                }
            }
            Ok(findings)
        };
        tokio::time::timeout(QUESTION_DEADLINE, looking)
            .await
            .unwrap_or_else(|_| Err(NoAnswer("no answer in time".to_owned())))
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
