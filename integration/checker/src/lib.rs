//! Model checking of what the daemon decides.
//!
//! The daemon's decisions are functions of values; here they run inside two models whose states a checker
//! (`stateright`) visits without leaving any out, up to a bound: [`writes`] for commits and reconfiguration, [`leases`] for reads. Each
//! invariant of the design is a property, and each mutant of the design must break one: see [`decisions`].

pub mod decisions;
pub mod leases;
pub mod prologue;
pub mod report;
pub mod run;
pub mod suite;
pub mod writes;
