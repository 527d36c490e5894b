//! One connection and its streams' state, behind one lock, which nobody holds across an await.

use super::frame::{self, Frame, MAX_DATA_BYTES, malformed};
use super::stream::MuxStream;
use crate::ahead::ReadAhead;
use crate::link::locked;
use crate::local::is_silent;
use crate::message::MAX_PREFACE_BYTES;
use bytes::Bytes;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

/// Bytes of one stream that may be under way in a direction or wait for its reader.
pub(super) const WINDOW_BYTES: usize = 128 * 1024;
/// The reader's side grants more when so much was read.
const GRANT_BYTES: usize = WINDOW_BYTES / 2;
/// While more than that waits to be sent, streams wait.
const MAX_OUT_BYTES: usize = 256 * 1024;
/// An empty buffer that grew larger than that is given back.
const IDLE_OUT_BYTES: usize = 32 * 1024;
const IN_BYTES: usize = 128 * 1024;
/// Streams of one connection at a time.
pub(crate) const MAX_STREAMS: usize = 65_536;
/// Reads before other tasks have their turn.
const READS_PER_POLL: u32 = 8;

pub(crate) struct Connection {
    inner: Mutex<Inner>,
}

struct Inner {
    tls: TlsStream<ReadAhead>,
    received: Box<[u8]>,
    /// `start..end` of it is not understood yet.
    start: usize,
    end: usize,
    /// Frames that are to be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// TLS took bytes that it may still hold back.
    unflushed: bool,
    streams: HashMap<u32, Half>,
    last: u32,
    broken: Option<(io::ErrorKind, String)>,
    /// No more streams: it ends with the last of them.
    retired: bool,
    /// Of the task that drives it.
    driver: Option<Waker>,
    /// The driver was told that something is to be sent.
    told: bool,
    /// Writers that wait for room in `out`.
    crowd: Vec<Waker>,
}

/// This side's half of a stream.
struct Half {
    input: Vec<u8>,
    /// So much of `input` was read.
    taken: usize,
    /// Read since the last grant.
    ungranted: usize,
    /// How much the other side takes.
    credit: usize,
    their_end: Option<End>,
    our_end: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

enum End {
    Said,
    Reset(String),
}

/// What the driver of a connection that was accepted has to do.
pub(crate) struct Opened {
    pub(crate) kind: u8,
    pub(crate) hello: Bytes,
    pub(crate) stream: MuxStream,
}

impl Half {
    fn new() -> Half {
        Half {
            input: Vec::new(),
            taken: 0,
            ungranted: 0,
            credit: WINDOW_BYTES,
            their_end: None,
            our_end: false,
            reader: None,
            writer: None,
        }
    }

    fn is_reset(&self) -> bool {
        matches!(self.their_end, Some(End::Reset(_)))
    }
}

impl Connection {
    pub(crate) fn new(tls: TlsStream<ReadAhead>) -> Arc<Connection> {
        Arc::new(Connection {
            inner: Mutex::new(Inner {
                tls,
                received: vec![0; IN_BYTES].into_boxed_slice(),
                start: 0,
                end: 0,
                out: Vec::new(),
                sent: 0,
                unflushed: false,
                streams: HashMap::new(),
                last: 0,
                broken: None,
                retired: false,
                driver: None,
                told: false,
                crowd: Vec::new(),
            }),
        })
    }

    /// A new stream, if the connection takes any more.
    pub(crate) fn open(self: &Arc<Self>, kind: u8, hello: &[u8]) -> Option<MuxStream> {
        let mut inner = locked(&self.inner);
        let id = inner.last.checked_add(1)?;
        if inner.retired || inner.broken.is_some() || inner.streams.len() >= MAX_STREAMS {
            return None;
        }
        inner.last = id;
        inner.streams.insert(id, Half::new());
        Frame::Open { kind, hello }.put(id, &mut inner.out);
        inner.tell_driver();
        Some(MuxStream { connection: Arc::clone(self), id })
    }

    pub(crate) fn takes_streams(&self) -> bool {
        let inner = locked(&self.inner);
        !inner.retired && inner.broken.is_none() && inner.last < u32::MAX && inner.streams.len() < MAX_STREAMS
    }

    /// It takes no more streams, and ends with the last one.
    pub(crate) fn retire(&self) {
        let mut inner = locked(&self.inner);
        inner.retired = true;
        inner.wake_driver();
    }

