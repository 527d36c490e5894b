//! Logins, protocols and cancels, through either node.
use crate::common::raw::RawClient;
use crate::common::*;
use bytes::Bytes;
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

/// Protocol 3.2, and what is newer than what is spoken.
#[tokio::test(flavor = "multi_thread")]
async fn versions_are_negotiated_and_long_keys_cancel() {
    use crate::common::raw::{RawClient, startup};
    use quorate_proxy::wire::startup::cancel_request;
    use tokio::io::AsyncWriteExt;
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    let options = [("_pq_.unheard_of", "x")];
    for (minor, options, negotiated, bytes) in
        [(0, &[][..], None, 4), (2, &[][..], None, 32), (9, &[][..], Some(2), 32), (0, &options, Some(0), 4)]
    {
        let mut client = RawClient::connect(&cluster, 1).await;
        let before = client.authenticate(&startup(minor, options)).await;
        let version = before.first().map(|(tag, body)| {
            assert_eq!(*tag, b'v');
            assert_eq!(body[7] > 0, !options.is_empty(), "options that are not known are named");
            body[3]
        });
        assert_eq!(version, negotiated, "asked for 3.{minor}");
        let answer = client.messages_until_ready().await;
        let (_, key) = answer.iter().find(|(tag, _)| *tag == b'K').unwrap();
        let (pid, secret) = key.split_first_chunk::<4>().unwrap();
        assert_eq!(secret.len(), bytes);
        let cancel = async |secret: &[u8]| {
            let mut other = RawClient::connect(&cluster, 2).await;
            other.0.write_all(&cancel_request(i32::from_be_bytes(*pid), secret)).await.unwrap();
            assert_eq!(other.rest().await, b"");
        };
        client.send(b'Q', b"select pg_sleep(1)\0").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        // The right beginning is not enough, nor is one that is too long.
        let mut wrong = secret.to_vec();
        wrong[bytes - 1] ^= 1;
        cancel(&wrong).await;
        cancel(&[secret, &[0]].concat()).await;
        assert!(!client.until_ready().await.windows(5).any(|w| w == b"57014"));
        client.send(b'Q', b"select pg_sleep(60)\0").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        cancel(secret).await;
        assert!(client.until_ready().await.windows(5).any(|w| w == b"57014"));
    }
}

