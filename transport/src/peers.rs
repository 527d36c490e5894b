//! A node's door to all others.

use crate::dial::dial;
use crate::frame::MAX_FRAME_BYTES;
use crate::identity::Identity;
use crate::link::locked;
use crate::message::{CALL_HEAD_BYTES, MAX_PREFACE_BYTES, Preface};
use crate::mux::Places;
use crate::server;
use crate::slot::{Slot, Surroundings};
use crate::{CallError, Fault, Handler, PeerStream, Service, StreamHandler, StreamKind};
use bytes::Bytes;
use futures::FutureExt;
use quorate_model::NodeId;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::broadcast;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Losses that a slow listener of [`Peers::on_lost`] may lag behind before it misses some.
const LOST_QUEUE: usize = 256;

pub struct Peers {
    around: Arc<Surroundings>,
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
    places: Places,
    handlers: Mutex<BTreeMap<Service, Arc<dyn Handler>>>,
    stream_handlers: Mutex<BTreeMap<StreamKind, Arc<dyn StreamHandler>>>,
}

impl Peers {
    /// Connects to nobody yet. Must be called on a runtime: calls are carried out there, whoever makes them.
    pub fn new(identity: Arc<Identity>, addresses: BTreeMap<NodeId, String>) -> Arc<Peers> {
        let (lost, _) = broadcast::channel(LOST_QUEUE);
        let slots = addresses.into_iter().map(|(node, address)| (node, Slot::new(node, address))).collect();
        Arc::new(Peers {
            around: Arc::new(Surroundings { identity, runtime: Handle::current(), lost }),
            slots: Mutex::new(slots),
            places: Places::default(),
            handlers: Mutex::default(),
            stream_handlers: Mutex::default(),
        })
    }

    pub fn me(&self) -> NodeId {
        self.around.identity.node()
    }

    /// Adds a node, or moves it.
    pub fn set_address(&self, node: NodeId, address: String) {
        let mut slots = locked(&self.slots);
        match slots.get(&node) {
            Some(slot) if slot.address() == address => return,
            Some(slot) => slot.set_address(address),
            None => drop(slots.insert(node, Slot::new(node, address))),
        }
        drop(slots);
        self.places.give_up(node);
    }

    /// Every node whose address is known.
    pub fn nodes(&self) -> Vec<NodeId> {
        locked(&self.slots).keys().copied().collect()
    }

    /// Asks a node, this one included, and waits for its answer up to `deadline`.
    ///
    /// After `Unreachable` and `Timeout` the call may or may not have been carried out. While a node cannot
    /// be reached, calls fail at once between attempts to connect.
    pub async fn call(
        &self,
        to: NodeId,
        service: Service,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, CallError> {
        if body.len() + CALL_HEAD_BYTES > MAX_FRAME_BYTES {
            return Err(CallError::TooLarge(body.len()));
        }
        let asking = async {
            if to == self.me() {
                return self.call_self(service, body).await;
            }
            self.slot(to)?.link(&self.around).await?.call(service, body).await
        };
        timeout(deadline, asking).await.unwrap_or(Err(CallError::Timeout(deadline)))
    }

    /// Opens a raw stream on a connection of its own, which lives on the caller's runtime.
    pub async fn open(
        &self,
        to: NodeId,
        kind: StreamKind,
        hello: Bytes,
        deadline: Duration,
    ) -> Result<PeerStream, CallError> {
        let address = self.address_for(to, &hello)?;
        let preface = Preface::Stream(kind, hello);
        let dialing = dial(&self.around.identity, to, &address, &preface);
        timeout(deadline, dialing).await.unwrap_or(Err(CallError::Timeout(deadline))).map(PeerStream::own)
    }

    /// As [`Peers::open`], on the connection that all such streams of the calling thread to that node share. The other side
    /// has not agreed yet: if it does not take the stream, the first read fails.
    pub async fn open_shared(
        &self,
        to: NodeId,
        kind: StreamKind,
        hello: Bytes,
        deadline: Duration,
    ) -> Result<PeerStream, CallError> {
        let address = self.address_for(to, &hello)?;
        let opening = self.places.open(&self.around.identity, to, &address, kind as u8, &hello);
        timeout(deadline, opening).await.unwrap_or(Err(CallError::Timeout(deadline))).map(PeerStream::shared)
    }

    /// The node did not answer on a shared stream in time: the next one is opened on another connection. Streams that
    /// there are go on.
    pub fn give_up_shared(&self, node: NodeId) {
        self.places.give_up(node);
    }

    /// Tells of nodes whose connection for calls broke, in either direction: a hint for a failure detector.
    pub fn on_lost(&self) -> broadcast::Receiver<NodeId> {
        self.around.lost.subscribe()
    }

    /// From now on `handler` answers the calls of `service`.
    pub fn register(&self, service: Service, handler: Arc<dyn Handler>) {
        locked(&self.handlers).insert(service, handler);
    }

    /// From now on `handler` takes the streams of that kind.
    pub fn register_stream(&self, kind: StreamKind, handler: Arc<dyn StreamHandler>) {
        locked(&self.stream_handlers).insert(kind, handler);
    }

    /// Serves other nodes until `stop`; then every connection that came in is closed.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        server::serve(self, listener, stop).await;
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.around.identity
    }

    pub(crate) fn tell_lost(&self, node: NodeId) {
        // Nobody listening is fine.
        let _ = self.around.lost.send(node);
    }

    /// A connection came in from there: the next call may connect at once.
    pub(crate) fn heard_of(&self, node: NodeId) {
        if let Ok(slot) = self.slot(node) {
            slot.forget_failures();
        }
    }

    pub(crate) fn stream_handler(&self, kind: StreamKind) -> Option<Arc<dyn StreamHandler>> {
        locked(&self.stream_handlers).get(&kind).cloned()
    }

    /// Carries out a call here. A handler that panics is a fault, not silence.
    pub(crate) fn dispatch(
        &self,
        from: NodeId,
        service: Option<Service>,
        body: Bytes,
    ) -> impl Future<Output = Result<Bytes, Fault>> + Send + 'static {
        let handler = service.and_then(|service| locked(&self.handlers).get(&service).cloned());
        async move {
            let handler = handler.ok_or_else(|| Fault::new("this node does not offer that service (yet)"))?;
            match AssertUnwindSafe(handler.call(from, body)).catch_unwind().await {
                Ok(result) => result,
                Err(_) => Err(Fault::new("the call failed inside the node; see its log")),
            }
        }
    }

    /// As remote calls do, one to this node runs to its end even if the caller gives up.
    async fn call_self(&self, service: Service, body: Bytes) -> Result<Bytes, CallError> {
        let call = self.around.runtime.spawn(self.dispatch(self.me(), Some(service), body));
        match call.await {
            Ok(result) => result.map_err(CallError::Refused),
            Err(_) => Err(CallError::Unreachable("this node is shutting down".to_owned())),
        }
    }

    /// Where a stream with that hello goes.
    fn address_for(&self, to: NodeId, hello: &Bytes) -> Result<String, CallError> {
        if hello.len() + 2 > MAX_PREFACE_BYTES {
            return Err(CallError::TooLarge(hello.len()));
        }
        Ok(self.slot(to)?.address())
    }

    fn slot(&self, node: NodeId) -> Result<Arc<Slot>, CallError> {
        let slot = locked(&self.slots).get(&node).cloned();
        slot.ok_or_else(|| CallError::Unreachable("its address is not known".to_owned()))
    }
}
