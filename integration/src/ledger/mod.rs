//! The ledger: writers that insert unique rows and write down what they are told, readers that check what they are
//! shown, and at the end a comparison of both with what is there.
//!
//! What it promises to catch, and is itself tested to catch: an acknowledged row that is gone, a row said to have
//! failed that is there, a row that is there twice or that nobody wrote, a read that misses what was acknowledged
//! before it was sent, and a row that was read and then vanished.

pub mod check;
mod reader;
pub mod record;
pub mod shared;
mod writer;

pub use check::{Entry, Verdict};
pub use record::{Attempt, ClientRecord, Outcome, ReaderRecord};
pub use shared::Shared;
pub use writer::{ANSWER_LIMIT, Style};

use crate::gaps::Micros;
use crate::sql::Endpoint;
use crate::wait;
use anyhow::Context;
use reader::Reader;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use writer::Writer;

/// Commits that show the ledger has begun.
const WARM: u64 = 20;

#[derive(Clone, Debug)]
pub struct Plan {
    /// One writer each, in turn over `styles`.
    pub writers: Vec<Endpoint>,
    pub styles: Vec<Style>,
    pub readers: Vec<Endpoint>,
    pub pace: Duration,
}

impl Plan {
    /// `count` writers over these ports in turn, in all styles, and a reader a port.
    pub fn over(ports: &[Endpoint], count: usize) -> Plan {
        Plan {
            writers: ports.iter().cycle().take(count).cloned().collect(),
            styles: Style::ALL.to_vec(),
            readers: ports.to_vec(),
            pace: Duration::from_millis(4),
        }
    }

    pub fn styled(self, styles: &[Style]) -> Plan {
        Plan { styles: styles.to_vec(), ..self }
    }

    pub fn without_readers(self) -> Plan {
        Plan { readers: Vec::new(), ..self }
    }

    pub fn paced(self, pace: Duration) -> Plan {
        Plan { pace, ..self }
    }
}

pub struct Ledger {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<ClientRecord>>,
    readers: Vec<JoinHandle<ReaderRecord>>,
}

impl Ledger {
    /// Makes the table and starts everybody; back when commits pass.
    pub async fn begin(plan: Plan) -> anyhow::Result<Ledger> {
        let first = plan.writers.first().context("a ledger needs a writer")?;
        let session = first.session().await?;
        session.run("DROP TABLE IF EXISTS ledger").await?;
        session.run("CREATE TABLE ledger (client int, seq bigint, PRIMARY KEY (client, seq))").await?;
        let shared = Arc::new(Shared::new(plan.writers.len()));
        let mut ledger = Ledger { shared: shared.clone(), writers: Vec::new(), readers: Vec::new() };
        for (client, (endpoint, style)) in plan.writers.iter().zip(plan.styles.iter().cycle()).enumerate() {
            let writer = Writer {
                client: u32::try_from(client)?,
                endpoint: endpoint.clone(),
                style: *style,
                pace: plan.pace,
                shared: shared.clone(),
            };
            ledger.writers.push(tokio::spawn(writer.run()));
        }
        for endpoint in &plan.readers {
            let reader = Reader { endpoint: endpoint.clone(), pace: plan.pace, shared: shared.clone() };
            ledger.readers.push(tokio::spawn(reader.run()));
        }
        ledger.progress(WARM, Duration::from_secs(20)).await.context("the ledger did not get going")?;
        Ok(ledger)
    }

    /// Waits until that many more commits were acknowledged.
    pub async fn progress(&self, commits: u64, limit: Duration) -> anyhow::Result<()> {
        let goal = self.shared.progress() + commits;
        wait::until_true(&format!("{commits} more commits"), limit, || self.shared.progress() >= goal).await
    }

    /// Acknowledged so far, as seen by its clients.
    pub fn acknowledged(&self) -> u64 {
        self.shared.progress()
    }

    pub fn now(&self) -> Micros {
        self.shared.now()
    }

    pub fn at(&self, instant: Instant) -> Micros {
        self.shared.at(instant)
    }

    /// Stops everybody, reads what is there by `port`, and compares.
    pub async fn end(self, port: &Endpoint) -> anyhow::Result<Verdict> {
        let ended = self.shared.now();
        self.shared.finish();
        let mut clients = Vec::new();
        for writer in self.writers {
            clients.push(writer.await.context("a writer panicked")?);
        }
        let mut readers = Vec::new();
        for reader in self.readers {
            readers.push(reader.await.context("a reader panicked")?);
        }
        let present = present(port).await?;
        Ok(check::check(&clients, &readers, &present, ended))
    }
}

/// Every row of the ledger, by this port.
pub async fn present(port: &Endpoint) -> anyhow::Result<Vec<Entry>> {
    let session = port.session().await?;
    let rows = session.client.query_typed("SELECT client, seq FROM ledger", &[]).await;
    let rows = rows.map_err(|error| anyhow::anyhow!("reading the ledger: {}", crate::sql::tell(&error)))?;
    rows.iter()
        .map(|row| {
            let client: i32 = row.try_get(0)?;
            let seq: i64 = row.try_get(1)?;
            Ok((u32::try_from(client)?, u64::try_from(seq)?))
        })
        .collect()
}
