//! A real PostgreSQL in a temporary directory, and nodes of a proxy in this process around it.

pub mod raw;

use quorate_model::*;
use quorate_proxy::{Evidence, Gate, Gates, Proxy, ProxyConfig, boot_time};
use quorate_throttle::Admission;
use quorate_transport::authority::Authority;
use quorate_transport::{Identity, Peers};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

pub const SECOND: Duration = Duration::from_secs(1);

pub fn bin(name: &str) -> PathBuf {
    let directory = std::env::var_os("QUORATE_PG_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .map(|all| all.flatten().map(|e| e.path().join("bin")).collect())
            .unwrap_or_default();
        found.sort();
        found.pop().unwrap_or_default()
    });
    let path = directory.join(name);
    if path.exists() { path } else { PathBuf::from(name) }
}

/// PostgreSQL does not run as root.
fn as_postgres(program: &Path) -> Process {
    if !rustix::process::geteuid().is_root() {
        return Process::new(program);
    }
    let mut process = Process::new("setpriv");
    process.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
    process
}

fn temp() -> TempDir {
    let directory = tempfile::Builder::new().prefix("qp").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

fn give_to_postgres(path: &Path) {
    if rustix::process::geteuid().is_root() {
        assert!(Process::new("chown").arg("-R").arg("postgres").arg(path).status().unwrap().success());
    }
}

const TEMPLATE_PREFIX: &str = "qp-template-";

/// A template lives as long as its process; those of earlier ones are in nobody's way but the disk's.
fn remove_left_templates() {
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.strip_prefix(TEMPLATE_PREFIX)) else { continue };
        if !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// A data directory with the roles and the database in it, made once.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        remove_left_templates();
        let path = std::env::temp_dir().join(format!("{TEMPLATE_PREFIX}{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        give_to_postgres(&path);
        let data = path.join("data");
        let made = as_postgres(&bin("initdb"))
            .args(["-U", "quorate", "-A", "trust", "--no-sync", "-k", "--locale=C", "-E", "UTF8", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success(), "initdb");
        let sql = format!(
            "CREATE ROLE demo LOGIN PASSWORD '{}';\nCREATE ROLE late LOGIN PASSWORD 'late' VALID UNTIL '2001-01-01';\n\
             CREATE ROLE nologin PASSWORD 'demo';\nCREATE DATABASE app OWNER demo;\n",
            quorate_proxy::scram::verifier("demo")
        );
        let mut single = as_postgres(&bin("postgres"))
            .args(["--single", "-F", "-D"])
            .arg(&data)
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut single.stdin.take().unwrap(), sql.as_bytes()).unwrap();
        assert!(single.wait().unwrap().success(), "single-user mode");
        data
    })
}

pub struct Postgres {
    directory: TempDir,
    child: Child,
}

