//! The ring as a value: what was heard and what time it is go in, datagrams and events come out. It joins the
//! order of the ring, the detector and the book of verdicts; it knows no socket, clock or generator.
//!
//! Heartbeats go to everybody who is watched: the nearest live node on either side, the suspects in between,
//! and whoever is in doubt. As two nodes may disagree for a moment about who is whose neighbour, a heartbeat
//! asks for a reply, and is answered at once by whoever does not watch its sender anyway: so watching needs no
//! agreement.

use crate::clock::{BootTime, millis_between, nanos};
use crate::detector::Detector;
use crate::event::{RingEvent, RingMember};
use crate::order::{Neighbours, neighbours};
use crate::packet::Body;
use crate::verdict::{Book, REPEAT_EVERY, Source, VERDICT_LIFETIME, Verdict, Word};
use quorate_model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How often an *alive* is repeated, in case that it is lost.
const ALIVE_REPEATS: u32 = 3;
/// A node that has been suspect for so long is shown as down.
pub const DOWN_AFTER: Duration = Duration::from_secs(5);

/// What the ring wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Send {
        to: NodeId,
        body: Body,
    },
    /// Let gossip carry it, too.
    Publish(Verdict),
    Event(RingEvent),
}

#[derive(Debug)]
pub struct Watch {
    me: NodeId,
    nodes: BTreeSet<NodeId>,
    incarnation: u64,
    heartbeat: u64,
    detector: Detector,
    book: Book,
    said: BTreeMap<NodeId, Said>,
    number: u64,
    next_heartbeat: BootTime,
    next_repeat: BootTime,
}

/// Our own last word about a node.
#[derive(Clone, Copy, Debug)]
struct Said {
    word: Word,
    /// How often it is still to be repeated; a *suspect* is repeated until it is withdrawn.
    repeats: u32,
}

impl Watch {
    pub fn new(
        now: BootTime,
        me: NodeId,
        nodes: BTreeSet<NodeId>,
        incarnation: u64,
        heartbeat: Duration,
        suspect_after: Duration,
    ) -> Self {
        let mut watch = Watch {
            me,
            incarnation,
            heartbeat: nanos(heartbeat),
            detector: Detector::new(now, nanos(suspect_after)),
            book: Book::new(me, nodes.clone(), nanos(VERDICT_LIFETIME)),
            nodes,
            said: BTreeMap::new(),
            number: 0,
            next_heartbeat: now,
            next_repeat: now,
        };
        watch.look_around(now);
        watch
    }

    /// A fresh datagram of another node came in. Whatever it is, it is a sign of life.
    pub fn receive(&mut self, now: BootTime, from: NodeId, body: &Body, out: &mut Vec<Output>) {
        if from == self.me || !self.nodes.contains(&from) {
            return;
        }
        // Judged by what was thought of the sender until now: the first word of a node that was cut off is not
        // to be believed, although it shows that the node is back.
        if let Body::Verdict(verdict) = body
            && verdict.reporter == from
        {
            self.verdict(now, verdict, Source::Direct, out);
        }
        if self.detector.heard(now, from) {
            self.say(now, from, Word::Alive, out);
        }
        if *body == (Body::Heartbeat { reply: true }) && !self.detector.watches(from) {
            out.push(Output::Send { to: from, body: Body::Heartbeat { reply: false } });
        }
    }

    /// A verdict of another node came in by gossip.
    pub fn gossiped(&mut self, now: BootTime, verdict: &Verdict, out: &mut Vec<Output>) {
        self.verdict(now, verdict, Source::Gossip, out);
    }

    /// Something else says that a node may be gone: ask it at once, and wait less long than usual.
    pub fn doubt(&mut self, now: BootTime, node: NodeId, out: &mut Vec<Output>) {
        if node == self.me || !self.nodes.contains(&node) {
            return;
        }
        self.detector.doubt(now, node);
        if self.detector.watches(node) {
            out.push(Output::Send { to: node, body: Body::Heartbeat { reply: true } });
        }
    }

    /// Lets time pass.
    pub fn tick(&mut self, now: BootTime, out: &mut Vec<Output>) {
        if self.next_heartbeat <= now {
            self.next_heartbeat = next_beat(self.next_heartbeat, now, self.heartbeat);
            out.extend(
                self.detector.watched().map(|to| Output::Send { to, body: Body::Heartbeat { reply: true } }),
            );
        }
        for silent in self.detector.tick(now) {
            self.say(now, silent.node, Word::Suspect { silent_ms: silent.silent_ms }, out);
        }
        if self.next_repeat <= now {
            self.next_repeat = now.saturating_add(nanos(REPEAT_EVERY));
            self.repeat(now, out);
            let lapsed = self.book.lapse(now);
            if !lapsed.is_empty() {
                out.extend(lapsed.into_iter().map(Output::Event));
                self.look_around(now);
            }
        }
    }

