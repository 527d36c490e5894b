//! Everything that nodes say to each other over TCP: one port a node, mutual TLS, calls and raw streams.
//!
//! Why a layer of its own: the map, the agents, the proxy and the operator's commands all need "ask that
//! node, with a deadline" or "a private byte stream to that node", and all need the same answer to "who is
//! speaking?". The answer is the certificate: its subject alternative name `n<ID>.quorate`, signed by the
//! cluster's own authority. A node is never believed to be another one because of an address or of anything
//! it says.
//!
//! What it promises: a call ends, with an answer or an error, within its deadline; calls that wait on a
//! connection that breaks fail at once, not at their deadline; every frame, queue and number of connections
//! has a limit. What it never does: retry a call (the caller knows whether that is safe), or judge whether a
//! node is alive ([`Peers::on_lost`] is a hint, the ring decides).
//!
//! ```text
//! connection := preface frame, reply frame, then
//!   rpc:    frames of message.rs in both directions
//!   stream: raw bytes
//!   streams: frames of mux in both directions
//! frame      := length u32 big-endian, body
//! ```

mod ahead;
pub mod authority;
mod dial;
mod frame;
mod handler;
mod identity;
mod link;
mod local;
mod message;
mod mux;
mod network;
mod peers;
mod server;
mod slot;
mod stream;

#[cfg(test)]
mod tests;

pub use frame::{MAX_FRAME_BYTES, decode, encode, read_frame, write_frame};
pub use handler::{CallError, Fault, Handler, Service, StreamHandler, StreamKind};
pub use identity::{Identity, IdentityError};
pub use link::MAX_CALLS_IN_FLIGHT;
pub use local::{LocalStream, is_silent};
pub use network::PeerNetwork;
pub use peers::Peers;
pub use server::MAX_CONNECTIONS;
pub use stream::PeerStream;
