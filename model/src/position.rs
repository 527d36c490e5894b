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

/// Where no log is: the timeline of reigns whose log is no part of a history.
const NOWHERE: Timeline = Timeline(0);

/// The history of one primary's log, promotions included that were never recorded.
///
/// The record knows the promotions that reached their end. Those between it and the present left their epoch rows in
/// the log of whoever followed. A row has one writer and one place, so a log whose highest row is among `rows`, and which
/// ends on the timeline of that row, is this log as far as it goes. A log whose highest row is not among them holds what
/// this one does not, whatever the number of its timeline: hence an entry for every row, and one that nothing fits for
/// the reigns between.
///
/// `rows` are the epoch rows that the log holds, each with the timeline that it is on; `left` is where each older
/// timeline was left. The log goes on in `reign`, on `timeline`.
pub fn written_out(
    recorded: &[Lineage],
    rows: &[(Epoch, Timeline)],
    left: &[(Timeline, Lsn)],
    reign: Epoch,
    timeline: Timeline,
) -> Vec<Lineage> {
    let mut history = recorded.to_vec();
    let known = recorded.last().map(|l| l.epoch.reign());
    let mut rows: Vec<(Epoch, Timeline)> = rows
        .iter()
        .map(|(row, on)| (row.reign(), *on))
        .filter(|(row, _)| Some(*row) > known && *row < reign)
        .collect();
    rows.sort_unstable();
    if Some(reign) > known {
        rows.push((reign, timeline));
    }
    let end_of = |on: Timeline| match left.iter().find(|(t, _)| *t == on) {
        Some((_, end)) => *end,
        None if on == timeline => Lsn(u64::MAX),
        None => Lsn(0),
    };
    for (row, on) in rows {
        let start_lsn =
            history.iter().rfind(|l| l.timeline != NOWHERE).map_or(Lsn(0), |l| end_of(l.timeline));
        let entry = |epoch, timeline| Lineage { epoch, timeline, start_lsn, uuid: uuid::Uuid::nil() };
        if let Some(next) = history.last().map(|l| l.epoch.reign().next_primary())
            && next < row
        {
            history.push(entry(next, NOWHERE));
        }
        history.push(entry(row, on));
    }
    history
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

    /// Timeline 3 was made in reign 3, and again in reign 5 by somebody else: the log of reign 6 holds the first.
    #[test]
    fn what_was_never_recorded_is_told_apart_by_the_rows_of_the_log() {
        let recorded = [entry(1, 1, 0), entry(2, 2, 100)];
        let reign = |primary| Epoch::new(0, primary, 0);
        let rows = [
            (reign(1), Timeline(1)),
            (reign(2), Timeline(2)),
            (reign(3), Timeline(3)),
            (reign(4), Timeline(3)),
        ];
        let left = [(Timeline(1), Lsn(100)), (Timeline(2), Lsn(200)), (Timeline(3), Lsn(300))];
        let history = written_out(&recorded, &rows, &left, reign(6), Timeline(4));
        assert_eq!(relate(&recorded, &at(3, 3, 250)), Relation::Divergent, "the record does not know");
        for prefix in [at(2, 2, 200), at(3, 3, 250), at(4, 3, 300), at(6, 4, 9000)] {
            assert_eq!(relate(&history, &prefix), Relation::Prefix, "{prefix:?}");
        }
        // Past the end of their timeline, before their row, another's row, and a reign before this one's.
        for other in [at(2, 2, 201), at(4, 3, 301), at(2, 3, 250), at(5, 3, 250), at(5, 4, 350)] {
            assert_eq!(relate(&history, &other), Relation::Divergent, "{other:?}");
        }
    }

    /// It was promoted in reign 3, somebody else led reign 4 on a timeline of the same number, and it leads again.
    #[test]
    fn a_primary_that_leads_again_does_not_take_in_who_led_between() {
        let recorded = [entry(1, 1, 0)];
        let rows = [(Epoch::new(0, 1, 0), Timeline(1)), (Epoch::new(0, 3, 0), Timeline(2))];
        let history =
            written_out(&recorded, &rows, &[(Timeline(1), Lsn(100))], Epoch::new(0, 5, 0), Timeline(2));
        assert_eq!(relate(&history, &at(3, 2, 150)), Relation::Prefix);
        assert_eq!(relate(&history, &at(4, 2, 150)), Relation::Divergent);
        assert_eq!(relate(&history, &at(1, 1, 100)), Relation::Prefix);
        assert_eq!(relate(&history, &at(1, 1, 101)), Relation::Divergent);
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
