//! A schema is dumped by pg_dump, dropped, and brought back by several jobs of pg_restore, each during an event. A
//! switchover fails pg_dump only if it is longer than transactions are waited for. pg_restore makes settings and is never
//! quiet, so its sessions may end with 57P01 (docs/PROXY.md). What fails says why first, and goes well the second time.

use super::{Event, entry, happen};
use anyhow::ensure;
use quorate_integration::driver::Said;
use quorate_integration::sql::Session;
use quorate_integration::{Cluster, Endpoint, Options, binaries, driver, wait, with_cluster};
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::process::Command;

const TABLES: usize = 24;
const ROWS: usize = 4_000;
const LIMIT: Duration = Duration::from_secs(60);
/// For a program to begin to copy a table.
const WORK_LIMIT: Duration = Duration::from_secs(20);
/// What a client is told of a lost transaction, and of a lost statement or session.
const TOLD: [&str; 2] = ["the transaction was lost with its server", "the session's server is gone"];

#[test]
fn a_dump_is_restored_over_a_switchover_and_a_postmaster() {
    with_cluster(Options::default(), async |cluster| {
        let entry = entry(cluster).await?;
        let looker = entry.session().await?;
        make(&looker).await?;
        let before = digest(&looker).await?;
        let directory = tempfile::tempdir()?;
        for event in [Event::Switchovers, Event::LostPostmaster] {
            let file = directory.path().join(format!("{event:?}"));
            let begin = || dump(&entry, &file);
            let said = during(cluster, &looker, event, "pg_dump", begin).await?;
            if !said.success {
                ensure!(dump(&entry, &file).await?.success, "pg_dump, again");
            }
            looker.run("DROP SCHEMA shop CASCADE").await?;
            let begin = || restore(&entry, &file);
            let said = during(cluster, &looker, event, "pg_restore", begin).await?;
            if !said.success {
                let again = restore(&entry, &file).await?;
                ensure!(again.success, "pg_restore, again: {}", again.err);
            }
            let after = digest(&looker).await?;
            for (before, after) in before.iter().zip(&after) {
                ensure!(after == before, "{event:?}: {before:?} was dumped, and {after:?} restored");
            }
        }
        Ok(())
    });
}

/// Runs a program, and has something happen as soon as it copies a table.
async fn during<F: Future<Output = anyhow::Result<Said>>>(
    cluster: &Cluster,
    looker: &Session,
    event: Event,
    name: &str,
    begin: impl Fn() -> F,
) -> anyhow::Result<Said> {
    let began = Instant::now();
    let working = async { (begin().await, began.elapsed()) };
    let happening = async {
        wait::until(&format!("{name} copies a table"), WORK_LIMIT, async || {
            let copies = format!(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' AND query LIKE 'COPY %'"
            );
            let rows = looker.rows(&copies).await?;
            Ok(if rows == [[Some("0".to_owned())]] { Err("none") } else { Ok(()) })
        })
        .await?;
        happen(cluster, event).await.map(|at| at.duration_since(began))
    };
    let ((said, took), happened) = tokio::join!(working, happening);
    let (before, said) = (happened?, said?);
    eprintln!("{event:?}, {name}: {} after {took:?}", if said.success { "done" } else { "failed" });
    ensure!(took > before, "{name} was done after {took:?}, and it happened after {before:?}");
    let why = TOLD.iter().any(|told| first_error(&said.err).contains(told));
    ensure!(said.success || why, "{name}: {}", said.err);
    Ok(said)
}

/// The first error with its details: of a COPY the server's words stand there.
fn first_error(said: &str) -> &str {
    let Some(at) = said.find(" error: ") else { return "" };
    let rest = &said[at + 1..];
    &rest[..rest.find(" error: ").unwrap_or(rest.len())]
}

async fn make(looker: &Session) -> anyhow::Result<()> {
    looker.run("CREATE SCHEMA shop").await?;
    for table in 0..TABLES {
        let name = format!("shop.t{table}");
        looker.run(&format!("CREATE TABLE {name} (id int PRIMARY KEY, word text, at timestamptz)")).await?;
        let rows = format!("SELECT i, md5(i::text), to_timestamp(i) FROM generate_series(1, {ROWS}) i");
        looker.run(&format!("INSERT INTO {name} {rows}")).await?;
        looker.run(&format!("CREATE INDEX ON {name} (word)")).await?;
    }
    Ok(())
}

/// Of all rows, and of the names of all indexes.
async fn digest(looker: &Session) -> anyhow::Result<Vec<Vec<Option<String>>>> {
    let table =
        |t| format!("SELECT '{t}', count(*), md5(string_agg(r::text, ',' ORDER BY id)) FROM shop.t{t} r");
    let mut queries: Vec<String> = (0..TABLES).map(table).collect();
    queries.push(
        "SELECT 'indexes', count(*), md5(string_agg(indexdef, ',' ORDER BY indexname)) \
         FROM pg_indexes WHERE schemaname = 'shop'"
            .to_owned(),
    );
    Ok(looker.rows(&(queries.join(" UNION ALL ") + " ORDER BY 1")).await?)
}

async fn dump(entry: &Endpoint, file: &Path) -> anyhow::Result<Said> {
    program(
        "pg_dump",
        [OsStr::new("-Fc"), "-n".as_ref(), "shop".as_ref(), "-f".as_ref(), file.as_ref()],
        entry,
    )
    .await
}

async fn restore(entry: &Endpoint, file: &Path) -> anyhow::Result<Said> {
    let words = ["-j", "4", "--clean", "--if-exists"].map(OsStr::new);
    program("pg_restore", words.into_iter().chain([file.as_ref()]), entry).await
}

async fn program<'a>(
    name: &str,
    words: impl IntoIterator<Item = &'a OsStr>,
    entry: &Endpoint,
) -> anyhow::Result<Said> {
    let mut command = Command::new(binaries::postgres(name)?);
    driver::without_defaults(&mut command);
    command.args(words).arg("-d").arg(entry.url());
    driver::run(command, "", LIMIT).await
}
