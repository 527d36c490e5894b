//! The network between nodes: calls, datagrams and pipes, all through one queue that the world empties.
//!
//! What it does to them is what a real one does under TCP and UDP. A datagram may be lost, doubled, delayed and
//! overtaken. A call may be delayed, overtaken or answered to nobody; one that was sent into a cut link is lost or
//! arrives when the link is whole again, long after its caller gave up. Some calls of the control plane arrive twice,
//! which TCP would not do, but a coordinator that asks again does. A pipe keeps its order, stalls while its link is
//! cut, and breaks when that lasts.

use crate::dice::Dice;
use crate::pg::wire::{Hello, Message};
use crate::trace;
use bytes::Bytes;
use quorate_model::NodeId;
use quorate_ring::Datagrams;
use quorate_transport::{CallError, Fault, Handler, PeerNetwork, Service};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, oneshot};

/// A call that waits in a cut link is lost after this, and a pipe whose link is cut breaks.
const STALL_LIMIT_MS: u64 = 4_000;
/// A lost segment is sent again after about this.
const RETRANSMIT_MS: u64 = 200;
/// Datagrams that wait for a node that does not read.
const MAILBOX_LIMIT: usize = 4_096;
/// Of a thousand calls of the control plane, so many arrive twice.
const TWICE_PERMILLE: u64 = 4;

/// Somebody who takes pipes.
pub trait Acceptor: Send + Sync {
    fn accept(&self, from: NodeId, hello: Hello, pipe: Pipe);
}

/// What is wrong with links, by direction.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Of a thousand datagrams, so many are lost; so many segments of a connection are sent twice.
    pub loss: BTreeMap<(NodeId, NodeId), u64>,
    /// Up to so many milliseconds more.
    pub slow: BTreeMap<(NodeId, NodeId), u64>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    pub calls: u64,
    pub lost: u64,
    pub doubled: u64,
}

pub struct Net(Mutex<Inner>);

struct Inner {
    now_ms: u64,
    dice: Dice,
    serial: u64,
    queue: BTreeMap<(u64, u64), Parcel>,
    stalled: Vec<(u64, Parcel)>,
    ports: BTreeMap<NodeId, Port>,
    calls: BTreeMap<u64, oneshot::Sender<Result<Bytes, CallError>>>,
    pipes: BTreeMap<u64, PipeState>,
    pub weather: Weather,
    traffic: Traffic,
    members: Vec<NodeId>,
}

struct Port {
    runtime: Handle,
    handlers: BTreeMap<Service, Arc<dyn Handler>>,
    acceptor: Option<Arc<dyn Acceptor>>,
    lost: broadcast::Sender<NodeId>,
    mailbox: Arc<Mailbox>,
}

#[derive(Default)]
struct Mailbox {
    waiting: Mutex<VecDeque<Vec<u8>>>,
    arrived: Notify,
}

#[derive(Clone)]
enum Parcel {
    Request {
        from: NodeId,
        to: NodeId,
        service: Service,
        body: Bytes,
        call: u64,
    },
    Response {
        from: NodeId,
        to: NodeId,
        call: u64,
        result: Result<Bytes, CallError>,
    },
    Datagram {
        from: NodeId,
        to: NodeId,
        bytes: Vec<u8>,
    },
    Open {
        pipe: u64,
        hello: Hello,
    },
    /// The next item of a pipe's direction.
    Item {
        pipe: u64,
        to_opener: bool,
    },
    Lost {
        at: NodeId,
        about: NodeId,
    },
}

struct PipeState {
    opener: NodeId,
    taker: NodeId,
    /// To the opener, and to the taker.
    ways: [Way; 2],
    /// An end whose node has died: it sends nothing any more.
    dead: Option<NodeId>,
    /// How many of its ends were dropped, or never came to be.
    left: u32,
    /// Since when an item waits in a cut link.
    stalled_since: Option<u64>,
}

#[derive(Default)]
struct Way {
    on_the_way: VecDeque<(u64, Item)>,
    last_due: u64,
    end: Arc<End>,
}

enum Item {
    Message(Message),
    Closed,
}

