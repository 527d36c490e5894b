//! Elections. Raft's own timer would do, but it disturbs: a node that was stopped or cut off comes back with
//! a higher term and deposes a leader that everybody else is content with. So before an election a voter asks
//! the others whether they miss the leader too, and only a majority that does sets it off. Raft decides the
//! election itself.
//!
//! It is also quicker: voters stand in line instead of drawing lots, so that two seldom run at once, and a
//! broken connection to the leader lets them run as soon as its lease has ended.

mod campaign;
mod schedule;

pub(crate) use campaign::{Campaign, run};
