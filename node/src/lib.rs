//! The node as a library: what the binary `quorate` is wired from. The simulation starts [`app::control`] too.

pub mod admin;
pub mod app;
pub mod config;
pub mod demo;
pub mod health;
pub mod http;
pub mod metrics;
pub mod telemetry;

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
