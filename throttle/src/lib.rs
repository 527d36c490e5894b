//! Who may come in, and how much of a node a tenant may use.
//!
//! Today two rules: how many sessions a node, and a logical server on that node, may hold at once, and how fast those of
//! a server may begin. Later the engine throttling of DESIGN §7 lives beside them. Everything here decides without I/O, clock or randomness;
//! the proxy asks and obeys.

mod admission;
mod logins;

pub use admission::{Admission, Full, Permit, Scope};
pub use logins::{Logins, TooFast};
