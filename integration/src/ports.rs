//! Choosing ports for a cluster: `base+i` for clients, and the same +100, +200, +300 for the other three.

use anyhow::bail;
use rand::Rng;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};

/// Below the range from which the kernel takes ports for outgoing connections, so that a free port stays free.
const LOWEST: u16 = 10_000;
const HIGHEST: u16 = 32_000;
const TRIES: u32 = 200;

/// What `quorate demo --base-port` adds for its kinds of port.
pub const OFFSETS: [u16; 4] = [0, 100, 200, 300];

/// A base port from which every port of a cluster of `nodes` is free now, on TCP and UDP.
pub fn free_base(nodes: u16) -> anyhow::Result<u16> {
    let mut random = rand::rng();
    for _ in 0..TRIES {
        let base = random.random_range(LOWEST..HIGHEST - 400 - nodes);
        let mut all = OFFSETS.iter().flat_map(|offset| (0..nodes).map(move |node| base + offset + node));
        if all.all(is_free) {
            return Ok(base);
        }
    }
    bail!("no free range of ports between {LOWEST} and {HIGHEST} after {TRIES} tries")
}

/// Any one free port.
pub fn free_one() -> anyhow::Result<u16> {
    free_base(1)
}

fn is_free(port: u16) -> bool {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_not_free() {
        let base = free_base(4).unwrap();
        let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, base + 201)).unwrap();
        assert!(!is_free(base + 201));
        assert!(is_free(base + 202));
    }
}
