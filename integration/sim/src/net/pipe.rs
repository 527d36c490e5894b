//! Pipes: connections that keep their order, stall while their link is cut, and break when that lasts.

use super::{Inner, Net, Parcel, STALL_LIMIT_MS, locked};
use crate::pg::wire::Message;
use quorate_model::NodeId;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;

pub(super) struct PipeState {
    pub(super) opener: NodeId,
    pub(super) taker: NodeId,
    /// To the opener, and to the taker.
    pub(super) ways: [Way; 2],
    /// An end whose node has died: it sends nothing any more.
    pub(super) dead: Option<NodeId>,
    /// How many of its ends were dropped, or never came to be.
    pub(super) left: u32,
    /// Since when an item waits in a cut link.
    pub(super) stalled_since: Option<u64>,
}

#[derive(Default)]
pub(super) struct Way {
    pub(super) on_the_way: VecDeque<(u64, Item)>,
    pub(super) last_due: u64,
    pub(super) end: Arc<End>,
}

pub(super) enum Item {
    Message(Message),
    Closed,
}

#[derive(Default)]
pub(super) struct End {
    pub(super) arrived: Mutex<VecDeque<Message>>,
    pub(super) signal: Notify,
    pub(super) closed: AtomicBool,
}

impl Inner {
    pub(super) fn push_item(&mut self, pipe: u64, to_opener: bool, item: Item) {
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
    pub(super) fn schedule(&mut self, pipe: u64, to_opener: bool, now: u64) {
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
    pub(super) fn give_up(&mut self, pipe: u64) {
        if let Some(state) = self.pipes.get_mut(&pipe) {
            state.left += 1;
            state.ways[0].end.take(Item::Closed);
        }
        self.forget_left(pipe);
    }

    /// A pipe that both ends have left is over.
    pub(super) fn forget_left(&mut self, pipe: u64) {
        if self.pipes.get(&pipe).is_some_and(|state| state.left >= 2) {
            self.pipes.remove(&pipe);
        }
    }

    /// Items that waited for their link go on; pipes that stalled for too long break.
    pub(super) fn move_pipes(&mut self, now: u64) {
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
    pub(super) fn break_pipe(&mut self, id: u64, gone: NodeId, heard: bool) {
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
    pub(super) fn take(&self, item: Item) {
        match item {
            Item::Message(message) => locked(&self.arrived).push_back(message),
            Item::Closed => self.closed.store(true, Ordering::SeqCst),
        }
        self.signal.notify_one();
    }
}

/// One end of a pipe. Dropped, it closes.
pub struct Pipe {
    pub(super) net: Arc<Net>,
    pub(super) id: u64,
    pub(super) is_opener: bool,
    pub(super) end: Arc<End>,
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
