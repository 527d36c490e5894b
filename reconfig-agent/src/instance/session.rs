//! The daemon's own connections to an instance: over its private socket, as the superuser, with a pinned search
//! path. Simple queries with text results: one round trip, no catalog look-ups, and statements are ours alone.

use super::error::InstanceError;
use super::settings::{MAINTENANCE_DATABASE, SUPERUSER};
use futures::future::poll_fn;
use quorate_model::Lsn;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, SimpleQueryMessage};

/// Quick statements end on the server too when their caller has given up.
const STATEMENT_TIMEOUT_MS: u32 = 5_000;
/// Connections kept for the next quick statement; more are opened and closed when several run at once.
const KEPT_SESSIONS: usize = 2;

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Short statements with the server's own deadline.
    Quick,
    /// Statements that wait for others. No timeout of the server: one that strikes in the wait for a quorum makes
    /// it report success.
    Patient,
    /// Before a quorum exists.
    Local,
}

impl Purpose {
    fn options(self) -> String {
        let rest = match self {
            Purpose::Quick => format!("-c statement_timeout={STATEMENT_TIMEOUT_MS}"),
            Purpose::Patient => "-c statement_timeout=0 -c lock_timeout=0".to_owned(),
            Purpose::Local => "-c statement_timeout=0 -c synchronous_commit=local".to_owned(),
        };
        format!(
            "-c search_path=pg_catalog -c idle_in_transaction_session_timeout=0 \
             -c default_transaction_read_only=off {rest}"
        )
    }
}

/// One connection. Dropping it closes the socket; a statement that waits goes on waiting on the server.
pub struct Session {
    client: Client,
    warnings: Arc<Mutex<Vec<String>>>,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    pub async fn open(sockets: &Path, purpose: Purpose) -> Result<Session, InstanceError> {
        Session::open_as(SUPERUSER, "quorate", sockets, purpose).await
    }

    pub async fn open_as(
        user: &str,
        application: &str,
        sockets: &Path,
        purpose: Purpose,
    ) -> Result<Session, InstanceError> {
        const WHAT: &str = "connecting to the instance";
        let (client, mut connection) = Config::new()
            .host_path(sockets)
            .port(5432)
            .user(user)
            .dbname(MAINTENANCE_DATABASE)
            .application_name(application)
            .options(purpose.options())
            .connect(NoTls)
            .await
            .map_err(|e| InstanceError::sql(WHAT, &e))?;
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let heard = warnings.clone();
        // A notice is handed over before the answer that follows it, so whoever has the answer sees it.
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notice(notice) = message
                    && !matches!(notice.severity(), "NOTICE" | "INFO" | "LOG" | "DEBUG")
                {
                    lock(&heard).push(notice.message().to_owned());
                }
            }
        });
        Ok(Session { client, warnings, driver })
    }

    /// Runs statements and returns the rows of all of them.
    pub async fn rows(&self, what: &'static str, sql: &str) -> Result<Vec<Row>, InstanceError> {
        let messages = self.client.simple_query(sql).await.map_err(|e| InstanceError::sql(what, &e))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let values = (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect();
                Some(Row { what, values })
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    pub async fn row(&self, what: &'static str, sql: &str) -> Result<Row, InstanceError> {
        let mut rows = self.rows(what, sql).await?;
        rows.pop().ok_or_else(|| InstanceError::Protocol { what, detail: "no row".to_owned() })
    }

    /// Hands a secret over as a parameter, so that no log of statements on either side shows it.
    pub async fn set_secret(&self, name: &str, value: &str) -> Result<(), InstanceError> {
        use tokio_postgres::types::Type;
        self.client
            .query_typed(
                "SELECT pg_catalog.set_config($1, $2, false)",
                &[(&name, Type::TEXT), (&value, Type::TEXT)],
            )
            .await
            .map(|_| ())
            .map_err(|e| InstanceError::sql("handing over a secret", &e))
    }

    /// Warnings heard since the last call.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.warnings))
    }

    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }
}

/// A row of text values.
pub struct Row {
    what: &'static str,
    values: Vec<Option<String>>,
}

impl Row {
    pub fn text(&self, column: usize) -> Option<&str> {
        self.values.get(column)?.as_deref()
    }

