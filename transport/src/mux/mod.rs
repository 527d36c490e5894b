//! Many streams on one connection: the sessions that entered at one worker of a node and are served at another node.
//!
//! Why not a connection for each, as tunnels have: a session's messages are small and many. Together, what several of
//! them say at a time takes one TLS record and one system call at each end, and a session begins without a handshake.
//!
//! What it promises: each stream is as private, ordered and bounded as a connection of its own; one whose reader is slow
//! holds up nobody else, because no more than a window of it is under way; an end is seen behind the last bytes, also
//! when the stream is dropped at once. What streams do share is the connection's fate: when it breaks, all of them do.
//!
//! The task that drives a connection reads for all of its streams. What they write is gathered until the tasks that are
//! ready have run, and leaves in one piece; a lone stream's leaves at once.

mod connection;
mod frame;
mod places;
mod stream;

pub(crate) use connection::{Connection, MAX_STREAMS, Opened, drive};
pub(crate) use places::Places;
pub(crate) use stream::MuxStream;
