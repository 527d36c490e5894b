//! The calling end of one multiplexed connection: many calls in flight, answers in any order.

use crate::frame::{MAX_FRAME_BYTES, put_frame, read_frame};
use crate::handler::{CallError, Fault, Service};
use crate::message::{Answer, Call};
use bytes::Bytes;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Calls that one node may have open at another at a time; further ones wait their turn, within their
/// deadline.
pub const MAX_CALLS_IN_FLIGHT: usize = 1024;
/// Calls that wait to be written.
const WRITE_QUEUE_CALLS: usize = 256;
/// Small frames are collected up to this size and written at once.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here leaves a half-made change behind a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Reply = oneshot::Sender<Result<Bytes, Fault>>;

/// Calls that wait for their answer; `None` once the connection is broken.
struct Pending(Mutex<Option<HashMap<u64, Reply>>>);

impl Pending {
    fn insert(&self, id: u64) -> Option<oneshot::Receiver<Result<Bytes, Fault>>> {
        let (reply, answer) = oneshot::channel();
        locked(&self.0).as_mut()?.insert(id, reply);
        Some(answer)
    }

    fn take(&self, id: u64) -> Option<Reply> {
        locked(&self.0).as_mut()?.remove(&id)
    }

    fn is_broken(&self) -> bool {
        locked(&self.0).is_none()
    }

    /// Drops every reply, which is how the callers learn of it.
    fn fail_all(&self) {
        drop(locked(&self.0).take());
    }
}

/// Forgets a call whose caller has gone, and fails all of them when the driver ends, however it ends.
struct ForgetOnDrop<'a>(&'a Pending, u64);

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.take(self.1);
    }
}

struct FailAllOnDrop(Arc<Pending>);

impl Drop for FailAllOnDrop {
    fn drop(&mut self) {
        self.0.fail_all();
    }
}

struct Outgoing {
    id: u64,
    service: Service,
    body: Bytes,
}

/// How a connection came to its end.
pub(crate) enum End {
    /// Nobody wants to call through it any more.
    Dropped,
    Broken(io::Error),
}

pub(crate) struct Link {
    outgoing: mpsc::Sender<Outgoing>,
    pending: Arc<Pending>,
    turns: Semaphore,
    next_id: AtomicU64,
}

impl Link {
    /// A link over an established connection, and the future that moves its bytes; the link works while that
    /// runs.
    pub(crate) fn new<S>(stream: S) -> (Arc<Link>, impl Future<Output = End> + Send)
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (outgoing, calls) = mpsc::channel(WRITE_QUEUE_CALLS);
        let pending = Arc::new(Pending(Mutex::new(Some(HashMap::new()))));
        let failing = FailAllOnDrop(pending.clone());
        let turns = Semaphore::new(MAX_CALLS_IN_FLIGHT);
        let link = Link { outgoing, pending, turns, next_id: AtomicU64::new(1) };
        let driver = async move {
            let (reader, writer) = tokio::io::split(stream);
            tokio::select! {
                end = read_answers(reader, &failing.0) => end,
                end = write_calls(writer, calls) => end,
            }
        };
        (Arc::new(link), driver)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.pending.is_broken()
    }

    /// Asks and waits; the caller bounds the time by dropping this.
    pub(crate) async fn call(&self, service: Service, body: Bytes) -> Result<Bytes, CallError> {
        let _turn = self.turns.acquire().await.map_err(|_| broken())?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answer = self.pending.insert(id).ok_or_else(broken)?;
        let _forget = ForgetOnDrop(&self.pending, id);
        self.outgoing.send(Outgoing { id, service, body }).await.map_err(|_| broken())?;
        match answer.await {
            Ok(result) => result.map_err(CallError::Refused),
            Err(_) => Err(broken()),
        }
    }
}

fn broken() -> CallError {
    CallError::Unreachable("the connection broke".to_owned())
}

async fn read_answers(reader: impl AsyncRead + Unpin, pending: &Pending) -> End {
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    loop {
        let frame = match read_frame(&mut reader, MAX_FRAME_BYTES).await {
            Ok(frame) => frame,
            Err(error) => return End::Broken(error),
        };
        let Some(answer) = Answer::decode(frame) else {
            return End::Broken(io::Error::new(io::ErrorKind::InvalidData, "not an answer"));
        };
        // Without a reply the caller has given up.
        if let Some(reply) = pending.take(answer.id) {
            let _ = reply.send(answer.result.map_err(Fault));
        }
    }
}

async fn write_calls(writer: impl AsyncWrite + Unpin, mut calls: mpsc::Receiver<Outgoing>) -> End {
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
    loop {
        let Some(first) = calls.recv().await else { return End::Dropped };
        let mut next = Some(first);
        // Everything that is there already goes out together.
        while let Some(Outgoing { id, service, body }) = next {
            if let Err(error) = put_frame(&mut writer, &Call::head(id, service), &body).await {
                return End::Broken(error);
            }
            next = calls.try_recv().ok();
        }
        if let Err(error) = writer.flush().await {
            return End::Broken(error);
        }
    }
}
