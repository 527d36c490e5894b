//! Rings on real sockets: several in one process on the loopback, a peer played by the test, and a process that
//! is really stopped.

mod bed;
mod freeze;
mod leases;
mod membership;
mod wire;
