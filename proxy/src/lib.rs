//! The way of clients to their databases: the client port of each node, and the gates in front of its Postgres instances.
//!
//! An application connects to any node and cannot tell it from Postgres, except that its session outlives the server
//! it talks to. The proxy relays bytes as they came and looks at message headers only; what it knows of a session (what is
//! in flight, what the server keeps for it) decides what the client is told when the primary is lost.
//!
//! ```text
//! client -> session (entry node) -> gate (primary's node) -> Postgres
//!             scram, route,           lease at the way out,
//!             guard, survive          commit safety, park
//! ```
//!
//! **Never**: a success that is not on a quorum; a byte of Postgres after the lease lapsed or the gate closed; a
//! connection closed without an ErrorResponse where one can be put; an unbounded buffer, wait or queue.
//!
//! Pure: [`wire`], [`guard`], [`route`], [`scram`], [`certificate`]. Around them: `relay` (moves bytes), `session` (a client's life),
//! `gate` (who may pass), `listener` (threads and the port).

mod cancel;
pub mod certificate;
mod config;
mod gate;
pub mod guard;
mod listener;
mod pool;
mod priority;
mod relay;
pub mod route;
mod rpc;
pub mod scram;
mod session;
mod stream;
mod tls;
pub mod wire;

pub use config::{ProxyConfig, usual_workers};
pub use gate::{
    BootTime, Commits, Door, Evidence, Gate, Gates, NotOpen, Parked, Pass, Reads, Slot, boot_time,
};
pub use listener::Proxy;
pub use pool::PoolRow;
pub use session::outcome::LOST_ANSWERS;
pub use tls::{ALPN, ClientTls, TlsError};
