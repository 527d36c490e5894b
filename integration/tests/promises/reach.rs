//! Promise: any node's client port takes any Postgres client in session mode, on whichever node the primary is.

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use quorate_integration::sql::{expect_sqlstate, sqlstate, tell};
use quorate_integration::{Endpoint, Options, driver, with_cluster};
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;
use tokio_postgres::types::Type;

const PROGRAM_LIMIT: Duration = Duration::from_secs(60);

#[test]
fn every_node_serves_every_kind_of_client() {
    with_cluster(Options::default(), async |cluster| {
        for node in cluster.nodes().to_vec() {
            let port = node.app();
            eprintln!("{}: tokio-postgres", node.name);
            simple(&port).await.with_context(|| format!("simple protocol at {}", node.name))?;
            extended(&port).await.with_context(|| format!("extended protocol at {}", node.name))?;
            copy(&port).await.with_context(|| format!("COPY at {}", node.name))?;
            large(&port).await.with_context(|| format!("large values at {}", node.name))?;
            cancel(&port).await.with_context(|| format!("cancel at {}", node.name))?;
            refusals(&port).await.with_context(|| format!("refusals at {}", node.name))?;
            eprintln!("{}: psql", node.name);
            psql(&port).await.with_context(|| format!("psql at {}", node.name))?;
            eprintln!("{}: psycopg", node.name);
            let said = driver::python("reach.py", &[&port.url()], PROGRAM_LIMIT).await?;
            ensure!(said.trim() == "ok", "psycopg at {} said {said:?}", node.name);
        }
        let url = cluster.url.clone();
        let said = driver::psql(&url, "SELECT 'as printed';", PROGRAM_LIMIT).await?;
        ensure!(said.out.trim() == "as printed", "the demo's connection string does not work: {said:?}");
        Ok(())
    });
}

async fn simple(port: &Endpoint) -> anyhow::Result<()> {
    let session = port.session().await?;
    session.run("DROP TABLE IF EXISTS reach; CREATE TABLE reach (id int PRIMARY KEY, word text)").await?;
    session.run("INSERT INTO reach VALUES (1, 'one'); INSERT INTO reach VALUES (2, NULL)").await?;
    let rows = session.rows("SELECT id, word FROM reach ORDER BY id").await?;
    let expected =
        [[Some("1"), Some("one")], [Some("2"), None]].map(|r| r.map(|v| v.map(str::to_owned)).to_vec());
    ensure!(rows == expected, "{rows:?}");
    // An error leaves the session usable, in and out of a transaction.
    expect_sqlstate(session.value("SELECT * FROM nowhere").await, "42P01", "an unknown table")?;
    session.run("BEGIN").await?;
    expect_sqlstate(session.value("SELECT 1/0").await, "22012", "a division by zero")?;
    expect_sqlstate(session.value("SELECT 1").await, "25P02", "after an error in a transaction")?;
    session.run("ROLLBACK").await?;
    ensure!(session.value("SELECT 1").await?.as_deref() == Some("1"));
    // Who am I: the tenant's login, never a superuser.
    let who =
        session.rows("SELECT current_user, rolsuper FROM pg_roles WHERE rolname = current_user").await?;
    ensure!(who == [[Some("demo".to_owned()), Some("f".to_owned())].to_vec()], "{who:?}");
    Ok(())
}

async fn extended(port: &Endpoint) -> anyhow::Result<()> {
    let session = port.session().await?;
    let client = &session.client;
    let statement = client.prepare("INSERT INTO reach VALUES ($1, $2)").await?;
    for id in 10..30_i32 {
        client.execute(&statement, &[&id, &format!("word {id}")]).await?;
    }
    let row = client.query_one("SELECT count(*), min(word) FROM reach WHERE id >= $1", &[&10_i32]).await?;
    ensure!(row.try_get::<_, i64>(0)? == 20 && row.try_get::<_, &str>(1)? == "word 10");
    // Many in flight on one connection.
    let asked = (0..50_i32).map(|i| async move {
        let row = client.query_typed_one("SELECT $1 + 1", &[(&i, Type::INT4)]).await?;
        anyhow::Ok(row.try_get::<_, i32>(0)? == i + 1)
    });
    ensure!(
        futures::future::try_join_all(asked).await?.into_iter().all(|right| right),
        "answers out of order"
    );
    // Rows in portions, through a portal.
    let mut session = port.session().await?;
    let transaction = session.client.transaction().await?;
    let portal = transaction.bind("SELECT generate_series(1, 25)", &[]).await?;
    let mut sizes = Vec::new();
    loop {
        let rows = transaction.query_portal(&portal, 10).await?;
        sizes.push(rows.len());
        if rows.len() < 10 {
            break;
        }
    }
    ensure!(sizes == [10, 10, 5], "portions of {sizes:?}");
    transaction.commit().await?;
    Ok(())
}

