//! The four kinds of byte streams that a session is made of.

use quorate_transport::{LocalStream, PeerStream};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io;
use std::os::fd::AsFd;
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

    /// Whether the kernel has nothing from the other side, not even an end.
    pub fn is_silent(&self) -> bool {
        match self {
            Stream::Tcp(s) => quorate_transport::is_silent(s),
            Stream::Tls(s) => quorate_transport::is_silent(s.get_ref().0),
            Stream::Unix(s) => s.is_silent(),
            Stream::Peer(s) => s.is_silent(),
        }
    }

    /// Reads what the kernel has, without asking the runtime, which hears of it later and finds nothing. What is
    /// encrypted is not read.
    pub fn read_now(&self, buffer: &mut [u8]) -> Now {
        match self {
            Stream::Tcp(s) => Now::read(s, buffer),
            Stream::Unix(s) => Now::read(s, buffer),
            Stream::Tls(_) | Stream::Peer(_) if self.is_silent() => Now::Nothing,
            Stream::Tls(_) | Stream::Peer(_) => Now::Something,
        }
    }

    pub fn is_peer(&self) -> bool {
        matches!(self, Stream::Peer(_))
    }
}

/// What a stream has at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Now {
    Nothing,
    /// Bytes, an end or an error: to be read in the usual way.
    Something,
    /// So many bytes, which were read.
    Read(usize),
}

impl Now {
    fn read(socket: impl AsFd, buffer: &mut [u8]) -> Now {
        match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((bytes, _)) if bytes > 0 => Now::Read(bytes),
            // An end is told again.
            Ok(_) => Now::Something,
            Err(Errno::WOULDBLOCK | Errno::INTR) => Now::Nothing,
            // An error is not.
            Err(_) => Now::Something,
        }
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
