//! A client that inserts unique rows for as long as it is let, and writes down what it is told.

use super::record::{Attempt, ClientRecord, Outcome};
use super::shared::Shared;
use crate::sql::{Endpoint, Session, sqlstate};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::Error;
use tokio_postgres::types::Type;

/// After this long without a word an attempt counts as unknown and the session is given up: twice what a client is
/// held by default, and longer than the longest pause in the tests.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Between two requests for a session that are refused.
const RETRY: Duration = Duration::from_millis(20);

/// How a client commits a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One simple query.
    Simple,
    /// Extended protocol, unnamed statement: nothing stays on the server.
    Unnamed,
    /// Extended protocol, a named statement kept for the whole session: state on the server.
    Prepared,
    /// BEGIN, INSERT, COMMIT as three queries.
    Transaction,
}

impl Style {
    pub const ALL: [Style; 4] = [Style::Simple, Style::Unnamed, Style::Prepared, Style::Transaction];
    /// Those whose sessions hold nothing between rows and are never between BEGIN and COMMIT.
    pub const STATELESS: [Style; 2] = [Style::Simple, Style::Unnamed];
}

pub(super) struct Writer {
    pub client: u32,
    pub endpoint: Endpoint,
    pub style: Style,
    /// Rests this long after each answer, so that a test measures the cluster and not the two cores.
    pub pace: Duration,
    pub shared: Arc<Shared>,
}

/// A session and what it needs for its style.
struct Ready {
    session: Session,
    insert: Option<tokio_postgres::Statement>,
}

impl Writer {
    pub async fn run(self) -> ClientRecord {
        let mut record = ClientRecord { client: self.client, ..ClientRecord::default() };
        let mut ready: Option<Ready> = None;
        let mut seq = 0;
        while !self.shared.is_over() {
            let current = match ready.take() {
                Some(current) if !current.session.client.is_closed() => current,
                Some(ended) => {
                    note(&mut record.dropped, &why_it_ended(&ended.session).await);
                    continue;
                }
                None => match self.connect(&mut record).await {
                    Some(new) => new,
                    None => continue,
                },
            };
            seq += 1;
            let asked = self.shared.now();
            let answer = timeout(ANSWER_LIMIT, self.commit(&current, seq)).await;
            let told = self.shared.now();
            let outcome = match &answer {
                Ok(Ok(())) => Outcome::Acknowledged,
                Ok(Err((Stage::Before, error))) => {
                    Outcome::Failed(sqlstate(error).unwrap_or("closed").to_owned())
                }
                Ok(Err((Stage::Commit, error))) => Outcome::of(error),
                Err(_) => Outcome::Unknown("no answer".to_owned()),
            };
            if outcome == Outcome::Acknowledged {
                self.shared.acknowledge(self.client, seq);
            }
            record.attempts.push(Attempt { seq, asked, told, outcome });
            match answer {
                Ok(Ok(())) => ready = Some(current),
                Ok(Err((_, error))) => ready = self.after(current, &error, &mut record).await,
                Err(_) => note(&mut record.dropped, "gave up waiting"),
            }
            tokio::time::sleep(self.pace).await;
        }
        record
    }

    async fn connect(&self, record: &mut ClientRecord) -> Option<Ready> {
        let asked = self.shared.now();
        let got = self.prepare().await;
        record.longest_connect = record.longest_connect.max(self.shared.now().saturating_sub(asked));
        match got {
            Ok(ready) => Some(ready),
            Err(error) => {
                note(&mut record.refused, sqlstate(&error).unwrap_or("no connection"));
                tokio::time::sleep(RETRY).await;
                None
            }
        }
    }

    async fn prepare(&self) -> Result<Ready, Error> {
        let session = self.endpoint.connect().await?;
        let insert = match self.style {
            Style::Prepared => Some(session.client.prepare_typed(INSERT, &[Type::INT4, Type::INT8]).await?),
            _ => None,
        };
        Ok(Ready { session, insert })
    }

    /// Commits one row. An error says whether COMMIT could have been carried out already.
    async fn commit(&self, ready: &Ready, seq: u64) -> Result<(), (Stage, Error)> {
        let client = &ready.session.client;
        let (id, number) = (self.client.cast_signed(), seq.cast_signed());
        let inserted = match (self.style, &ready.insert) {
            (Style::Prepared, Some(insert)) => client.execute(insert, &[&id, &number]).await.map(drop),
            (Style::Unnamed | Style::Prepared, _) => {
                client.execute_typed(INSERT, &[(&id, Type::INT4), (&number, Type::INT8)]).await.map(drop)
            }
            (Style::Simple, _) => client.batch_execute(&literal(self.client, seq)).await,
            (Style::Transaction, _) => {
                client.batch_execute("BEGIN").await.map_err(|e| (Stage::Before, e))?;
                client.batch_execute(&literal(self.client, seq)).await.map_err(|e| (Stage::Before, e))?;
                client.batch_execute("COMMIT").await
            }
        };
        inserted.map_err(|e| (Stage::Commit, e))
    }

    /// The session after an error: itself where it lives, rolled back; None where it has ended.
    async fn after(&self, ready: Ready, error: &Error, record: &mut ClientRecord) -> Option<Ready> {
        if self.style == Style::Transaction && !ready.session.client.is_closed() {
            let rolled_back = timeout(ANSWER_LIMIT, ready.session.client.batch_execute("ROLLBACK")).await;
            if matches!(rolled_back, Ok(Ok(()))) {
                return Some(ready);
            }
        } else if sqlstate(error).is_some() && self.is_alive(&ready).await {
            return Some(ready);
        }
        let reason = match sqlstate(error) {
            Some(code) => code.to_owned(),
            None => why_it_ended(&ready.session).await,
        };
        note(&mut record.dropped, &reason);
        None
    }

    /// An error may have been the session's last word. The empty query asks.
    async fn is_alive(&self, ready: &Ready) -> bool {
        matches!(timeout(ANSWER_LIMIT, ready.session.client.batch_execute("")).await, Ok(Ok(())))
    }
}

/// Where a transaction was when an error came.
enum Stage {
    /// COMMIT had not been sent.
    Before,
    Commit,
}

const INSERT: &str = "INSERT INTO ledger (client, seq) VALUES ($1, $2)";

fn literal(client: u32, seq: u64) -> String {
    format!("INSERT INTO ledger (client, seq) VALUES ({client}, {seq})")
}

async fn why_it_ended(session: &Session) -> String {
    match session.wait_end(Duration::from_secs(1)).await {
        Ok(end) => end.code.unwrap_or(end.text),
        Err(_) => "closed".to_owned(),
    }
}

fn note(counts: &mut std::collections::BTreeMap<String, u64>, reason: &str) {
    *counts.entry(reason.to_owned()).or_default() += 1;
}