async fn copy(port: &Endpoint) -> anyhow::Result<()> {
    const ROWS: usize = 50_000;
    let session = port.session().await?;
    session.run("DROP TABLE IF EXISTS copied; CREATE TABLE copied (id int, word text)").await?;
    let sink = session.client.copy_in("COPY copied FROM STDIN").await?;
    let mut sink = pin!(sink);
    for chunk in 0..50 {
        let lines: String =
            (0..ROWS / 50).map(|i| format!("{}\t{}\n", chunk * (ROWS / 50) + i, "w".repeat(80))).collect();
        sink.send(Bytes::from(lines)).await?;
    }
    let taken = sink.finish().await?;
    ensure!(taken == ROWS as u64, "COPY took {taken} rows");
    let stream = session.client.copy_out("COPY copied TO STDOUT").await?;
    let given =
        stream.try_fold(0, async |lines, chunk| Ok(lines + chunk.iter().filter(|b| **b == b'\n').count()));
    let given = given.await?;
    ensure!(given == ROWS, "COPY gave {given} rows");
    // A COPY that fails leaves the session usable.
    let sink = session.client.copy_in("COPY copied FROM STDIN").await?;
    let mut sink = pin!(sink);
    sink.send(Bytes::from_static(b"not a number\tx\n")).await?;
    expect_sqlstate(sink.finish().await, "22P02", "COPY of what is no number")?;
    ensure!(session.value("SELECT count(*) FROM copied").await? == Some(ROWS.to_string()));
    Ok(())
}

/// Values and results far larger than any buffer on the way.
async fn large(port: &Endpoint) -> anyhow::Result<()> {
    let session = port.session().await?;
    let value = "x".repeat(20_000_000);
    let row = session.client.query_typed_one("SELECT length($1), $1", &[(&value, Type::TEXT)]).await?;
    ensure!(row.try_get::<_, i32>(0)? == 20_000_000 && row.try_get::<_, &str>(1)? == value);
    let rows =
        session.client.query_typed("SELECT repeat('y', 200) FROM generate_series(1, 100000)", &[]).await?;
    ensure!(rows.len() == 100_000, "{} rows", rows.len());
    Ok(())
}

async fn cancel(port: &Endpoint) -> anyhow::Result<()> {
    let session = port.session().await?;
    let token = session.client.cancel_token();
    let began = Instant::now();
    let asked = session.client.batch_execute("SELECT pg_sleep(60)");
    let cancelled = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        token.cancel_query(NoTls).await
    };
    let (answer, sent) = tokio::join!(asked, cancelled);
    sent.map_err(|e| anyhow::anyhow!("sending the cancel: {}", tell(&e)))?;
    expect_sqlstate(answer, "57014", "a cancelled query")?;
    ensure!(began.elapsed() < Duration::from_secs(10), "the cancel took {:?}", began.elapsed());
    // A cancel of nothing does nothing.
    token.cancel_query(NoTls).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    ensure!(session.value("SELECT 7").await?.as_deref() == Some("7"), "the session did not survive");
    Ok(())
}

async fn refusals(port: &Endpoint) -> anyhow::Result<()> {
    let told =
        expect_sqlstate(port.with_database("nowhere").connect().await, "3D000", "an unknown database")?;
    ensure!(told.contains("nowhere"), "does not name it: {told}");
    let told = expect_sqlstate(port.with_password("wrong").connect().await, "28P01", "a wrong password")?;
    ensure!(told.contains("password authentication failed"), "{told}");
    let stranger = Endpoint { user: "stranger".to_owned(), ..port.clone() };
    expect_sqlstate(stranger.connect().await, "28P01", "an unknown user")?;
    // Nobody reaches the daemon's own database or role.
    let error =
        port.with_database("postgres").connect().await.err().context("the database postgres was entered")?;
    ensure!(sqlstate(&error).is_some(), "{}", tell(&error));
    let superuser = Endpoint { user: "quorate".to_owned(), password: String::new(), ..port.clone() };
    ensure!(superuser.connect().await.is_err(), "the superuser was let in");
    // A commit cannot be made cheaper than the promise.
    let session = port.session().await?;
    expect_sqlstate(session.value("SET synchronous_commit = off").await, "0A000", "SET synchronous_commit")?;
    ensure!(session.value("SELECT 8").await?.as_deref() == Some("8"), "the session did not survive");
    Ok(())
}

async fn psql(port: &Endpoint) -> anyhow::Result<()> {
    let script = "\
        DROP TABLE IF EXISTS from_psql;\n\
        CREATE TABLE from_psql (id int, word text);\n\
        \\copy from_psql from stdin\n1\tone\n2\ttwo\n\\.\n\
        \\copy from_psql to stdout\n\
        SELECT count(*) FROM from_psql;\n";
    let said = driver::psql(&port.url(), script, PROGRAM_LIMIT).await?;
    ensure!(said.success && said.out == "1\tone\n2\ttwo\n2\n", "{said:?}");

    let said =
        driver::psql(&format!("{}?sslmode=require", port.url()), "\\conninfo\n", PROGRAM_LIMIT).await?;
    ensure!(said.success && said.out.contains("SSL") && said.out.contains("TLSv1"), "TLS: {said:?}");
    let said = driver::psql(&format!("{}?sslmode=disable", port.url()), "SELECT 1;\n", PROGRAM_LIMIT).await?;
    ensure!(said.success, "without TLS: {said:?}");

    let said = driver::psql(&port.url(), "SELECT * FROM nowhere;\n", PROGRAM_LIMIT).await?;
    ensure!(!said.success && said.err.contains("42P01"), "{said:?}");
    let said = driver::psql(&port.with_database("nowhere").url(), "", PROGRAM_LIMIT).await?;
    ensure!(!said.success && said.err.contains("database \"nowhere\" does not exist"), "{said:?}");
    let said = driver::psql(&port.with_password("wrong").url(), "", PROGRAM_LIMIT).await?;
    ensure!(
        !said.success && said.err.contains("password authentication failed for user \"demo\""),
        "{said:?}"
    );
    Ok(())
}