#[derive(Default)]
struct End {
    arrived: Mutex<VecDeque<Message>>,
    signal: Notify,
    closed: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Net {
    pub fn new(dice: Dice, members: Vec<NodeId>) -> Arc<Net> {
        Arc::new(Net(Mutex::new(Inner {
            now_ms: 0,
            dice,
            serial: 0,
            queue: BTreeMap::new(),
            stalled: Vec::new(),
            ports: BTreeMap::new(),
            calls: BTreeMap::new(),
            pipes: BTreeMap::new(),
            weather: Weather::default(),
            traffic: Traffic::default(),
            members,
        })))
    }

    pub fn weather<T>(&self, change: impl FnOnce(&mut Weather) -> T) -> T {
        change(&mut locked(&self.0).weather)
    }

    pub fn traffic(&self) -> Traffic {
        locked(&self.0).traffic
    }

    /// A node is up: it may be called, and calls.
    pub fn attach(self: &Arc<Self>, node: NodeId, runtime: Handle) -> Arc<SimPeers> {
        let (lost, _) = broadcast::channel(256);
        let mailbox = Arc::new(Mailbox::default());
        let port = Port { runtime, handlers: BTreeMap::new(), acceptor: None, lost, mailbox };
        locked(&self.0).ports.insert(node, port);
        Arc::new(SimPeers { node, net: self.clone() })
    }

    /// A node has died. With `heard`, its connections break visibly, as when a process ends; without, nobody is told,
    /// as when a machine loses power.
    pub fn detach(&self, node: NodeId, heard: bool) {
        let mut inner = locked(&self.0);
        let port = inner.ports.remove(&node);
        let now = inner.now_ms;
        let members = inner.members.clone();
        for other in members.into_iter().filter(|other| *other != node) {
            if heard && !inner.weather.cut.contains(&(node, other)) {
                let due = now + 1 + inner.dice.below(4);
                inner.post(due, Parcel::Lost { at: other, about: node });
            }
        }
        let concerned: Vec<u64> = inner
            .pipes
            .iter()
            .filter(|(_, p)| p.opener == node || p.taker == node)
            .map(|(id, _)| *id)
            .collect();
        for id in concerned {
            inner.break_pipe(id, node, heard);
        }
        drop(inner);
        // What it holds may come back here when it goes.
        drop(port);
    }

    pub fn set_acceptor(&self, node: NodeId, acceptor: Arc<dyn Acceptor>) {
        if let Some(port) = locked(&self.0).ports.get_mut(&node) {
            port.acceptor = Some(acceptor);
        }
    }

    /// Opens a pipe. It may turn out later that nobody takes it.
    pub fn open(self: &Arc<Self>, opener: NodeId, taker: NodeId, hello: Hello) -> Pipe {
        let mut inner = locked(&self.0);
        inner.serial += 1;
        let id = inner.serial;
        let state = PipeState {
            opener,
            taker,
            ways: [Way::default(), Way::default()],
            dead: None,
            left: 0,
            stalled_since: None,
        };
        let end = state.ways[0].end.clone();
        inner.pipes.insert(id, state);
        inner.send(opener, taker, Parcel::Open { pipe: id, hello });
        Pipe { net: self.clone(), id, is_opener: true, end }
    }

    /// Delivers what is due.
    pub fn deliver(self: &Arc<Self>, now_ms: u64) {
        locked(&self.0).now_ms = now_ms;
        self.retry_stalled();
        loop {
            let parcel = {
                let mut inner = locked(&self.0);
                match inner.queue.first_key_value() {
                    Some(((due, _), _)) if *due <= now_ms => {
                        inner.queue.pop_first().map(|(_, parcel)| parcel)
                    }
                    _ => None,
                }
            };
            let Some(parcel) = parcel else { return };
            self.hand_over(parcel);
        }
    }

    fn retry_stalled(&self) {
        let mut inner = locked(&self.0);
        let now = inner.now_ms;
        for (since, parcel) in std::mem::take(&mut inner.stalled) {
            let (from, to) = parcel.link(&inner.pipes);
            if !inner.weather.cut.contains(&(from, to)) {
                let due = now + 1 + inner.dice.below(RETRANSMIT_MS);
                inner.post(due, parcel);
            } else if now - since < STALL_LIMIT_MS {
                inner.stalled.push((since, parcel));
            } else {
                inner.traffic.lost += 1;
                if let Parcel::Open { pipe, .. } = parcel {
                    inner.give_up(pipe);
                }
            }
        }
        inner.move_pipes(now);
    }

    fn hand_over(self: &Arc<Self>, parcel: Parcel) {
        let mut inner = locked(&self.0);
        match parcel {
            Parcel::Request { from, to, service, body, call } => {
                trace::fold(&[1, from.0, to.0, service as u64, call, body.len() as u64]);
                let Some(port) = inner.ports.get(&to) else {
                    let result = Err(CallError::Unreachable("nobody listens there".to_owned()));
                    inner.send(to, from, Parcel::Response { from: to, to: from, call, result });
                    return;
                };
                let handler = port.handlers.get(&service).cloned();
                let runtime = port.runtime.clone();
                drop(inner);
                let net = self.clone();
                runtime.spawn(async move {
                    let result = match handler {
                        Some(handler) => handler.call(from, body).await,
                        None => Err(Fault::new("this node does not offer that service (yet)")),
                    };
                    let result = result.map_err(CallError::Refused);
                    locked(&net.0).send(to, from, Parcel::Response { from: to, to: from, call, result });
                });
            }
            Parcel::Response { call, result, .. } => {
                trace::fold(&[2, call, u64::from(result.is_ok())]);
                let waiting = inner.calls.remove(&call);
                drop(inner);
                if let Some(waiting) = waiting {
                    // The caller may have given up.
                    let _ = waiting.send(result);
                }
            }
            Parcel::Datagram { from, to, bytes } => {
                trace::fold(&[3, from.0, to.0, bytes.len() as u64]);
                let Some(port) = inner.ports.get(&to) else { return };
                let mailbox = port.mailbox.clone();
                drop(inner);
                let mut waiting = locked(&mailbox.waiting);
                if waiting.len() < MAILBOX_LIMIT {
                    waiting.push_back(bytes);
                }
                drop(waiting);
                mailbox.arrived.notify_one();
            }
            Parcel::Open { pipe, hello } => {
                trace::fold(&[4, pipe]);
                let Some(state) = inner.pipes.get(&pipe) else { return };
                let (from, to, end) = (state.opener, state.taker, state.ways[1].end.clone());
                let acceptor =
                    inner.ports.get(&to).and_then(|p| Some((p.runtime.clone(), p.acceptor.clone()?)));
                let Some((runtime, acceptor)) = acceptor else {
                    inner.give_up(pipe);
                    return;
                };
                drop(inner);
                let pipe = Pipe { net: self.clone(), id: pipe, is_opener: false, end };
                runtime.spawn(async move { acceptor.accept(from, hello, pipe) });
            }
            Parcel::Item { pipe, to_opener } => {
                let Some(state) = inner.pipes.get_mut(&pipe) else { return };
                let way = &mut state.ways[usize::from(!to_opener)];
                let (Some((_, item)), end) = (way.on_the_way.pop_front(), way.end.clone()) else { return };
                drop(inner);
                trace::fold(&[5, pipe, u64::from(to_opener)]);
                end.take(item);
            }
            Parcel::Lost { at, about } => {
                let lost = inner.ports.get(&at).map(|p| p.lost.clone());
                drop(inner);
                if let Some(lost) = lost {
                    let _ = lost.send(about);
                }
            }
        }
    }
}

impl Parcel {
    fn link(&self, pipes: &BTreeMap<u64, PipeState>) -> (NodeId, NodeId) {
        match self {
            Parcel::Request { from, to, .. }
            | Parcel::Response { from, to, .. }
            | Parcel::Datagram { from, to, .. } => (*from, *to),
            Parcel::Open { pipe, .. } => {
                pipes.get(pipe).map_or((NodeId(0), NodeId(0)), |p| (p.opener, p.taker))
            }
            Parcel::Item { .. } => (NodeId(0), NodeId(0)),
            Parcel::Lost { at, about } => (*about, *at),
        }
    }
}

impl Inner {
    fn post(&mut self, due: u64, parcel: Parcel) {
        self.serial += 1;
        self.queue.insert((due, self.serial), parcel);
    }

