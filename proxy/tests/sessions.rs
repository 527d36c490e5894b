//! Logins, protocols and cancels, through either node.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::*;
use futures::{SinkExt, TryStreamExt};
use std::time::Duration;
use tokio_postgres::NoTls;

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_checked_as_postgres_does() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    for node in [1, 2] {
        let client = soon(cluster.connect(node)).await;
        assert_eq!(number(&client, "select 41 + 1").await.unwrap(), 42);
        let fails = async |user: &str, password: &str, name: &str| {
            let mut config = cluster.config(node);
            config.user(user).password(password).dbname(name);
            let error = soon(connect(&config)).await.err().unwrap();
            let hint = error.as_db_error().is_some_and(|e| e.hint().is_some());
            (code(&error), hint)
        };
        assert_eq!(fails("demo", "wrong", "app").await, ("28P01".into(), true));
        assert_eq!(fails("nobody", "demo", "app").await, ("28P01".into(), true));
        assert_eq!(fails("late", "late", "app").await, ("28P01".into(), true));
        assert_eq!(fails("nologin", "demo", "app").await.0, "28000");
        assert_eq!(fails("quorate", "x", "app").await, ("28000".into(), true));
        assert_eq!(fails("demo", "demo", "nothing").await, ("3D000".into(), true));
        let mut config = cluster.config(node);
        config.user("demo@demo");
        assert!(soon(connect(&config)).await.is_ok());
        config.user("demo").dbname("demo.app").application_name("x y");
        let client = soon(connect(&config)).await.unwrap();
        let row = client.query_one("show application_name", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "x y");
        // A password takes effect at once.
        let admin = postgres.admin().await;
        admin.batch_execute(&format!("ALTER ROLE nologin LOGIN PASSWORD '{node}'")).await.unwrap();
        config.user("nologin").password(node.to_string());
        assert!(soon(connect(&config)).await.is_ok());
        admin.batch_execute("ALTER ROLE nologin NOLOGIN PASSWORD 'demo'").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_protocols_copies_and_large_results_pass() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    for node in [1, 2] {
        let mut client = soon(cluster.connect(node)).await;
        client.batch_execute("drop table if exists t; create table t (a int, b text)").await.unwrap();
        let statement = client.prepare("insert into t values ($1, $2)").await.unwrap();
        for i in 0..10 {
            client.execute(&statement, &[&i, &"x"]).await.unwrap();
        }
        let transaction = client.transaction().await.unwrap();
        transaction.execute("insert into t values (100, 'rolled back')", &[]).await.unwrap();
        transaction.rollback().await.unwrap();
        assert_eq!(number(&client, "select count(*) from t").await.unwrap(), 10);

        let sink = client.copy_in("copy t from stdin").await.unwrap();
        tokio::pin!(sink);
        for i in 0..200 {
            let rows: String =
                (0..100).map(|j| format!("{}\tsome text that is copied\n", i * 100 + j)).collect();
            sink.send(Bytes::from(rows)).await.unwrap();
        }
        assert_eq!(soon(sink.finish()).await.unwrap(), 20_000);
        let out: Vec<Bytes> = client.copy_out("copy t to stdout").await.unwrap().try_collect().await.unwrap();
        let lines = out.iter().flat_map(|b| b.iter()).filter(|b| **b == b'\n').count();
        assert_eq!(lines, 20_010);

        // Larger than any buffer, in both directions.
        let large = "y".repeat(5_000_000);
        let row = soon(client.query_one("select $1::text, length($1)", &[&large])).await.unwrap();
        assert!(row.get::<_, &str>(0) == large && row.get::<_, i32>(1) == 5_000_000);
        let text = format!("select length('{large}')");
        assert_eq!(soon(number(&client, &text)).await.unwrap(), 5_000_000);

        let error = client.batch_execute("select 1/0").await.unwrap_err();
        assert_eq!(code(&error), "22012");
        // A pipeline.
        let (a, b) = tokio::join!(client.query_one("select 1", &[]), client.query_one("select 2", &[]));
        assert_eq!((a.unwrap().get::<_, i32>(0), b.unwrap().get::<_, i32>(0)), (1, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_reaches_the_backend_from_any_node() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    for entry in [1, 2] {
        for asked in [1, 2] {
            let client = soon(cluster.connect(entry)).await;
            let pid = number(&client, "select pg_backend_pid()").await.unwrap();
            assert!(pid > 0);
            let token = client.cancel_token();
            // A cancel while nothing runs does not hit what comes next.
            let port = cluster.nodes[asked - 1].proxy.address().port();
            let cancel = async |token: &tokio_postgres::CancelToken| {
                let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                token.cancel_query_raw(stream, NoTls).await.unwrap();
            };
            cancel(&token).await;
            // The driver does not wait until it is taken.
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert_eq!(number(&client, "select 1 from pg_sleep(0.2)").await.unwrap(), 1);
            let running = client.batch_execute("select pg_sleep(60)");
            let cancelling = async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                cancel(&token).await;
            };
            let (result, ()) = soon(async { tokio::join!(running, cancelling) }).await;
            assert_eq!(code(&result.unwrap_err()), "57014", "entered at {entry}, cancelled at {asked}");
            assert_eq!(number(&client, "select 7").await.unwrap(), 7);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_waits_until_the_gate_opens_and_not_for_ever() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::with(|c| c.hold = 3 * SECOND).await;
    cluster.elect();
    for node in [1, 2] {
        let error = soon(connect(&cluster.config(node))).await.err().unwrap();
        assert_eq!(code(&error), "57P03");
        let error = error.as_db_error().unwrap();
        assert!(error.detail().unwrap().contains("electing"), "{:?}", error.detail());
        assert!(error.hint().is_some());
    }
    let configs = [cluster.config(1), cluster.config(2)];
    let waiting = configs.map(|c| tokio::spawn(async move { connect(&c).await }));
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.promote(1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.open(1, &postgres);
    for login in waiting {
        let client = soon(login).await.unwrap().unwrap();
        assert_eq!(number(&client, "select 3").await.unwrap(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_node_says_so() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(soon(cluster.connect(2)).await);
    }
    let error = soon(connect(&cluster.config(2))).await.err().unwrap();
    assert_eq!(code(&error), "53300");
    drop(clients.pop());
    let until = std::time::Instant::now() + 10 * SECOND;
    while connect(&cluster.config(2)).await.is_err() {
        assert!(std::time::Instant::now() < until);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_weaken_commits_are_refused_in_their_place() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    for node in [1, 2] {
        let client = soon(cluster.connect(node)).await;
        for text in ["set synchronous_commit = off", "select set_config('synchronous_commit', 'off', false)"]
        {
            let error = client.batch_execute(text).await.unwrap_err();
            assert_eq!(code(&error), "0A000");
            assert!(error.as_db_error().unwrap().hint().is_some());
            let error = client.query(text, &[]).await.unwrap_err();
            assert_eq!(code(&error), "0A000");
        }
        let error =
            client.query("select set_config($1, 'off', false)", &[&"synchronous_commit"]).await.unwrap_err();
        assert_eq!(code(&error), "0A000");
        let shown = client.query_one("show synchronous_commit", &[]).await.unwrap();
        assert_eq!(shown.get::<_, &str>(0), "on");
        // Inside a transaction it fails it, as any error does.
        client.batch_execute("begin").await.unwrap();
        assert_eq!(code(&client.batch_execute("set synchronous_commit = off").await.unwrap_err()), "0A000");
        assert_eq!(code(&client.batch_execute("select 1").await.unwrap_err()), "25P02");
        client.batch_execute("rollback").await.unwrap();
        assert_eq!(number(&client, "select 5").await.unwrap(), 5);
        let mut config = cluster.config(node);
        config.options("-c synchronous_commit=off");
        assert_eq!(code(&soon(connect(&config)).await.err().unwrap()), "0A000");
    }
}

/// libpq through psql, with TLS and without.
#[tokio::test(flavor = "multi_thread")]
async fn psql_connects_with_and_without_tls() {
    use quorate_transport::authority::Authority;
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let postgres = Postgres::start().await;
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(&directory.path().join("ca")).unwrap();
    authority.issue(quorate_model::NodeId(1), directory.path()).unwrap();
    let chain = CertificateDer::pem_file_iter(directory.path().join("node.pem")).unwrap().flatten().collect();
    let key = PrivateKeyDer::from_pem_file(directory.path().join("node.key")).unwrap();
    let tls = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let tls = std::sync::Arc::new(tls);
    let plain = Cluster::start().await;
    let secure = Cluster::with(|c| c.tls = Some(std::sync::Arc::clone(&tls))).await;
    plain.open(1, &postgres);
    secure.open(1, &postgres);
    for (cluster, mode, node) in [(&plain, "prefer", 1), (&secure, "require", 1), (&secure, "require", 2)] {
        let port = cluster.nodes[node - 1].proxy.address().port();
        let url = format!("postgresql://demo@127.0.0.1:{port}/app?sslmode={mode}");
        let script = "select repeat('z', 200000);\nselect 'ssl', 40 + 2;\n\\copy (select generate_series(1, 3)) to stdout\n";
        let output = tokio::task::spawn_blocking(move || {
            let mut psql = std::process::Command::new(bin("psql"))
                .args(["-XAt", "-v", "ON_ERROR_STOP=1", &url])
                .env("PGPASSWORD", "demo")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut psql.stdin.take().unwrap(), script.as_bytes()).unwrap();
            psql.wait_with_output().unwrap()
        });
        let output = soon(output).await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.ends_with("ssl|42\n1\n2\n3\n") && text.len() > 200_000, "{}", text.len());
    }
}
