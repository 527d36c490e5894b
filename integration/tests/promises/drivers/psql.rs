//! Sessions of psql, which are told statement by statement what to do, as a script is.

use super::{SESSIONS, Seen};
use anyhow::{Context, ensure};
use quorate_integration::{Endpoint, binaries, driver};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout, Command};

const PAUSE: Duration = Duration::from_millis(80);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const OK: &str = "00000";

/// Holds them until the file appears.
pub async fn sessions(entry: &Endpoint, stop: &Path) -> anyhow::Result<Seen> {
    let sessions = (0..SESSIONS).map(|number| session(entry, stop, number));
    let mut all = Seen::default();
    for seen in futures::future::try_join_all(sessions).await? {
        all.begun += seen.begun;
        all.alive += seen.alive;
        all.turns += seen.turns;
        all.written += seen.written;
        for (sum, part) in [(&mut all.errors, seen.errors), (&mut all.in_blocks, seen.in_blocks)] {
            part.into_iter().for_each(|(code, count)| *sum.entry(code).or_default() += count);
        }
    }
    Ok(all)
}

async fn session(entry: &Endpoint, stop: &Path, number: u32) -> anyhow::Result<Seen> {
    let mut command = Command::new(binaries::postgres("psql")?);
    command.args(["-X", "-q", "-At", &entry.url()]);
    driver::without_defaults(&mut command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().context("starting psql")?;
    let stdin = child.stdin.take().context("its input")?;
    let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let mut psql = Psql { stdin, lines, ended: false };
    let who = format!("psql{number}");
    let (_, code) = psql
        .ask(&format!("SET work_mem = '7MB'; SET app.who = '{who}'; PREPARE plus (int) AS SELECT $1 + 1;"))
        .await?;
    ensure!(code == OK, "psql could not begin: {code}");
    let mut seen = Seen { begun: 1, ..Seen::default() };
    let mut turn = 0;
    while !stop.exists() {
        tokio::time::sleep(PAUSE).await;
        turn += 1;
        psql.turn(&who, number, turn, &mut seen).await?;
        if psql.ended {
            return Ok(seen);
        }
    }
    seen.alive = 1;
    drop(psql);
    child.wait().await?;
    Ok(seen)
}

struct Psql {
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    ended: bool,
}

impl Psql {
    async fn turn(&mut self, who: &str, number: u32, turn: u32, seen: &mut Seen) -> anyhow::Result<()> {
        let write = |step: &str| format!("INSERT INTO turns VALUES ('psql', {number}, {turn}, '{step}');");
        let alone = [
            (
                "SELECT current_setting('work_mem') || ' ' || current_setting('app.who');".to_owned(),
                format!("7MB {who}"),
            ),
            (format!("EXECUTE plus ({number});"), (number + 1).to_string()),
            (write("alone"), String::new()),
        ];
        for (text, expected) in alone {
            let (rows, code) = self.ask(&text).await?;
            if code != OK {
                *seen.errors.entry(code).or_default() += 1;
                return Ok(());
            }
            ensure!(rows == expected, "{text} gave {rows:?}");
        }
        seen.written += 1;
        for text in ["BEGIN;", &write("in a block"), "COMMIT;"] {
            let (_, code) = self.ask(text).await?;
            if code != OK {
                *seen.in_blocks.entry(code).or_default() += 1;
                self.ask("ROLLBACK;").await?;
                return Ok(());
            }
        }
        seen.written += 1;
        seen.turns += 1;
        Ok(())
    }

    /// What a statement answers, and its SQLSTATE.
    async fn ask(&mut self, text: &str) -> anyhow::Result<(String, String)> {
        let mut rows = Vec::new();
        // It ends by itself when its connection has ended: then it takes nothing, and says nothing.
        let _ = self.stdin.write_all(format!("{text}\n\\echo = :SQLSTATE\n").as_bytes()).await;
        loop {
            let line = tokio::time::timeout(ANSWER_LIMIT, self.lines.next_line()).await;
            let Some(line) = line.with_context(|| format!("psql does not answer {text}"))?? else {
                self.ended = true;
                return Ok((rows.join("\n"), "psql ended".to_owned()));
            };
            match line.strip_prefix("= ") {
                Some(code) => return Ok((rows.join("\n"), code.to_owned())),
                None => rows.push(line),
            }
        }
    }
}
