//! A statement that is given as text is prepared and closed at each use, as is the driver's default.

use crate::report::{Report, Step};
use crate::{PAUSE, ROWS, STATE, WRITE};
use std::path::Path;
use std::sync::Arc;
use tokio_postgres::{Client, Error, NoTls, Statement};

const DRIVER: &str = "tokio-postgres";

pub async fn session(report: Arc<Report>, url: Arc<str>, stop: Arc<Path>, number: i32) -> anyhow::Result<()> {
    let who = format!("tokio{number}");
    let (mut client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("SET work_mem = '7MB'").await?;
    client.batch_execute(&format!("SET app.who = '{who}'")).await?;
    let state = client.prepare(STATE).await?;
    report.seen().begun += 1;
    let mut turn = 0;
    while !stop.exists() {
        tokio::time::sleep(PAUSE).await;
        turn += 1;
        match alone(&client, &state, number, turn).await {
            Ok(told) => report.alone(&who, number, told)?,
            Err(error) => {
                report.failed(Step::Alone, error.code().map(|code| code.code()), &error);
                if client.is_closed() {
                    return Ok(());
                }
                continue;
            }
        }
        match in_block(&mut client, number, turn).await {
            Ok(rows) => report.in_block(&who, rows)?,
            Err(error) => {
                report.failed(Step::InBlock, error.code().map(|code| code.code()), &error);
                if client.is_closed() {
                    return Ok(());
                }
            }
        }
    }
    report.seen().alive += 1;
    Ok(())
}

async fn alone(client: &Client, state: &Statement, number: i32, turn: i32) -> Result<(String, i32), Error> {
    let held = client.query_one(state, &[]).await?.get(0);
    let answer = client.query_one("SELECT $1::int + 1", &[&number]).await?.get(0);
    client.execute(WRITE, &[&DRIVER, &number, &turn, &"alone"]).await?;
    Ok((held, answer))
}

async fn in_block(client: &mut Client, number: i32, turn: i32) -> Result<i64, Error> {
    let block = client.transaction().await?;
    block.execute(WRITE, &[&DRIVER, &number, &turn, &"in a block"]).await?;
    let rows = block.query_one(ROWS, &[&DRIVER, &number, &turn]).await?.get(0);
    block.commit().await?;
    Ok(rows)
}
