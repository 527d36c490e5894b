//! How far a replica's log reaches, and whether two logs are one (rules R8 and I4).

use crate::{Epoch, Lsn, Timeline};
use serde::{Deserialize, Serialize};

/// The position of a replica: the highest epoch row in its log, then the end of its valid log. Epoch first,
/// because a longer log of an older reign holds commits that were never acknowledged (R8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    pub epoch: Epoch,
    pub lsn: Lsn,
    /// Where the end of the log was found. Not part of the order that elects: equal for equal epochs.
    pub timeline: Timeline,
}

impl Position {
    /// The key by which candidates are compared.
    pub fn rank(&self) -> (Epoch, Lsn) {
        (self.epoch, self.lsn)
    }
}

/// One stretch of a database's history: from `start_lsn` on, its log was written on `timeline`, by the primary
/// elected in `epoch` and by every incumbent re-elected after it without a promotion.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lineage {
    pub epoch: Epoch,
    pub timeline: Timeline,
    /// Where this timeline's history left the timeline of the entry before: a log of that timeline which goes
    /// further holds bytes that are not in the history.
    pub start_lsn: Lsn,
    /// Drawn once per promotion, so that two promotions that chose the same timeline are told apart.
    pub uuid: uuid::Uuid,
}

/// How a replica's log stands to a database's recorded history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It is a prefix: the replica may attach and stream.
    Prefix,
    /// It holds, or may hold, bytes that the history does not: it must never stream from the primary as it is.
    Divergent,
}

/// Compares a replica's position with the recorded history, oldest entry first.
///
/// The log is a prefix when it ends on the timeline of the entry that its epoch row belongs to, at or before
/// the point where the history left that timeline. A log on another timeline than its epoch row's was written by
/// a promotion that never passed its barrier, or was cut inside the few records before the row: the two cannot be
/// told apart, because timelines are not unique, so both are rebuilt. An empty history knows nothing and refuses
/// nobody.
pub fn relate(lineage: &[Lineage], position: &Position) -> Relation {
    let reign = position.epoch.reign();
    let Some(own) = lineage.iter().rfind(|l| l.epoch.reign() <= reign) else {
        return if lineage.is_empty() { Relation::Prefix } else { Relation::Divergent };
    };
    if own.timeline != position.timeline {
        return Relation::Divergent;
    }
    match lineage.iter().find(|l| l.epoch.reign() > reign) {
        Some(next) if position.lsn > next.start_lsn => Relation::Divergent,
        _ => Relation::Prefix,
    }
}

/// Where the history left a log that went on beyond it: the point to which such a log can be rewound.
///
/// Only a log that is known to lie on a recorded stretch of the history and to go on past its end has such a point.
/// A log that ends on another timeline than its epoch row's comes from a promotion that never passed its barrier;
/// its timeline may bear the number of a recorded one, and then pg_rewind takes the two for one and says that there
/// is nothing to do. So there is none for it, nor for a log on a timeline whose number comes again later.
pub fn fork(lineage: &[Lineage], position: &Position) -> Option<Lsn> {
    let reign = position.epoch.reign();
    let own = lineage.iter().rfind(|l| l.epoch.reign() <= reign)?;
    let mut later = lineage.iter().filter(|l| l.epoch.reign() > reign);
    let next = later.next()?;
    let again = next.timeline == own.timeline || later.any(|l| l.timeline == own.timeline);
    (own.timeline == position.timeline && !again && position.lsn > next.start_lsn).then_some(next.start_lsn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(primary: u64, timeline: u32, start: u64) -> Lineage {
        Lineage {
            epoch: Epoch::new(0, primary, 0),
            timeline: Timeline(timeline),
            start_lsn: Lsn(start),
            uuid: uuid::Uuid::from_u128(primary as u128),
        }
    }

    fn at(primary: u64, timeline: u32, lsn: u64) -> Position {
        Position { epoch: Epoch::new(0, primary, 0), lsn: Lsn(lsn), timeline: Timeline(timeline) }
    }

    #[test]
    fn a_log_that_passed_the_fork_is_divergent() {
        let history = [entry(1, 1, 0), entry(3, 2, 100), entry(5, 3, 200)];
        assert_eq!(relate(&history, &at(1, 1, 100)), Relation::Prefix);
        assert_eq!(relate(&history, &at(1, 1, 101)), Relation::Divergent);
        assert_eq!(relate(&history, &at(3, 2, 150)), Relation::Prefix);
        assert_eq!(relate(&history, &at(3, 2, 201)), Relation::Divergent);
        assert_eq!(relate(&history, &at(5, 3, 9000)), Relation::Prefix);
    }

    #[test]
    fn a_reelected_incumbent_starts_no_new_entry() {
        let history = [entry(1, 1, 0), entry(3, 2, 100)];
        assert_eq!(relate(&history, &at(2, 1, 100)), Relation::Prefix);
        assert_eq!(relate(&history, &at(2, 1, 101)), Relation::Divergent);
        assert_eq!(relate(&history, &at(4, 2, 500)), Relation::Prefix);
    }

    /// Two promotions chose timeline 2; the one of epoch 2 never passed its barrier.
    #[test]
    fn the_same_timeline_twice_is_told_apart_by_the_epoch_row() {
        let history = [entry(1, 1, 0), entry(3, 2, 100)];
        assert_eq!(relate(&history, &at(2, 2, 90)), Relation::Divergent);
        assert_eq!(relate(&history, &at(1, 2, 90)), Relation::Divergent);
    }

    #[test]
    fn only_a_log_that_went_on_past_a_recorded_end_can_be_rewound() {
        let history = [entry(1, 1, 0), entry(3, 2, 100), entry(5, 3, 200)];
        assert_eq!(fork(&history, &at(1, 1, 150)), Some(Lsn(100)));
        assert_eq!(fork(&history, &at(2, 1, 150)), Some(Lsn(100)), "its incumbent was re-elected");
        assert_eq!(fork(&history, &at(3, 2, 201)), Some(Lsn(200)));
        assert_eq!(fork(&history, &at(3, 2, 200)), None, "a prefix");
        assert_eq!(fork(&history, &at(1, 2, 150)), None, "the same number, another promotion");
        assert_eq!(fork(&history, &at(1, 4, 150)), None, "a promotion that was never recorded");
        assert_eq!(fork(&history, &at(5, 3, 9000)), None, "the present");
        assert_eq!(fork(&[], &at(1, 1, 150)), None);
        let twice = [entry(1, 1, 0), entry(3, 1, 100)];
        assert_eq!(fork(&twice, &at(1, 1, 150)), None, "pg_rewind would find nothing to do");
    }

    #[test]
    fn a_short_log_of_a_newer_epoch_beats_a_long_one_of_an_older() {
        assert!(at(2, 1, 10).rank() > at(1, 1, 1000).rank());
    }
}
