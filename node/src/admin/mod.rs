//! The admin port: operators' orders over PostgreSQL's protocol, so that psql and every driver can give them.
//!
//! Orders are proposals to the partition map; this port decides nothing itself and works the same on every node.
//! Nothing is answered before the operator has proved who he is. It never sees or keeps a tenant's password
//! longer than it takes to make a verifier from it.

mod answer;
pub mod auth;
pub mod clock;
pub mod context;
mod error;
mod language;
mod order;
mod orders;
pub mod server;
mod session;

pub use auth::Operator;
pub use context::AdminContext;
pub use server::AdminServer;

#[cfg(test)]
mod tests;
