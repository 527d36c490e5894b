//! Every way between two nodes, with a switch in it.
//!
//! The nodes of a test share one machine and one address, so there is no cable to pull, and rules of a packet filter
//! would need root and could not tell whose packets they are. Instead each node reaches every other by a relay of its
//! own, TCP and UDP on one port that nobody else uses. A way that is cut loses datagrams and holds bytes back, in its
//! one direction, as a network does that drops packets: connections neither move nor end until it heals.
//!
//! Clients are not relayed: they reach a node that is cut off, which is what makes a cut worth testing.

use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

const CHUNK_BYTES: usize = 64 * 1024;
/// More than the ring's largest datagram.
const DATAGRAM_BYTES: usize = 4 * 1024;
const PORT_TRIES: u32 = 100;

/// From one node to another, by name.
pub type Way = (String, String);

/// One direction between two nodes.
#[derive(Debug)]
struct Switch {
    is_cut: watch::Sender<bool>,
    /// Datagrams that arrived, and those that were lost to a cut.
    passed: AtomicU64,
    lost: AtomicU64,
}

impl Switch {
    /// Returns when the way is whole.
    async fn whole(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.is_cut.subscribe().wait_for(|cut| !cut).await;
    }
}

/// What a way has carried so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    pub passed: u64,
    pub lost: u64,
}

/// All ways of a cluster. They end when this is dropped.
pub struct Links {
    switches: BTreeMap<Way, Arc<Switch>>,
    ports: BTreeMap<Way, u16>,
    _relays: JoinSet<()>,
}

impl Links {
    /// Relays between these nodes, given as names and peer ports.
    pub async fn start(nodes: &[(String, u16)]) -> anyhow::Result<Links> {
        let mut links = Links { switches: BTreeMap::new(), ports: BTreeMap::new(), _relays: JoinSet::new() };
        for (from, _) in nodes {
            for (to, _) in nodes.iter().filter(|(to, _)| to != from) {
                let switch = Switch { is_cut: watch::Sender::new(false), passed: 0.into(), lost: 0.into() };
                links.switches.insert((from.clone(), to.clone()), Arc::new(switch));
            }
        }
        for ((from, to), there) in &links.switches {
            let target = nodes.iter().find(|(name, _)| name == to).context("a node of the list")?.1;
            let target = SocketAddrV4::new(Ipv4Addr::LOCALHOST, target);
            let back = links.switches[&(to.clone(), from.clone())].clone();
            let (tcp, udp) = bind().await?;
            links.ports.insert((from.clone(), to.clone()), tcp.local_addr()?.port());
            links._relays.spawn(streams(tcp, target, there.clone(), back));
            links._relays.spawn(datagrams(udp, target, there.clone()));
        }
        Ok(links)
    }

    /// Makes a node's configuration name the relays instead of the other nodes.
    pub fn reroute(&self, node: &str, config: &Path) -> anyhow::Result<()> {
        let mut table: toml::Table = std::fs::read_to_string(config)?.parse()?;
        let peers = table.get_mut("peers").and_then(toml::Value::as_array_mut).context("no peers")?;
        for peer in peers {
            let name = peer.get("name").and_then(toml::Value::as_str).context("a peer without a name")?;
            if name == node {
                continue;
            }
            let port = self.ports.get(&(node.to_owned(), name.to_owned())).context("a peer nobody knows")?;
            let address = toml::Value::String(format!("127.0.0.1:{port}"));
            peer.as_table_mut().context("a peer is a table")?.insert("peer".to_owned(), address);
        }
        std::fs::write(config, toml::to_string_pretty(&table)?)?;
        Ok(())
    }

    /// Both directions between a node and every other.
    pub fn of(&self, node: &str) -> Vec<Way> {
        self.switches.keys().filter(|(from, to)| from == node || to == node).cloned().collect()
    }

    pub fn cut(&self, ways: &[Way]) -> anyhow::Result<()> {
        self.set(ways, true)
    }

    pub fn heal(&self, ways: &[Way]) -> anyhow::Result<()> {
        self.set(ways, false)
    }

    fn set(&self, ways: &[Way], cut: bool) -> anyhow::Result<()> {
        for way in ways {
            self.switch(way)?.is_cut.send_replace(cut);
        }
        Ok(())
    }

    pub fn count(&self, way: &Way) -> anyhow::Result<Count> {
        let switch = self.switch(way)?;
        Ok(Count { passed: switch.passed.load(Ordering::SeqCst), lost: switch.lost.load(Ordering::SeqCst) })
    }

    fn switch(&self, way: &Way) -> anyhow::Result<&Arc<Switch>> {
        self.switches.get(way).with_context(|| format!("no way from {} to {}", way.0, way.1))
    }
}

