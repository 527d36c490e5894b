//! Every statement is prepared once and kept, as is the driver's default.

use crate::report::{Report, Step};
use crate::{PAUSE, ROWS, STATE, WRITE};
use sqlx::{Connection, Error, Executor, PgConnection};
use std::path::Path;
use std::sync::Arc;

const DRIVER: &str = "sqlx";

pub async fn session(report: Arc<Report>, url: Arc<str>, stop: Arc<Path>, number: i32) -> anyhow::Result<()> {
    let who = format!("sqlx{number}");
    let mut connection = PgConnection::connect(&url).await?;
    connection.execute("SET work_mem = '7MB'").await?;
    connection.execute(format!("SET app.who = '{who}'").as_str()).await?;
    report.seen().begun += 1;
    let mut turn = 0;
    while !stop.exists() {
        tokio::time::sleep(PAUSE).await;
        turn += 1;
        match alone(&mut connection, number, turn).await {
            Ok(told) => report.alone(&who, number, told)?,
            Err(error) => {
                if !goes_on(&mut connection, &report, Step::Alone, error).await {
                    return Ok(());
                }
                continue;
            }
        }
        match in_block(&mut connection, number, turn).await {
            Ok(rows) => report.in_block(&who, rows)?,
            Err(error) => {
                if !goes_on(&mut connection, &report, Step::InBlock, error).await {
                    return Ok(());
                }
            }
        }
    }
    report.seen().alive += 1;
    Ok(())
}

/// Notes the error, and looks whether the connection is still one: nothing else says.
async fn goes_on(connection: &mut PgConnection, report: &Report, step: Step, error: Error) -> bool {
    let code = error.as_database_error().and_then(|told| told.code());
    report.failed(step, code.as_deref(), &error);
    connection.ping().await.is_ok()
}

async fn alone(connection: &mut PgConnection, number: i32, turn: i32) -> Result<(String, i32), Error> {
    let held = sqlx::query_scalar(STATE).fetch_one(&mut *connection).await?;
    let answer = sqlx::query_scalar("SELECT $1::int + 1").bind(number).fetch_one(&mut *connection).await?;
    let write = sqlx::query(WRITE).bind(DRIVER).bind(number).bind(turn).bind("alone");
    write.execute(&mut *connection).await?;
    Ok((held, answer))
}

async fn in_block(connection: &mut PgConnection, number: i32, turn: i32) -> Result<i64, Error> {
    let mut block = connection.begin().await?;
    let write = sqlx::query(WRITE).bind(DRIVER).bind(number).bind(turn).bind("in a block");
    write.execute(&mut *block).await?;
    let rows = sqlx::query_scalar(ROWS).bind(DRIVER).bind(number).bind(turn);
    let rows = rows.fetch_one(&mut *block).await?;
    block.commit().await?;
    Ok(rows)
}