    /// How long the next thing takes on a link that is whole.
    fn latency(&mut self, from: NodeId, to: NodeId, connected: bool) -> u64 {
        let mut latency = 1 + self.dice.below(2);
        if let Some(&slow) = self.weather.slow.get(&(from, to)) {
            latency += self.dice.below(slow + 1);
        }
        if connected && self.weather.loss.get(&(from, to)).is_some_and(|loss| self.dice.chance(*loss)) {
            latency += RETRANSMIT_MS;
        }
        latency
    }

    fn send(&mut self, from: NodeId, to: NodeId, parcel: Parcel) {
        let now = self.now_ms;
        if self.weather.cut.contains(&(from, to)) {
            let is_open = matches!(parcel, Parcel::Open { .. });
            if is_open || self.dice.chance(400) {
                self.stalled.push((now, parcel));
            } else {
                self.traffic.lost += 1;
            }
            return;
        }
        let due = now + self.latency(from, to, true);
        self.post(due, parcel);
    }

    fn push_item(&mut self, pipe: u64, to_opener: bool, item: Item) {
        let now = self.now_ms;
        let Some(state) = self.pipes.get_mut(&pipe) else { return };
        let (from, to) = if to_opener { (state.taker, state.opener) } else { (state.opener, state.taker) };
        if state.dead == Some(from) {
            return;
        }
        let way = &mut state.ways[usize::from(!to_opener)];
        // An item whose time is not set waits for the link.
        way.on_the_way.push_back((u64::MAX, item));
        if self.weather.cut.contains(&(from, to)) {
            return;
        }
        self.schedule(pipe, to_opener, now);
    }

