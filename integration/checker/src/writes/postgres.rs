//! One instance of PostgreSQL, as far as replication can tell: a log, timelines, and commits that wait for
//! standbys.
//!
//! A log position is the length of the entries before it; the first write is a long one, so that a log of few entries
//! can be longer than one of many. What a primary writes is flushed at once: only flushed log is
//! shipped, so what is lost by a crash before that was never anywhere else. A standby flushes what it receives and
//! acknowledges it in the same step; an acknowledgement stays with the walsender until the stream is cut at the
//! primary's end, which covers every delay on its way.

use quorate_model::{Epoch, Lsn, Position, ReplicaId, Timeline};
use std::collections::{BTreeMap, BTreeSet};

/// One record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A client's commit.
    Write(u8),
    /// The epoch row, and the message behind it whose commit is the barrier.
    Row(Epoch),
    /// A promotion of this replica: from here on the log is on the next timeline.
    Fork { by: ReplicaId, nth: u8 },
    /// The checkpoint of an orderly stop.
    Shutdown,
}

impl Entry {
    fn len(self) -> u64 {
        match self {
            Entry::Write(0) => 8,
            _ => 1,
        }
    }
}

/// The value of `synchronous_standby_names`: any `k` of `who`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Names {
    pub k: usize,
    pub who: BTreeSet<ReplicaId>,
}

impl Names {
    /// Reads what [`quorate_model::Configuration::sync_names`] writes. Anything else names nobody, and so does the
    /// sentinel.
    pub fn parse(text: &str) -> Names {
        let inner = text.split_once('(').map_or("", |(_, rest)| rest.trim_end_matches(')'));
        let k = text.split_whitespace().nth(1).and_then(|k| k.parse().ok()).unwrap_or(1);
        let who = inner.split(',').filter_map(|name| ReplicaId::from_standby_name(name.trim())).collect();
        Names { k, who }
    }
}

/// What a primary knows of one standby.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sender {
    /// What the standby acknowledged.
    pub flushed: usize,
    /// The names that this walsender goes by until it has read the new ones: each does so in its own time.
    pub stale: Option<Names>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    Down,
    Standby,
    Primary,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    pub mode: Mode,
    pub log: Vec<Entry>,
    pub names: Names,
    pub senders: BTreeMap<ReplicaId, Sender>,
}

impl Instance {
    pub fn new(mode: Mode, log: Vec<Entry>, names: Names) -> Instance {
        Instance { mode, log, names, senders: BTreeMap::new() }
    }

    pub fn timeline(&self) -> Timeline {
        Timeline(1 + self.log.iter().filter(|e| matches!(e, Entry::Fork { .. })).count() as u32)
    }

    /// Where each older timeline was left, oldest first: the history file.
    pub fn history(&self) -> Vec<(Timeline, Lsn)> {
        let forks = self.log.iter().enumerate().filter(|(_, e)| matches!(e, Entry::Fork { .. }));
        forks.zip(1u32..).map(|((at, _), timeline)| (Timeline(timeline), self.lsn(at))).collect()
    }

    /// The position behind so many entries.
    fn lsn(&self, entries: usize) -> Lsn {
        Lsn(self.log.iter().take(entries).map(|e| e.len()).sum())
    }

    pub fn end(&self) -> Lsn {
        self.lsn(self.log.len())
    }

    pub fn epoch(&self) -> Epoch {
        let rows = self.log.iter().filter_map(|e| match e {
            Entry::Row(epoch) => Some(*epoch),
            _ => None,
        });
        rows.max().unwrap_or_default()
    }

    /// The epoch rows, each with the timeline that it is on: those of one reign are on one.
    pub fn rows(&self) -> Vec<(Epoch, Timeline)> {
        let mut timeline = Timeline(1);
        let mut rows = BTreeMap::new();
        for entry in &self.log {
            match entry {
                Entry::Row(epoch) => drop(rows.entry(epoch.reign()).or_insert(timeline)),
                Entry::Fork { .. } => timeline.0 += 1,
                Entry::Write(_) | Entry::Shutdown => {}
            }
        }
        rows.into_iter().collect()
    }

    pub fn position(&self) -> Position {
        Position { epoch: self.epoch(), lsn: self.end(), timeline: self.timeline() }
    }

    pub fn stop(&mut self) {
        self.mode = Mode::Down;
        self.senders.clear();
    }

