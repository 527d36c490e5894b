//! The tables, with the reach beside each figure.

use super::commits::{Commits, LOCAL, PLAIN};
use super::rounds::{Kind, Round};
use anyhow::ensure;
use comfy_table::{CellAlignment, Table, presets};
use quorate_integration::gaps::Distribution;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// In the order in which they happen; others follow by name.
const STEPS: [&str; 9] =
    ["detect", "retire", "record", "fence", "promote", "attach", "barrier", "lease", "open"];

pub const QUORATE: &str = "Quorate";
pub const PATRONI: &str = "Patroni, defaults";
pub const PATRONI_TUNED: &str = "Patroni, ttl=20 loop_wait=1 retry_timeout=3";

/// The rounds of one kind on one side.
#[derive(Debug, Serialize)]
pub struct Series {
    pub side: &'static str,
    pub kind: Kind,
    pub rounds: Vec<Round>,
}

impl Series {
    fn gaps(&self) -> Distribution {
        distribution(self.rounds.iter().map(|r| r.gap_ms))
    }

    fn reach(&self) -> &'static str {
        match (self.side, self.kind) {
            (QUORATE, Kind::Postmaster) => "p50 <= 200 ms, p99 <= 500 ms",
            (QUORATE, Kind::Node) => "p50 <= 700 ms, p99 <= 1000 ms",
            (QUORATE, Kind::Switchover) => "p99 <= 300 ms, no errors",
            (QUORATE, Kind::Suspicion) => "p99 <= 100 ms, no errors",
            _ => "",
        }
    }
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub series: Vec<Series>,
    pub commits: Vec<Commits>,
}

impl Report {
    pub fn nothing_lost(&self) -> anyhow::Result<()> {
        let ours = self.series.iter().filter(|s| s.side == QUORATE);
        let lost: usize = ours.flat_map(|s| &s.rounds).map(|round| round.lost).sum();
        ensure!(lost == 0, "{lost} commits are not as their clients were told");
        Ok(())
    }

    fn gaps(&self) -> Table {
        let mut table = table(&[
            "longest gap between acknowledged commits",
            "side",
            "rounds",
            "p50",
            "p99",
            "max",
            "errors a round",
            "acknowledged",
            "unknown",
            "lost",
            "reach",
        ]);
        for kind in Kind::ALL {
            for series in self.series.iter().filter(|s| s.kind == kind) {
                let (gaps, count) = (series.gaps(), series.rounds.len());
                let sum = |of: fn(&Round) -> usize| series.rounds.iter().map(of).sum::<usize>().to_string();
                let errors: u64 = series.rounds.iter().map(|r| r.errors).sum();
                table.add_row([
                    kind.name().to_owned(),
                    series.side.to_owned(),
                    count.to_string(),
                    ms(gaps.quantile(0.5)),
                    ms(gaps.quantile(0.99)),
                    ms(gaps.max()),
                    format!("{:.1}", errors as f64 / count.max(1) as f64),
                    sum(|r| r.acknowledged),
                    sum(|r| r.unknown),
                    sum(|r| r.lost),
                    series.reach().to_owned(),
                ]);
            }
        }
        table
    }

    fn split(&self) -> Table {
        let mut table = table(&["of which, for Quorate", "step", "rounds", "p50", "p99", "max"]);
        for series in self.series.iter().filter(|s| s.side == QUORATE) {
            let named: BTreeSet<&str> =
                series.rounds.iter().flat_map(|r| r.steps.keys().map(String::as_str)).collect();
            let known = STEPS.into_iter().filter(|s| named.contains(s));
            let order: Vec<&str> =
                known.chain(named.iter().copied().filter(|s| !STEPS.contains(s))).collect();
            for step in order {
                let times = series.rounds.iter().filter_map(|r| r.steps.get(step).copied());
                table.add_row(line(series.kind.name(), step, distribution(times)));
            }
            // From the fault to the first sign of it, and from the opening to the first commit.
            let rest = series.rounds.iter().map(|r| (r.gap_ms - r.steps.values().sum::<f64>()).max(0.0));
            table.add_row(line(series.kind.name(), "(not in the steps)", distribution(rest)));
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
        if !self.series.is_empty() {
            writeln!(f, "{}\n", self.gaps())?;
        }
        if self.series.iter().any(|s| s.side == QUORATE) {
            writeln!(f, "{}\n", self.split())?;
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
    for column in table.column_iter_mut().skip(2) {
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