impl Postgres {
    pub async fn start() -> Postgres {
        let template = tokio::task::spawn_blocking(template).await.unwrap();
        let directory = temp();
        let (data, socket) = (directory.path().join("data"), directory.path().join("s"));
        assert!(Process::new("cp").arg("-a").arg(template).arg(&data).status().unwrap().success());
        std::fs::create_dir(&socket).unwrap();
        give_to_postgres(directory.path());
        let child = as_postgres(&bin("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&socket)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "max_connections=60",
                "-c",
                "lc_messages=C",
            ])
            .args(["-c", "wal_level=replica", "-c", "max_wal_senders=5", "-c", "restart_after_crash=off"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let postgres = Postgres { directory, child };
        let until = Instant::now() + 30 * SECOND;
        loop {
            match postgres.try_admin().await {
                Ok(_) => return postgres,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    async fn try_admin(&self) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.socket()).user("quorate").dbname("app");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A superuser's connection around the proxy.
    pub async fn admin(&self) -> Client {
        self.try_admin().await.unwrap()
    }

    /// What commits wait for, from now on in every backend.
    pub async fn sync_names(&self, names: &str) {
        let admin = self.admin().await;
        let alter = format!("alter system set synchronous_standby_names = '{names}'");
        admin.batch_execute(&alter).await.unwrap();
        admin.batch_execute("select pg_reload_conf()").await.unwrap();
        // Backends obey in their own time.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// `kill -9` of the postmaster.
    pub fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

/// `pg_receivewal`, the smallest synchronous standby there is.
pub struct Receiver {
    child: Child,
    _directory: TempDir,
}

impl Receiver {
    /// Starts it, and makes every commit wait for it.
    pub async fn start(postgres: &Postgres) -> Receiver {
        let directory = temp();
        give_to_postgres(directory.path());
        let child = as_postgres(&bin("pg_receivewal"))
            .args(["--synchronous", "--no-password", "-U", "quorate", "-h"])
            .arg(postgres.socket())
            .arg("-D")
            .arg(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let receiver = Receiver { child, _directory: directory };
        let admin = postgres.admin().await;
        let until = Instant::now() + 20 * SECOND;
        let sql = "select count(*) from pg_stat_replication where flush_lsn is not null";
        while number(&admin, sql).await.unwrap() == 0 {
            assert!(Instant::now() < until, "the receiver streams");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        postgres.sync_names("ANY 1 (pg_receivewal)").await;
        receiver
    }

    /// Stops it in its tracks, and returns when it stands still.
    pub fn stop(&self) {
        self.signal(rustix::process::Signal::STOP);
        let path = format!("/proc/{}/stat", self.child.id());
        let until = Instant::now() + 5 * SECOND;
        while !std::fs::read_to_string(&path).unwrap().contains(") T ") {
            assert!(Instant::now() < until, "SIGSTOP takes effect");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.signal(rustix::process::Signal::QUIT);
        let _ = self.child.wait();
    }
}

/// Stands for the voters of the database: confirms, and knows what is on the quorum.
#[derive(Default)]
pub struct Witness {
    pub confirms: AtomicBool,
    /// How long a confirmation takes.
    pub delay_ms: AtomicU64,
    pub confirmations: AtomicU64,
    /// Asks this Postgres how far its receiver has flushed, when it is set.
    pub receiver: tokio::sync::Mutex<Option<Client>>,
}

#[async_trait::async_trait]
impl Evidence for Witness {
    async fn confirm(&self, _: DatabaseId, _: Epoch) -> bool {
        self.confirmations.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(self.delay_ms.load(Ordering::SeqCst))).await;
        self.confirms.load(Ordering::SeqCst)
    }

    async fn on_quorum(&self, _: DatabaseId, _: Epoch, lsn: Lsn, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let sql = format!(
                "select count(*) from pg_stat_replication where flush_lsn >= '{lsn}' and application_name = 'pg_receivewal'"
            );
            let receiver = self.receiver.lock().await;
            if let Some(client) = &*receiver
                && number(client, &sql).await.unwrap_or(0) > 0
            {
                return true;
            }
            drop(receiver);
            if Instant::now() > until {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub struct Node {
    pub gates: Arc<Gates>,
    pub proxy: Proxy,
}

pub struct Cluster {
    pub map: watch::Sender<Arc<PartitionMap>>,
    pub database: DatabaseId,
    pub nodes: Vec<Node>,
    pub witness: Arc<Witness>,
    pub stop: CancellationToken,
    _identities: TempDir,
}

pub const OPEN_LEASE: u64 = u64::MAX;

impl Cluster {
    /// Two nodes; `demo.app` has its primary at the first.
    pub async fn start() -> Cluster {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl Fn(&mut ProxyConfig)) -> Cluster {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let mut map = PartitionMap::default();
        for id in 1..=2 {
            let record = NodeRecord {
                id: NodeId(id),
                name: format!("n{id}"),
                fault_domain: format!("f{id}"),
                update_domain: format!("u{id}"),
                region: "here".into(),
                peer: String::new(),
                client: String::new(),
                admin: String::new(),
                http: String::new(),
                version: "test".into(),
            };
            map.apply(Command::RegisterNode(record)).unwrap();
        }
        let verifier = quorate_proxy::scram::verifier("demo");
        map.apply(Command::CreateServer { name: "demo".into(), admin: "demo".into(), verifier }).unwrap();
        let placement = vec![NodeId(1), NodeId(2)];
        let applied = map
            .apply(Command::CreateDatabase {
                server: "demo".into(),
                name: "app".into(),
                placement,
                now_ms: 0,
            })
            .unwrap();
        let Applied::Operation { database, .. } = applied else { panic!("an operation") };
        let (map, _) = watch::channel(Arc::new(map));
        let identities = temp();
        let authority = Authority::create(&identities.path().join("ca")).unwrap();
        let mut listeners = Vec::new();
        let mut addresses = BTreeMap::new();
        for id in 1..=2 {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.insert(NodeId(id), listener.local_addr().unwrap().to_string());
            listeners.push(listener);
        }
        let stop = CancellationToken::new();
        let witness = Arc::new(Witness::default());
        let mut nodes = Vec::new();
        for (id, listener) in (1..=2).map(NodeId).zip(listeners) {
            let directory = identities.path().join(id.to_string());
            authority.issue(id, &directory).unwrap();
            let peers = Peers::new(Identity::load(id, &directory).unwrap(), addresses.clone());
            tokio::spawn(Arc::clone(&peers).serve(listener, stop.clone()));
            let gates = Gates::new();
            gates.set_evidence(witness.clone());
            let mut config = ProxyConfig::new(id, "127.0.0.1:0".parse().unwrap());
            config.workers = 1;
            change(&mut config);
            let admission = Admission::new(50, 40);
            let proxy = Proxy::start(
                config,
                map.subscribe(),
                Arc::clone(&peers),
                Arc::clone(&gates),
                admission,
                stop.clone(),
            )
            .unwrap();
            nodes.push(Node { gates, proxy });
        }
        let cluster = Cluster { map, database, nodes, stop, witness, _identities: identities };
        cluster.change(Change::Stabilize { lineage: None });
        cluster
    }

    pub fn change(&self, change: Change) {
        let mut map = PartitionMap::clone(&self.map.borrow());
        let version = map.databases[&self.database].version;
        map.apply(Command::Reconfigure { database: self.database, version, change }).unwrap();
        self.map.send_replace(Arc::new(map));
    }

    /// From where the clients of its server may come.
    pub fn allow(&self, from: &str) {
        let allow = AllowList::parse(from).unwrap();
        self.set_server(ServerOption::Allow(allow));
    }

    /// Sets an option of the logical server.
    pub fn set_server(&self, option: ServerOption) {
        let mut map = PartitionMap::clone(&self.map.borrow());
        map.apply(Command::SetServerOption { server: "demo".into(), option }).unwrap();
        self.map.send_replace(Arc::new(map));
    }

    /// Sets an option of the database.
    pub fn set(&self, option: DatabaseOption) {
        let mut map = PartitionMap::clone(&self.map.borrow());
        map.apply(Command::SetOption { server: "demo".into(), name: "app".into(), option }).unwrap();
        self.map.send_replace(Arc::new(map));
    }

    pub fn epoch(&self) -> Epoch {
        self.map.borrow().databases[&self.database].epoch
    }

    pub fn elect(&self) {
        self.change(Change::Elect { coordinator: NodeId(1) });
    }

    /// Makes the replica at that node (1 or 2) the primary, after [`Cluster::elect`].
    pub fn promote(&self, node: u64) {
        let record = self.map.borrow().databases[&self.database].clone();
        let primary = record.replicas_on(NodeId(node)).next().unwrap();
        let others = record.replicas.keys().copied().filter(|r| *r != primary);
        let current = Configuration::new(primary, others, 1);
        self.change(Change::Promote { coordinator: NodeId(1), current });
        self.change(Change::Stabilize { lineage: None });
    }

    pub fn gate(&self, node: usize) -> Arc<Gate> {
        self.nodes[node - 1].gates.gate(self.database)
    }

    /// Opens the gate at that node in the map's epoch, with a lease that does not end.
    pub fn open(&self, node: usize, postgres: &Postgres) {
        let gate = self.gate(node);
        gate.set_lease(OPEN_LEASE);
        gate.open(self.epoch(), postgres.socket());
    }

    pub fn config(&self, node: usize) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.nodes[node - 1].proxy.address().port())
            .user("demo")
            .password("demo")
            .dbname("app");
        config
    }

    pub async fn connect(&self, node: usize) -> Client {
        connect(&self.config(node)).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub async fn connect(config: &tokio_postgres::Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The SQLSTATE, for whatever failed.
pub fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| format!("no code: {error}"), |c| c.code().to_owned())
}

/// What is asked waits for the answer to what the proxy asked before it. An empty statement changes nothing.
pub async fn answered(client: &tokio_postgres::Client) {
    soon(client.simple_query("")).await.unwrap();
}

/// A result that has to come in time.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(20 * SECOND, what).await.expect("in time")
}

pub fn lease_for(time: Duration) -> u64 {
    boot_time() + time.as_nanos() as u64
}

pub async fn number(client: &Client, sql: &str) -> Result<i64, tokio_postgres::Error> {
    let rows = client.simple_query(sql).await?;
    let value = rows.iter().find_map(|m| match m {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    Ok(value.and_then(|v| v.parse().ok()).unwrap_or(-1))
}

/// Waits until so many sessions of clients have last been asked what they hold. Their servers have answered by then; a
/// session that is [`answered`] has the answer, too.
pub async fn asked(postgres: &Postgres, sessions: i64) {
    let admin = postgres.admin().await;
    let until = Instant::now() + 10 * SECOND;
    let sql = "select count(*) from pg_stat_activity where state = 'idle' and usename = 'demo' and query like '%pg_listening_channels%'";
    loop {
        let count = number(&admin, sql).await.unwrap();
        if count == sessions {
            return;
        }
        assert!(Instant::now() < until, "{count} of {sessions} sessions were asked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A failover to the other node's Postgres: with the old gate closed, or without a word from it.
pub async fn fail_over(cluster: &Cluster, to: usize, postgres: &Postgres, close: bool) {
    if close {
        cluster.gate(3 - to).close("its Postgres died");
    }
    cluster.elect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    cluster.promote(to as u64);
    cluster.open(to, postgres);
}
