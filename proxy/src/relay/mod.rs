//! The relay: moves the bytes of one session between its client and its server, and judges messages on the way.
//!
//! The same relay runs in three places: where a client entered and the primary is on the same node (client - Postgres),
//! where the primary is elsewhere (client - peer), and at that node's gate (peer - Postgres). Whoever stands next
//! to Postgres holds the [`Pass`] of its gate; whoever stands next to the client guards statements and knows parameters.
//!
//! It forwards what it read with one write where that is possible, holds a buffer only while it holds bytes, and
//! allocates nothing for a message. Everything unusual is an [`Event`] for the session's own code.

mod abort;
pub mod busy_poll;
pub mod down;
mod inquire;
mod open_block;
mod up;

use crate::config::{MAX_REST_BYTES, OPEN_AFTER};
use crate::gate::pass::Pass;
use crate::gate::slot::{Activity, Backend, Slot};
use crate::guard::StreamedText;
use crate::session::params::Params;
use crate::stream::{Now, Stream};
use crate::wire::control::Control;
use crate::wire::egress::Egress;
use crate::wire::inquiry::Inquiry;
use crate::wire::lane::Lane;
use crate::wire::naming::Naming;
use crate::wire::tracker::Tracker;
pub use abort::Abort;
use busy_poll::{BusyPoll, For, Look};
use quorate_model::{DatabaseId, NodeId};
use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Bytes of a request to a remote gate that are kept, to send them again if they provably never reached Postgres.
const MAX_REPLAY_BYTES: usize = 64 * 1024;
/// What a session keeps of that when it is idle.
const IDLE_REPLAY_BYTES: usize = 2 * 1024;

/// What the relay cannot deal with alone.
#[derive(Debug)]
pub enum Event {
    /// The gate or the route changed: look at them.
    Signal,
    /// The client went away, or said goodbye.
    ClientClosed,
    /// The client sent what no client sends.
    ClientMalformed(&'static str),
    /// A statement too large to be refused in its place must be refused.
    Refused,
    /// The server's stream broke off, or is given up.
    ServerLost(String),
    /// The server has ended the stream: all that it said is here, judged or not.
    ServerEnded(String),
    /// The gate at the other node says something.
    Control(Control),
    /// An answer waits for a barrier.
    Barrier,
    /// The gate parks and the session is between transactions.
    Parked,
    /// The session shares servers, and needs the one it has no longer.
    Idle,
    /// There is no server and the client has a request.
    Request,
}

/// Which end of the path this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Next to the client.
    Entry,
    /// At the gate of a session that entered elsewhere.
    Gate { node: NodeId, database: DatabaseId },
}

/// The side of Postgres.
#[derive(Debug)]
pub struct Server {
    pub stream: Stream,
    /// Of the gate on this node; a remote one has its own.
    pub pass: Option<Pass>,
    pub socket: PathBuf,
    egress: Egress,
    /// It takes no more bytes; what it has sent is still read.
    deaf: bool,
    /// Bytes were written and not flushed.
    dirty: bool,
    /// It was told that nothing more comes.
    told_end: bool,
}

impl Server {
    pub fn local(stream: Stream, pass: Pass, socket: PathBuf) -> Self {
        Server { pass: Some(pass), socket, ..Server::remote(stream) }
    }

    pub fn remote(stream: Stream) -> Self {
        Server {
            stream,
            pass: None,
            socket: PathBuf::new(),
            egress: Egress::default(),
            deaf: false,
            dirty: false,
            told_end: false,
        }
    }
}

/// A copy of the request in flight, for a remote gate.
#[derive(Debug, Default)]
struct Replay {
    bytes: Vec<u8>,
    /// Nothing is missing from `bytes`.
    whole: bool,
    /// Where in the stream to the gate it begins.
    start: u64,
}

#[derive(Debug)]
pub struct Relay {
    role: Role,
    pub client: Stream,
    pub server: Option<Server>,
    /// From the client.
    pub up: Lane,
    /// To the client.
    pub down: Lane,
    pub tracker: Tracker,
    pub slot: Arc<Slot>,
    /// What the client was told of the server's parameters.
    pub params: Params,
    /// Set while the gate parks.
    pub parking: bool,
    /// Set while the map knows no primary: what would be sent to the last one now waits for the next one.
    pub paused: bool,
    /// What the client is still to be told of a lost transaction.
    pub abort: Option<Abort>,
    /// An error that ends the session has been passed on.
    pub fatal_sent: bool,
    /// What was sent may have turned off what the guard relies on: ends of transactions wait for evidence.
    pub unguarded: bool,
    /// As its startup packet left that: true of every session that shares its servers.
    pub unguarded_from_start: bool,
    /// The server is asked for the transaction that is about to commit. Only next to the client.
    pub outcomes: bool,
    /// The session shares its servers with others: what it prepares has other names there.
    pub naming: Option<Box<Naming>>,
    /// It was told why the session keeps its server.
    pinned: bool,
    /// Requests that had begun when the server was attached.
    requests_before: u64,
    /// What the server is being asked on the session's behalf.
    inquiry: Option<Box<Inquiry>>,
    /// When it will be asked.
    inquire_at: Option<Pin<Box<Sleep>>>,
    /// The client was told that it is in a transaction block, and its server has yet to open it.
    block_told: bool,
    /// For how long the first statement in it is waited for.
    open_after: Duration,
    /// When it is opened, should nothing else be sent.
    open_block_at: Option<Pin<Box<Sleep>>>,
    seen_signals: u32,
    seen_activity: Activity,
    /// Bytes judged since the server was attached.
    sent_up: u64,
    replay: Replay,
    /// Statements that were replaced and whose error has not come yet.
    refused: u32,
    streamed: Option<StreamedText>,
    /// The rest of a large message is dropped, not sent.
    dropping_up: bool,
    dropping_down: bool,
    client_dirty: bool,
    /// The message at the front of `down` waits for evidence of a commit.
    holds_end: bool,
    /// The client sends nothing more: it said goodbye or closed its side. It may still listen.
    client_ended: bool,
    stop_up: Option<Event>,
    stop_down: Option<Event>,
    busy_poll: BusyPoll,
}

