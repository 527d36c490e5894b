//! One direction of a relay: bytes leave from the buffer they were received in.

use super::buffer;
use super::scan::Malformed;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Moves bytes from a source to a sink.
#[derive(Debug, Default)]
pub struct Pump {
    buffer: Option<Box<[u8]>>,
    /// `start..end` of the buffer was received and not yet sent; `start <= end`.
    start: usize,
    end: usize,
    /// What was received stays here until it is released.
    held: bool,
    /// The sink took bytes that it may still hold back.
    unflushed: bool,
    source_ended: bool,
    closed: bool,
}

/// Why a direction cannot go on.
#[derive(Debug)]
pub enum PumpError {
    Sink(io::Error),
    Malformed(Malformed),
}

/// What becomes of bytes that were just received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    /// Everything that is here waits for [`Pump::release`]; more is received while there is room.
    Hold,
    /// They are whole messages that the other side does not need.
    Withhold,
}

/// What one step did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Step {
    pub read: usize,
    pub wrote: usize,
    /// Everything that was received has been handed to the sink, in this step.
    pub delivered: bool,
}

impl Pump {
    /// A pump that first sends bytes which were received before it existed.
    pub fn preloaded(bytes: &[u8]) -> Pump {
        let mut pump = Pump::default();
        pump.inject(bytes);
        pump
    }

    /// Everything that was received has left.
    pub fn is_idle(&self) -> bool {
        self.start == self.end && !self.unflushed
    }

    /// Sends bytes of our own, unless others wait.
    pub fn inject(&mut self, bytes: &[u8]) {
        if self.start == self.end && !self.source_ended {
            let buffer = self.buffer.get_or_insert_with(buffer::take);
            let length = bytes.len().min(buffer.len());
            buffer[..length].copy_from_slice(&bytes[..length]);
            (self.start, self.end) = (0, length);
        }
    }

    pub fn is_held(&self) -> bool {
        self.held
    }

    pub fn release(&mut self) {
        self.held = false;
    }

    pub fn source_ended(&self) -> bool {
        self.source_ended
    }

    /// The source has ended and everything it said was delivered, the end included.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Reads what is there and writes what can be written. New bytes are shown to `scan` before they leave.
    pub fn step(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        sink: &mut (impl AsyncWrite + Unpin),
        scan: impl FnOnce(&[u8]) -> Result<Pass, Malformed>,
    ) -> Result<Step, PumpError> {
        let mut step = Step { read: self.receive(cx, source, scan)?, ..Step::default() };
        if let Some(bytes) = &self.buffer {
            while self.start < self.end && !self.held {
                match Pin::new(&mut *sink).poll_write(cx, &bytes[self.start..self.end]) {
                    Poll::Ready(Ok(0)) => return Err(PumpError::Sink(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(n)) => {
                        self.start += n;
                        step.wrote += n;
                    }
                    Poll::Ready(Err(error)) => return Err(PumpError::Sink(error)),
                    Poll::Pending => break,
                }
            }
        }
        if step.wrote > 0 {
            self.unflushed = true;
            if self.start == self.end {
                (self.start, self.end) = (0, 0);
                step.delivered = true;
            }
        }
        if self.unflushed && self.start == self.end {
            match Pin::new(&mut *sink).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(PumpError::Sink(error)),
                Poll::Pending => {}
            }
        }
        if self.source_ended
            && self.start == self.end
            && !self.unflushed
            && Pin::new(sink).poll_shutdown(cx).is_ready()
        {
            self.closed = true;
        }
        Ok(step)
    }

    /// Gives the buffer back unless bytes wait in it.
    pub fn rest(&mut self) {
        if self.start == self.end
            && let Some(buffer) = self.buffer.take()
        {
            buffer::give_back(buffer);
        }
    }

    fn receive(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut (impl AsyncRead + Unpin),
        scan: impl FnOnce(&[u8]) -> Result<Pass, Malformed>,
    ) -> Result<usize, PumpError> {
        if self.source_ended || self.end == buffer::BUFFER_BYTES {
            return Ok(0);
        }
        let buffer = self.buffer.get_or_insert_with(buffer::take);
        let mut free = ReadBuf::new(&mut buffer[self.end..]);
        match Pin::new(source).poll_read(cx, &mut free) {
            Poll::Pending => Ok(0),
            Poll::Ready(Ok(())) => {
                let read = free.filled().len();
                self.source_ended = read == 0;
                let pass = scan(free.filled()).map_err(PumpError::Malformed)?;
                if pass != Pass::Withhold {
                    self.end += read;
                }
                self.held |= pass == Pass::Hold;
                Ok(read)
            }
            // A source that broke has ended; what it said before is still delivered.
            Poll::Ready(Err(_)) => {
                self.source_ended = true;
                Ok(0)
            }
        }
    }
}
