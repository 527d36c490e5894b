//! The loop of the ring's thread: the only place where its pure parts meet the clock, the socket and the
//! replica agent.
//!
//! A turn: wait until something is due or a datagram is there; if that took much longer than planned, this
//! process did not run, and what waited is thrown away; else first read everything that came in, and only then
//! look who was silent.

use crate::clock::{BootTime, boot_now, nanos};
use crate::event::{RingEvent, RingMember};
use crate::freshness::{Freshness, Session};
use crate::gossip::{Gossip, GossipOutput};
use crate::lease::{self, Leases, Requests};
use crate::metric;
use crate::packet::{Body, Codec, Envelope, LeaseAnswer, LeaseRequest, MAX_DATAGRAM, PacketError};
use crate::ring::{RingConfig, Shared};
use crate::udp::Datagrams;
use crate::watch::{Output, Watch};
use quorate_model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A turn that comes so late means that this process did not run.
pub const SCHEDULING_GAP: Duration = Duration::from_millis(100);
/// Datagrams read in one turn.
const BATCH: usize = 256;

/// What the handles see.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub at: BootTime,
    pub members: Vec<RingMember>,
    pub suspects: BTreeSet<NodeId>,
}

pub struct Driver<D> {
    config: RingConfig,
    codec: Codec,
    udp: D,
    incarnation: u64,
    sequence: u64,
    sessions: BTreeMap<NodeId, Session>,
    watch: Watch,
    gossip: Gossip,
    requests: Requests,
    next_renewal: BootTime,
    next_snapshot: BootTime,
    /// Until here this process ran, or meant to sleep.
    present: BootTime,
    leases: Arc<dyn Leases>,
    shared: Arc<Shared>,
    /// Last, so that the events end after the port is free.
    events: mpsc::Sender<RingEvent>,
}

impl<D: Datagrams> Driver<D> {
    pub fn new(
        config: RingConfig,
        udp: D,
        leases: Arc<dyn Leases>,
        events: mpsc::Sender<RingEvent>,
        shared: Arc<Shared>,
    ) -> Driver<D> {
        let now = boot_now();
        let nodes: BTreeSet<NodeId> = config.peers.keys().copied().collect();
        let incarnation = incarnation();
        let watch =
            Watch::new(now, config.node, nodes.clone(), incarnation, config.heartbeat, config.suspect_after);
        let mut driver = Driver {
            codec: Codec::new(&config.key),
            udp,
            incarnation,
            sequence: 0,
            sessions: nodes
                .iter()
                .filter(|node| **node != config.node)
                .map(|&node| (node, Session::default()))
                .collect(),
            watch,
            gossip: Gossip::new(now, config.node, &nodes, incarnation, rand_for_foca::random()),
            requests: Requests::new(config.node, config.lease, rand_for_foca::random()),
            next_renewal: now,
            next_snapshot: now,
            present: now,
            leases,
            shared,
            events,
            config,
        };
        driver.snapshot(now);
        driver
    }

