//! What clients of a database see when they share its server connections.
use crate::common::raw::{RawClient, message, startup};
use crate::common::*;
use quorate_model::{DatabaseOption, PoolMode};
use quorate_proxy::ProxyConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::Client;

/// A cluster whose clients share `size` servers a node, and `demo.t` in its database.
async fn sharing(postgres: &Postgres, size: u16) -> Cluster {
    sharing_with(postgres, size, |_| {}).await
}

async fn sharing_with(postgres: &Postgres, size: u16, change: impl Fn(&mut ProxyConfig)) -> Cluster {
    let admin = postgres.admin().await;
    admin.batch_execute("create table t (a int, b text); grant all on t to demo").await.unwrap();
    let cluster = Cluster::with(change).await;
    cluster.set(DatabaseOption::PoolMode(PoolMode::Transaction));
    cluster.set(DatabaseOption::PoolSize(size));
    cluster.open(1, postgres);
    cluster
}

/// Server processes of clients.
async fn servers(postgres: &Postgres) -> i64 {
    let sql = "select count(*) from pg_stat_activity where usename = 'demo'";
    number(&postgres.admin().await, sql).await.unwrap()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let limit = Instant::now() + 10 * SECOND;
    while !is_so().await {
        assert!(Instant::now() < limit, "in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn text(client: &Client, sql: &str) -> String {
    soon(client.query_one(sql, &[])).await.unwrap().get(0)
}

/// Why sessions keep their servers, at that node.
fn pinned(cluster: &Cluster, node: usize) -> Vec<String> {
    cluster.nodes[node - 1].proxy.pools().1.into_iter().map(|(_, why)| why.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_takes_a_server_from_its_first_statement_on() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 1).await;
    for entry in [1, 2] {
        let (thinks, works) = (cluster.connect(entry).await, cluster.connect(entry).await);
        soon(thinks.batch_execute("begin")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        soon(works.batch_execute("begin")).await.unwrap();
        soon(works.execute("insert into t values (1, 'a')", &[])).await.unwrap();
        soon(works.batch_execute("commit")).await.unwrap();
        soon(thinks.execute("insert into t values (2, 'b')", &[])).await.unwrap();
        soon(thinks.batch_execute("rollback")).await.unwrap();
        let counted = soon(works.query_one("select count(*), max(a) from t", &[])).await.unwrap();
        assert_eq!((counted.get::<_, i64>(0), counted.get::<_, i32>(1)), (entry as i64, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_share_a_few_servers() {
    let postgres = Postgres::start().await;
    let cluster = Arc::new(sharing_with(&postgres, 3, |config| config.workers = 2).await);
    for entry in [1, 2] {
        let mut clients = JoinSet::new();
        for number in 0..16 {
            let cluster = Arc::clone(&cluster);
            clients.spawn(async move {
                let client = cluster.connect(entry).await;
                let name = format!("client {number}");
                soon(
                    client.batch_execute(&format!("set application_name = '{name}'; set app.me = '{name}'")),
                )
                .await
                .unwrap();
                let insert = soon(client.prepare("insert into t values ($1, $2)")).await.unwrap();
                let me = soon(
                    client.prepare("select current_setting('app.me'), current_setting('application_name')"),
                )
                .await
                .unwrap();
                for turn in 0..20 {
                    soon(client.execute(&insert, &[&turn, &name])).await.unwrap();
                    let row = soon(client.query_one(&me, &[])).await.unwrap();
                    assert_eq!((row.get(0), row.get(1)), (name.as_str(), name.as_str()));
                    if turn % 5 == 0 {
                        soon(client.batch_execute("begin; insert into t values (0, 'gone')")).await.unwrap();
                        soon(client.batch_execute("rollback")).await.unwrap();
                    }
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        let count = servers(&postgres).await;
        assert!((1..=6).contains(&count), "{count} servers");
        until("all servers are idle", async || {
            let rows = cluster.nodes[entry - 1].proxy.pools().0;
            rows.len() == 1 && rows[0].used == 0 && rows[0].idle <= 3 && rows[0].waiting == 0
        })
        .await;
    }
    let admin = postgres.admin().await;
    assert_eq!(number(&admin, "select count(*) from t").await.unwrap(), 2 * 16 * 20);
    assert_eq!(number(&admin, "select count(distinct b) from t").await.unwrap(), 16);
    // Where nobody shares servers any more, none is kept for it.
    cluster.set(DatabaseOption::PoolMode(PoolMode::Session));
    until("they are closed", async || servers(&postgres).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_idle_costs_no_server_and_finds_what_it_set() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 2).await;
    let clients: Vec<Client> = futures_join((0..30).map(|n| cluster.connect(1 + n % 2)).collect()).await;
    assert!(servers(&postgres).await <= 4, "two nodes with two servers each");
    soon(
        clients[0].batch_execute("set timezone = 'Asia/Tokyo'; set role demo; set search_path = pg_catalog"),
    )
    .await
    .unwrap();
    for client in &clients {
        soon(client.batch_execute("select 1")).await.unwrap();
        let zone = text(client, "select current_setting('timezone')").await;
        assert_eq!(zone == "Asia/Tokyo", std::ptr::eq(client, &clients[0]));
        let path = text(client, "select current_setting('search_path')").await;
        assert_eq!(path == "pg_catalog", std::ptr::eq(client, &clients[0]));
    }
    // What a transaction takes back, and what it was told only for itself, is not the session's.
    soon(clients[1].batch_execute("begin; set timezone = 'Asia/Tokyo'; rollback")).await.unwrap();
    soon(clients[1].batch_execute("begin; set local timezone = 'Asia/Tokyo'; commit")).await.unwrap();
    assert_ne!(text(&clients[1], "select current_setting('timezone')").await, "Asia/Tokyo");
    soon(clients[0].batch_execute("reset all")).await.unwrap();
    assert_ne!(text(&clients[0], "select current_setting('timezone')").await, "Asia/Tokyo");
}

async fn futures_join<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut done = Vec::new();
    for one in all {
        done.push(soon(one).await);
    }
    done
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_follow_a_client_pins_it() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 2).await;
    let other = cluster.connect(1).await;
    for (make, why, end) in [
        ("listen news", "LISTEN \"news\"", "unlisten news"),
        ("create temp table mine (a int)", "the temporary object \"mine\"", "drop table mine"),
        ("select pg_advisory_lock(7)", "the advisory lock \"0, 7\"", "select pg_advisory_unlock(7)"),
        ("declare c cursor with hold for select 1", "the cursor \"c\"", "close c"),
        ("prepare p as select 1", "statements made by PREPARE", "deallocate p"),
        ("listen news; create temp table mine (a int)", "the temporary object \"mine\"", "discard all"),
    ] {
        let client = cluster.connect(1).await;
        soon(client.batch_execute(make)).await.unwrap();
        until(why, async || pinned(&cluster, 1) == [why]).await;
        let pid = text(&client, "select pg_backend_pid()::text").await;
        for _ in 0..5 {
            // Somebody else gets the other one.
            assert_ne!(text(&other, "select pg_backend_pid()::text").await, pid, "{make}");
            assert_eq!(text(&client, "select pg_backend_pid()::text").await, pid, "{make}");
        }
        soon(client.batch_execute(end)).await.unwrap();
        until(end, async || pinned(&cluster, 1).is_empty()).await;
        until("free again", async || cluster.nodes[0].proxy.pools().0[0].used == 0).await;
    }
    // A session that ends takes its server with it: what it held must not be found by others.
    let client = cluster.connect(1).await;
    soon(client.batch_execute("create temp table mine (a int)")).await.unwrap();
    drop(client);
    until("its server is gone", async || cluster.nodes[0].proxy.pools().0.iter().all(|row| row.used == 0))
        .await;
    for _ in 0..4 {
        assert_eq!(number(&other, "select count(*) from pg_class where relname = 'mine'").await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_come_while_a_client_listens() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 2).await;
    let mut raw = RawClient::log_in(&cluster, 1).await;
    raw.send(b'Q', b"listen news\0").await;
    raw.until_ready().await;
    let client = cluster.connect(2).await;
    soon(client.batch_execute("notify news, 'hello'")).await.unwrap();
    let (tag, body) = raw.message().await;
    assert!(tag == b'A' && body.ends_with(b"news\0hello\0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_keeps_its_server_and_others_wait_in_line() {
    let postgres = Postgres::start().await;
    let cluster = Arc::new(sharing_with(&postgres, 1, |config| config.hold = 2 * SECOND).await);
    let first = cluster.connect(1).await;
    soon(first.batch_execute("begin; insert into t values (1, 'first')")).await.unwrap();
    let mut line = JoinSet::new();
    for number in 0..3 {
        let client = cluster.connect(1).await;
        line.spawn(async move {
            let served = client.batch_execute(&format!("insert into t values (2, '{number}')")).await;
            (served.map_err(|error| code(&error)), client)
        });
        until("it waits", async || cluster.nodes[0].proxy.pools().0[0].waiting == number + 1).await;
    }
    soon(first.batch_execute("commit")).await.unwrap();
    while let Some(served) = soon(line.join_next()).await {
        assert_eq!(served.unwrap().0, Ok(()));
    }
    let order = "select string_agg(b, ',' order by ctid) from t where a = 2";
    assert_eq!(text(&first, order).await, "0,1,2", "in the order in which they came");
    // Not for ever, and the session goes on.
    soon(first.batch_execute("begin; select 1")).await.unwrap();
    let late = cluster.connect(1).await;
    let error = soon(late.batch_execute("select 1")).await.unwrap_err();
    assert_eq!(code(&error), "53300");
    assert!(error.as_db_error().unwrap().hint().unwrap().contains("SHOW POOLS"));
    soon(first.batch_execute("commit")).await.unwrap();
    soon(late.batch_execute("select 1")).await.unwrap();
    // Who goes while it waits is forgotten.
    let mut raw = RawClient::log_in(&cluster, 1).await;
    soon(first.batch_execute("begin; select 1")).await.unwrap();
    raw.send(b'Q', b"insert into t values (3, 'gone')\0").await;
    until("it waits", async || cluster.nodes[0].proxy.pools().0[0].waiting == 1).await;
    drop(raw);
    until("it is forgotten", async || cluster.nodes[0].proxy.pools().0[0].waiting == 0).await;
    soon(first.batch_execute("commit")).await.unwrap();
    assert_eq!(number(&late, "select count(*) from t where a = 3").await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_long_is_told() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 1).await;
    let mut raw = RawClient::log_in(&cluster, 1).await;
    let first = cluster.connect(1).await;
    soon(first.batch_execute("begin; select 1")).await.unwrap();
    raw.send(b'Q', b"select 1\0").await;
    let (tag, body) = raw.message().await;
    assert!(tag == b'N' && String::from_utf8_lossy(&body).contains("waiting for a server connection"));
    soon(first.batch_execute("commit")).await.unwrap();
    assert!(raw.until_ready().await.ends_with(b"I"));
}

/// Names of statements and of values that every step of two clients was given, on servers that change under them.
#[tokio::test(flavor = "multi_thread")]
async fn statements_of_clients_do_not_meet() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 2).await;
    let parse =
        |name: &str, sql: &str| message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"].concat());
    let bind = |name: &str| message(b'B', &[b"\0", name.as_bytes(), &[0; 7]].concat());
    let execute = || [message(b'E', &[0; 5]), message(b'S', &[])].concat();
    let sync = || message(b'S', &[]);
    async fn rows(raw: &mut RawClient, bytes: Vec<u8>) -> (String, Vec<u8>) {
        use tokio::io::AsyncWriteExt;
        raw.0.write_all(&bytes).await.unwrap();
        let mut tags = String::new();
        let mut value = Vec::new();
        for (tag, body) in raw.messages_until_ready().await {
            tags.push(tag as char);
            match tag {
                b'D' => value = body[6..].to_vec(),
                b'E' => value = body,
                _ => {}
            }
        }
        (tags, value)
    }
    // The same name, and the unnamed one, for another thing each.
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut raw = RawClient::log_in(&cluster, 1 + number % 2).await;
        let named = parse("s", &format!("select {number}"));
        assert_eq!(rows(&mut raw, [named, sync()].concat()).await.0, "1Z");
        let unnamed = parse("", &format!("select {}", 100 + number));
        assert_eq!(rows(&mut raw, [unnamed, sync()].concat()).await.0, "1Z");
        clients.push(raw);
    }
    for round in 0..3 {
        // One of the two servers is in use, by another one each time.
        for busy in 0..4 {
            use tokio::io::AsyncWriteExt;
            clients[busy].0.write_all(&message(b'Q', b"begin\0")).await.unwrap();
            clients[busy].until_ready().await;
            for number in (0..4).filter(|number| *number != busy) {
                let raw = &mut clients[number];
                let (tags, value) = rows(raw, [bind("s"), execute()].concat()).await;
                assert_eq!((tags.as_str(), value), ("2DCZ", number.to_string().into_bytes()));
                if round > 0 || busy > 0 {
                    // A query of its own ends it.
                    continue;
                }
                let unnamed = rows(raw, [bind(""), execute()].concat()).await;
                assert_eq!(unnamed, ("2DCZ".to_owned(), (100 + number).to_string().into_bytes()));
            }
            clients[busy].0.write_all(&message(b'Q', b"commit\0")).await.unwrap();
            clients[busy].until_ready().await;
        }
    }
    for raw in &mut clients {
        let (tags, error) = rows(raw, [bind(""), execute()].concat()).await;
        assert!(tags == "EZ" && String::from_utf8_lossy(&error).contains("26000"), "nobody else's");
        let (tags, error) = rows(raw, [bind("other"), execute()].concat()).await;
        assert!(tags == "EZ" && String::from_utf8_lossy(&error).contains("26000"));
        let close = message(b'C', b"Ss\0");
        assert_eq!(rows(raw, [close, sync()].concat()).await.0, "3Z");
        assert_eq!(rows(raw, [bind("s"), execute()].concat()).await.0, "EZ", "closed");
        let deallocate = [parse("d", "select 7"), sync()].concat();
        assert_eq!(rows(raw, deallocate).await.0, "1Z");
        assert_eq!(rows(raw, message(b'Q', b"DEALLOCATE d\0")).await.0, "CZ");
        assert_eq!(rows(raw, [bind("d"), execute()].concat()).await.0, "EZ", "deallocated");
    }
    // A batch that fails in the middle, with a statement that is not on the server yet.
    let raw = &mut clients[0];
    let broken = [parse("x", "select 1"), parse("y", "select nonsense"), bind("x"), execute()].concat();
    assert_eq!(rows(raw, broken).await.0, "1EZ");
    assert_eq!(rows(raw, [bind("x"), execute()].concat()).await.0, "2DCZ");
    assert_eq!(rows(raw, [bind("y"), execute()].concat()).await.0, "EZ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_prepared_after_a_change_of_its_table_works_everywhere() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 2).await;
    // A pool whose servers both know the statement as it was.
    let (old, other) = (cluster.connect(1).await, cluster.connect(1).await);
    let sql = "select * from t";
    let before = soon(old.prepare(sql)).await.unwrap();
    soon(old.query(&before, &[])).await.unwrap();
    soon(other.batch_execute("begin; select 1")).await.unwrap();
    soon(old.query(&before, &[])).await.unwrap();
    soon(other.batch_execute("commit")).await.unwrap();
    postgres
        .admin()
        .await
        .batch_execute("alter table t add column c int; insert into t values (1, 'x', 2)")
        .await
        .unwrap();
    for _ in 0..3 {
        let client = cluster.connect(1).await;
        let after = soon(client.prepare(sql)).await.unwrap();
        for _ in 0..4 {
            let rows = soon(client.query(&after, &[])).await.unwrap();
            assert_eq!((rows.len(), rows[0].len()), (1, 3));
        }
        soon(other.batch_execute("begin; select 1")).await.unwrap();
        assert_eq!(soon(client.query(&after, &[])).await.unwrap()[0].len(), 3);
        soon(other.batch_execute("commit")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_statements_than_are_remembered_pin_a_client() {
    use tokio::io::AsyncWriteExt;
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 2).await;
    let parse = |n: usize| message(b'P', format!("s{n}\0select {n}\0\0\0").as_bytes());
    let mut raw = RawClient::log_in(&cluster, 1).await;
    for from in [0, 600] {
        let batch: Vec<u8> = (from..from + 600).flat_map(parse).chain(message(b'S', b"")).collect();
        raw.0.write_all(&batch).await.unwrap();
        assert_eq!(raw.messages_until_ready().await.len(), 601);
    }
    let why = "more prepared statements than are remembered";
    until(why, async || pinned(&cluster, 1) == [why]).await;
    for n in [0, 599, 1_100, 1_199] {
        let bind = message(b'B', &[b"\0s", n.to_string().as_bytes(), &[0; 7]].concat());
        raw.0.write_all(&[bind, message(b'E', &[0; 5]), message(b'S', b"")].concat()).await.unwrap();
        let said = raw.messages_until_ready().await;
        assert!(said[1].0 == b'D' && said[1].1.ends_with(n.to_string().as_bytes()), "{said:?}");
    }
    raw.send(b'Q', b"deallocate all\0").await;
    raw.until_ready().await;
    until("free again", async || pinned(&cluster, 1).is_empty()).await;
    // And there is an end to it.
    let (mut read, mut write) = raw.0.into_split();
    let batch: Vec<u8> = (0..20_000).flat_map(parse).chain(message(b'S', b"")).collect();
    let writing = tokio::spawn(async move { write.write_all(&batch).await });
    let mut told = Vec::new();
    // It may be cut off with what it goes on to send.
    let _ = soon(tokio::io::AsyncReadExt::read_to_end(&mut read, &mut told)).await;
    drop(soon(writing).await.unwrap());
    assert!(told.windows(5).any(|w| w == b"08P01"), "{} bytes", told.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_cancel_hits_nobody_else() {
    let postgres = Postgres::start().await;
    let cluster = Arc::new(sharing(&postgres, 1).await);
    for entry in [1, 2] {
        let victim = cluster.connect(entry).await;
        let mut turns = JoinSet::new();
        let asks = cluster.connect(entry).await;
        let token = asks.cancel_token();
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        for _ in 0..2 {
            let (token, done) = (token.clone(), Arc::clone(&done));
            turns.spawn(async move {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    let _ = token.cancel_query(tokio_postgres::NoTls).await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
        let mut cancelled = 0;
        for _ in 0..150 {
            // Both use the one server in turn, and only one of them is ever cancelled.
            cancelled += u32::from(soon(asks.batch_execute("select pg_sleep(0.003)")).await.is_err());
            soon(victim.batch_execute("select pg_sleep(0.001)")).await.unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        while let Some(turn) = turns.join_next().await {
            turn.unwrap();
        }
        assert!(cancelled > 0, "no cancel came in time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_share_go_on_at_another_primary() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    let cluster = sharing(&first, 2).await;
    second
        .admin()
        .await
        .batch_execute("create table t (a int, b text); grant all on t to demo")
        .await
        .unwrap();
    let clients: Vec<Client> = futures_join((0..8).map(|n| cluster.connect(1 + n % 2)).collect()).await;
    let mut statements = BTreeMap::new();
    for (number, client) in clients.iter().enumerate() {
        soon(client.batch_execute(&format!("set app.me = '{number}'"))).await.unwrap();
        let statement = soon(client.prepare("select current_setting('app.me') || $1::text")).await.unwrap();
        statements.insert(number, statement);
    }
    let open = &clients[0];
    soon(open.batch_execute("begin; insert into t values (1, 'lost')")).await.unwrap();
    for node in [2, 1] {
        cluster.gate(3 - node).close("its Postgres died");
        cluster.elect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.promote(node as u64);
        cluster.open(node, if node == 2 { &second } else { &first });
        if node == 2 {
            let error = soon(open.batch_execute("insert into t values (1, 'lost')")).await.unwrap_err();
            assert_eq!(code(&error), "40001");
            soon(open.batch_execute("rollback")).await.unwrap();
        }
        for (number, client) in clients.iter().enumerate() {
            let row = soon(client.query_one(&statements[&number], &[&"!"])).await.unwrap();
            assert_eq!(row.get::<_, String>(0), format!("{number}!"));
        }
    }
    assert_eq!(number(&first.admin().await, "select count(*) from t").await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_parks_without_waiting_for_idle_servers() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 4).await;
    let clients: Vec<Client> = futures_join((0..6).map(|n| cluster.connect(1 + n % 2)).collect()).await;
    for client in &clients {
        soon(client.batch_execute("insert into t values (1, 'x')")).await.unwrap();
    }
    let began = Instant::now();
    let parked = cluster.gate(1).park(10 * SECOND).await;
    assert!(parked.cut == 0 && began.elapsed() < 5 * SECOND, "{parked:?}");
    cluster.open(1, &postgres);
    for client in &clients {
        soon(client.batch_execute("insert into t values (2, 'x')")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_server_that_has_ended_is_not_used() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 4).await;
    for entry in [1, 2] {
        let client = cluster.connect(entry).await;
        for _ in 0..5 {
            soon(client.batch_execute("insert into t values (1, 'x')")).await.unwrap();
            let ended =
                "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where usename = 'demo'";
            assert!(number(&postgres.admin().await, ended).await.unwrap() > 0);
            if entry == 2 {
                // Its node is told by the gate's.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        soon(client.batch_execute("insert into t values (1, 'x')")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_come_in_finds_no_server_of_others() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 2).await;
    let client = cluster.connect(1).await;
    soon(client.batch_execute("select 1")).await.unwrap();
    let admin = postgres.admin().await;
    for (deny, permit, code_of) in [
        ("alter role demo nologin", "alter role demo login", "28000"),
        (
            "alter database app owner to quorate; revoke connect on database app from public, demo",
            "grant connect on database app to demo",
            "42501",
        ),
    ] {
        admin.batch_execute(deny).await.unwrap();
        let Err(error) = connect(&cluster.config(1)).await else { panic!("{deny}: came in") };
        assert_eq!(code(&error), code_of, "{error:?}");
        admin.batch_execute(permit).await.unwrap();
        soon(cluster.connect(1).await.batch_execute("select 1")).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_sessions_with_the_same_startup_parameters_share() {
    let postgres = Postgres::start().await;
    let cluster = sharing(&postgres, 2).await;
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        for zone in ["Asia/Tokyo", "UTC", "Europe/Berlin"] {
            let mut raw = RawClient::connect(&cluster, 1).await;
            raw.authenticate(&startup(0, &[("TimeZone", zone)])).await;
            let told = raw.until_ready().await;
            assert!(String::from_utf8_lossy(&told).contains(zone), "told of its own at the beginning");
            raw.send(b'Q', b"select current_setting('timezone')\0").await;
            let said = raw.until_ready().await;
            assert!(String::from_utf8_lossy(&said).contains(zone));
            seen.insert(zone);
            assert!(servers(&postgres).await <= 2, "others make room");
        }
    }
    assert_eq!(seen.len(), 3);
}
