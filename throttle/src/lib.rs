//! Who may come in, and how much of a node a tenant may use.
//!
//! Today three rules: how many sessions a node, and a logical server on that node, may hold at once, how fast those of
//! a server may begin, and whose turn it is when several wait for the same. Later the engine throttling of DESIGN §7 lives beside them. Everything here decides without I/O, clock or randomness;
//! the proxy asks and obeys.

mod admission;
mod logins;
mod turns;

pub use admission::{Admission, Full, Permit, Scope};
pub use logins::{Logins, TooFast};
pub use turns::Turns;
