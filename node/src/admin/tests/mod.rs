//! The admin port over a real socket, with a made-up cluster behind it.

#![allow(clippy::unwrap_used)]

mod fake;
mod orders;
mod protocol;
