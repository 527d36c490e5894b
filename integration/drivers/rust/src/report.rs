//! What the sessions of a driver saw.

use anyhow::ensure;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default, Serialize)]
pub struct Seen {
    pub begun: u32,
    pub alive: u32,
    pub turns: u32,
    pub written: u32,
    pub errors: BTreeMap<String, u32>,
    pub in_blocks: BTreeMap<String, u32>,
}

#[derive(Default, Serialize)]
#[serde(transparent)]
pub struct Report(Mutex<Seen>);

/// Where in its turn a session is.
#[derive(Clone, Copy, PartialEq)]
pub enum Step {
    Alone,
    InBlock,
}

impl Report {
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first half of a turn has gone well: what the session holds, and its answer, are its own.
    pub fn alone(&self, who: &str, number: i32, (held, answer): (String, i32)) -> anyhow::Result<()> {
        ensure!(held == format!("7MB {who}") && answer == number + 1, "{who} holds {held}, {answer}");
        self.seen().written += 1;
        Ok(())
    }

    /// The second half has, and finds so many rows of the turn.
    pub fn in_block(&self, who: &str, rows: i64) -> anyhow::Result<()> {
        ensure!(rows == 2, "{who} finds {rows} rows");
        let mut seen = self.seen();
        seen.written += 1;
        seen.turns += 1;
        Ok(())
    }

    /// `code`: its SQLSTATE, if the server told one.
    pub fn failed(&self, step: Step, code: Option<&str>, error: &dyn std::error::Error) {
        let mut seen = self.seen();
        let errors = if step == Step::Alone { &mut seen.errors } else { &mut seen.in_blocks };
        *errors.entry(code.map_or_else(|| error.to_string(), str::to_owned)).or_default() += 1;
    }
}
