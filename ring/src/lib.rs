//! The ring: who is alive, told within fractions of a second, and leases for reads.
//!
//! Nodes stand in id order; each is watched by both of its neighbours with small datagrams (DESIGN §2). What
//! they find is a hint to the reconfiguration agent and never more: no promise of Quorate rests on a verdict
//! being right. Leases are different: they rest on the arithmetic in `lease` and on the freshness of the
//! datagrams, and on nothing else.
//!
//! Pure: `order`, `detector`, `verdict`, `watch`, `lease`, `freshness`, `packet`, `gossip`.
//! Shell: `udp`, `driver` and `ring`, on an operating system thread of their own, so that a busy runtime delays
//! no heartbeat.

mod clock;
mod detector;
mod driver;
mod event;
mod freshness;
mod gossip;
pub mod lease;
mod metric;
mod order;
mod packet;
mod ring;
mod udp;
mod verdict;
mod watch;

pub use clock::{BootTime, boot_now};
pub use event::{RingEvent, RingMember};
pub use lease::{LeaseWant, Leases, holds_until};
pub use packet::{LeaseAnswer, LeaseRequest, MAX_DATAGRAM};
pub use ring::{Ring, RingConfig};
pub use udp::Datagrams;

#[cfg(test)]
mod tests;
