//! A client that reads and checks each answer: it shows every row acknowledged before the question was sent (reads
//! are linearizable, I7), and never less than an earlier answer showed (a value once returned never vanishes, I8).

use super::record::ReaderRecord;
use super::shared::Shared;
use crate::sql::{Endpoint, Session, sqlstate};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Stale answers that one reader describes.
const MAX_DESCRIBED: usize = 20;
const RETRY: Duration = Duration::from_millis(20);

pub(super) struct Reader {
    pub endpoint: Endpoint,
    pub pace: Duration,
    pub shared: Arc<Shared>,
}

impl Reader {
    pub async fn run(self) -> ReaderRecord {
        let mut record = ReaderRecord::default();
        let mut session: Option<Session> = None;
        let mut client = 0;
        while !self.shared.is_over() {
            let current = match session.take().filter(|s| !s.client.is_closed()) {
                Some(current) => current,
                None => match self.endpoint.connect().await {
                    Ok(new) => new,
                    Err(error) => {
                        let code = sqlstate(&error).unwrap_or("no connection");
                        *record.errors.entry(format!("connect {code}")).or_default() += 1;
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                },
            };
            client = (client + 1) % self.shared.clients().max(1);
            if self.read(&current, client, &mut record).await {
                session = Some(current);
            }
            tokio::time::sleep(self.pace).await;
        }
        record
    }

    /// Whether the session can be used on.
    async fn read(&self, session: &Session, client: u32, record: &mut ReaderRecord) -> bool {
        let expected = self.shared.acknowledged(client);
        let seen = record.seen.get(&client).copied().unwrap_or(0);
        let sql = format!("SELECT coalesce(max(seq), 0) FROM ledger WHERE client = {client}");
        match timeout(super::writer::ANSWER_LIMIT, session.value(&sql)).await {
            Ok(Ok(value)) => {
                let highest = value.and_then(|v| v.parse().ok()).unwrap_or(0);
                record.reads += 1;
                if highest < expected.max(seen) && record.stale.len() < MAX_DESCRIBED {
                    record.stale.push(format!(
                        "port {}: client {client} up to {highest}; {expected} was acknowledged before, {seen} was read before",
                        self.endpoint.port
                    ));
                }
                if highest > 0 {
                    record.seen.insert(client, highest.max(seen));
                }
                true
            }
            Ok(Err(error)) => {
                *record.errors.entry(sqlstate(&error).unwrap_or("closed").to_owned()).or_default() += 1;
                !session.client.is_closed()
            }
            Err(_) => {
                *record.errors.entry("no answer".to_owned()).or_default() += 1;
                false
            }
        }
    }
}
