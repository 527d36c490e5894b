//! One of the streams of a connection.

use super::connection::Connection;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Dropped without an end, it is reset: whoever reads at the other side gets `ConnectionReset`.
pub(crate) struct MuxStream {
    pub(super) connection: Arc<Connection>,
    pub(super) id: u32,
}

impl MuxStream {
    pub(crate) fn is_silent(&self) -> bool {
        self.connection.is_silent(self.id)
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.connection.poll_read(self.id, cx, buf)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.connection.poll_write(self.id, cx, buf)
    }

    /// What was written is in the connection's hands, which sends it whatever becomes of the stream.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.flush();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connection.end(self.id);
        self.connection.flush();
        Poll::Ready(Ok(()))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.connection.forget(self.id);
    }
}