    /// A value that may be null.
    pub fn maybe<T: std::str::FromStr>(&self, column: usize) -> Result<Option<T>, InstanceError> {
        let Some(text) = self.text(column) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.unexpected(column))
    }

    pub fn get<T: std::str::FromStr>(&self, column: usize) -> Result<T, InstanceError> {
        self.maybe(column)?.ok_or_else(|| self.unexpected(column))
    }

    pub fn lsn(&self, column: usize) -> Result<Lsn, InstanceError> {
        self.get(column)
    }

    pub fn is_true(&self, column: usize) -> Result<bool, InstanceError> {
        match self.text(column) {
            Some("t") => Ok(true),
            Some("f") => Ok(false),
            _ => Err(self.unexpected(column)),
        }
    }

    fn unexpected(&self, column: usize) -> InstanceError {
        let detail = format!("column {column} is {:?}", self.text(column));
        InstanceError::Protocol { what: self.what, detail }
    }
}

/// Connections kept for quick statements. A statement never waits for another one's connection: when all are
/// busy it gets a fresh one, so that nothing slow is in the way of a fence.
pub struct Sessions {
    sockets: PathBuf,
    idle: Mutex<Vec<Session>>,
    /// Opened ahead, each for the next who asks for a fresh one of its purpose.
    ahead: Mutex<Vec<(Purpose, Session)>>,
}

impl Sessions {
    pub fn new(sockets: PathBuf) -> Sessions {
        Sessions { sockets, idle: Mutex::default(), ahead: Mutex::default() }
    }

    pub fn clear(&self) {
        let dropped = (std::mem::take(&mut *lock(&self.idle)), std::mem::take(&mut *lock(&self.ahead)));
        drop(dropped);
    }

    /// Opens a session that will be needed soon, while there is something else to wait for. A session that cannot be
    /// opened now is opened when it is needed.
    pub async fn open_ahead(&self, purpose: Purpose) {
        if lock(&self.ahead).iter().any(|(known, _)| *known == purpose) {
            return;
        }
        if let Ok(session) = Session::open(&self.sockets, purpose).await {
            lock(&self.ahead).push((purpose, session));
        }
    }

    fn opened_ahead(&self, purpose: Purpose) -> Option<Session> {
        let mut ahead = lock(&self.ahead);
        let at = ahead.iter().position(|(known, _)| *known == purpose)?;
        Some(ahead.swap_remove(at).1).filter(|session| !session.is_closed())
    }

    /// A session that nobody used before.
    pub async fn fresh(&self, purpose: Purpose, deadline: Duration) -> Result<Session, InstanceError> {
        if let Some(session) = self.opened_ahead(purpose) {
            return Ok(session);
        }
        within("connecting to the instance", deadline, Session::open(&self.sockets, purpose)).await
    }

    /// A kept connection, or a new one. Give it back with [`Sessions::keep`] when it is in order.
    pub async fn quick(&self, deadline: Duration) -> Result<Session, InstanceError> {
        loop {
            let kept = lock(&self.idle).pop();
            match kept {
                Some(session) if session.is_closed() => continue,
                Some(session) => return Ok(session),
                None => return self.fresh(Purpose::Quick, deadline).await,
            }
        }
    }

    pub fn keep(&self, session: Session) {
        let mut idle = lock(&self.idle);
        if idle.len() < KEPT_SESSIONS && !session.is_closed() {
            idle.push(session);
        }
    }

    /// One quick statement on a kept connection.
    pub async fn rows(
        &self,
        what: &'static str,
        sql: &str,
        deadline: Duration,
    ) -> Result<Vec<Row>, InstanceError> {
        let session = self.quick(deadline).await?;
        let rows = within(what, deadline, session.rows(what, sql)).await?;
        self.keep(session);
        Ok(rows)
    }

    pub async fn row(&self, what: &'static str, sql: &str, deadline: Duration) -> Result<Row, InstanceError> {
        let mut rows = self.rows(what, sql, deadline).await?;
        rows.pop().ok_or_else(|| InstanceError::Protocol { what, detail: "no row".to_owned() })
    }
}

/// Bounds a step in time.
pub async fn within<T>(
    what: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, InstanceError>>,
) -> Result<T, InstanceError> {
    match tokio::time::timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(InstanceError::Timeout { what, after: deadline }),
    }
}

/// No code panics while it holds one of these locks; a poisoned one is used on.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn quote_literal(text: &str) -> String {
    let escape = if text.contains('\\') { " E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
