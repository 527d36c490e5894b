//! Streams of real sessions, cut anywhere: the proxy's answers are those of Postgres, byte for byte.
use crate::common::raw::{RawClient, message};
use crate::common::*;
use quorate_model::{DatabaseOption, PoolMode};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

fn query(text: &str) -> Vec<u8> {
    message(b'Q', &[text.as_bytes(), b"\0"].concat())
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat())
}

/// With text parameters.
fn bind(portal: &str, statement: &str, values: &[&str]) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", statement.as_bytes(), b"\0\0\0"].concat();
    body.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    message(b'B', &body)
}

fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat())
}

fn named(tag: u8, kind: u8, name: &str) -> Vec<u8> {
    message(tag, &[&[kind][..], name.as_bytes(), b"\0"].concat())
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn flush() -> Vec<u8> {
    message(b'H', b"")
}

/// `int4pl(2, 40)`, with text arguments.
fn function_call() -> Vec<u8> {
    let argument = |text: &[u8]| [&(text.len() as u32).to_be_bytes()[..], text].concat();
    let arguments = [argument(b"2"), argument(b"40")].concat();
    message(b'F', &[&177u32.to_be_bytes()[..], &[0, 0, 0, 2], &arguments, &[0, 0]].concat())
}

/// Everything that a client may say, each ended by Terminate.
fn streams() -> Vec<(&'static str, Vec<u8>)> {
    let large = "x".repeat(100_000);
    let copied: String = (0..3000).map(|i| format!("{i}\tsome text\n")).collect();
    let rows: Vec<Vec<u8>> = copied.as_bytes().chunks(777).map(|c| message(b'd', c)).collect();
    let all = vec![
        ("simple", vec![query("select 1; select 'a', null; select 1/0; select 2"), query(""), query(";")]),
        (
            "transactions",
            vec![
                query("begin"),
                query("create temp table s (a int)"),
                query("savepoint x; select nothing"),
                query("rollback to x"),
                query("commit; select 3"),
            ],
        ),
        (
            "pipelines",
            vec![
                parse("", "select $1::text"),
                bind("", "", &["one"]),
                named(b'D', b'P', ""),
                execute("", 0),
                sync(),
                parse("s1", "select $1::int + 1"),
                named(b'D', b'S', "s1"),
                bind("", "s1", &["no number"]),
                execute("", 0),
                bind("", "s1", &["1"]),
                sync(),
                bind("", "s1", &["41"]),
                flush(),
                execute("", 0),
                named(b'C', b'S', "s1"),
                sync(),
                sync(),
            ],
        ),
        (
            "portals",
            vec![
                query("begin"),
                parse("", "select generate_series(1, 10)"),
                bind("p", "", &[]),
                execute("p", 3),
                flush(),
                execute("p", 4),
                sync(),
                execute("p", 0),
                named(b'C', b'P', "p"),
                execute("p", 1),
                sync(),
                query("rollback"),
            ],
        ),
        (
            "copies",
            vec![
                query("create temp table c (a int, b text)"),
                query("copy c from stdin"),
                rows.concat(),
                message(b'c', b""),
                query("copy c to stdout"),
                query("copy c from stdin"),
                message(b'd', b"no number\tx\n"),
                message(b'c', b""),
                query("copy c from stdin"),
                message(b'f', b"changed my mind\0"),
                parse("", "copy c from stdin"),
                bind("", "", &[]),
                execute("", 0),
                message(b'd', b"7\tx\n"),
                message(b'c', b""),
                sync(),
                query("select count(*) from c"),
            ],
        ),
        (
            "large",
            vec![
                query(&format!("select length('{large}')")),
                parse("", "select $1::text || $1::text"),
                bind("", "", &[&large]),
                execute("", 0),
                sync(),
                query("select repeat('y', 200000), generate_series(1, 3)"),
                query("do $$ begin raise notice '%', repeat('n', 50000); end $$"),
            ],
        ),
        (
            "settings",
            vec![
                query("set application_name = 'fragments'"),
                query("begin; set local timezone = 'Asia/Tokyo'; rollback"),
                query("do $$ begin raise warning 'careful'; end $$; listen l; unlisten *"),
                function_call(),
                query("select lo_from_bytea(0, 'abc') > 0"),
            ],
        ),
    ];
    all.into_iter().map(|(name, parts)| (name, [parts.concat(), message(b'X', b"")].concat())).collect()
}

/// Sends the bytes cut at the given places, and returns everything that comes back until the end.
async fn replay<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    client: RawClient<S>,
    stream: &[u8],
    cuts: &[usize],
    pause: bool,
) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(client.0);
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.unwrap();
        all
    });
    let mut from = 0;
    for to in cuts.iter().copied().chain([stream.len()]) {
        writer.write_all(&stream[from..to]).await.unwrap();
        writer.flush().await.unwrap();
        from = to;
        if pause {
            tokio::time::sleep(Duration::from_micros(300)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    soon(reading).await.unwrap()
}

fn first_difference(a: &[u8], b: &[u8]) -> String {
    let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
    let around = |all: &[u8]| {
        String::from_utf8_lossy(&all[at.saturating_sub(40).min(all.len())..(at + 60).min(all.len())])
            .into_owned()
    };
    format!("at {at} of {} and {}: {:?} / {:?}", a.len(), b.len(), around(a), around(b))
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_cut_at_random_places_have_the_answers_of_postgres() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    let seed =
        std::env::var("FRAGMENTS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("FRAGMENTS_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    for (name, stream) in streams() {
        let expected = replay(RawClient::direct(&postgres).await, &stream, &[], false).await;
        let again = replay(RawClient::direct(&postgres).await, &stream, &[], false).await;
        assert!(expected == again, "{name} is the same each time");
        // By a node that is the primary's or not, with a server of the client's own or one that is shared.
        for (node, mode, rounds) in [
            (1, PoolMode::Session, 12),
            (2, PoolMode::Session, 12),
            (1, PoolMode::Transaction, 6),
            (2, PoolMode::Transaction, 6),
        ] {
            cluster.set(DatabaseOption::PoolMode(mode));
            for round in 0..rounds {
                let few = rng.random_range(0..30);
                let cuts = match round {
                    0 => Vec::new(),
                    // Byte by byte, as far as it is not too much.
                    1 => (1..stream.len().min(3000)).collect(),
                    // Within the first messages.
                    2 => (0..8).map(|_| rng.random_range(0..stream.len().min(60))).collect(),
                    _ => (0..few).map(|_| rng.random_range(0..stream.len())).collect::<Vec<_>>(),
                };
                let mut cuts = cuts;
                cuts.sort_unstable();
                let pause = round % 2 == 0 && cuts.len() < 100;
                let got = replay(RawClient::log_in(&cluster, node).await, &stream, &cuts, pause).await;
                assert!(
                    got == expected,
                    "{name} by node {node}, {}, cut at {cuts:?}: {}",
                    mode.name(),
                    first_difference(&got, &expected)
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_only_listens_any_more_gets_its_answer() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::start().await;
    cluster.open(1, &postgres);
    for node in [1, 2] {
        let mut client = RawClient::log_in(&cluster, node).await;
        client.send(b'Q', b"select repeat('z', 300000), pg_sleep(0.2)\0").await;
        client.0.shutdown().await.unwrap();
        let rest = client.rest().await;
        assert!(rest.len() > 300_000 && rest.ends_with(b"Z\0\0\0\x05I"), "{}", rest.len());
        // One that leaves in the middle of a message ends, and its backend with it.
        let mut client = RawClient::log_in(&cluster, node).await;
        client.0.write_all(b"Q\0\0\0\x40select").await.unwrap();
        client.0.shutdown().await.unwrap();
        assert_eq!(client.rest().await, b"");
    }
    let admin = postgres.admin().await;
    let until = std::time::Instant::now() + 10 * SECOND;
    while number(&admin, "select count(*) from pg_stat_activity where usename = 'demo'").await.unwrap() > 0 {
        assert!(std::time::Instant::now() < until, "no backend is left behind");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
