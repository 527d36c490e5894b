//! The demo's logical server and database, and the page that greets.

use super::layout::Layout;
use super::nodes::Nodes;
use anyhow::Context;
use comfy_table::{Table, presets};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

const PAUSE: Duration = Duration::from_millis(200);
const HTTP_LIMIT: Duration = Duration::from_secs(2);

/// Whether a node's /healthz answers 200.
pub async fn is_healthy(address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n").await.ok()?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer).await.ok()?;
        answer.starts_with(b"HTTP/1.0 200").then_some(())
    };
    matches!(tokio::time::timeout(HTTP_LIMIT, ask).await, Ok(Some(())))
}

async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the demo's connection ended");
        }
    });
    Ok(client)
}

async fn rows(client: &Client, order: &str) -> anyhow::Result<Vec<SimpleQueryRow>> {
    let messages = client.simple_query(order).await.with_context(|| order.to_owned())?;
    Ok(messages
        .into_iter()
        .filter_map(|m| match m {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect())
}

/// Creates what is not there yet and returns when the database takes writes.
pub async fn bring_up(layout: &Layout, progress: &impl Fn(&str)) -> anyhow::Result<()> {
    let admin = connect(&layout.admin_url()).await?;
    let app = async || {
        let all = rows(&admin, "SHOW DATABASES").await?;
        let is_ours =
            |r: &SimpleQueryRow| r.get("server") == Some("demo") && r.get("database") == Some("app");
        anyhow::Ok(all.into_iter().find(is_ours))
    };
    // An operator may have dropped it, and made others.
    if app().await?.is_none() {
        progress("creating the database demo.app");
        match admin.simple_query("CREATE SERVER demo ADMIN demo PASSWORD 'demo'").await {
            Ok(_) => {}
            // An earlier start was interrupted right after it.
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::DUPLICATE_OBJECT) => {}
            Err(error) => return Err(error).context("CREATE SERVER demo"),
        }
        rows(&admin, "CREATE DATABASE demo.app").await?;
    }
    loop {
        let app = app().await?;
        if app.is_some_and(|r| r.get("open") == Some("t") && r.get("phase") == Some("stable")) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    // With the server's name: another server may have an `app` too.
    let client = match connect(&layout.url_of("demo.app")).await {
        Ok(client) => client,
        Err(error) if is_not_admitted(&error) => {
            progress("the demo's own login is not admitted any more; see SHOW SERVERS");
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    rows(&client, "SELECT 1").await?;
    Ok(())
}

/// An operator may have changed the password, or what clients show, or from where they come (class 28).
fn is_not_admitted(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<tokio_postgres::Error>().and_then(tokio_postgres::Error::code);
    code.is_some_and(|code| code.code().starts_with("28"))
}

/// The table, the connection string, and three things to try.
pub fn welcome(layout: &Layout, nodes: &Nodes) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY);
    table.set_header(["node", "client", "admin", "http", "pid", "data"]);
    for c in &layout.nodes {
        table.add_row([
            c.name.clone(),
            c.listen.client.to_string(),
            c.listen.admin.to_string(),
            c.listen.http.to_string(),
            nodes.pid(&c.name).map_or_else(String::new, |p| p.to_string()),
            c.data_dir.display().to_string(),
        ]);
    }
    let (url, admin) = (layout.url(), layout.admin_url());
    format!(
        "{table}\n\n\
         connect:  {url}   (any node's client port will do)\n\
         operate:  {admin}\n\n\
         three things to try:\n\
         1. write something:    psql {url} -c 'create table t as select generate_series(1, 1000) i'\n\
         2. kill the primary:   kill -9 $(psql -At {admin} -c 'show replicas' | awk -F'|' '$5 == \"primary\" {{print $10}}')\n\
         3. watch it heal:      psql {url} -c 'select count(*) from t'; psql {admin} -c 'show events' -c 'show replicas'\n"
    )
}
