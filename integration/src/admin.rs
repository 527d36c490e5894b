//! The admin port's reports as typed rows, read by column name as the scripts of operators read them.

use crate::cluster::Node;
use crate::sql::{Endpoint, Session, tell};
use anyhow::{Context, bail, ensure};
use quorate_model::Lsn;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::SimpleQueryMessage;

/// How long one report may take.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// One row, each value as text under its column's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(pub BTreeMap<String, Option<String>>);

impl Row {
    pub fn text(&self, column: &str) -> anyhow::Result<String> {
        Ok(self.optional(column)?.unwrap_or_default())
    }

    /// None where the value is NULL or empty.
    pub fn optional(&self, column: &str) -> anyhow::Result<Option<String>> {
        let value =
            self.0.get(column).with_context(|| format!("no column {column:?} in {:?}", self.0.keys()))?;
        Ok(value.clone().filter(|v| !v.is_empty()))
    }

    pub fn number<T: std::str::FromStr>(&self, column: &str) -> anyhow::Result<Option<T>> {
        match self.optional(column)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => bail!("column {column:?} holds {text:?}, not a number"),
            },
        }
    }

    pub fn truth(&self, column: &str) -> anyhow::Result<bool> {
        match self.text(column)?.as_str() {
            "t" | "true" | "yes" | "on" | "1" => Ok(true),
            "f" | "false" | "no" | "off" | "0" | "" => Ok(false),
            other => bail!("column {column:?} holds {other:?}, not true or false"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    pub node: String,
    pub address: String,
    pub state: String,
    pub fault_domain: String,
    pub raft: String,
    pub primaries: u64,
    pub secondaries: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRow {
    pub server: String,
    pub database: String,
    pub phase: String,
    pub epoch: String,
    pub primary: Option<String>,
    pub secondaries: String,
    pub k: u64,
    pub open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    pub server: String,
    pub database: String,
    pub replica: String,
    pub node: String,
    pub role: String,
    pub state: String,
    pub flush_lsn: String,
    pub lag_bytes: Option<u64>,
    pub pid: Option<u32>,
    pub data_directory: PathBuf,
    pub socket: PathBuf,
}

impl ReplicaRow {
    pub fn is_primary(&self) -> bool {
        self.role == "primary"
    }

    /// How far its log is flushed, as it last said; zero before it did.
    pub fn flushed(&self) -> anyhow::Result<Lsn> {
        if self.flush_lsn.is_empty() {
            return Ok(Lsn(0));
        }
        Ok(self.flush_lsn.parse()?)
    }

    /// A copy that counts toward commits and runs.
    pub fn is_healthy(&self) -> bool {
        matches!(self.role.as_str(), "primary" | "secondary") && self.state == "running" && self.pid.is_some()
    }
}

/// One database as the admin port shows it at one time.
#[derive(Clone, Debug)]
pub struct DatabaseView {
    pub row: DatabaseRow,
    pub replicas: Vec<ReplicaRow>,
}

impl DatabaseView {
    pub fn primary(&self) -> anyhow::Result<&ReplicaRow> {
        self.replicas
            .iter()
            .find(|r| r.is_primary())
            .with_context(|| format!("no primary among {:?}", self.replicas))
    }

    pub fn secondaries(&self) -> impl Iterator<Item = &ReplicaRow> {
        self.replicas.iter().filter(|r| r.role == "secondary")
    }

    /// Stable, open, and `copies` healthy copies on as many nodes, with nothing left over.
    pub fn is_whole(&self, copies: usize) -> bool {
        let nodes: std::collections::BTreeSet<&str> = self.replicas.iter().map(|r| r.node.as_str()).collect();
        self.row.phase == "stable"
            && self.row.open
            && self.replicas.len() == copies
            && nodes.len() == copies
            && self.replicas.iter().all(ReplicaRow::is_healthy)
            && self.replicas.iter().filter(|r| r.is_primary()).count() == 1
    }
}

/// A session on an admin port.
pub struct Admin {
    pub session: Session,
}

impl Admin {
    pub fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(port, "admin", "admin", "quorate")
    }

    /// On the first of these nodes that answers.
    pub async fn open<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> anyhow::Result<Admin> {
        let mut last = anyhow::anyhow!("no node was given");
        for node in nodes {
            match tokio::time::timeout(REPORT_LIMIT, Admin::endpoint(node.admin).connect()).await {
                Ok(Ok(session)) => return Ok(Admin { session }),
                Ok(Err(error)) => last = anyhow::anyhow!("{}: {}", node.name, tell(&error)),
                Err(_) => last = anyhow::anyhow!("{}: no answer within {REPORT_LIMIT:?}", node.name),
            }
        }
        Err(last.context("no admin port answers"))
    }

    /// The rows that an order answers with.
    pub async fn rows(&self, order: &str) -> anyhow::Result<Vec<Row>> {
        let answer = tokio::time::timeout(REPORT_LIMIT, self.session.client.simple_query(order))
            .await
            .with_context(|| format!("{order}: no answer within {REPORT_LIMIT:?}"))?
            .map_err(|error| anyhow::anyhow!("{order}: {}", tell(&error)))?;
        let rows = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(Row(row
                .columns()
                .iter()
                .enumerate()
                .map(|(i, column)| (column.name().to_owned(), row.get(i).map(str::to_owned)))
                .collect())),
            _ => None,
        });
        Ok(rows.collect())
    }

    pub async fn nodes(&self) -> anyhow::Result<Vec<NodeRow>> {
        let row = |r: &Row| -> anyhow::Result<NodeRow> {
            Ok(NodeRow {
                node: r.text("node")?,
                address: r.text("address")?,
                state: r.text("state")?,
                fault_domain: r.text("fault_domain")?,
                raft: r.text("raft")?,
                primaries: r.number("primaries")?.unwrap_or(0),
                secondaries: r.number("secondaries")?.unwrap_or(0),
            })
        };
        self.rows("SHOW NODES").await?.iter().map(row).collect()
    }

    pub async fn databases(&self) -> anyhow::Result<Vec<DatabaseRow>> {
        let row = |r: &Row| -> anyhow::Result<DatabaseRow> {
            Ok(DatabaseRow {
                server: r.text("server")?,
                database: r.text("database")?,
                phase: r.text("phase")?,
                epoch: r.text("epoch")?,
                primary: r.optional("primary")?,
                secondaries: r.text("secondaries")?,
                k: r.number("k")?.unwrap_or(0),
                open: r.truth("open")?,
            })
        };
        self.rows("SHOW DATABASES").await?.iter().map(row).collect()
    }

    pub async fn replicas(&self) -> anyhow::Result<Vec<ReplicaRow>> {
        let row = |r: &Row| -> anyhow::Result<ReplicaRow> {
            Ok(ReplicaRow {
                server: r.text("server")?,
                database: r.text("database")?,
                replica: r.text("replica")?,
                node: r.text("node")?,
                role: r.text("role")?,
                state: r.text("state")?,
                flush_lsn: r.text("flush_lsn")?,
                lag_bytes: r.number("lag_bytes")?,
                pid: r.number("pid")?.filter(|pid| *pid != 0),
                data_directory: r.text("data_directory")?.into(),
                socket: r.text("socket")?.into(),
            })
        };
        self.rows("SHOW REPLICAS").await?.iter().map(row).collect()
    }

    /// A database named `server.database`.
    pub async fn database(&self, name: &str) -> anyhow::Result<DatabaseView> {
        let (server, database) = name.split_once('.').context("a name is server.database")?;
        let row = self.databases().await?.into_iter().find(|d| d.server == server && d.database == database);
        let row = row.with_context(|| format!("{name} is not in SHOW DATABASES"))?;
        let replicas = self
            .replicas()
            .await?
            .into_iter()
            .filter(|r| r.server == server && r.database == database)
            .collect();
        Ok(DatabaseView { row, replicas })
    }

    /// What the map says, without what moves by itself: for "changes nothing".
    pub async fn map(&self) -> anyhow::Result<Vec<Row>> {
        const MOVING: [&str; 8] =
            ["sessions", "size_bytes", "flush_lsn", "lag_bytes", "state", "open", "pid", "last_heartbeat_ms"];
        let mut map = Vec::new();
        for order in ["SHOW NODES", "SHOW DATABASES", "SHOW REPLICAS", "SHOW OPERATIONS"] {
            for mut row in self.rows(order).await? {
                row.0.retain(|column, _| !MOVING.contains(&column.as_str()));
                map.push(row);
            }
        }
        Ok(map)
    }

    /// Gives an order that begins an operation, and waits for its end.
    pub async fn carry_out(&self, order: &str, limit: Duration) -> anyhow::Result<()> {
        let rows = self.rows(order).await?;
        let operation = match rows.first() {
            Some(row) => row.text("operation").or_else(|_| row.text("id"))?,
            None => self.named_in_notices().with_context(|| format!("{order} named no operation"))?,
        };
        self.wait_operation(&operation, limit).await.with_context(|| order.to_owned())
    }

    pub async fn wait_operation(&self, operation: &str, limit: Duration) -> anyhow::Result<()> {
        let order = format!("WAIT OPERATION {operation}");
        let waited = tokio::time::timeout(limit, self.session.client.batch_execute(&order)).await;
        let waited = waited.with_context(|| format!("operation {operation} did not end within {limit:?}"))?;
        waited.map_err(|error| anyhow::anyhow!("operation {operation}: {}", tell(&error)))
    }

    /// The last `opN` that a notice spoke of.
    fn named_in_notices(&self) -> Option<String> {
        let notices = self.session.take_notices();
        notices.iter().rev().find_map(|n| operation_in(n.message()))
    }

    /// Columns of an order's answer in the extended protocol, without running it.
    pub async fn columns(&self, order: &str) -> anyhow::Result<Vec<String>> {
        let statement =
            self.session.client.prepare(order).await.map_err(|e| anyhow::anyhow!("{order}: {}", tell(&e)))?;
        Ok(statement.columns().iter().map(|c| c.name().to_owned()).collect())
    }

    /// Refused with an SQLSTATE and a reason; gives both.
    pub async fn refused(&self, order: &str) -> anyhow::Result<(String, String)> {
        match self.session.client.simple_query(order).await {
            Ok(_) => bail!("{order}: was not refused"),
            Err(error) => {
                let db = error.as_db_error().with_context(|| format!("{order}: {}", tell(&error)))?;
                ensure!(db.message().len() > 10, "{order}: refused without a reason: {}", tell(&error));
                Ok((db.code().code().to_owned(), tell(&error)))
            }
        }
    }
}

fn operation_in(text: &str) -> Option<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric()).find_map(|word| {
        let digits = word.strip_prefix("op")?;
        (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| word.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_found_in_a_sentence() {
        assert_eq!(operation_in("operation op12 began; WAIT OPERATION op12"), Some("op12".to_owned()));
        assert_eq!(operation_in("stop 3 options"), None);
    }

    #[test]
    fn a_missing_column_is_an_error_and_null_is_none() {
        let row = Row([("pid".to_owned(), None), ("open".to_owned(), Some("t".to_owned()))].into());
        assert_eq!(row.number::<u32>("pid").unwrap(), None);
        assert!(row.truth("open").unwrap());
        assert!(row.text("nothing").unwrap_err().to_string().contains("no column"));
    }
}
