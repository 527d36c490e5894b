//! Streams that share a connection, over real sockets.

use super::*;
use crate::dial::dial;
use crate::message::Preface;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

/// Carries connections to a node, counts them, and can break them.
struct Wire {
    address: String,
    made: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    cut: watch::Sender<u32>,
}

impl Wire {
    async fn to(node: &Node) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (made, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (cut, cuts) = watch::channel(0);
        let (made_here, open_here, target) = (made.clone(), open.clone(), node.address.clone());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                made_here.fetch_add(1, Ordering::SeqCst);
                open_here.fetch_add(1, Ordering::SeqCst);
                let (open, mut cuts, target) = (open_here.clone(), cuts.clone(), target.clone());
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Wire { address, made, open, cut }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    async fn until_open(&self, connections: usize) {
        let settled = async {
            while self.open.load(Ordering::SeqCst) != connections {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(LONG, settled).await.unwrap();
    }
}

/// Does what the hello says, and tells how its stream ended.
struct Script {
    ends: mpsc::Sender<(usize, io::Result<()>)>,
    /// Until then "deaf" does not read.
    hears: watch::Receiver<bool>,
}

#[async_trait]
impl StreamHandler for Script {
    async fn accept(&self, _: NodeId, hello: Bytes, mut stream: PeerStream) {
        match &hello[..] {
            b"flood" => while stream.write_all(&[7; 5000]).await.is_ok() {},
            b"farewell" => {
                stream.write_all(&[9; 100_000]).await.unwrap();
                stream.shutdown().await.unwrap();
                return;
            }
            b"deaf" => drop(self.hears.clone().wait_for(|hears| *hears).await),
            _ => {
                let (mut reader, mut writer) = tokio::io::split(stream);
                let copied = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
                let _ = self.ends.try_send((0, copied.map(drop)));
                return;
            }
        }
        let mut heard = Vec::new();
        let end = stream.read_to_end(&mut heard).await;
        let _ = self.ends.try_send((heard.len(), end.map(drop)));
    }
}

struct Scene {
    one: Node,
    _two: Node,
    wire: Wire,
    ends: mpsc::Receiver<(usize, io::Result<()>)>,
    hear: watch::Sender<bool>,
    _dir: TempDir,
}

async fn scene() -> Scene {
    let (one, two, _dir) = pair().await;
    let (sender, ends) = mpsc::channel(100);
    let (hear, hears) = watch::channel(false);
    two.peers.register_stream(StreamKind::Gate, Arc::new(Script { ends: sender, hears }));
    let wire = Wire::to(&two).await;
    one.peers.set_address(N2, wire.address.clone());
    Scene { one, _two: two, wire, ends, hear, _dir }
}

impl Scene {
    async fn open(&self, hello: &'static str) -> PeerStream {
        let hello = Bytes::from_static(hello.as_bytes());
        self.one.peers.open_shared(N2, StreamKind::Gate, hello, LONG).await.unwrap()
    }

    async fn end(&mut self) -> (usize, io::Result<()>) {
        timeout(LONG, self.ends.recv()).await.unwrap().unwrap()
    }
}

/// Sends `bytes` of a sequence of its own in uneven pieces, and compares what comes back.
async fn echo(stream: &mut PeerStream, seed: u32, bytes: usize) {
    let sent: Vec<u8> = (0..bytes as u32).map(|i| (i.wrapping_mul(seed) >> 5) as u8).collect();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut got = vec![0; bytes];
    let writing = async {
        let (mut rest, mut piece) = (&sent[..], seed as usize);
        while !rest.is_empty() {
            piece = (piece * 31 + 7) % 40_000;
            let (now, later) = rest.split_at(rest.len().min(piece + 1));
            writer.write_all(now).await.unwrap();
            writer.flush().await.unwrap();
            rest = later;
        }
    };
    let reading = async { reader.read_exact(&mut got).await.unwrap() };
    timeout(LONG, async { tokio::join!(writing, reading) }).await.unwrap();
    assert!(got == sent);
}

async fn many_streams() {
    let mut scene = scene().await;
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 1..40 {
        let mut stream = scene.open("echo").await;
        tasks.spawn(async move {
            echo(&mut stream, seed, 400_000).await;
            stream.shutdown().await.unwrap();
            assert_eq!(stream.read(&mut [0; 9]).await.unwrap(), 0);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for _ in 1..40 {
        scene.end().await.1.unwrap();
    }
    assert_eq!(scene.wire.made(), 1);
}

#[tokio::test]
async fn many_streams_share_a_connection_and_each_gets_its_own_bytes() {
    many_streams().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_may_be_used_on_several_threads() {
    many_streams().await;
}

#[tokio::test]
async fn a_lone_stream_carries_more_than_sockets_hold() {
    let scene = scene().await;
    echo(&mut scene.open("echo").await, 77, 20_000_000).await;
}

#[tokio::test]
async fn whoever_does_not_read_holds_up_itself_alone() {
    let mut scene = scene().await;
    let mut flood = scene.open("flood").await;
    let mut deaf = scene.open("deaf").await;
    let wrote = Arc::new(AtomicUsize::new(0));
    let counted = wrote.clone();
    let writing = tokio::spawn(async move {
        for _ in 0..1000 {
            deaf.write_all(&[1; 1000]).await.unwrap();
            counted.fetch_add(1000, Ordering::SeqCst);
        }
        deaf.shutdown().await.unwrap();
        let error = deaf.read(&mut [0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "it never said an end");
    });
    echo(&mut scene.open("echo").await, 5, 5_000_000).await;
    assert!(scene.end().await.1.is_err(), "the echo was dropped");
    assert!(wrote.load(Ordering::SeqCst) < 200_000, "bounded");
    assert!(!writing.is_finished());
    // What waited all the time is there, and goes on.
    scene.hear.send(true).unwrap();
    timeout(LONG, writing).await.unwrap().unwrap();
    let (heard, end) = scene.end().await;
    end.unwrap();
    assert_eq!(heard, 1_000_000);
    let mut got = vec![0; 3_000_000];
    timeout(LONG, flood.read_exact(&mut got)).await.unwrap().unwrap();
    assert!(got.iter().all(|byte| *byte == 7));
}

#[tokio::test]
async fn an_end_is_seen_behind_the_last_bytes_and_a_drop_is_a_reset() {
    let mut scene = scene().await;
    let mut farewell = scene.open("farewell").await;
    echo(&mut scene.open("echo").await, 3, 100_000).await;
    // It has ended and dropped its side long ago.
    let mut said = Vec::new();
    timeout(LONG, farewell.read_to_end(&mut said)).await.unwrap().unwrap();
    assert_eq!(said, [9; 100_000]);
    assert_eq!(farewell.write(&[1]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    // `echo` was dropped without an end.
    let reset = scene.end().await.1.unwrap_err();
    assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
    let mut flood = scene.open("flood").await;
    flood.read_exact(&mut [0; 10]).await.unwrap();
    drop(flood);
    assert_eq!(scene.end().await.1.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "its writes fail");
}

#[tokio::test]
async fn a_shared_stream_that_nobody_takes_is_reset() {
    let (one, _two, _dir) = pair().await;
    let mut stream = one.peers.open_shared(N2, StreamKind::Gate, Bytes::new(), SECOND).await.unwrap();
    let error = timeout(LONG, stream.read(&mut [0; 9])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let nobody = one.peers.open_shared(NodeId(9), StreamKind::Gate, Bytes::new(), SECOND).await;
    assert!(matches!(nobody, Err(CallError::Unreachable(_))), "{nobody:?}");
}

#[tokio::test]
async fn a_broken_connection_ends_its_streams_at_both_ends_and_is_replaced() {
    let mut scene = scene().await;
    let mut streams = Vec::new();
    for seed in 1..4 {
        let mut stream = scene.open("echo").await;
        echo(&mut stream, seed, 1000).await;
        streams.push(stream);
    }
    scene.wire.cut.send_modify(|cuts| *cuts += 1);
    for stream in &mut streams {
        assert!(timeout(LONG, stream.read(&mut [0; 9])).await.unwrap().is_err());
        assert!(stream.write(&[1]).await.is_err());
        assert!(!stream.is_silent(), "there is an error to be read");
    }
    echo(&mut scene.open("echo").await, 9, 1000).await;
    assert_eq!(scene.wire.made(), 2);
    scene.wire.until_open(1).await;
    assert_eq!(
        scene.end().await.1.unwrap_err().kind(),
        io::ErrorKind::ConnectionReset,
        "the last one's drop"
    );
}

#[tokio::test]
async fn a_connection_that_was_given_up_ends_with_its_last_stream() {
    let scene = scene().await;
    let mut old = scene.open("echo").await;
    echo(&mut old, 1, 1000).await;
    scene.one.peers.give_up_shared(N2);
    let mut new = scene.open("echo").await;
    echo(&mut new, 2, 1000).await;
    echo(&mut old, 3, 200_000).await;
    assert_eq!(scene.wire.made(), 2);
    drop(old);
    scene.wire.until_open(1).await;
    echo(&mut new, 4, 1000).await;
}

#[tokio::test]
async fn streams_of_each_thread_have_a_connection_of_their_own() {
    let scene = scene().await;
    echo(&mut scene.open("echo").await, 1, 1000).await;
    let peers = scene.one.peers.clone();
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let opening = peers.open_shared(N2, StreamKind::Gate, Bytes::from_static(b"echo"), LONG);
            let mut stream = opening.await.unwrap();
            echo(&mut stream, 2, 1000).await;
            stream
        })
    });
    let mut orphan = tokio::task::spawn_blocking(|| other.join().unwrap()).await.unwrap();
    assert_eq!(scene.wire.made(), 2);
    // Its runtime is gone, and with it whoever would have read for it.
    assert!(timeout(LONG, orphan.read(&mut [0; 9])).await.unwrap().is_err());
}

#[tokio::test]
async fn silence_ends_with_the_first_byte() {
    let scene = scene().await;
    let mut stream = scene.open("echo").await;
    let mut other = scene.open("echo").await;
    echo(&mut other, 1, 100).await;
    assert!(stream.is_silent());
    let seen = Arc::new(AtomicBool::new(false));
    stream.write_all(&[5]).await.unwrap();
    stream.flush().await.unwrap();
    let looking = async {
        while stream.is_silent() {
            tokio::task::yield_now().await;
        }
        seen.store(true, Ordering::SeqCst);
    };
    timeout(LONG, looking).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 5);
}

#[tokio::test]
async fn a_node_that_breaks_the_protocol_loses_its_connection_and_harms_nobody() {
    let (one, two, _dir) = pair().await;
    let open = |id: u8| vec![1, 0, 0, 1, 0, 0, 0, id, StreamKind::Tunnel as u8];
    let data = [&[2, 0, 0x40, 0, 0, 0, 0, 1][..], &[0; 0x4000]].concat();
    let window = [3, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 1].to_vec();
    let cases: [(&str, Vec<Vec<u8>>); 5] = [
        ("no frame", vec![vec![99; 100]]),
        ("a number twice", vec![open(1), open(1)]),
        ("a smaller number", vec![open(2), open(1)]),
        ("a window that is too large", vec![open(1), window]),
        // The echo of it is not read, so its window is never granted anew.
        ("data that were not granted", [vec![open(1)], vec![data; 40]].concat()),
    ];
    for (case, frames) in cases {
        let mut raw = dial(one.peers.identity(), N2, &two.address, &Preface::Streams).await.unwrap();
        for frame in frames {
            // It may have ended by now.
            let _ = raw.write_all(&frame).await;
            let _ = raw.flush().await;
        }
        let ended = async {
            let mut said = vec![0; 65_536];
            loop {
                match raw.read(&mut said).await {
                    Ok(bytes) if bytes > 0 => {}
                    _ => return,
                }
            }
        };
        timeout(LONG, ended).await.unwrap_or_else(|_| panic!("{case}"));
    }
    assert!(one.ask(N2, b"hello").await.is_ok());
    let mut stream = one.peers.open_shared(N2, StreamKind::Tunnel, Bytes::new(), LONG).await.unwrap();
    assert_eq!(read_frame(&mut stream, 100).await.unwrap(), &b""[..]);
}
