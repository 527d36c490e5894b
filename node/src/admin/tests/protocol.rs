//! What drivers do around their queries.

use super::fake::FakeCluster;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_util::sync::CancellationToken;

pub struct Port {
    pub cluster: Arc<FakeCluster>,
    pub address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

pub async fn port() -> Port {
    let cluster = FakeCluster::new();
    let stop = CancellationToken::new();
    let address = cluster.serve(stop.clone()).await;
    Port { cluster, address, _stop: stop.drop_guard() }
}

fn config(address: SocketAddr) -> Config {
    let mut config = Config::new();
    config.host("127.0.0.1").port(address.port()).user("admin").password("admin").dbname("quorate");
    config
}

pub async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

pub async fn admin(port: &Port) -> Client {
    connect(&config(port.address)).await.unwrap()
}

#[tokio::test]
async fn only_the_operator_gets_in() {
    let port = port().await;
    let code = async |change: fn(&mut Config)| {
        let mut config = config(port.address);
        change(&mut config);
        let error = connect(&config).await.err().unwrap();
        let db = error.as_db_error().unwrap();
        (db.code().code().to_owned(), db.severity().to_owned(), db.message().to_owned())
    };
    for change in [
        |c: &mut Config| {
            c.password("wrong");
        },
        |c: &mut Config| {
            c.user("eve");
        },
    ] {
        let (code, severity, message) = code(change).await;
        assert_eq!((code.as_str(), severity.as_str()), ("28P01", "FATAL"));
        assert!(message.starts_with("password authentication failed for user"), "{message}");
    }
    assert_eq!(
        code(|c| {
            c.dbname("app");
        })
        .await
        .0,
        "3D000"
    );
    assert!(admin(&port).await.simple_query("SHOW HELP").await.is_ok());
}

#[tokio::test]
async fn nothing_is_done_before_the_login() {
    let port = port().await;
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    let parameters = b"user\0admin\0database\0quorate\0\0";
    let mut message = Vec::new();
    message.extend_from_slice(&(8 + parameters.len() as u32).to_be_bytes());
    message.extend_from_slice(&196_608u32.to_be_bytes());
    message.extend_from_slice(parameters);
    let query = b"CREATE SERVER eve ADMIN eve PASSWORD 'x'\0";
    message.push(b'Q');
    message.extend_from_slice(&(4 + query.len() as u32).to_be_bytes());
    message.extend_from_slice(query);
    stream.write_all(&message).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    use crate::admin::AdminContext;
    assert!(port.cluster.map().servers.is_empty());
}

#[tokio::test]
async fn drivers_courtesies_are_taken() {
    let port = port().await;
    let client = admin(&port).await;
    for query in ["", ";", "-- nothing", "SET x = 1", "BEGIN", "SELECT 1", "COMMIT", "DISCARD ALL"] {
        client.simple_query(query).await.unwrap_or_else(|e| panic!("{query}: {e}"));
    }
    assert_eq!(client.query_one("SELECT 42", &[]).await.unwrap().get::<_, i64>(0), 42);
    let version: String = client.query_one("SHOW server_version", &[]).await.unwrap().get("server_version");
    assert!(version.starts_with("15.0"), "{version}");
    client.execute("", &[]).await.unwrap();
    client.batch_execute("BEGIN; SHOW NODES; ROLLBACK").await.unwrap();
}

#[tokio::test]
async fn an_error_ends_a_query_and_not_the_connection() {
    let port = port().await;
    let client = admin(&port).await;
    let error = client.simple_query("SHOW DATABSES").await.unwrap_err();
    let db = error.as_db_error().unwrap();
    assert_eq!((db.code(), db.hint()), (&SqlState::SYNTAX_ERROR, Some("Did you mean DATABASES?")));
    assert_eq!(db.position(), Some(&tokio_postgres::error::ErrorPosition::Original(6)));
    let error = client.query("SHOW NODES $1", &[&1i64]).await.unwrap_err();
    assert!(error.as_db_error().is_some(), "{error}");
    assert_eq!(client.query("SHOW NODES", &[]).await.unwrap().len(), 4);
    // The answer to the first order arrives although the second fails.
    let error = client.simple_query("SELECT 1; DROP SERVER nobody").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_OBJECT));
    let messages = client.simple_query("SELECT 1; SHOW VERSION").await.unwrap();
    let rows = messages.iter().filter(|m| matches!(m, SimpleQueryMessage::Row(_))).count();
    assert_eq!(rows, 2);
}

#[tokio::test]
async fn a_full_port_says_so() {
    let port = port().await;
    let mut held = Vec::new();
    for _ in 0..crate::admin::server::MAX_CONNECTIONS {
        held.push(TcpStream::connect(port.address).await.unwrap());
    }
    // Accepting is in order, so this one comes after all of them.
    let error = connect(&config(port.address)).await.err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    drop(held);
}
