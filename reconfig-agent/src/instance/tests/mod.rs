//! Against a real PostgreSQL. Each test has its own directories and ends what it started.
#![allow(clippy::unwrap_used)]

mod copies;
mod crash;
mod fixture;
mod pitfalls;
mod primary;
mod real_wal;
mod rewind;
mod shim;
mod storage;
mod timings;
mod torn;