    /// Gives times to the items of a direction that have none.
    fn schedule(&mut self, pipe: u64, to_opener: bool, now: u64) {
        let Some(state) = self.pipes.get(&pipe) else { return };
        let (from, to) = if to_opener { (state.taker, state.opener) } else { (state.opener, state.taker) };
        let at = usize::from(!to_opener);
        let count = state.ways[at].on_the_way.iter().filter(|(due, _)| *due == u64::MAX).count();
        for _ in 0..count {
            let latency = self.latency(from, to, true);
            let Some(state) = self.pipes.get_mut(&pipe) else { return };
            let way = &mut state.ways[at];
            let due = way.last_due.max(now + latency);
            way.last_due = due;
            if let Some(item) = way.on_the_way.iter_mut().find(|(due, _)| *due == u64::MAX) {
                item.0 = due;
            }
            self.post(due, Parcel::Item { pipe, to_opener });
        }
    }

    /// Nobody took it: whoever opened it finds it closed.
    fn give_up(&mut self, pipe: u64) {
        if let Some(state) = self.pipes.get_mut(&pipe) {
            state.left += 1;
            state.ways[0].end.take(Item::Closed);
        }
        self.forget_left(pipe);
    }

    /// A pipe that both ends have left is over.
    fn forget_left(&mut self, pipe: u64) {
        if self.pipes.get(&pipe).is_some_and(|state| state.left >= 2) {
            self.pipes.remove(&pipe);
        }
    }

    /// Items that waited for their link go on; pipes that stalled for too long break.
    fn move_pipes(&mut self, now: u64) {
        if self.weather.cut.is_empty() && self.pipes.values().all(|p| p.stalled_since.is_none()) {
            return;
        }
        let ids: Vec<u64> = self.pipes.keys().copied().collect();
        for id in ids {
            let mut stalled = false;
            for to_opener in [true, false] {
                let Some(state) = self.pipes.get(&id) else { continue };
                let (from, to) =
                    if to_opener { (state.taker, state.opener) } else { (state.opener, state.taker) };
                let waits =
                    state.ways[usize::from(!to_opener)].on_the_way.iter().any(|(due, _)| *due == u64::MAX);
                if !waits {
                    continue;
                }
                if self.weather.cut.contains(&(from, to)) {
                    stalled = true;
                } else {
                    self.schedule(id, to_opener, now);
                }
            }
            let Some(state) = self.pipes.get_mut(&id) else { continue };
            if !stalled {
                state.stalled_since = None;
            } else if now - *state.stalled_since.get_or_insert(now) >= STALL_LIMIT_MS {
                state.ways.iter().for_each(|way| way.end.take(Item::Closed));
                self.pipes.remove(&id);
            }
        }
    }

    /// One end is gone.
    fn break_pipe(&mut self, id: u64, gone: NodeId, heard: bool) {
        let Some(state) = self.pipes.get_mut(&id) else { return };
        let to_opener = state.opener != gone;
        state.ways[usize::from(to_opener)].on_the_way.clear();
        if heard {
            self.push_item(id, to_opener, Item::Closed);
            if let Some(state) = self.pipes.get_mut(&id) {
                state.dead = Some(gone);
            }
        } else {
            state.dead = Some(gone);
            // Its keepalives find out.
            let now = self.now_ms;
            let way = &mut state.ways[usize::from(!to_opener)];
            let due = way.last_due.max(now + STALL_LIMIT_MS);
            way.last_due = due;
            way.on_the_way.push_back((due, Item::Closed));
            self.post(due, Parcel::Item { pipe: id, to_opener });
        }
    }
}

impl End {
    fn take(&self, item: Item) {
        match item {
            Item::Message(message) => locked(&self.arrived).push_back(message),
            Item::Closed => self.closed.store(true, Ordering::SeqCst),
        }
        self.signal.notify_one();
    }
}

/// One end of a pipe. Dropped, it closes.
pub struct Pipe {
    net: Arc<Net>,
    id: u64,
    is_opener: bool,
    end: Arc<End>,
}

impl Pipe {
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn send(&self, message: Message) {
        locked(&self.net.0).push_item(self.id, !self.is_opener, Item::Message(message));
    }

