//! Transaction blocks: when their server opens them, and what becomes of them when it is lost.
use crate::common::raw::{RawClient, message};
use crate::common::*;
use quorate_model::{DatabaseOption, PoolMode};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_block_in_which_nothing_was_done_is_opened_at_the_next_primary() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    second.admin().await.batch_execute("create table t (a int); grant all on t to demo").await.unwrap();
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &first);
        let client = soon(cluster.connect(entry)).await;
        client.batch_execute("select 1").await.unwrap();
        cluster.gate(1).close("its Postgres died");
        cluster.elect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        // There is no primary, and none is needed for this.
        soon(client.batch_execute("begin")).await.unwrap();
        cluster.promote(2);
        cluster.open(2, &second);
        soon(client.batch_execute("insert into t values (1)")).await.unwrap();
        soon(client.batch_execute("rollback")).await.unwrap();
        let admin = second.admin().await;
        assert_eq!(number(&admin, "select count(*) from t").await.unwrap(), 0, "it was in the block");
        soon(client.batch_execute("begin")).await.unwrap();
        soon(client.execute("insert into t values (2)", &[])).await.unwrap();
        soon(client.batch_execute("commit")).await.unwrap();
        assert_eq!(number(&admin, "select count(*) from t where a = 2").await.unwrap(), 1);
        admin.batch_execute("truncate t").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_in_which_nothing_is_sent_is_open_at_its_server_soon() {
    let postgres = Postgres::start().await;
    let admin = postgres.admin().await;
    for entry in [1, 2] {
        let cluster = Cluster::start().await;
        cluster.open(1, &postgres);
        let client = soon(cluster.connect(entry)).await;
        client.batch_execute("set application_name = 'waiting'; select 1").await.unwrap();
        client.batch_execute("begin").await.unwrap();
        let open = "select count(*) from pg_stat_activity where application_name = 'waiting' \
                    and state = 'idle in transaction'";
        let until = Instant::now() + 10 * SECOND;
        while number(&admin, open).await.unwrap() == 0 {
            assert!(Instant::now() < until, "its block is not opened");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let ago = "select now() < clock_timestamp() - interval '300 ms'";
        assert!(client.query_one(ago, &[]).await.unwrap().get::<_, bool>(0), "its time is that of its BEGIN");
        client.batch_execute("select nothing").await.unwrap_err();
        assert_eq!(code(&client.batch_execute("select 1").await.unwrap_err()), "25P02");
        client.batch_execute("commit; select 1").await.unwrap();
    }
}

/// A client that does not look at what it is told (a script, a queue of requests) must not have the rest of a lost block
/// committed piece by piece: the block has failed until the client ends it, as with any error.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_lost_has_failed_until_it_is_ended() {
    let (first, second) = (Postgres::start().await, Postgres::start().await);
    for postgres in [&first, &second] {
        postgres.admin().await.batch_execute("create table t (a int); grant all on t to demo").await.unwrap();
    }
    let query = |text: &str| message(b'Q', &[text.as_bytes(), b"\0"].concat());
    let extended = |text: &str| {
        let parse = message(b'P', &[b"\0", text.as_bytes(), b"\0\0\0"].concat());
        [parse, message(b'B', &[0; 8]), message(b'E', &[0; 5]), message(b'S', &[])].concat()
    };
    async fn said(raw: &mut RawClient, bytes: Vec<u8>) -> String {
        use tokio::io::AsyncWriteExt;
        raw.0.write_all(&bytes).await.unwrap();
        let mut said = String::new();
        for (tag, body) in raw.messages_until_ready().await {
            said.push(tag as char);
            let text = String::from_utf8_lossy(&body).into_owned();
            match tag {
                b'E' => said += text.split('\0').find_map(|field| field.strip_prefix('C')).unwrap(),
                b'C' => said += text.trim_end_matches('\0'),
                b'Z' => said += &text,
                _ => {}
            }
        }
        said
    }
    for (entry, mode) in [
        (1, PoolMode::Session),
        (2, PoolMode::Session),
        (1, PoolMode::Transaction),
        (2, PoolMode::Transaction),
    ] {
        let cluster = Cluster::start().await;
        cluster.set(DatabaseOption::PoolMode(mode));
        cluster.open(1, &first);
        let mut clients = Vec::new();
        for _ in 0..5 {
            let mut raw = RawClient::log_in(&cluster, entry).await;
            assert_eq!(said(&mut raw, query("begin")).await, "CBEGINZT");
            assert_eq!(said(&mut raw, query("insert into t values (1)")).await, "CINSERT 0 1ZT");
            clients.push(raw);
        }
        fail_over(&cluster, 2, &second, true).await;
        let [simple, other, commits, rolls_back, again] = &mut clients[..] else { panic!("five clients") };
        let insert = "insert into t values (2)";
        assert_eq!(said(simple, query(insert)).await, "E40001ZE");
        assert_eq!(said(simple, query(insert)).await, "E25P02ZE");
        assert_eq!(said(simple, query("commit")).await, "CROLLBACKZI", "nothing is left to be committed");
        assert_eq!(said(simple, query("insert into t values (3)")).await, "CINSERT 0 1ZI");
        // What cannot fail does not, and the error is for what can.
        assert_eq!(said(other, [message(b'C', b"Sx\0"), message(b'S', b"")].concat()).await, "3ZT");
        assert_eq!(said(other, extended(insert)).await, "E40001ZE");
        assert_eq!(said(other, extended(insert)).await, "E25P02ZE");
        assert_eq!(said(other, extended("rollback")).await, "12CROLLBACKZI");
        // What was to end the block has ended it, whatever it is told.
        assert_eq!(said(commits, extended("commit")).await, "E40001ZI");
        assert_eq!(said(rolls_back, query("rollback")).await, "E40001ZI");
        // Lost again before its end: that is known already.
        assert_eq!(said(again, query(insert)).await, "E40001ZE");
        fail_over(&cluster, 1, &first, true).await;
        assert_eq!(said(again, query(insert)).await, "E25P02ZE");
        assert_eq!(said(again, query("rollback")).await, "CROLLBACKZI");
        for client in [commits, rolls_back, again] {
            assert_eq!(said(client, query("begin")).await, "CBEGINZT");
            assert_eq!(said(client, extended("rollback")).await, "12CROLLBACKZI");
        }
        let lost = "select count(*) from t where a < 3";
        for postgres in [&first, &second] {
            assert_eq!(number(&postgres.admin().await, lost).await.unwrap(), 0);
        }
    }
}

