//! The network between nodes: calls, datagrams and pipes, all through one queue that the world empties.
//!
//! What it does to them is what a real one does under TCP and UDP. A datagram may be lost, doubled, delayed and
//! overtaken. A call may be delayed, overtaken or answered to nobody; one that was sent into a cut link is lost or
//! arrives when the link is whole again, long after its caller gave up. Some calls of the control plane arrive twice,
//! which TCP would not do, but a coordinator that asks again does. A pipe keeps its order, stalls while its link is
//! cut, and breaks when that lasts.

mod peers;
mod pipe;

use crate::dice::Dice;
use crate::pg::wire::Hello;
use crate::trace;
use bytes::Bytes;
use quorate_model::NodeId;
use quorate_transport::{CallError, Fault, Handler, Service};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, oneshot};

pub use peers::{SimPeers, address};
pub use pipe::Pipe;
use pipe::{PipeState, Way};

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
}
