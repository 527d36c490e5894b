//! Programs that come to a port as users do: psql, pgbench, a Python script.

use crate::binaries;
use anyhow::{Context, ensure};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a program said and how it ended.
#[derive(Clone, Debug)]
pub struct Said {
    pub success: bool,
    pub out: String,
    pub err: String,
}

/// Runs psql with `input` on its standard input: no rc file, errors end it, SQLSTATEs shown.
pub async fn psql(url: &str, input: &str, limit: Duration) -> anyhow::Result<Said> {
    let mut command = Command::new(binaries::postgres("psql")?);
    command.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", url]);
    without_defaults(&mut command);
    run(command, input, limit).await
}

/// A service file or a PGPASSWORD of whoever runs the tests must not decide how they end.
pub fn without_defaults(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
}

/// Runs one of `integration/drivers` and expects it to succeed.
pub async fn python(script: &str, args: &[&str], limit: Duration) -> anyhow::Result<String> {
    let path = binaries::sources().join("drivers").join(script);
    let mut command = Command::new(binaries::python()?);
    command.arg(&path).args(args);
    let said = run(command, "", limit).await?;
    ensure!(said.success, "{script} {args:?} failed:\n{}{}", said.out, said.err);
    Ok(said.out)
}

pub async fn run(mut command: Command, input: &str, limit: Duration) -> anyhow::Result<Said> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let shown = format!("{:?}", command.as_std());
    let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // It may end without reading.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = tokio::time::timeout(limit, child.wait_with_output()).await;
    let output = output.with_context(|| format!("{shown} did not end within {limit:?}"))??;
    Ok(Said {
        success: output.status.success(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A GET of `http://127.0.0.1:port/path`: status and body.
pub async fn http_get(port: u16, path: &str) -> anyhow::Result<(u16, String)> {
    use tokio::io::AsyncReadExt;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await??;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}