    /// The next message; none when the other end has closed and everything before was taken.
    pub async fn receive(&self) -> Option<Message> {
        loop {
            if let Some(message) = locked(&self.end.arrived).pop_front() {
                return Some(message);
            }
            if self.end.closed.load(Ordering::SeqCst) {
                return None;
            }
            self.end.signal.notified().await;
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut inner = locked(&self.net.0);
        inner.push_item(self.id, !self.is_opener, Item::Closed);
        if let Some(state) = inner.pipes.get_mut(&self.id) {
            state.left += 1;
        }
        inner.forget_left(self.id);
    }
}

/// A node's door to the others.
pub struct SimPeers {
    node: NodeId,
    net: Arc<Net>,
}

impl SimPeers {
    pub fn net(&self) -> &Arc<Net> {
        &self.net
    }

    /// The node's socket for datagrams.
    pub fn datagrams(&self) -> Option<SimDatagrams> {
        let mailbox = locked(&self.net.0).ports.get(&self.node)?.mailbox.clone();
        Some(SimDatagrams { node: self.node, net: self.net.clone(), mailbox })
    }
}

#[async_trait::async_trait]
impl PeerNetwork for SimPeers {
    fn me(&self) -> NodeId {
        self.node
    }

    fn nodes(&self) -> Vec<NodeId> {
        locked(&self.net.0).members.clone()
    }

    async fn call(
        &self,
        to: NodeId,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        let answer = {
            let mut inner = locked(&self.net.0);
            inner.serial += 1;
            inner.traffic.calls += 1;
            let call = inner.serial;
            let (reply, answer) = oneshot::channel();
            inner.calls.insert(call, reply);
            let request = Parcel::Request { from: self.node, to, service, body, call };
            if to == self.node {
                let now = inner.now_ms;
                inner.post(now, request);
            } else {
                let control = matches!(service, Service::Raft | Service::Agent);
                if control && inner.dice.chance(TWICE_PERMILLE) {
                    inner.traffic.doubled += 1;
                    let later = inner.now_ms + 1 + inner.dice.below(300);
                    inner.post(later, request.clone());
                }
                inner.send(self.node, to, request);
            }
            answer
        };
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(CallError::Unreachable("the connection broke".to_owned())),
            Err(_) => Err(CallError::Timeout(deadline)),
        }
    }

    fn register(&self, service: Service, handler: Arc<dyn Handler>) {
        if let Some(port) = locked(&self.net.0).ports.get_mut(&self.node) {
            port.handlers.insert(service, handler);
        }
    }

    fn on_lost(&self) -> broadcast::Receiver<NodeId> {
        let inner = locked(&self.net.0);
        match inner.ports.get(&self.node) {
            Some(port) => port.lost.subscribe(),
            // The node is dying.
            None => broadcast::channel(1).1,
        }
    }
}

/// A node's address for datagrams.
pub fn address(node: NodeId) -> SocketAddr {
    (Ipv4Addr::new(10, 0, 0, node.0 as u8), 7432).into()
}

pub struct SimDatagrams {
    node: NodeId,
    net: Arc<Net>,
    mailbox: Arc<Mailbox>,
}

impl Datagrams for SimDatagrams {
    async fn readable(&self) {
        if locked(&self.mailbox.waiting).is_empty() {
            self.mailbox.arrived.notified().await;
        }
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let bytes = locked(&self.mailbox.waiting).pop_front()?;
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        Some(&buffer[..length])
    }

    fn send(&self, to: SocketAddr, bytes: &[u8]) {
        let SocketAddr::V4(to) = to else { return };
        let to = NodeId(u64::from(to.ip().octets()[3]));
        let link = (self.node, to);
        let mut inner = locked(&self.net.0);
        let loss = inner.weather.loss.get(&link).copied().unwrap_or(0);
        if inner.weather.cut.contains(&link) || inner.dice.chance(loss) {
            inner.traffic.lost += 1;
            return;
        }
        let copies = if inner.dice.chance(TWICE_PERMILLE) { 2 } else { 1 };
        for _ in 0..copies {
            let due = inner.now_ms + inner.latency(self.node, to, false);
            inner.post(due, Parcel::Datagram { from: self.node, to, bytes: bytes.to_vec() });
        }
        inner.traffic.doubled += copies - 1;
    }

    fn drain(&self) {
        locked(&self.mailbox.waiting).clear();
    }
}
