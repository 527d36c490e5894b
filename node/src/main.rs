#![allow(dead_code)]
mod admin;
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
fn main() {}
