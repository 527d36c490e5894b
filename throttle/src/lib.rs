//! Who may come in, and how much of a node a tenant may use.
//!
//! Today one rule: how many sessions a node, and a logical server on that node, may hold at once. Later the
//! engine throttling of DESIGN §7 lives beside it. Everything here decides without I/O, clock or randomness;
//! the proxy asks and obeys.

mod admission;

pub use admission::{Admission, Full, Permit, Scope};