enum Step {
    Moved,
    Stuck,
    Event(Event),
}

impl Relay {
    pub fn new(role: Role, client: Stream, slot: Arc<Slot>) -> Self {
        Relay {
            role,
            client,
            server: None,
            up: Lane::default(),
            down: Lane::default(),
            tracker: if role == Role::Entry { Tracker::remembering() } else { Tracker::default() },
            seen_signals: slot.signals(),
            slot,
            params: Params::default(),
            parking: false,
            paused: false,
            abort: None,
            fatal_sent: false,
            unguarded: false,
            unguarded_from_start: false,
            outcomes: false,
            naming: None,
            pinned: false,
            requests_before: 0,
            inquiry: None,
            inquire_at: None,
            block_told: false,
            open_after: OPEN_AFTER,
            open_block_at: None,
            seen_activity: Activity::new(0, false),
            sent_up: 0,
            replay: Replay::default(),
            refused: 0,
            streamed: None,
            dropping_up: false,
            dropping_down: false,
            client_dirty: false,
            holds_end: false,
            client_ended: false,
            stop_up: None,
            stop_down: None,
            busy_poll: BusyPoll::default(),
        }
    }

    /// The session has a server from now on.
    pub fn attach(&mut self, server: Server) {
        self.server = Some(server);
        self.down.show_until(u64::MAX);
        self.parking = false;
        self.paused = false;
        self.sent_up = 0;
        self.requests_before = self.tracker.requests();
        self.replay = Replay::default();
    }

    /// The server is gone, and with it what was on its way to it and what came from it and was not judged.
    pub fn detach(&mut self) -> Option<Server> {
        self.down.discard_unjudged();
        self.up.discard_unsent();
        self.refused = 0;
        self.inquiry = None;
        self.inquire_at = None;
        self.open_block_at = None;
        self.parking = false;
        self.dropping_down = false;
        self.holds_end = false;
        self.stop_down = None;
        self.slot.set_backend(None);
        if let Some(naming) = &mut self.naming {
            naming.detach();
        }
        if std::mem::take(&mut self.pinned) {
            self.slot.set_pinned(None);
        }
        if self.replay.bytes.capacity() > IDLE_REPLAY_BYTES {
            self.replay.bytes = Vec::new();
        }
        // What is left of a large message has lost its beginning.
        self.dropping_up |= !self.up.at_boundary();
        self.streamed = None;
        self.server.take()
    }

    /// What the server has said last and is not judged. None: it is too much, or begins in the middle of a message.
    pub fn rest(&self) -> Option<Vec<u8>> {
        let rest = self.down.unjudged();
        (self.down.at_boundary() && rest.len() <= MAX_REST_BYTES).then(|| rest.to_vec())
    }

    /// Bytes of the client that were taken for the server: what a gate reports as delivered.
    pub fn taken(&self) -> u64 {
        self.sent_up
    }

    /// The request in flight never reached Postgres, which took only the first `delivered` bytes: it will be sent again.
    /// Not when it was part of a transaction: that is gone, and its COMMIT, sent again, would be answered with success by
    /// a server that knows of no transaction.
    pub fn take_back(&mut self, delivered: u64) -> bool {
        if self.tracker.is_idle()
            || self.tracker.in_transaction()
            || !self.replay.whole
            || self.replay.start != delivered
            || !self.up.at_boundary()
        {
            return false;
        }
        self.up.discard_unsent();
        self.tracker.reset();
        let bytes = std::mem::take(&mut self.replay.bytes);
        self.up.put_back(&bytes);
        true
    }

    /// Something is in flight to a gate at another node, which alone knows whether Postgres has got it.
    pub fn awaits_last_word(&self) -> bool {
        !self.tracker.is_quiet() && self.server.as_ref().is_some_and(|s| s.pass.is_none())
    }

