//! Whole rings without sockets: time is a number, datagrams take a millisecond, and every run is the same.

use super::*;

const MS: u64 = 1_000_000;
const STEP_MS: u64 = 5;

struct Net {
    now: u64,
    ids: BTreeSet<NodeId>,
    nodes: BTreeMap<NodeId, Watch>,
    /// They exist, but do not run: what is sent to them is lost, as it is when a queue is emptied after a gap.
    frozen: BTreeSet<NodeId>,
    /// Ordered pairs between which nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    flying: Vec<(NodeId, NodeId, Body)>,
    events: Vec<(u64, NodeId, RingEvent)>,
}

impl Net {
    fn new(size: u64) -> Self {
        let mut net = Net {
            now: 0,
            ids: (1..=size).map(NodeId).collect(),
            nodes: BTreeMap::new(),
            frozen: BTreeSet::new(),
            cut: BTreeSet::new(),
            flying: Vec::new(),
            events: Vec::new(),
        };
        for id in 1..=size {
            net.start(id);
        }
        net.run(1_000);
        assert_eq!(net.events, [], "a healthy start suspects nobody");
        net
    }

    fn start(&mut self, id: u64) {
        let (heartbeat, suspect_after) = (Duration::from_millis(50), Duration::from_millis(300));
        let watch =
            Watch::new(self.now, NodeId(id), self.ids.clone(), self.now + 1, heartbeat, suspect_after);
        self.nodes.insert(NodeId(id), watch);
    }

    fn kill(&mut self, id: u64) {
        self.nodes.remove(&NodeId(id));
    }

    fn freeze(&mut self, id: u64) {
        self.frozen.insert(NodeId(id));
    }

    fn thaw(&mut self, id: u64) {
        self.frozen.remove(&NodeId(id));
        if let Some(node) = self.nodes.get_mut(&NodeId(id)) {
            node.gap(self.now);
        }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / STEP_MS {
            self.now += STEP_MS * MS;
            for (from, to, body) in std::mem::take(&mut self.flying) {
                if !self.cut.contains(&(from, to)) {
                    self.act(to, |node, now, out| node.receive(now, from, &body, out));
                }
            }
            for id in self.ids.clone() {
                self.act(id, Watch::tick);
            }
        }
    }

