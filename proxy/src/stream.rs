//! The four kinds of byte streams that a session is made of.

use quorate_transport::{LocalStream, PeerStream};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

pub enum Stream {
    /// A client without TLS.
    Tcp(TcpStream),
    /// A client with TLS.
    Tls(Box<TlsStream<TcpStream>>),
    /// A Postgres on this node.
    Unix(LocalStream),
    /// Another node.
    Peer(Box<PeerStream>),
}

impl Stream {
    /// Whether written bytes may stay inside until they are flushed.
    pub fn buffers(&self) -> bool {
        matches!(self, Stream::Tls(_) | Stream::Peer(_))
    }

    pub fn is_peer(&self) -> bool {
        matches!(self, Stream::Peer(_))
    }
}

macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $call,
            Stream::Tls($inner) => $call,
            Stream::Unix($inner) => $call,
            Stream::Peer($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stream::Tcp(_) => "Tcp",
            Stream::Tls(_) => "Tls",
            Stream::Unix(_) => "Unix",
            Stream::Peer(_) => "Peer",
        })
    }
}
