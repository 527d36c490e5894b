//! The tables, with the reach beside each figure.

use super::commits::{Commits, LOCAL, PLAIN};
use super::rounds::{Kind, Round};
use anyhow::ensure;
use comfy_table::{CellAlignment, Table, presets};
use quorate_integration::gaps::Distribution;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// In the order in which they happen; others follow by name.
const STEPS: [&str; 8] = ["detect", "record", "fence", "promote", "attach", "barrier", "lease", "open"];

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub failovers: BTreeMap<&'static str, Vec<Round>>,
    pub commits: Vec<Commits>,
}

impl Report {
    pub fn nothing_lost(&self) -> anyhow::Result<()> {
        let lost: usize = self.failovers.values().flatten().map(|round| round.lost).sum();
        ensure!(lost == 0, "{lost} commits are not as their clients were told");
        Ok(())
    }

    fn gaps(&self) -> Table {
        let mut table = table(&[
            "longest gap between acknowledged commits",
            "rounds",
            "p50",
            "p99",
            "max",
            "reach",
            "acknowledged",
            "unknown",
            "lost",
        ]);
        for (kind, rounds) in &self.failovers {
            let gaps = distribution(rounds.iter().map(|r| r.gap_ms));
            let reach = if *kind == Kind::Postmaster.name() { "p50 <= 500 ms" } else { "p50 <= 1500 ms" };
            let sum = |count: fn(&Round) -> usize| rounds.iter().map(count).sum::<usize>().to_string();
            table.add_row([
                (*kind).to_owned(),
                rounds.len().to_string(),
                ms(gaps.quantile(0.5)),
                ms(gaps.quantile(0.99)),
                ms(gaps.max()),
                reach.to_owned(),
                sum(|r| r.acknowledged),
                sum(|r| r.unknown),
                sum(|r| r.lost),
            ]);
        }
        table
    }

    fn split(&self) -> Table {
        let mut table = table(&["of which", "step", "rounds", "p50", "p99", "max"]);
        for (kind, rounds) in &self.failovers {
            let named: BTreeSet<&str> =
                rounds.iter().flat_map(|r| r.steps.keys().map(String::as_str)).collect();
            let known = STEPS.into_iter().filter(|s| named.contains(s));
            let order: Vec<&str> =
                known.chain(named.iter().copied().filter(|s| !STEPS.contains(s))).collect();
            for step in order {
                let times = rounds.iter().filter_map(|r| r.steps.get(step).copied());
                table.add_row(line(kind, step, distribution(times)));
            }
            // From the kill to the first sign of it, and from the opening to the first commit.
            let rest = rounds.iter().map(|r| (r.gap_ms - r.steps.values().sum::<f64>()).max(0.0));
            table.add_row(line(kind, "(not in the steps)", distribution(rest)));
        }
        table
    }

    fn throughput(&self) -> Table {
        let mut table = table(&["pgbench -N", "clients", "tps (median)", "of plain", "p50", "p99", "reach"]);
        for commits in &self.commits {
            let plain = self.commits.iter().find(|c| c.side == PLAIN && c.clients == commits.clients);
            let tps = Commits::median(&commits.tps);
            let ratio = plain.map_or(f64::NAN, |p| tps / Commits::median(&p.tps));
            table.add_row([
                commits.side.to_owned(),
                commits.clients.to_string(),
                format!("{tps:.0}"),
                format!("{:.1} %", ratio * 100.0),
                format!("{:.0} us", Commits::median(&commits.p50_us)),
                format!("{:.0} us", Commits::median(&commits.p99_us)),
                if commits.side == LOCAL { ">= 85 %".to_owned() } else { String::new() },
            ]);
        }
        table
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.failovers.is_empty() {
            writeln!(f, "{}\n{}", self.gaps(), self.split())?;
        }
        if !self.commits.is_empty() {
            writeln!(f, "{}", self.throughput())?;
        }
        Ok(())
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header.to_vec());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn line(kind: &str, step: &str, times: Distribution) -> [String; 6] {
    [
        kind.to_owned(),
        step.to_owned(),
        times.count().to_string(),
        ms(times.quantile(0.5)),
        ms(times.quantile(0.99)),
        ms(times.max()),
    ]
}

fn distribution(milliseconds: impl IntoIterator<Item = f64>) -> Distribution {
    Distribution::of(milliseconds.into_iter().map(|ms| Duration::from_secs_f64(ms.max(0.0) / 1000.0)))
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
