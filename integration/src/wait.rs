//! Waiting for a state to be reached: always with a limit, always saying what was last seen when it was not.

use anyhow::bail;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long between two looks.
pub const POLL: Duration = Duration::from_millis(25);

/// Looks until `probe` gives `Ok(Ok(value))`. `Ok(Err(seen))` and `Err(error)` mean not yet.
pub async fn until<T, S: Debug>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> anyhow::Result<Result<T, S>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    let mut seen = String::from("nothing");
    while started.elapsed() < limit {
        // A probe that hangs (a paused node takes connections and never answers) must not outlive the limit.
        let left = limit.saturating_sub(started.elapsed());
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(Ok(value))) => return Ok(value),
            Ok(Ok(Err(state))) => seen = format!("{state:?}"),
            Ok(Err(error)) => seen = format!("error: {error:#}"),
            Err(_) => seen = format!("{seen}, and then no answer"),
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("{what}: not within {limit:?}; last seen: {seen}")
}

/// The same for something that can be looked at without waiting.
pub async fn until_true(what: &str, limit: Duration, mut probe: impl FnMut() -> bool) -> anyhow::Result<()> {
    until(what, limit, async || Ok(if probe() { Ok(()) } else { Err(()) })).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn says_what_was_last_seen() {
        let limit = Duration::from_millis(60);
        let error = until::<(), _>("seven", limit, async || Ok(Err(6))).await.unwrap_err();
        assert!(error.to_string().contains("last seen: 6"), "{error}");
    }

    #[tokio::test]
    async fn a_probe_that_hangs_ends_at_the_limit() {
        let limit = Duration::from_millis(60);
        let started = Instant::now();
        let hung = until::<(), ()>("never", limit, async || std::future::pending().await).await;
        assert!(hung.is_err());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