    pub(super) fn poll_read(
        &self,
        id: u32,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = locked(&self.inner);
        let Inner { streams, out, broken, .. } = &mut *inner;
        let Some(half) = streams.get_mut(&id) else { return Poll::Ready(Err(gone())) };
        let bytes = buf.remaining().min(half.input.len() - half.taken);
        if bytes > 0 {
            buf.put_slice(&half.input[half.taken..half.taken + bytes]);
            half.taken += bytes;
            half.ungranted += bytes;
            if half.taken == half.input.len() {
                // An idle stream holds no buffer.
                (half.input, half.taken) = (Vec::new(), 0);
            } else if half.taken >= GRANT_BYTES {
                half.input.drain(..half.taken);
                half.taken = 0;
            }
            if half.ungranted >= GRANT_BYTES && half.their_end.is_none() && broken.is_none() {
                Frame::Window(half.ungranted as u32).put(id, out);
                half.ungranted = 0;
                inner.tell_driver();
            }
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match (&half.their_end, broken) {
            (Some(End::Said), _) => Poll::Ready(Ok(())),
            (Some(End::Reset(why)), _) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, why.clone())))
            }
            (None, Some((kind, why))) => Poll::Ready(Err(io::Error::new(*kind, why.clone()))),
            (None, None) => {
                register(&mut half.reader, cx);
                Poll::Pending
            }
        }
    }

    pub(super) fn poll_write(&self, id: u32, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = locked(&self.inner);
        let Inner { streams, out, sent, broken, crowd, .. } = &mut *inner;
        let Some(half) = streams.get_mut(&id) else { return Poll::Ready(Err(gone())) };
        if broken.is_some() || half.our_end || half.is_reset() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if out.len() - *sent >= MAX_OUT_BYTES {
            crowd.push(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes = buf.len().min(half.credit).min(MAX_DATA_BYTES);
        if bytes == 0 && !buf.is_empty() {
            register(&mut half.writer, cx);
            return Poll::Pending;
        }
        half.credit -= bytes;
        Frame::Data(&buf[..bytes]).put(id, out);
        inner.tell_driver();
        Poll::Ready(Ok(bytes))
    }

    /// What a lone stream wrote leaves at once; that of several is gathered by the driver.
    pub(super) fn flush(&self) {
        let mut inner = locked(&self.inner);
        if inner.streams.len() == 1 && inner.has_to_send() {
            let sent = inner.poll_send(&mut Context::from_waker(Waker::noop()));
            if !matches!(sent, Poll::Ready(Ok(()))) {
                // It waits for the socket, with its own waker, or finds what broke.
                inner.wake_driver();
            }
        }
    }

    pub(super) fn end(&self, id: u32) {
        let mut inner = locked(&self.inner);
        let Inner { streams, out, broken, .. } = &mut *inner;
        if let Some(half) = streams.get_mut(&id)
            && !half.our_end
        {
            half.our_end = true;
            if broken.is_none() && !half.is_reset() {
                Frame::End.put(id, out);
                inner.tell_driver();
            }
        }
    }

    /// Nobody has the stream any more.
    pub(super) fn forget(&self, id: u32) {
        let mut inner = locked(&self.inner);
        let Some(half) = inner.streams.remove(&id) else { return };
        let over = half.is_reset() || (half.our_end && matches!(half.their_end, Some(End::Said)));
        if inner.broken.is_none() && !over {
            Frame::Reset(b"").put(id, &mut inner.out);
            inner.tell_driver();
        }
        if inner.retired {
            inner.wake_driver();
        }
    }

    /// Whether nothing has come for the stream, as far as the kernel knows.
    pub(super) fn is_silent(&self, id: u32) -> bool {
        let inner = locked(&self.inner);
        let nothing = |half: &Half| half.input.is_empty() && half.their_end.is_none();
        inner.broken.is_none()
            && inner.streams.get(&id).is_some_and(nothing)
            && is_silent(inner.tls.get_ref().0.tcp())
    }

    fn break_with(&self, error: &io::Error) {
        let mut inner = locked(&self.inner);
        if inner.broken.is_some() {
            return;
        }
        inner.broken = Some((error.kind(), error.to_string()));
        let wake: Vec<Waker> = inner
            .streams
            .values_mut()
            .flat_map(|half| [half.reader.take(), half.writer.take()])
            .flatten()
            .collect();
        let crowd = std::mem::take(&mut inner.crowd);
        drop(inner);
        wake.into_iter().chain(crowd).for_each(Waker::wake);
    }
}

impl Inner {
    fn has_to_send(&self) -> bool {
        self.sent < self.out.len() || self.unflushed
    }

    fn tell_driver(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.wake_driver();
        }
    }

    fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// Ready: everything has left.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            match ready!(Pin::new(&mut self.tls).poll_write(cx, &self.out[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => self.sent += bytes,
            }
            self.unflushed = true;
        }
        self.sent = 0;
        self.out.clear();
        if self.out.capacity() > IDLE_OUT_BYTES {
            self.out = Vec::new();
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.tls).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what is there, and hands it out. `Err` is the connection's end.
    fn poll_receive(
        &mut self,
        connection: &Arc<Connection>,
        accepts: bool,
        cx: &mut Context<'_>,
        wake: &mut Vec<Waker>,
        opened: &mut Vec<Opened>,
    ) -> io::Result<()> {
        for _ in 0..READS_PER_POLL {
            if self.start > 0 {
                self.received.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let mut free = ReadBuf::new(&mut self.received[self.end..]);
            match Pin::new(&mut self.tls).poll_read(cx, &mut free) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(())) if free.filled().is_empty() => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the other node closed the connection",
                    ));
                }
                Poll::Ready(Ok(())) => self.end += free.filled().len(),
            }
            self.hand_out(connection, accepts, wake, opened)?;
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    fn hand_out(
        &mut self,
        connection: &Arc<Connection>,
        accepts: bool,
        wake: &mut Vec<Waker>,
        opened: &mut Vec<Opened>,
    ) -> io::Result<()> {
        let Inner { received, start, end, streams, last, out, .. } = self;
        while let Some((id, frame, length)) = frame::front(&received[*start..*end])? {
            *start += length;
            if let Frame::Open { kind, hello } = frame {
                if !accepts || id <= *last || hello.len() > MAX_PREFACE_BYTES {
                    return Err(malformed("a stream that may not be opened"));
                }
                *last = id;
                if streams.len() >= MAX_STREAMS {
                    Frame::Reset(b"too many streams").put(id, out);
                    continue;
                }
                streams.insert(id, Half::new());
                let stream = MuxStream { connection: Arc::clone(connection), id };
                opened.push(Opened { kind, hello: Bytes::copy_from_slice(hello), stream });
                continue;
            }
            // What comes for a stream that is over here was sent before the other side knew.
            let Some(half) = streams.get_mut(&id) else { continue };
            match frame {
                Frame::Open { .. } => {}
                Frame::Data(bytes) => {
                    let waiting = half.input.len() - half.taken;
                    if half.their_end.is_some() || waiting + half.ungranted + bytes.len() > WINDOW_BYTES {
                        return Err(malformed("more data than was granted"));
                    }
                    half.input.extend_from_slice(bytes);
                    wake.extend(half.reader.take());
                }
                Frame::Window(grant) => {
                    half.credit = half.credit.saturating_add(grant as usize);
                    if half.credit > WINDOW_BYTES {
                        return Err(malformed("a larger window than there is"));
                    }
                    wake.extend(half.writer.take());
                }
                Frame::End => {
                    half.their_end.get_or_insert(End::Said);
                    wake.extend(half.reader.take());
                }
                Frame::Reset(why) => {
                    // Behind an end it says that nobody listens any more.
                    let said = matches!(half.their_end, Some(End::Said));
                    if said {
                        half.our_end = true;
                    } else {
                        half.their_end = Some(End::Reset(reason(why)));
                    }
                    wake.extend(half.reader.take());
                    wake.extend(half.writer.take());
                }
            }
        }
        Ok(())
    }
}

