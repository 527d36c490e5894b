//! The socket of the ring. Nothing here waits for the network: what cannot be sent at once is lost, as any
//! datagram may be.
//!
//! The driver knows it as [`Datagrams`], so that a simulated network can take its place; the type is resolved when
//! compiling.

use crate::metric;
use crate::packet::MAX_DATAGRAM;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Bytes that the kernel is asked to hold for us in each direction.
const SOCKET_BUFFER: usize = 1 << 20;
/// Datagrams thrown away at most when what waited is to be forgotten; more than the buffer holds.
const MAX_DRAINED: usize = 1 << 16;

/// Where the ring's datagrams come from and go to.
pub trait Datagrams: Send + Sync + 'static {
    /// Returns when something may be there.
    fn readable(&self) -> impl Future<Output = ()> + Send;
    /// The next datagram that is there, in `buffer` (`MAX_DATAGRAM + 1` bytes). One that is too long arrives one byte
    /// too long.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]>;
    fn send(&self, to: SocketAddr, bytes: &[u8]);
    /// Throws away what waits.
    fn drain(&self);
}

pub struct Udp {
    /// Reads through the runtime.
    incoming: tokio::net::UdpSocket,
    /// Writes at once, whatever the runtime knows about readiness.
    outgoing: UdpSocket,
}

/// Takes the port. Not shared: a second ring on it is a mistake that must be told.
pub fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel may give less; that is no reason not to start.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

impl Udp {
    /// Must be called on the runtime that is to wait for the socket.
    pub fn attach(socket: UdpSocket) -> io::Result<Udp> {
        let outgoing = socket.try_clone()?;
        Ok(Udp { incoming: tokio::net::UdpSocket::from_std(socket)?, outgoing })
    }
}

impl Datagrams for Udp {
    async fn readable(&self) {
        // An error shows again when reading.
        let _ = self.incoming.readable().await;
    }

    fn receive<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        match self.incoming.try_recv_from(buffer) {
            Ok((len, _)) => Some(&buffer[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                tracing::debug!(%error, "the ring's socket");
                None
            }
        }
    }

    fn send(&self, to: SocketAddr, bytes: &[u8]) {
        if self.outgoing.send_to(bytes, to).is_err() {
            metric::unsent();
        }
    }

    fn drain(&self) {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        for _ in 0..MAX_DRAINED {
            if self.receive(&mut buffer).is_none() {
                return;
            }
        }
    }
}