    /// This process did not run for a while. Nobody else is to blame for what it did not hear.
    pub fn gap(&mut self, now: BootTime) {
        self.detector.gap(now);
        self.book.gap(now);
        self.next_heartbeat = now;
        // What we said before may have been overtaken meanwhile: listen first.
        self.next_repeat = now.saturating_add(nanos(REPEAT_EVERY));
    }

    /// When [`Watch::tick`] next has something to do.
    pub fn next_deadline(&self) -> BootTime {
        let silence = self.detector.next_deadline().unwrap_or(BootTime::MAX);
        self.next_heartbeat.min(self.next_repeat).min(silence)
    }

    pub fn is_suspect(&self, node: NodeId) -> bool {
        node != self.me && self.book.is_suspect(node)
    }

    pub fn suspects(&self) -> BTreeSet<NodeId> {
        self.nodes.iter().copied().filter(|node| self.is_suspect(*node)).collect()
    }

    /// The whole ring as it looks from here. `members` are those whom gossip knows.
    pub fn view(&self, now: BootTime, members: &BTreeSet<NodeId>) -> Vec<RingMember> {
        let row = |(at, &node): (usize, &NodeId)| {
            let Neighbours { predecessor, successor, .. } = self.neighbours(node);
            RingMember {
                position: at + 1,
                node,
                predecessor,
                successor,
                state: self.state(now, node, members),
                last_heartbeat_ms: self.detector.last_heard(node).map(|heard| millis_between(heard, now)),
                reported_by: self.book.first_report(node).map(|(reporter, _)| reporter),
            }
        };
        self.nodes.iter().enumerate().map(row).collect()
    }

    fn state(&self, now: BootTime, node: NodeId, members: &BTreeSet<NodeId>) -> &'static str {
        if node == self.me {
            return "alive";
        }
        let was_seen = members.contains(&node) || self.detector.last_heard(node).is_some();
        match self.book.first_report(node) {
            Some((_, since)) if was_seen && now.saturating_sub(since) < nanos(DOWN_AFTER) => "suspect",
            Some(_) => "down",
            None if was_seen => "alive",
            None => "down",
        }
    }

    fn verdict(&mut self, now: BootTime, verdict: &Verdict, source: Source, out: &mut Vec<Output>) {
        if let Some(event) = self.book.apply(now, verdict, source) {
            out.push(Output::Event(event));
            self.look_around(now);
        }
    }

    fn neighbours(&self, of: NodeId) -> Neighbours {
        neighbours(of, &self.nodes, |node| self.is_suspect(node))
    }

    fn look_around(&mut self, now: BootTime) {
        let targets = self.neighbours(self.me).targets(self.me);
        self.detector.set_neighbours(now, &targets);
    }

    fn say(&mut self, now: BootTime, subject: NodeId, word: Word, out: &mut Vec<Output>) {
        self.said.insert(subject, Said { word, repeats: ALIVE_REPEATS });
        let verdict = self.pronounce(subject, word, out);
        if let Some(event) = self.book.apply(now, &verdict, Source::Own) {
            out.push(Output::Event(event));
        }
        self.look_around(now);
    }

    fn repeat(&mut self, now: BootTime, out: &mut Vec<Output>) {
        self.said.retain(|_, said| matches!(said.word, Word::Suspect { .. }) || said.repeats > 0);
        for (subject, Said { word, .. }) in self.said.clone() {
            let silent_ms = self.detector.last_heard(subject).map(|heard| millis_between(heard, now));
            let word = match (word, silent_ms) {
                (Word::Suspect { .. }, Some(silent_ms)) => Word::Suspect { silent_ms },
                (word, _) => word,
            };
            let verdict = self.pronounce(subject, word, out);
            // No news to ourselves, but it keeps the numbers in step.
            self.book.apply(now, &verdict, Source::Own);
        }
        for said in self.said.values_mut() {
            said.repeats = said.repeats.saturating_sub(1);
        }
    }

    /// To everybody directly, so that it takes one hop, and to gossip, so that it arrives.
    fn pronounce(&mut self, subject: NodeId, word: Word, out: &mut Vec<Output>) -> Verdict {
        self.number += 1;
        let verdict =
            Verdict { subject, reporter: self.me, incarnation: self.incarnation, number: self.number, word };
        let others = self.nodes.iter().copied().filter(|node| *node != self.me && *node != subject);
        out.extend(others.map(|to| Output::Send { to, body: Body::Verdict(verdict) }));
        out.push(Output::Publish(verdict));
        verdict
    }
}

/// The next beat of a steady rhythm; a beat that was missed is not made up for.
fn next_beat(due: BootTime, now: BootTime, every: u64) -> BootTime {
    let next = due.saturating_add(every);
    if next > now { next } else { now.saturating_add(every) }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
