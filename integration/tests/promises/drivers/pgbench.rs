//! pgbench in all its modes, and with a connection for every transaction.

use super::Event;
use anyhow::{Context, ensure};
use quorate_integration::sql::Session;
use quorate_integration::{Endpoint, binaries, driver, pgbench};
use std::time::{Duration, Instant};
use tokio::process::Command;

const SECONDS: u64 = 12;
const LIMIT: Duration = Duration::from_secs(SECONDS + 45);
const CLIENTS: u32 = 2;
/// Transactions a second: it is one among many here.
const RATE: &str = "20";
const RUNS: [&[&str]; 4] =
    [&["-M", "simple"], &["-M", "extended"], &["-M", "prepared"], &["-M", "simple", "-C"]];

/// Makes its tables.
pub async fn prepare(entry: &Endpoint) -> anyhow::Result<()> {
    pgbench::fill(&entry.url(), 1).await
}

/// All of its runs at once, while something happens: each of their transactions is there in the end, and no other.
pub async fn during(
    entry: &Endpoint,
    looker: &Session,
    event: Event,
    happening: impl Future<Output = anyhow::Result<Instant>>,
) -> anyhow::Result<()> {
    let url = entry.url();
    let began = Instant::now();
    let runs = async {
        let said = futures::future::try_join_all(RUNS.map(|words| run(&url, words))).await;
        (said, began.elapsed())
    };
    let happened = async { (happening.await, began.elapsed()) };
    let ((said, ran), (happened, took)) = tokio::join!(runs, happened);
    happened?;
    ensure!(took < ran, "it was over after {ran:?}, and {event:?} took {took:?}");
    let mut written = 0;
    for (words, said) in RUNS.iter().zip(said?) {
        let count = |name: &str| -> anyhow::Result<u64> {
            let found = said
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().split([' ', '/']).next()?.parse().ok());
            found.with_context(|| format!("pgbench {words:?} says no {name}\n{said}"))
        };
        let done = count("number of transactions actually processed:")?;
        let (failed, retried) =
            (count("number of failed transactions:")?, count("number of transactions retried:")?);
        eprintln!("{event:?}, pgbench {words:?}: {done} transactions, {retried} of them tried again");
        ensure!(done > 0 && failed == 0, "pgbench {words:?}: {said}");
        let most = if event == Event::Switchovers { 0 } else { CLIENTS };
        ensure!(retried <= u64::from(most), "pgbench {words:?}: {said}");
        written += done;
    }
    let sums = "SELECT count(*), sum(delta) = (SELECT sum(abalance) FROM pgbench_accounts) \
        AND sum(delta) = (SELECT sum(bbalance) FROM pgbench_branches) \
        AND sum(delta) = (SELECT sum(tbalance) FROM pgbench_tellers) FROM pgbench_history";
    let found = looker.rows(sums).await?;
    ensure!(
        found == [[Some(written.to_string()), Some("t".to_owned())].to_vec()],
        "of {written} transactions there is {found:?}"
    );
    Ok(())
}

async fn run(url: &str, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(binaries::postgres("pgbench")?);
    driver::without_defaults(&mut command);
    // What is told as 40001 it tries again, as an application would.
    command.args(["-n", "--max-tries=3", "-T", &SECONDS.to_string(), "-R", RATE]);
    // A thread each: it waits for a connection with all of its clients, and a transaction of theirs would not be ended.
    command.args(["-c", &CLIENTS.to_string(), "-j", &CLIENTS.to_string()]);
    command.args(words).arg(url);
    let said = driver::run(command, "", LIMIT).await?;
    ensure!(said.success, "pgbench {words:?}: {}{}", said.out, said.err);
    Ok(said.out)
}
