//! What the nodes say about each other, and what follows from it.
//!
//! A verdict is one node's word about another: *suspect* or *alive*. It carries a number that its reporter
//! counts up, so that an old word that comes late by gossip does not undo a newer one. A node is a suspect here
//! as long as anybody's *suspect* stands. A standing *suspect* must be repeated by its reporter, or it lapses:
//! so nothing that was lost on the way, and no reporter that died, keeps a healthy node out.
//!
//! A reporter that is itself a suspect, or was one a moment ago, is not believed: a node that was cut off sees
//! everybody else silent, and must not be able to accuse them in the moment in which it comes back. What it says
//! again after that counts.

use crate::clock::{BootTime, nanos};
use crate::event::RingEvent;
use quorate_model::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often a reporter repeats what it said.
pub const REPEAT_EVERY: Duration = Duration::from_millis(500);
/// How long a *suspect* stands without being repeated: longer than the first window of a restarted reporter.
pub const VERDICT_LIFETIME: Duration = Duration::from_secs(5);

/// How long a node is not believed after it was a suspect: some heartbeats, in which it hears from the others.
pub const PROBATION: Duration = Duration::from_millis(400);

/// One node's word about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub subject: NodeId,
    pub reporter: NodeId,
    /// Which run of the reporter says so.
    pub incarnation: u64,
    /// Counts the reporter's words up within that run.
    pub number: u64,
    pub word: Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    Suspect { silent_ms: u64 },
    Alive,
}

impl Verdict {
    /// What later verdicts of the same pair are compared by when they come over others.
    pub fn age(&self) -> (u64, u64) {
        (self.incarnation, self.number)
    }
}

/// How a verdict came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is our own.
    Own,
    /// From the reporter itself, in a fresh datagram: the latest that this run of it says.
    Direct,
    /// Handed on by others: perhaps old.
    Gossip,
}

/// Every standing word of everybody; bounded by the square of the number of nodes.
#[derive(Debug)]
pub struct Book {
    me: NodeId,
    nodes: BTreeSet<NodeId>,
    lifetime: u64,
    entries: BTreeMap<(NodeId, NodeId), Entry>,
    /// When nodes that were suspects ceased to be.
    cleared: BTreeMap<NodeId, BootTime>,
}

#[derive(Debug)]
struct Entry {
    age: (u64, u64),
    standing: Option<Standing>,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    since: BootTime,
    repeated: BootTime,
}

impl Book {
    pub fn new(me: NodeId, nodes: BTreeSet<NodeId>, lifetime: u64) -> Self {
        Book { me, nodes, lifetime, entries: BTreeMap::new(), cleared: BTreeMap::new() }
    }

    /// Takes a verdict in, and says what changed by it.
    pub fn apply(&mut self, now: BootTime, verdict: &Verdict, source: Source) -> Option<RingEvent> {
        let Verdict { subject, reporter, .. } = *verdict;
        if !self.is_credible(now, verdict, source) {
            return None;
        }
        let was_suspect = self.is_suspect(subject);
        let entry = self.entries.entry((subject, reporter)).or_insert(Entry { age: (0, 0), standing: None });
        let is_news = match source {
            Source::Own => true,
            Source::Direct => verdict.incarnation != entry.age.0 || verdict.number > entry.age.1,
            Source::Gossip => verdict.age() > entry.age,
        };
        if !is_news {
            return None;
        }
        entry.age = verdict.age();
        match verdict.word {
            Word::Suspect { silent_ms } => {
                let before = entry.standing;
                let since = before.map_or(now, |standing| standing.since);
                entry.standing = Some(Standing { since, repeated: now });
                before.is_none().then_some(RingEvent::Suspect { node: subject, reporter, silent_ms })
            }
            Word::Alive => {
                entry.standing = None;
                (was_suspect && !self.is_suspect(subject)).then(|| self.clear(now, subject))
            }
        }
    }