    fn act(&mut self, id: NodeId, act: impl FnOnce(&mut Watch, u64, &mut Vec<Output>)) {
        if self.frozen.contains(&id) {
            return;
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let mut out = Vec::new();
        act(node, self.now, &mut out);
        for output in out {
            match output {
                Output::Send { to, body } => self.flying.push((id, to, body)),
                Output::Event(event) => self.events.push((self.now / MS, id, event)),
                Output::Publish(_) => {}
            }
        }
    }

    /// Who was told that `node` is suspect, how often, and the latest moment.
    fn suspicions(&self, node: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
        let mut told = BTreeSet::new();
        let mut reporters = BTreeSet::new();
        for (_, at, event) in &self.events {
            if let RingEvent::Suspect { node: subject, reporter, .. } = event
                && subject.0 == node
            {
                told.insert(at.0);
                reporters.insert(reporter.0);
            }
        }
        (told, reporters)
    }

    fn suspects(&self, at: u64) -> Vec<u64> {
        self.nodes[&NodeId(at)].suspects().iter().map(|n| n.0).collect()
    }

    fn accused(&self) -> BTreeSet<u64> {
        let subject = |event: &RingEvent| match event {
            RingEvent::Suspect { node, .. } => Some(node.0),
            RingEvent::Alive { .. } => None,
        };
        self.events.iter().filter_map(|(_, _, event)| subject(event)).collect()
    }
}

fn set(ids: &[u64]) -> BTreeSet<u64> {
    ids.iter().copied().collect()
}

#[test]
fn healthy_rings_stay_quiet() {
    for size in 1..=6 {
        let mut net = Net::new(size);
        net.run(20_000);
        assert_eq!(net.events, []);
    }
}

#[test]
fn a_dead_node_is_reported_by_both_neighbours_and_everybody_hears() {
    let mut net = Net::new(5);
    net.kill(3);
    net.run(350);
    let (told, reporters) = net.suspicions(3);
    assert_eq!(told, set(&[1, 2, 4, 5]));
    assert_eq!(reporters, set(&[2, 4]));
    net.run(10_000);
    assert_eq!(net.accused(), set(&[3]), "nobody else is accused while the ring closes");
    let view = net.nodes[&NodeId(2)].view(net.now, &BTreeSet::new());
    assert_eq!((view[1].successor, view[3].predecessor), (NodeId(4), NodeId(2)));
    assert_eq!((view[2].state, view[2].reported_by.is_some()), ("down", true));
}

#[test]
fn a_node_that_returns_is_alive_for_everybody() {
    for size in 2..=5 {
        let mut net = Net::new(size);
        net.kill(2);
        net.run(5_000);
        net.events.clear();
        net.start(2);
        net.run(100);
        assert!(!net.events.is_empty());
        for (_, _, event) in &net.events {
            assert_eq!(*event, RingEvent::Alive { node: NodeId(2) });
        }
        assert!((1..=size).all(|at| net.suspects(at).is_empty()));
        net.events.clear();
        net.run(10_000);
        assert_eq!(net.events, [], "ring of {size}");
    }
}

#[test]
fn a_frozen_node_accuses_nobody_when_it_wakes() {
    for size in 2..=5 {
        let mut net = Net::new(size);
        net.freeze(1);
        net.run(30_000);
        assert_eq!(net.accused(), set(&[1]));
        net.events.clear();
        net.thaw(1);
        net.run(10_000);
        assert_eq!(net.accused(), set(&[]), "ring of {size}: {:?}", net.events);
        assert!((1..=size).all(|at| net.suspects(at).is_empty()));
    }
}

#[test]
fn an_isolated_node_is_not_believed_when_it_comes_back() {
    let mut net = Net::new(5);
    let me = NodeId(3);
    net.cut = net.ids.iter().flat_map(|&other| [(me, other), (other, me)]).collect();
    net.run(10_000);
    assert_eq!(net.suspects(1), [3]);
    assert_eq!(net.suspects(3), [1, 2, 4, 5], "it sees everybody silent");
    net.events.retain(|(_, at, _)| *at != me);
    net.cut.clear();
    net.run(10_000);
    net.events.retain(|(_, at, _)| *at != me);
    assert_eq!(net.accused(), set(&[3]), "the others never accused each other on its word");
    assert!((1..=5).all(|at| net.suspects(at).is_empty()));
}

#[test]
fn nodes_that_never_started_are_down_after_the_first_window() {
    let mut net = Net::new(4);
    net.nodes.clear();
    net.flying.clear();
    net.start(1);
    net.start(2);
    net.run(2_900);
    assert_eq!(net.events, []);
    net.run(1_000);
    assert_eq!(net.accused(), set(&[3, 4]));
    assert_eq!(net.suspects(1), [3, 4]);
    let view = net.nodes[&NodeId(1)].view(net.now, &BTreeSet::new());
    assert_eq!(view[2].state, "down");
    assert_eq!(view[2].last_heartbeat_ms, None);
    net.start(3);
    net.start(4);
    net.run(500);
    assert!((1..=4).all(|at| net.suspects(at).is_empty()));
}

#[test]
fn two_dead_neighbours_are_both_found() {
    let mut net = Net::new(5);
    net.kill(3);
    net.kill(4);
    net.run(1_000);
    for at in [1, 2, 5] {
        assert_eq!(net.suspects(at), [3, 4]);
    }
    net.run(20_000);
    assert_eq!(net.accused(), set(&[3, 4]));
}

/// The reporters of a dead node die: its new neighbours keep it suspect.
#[test]
fn a_suspicion_outlives_its_reporters() {
    let mut net = Net::new(6);
    net.kill(3);
    net.run(2_000);
    net.kill(2);
    net.kill(4);
    net.run(20_000);
    for at in [1, 5, 6] {
        assert_eq!(net.suspects(at), [2, 3, 4]);
    }
    let revived = net.events.iter().any(|(_, _, event)| matches!(event, RingEvent::Alive { .. }));
    assert!(!revived, "{:?}", net.events);
}

/// One direction of one link is dead: one neighbour reports, the rest keep working, and it heals.
#[test]
fn half_a_link_is_reported_by_the_one_that_does_not_hear() {
    let mut net = Net::new(4);
    net.cut.insert((NodeId(1), NodeId(2)));
    net.run(3_000);
    assert_eq!(net.suspicions(1).1, set(&[2]));
    assert_eq!(net.accused(), set(&[1]));
    net.cut.clear();
    net.run(500);
    assert!((1..=4).all(|at| net.suspects(at).is_empty()));
}

#[test]
fn a_lost_alive_is_repeated() {
    let mut net = Net::new(5);
    net.kill(3);
    net.run(2_000);
    net.start(3);
    net.cut = [(NodeId(2), NodeId(5)), (NodeId(4), NodeId(5))].into();
    net.run(200);
    assert_eq!(net.suspects(5), [3]);
    net.cut.clear();
    net.run(600);
    assert!(net.suspects(5).is_empty());
}

#[test]
fn doubt_finds_a_dead_node_in_half_the_time_and_a_live_one_innocent() {
    let mut net = Net::new(5);
    net.kill(3);
    net.run(STEP_MS);
    for id in [2, 4] {
        net.act(NodeId(id), |node, now, out| {
            node.doubt(now, NodeId(3), out);
            node.doubt(now, NodeId(1), out);
        });
    }
    net.run(160);
    assert_eq!(net.suspicions(3), (set(&[1, 2, 4, 5]), set(&[2, 4])));
    net.run(5_000);
    assert_eq!(net.accused(), set(&[3]));
}
