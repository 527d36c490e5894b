//! Who has been silent for too long. Knows no sockets and no clock: it is told what was heard and what time it
//! is.
//!
//! A watched node has a deadline. Hearing it moves the deadline; letting it pass makes the node a suspect, once,
//! until it is heard again. Three rules keep the detector from accusing others of its own absence:
//! a node that begins to be watched gets a whole window; nodes that were never heard get a longer one, because a
//! cluster does not start everywhere at once; and after a gap in which this process did not run, everybody gets
//! a fresh window.

use crate::clock::{BootTime, millis_between};
use quorate_model::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// How many windows of silence a node may need to be heard for the first time after this process started.
pub const FIRST_WINDOWS: u64 = 10;
/// The part of a window that is left to a node of which something else says that it is gone.
pub const DOUBT_DIVISOR: u64 = 2;

/// A node that has been silent for its whole window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    pub node: NodeId,
    pub silent_ms: u64,
}

#[derive(Debug)]
pub struct Detector {
    started: BootTime,
    suspect_after: u64,
    heard: BTreeMap<NodeId, BootTime>,
    watched: BTreeMap<NodeId, Watch>,
}

#[derive(Debug)]
struct Watch {
    since: BootTime,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A neighbour that is expected to be heard before this.
    Expected(BootTime),
    /// Somebody, neighbour or not, who is asked out of turn and has to answer before this.
    Doubted(BootTime),
    /// Silent for the whole window. Stays watched, whoever the neighbours are, until it is heard.
    Suspect,
}

impl Detector {
    pub fn new(started: BootTime, suspect_after: u64) -> Self {
        Detector { started, suspect_after, heard: BTreeMap::new(), watched: BTreeMap::new() }
    }

    /// Watches exactly the neighbours, beside those that are suspect or in doubt.
    pub fn set_neighbours(&mut self, now: BootTime, neighbours: &BTreeSet<NodeId>) {
        self.watched
            .retain(|node, watch| neighbours.contains(node) || !matches!(watch.state, State::Expected(_)));
        for &node in neighbours {
            let deadline = self.window(now, node);
            self.watched.entry(node).or_insert(Watch { since: now, state: State::Expected(deadline) });
        }
    }

    /// Notes a sign of life. True when the node was a suspect of ours and no longer is.
    pub fn heard(&mut self, now: BootTime, node: NodeId) -> bool {
        self.heard.insert(node, now);
        let deadline = now.saturating_add(self.suspect_after);
        match self.watched.get_mut(&node) {
            Some(watch) => {
                let was_suspect = watch.state == State::Suspect;
                watch.state = State::Expected(deadline);
                was_suspect
            }
            None => false,
        }
    }

    /// Something else (a broken connection) says that the node may be gone: it must be heard soon. Nothing
    /// changes for a suspect, nor for a node that was never heard.
    pub fn doubt(&mut self, now: BootTime, node: NodeId) {
        if !self.heard.contains_key(&node) {
            return;
        }
        let soon = now.saturating_add(self.suspect_after / DOUBT_DIVISOR);
        let watch =
            self.watched.entry(node).or_insert(Watch { since: now, state: State::Doubted(BootTime::MAX) });
        if let State::Expected(deadline) | State::Doubted(deadline) = watch.state {
            watch.state = State::Doubted(deadline.min(soon));
        }
    }

    /// Those whose window ended, each told once.
    pub fn tick(&mut self, now: BootTime) -> Vec<Silent> {
        let mut silent = Vec::new();
        for (&node, watch) in &mut self.watched {
            if let State::Expected(deadline) | State::Doubted(deadline) = watch.state
                && deadline <= now
            {
                watch.state = State::Suspect;
                let since = self.heard.get(&node).copied().unwrap_or(watch.since);
                silent.push(Silent { node, silent_ms: millis_between(since, now) });
            }
        }
        silent
    }

    /// This process did not run for a while: what it did not hear then says nothing.
    pub fn gap(&mut self, now: BootTime) {
        let fresh = now.saturating_add(self.suspect_after);
        for watch in self.watched.values_mut() {
            if let State::Expected(deadline) | State::Doubted(deadline) = watch.state {
                watch.state = State::Expected(deadline.max(fresh));
            }
        }
    }

    /// Everybody who is to be asked for signs of life.
    pub fn watched(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.watched.keys().copied()
    }

    pub fn watches(&self, node: NodeId) -> bool {
        self.watched.contains_key(&node)
    }

    pub fn last_heard(&self, node: NodeId) -> Option<BootTime> {
        self.heard.get(&node).copied()
    }

    /// When [`Detector::tick`] can next have something to say.
    pub fn next_deadline(&self) -> Option<BootTime> {
        self.watched
            .values()
            .filter_map(|watch| match watch.state {
                State::Expected(deadline) | State::Doubted(deadline) => Some(deadline),
                State::Suspect => None,
            })
            .min()
    }