fn reason(why: &[u8]) -> String {
    match String::from_utf8_lossy(why) {
        why if why.is_empty() => "the other node dropped the stream".to_owned(),
        why => why.into_owned(),
    }
}

fn gone() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

/// Moves what streams write and what comes for them, until the connection ends. `accept` is given the streams that the
/// other side opens; without it none may be.
pub(crate) async fn drive(
    connection: &Arc<Connection>,
    mut accept: Option<&mut (dyn FnMut(Opened) + Send)>,
) -> io::Error {
    // Also when this task is dropped, with its runtime.
    let _broken = Broken(connection);
    let mut wake = Vec::new();
    let mut opened = Vec::new();
    let mut gathered = false;
    let error = poll_fn(|cx| {
        let polled = poll_drive(connection, accept.is_some(), cx, &mut wake, &mut opened, &mut gathered);
        wake.drain(..).for_each(Waker::wake);
        if let Some(accept) = &mut accept {
            opened.drain(..).for_each(&mut **accept);
        }
        polled
    })
    .await;
    connection.break_with(&error);
    error
}

fn poll_drive(
    connection: &Arc<Connection>,
    accepts: bool,
    cx: &mut Context<'_>,
    wake: &mut Vec<Waker>,
    opened: &mut Vec<Opened>,
    gathered: &mut bool,
) -> Poll<io::Error> {
    let mut inner = locked(&connection.inner);
    register(&mut inner.driver, cx);
    if let Err(error) = inner.poll_receive(connection, accepts, cx, wake, opened) {
        return Poll::Ready(error);
    }
    if inner.has_to_send() {
        if inner.streams.len() > 1 && !*gathered {
            // Whoever is ready to run has its say first; then this task is woken.
            *gathered = true;
            let _ = pin!(tokio::task::yield_now()).poll(cx);
            return Poll::Pending;
        }
        match inner.poll_send(cx) {
            Poll::Ready(Ok(())) => (inner.told, *gathered) = (false, false),
            Poll::Ready(Err(error)) => return Poll::Ready(error),
            // The socket wakes this task.
            Poll::Pending => {}
        }
        if inner.out.len() - inner.sent < MAX_OUT_BYTES {
            wake.append(&mut inner.crowd);
        }
    } else {
        (inner.told, *gathered) = (false, false);
    }
    if inner.retired && inner.streams.is_empty() && !inner.has_to_send() {
        return Poll::Ready(io::Error::new(io::ErrorKind::ConnectionAborted, "it was given up"));
    }
    Poll::Pending
}

struct Broken<'a>(&'a Connection);

impl Drop for Broken<'_> {
    fn drop(&mut self) {
        self.0.break_with(&io::Error::new(io::ErrorKind::ConnectionAborted, "this node is shutting down"));
    }
}