    pub async fn run(mut self, mut doubts: mpsc::Receiver<NodeId>, stop: CancellationToken) {
        let node = self.config.node;
        tracing::info!(%node, nodes = self.config.peers.len(), "ring started");
        loop {
            let now = self.look();
            let due = self.next_deadline().max(now);
            let sleep = Duration::from_nanos(due - now);
            self.present = due;
            let mut doubt = None;
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.shared.renew.notified() => self.next_renewal = now,
                Some(node) = doubts.recv() => doubt = Some(node),
                () = self.udp.readable() => {}
                () = tokio::time::sleep(sleep) => {}
            }
            self.look();
            self.read();
            if let Some(node) = doubt {
                self.with_watch(|watch, now, out| watch.doubt(now, node, out));
            }
            self.tick();
        }
        self.leave();
        tracing::info!(%node, "ring stopped");
    }

    fn next_deadline(&self) -> BootTime {
        self.watch
            .next_deadline()
            .min(self.gossip.next_deadline())
            .min(self.next_renewal)
            .min(self.next_snapshot)
    }

    /// Reads the clock, and notices when this process did not run since it last did: it was stopped, starved,
    /// or held up in a call.
    fn look(&mut self) -> BootTime {
        let now = boot_now();
        let gap = Duration::from_nanos(now.saturating_sub(self.present));
        self.present = now;
        if gap >= SCHEDULING_GAP {
            tracing::warn!(node = %self.config.node, gap_ms = gap.as_millis(), "this process did not run");
            metric::gap();
            self.leases.scheduling_gap(gap);
            self.requests.gap();
            self.watch.gap(now);
            self.udp.drain();
        }
        now
    }

    fn read(&mut self) {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        for _ in 0..BATCH {
            let Some(bytes) = self.udp.receive(&mut buffer) else { return };
            match self.codec.open(bytes) {
                Ok((envelope, body)) => self.datagram(&envelope, &body),
                Err(error) => metric::dropped(reason(error)),
            }
        }
    }

    fn datagram(&mut self, envelope: &Envelope, body: &Body) {
        let &Envelope { from, to, incarnation, sequence } = envelope;
        let now = boot_now();
        let Some(session) = self.sessions.get_mut(&from).filter(|_| to == self.config.node) else {
            return metric::dropped("address");
        };
        if let Body::Answer { nonce } = body
            && session.answer(now, *nonce, incarnation, sequence)
        {
            tracing::debug!(node = %self.config.node, peer = %from, "ring peer is there");
            self.with_watch(|watch, now, out| watch.receive(now, from, body, out));
            return;
        }
        match session.check(incarnation, sequence) {
            Freshness::Fresh => self.fresh(now, from, body),
            Freshness::Stale => metric::dropped("stale"),
            Freshness::Stranger => {
                metric::dropped("stranger");
                if let Some(nonce) = session.challenge(now, rand_for_foca::random()) {
                    self.send(from, &Body::Challenge { nonce });
                }
            }
        }
        // Answered whoever asks, and however often: it proves only that we are here.
        if let Body::Challenge { nonce } = *body {
            self.send(from, &Body::Answer { nonce });
        }
    }

    fn fresh(&mut self, now: BootTime, from: NodeId, body: &Body) {
        self.with_watch(|watch, now, out| watch.receive(now, from, body, out));
        match body {
            Body::LeaseRequest(request) => self.lease_request(from, request),
            Body::LeaseAnswer(answer) => self.lease_answer(from, answer),
            Body::Gossip(bytes) => self.with_gossip(|gossip, out| gossip.receive(now, bytes, out)),
            Body::Challenge { .. } | Body::Answer { .. } | Body::Heartbeat { .. } | Body::Verdict(_) => {}
        }
    }

    fn lease_request(&mut self, from: NodeId, request: &LeaseRequest) {
        // Read before the promise is recorded, and after the requester read its own.
        let until = lease::granter_until(boot_now(), self.config.lease);
        let mut granted = 0;
        let answer = lease::answer(request, self.config.lease, |entry| {
            let promised = self.leases.grant(from, entry.database, entry.epoch, until);
            granted += usize::from(promised);
            promised
        });
        metric::granter(granted, request.entries.len() - granted);
        self.send(from, &Body::LeaseAnswer(answer));
    }

    fn lease_answer(&mut self, from: NodeId, answer: &LeaseAnswer) {
        let Some(granted) = self.requests.answer(boot_now(), from, answer) else { return };
        metric::requester(granted.entries.len(), granted.refused);
        for entry in granted.entries {
            self.leases.granted(entry.database, entry.epoch, from, granted.until);
        }
    }

    fn tick(&mut self) {
        // The silence of others is judged at a moment up to which we know that we listened.
        let now = self.look();
        self.act(now, Watch::tick);
        if self.gossip.next_deadline() <= now {
            self.with_gossip(|gossip, out| gossip.tick(now, out));
        }
        if self.next_snapshot <= now {
            self.snapshot(now);
        }
        if self.next_renewal <= now {
            self.next_renewal = now.saturating_add(nanos(self.config.lease_renew));
            let wants = self.leases.wants();
            for (to, request) in self.requests.round(boot_now(), &wants) {
                self.send(to, &Body::LeaseRequest(request));
            }
        }
    }

    fn with_watch(&mut self, act: impl FnOnce(&mut Watch, BootTime, &mut Vec<Output>)) {
        self.act(boot_now(), act);
    }

    fn act(&mut self, now: BootTime, act: impl FnOnce(&mut Watch, BootTime, &mut Vec<Output>)) {
        let mut out = Vec::new();
        act(&mut self.watch, now, &mut out);
        if out.iter().any(|output| matches!(output, Output::Event(_))) {
            // Whoever hears the event sees it in the view.
            self.snapshot(now);
        }
        self.carry_out(now, out);
    }

    fn carry_out(&mut self, now: BootTime, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send { to, body } => {
                    if matches!(body, Body::Heartbeat { .. }) {
                        metric::heartbeat_sent();
                    }
                    self.send(to, &body);
                }
                Output::Event(event) => self.tell(event),
                Output::Publish(verdict) => {
                    self.with_gossip(|gossip, out| gossip.publish(now, &verdict, out))
                }
            }
        }
    }

    fn with_gossip(&mut self, act: impl FnOnce(&mut Gossip, &mut Vec<GossipOutput>)) {
        let mut out = Vec::new();
        act(&mut self.gossip, &mut out);
        self.carry_out_gossip(out);
    }

    fn carry_out_gossip(&mut self, out: Vec<GossipOutput>) {
        for output in out {
            match output {
                GossipOutput::Send { to, bytes } => self.send(to, &Body::Gossip(bytes.to_vec())),
                GossipOutput::Verdict(verdict) => {
                    self.with_watch(|watch, now, out| watch.gossiped(now, &verdict, out));
                }
            }
        }
    }

    fn tell(&mut self, event: RingEvent) {
        metric::event(&event);
        let me = self.config.node;
        match event {
            RingEvent::Suspect { node, reporter, silent_ms } => {
                tracing::info!(node = %me, suspect = %node, %reporter, silent_ms, "ring suspects a node");
            }
            RingEvent::Alive { node } => {
                tracing::info!(node = %me, alive = %node, "ring suspects a node no more")
            }
        }
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            metric::event_lost();
            tracing::warn!(node = %me, ?event, "ring event lost: nobody takes them");
        }
    }

    fn send(&mut self, to: NodeId, body: &Body) {
        let Some(&address) = self.config.peers.get(&to).filter(|_| to != self.config.node) else { return };
        self.sequence += 1;
        let envelope =
            Envelope { from: self.config.node, to, incarnation: self.incarnation, sequence: self.sequence };
        match self.codec.seal(&envelope, body) {
            Ok(bytes) => self.udp.send(address, &bytes),
            Err(error) => {
                metric::unsent();
                tracing::error!(node = %self.config.node, %error, "a datagram of the ring could not be made");
            }
        }
    }

    fn snapshot(&mut self, now: BootTime) {
        self.next_snapshot = now.saturating_add(nanos(self.config.heartbeat));
        let suspects = self.watch.suspects();
        metric::suspects(suspects.len());
        let members = self.watch.view(now, self.gossip.members());
        self.shared.publish(Snapshot { at: now, members, suspects });
    }

    fn leave(&mut self) {
        let now = boot_now();
        self.with_gossip(|gossip, out| gossip.leave(now, out));
    }
}

/// The number of this run: the wall clock, so that later runs have larger ones as a rule. Nothing but the order
/// of gossip rests on that.
fn incarnation() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    nanos(since)
}

fn reason(error: PacketError) -> &'static str {
    match error {
        PacketError::Size(_) | PacketError::TooLarge(_) => "size",
        PacketError::Tag => "tag",
        PacketError::Version => "version",
        PacketError::Body => "body",
    }
}