    /// Drops what others said and did not repeat.
    pub fn lapse(&mut self, now: BootTime) -> Vec<RingEvent> {
        let mut lapsed = BTreeSet::new();
        for (&(subject, reporter), entry) in &mut self.entries {
            if reporter != self.me
                && let Some(standing) = entry.standing
                && now.saturating_sub(standing.repeated) >= self.lifetime
            {
                entry.standing = None;
                lapsed.insert(subject);
            }
        }
        lapsed.retain(|node| !self.is_suspect(*node));
        lapsed.into_iter().map(|node| self.clear(now, node)).collect()
    }

    /// This process did not run for a while, so it may have missed repetitions.
    pub fn gap(&mut self, now: BootTime) {
        for standing in self.entries.values_mut().filter_map(|entry| entry.standing.as_mut()) {
            standing.repeated = now;
        }
    }

    pub fn is_suspect(&self, node: NodeId) -> bool {
        self.standing(node).next().is_some()
    }

    /// Who said it first, and since when it stands.
    pub fn first_report(&self, node: NodeId) -> Option<(NodeId, BootTime)> {
        self.standing(node).min_by_key(|(_, since)| *since)
    }

    fn clear(&mut self, now: BootTime, node: NodeId) -> RingEvent {
        self.cleared.insert(node, now);
        RingEvent::Alive { node }
    }

    fn is_on_probation(&self, now: BootTime, node: NodeId) -> bool {
        self.cleared.get(&node).is_some_and(|since| now.saturating_sub(*since) < nanos(PROBATION))
    }

