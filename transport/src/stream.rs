//! A private byte stream between two nodes.

use crate::ahead::ReadAhead;
use crate::local::is_silent;
use crate::mux::MuxStream;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

/// Raw bytes after the hello, both ends proven. Either one TCP connection (`TCP_NODELAY`) under one layer of TLS, or one of
/// the streams that share such a connection (see `mux`).
///
/// A connection of its own has keepalives but no `TCP_USER_TIMEOUT`: a client that reads slowly, or a standby that stalls,
/// leaves the window closed for as long as it likes, and Linux would count that as a dead peer. Whoever owns the stream
/// decides when the other side has been silent for too long. A shared one is read at any time, so it has that limit.
pub struct PeerStream(Kind);

enum Kind {
    Own(Box<TlsStream<ReadAhead>>),
    Shared(MuxStream),
}

impl PeerStream {
    pub(crate) fn own(tls: TlsStream<ReadAhead>) -> PeerStream {
        PeerStream(Kind::Own(Box::new(tls)))
    }

    pub(crate) fn shared(stream: MuxStream) -> PeerStream {
        PeerStream(Kind::Shared(stream))
    }

    /// Whether the kernel has nothing from the other node, not even an end.
    pub fn is_silent(&self) -> bool {
        match &self.0 {
            Kind::Own(tls) => is_silent(tls.get_ref().0.tcp()),
            Kind::Shared(stream) => stream.is_silent(),
        }
    }
}

macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match &mut $stream.get_mut().0 {
            Kind::Own($inner) => $call,
            Kind::Shared($inner) => $call,
        }
    };
}

impl AsyncRead for PeerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.0 {
            Kind::Own(tls) => tls.is_write_vectored(),
            Kind::Shared(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

impl std::fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerStream")
    }
}
