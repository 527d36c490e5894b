//! Compares what clients were told with what is there. Pure: rows and records in, verdict out.

use super::record::{ClientRecord, Outcome, ReaderRecord};
use crate::gaps::{Acknowledged, Distribution, Gap, Micros};
use anyhow::ensure;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// A row: which client, which seq.
pub type Entry = (u32, u64);

/// How many of a kind of violation are named.
const NAMED: usize = 10;

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub attempted: usize,
    pub acknowledged: usize,
    pub failed: BTreeMap<String, usize>,
    pub unknown: BTreeMap<String, usize>,
    /// Of the unknown, those that are there.
    pub unknown_present: usize,
    /// Acknowledged and not there.
    pub lost: Vec<Entry>,
    /// Told to have failed, and there.
    pub undead: Vec<(Entry, String)>,
    /// There, and never attempted.
    pub invented: Vec<Entry>,
    /// Shown to a reader, and not there in the end.
    pub vanished: Vec<Entry>,
    pub stale: Vec<String>,
    pub reads: u64,
    pub read_errors: BTreeMap<String, u64>,
    pub dropped: BTreeMap<String, u64>,
    pub refused: BTreeMap<String, u64>,
    pub longest_connect: Duration,
    pub acks: Acknowledged,
    pub latency: Distribution,
    pub ended: Micros,
}

/// `present`: every row that is there now. A row listed twice counts as invented.
pub fn check(
    clients: &[ClientRecord],
    readers: &[ReaderRecord],
    present: &[Entry],
    ended: Micros,
) -> Verdict {
    let there: BTreeSet<Entry> = present.iter().copied().collect();
    let mut verdict = Verdict { ended, ..Verdict::default() };
    let mut tried: BTreeSet<Entry> = BTreeSet::new();
    let mut acks = Vec::new();
    for client in clients {
        for attempt in &client.attempts {
            let entry = (client.client, attempt.seq);
            let is_there = there.contains(&entry);
            tried.insert(entry);
            verdict.attempted += 1;
            match &attempt.outcome {
                Outcome::Acknowledged => {
                    verdict.acknowledged += 1;
                    acks.push(attempt.told);
                    verdict.latency.record(Duration::from_micros(attempt.told.saturating_sub(attempt.asked)));
                    if !is_there {
                        verdict.lost.push(entry);
                    }
                }
                Outcome::Failed(code) => {
                    *verdict.failed.entry(code.clone()).or_default() += 1;
                    if is_there {
                        verdict.undead.push((entry, code.clone()));
                    }
                }
                Outcome::Unknown(why) => {
                    *verdict.unknown.entry(why.clone()).or_default() += 1;
                    verdict.unknown_present += usize::from(is_there);
                }
            }
        }
        add(&mut verdict.dropped, &client.dropped);
        add(&mut verdict.refused, &client.refused);
        let longest = Duration::from_micros(client.longest_connect);
        verdict.longest_connect = verdict.longest_connect.max(longest);
    }
    let mut once = BTreeSet::new();
    verdict.invented = present.iter().copied().filter(|e| !tried.contains(e) || !once.insert(*e)).collect();
    for reader in readers {
        verdict.reads += reader.reads;
        verdict.stale.extend(reader.stale.iter().cloned());
        add(&mut verdict.read_errors, &reader.errors);
        let gone = reader.seen.iter().map(|(client, seq)| (*client, *seq)).filter(|e| !there.contains(e));
        verdict.vanished.extend(gone);
    }
    verdict.acks = Acknowledged::new(acks);
    verdict
}

fn add(into: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>) {
    for (reason, count) in from {
        *into.entry(reason.clone()).or_default() += count;
    }
}

impl Verdict {
    /// The longest gap of all, from the first acknowledgement on.
    pub fn longest_gap(&self) -> Gap {
        self.acks.longest(0, self.ended)
    }

    pub fn unknown_count(&self) -> usize {
        self.unknown.values().sum()
    }

    pub fn failed_count(&self) -> usize {
        self.failed.values().sum()
    }