    pub fn promote(&mut self, me: ReplicaId) {
        if self.mode == Mode::Primary {
            return;
        }
        let nth = self.log.iter().filter(|e| matches!(e, Entry::Fork { by, .. } if *by == me)).count() as u8;
        self.log.push(Entry::Fork { by: me, nth });
        self.mode = Mode::Primary;
    }

    pub fn set_names(&mut self, names: Names) {
        if self.names == names {
            return;
        }
        let former = std::mem::replace(&mut self.names, names);
        for sender in self.senders.values_mut() {
            sender.stale.get_or_insert_with(|| former.clone());
        }
    }

    pub fn cut(&mut self, keep: impl Fn(ReplicaId) -> bool) {
        self.senders.retain(|standby, _| keep(*standby));
    }

    fn names_of<'a>(&'a self, sender: &'a Sender) -> &'a Names {
        sender.stale.as_ref().unwrap_or(&self.names)
    }

    /// Standbys whose acknowledgements count at this moment, each by what its own walsender has read.
    pub fn counted(&self) -> impl Iterator<Item = (ReplicaId, &Sender)> {
        let each = self.senders.iter().map(|(id, sender)| (*id, sender));
        each.filter(|(id, sender)| self.names_of(sender).who.contains(id))
    }

    /// Up to where commits may return: as far as some walsender finds enough standbys to have flushed, by the names
    /// that it goes by.
    pub fn released(&self) -> usize {
        let mut flushed: Vec<usize> = self.counted().map(|(_, sender)| sender.flushed).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let by = |sender: &Sender| {
            let k = self.names_of(sender).k;
            k.checked_sub(1).and_then(|at| flushed.get(at)).copied().unwrap_or(0)
        };
        self.counted().map(|(_, sender)| by(sender)).max().unwrap_or(0)
    }

    /// Whether PostgreSQL would stream to a standby with this log: its timeline must be in the history, and left no
    /// earlier than where the standby's log ends. It compares no content.
    pub fn streams_to(&self, standby: &Instance) -> bool {
        let (timeline, end) = (standby.timeline(), standby.end());
        if timeline == self.timeline() {
            return end <= self.end();
        }
        self.history().iter().any(|(t, left)| *t == timeline && end <= *left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn primary(senders: &[(u64, usize)], k: usize, who: &[u64]) -> Instance {
        let names = Names { k, who: who.iter().copied().map(ReplicaId).collect() };
        let mut instance = Instance::new(Mode::Primary, vec![Entry::Write(0); 9], names);
        instance.senders = senders
            .iter()
            .map(|(id, flushed)| (ReplicaId(*id), Sender { flushed: *flushed, stale: None }))
            .collect();
        instance
    }

    #[test]
    fn reads_the_names_of_a_configuration() {
        let c = quorate_model::Configuration::new(ReplicaId(1), [ReplicaId(2), ReplicaId(3)], 1);
        assert_eq!(Names::parse(&c.sync_names()), Names { k: 1, who: c.voters });
        assert!(Names::parse(quorate_model::configuration::SENTINEL_SYNC_NAMES).who.is_empty());
    }

    #[test]
    fn commits_return_at_the_kth_flush_of_the_named() {
        assert_eq!(primary(&[(2, 5), (3, 7), (4, 9)], 1, &[2, 3]).released(), 7);
        assert_eq!(primary(&[(2, 5), (3, 7), (4, 9)], 2, &[2, 3]).released(), 5);
        assert_eq!(primary(&[(4, 9)], 1, &[2, 3]).released(), 0);
    }

    #[test]
    fn a_walsender_goes_by_the_old_names_until_it_has_read_the_new() {
        let mut p = primary(&[(2, 5), (3, 7)], 1, &[2, 3]);
        p.set_names(Names { k: 1, who: [ReplicaId(2)].into() });
        assert_eq!(p.released(), 7, "r3's walsender has not read that it counts no more");
        p.cut(|r| r != ReplicaId(3));
        assert_eq!(p.released(), 5);
    }

    #[test]
    fn the_same_timeline_twice_streams_garbage() {
        let mut a = Instance::new(Mode::Standby, vec![Entry::Write(1)], Names::parse(""));
        let mut b = a.clone();
        a.promote(ReplicaId(1));
        b.promote(ReplicaId(2));
        assert_eq!(a.timeline(), b.timeline());
        assert!(a.streams_to(&b), "PostgreSQL would, so the daemon must not let it");
    }
}