    pub fn barrier_passed(&mut self) {
        if let Some(server) = &mut self.server {
            server.egress.barrier_passed();
        }
    }

    /// Works until something happens that is not for the relay.
    pub async fn event(&mut self) -> Event {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.slot.register(cx.waker());
        let signals = self.slot.signals();
        if signals != self.seen_signals {
            self.seen_signals = signals;
            return Poll::Ready(Event::Signal);
        }
        let mut moved = false;
        loop {
            match self.poll_down(cx) {
                Step::Event(event) => return Poll::Ready(event),
                Step::Moved => moved = true,
                Step::Stuck => {}
            }
            match self.poll_up(cx) {
                Step::Event(event) => return Poll::Ready(event),
                Step::Moved => {
                    moved = true;
                    self.note_activity();
                }
                Step::Stuck if self.poll_inquire(cx) || self.poll_open_block(cx) => {}
                Step::Stuck => {
                    self.note_activity();
                    match if moved { self.look() } else { Look::Nothing } {
                        Look::Read => {}
                        Look::Nothing => return Poll::Pending,
                        Look::Come => {
                            // Woken again once the runtime has looked at all sockets of this thread, this one too.
                            let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// Looks for a moment whether something comes.
    #[inline]
    fn look(&mut self) -> Look {
        let (session, signals) = (self.number(), self.seen_signals);
        let Relay { client, server, tracker, up, down, slot, busy_poll, .. } = self;
        let Some(server) = server else { return Look::Nothing };
        let (waits_for, stream, other, lane) = match tracker.is_quiet() {
            true => (For::Client, &*client, &server.stream, up),
            false => (For::Server, &server.stream, &*client, down),
        };
        // Commits are long waits, and who carries them out needs the processors.
        if !lane.has_space() || tracker.awaits_end() {
            return Look::Nothing;
        }
        let interrupted = || slot.signals() != signals || !other.is_silent();
        let seen = busy_poll.sees(session, waits_for, || look_once(stream, lane, interrupted));
        lane.release_if_empty();
        seen
    }

    /// No other living session has it.
    fn number(&self) -> usize {
        Arc::as_ptr(&self.slot).addr()
    }

    /// Lets cancel requests know whether there is something to cancel.
    #[inline]
    fn note_activity(&mut self) {
        let activity = Activity::new(self.tracker.requests(), !self.tracker.is_quiet());
        if activity != self.seen_activity {
            self.seen_activity = activity;
            self.slot.set_activity(activity);
            if activity.is_busy() {
                busy_poll::begins_request(self.number());
            }
        }
    }

    fn note_backend(&self, pid: i32, secret: u32) {
        if let Role::Gate { node, database } = self.role {
            self.slot.set_backend(Some(Backend { node, database, pid, secret }));
        }
    }

    /// Reads from the client while there is room, until it goes away: for the time while a session waits for a server.
    pub async fn client_gone(&mut self) {
        poll_fn(|cx| {
            loop {
                if !self.up.has_space() {
                    return Poll::Pending;
                }
                match poll_fill(&mut self.client, &mut self.up, cx) {
                    Poll::Ready(Ok(n)) if n > 0 => {}
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }

    /// Sends the client everything that is judged.
    pub async fn flush_client(&mut self) -> io::Result<()> {
        poll_fn(|cx| match self.poll_flush_client(cx) {
            Poll::Ready(true) => Poll::Ready(Ok(())),
            Poll::Ready(false) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Ready: everything is sent, or (false) the client takes no more.
    #[inline]
    fn poll_flush_client(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.down.has_unsent() {
            match Pin::new(&mut self.client).poll_write(cx, self.down.unsent()) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.down.advance(n);
                    self.client_dirty = self.client.buffers();
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.client_dirty {
            match Pin::new(&mut self.client).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.client_dirty = false,
                Poll::Ready(Err(_)) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(true)
    }
}

/// Reads what has come, unless there is something else to be done first. What is read is in the lane.
fn look_once(stream: &Stream, lane: &mut Lane, interrupted: impl Fn() -> bool) -> Look {
    // Asked before, not after: what was read must not be forgotten.
    if interrupted() {
        return Look::Come;
    }
    match stream.read_now(lane.space()) {
        Now::Nothing => Look::Nothing,
        Now::Something => Look::Come,
        Now::Read(bytes) => {
            lane.fill(bytes);
            Look::Read
        }
    }
}

/// One read into a lane; `Ok(0)` is the end of the stream.
#[inline]
fn poll_fill(stream: &mut Stream, lane: &mut Lane, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(lane.space());
    let polled = Pin::new(stream).poll_read(cx, &mut buffer);
    let read = buffer.filled().len();
    match polled {
        Poll::Ready(Ok(())) => {
            lane.fill(read);
            if read == 0 {
                lane.release_if_empty();
            }
            Poll::Ready(Ok(read))
        }
        Poll::Ready(Err(error)) => {
            lane.release_if_empty();
            Poll::Ready(Err(error))
        }
        Poll::Pending => {
            lane.release_if_empty();
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests;
