//! Reads ahead of TLS: rustls asks the kernel for 4 KiB at a time, and a burst of the log or a large result would cost a
//! system call for each. Here one call takes what is there, and rustls is served from memory.
//!
//! A buffer is held only while bytes are in it; buffers come from a pool of the thread.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Two of the largest TLS records, and a little.
const BUFFER_BYTES: usize = 36 * 1024;
/// Free buffers that a thread keeps.
const MAX_POOLED: usize = 16;

thread_local! {
    static POOL: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

fn take() -> Box<[u8]> {
    POOL.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    POOL.with_borrow_mut(|pool| {
        if pool.len() < MAX_POOLED {
            pool.push(buffer);
        }
    });
}

pub(crate) struct ReadAhead {
    tcp: TcpStream,
    /// `start..end` of it was received and not yet read; held while there is any.
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl ReadAhead {
    pub(crate) fn new(tcp: TcpStream) -> ReadAhead {
        ReadAhead { tcp, buffer: None, start: 0, end: 0 }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    fn serve(&mut self, wanted: &mut ReadBuf<'_>) {
        let Some(buffer) = &self.buffer else { return };
        let bytes = wanted.remaining().min(self.end - self.start);
        wanted.put_slice(&buffer[self.start..self.start + bytes]);
        self.start += bytes;
        if self.start == self.end
            && let Some(buffer) = self.buffer.take()
        {
            give_back(buffer);
        }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        wanted: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.buffer.is_none() {
            let mut buffer = take();
            let mut free = ReadBuf::new(&mut buffer);
            let polled = Pin::new(&mut this.tcp).poll_read(cx, &mut free);
            let read = free.filled().len();
            if read == 0 {
                give_back(buffer);
                return polled;
            }
            ready!(polled)?;
            (this.buffer, this.start, this.end) = (Some(buffer), 0, read);
        }
        this.serve(wanted);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn bytes_come_in_order_and_no_buffer_is_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut ahead = ReadAhead::new(client);
        let (mut server, _) = listener.accept().await.unwrap();
        let sent: Vec<u8> = (0..200_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        let all = sent.clone();
        let writing = tokio::spawn(async move {
            server.write_all(&all).await.unwrap();
            server
        });
        let mut got = vec![0; sent.len()];
        for part in got.chunks_mut(4096) {
            ahead.read_exact(part).await.unwrap();
        }
        assert!(got == sent);
        assert!(ahead.buffer.is_none());
        drop(writing.await.unwrap());
        assert_eq!(ahead.read(&mut [0; 10]).await.unwrap(), 0, "the end is seen");
    }
}
