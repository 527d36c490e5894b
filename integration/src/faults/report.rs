//! What a run of faults comes to.

use super::Kind;
use crate::gaps::Distribution;
use crate::ledger::Verdict;
use comfy_table::{CellAlignment, Table, presets};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Outcome {
    pub kind: Kind,
    /// The longest time in which no client at all was told of a commit.
    pub gap: Duration,
    /// From the end of the fault until three copies were there, stable and open.
    pub healed_after: Duration,
}

#[derive(Debug, Default)]
pub struct Report {
    pub faults: usize,
    pub acknowledged: usize,
    pub lost: usize,
    pub stale: usize,
    pub unknown: usize,
    pub failed: usize,
    pub reads: u64,
    by_kind: BTreeMap<Kind, (Distribution, Distribution)>,
}

impl Report {
    pub fn add(&mut self, outcomes: Vec<Outcome>, verdict: &Verdict) {
        self.faults += outcomes.len();
        self.acknowledged += verdict.acknowledged;
        self.lost += verdict.lost.len() + verdict.undead.len() + verdict.invented.len();
        self.stale += verdict.stale.len() + verdict.vanished.len();
        self.unknown += verdict.unknown_count();
        self.failed += verdict.failed_count();
        self.reads += verdict.reads;
        for outcome in outcomes {
            let (gaps, heals) = self.by_kind.entry(outcome.kind).or_default();
            gaps.record(outcome.gap);
            heals.record(outcome.healed_after);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header(["fault", "times", "gap p50", "gap p99", "gap max", "healed p50", "healed max"]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for (kind, (gaps, heals)) in &self.by_kind {
            table.add_row([
                kind.name().to_owned(),
                gaps.count().to_string(),
                ms(gaps.quantile(0.5)),
                ms(gaps.quantile(0.99)),
                ms(gaps.max()),
                ms(heals.quantile(0.5)),
                ms(heals.max()),
            ]);
        }
        writeln!(f, "{table}")?;
        write!(
            f,
            "faults {}, acknowledged {}, lost {}, stale {} of {} reads, failed {}, unknown {}",
            self.faults, self.acknowledged, self.lost, self.stale, self.reads, self.failed, self.unknown
        )
    }
}

fn ms(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}