/// The same free port on TCP and on UDP.
async fn bind() -> anyhow::Result<(TcpListener, UdpSocket)> {
    for _ in 0..PORT_TRIES {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr()?).await {
            return Ok((tcp, udp));
        }
    }
    anyhow::bail!("no port is free on TCP and UDP after {PORT_TRIES} tries")
}

async fn datagrams(socket: UdpSocket, target: SocketAddrV4, switch: Arc<Switch>) {
    let mut buffer = [0; DATAGRAM_BYTES];
    loop {
        // An error is the refusal of an earlier datagram: its target is not there now.
        let Ok((length, _)) = socket.recv_from(&mut buffer).await else { continue };
        if *switch.is_cut.borrow() {
            switch.lost.fetch_add(1, Ordering::SeqCst);
        } else {
            switch.passed.fetch_add(1, Ordering::SeqCst);
            let _ = socket.send_to(&buffer[..length], target).await;
        }
    }
}

async fn streams(listener: TcpListener, target: SocketAddrV4, there: Arc<Switch>, back: Arc<Switch>) {
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                running.spawn(stream_between(stream, target, there.clone(), back.clone()));
            },
            Some(_) = running.join_next() => {}
        }
    }
}

/// Relays one connection until either side ends in error, or both have said all.
async fn stream_between(near: TcpStream, target: SocketAddrV4, there: Arc<Switch>, back: Arc<Switch>) {
    there.whole().await;
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = near.set_nodelay(true);
    let _ = far.set_nodelay(true);
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let _ = tokio::try_join!(pump(near_in, far_out, &there), pump(far_in, near_out, &back));
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, switch: &Switch) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        // The end of a stream is a packet too.
        switch.whole().await;
        if length == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}

/// Ways that are cut, with what they had carried by then.
pub struct Cut {
    before: Vec<(Way, Count)>,
}

impl Cut {
    pub fn begin(links: &Links, ways: &[Way]) -> anyhow::Result<Cut> {
        links.cut(ways)?;
        let before = ways.iter().map(|way| Ok((way.clone(), links.count(way)?)));
        Ok(Cut { before: before.collect::<anyhow::Result<_>>()? })
    }

    /// Heals, and tells whether the cut was one: nothing passed, and something wanted to.
    pub fn end(self, links: &Links) -> anyhow::Result<()> {
        let after: Vec<Count> =
            self.before.iter().map(|(way, _)| links.count(way)).collect::<anyhow::Result<_>>()?;
        let ways: Vec<Way> = self.before.iter().map(|(way, _)| way.clone()).collect();
        links.heal(&ways)?;
        let lost: u64 = self.before.iter().zip(&after).map(|((_, b), a)| a.lost - b.lost).sum();
        ensure!(lost > 0, "no datagram was lost: the nodes do not talk by {ways:?}");
        for ((way, before), after) in self.before.iter().zip(&after) {
            ensure!(
                before.passed == after.passed,
                "datagrams passed a cut way: {way:?} {before:?} {after:?}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_cut_holds_bytes_and_loses_datagrams_one_way() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap();
        let heard = UdpSocket::bind(at).await.unwrap();
        let links = Links::start(&[("a".into(), 1), ("b".into(), at.port())]).await.unwrap();
        let there = ("a".to_owned(), "b".to_owned());
        let port = links.ports[&there];
        let mut near = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut far, _) = server.accept().await.unwrap();
        let speaker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 8];

        let cut = Cut::begin(&links, std::slice::from_ref(&there)).unwrap();
        near.write_all(b"there").await.unwrap();
        far.write_all(b"back").await.unwrap();
        speaker.send_to(b"x", ("127.0.0.1", port)).await.unwrap();
        assert_eq!(near.read(&mut buffer).await.unwrap(), 4, "the other direction is whole");
        assert!(timeout(SOON, far.read(&mut buffer)).await.is_err(), "bytes passed a cut");
        assert!(timeout(SOON, heard.recv(&mut buffer)).await.is_err(), "a datagram passed a cut");

        cut.end(&links).unwrap();
        assert_eq!(timeout(SOON, far.read(&mut buffer)).await.unwrap().unwrap(), 5, "bytes were lost");
        speaker.send_to(b"x", ("127.0.0.1", port)).await.unwrap();
        assert_eq!(timeout(SOON, heard.recv(&mut buffer)).await.unwrap().unwrap(), 1);
        drop(near);
        assert_eq!(timeout(SOON, far.read(&mut buffer)).await.unwrap().unwrap(), 0, "the end is relayed");
    }

    #[tokio::test]
    async fn a_cut_that_nobody_noticed_is_no_cut() {
        let links = Links::start(&[("a".into(), 1), ("b".into(), 2)]).await.unwrap();
        let cut = Cut::begin(&links, &links.of("a")).unwrap();
        assert!(cut.end(&links).is_err());
    }
}
