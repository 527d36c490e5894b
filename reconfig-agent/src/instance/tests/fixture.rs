//! Instances in a temporary directory, and a relay in the place of the tunnel.

use crate::instance::{Bootstrap, Instance, Limits, OsUser, Paths, Postgres, SOCKET_NAME};
use crate::instance::{Process, StopMode, spawn};
use quorate_model::configuration::SENTINEL_SYNC_NAMES;
use quorate_model::{DatabaseId, Epoch, ReplicaId};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};
use uuid::Uuid;

/// What the proxy would have made of some password.
pub const VERIFIER: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$\
AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=:HxQdHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";
pub const EPOCH: Epoch = Epoch::new(0, 1, 0);
pub const WAIT: Duration = Duration::from_secs(20);

pub struct World {
    directory: tempfile::TempDir,
    pg: Arc<Postgres>,
    pub user: OsUser,
    instances: std::sync::Mutex<Vec<Instance>>,
    pub limits: Limits,
}

impl World {
    /// A world whose disks do as they are told: see [`super::shim`].
    pub fn with_disks() -> World {
        let mut world = World::new();
        let bin = super::shim::programs(world.path(), &world.pg);
        world.pg = Postgres::locate(Some(&bin)).unwrap();
        world
    }

    pub fn new() -> World {
        let directory = tempfile::Builder::new()
            .prefix("qi")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .unwrap();
        World {
            directory,
            pg: Postgres::locate(None).unwrap(),
            user: OsUser::for_instances().unwrap(),
            instances: Default::default(),
            limits: Limits { shared_buffers_mib: 16, ..Limits::default() },
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn paths(&self, id: u64) -> Paths {
        Paths::new(&self.path().join("replicas"), &self.path().join("run"), ReplicaId(id)).unwrap()
    }

    /// A handle; a second one to the same number is what a second daemon would have.
    pub fn instance(&self, id: u64) -> Instance {
        self.instance_at(id, self.paths(id))
    }

    pub fn instance_at(&self, id: u64, paths: Paths) -> Instance {
        let limits = self.limits.clone();
        let (pg, user) = (self.pg.clone(), self.user.clone());
        let instance = Instance::new(pg, user, DatabaseId(1), ReplicaId(id), paths, limits);
        self.instances.lock().unwrap().push(instance.clone());
        instance
    }

    /// A primary that commits alone waits for nobody who exists: writes of tests are local.
    pub async fn primary(&self, id: u64) -> Instance {
        let primary = self.instance(id);
        primary.bootstrap(&wanted(SENTINEL_SYNC_NAMES)).await.unwrap();
        primary
    }

    /// A standby that streams from `primary` through a relay.
    pub async fn standby(&self, id: u64, primary: &Instance) -> (Instance, Relay) {
        let standby = self.instance(id);
        standby.seed(&primary.paths().sockets).await.unwrap();
        primary.ensure_slots(&self.slots()).await.unwrap();
        let relay = Relay::open(&standby, primary);
        standby.start().await.unwrap();
        (standby, relay)
    }

    pub fn slots(&self) -> BTreeSet<String> {
        (1..=9).map(|id| ReplicaId(id).standby_name()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for instance in self.instances.lock().unwrap().iter() {
            if let Some(pid) = instance.process().borrow().pid() {
                spawn::kill_group(Some(pid));
            }
            crate::instance::orphan::kill_all(&instance.paths().data);
        }
    }
}

pub fn wanted(sync_names: &str) -> Bootstrap {
    Bootstrap {
        database_name: "app".to_owned(),
        login: "demo\"s".to_owned(),
        verifier: VERIFIER.to_owned(),
        epoch: EPOCH,
        uuid: Uuid::from_u128(1),
        sync_names: sync_names.to_owned(),
    }
}

pub async fn connect(instance: &Instance, database: &str) -> Client {
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(&instance.paths().sockets)
        .user("quorate")
        .dbname(database)
        .options("-c synchronous_commit=local -c default_transaction_read_only=off")
        .connect(NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

pub async fn value(client: &Client, sql: &str) -> String {
    let messages = client.simple_query(sql).await.unwrap();
    messages
        .iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("null").to_owned()),
            _ => None,
        })
        .unwrap_or_default()
}

/// Waits until `check` holds; fails when it does not within `WAIT`.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + WAIT;
    while !check().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn wait_for(instance: &Instance, what: impl FnMut(&Process) -> bool) -> Process {
    let mut process = instance.process();
    tokio::time::timeout(WAIT, process.wait_for(what)).await.unwrap().unwrap().clone()
}

pub async fn caught_up(standby: &Instance, primary: &Instance) {
    let target = primary.progress().await.unwrap().flush_lsn;
    eventually("the standby caught up", || async {
        standby.progress().await.unwrap().replay_lsn >= Some(target)
    })
    .await;
}

pub async fn stop(instance: &Instance) {
    instance.stop(StopMode::Immediate, Duration::from_secs(5)).await.unwrap();
}

/// Passes bytes from the standby's tunnel directory to a primary's socket, until it is cut. The budget counts
/// what the primary sends; with its last byte the relay cuts itself.
pub struct Relay {
    task: tokio::task::JoinHandle<()>,
    pub budget: Arc<AtomicU64>,
    socket: PathBuf,
}

impl Relay {
    pub fn open(standby: &Instance, primary: &Instance) -> Relay {
        let socket = standby.paths().tunnel.join(SOCKET_NAME);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o777)).unwrap();
        let target = primary.paths().sockets.join(SOCKET_NAME);
        let budget = Arc::new(AtomicU64::new(u64::MAX));
        let left = budget.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                if left.load(Ordering::SeqCst) > 0 {
                    connections.spawn(pass(stream, target.clone(), left.clone()));
                }
            }
        });
        Relay { task, budget, socket }
    }

    pub fn cut(self) {
        drop(self);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn pass(near: UnixStream, target: PathBuf, budget: Arc<AtomicU64>) -> Option<()> {
    let far = UnixStream::connect(target).await.ok()?;
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let up = async { tokio::io::copy(&mut near_read, &mut far_write).await.ok() };
    let down = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = far_read.read(&mut buffer).await.ok()? as u64;
            let left = budget.load(Ordering::SeqCst);
            let take = n.min(left);
            near_write.write_all(&buffer[..take as usize]).await.ok()?;
            if left != u64::MAX {
                budget.store(left - take, Ordering::SeqCst);
            }
            if n == 0 || take < n {
                return Some(());
            }
        }
    };
    tokio::select! { _ = up => {}, _ = down => {} }
    Some(())
}

/// Prints how long something took: the numbers are reported, not tested.
pub async fn timed<T>(what: &str, work: impl Future<Output = T>) -> T {
    let begin = Instant::now();
    let result = work.await;
    println!("TIMING {what}: {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
    result
}