    /// The promises that hold whatever happens to nodes.
    pub fn kept(&self) -> anyhow::Result<()> {
        let mut broken = Vec::new();
        let mut note = |what: &str, count: usize, some: String| {
            if count > 0 {
                broken.push(format!("{count} {what}: {some}"));
            }
        };
        note("acknowledged rows are lost", self.lost.len(), some(&self.lost));
        note("rows said to have failed are there", self.undead.len(), some(&self.undead));
        note("rows nobody wrote, or that are there twice", self.invented.len(), some(&self.invented));
        note("rows that were read have vanished", self.vanished.len(), some(&self.vanished));
        note("stale reads", self.stale.len(), some(&self.stale));
        ensure!(broken.is_empty(), "{}\n{self}", broken.join("\n"));
        ensure!(self.acknowledged > 0, "nothing was acknowledged, so nothing was shown\n{self}");
        Ok(())
    }
}

fn some<T: fmt::Debug>(list: &[T]) -> String {
    let dots = if list.len() > NAMED { ", …" } else { "" };
    let named: Vec<String> = list.iter().take(NAMED).map(|item| format!("{item:?}")).collect();
    format!("{}{dots}", named.join(", "))
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "ledger: {} attempted, {} acknowledged, {} lost, {} failed {:?}, {} unknown {:?} ({} of them there)",
            self.attempted,
            self.acknowledged,
            self.lost.len(),
            self.failed_count(),
            self.failed,
            self.unknown_count(),
            self.unknown,
            self.unknown_present,
        )?;
        writeln!(
            f,
            "ledger: sessions dropped {:?}, refused {:?}, longest wait for one {:?}; {} reads, {} stale, errors {:?}",
            self.dropped,
            self.refused,
            self.longest_connect,
            self.reads,
            self.stale.len(),
            self.read_errors,
        )?;
        write!(
            f,
            "ledger: commit p50 {:?} p99 {:?} max {:?}; longest gap {:?} at {:.3} s",
            self.latency.quantile(0.5),
            self.latency.quantile(0.99),
            self.latency.max(),
            self.longest_gap().duration(),
            Duration::from_micros(self.longest_gap().from).as_secs_f64(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Attempt;
    use super::*;

    fn told(seq: u64, outcome: Outcome) -> Attempt {
        Attempt { seq, asked: seq * 10, told: seq * 10 + 5, outcome }
    }

    fn client(attempts: Vec<Attempt>) -> ClientRecord {
        ClientRecord { client: 1, attempts, ..ClientRecord::default() }
    }

    fn mixed() -> Vec<ClientRecord> {
        vec![client(vec![
            told(1, Outcome::Acknowledged),
            told(2, Outcome::Failed("40001".into())),
            told(3, Outcome::Unknown("closed".into())),
            told(4, Outcome::Unknown("57P01".into())),
            told(5, Outcome::Acknowledged),
        ])]
    }

    #[test]
    fn what_was_told_and_what_is_there_agree() {
        let verdict = check(&mixed(), &[], &[(1, 1), (1, 3), (1, 5)], 100);
        verdict.kept().unwrap();
        assert_eq!((verdict.acknowledged, verdict.unknown_count(), verdict.unknown_present), (2, 2, 1));
        assert_eq!(verdict.failed_count(), 1);
    }

    #[test]
    fn a_planted_loss_is_caught() {
        let verdict = check(&mixed(), &[], &[(1, 1), (1, 3)], 100);
        assert_eq!(verdict.lost, [(1, 5)]);
        assert!(verdict.kept().unwrap_err().to_string().contains("1 acknowledged rows are lost"));
    }

    #[test]
    fn a_failure_that_committed_is_caught() {
        let verdict = check(&mixed(), &[], &[(1, 1), (1, 2), (1, 5)], 100);
        assert_eq!(verdict.undead, [((1, 2), "40001".to_owned())]);
        verdict.kept().unwrap_err();
    }

    #[test]
    fn a_row_from_nowhere_or_twice_is_caught() {
        let verdict = check(&mixed(), &[], &[(1, 1), (1, 5), (2, 1), (1, 5)], 100);
        assert_eq!(verdict.invented, [(2, 1), (1, 5)]);
        verdict.kept().unwrap_err();
    }

    #[test]
    fn a_row_that_was_read_and_is_gone_is_caught() {
        let reader = ReaderRecord { reads: 1, seen: [(1, 4)].into(), ..ReaderRecord::default() };
        let verdict = check(&mixed(), &[reader], &[(1, 1), (1, 5)], 100);
        assert_eq!(verdict.vanished, [(1, 4)]);
        verdict.kept().unwrap_err();
    }

    #[test]
    fn nothing_acknowledged_shows_nothing() {
        check(&[client(vec![])], &[], &[], 100).kept().unwrap_err();
    }
}