    fn standing(&self, node: NodeId) -> impl Iterator<Item = (NodeId, BootTime)> + '_ {
        self.entries
            .range((node, NodeId(u64::MIN))..=(node, NodeId(u64::MAX)))
            .filter_map(|((_, reporter), entry)| Some((*reporter, entry.standing?.since)))
    }

    fn is_credible(&self, now: BootTime, verdict: &Verdict, source: Source) -> bool {
        let Verdict { subject, reporter, .. } = *verdict;
        if source == Source::Own {
            return true;
        }
        let known = self.nodes.contains(&subject) && self.nodes.contains(&reporter);
        let withdraws = verdict.word == Word::Alive;
        known
            && subject != self.me
            && subject != reporter
            && reporter != self.me
            && (withdraws || !(self.is_suspect(reporter) || self.is_on_probation(now, reporter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const ME: NodeId = NodeId(1);

    fn book() -> Book {
        Book::new(ME, (1..=5).map(NodeId).collect(), 5_000 * MS)
    }

    fn suspect(subject: u64, reporter: u64, number: u64) -> Verdict {
        Verdict {
            subject: NodeId(subject),
            reporter: NodeId(reporter),
            incarnation: 7,
            number,
            word: Word::Suspect { silent_ms: 300 },
        }
    }

    fn alive(subject: u64, reporter: u64, number: u64) -> Verdict {
        Verdict { word: Word::Alive, ..suspect(subject, reporter, number) }
    }

    fn event(subject: u64, reporter: u64) -> Option<RingEvent> {
        Some(RingEvent::Suspect { node: NodeId(subject), reporter: NodeId(reporter), silent_ms: 300 })
    }

    #[test]
    fn every_reporter_is_told_and_the_last_to_withdraw_ends_it() {
        let mut book = book();
        assert_eq!(book.apply(0, &suspect(3, 2, 1), Source::Direct), event(3, 2));
        assert_eq!(book.apply(1, &suspect(3, 4, 1), Source::Gossip), event(3, 4));
        assert_eq!(book.first_report(NodeId(3)), Some((NodeId(2), 0)));
        assert_eq!(book.apply(2, &alive(3, 2, 2), Source::Direct), None);
        assert!(book.is_suspect(NodeId(3)));
        assert_eq!(
            book.apply(3, &alive(3, 4, 2), Source::Direct),
            Some(RingEvent::Alive { node: NodeId(3) })
        );
        assert!(!book.is_suspect(NodeId(3)));
    }

    #[test]
    fn a_repetition_is_no_news() {
        let mut book = book();
        assert_eq!(book.apply(0, &suspect(3, 2, 1), Source::Direct), event(3, 2));
        assert_eq!(book.apply(1, &suspect(3, 2, 1), Source::Gossip), None);
        assert_eq!(book.apply(2, &suspect(3, 2, 2), Source::Direct), None);
        assert_eq!(book.first_report(NodeId(3)), Some((NodeId(2), 0)));
    }

    #[test]
    fn late_gossip_does_not_undo_a_newer_word() {
        let mut book = book();
        book.apply(0, &suspect(3, 2, 1), Source::Direct);
        book.apply(1, &alive(3, 2, 2), Source::Direct);
        assert_eq!(book.apply(2, &suspect(3, 2, 1), Source::Gossip), None);
        assert!(!book.is_suspect(NodeId(3)));
        let of_an_older_run = Verdict { incarnation: 6, number: 99, ..suspect(3, 2, 0) };
        assert_eq!(book.apply(3, &of_an_older_run, Source::Gossip), None);
        let restarted = Verdict { incarnation: 6, number: 1, ..suspect(3, 2, 0) };
        assert_eq!(book.apply(4, &restarted, Source::Direct), event(3, 2), "its clock was set back");
    }

    #[test]
    fn what_is_not_repeated_lapses() {
        let mut book = book();
        book.apply(0, &suspect(3, 2, 1), Source::Direct);
        book.apply(0, &suspect(3, 1, 1), Source::Own);
        book.apply(0, &suspect(4, 2, 2), Source::Direct);
        book.apply(4_000 * MS, &suspect(4, 2, 3), Source::Gossip);
        assert_eq!(book.lapse(4_999 * MS), []);
        assert_eq!(book.lapse(5_000 * MS), [], "our own word on 3 stands");
        assert_eq!(book.first_report(NodeId(3)).map(|(reporter, _)| reporter), Some(ME));
        assert_eq!(book.lapse(9_000 * MS), [RingEvent::Alive { node: NodeId(4) }]);
    }

    #[test]
    fn a_gap_of_ours_lets_nothing_lapse() {
        let mut book = book();
        book.apply(0, &suspect(3, 2, 1), Source::Direct);
        book.gap(30_000 * MS);
        assert_eq!(book.lapse(30_001 * MS), []);
    }

    #[test]
    fn a_suspect_is_not_believed() {
        let mut book = book();
        book.apply(0, &suspect(3, 2, 1), Source::Direct);
        assert_eq!(book.apply(1, &suspect(2, 3, 1), Source::Direct), None);
        assert_eq!(book.apply(1, &suspect(4, 3, 2), Source::Gossip), None);
        assert!(!book.is_suspect(NodeId(2)));
        book.apply(2, &alive(3, 2, 2), Source::Direct);
        assert_eq!(book.apply(300 * MS, &suspect(4, 3, 2), Source::Direct), None, "it is just back");
        assert_eq!(book.apply(403 * MS, &suspect(4, 3, 2), Source::Direct), event(4, 3), "now it is");
        assert_eq!(
            book.apply(404 * MS, &alive(4, 3, 3), Source::Direct),
            Some(RingEvent::Alive { node: NodeId(4) })
        );
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut book = book();
        for nonsense in
            [suspect(1, 2, 1), suspect(2, 2, 1), suspect(9, 2, 1), suspect(2, 9, 1), suspect(2, 1, 1)]
        {
            assert_eq!(book.apply(0, &nonsense, Source::Direct), None);
        }
        assert!((0..10).all(|n| !book.is_suspect(NodeId(n))));
        assert_eq!(book.apply(0, &alive(3, 2, 1), Source::Direct), None, "nobody suspected it");
    }
}
