//! Sessions by tokio-postgres and sqlx, as those of sessions.py: sessions URL FILE

mod by_sqlx;
mod by_tokio_postgres;
mod report;

use anyhow::Context;
use report::Report;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

const SESSIONS: i32 = 4;
const PAUSE: Duration = Duration::from_millis(80);
const STATE: &str = "SELECT current_setting('work_mem') || ' ' || current_setting('app.who')";
const ROWS: &str = "SELECT count(*) FROM turns WHERE (driver, session, turn) = ($1, $2, $3)";
const WRITE: &str = "INSERT INTO turns VALUES ($1, $2, $3, $4)";

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url: Arc<str> = arguments.next().context("URL")?.into();
    let stop: Arc<Path> = Path::new(&arguments.next().context("FILE")?).into();
    let [tokio_postgres, sqlx] = [Arc::new(Report::default()), Arc::new(Report::default())];
    let mut sessions = JoinSet::new();
    for number in 0..SESSIONS {
        sessions.spawn(by_tokio_postgres::session(tokio_postgres.clone(), url.clone(), stop.clone(), number));
        sessions.spawn(by_sqlx::session(sqlx.clone(), url.clone(), stop.clone(), number));
    }
    let ended = sessions.join_all().await;
    let reports = BTreeMap::from([("tokio-postgres", &*tokio_postgres), ("sqlx", &*sqlx)]);
    println!("{}", serde_json::to_string(&reports)?);
    ended.into_iter().collect()
}
