//! A client's session with a port: what it was told, in order, and how it ended.

use anyhow::Context;
use futures::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::DbError;
use tokio_postgres::{AsyncMessage, Client, Config, Error, NoTls, SimpleQueryMessage};

/// Notices kept for one session.
const MAX_NOTICES: usize = 1_000;
/// Longer than a client is held by default (30 s), so that "held" and "hung" can be told apart.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(45);

/// A port and who comes to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    /// Tried in turn with `port` until one takes writes: how clients follow a primary that nobody hides from them.
    pub others: Vec<u16>,
    pub user: String,
    pub password: String,
    pub database: String,
}

impl Endpoint {
    pub fn new(port: u16, user: &str, password: &str, database: &str) -> Self {
        Endpoint {
            host: "127.0.0.1".to_owned(),
            port,
            others: Vec::new(),
            user: user.to_owned(),
            password: password.to_owned(),
            database: database.to_owned(),
        }
    }

    pub fn url(&self) -> String {
        let Endpoint { host, port, user, password, database, .. } = self;
        format!("postgresql://{user}:{password}@{host}:{port}/{database}")
    }

    pub fn with_database(&self, database: &str) -> Self {
        Endpoint { database: database.to_owned(), ..self.clone() }
    }

    pub fn with_password(&self, password: &str) -> Self {
        Endpoint { password: password.to_owned(), ..self.clone() }
    }

    fn config(&self) -> Config {
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .user(&self.user)
            .password(&self.password)
            .dbname(&self.database);
        config.connect_timeout(CONNECT_LIMIT);
        if !self.others.is_empty() {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
            for port in &self.others {
                config.host(&self.host).port(*port);
            }
        }
        config
    }

    /// Starts a session. The error is the driver's own, so that a test can look at its SQLSTATE.
    pub async fn connect(&self) -> Result<Session, Error> {
        let (client, mut connection) = self.config().connect(NoTls).await?;
        let notices: Arc<Mutex<Vec<DbError>>> = Arc::default();
        let (end, ended) = watch::channel(None);
        let told = notices.clone();
        tokio::spawn(async move {
            let reason = loop {
                match poll_fn(|cx| connection.poll_message(cx)).await {
                    Some(Ok(AsyncMessage::Notice(notice))) => {
                        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                        if told.len() < MAX_NOTICES {
                            told.push(notice);
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break End::from(&error),
                    None => break End { code: None, text: "closed".to_owned() },
                }
            };
            let _ = end.send(Some(reason));
        });
        Ok(Session { client, notices, ended })
    }

    /// The same for a caller who has no use for the SQLSTATE.
    pub async fn session(&self) -> anyhow::Result<Session> {
        let limit = CONNECT_LIMIT + Duration::from_secs(5);
        let connected = tokio::time::timeout(limit, self.connect()).await;
        connected
            .with_context(|| format!("no answer from port {} within {limit:?}", self.port))?
            .map_err(|error| anyhow::anyhow!("port {}: {}", self.port, tell(&error)))
    }
}

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The SQLSTATE of the last word, when there was one.
    pub code: Option<String>,
    pub text: String,
}

impl From<&Error> for End {
    fn from(error: &Error) -> Self {
        End { code: sqlstate(error).map(str::to_owned), text: tell(error) }
    }
}

pub struct Session {
    pub client: Client,
    notices: Arc<Mutex<Vec<DbError>>>,
    ended: watch::Receiver<Option<End>>,
}

impl Session {
    /// Simple protocol, every value as text.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let messages = self.client.simple_query(sql).await?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect())
                }
                _ => None,
            })
            .collect())
    }

    /// The first column of the first row.
    pub async fn value(&self, sql: &str) -> Result<Option<String>, Error> {
        Ok(self.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// Runs what answers with no rows that matter.
    pub async fn run(&self, sql: &str) -> anyhow::Result<()> {
        self.client.batch_execute(sql).await.map_err(|error| anyhow::anyhow!("{sql}: {}", tell(&error)))
    }

    pub fn notices(&self) -> Vec<DbError> {
        self.lock().clone()
    }

    pub fn take_notices(&self) -> Vec<DbError> {
        std::mem::take(&mut *self.lock())
    }

    /// Why the session is over, if it is.
    pub fn end(&self) -> Option<End> {
        self.ended.borrow().clone()
    }

    /// Waits for the session to end.
    pub async fn wait_end(&self, limit: Duration) -> anyhow::Result<End> {
        let mut ended = self.ended.clone();
        let end = tokio::time::timeout(limit, ended.wait_for(Option::is_some)).await;
        let end = end.with_context(|| format!("the session did not end within {limit:?}"))?;
        end.ok().and_then(|end| end.clone()).context("the session's task is gone")
    }

    fn lock(&self) -> MutexGuard<'_, Vec<DbError>> {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub fn sqlstate(error: &Error) -> Option<&str> {
    error.code().map(tokio_postgres::error::SqlState::code)
}

/// The error as a person would want it: severity, SQLSTATE, message, detail, hint.
pub fn tell(error: &Error) -> String {
    let Some(db) = error.as_db_error() else {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        return text;
    };
    let mut text = format!("{} {}: {}", db.severity(), db.code().code(), db.message());
    for (label, part) in [("DETAIL", db.detail()), ("HINT", db.hint())] {
        if let Some(part) = part {
            text = format!("{text} {label}: {part}");
        }
    }
    text
}

/// Asserts that `result` failed with this SQLSTATE, and gives its text for a look at the message.
pub fn expect_sqlstate<T>(result: Result<T, Error>, expected: &str, doing: &str) -> anyhow::Result<String> {
    match result {
        Ok(_) => anyhow::bail!("{doing}: succeeded, expected {expected}"),
        Err(error) if sqlstate(&error) == Some(expected) => Ok(tell(&error)),
        Err(error) => anyhow::bail!("{doing}: expected {expected}, got {}", tell(&error)),
    }
}