    fn window(&self, now: BootTime, node: NodeId) -> BootTime {
        let usual = now.saturating_add(self.suspect_after);
        if self.heard.contains_key(&node) {
            return usual;
        }
        let first = self.started.saturating_add(self.suspect_after.saturating_mul(FIRST_WINDOWS));
        usual.max(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn watching(nodes: &[NodeId]) -> Detector {
        let mut detector = Detector::new(0, 300 * MS);
        detector.set_neighbours(0, &nodes.iter().copied().collect());
        for &node in nodes {
            detector.heard(0, node);
        }
        detector
    }

    fn told(detector: &mut Detector, ms: u64) -> Vec<(NodeId, u64)> {
        detector.tick(ms * MS).into_iter().map(|s| (s.node, s.silent_ms)).collect()
    }

    #[test]
    fn silence_is_told_once_until_the_node_is_heard() {
        let mut detector = watching(&[A, B]);
        detector.heard(200 * MS, B);
        assert_eq!(told(&mut detector, 299), []);
        assert_eq!(detector.next_deadline(), Some(300 * MS));
        assert_eq!(told(&mut detector, 301), [(A, 301)]);
        assert_eq!(told(&mut detector, 400), []);
        assert!(detector.heard(410 * MS, A));
        assert!(!detector.heard(411 * MS, A), "it was not a suspect any more");
        assert_eq!(told(&mut detector, 500), [(B, 300)]);
        assert_eq!(told(&mut detector, 711), [(A, 300)]);
    }

    #[test]
    fn a_node_never_heard_has_a_longer_first_window() {
        let mut detector = Detector::new(0, 300 * MS);
        detector.set_neighbours(0, &BTreeSet::from([A]));
        assert_eq!(told(&mut detector, 2_999), []);
        assert_eq!(told(&mut detector, 3_000), [(A, 3_000)]);
        detector.set_neighbours(10_000 * MS, &BTreeSet::from([A, B]));
        assert_eq!(told(&mut detector, 10_299), []);
        assert_eq!(told(&mut detector, 10_300), [(B, 300)], "later the usual window will do");
    }

    #[test]
    fn a_gap_gives_everybody_a_fresh_window() {
        let mut detector = watching(&[A, B]);
        detector.gap(30_000 * MS);
        assert_eq!(told(&mut detector, 30_000), []);
        detector.heard(30_050 * MS, A);
        assert_eq!(told(&mut detector, 30_300), [(B, 30_300)]);
    }

    #[test]
    fn a_gap_does_not_clear_a_suspect() {
        let mut detector = watching(&[A]);
        assert_eq!(told(&mut detector, 300), [(A, 300)]);
        detector.gap(1_000 * MS);
        assert_eq!(told(&mut detector, 1_400), []);
        assert!(detector.heard(1_500 * MS, A));
    }

    #[test]
    fn suspects_stay_watched_when_neighbours_change() {
        let mut detector = watching(&[A, B]);
        detector.heard(200 * MS, B);
        assert_eq!(told(&mut detector, 300), [(A, 300)]);
        detector.set_neighbours(310 * MS, &BTreeSet::new());
        assert!(detector.watches(A));
        assert!(!detector.watches(B), "a healthy node that is no neighbour is let go");
        assert!(detector.heard(320 * MS, A));
        detector.set_neighbours(330 * MS, &BTreeSet::new());
        assert!(!detector.watches(A));
    }

    #[test]
    fn a_new_neighbour_gets_a_whole_window() {
        let mut detector = watching(&[A]);
        detector.heard(0, B);
        detector.set_neighbours(250 * MS, &BTreeSet::from([A, B]));
        detector.heard(250 * MS, A);
        assert_eq!(told(&mut detector, 549), []);
        assert_eq!(told(&mut detector, 550), [(A, 300), (B, 550)]);
    }

    #[test]
    fn doubt_shortens_the_window_and_an_answer_restores_it() {
        let mut detector = watching(&[A]);
        detector.doubt(10 * MS, A);
        assert_eq!(told(&mut detector, 159), []);
        assert_eq!(told(&mut detector, 160), [(A, 160)]);
        detector.heard(170 * MS, A);
        detector.doubt(180 * MS, A);
        detector.heard(190 * MS, A);
        assert_eq!(told(&mut detector, 489), []);

        detector.doubt(490 * MS, B);
        assert!(!detector.watches(B), "nothing is expected of a node that was never heard");
        detector.heard(495 * MS, B);
        detector.doubt(500 * MS, B);
        detector.set_neighbours(510 * MS, &BTreeSet::from([A]));
        assert!(detector.watches(B), "a doubt is followed to its end");
        assert!(told(&mut detector, 650).contains(&(B, 155)));
    }
}