/// TLS without asking first, and routing by the host name in it.
#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_needs_its_protocol_named() {
    use crate::common::raw::{RawClient, startup};
    use quorate_transport::authority::Authority;
    use rustls_pki_types::ServerName;
    use rustls_pki_types::pem::PemObject;
    let postgres = Postgres::start().await;
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(&directory.path().join("ca")).unwrap();
    authority.issue(quorate_model::NodeId(1), directory.path()).unwrap();
    let file = |name: &str| directory.path().join(name);
    let tls = quorate_proxy::ClientTls::load(&file("node.pem"), &file("node.key")).unwrap();
    let cluster = Cluster::with(|c| c.tls = Some(std::sync::Arc::clone(&tls))).await;
    cluster.open(1, &postgres);
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pki_types::CertificateDer::pem_file_iter(file("ca.pem")).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let connect = async |alpn: &[&[u8]]| {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let tcp = tokio::net::TcpStream::connect(cluster.nodes[0].proxy.address()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        connector.connect(ServerName::try_from("n1.quorate").unwrap(), tcp).await
    };
    let mut client = RawClient(connect(&[b"postgresql"]).await.unwrap());
    client.authenticate(&startup(2, &[])).await;
    client.until_ready().await;
    client.send(b'Q', b"select 40 + 2\0").await;
    assert!(client.until_ready().await.windows(2).any(|w| w == b"42"));
    // Another protocol is refused by TLS, and none at all by the proxy.
    assert!(connect(&[b"http/1.1"]).await.is_err());
    let mut nameless = connect(&[]).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut nameless, &startup(0, &[])).await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(tokio::io::AsyncReadExt::read_to_end(&mut nameless, &mut rest)).await;
    assert_eq!(rest, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_is_refused_with_a_reason() {
    use crate::common::raw::{RawClient, startup};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    // GSSAPI, then TLS, then in plain words: on one connection.
    let mut client = RawClient::connect(&cluster, 1).await;
    for code in [80_877_104u32, 80_877_103] {
        let request = [&8u32.to_be_bytes()[..], &code.to_be_bytes()].concat();
        client.0.write_all(&request).await.unwrap();
        assert_eq!(soon(client.0.read_u8()).await.unwrap(), b'N');
    }
    client.authenticate(&startup(0, &[])).await;
    client.until_ready().await;
    for value in ["true", "database", "1"] {
        let mut client = RawClient::connect(&cluster, 1).await;
        client.0.write_all(&startup(0, &[("replication", value)])).await.unwrap();
        let told = String::from_utf8_lossy(&client.rest().await).into_owned();
        assert!(told.contains("0A000") && told.contains("replication"), "{told}");
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
async fn clients_come_from_where_their_server_allows() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    let before = soon(cluster.connect(2)).await;
    cluster.allow("192.0.2.0/24, ::1");
    let error = soon(connect(&cluster.config(2))).await.err().unwrap();
    assert_eq!(code(&error), "28000");
    assert!(error.as_db_error().unwrap().message().contains("127.0.0.1"), "{error:?}");
    assert_eq!(number(&before, "select 1::int8").await.unwrap(), 1, "who is there stays");
    cluster.allow("127.0.0.0/8");
    soon(cluster.connect(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_that_come_too_fast_are_told_when_to_come_again() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::with(|config| config.logins_per_second = 1).await;
    cluster.open(1, &postgres);
    // Whether or not they know the password.
    let mut wrong = cluster.config(2);
    wrong.password("wrong");
    let refused = loop {
        let error = soon(connect(&wrong)).await.err().unwrap();
        if code(&error) != "28P01" {
            break error;
        }
    };
    assert_eq!(code(&refused), "53400");
    assert!(refused.as_db_error().unwrap().hint().unwrap().contains("milliseconds"));
    // The limit is a node's.
    soon(cluster.connect(1)).await;
    let until = std::time::Instant::now() + 10 * SECOND;
    while connect(&cluster.config(2)).await.is_err() {
        assert!(std::time::Instant::now() < until, "the tenant's own logins come through again");
        tokio::time::sleep(Duration::from_millis(100)).await;
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
    let postgres = Postgres::start().await;
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(&directory.path().join("ca")).unwrap();
    authority.issue(quorate_model::NodeId(1), directory.path()).unwrap();
    let file = |name: &str| directory.path().join(name);
    let tls = quorate_proxy::ClientTls::load(&file("node.pem"), &file("node.key")).unwrap();
    let plain = Cluster::start().await;
    let secure = Cluster::with(|c| c.tls = Some(std::sync::Arc::clone(&tls))).await;
    plain.open(1, &postgres);
    secure.open(1, &postgres);
    for (cluster, options, node) in [
        (&plain, "sslmode=prefer", 1),
        (&secure, "sslmode=require&channel_binding=disable", 1),
        // SCRAM-SHA-256-PLUS.
        (&secure, "sslmode=require&channel_binding=require", 2),
    ] {
        let port = cluster.nodes[node - 1].proxy.address().port();
        let url = format!("postgresql://demo@127.0.0.1:{port}/app?{options}");
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

#[tokio::test(flavor = "multi_thread")]
async fn malformed_streams_end_with_a_reason() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    for bytes in [&b"x\0\0\0\x04"[..], b"Q\0\0\0\x01", b"Q\xff\xff\xff\xff"] {
        let mut raw = RawClient::log_in(&cluster, 1).await;
        raw.0.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        soon(raw.0.read_to_end(&mut rest)).await.unwrap();
        assert!(String::from_utf8_lossy(&rest).contains("08P01"), "{bytes:?}: {rest:?}");
    }
    for bytes in
        [&b"\0\0\0\x04"[..], b"\0\0\xff\xff....", b"\0\0\0\x09\0\x02\0\0\0", b"GET / HTTP/1.1\r\n\r\n"]
    {
        let mut stream = tokio::net::TcpStream::connect(cluster.nodes[0].proxy.address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        soon(stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest.first(), Some(&b'E'), "{bytes:?}");
    }
    // Byte by byte, nothing is different.
    let mut raw = RawClient::log_in(&cluster, 1).await;
    for byte in b"Q\0\0\0\x0dselect 1\0" {
        raw.0.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let answer = raw.until_ready().await;
    assert!(answer.windows(8).any(|w| w == b"SELECT 1"));
}