/// As with PostgreSQL's own BEGIN.
#[tokio::test(flavor = "multi_thread")]
async fn opening_a_block_ends_the_unnamed_statement() {
    use tokio::io::AsyncWriteExt;
    let postgres = Postgres::start().await;
    for (entry, mode) in [(1, PoolMode::Session), (2, PoolMode::Session), (1, PoolMode::Transaction)] {
        let cluster = Cluster::start().await;
        cluster.set(DatabaseOption::PoolMode(mode));
        cluster.open(1, &postgres);
        let mut raw = RawClient::log_in(&cluster, entry).await;
        raw.0.write_all(&[message(b'P', b"\0select 7\0\0\0"), message(b'S', &[])].concat()).await.unwrap();
        raw.until_ready().await;
        raw.send(b'Q', b"begin\0").await;
        raw.until_ready().await;
        let bind = [message(b'B', &[0; 8]), message(b'E', &[0; 5]), message(b'S', &[])].concat();
        raw.0.write_all(&bind).await.unwrap();
        let said = raw.messages_until_ready().await;
        assert_eq!(said.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), b"EZ", "{mode:?}: {said:?}");
        assert!(said[0].1.windows(5).any(|code| code == b"26000"), "{said:?}");
        assert_eq!(said[1].1, b"E");
    }
}
