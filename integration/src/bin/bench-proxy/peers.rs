//! What Quorate is measured against: PgBouncer and HAProxy in front of a plain PostgreSQL, on this machine.

use super::load::Mode;
use anyhow::Context;
use quorate_integration::admin::Admin;
use quorate_integration::peer::{self, PlainCluster};
use quorate_integration::{DEMO_DATABASE, Endpoint, binaries, document, ports, process, wait};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(20);
/// Who proxies belong to when this runs as root, which PgBouncer refuses to.
const ACCOUNT: &str = "postgres";
/// `USER_HZ`: what the kernel tells processes, the same on all machines that Quorate runs on.
const TICKS_A_SECOND: u64 = 100;
const PGBOUNCER: &str = "PgBouncer, session";
const PGBOUNCER_TRANSACTION: &str = "PgBouncer, transaction";
const HAPROXY: &str = "HAProxy";
/// Settings that decide the speed of a query: the plain server gets Quorate's.
const SETTINGS: [&str; 6] =
    ["shared_buffers", "work_mem", "jit", "autovacuum", "huge_pages", "max_worker_processes"];

/// A way to PostgreSQL.
pub struct Side {
    pub name: &'static str,
    pub port: Endpoint,
    /// The processes that are the proxy.
    pids: Vec<u32>,
    /// How clients share servers at Quorate, and the admin port by which that is chosen.
    pool: Option<(Endpoint, &'static str)>,
}

/// Of an instance, on all sides: the clients' own, and what idle ones of pools keep meanwhile.
pub const MAX_CONNECTIONS: u64 = 600;

impl Side {
    pub fn new(name: &'static str, port: Endpoint, pids: &[u32]) -> Side {
        Side { name, port, pids: pids.to_vec(), pool: None }
    }

    /// A node of Quorate. `admin`: of the same node.
    pub fn quorate(name: &'static str, port: Endpoint, admin: u16, mode: &'static str, pids: &[u32]) -> Side {
        Side { pool: Some((Admin::endpoint(admin), mode)), ..Side::new(name, port, pids) }
    }

    /// Makes it ready to be measured.
    pub async fn prepare(&self) -> anyhow::Result<()> {
        let Some((admin, mode)) = &self.pool else { return Ok(()) };
        let admin = admin.session().await?;
        admin.run(&format!("ALTER DATABASE {DEMO_DATABASE} SET pool_mode = '{mode}'")).await?;
        // This node has it when it has looked at the leader's map.
        admin.run("SHOW DATABASES").await
    }

    pub fn is_quorate(&self) -> bool {
        self.pool.is_some()
    }

    pub fn has_pool(&self) -> bool {
        self.name == PGBOUNCER_TRANSACTION
            || self.pool.as_ref().is_some_and(|(_, mode)| *mode == "transaction")
    }

    /// Memory of its own (`RssAnon` of proc(5)), bytes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let of = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
            let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
            Ok(kib * 1024)
        };
        self.pids.iter().map(of).sum()
    }

    /// Of several, one may give back to the system what the other takes, and the sum says nothing of either.
    pub fn is_one_process(&self) -> bool {
        self.pids.len() == 1
    }

    pub fn has_proxy(&self) -> bool {
        !self.pids.is_empty()
    }

    /// Prepared statements do not follow a client of PgBouncer's from one server to the next before its version 1.21.
    pub fn takes(&self, mode: Mode) -> bool {
        !(self.name == PGBOUNCER_TRANSACTION && mode == Mode::Prepared)
    }

    /// CPU time that the proxy has used so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        self.pids.iter().map(|pid| cpu_of(*pid)).sum()
    }
}

/// utime and stime of a process and all its threads (proc(5), fields 14 and 15 of stat), whose unit is a tick.
fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').context("a malformed stat")?.1;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks: u64 =
        fields.get(11..13).context("a short stat")?.iter().filter_map(|f| f.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_A_SECOND))
}

pub async fn settings_of(port: &Endpoint) -> anyhow::Result<Vec<(String, String)>> {
    let mut settings = peer::settings_of(port, &SETTINGS).await?;
    // Of the clients themselves, and of the pools of those who keep their connections.
    settings.push(("max_connections".to_owned(), MAX_CONNECTIONS.to_string()));
    Ok(settings)
}

struct Proxy {
    name: &'static str,
    port: u16,
    pid: u32,
}

pub struct Proxies {
    directory: PathBuf,
    all: Vec<Proxy>,
}

impl Proxies {
    pub async fn start(plain: &PlainCluster) -> anyhow::Result<Proxies> {
        let directory = tempfile::Builder::new().prefix("qpx-").tempdir_in("/tmp")?.keep();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        let mut proxies = Proxies { directory, all: Vec::new() };
        proxies.pgbouncer(plain, PGBOUNCER, "session", 210)?;
        proxies.pgbouncer(plain, PGBOUNCER_TRANSACTION, "transaction", 20)?;
        proxies.haproxy(plain)?;
        for proxy in &proxies.all {
            let port = Endpoint::new(proxy.port, "demo", "demo", "app");
            wait::until(proxy.name, START_LIMIT, async || Ok(port.session().await.map(drop))).await?;
        }
        Ok(proxies)
    }

    pub fn sides(&self) -> Vec<Side> {
        let port = |port| Endpoint::new(port, "demo", "demo", "app");
        self.all.iter().map(|proxy| Side::new(proxy.name, port(proxy.port), &[proxy.pid])).collect()
    }

    pub fn versions(&self) -> String {
        let first = |program: &str, argument: &str| {
            let said = binaries::system(program).map(|path| document::said(Command::new(path).arg(argument)));
            said.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
        };
        let haproxy = first("haproxy", "-v");
        let haproxy = haproxy.split(' ').take(3).collect::<Vec<_>>().join(" ");
        format!("{}; {haproxy}", first("pgbouncer", "--version"))
    }

    /// By the server's Unix socket, as Quorate does.
    fn pgbouncer(
        &mut self,
        plain: &PlainCluster,
        name: &'static str,
        mode: &str,
        pool: u32,
    ) -> anyhow::Result<()> {
        let port = ports::free_one()?;
        let (users, file) = (self.directory.join("users.txt"), self.directory.join(format!("{mode}.ini")));
        std::fs::write(&users, "\"demo\" \"demo\"\n")?;
        let config = format!(
            "[databases]\napp = host={} port={} dbname=app\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = {mode}\ndefault_pool_size = {pool}\n\
             max_client_conn = 12000\nlog_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n",
            plain.sockets().display(),
            plain.port,
            users.display(),
        );
        std::fs::write(&file, config)?;
        let pid = self.spawn("pgbouncer", &["-q".into(), file.display().to_string()])?;
        self.all.push(Proxy { name, port, pid });
        Ok(())
    }

    fn haproxy(&mut self, plain: &PlainCluster) -> anyhow::Result<()> {
        let port = ports::free_one()?;
        let file = self.directory.join("haproxy.cfg");
        let config = format!(
            "global\n  maxconn 2000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  server s 127.0.0.1:{}\n",
            plain.port
        );
        std::fs::write(&file, config)?;
        let pid = self.spawn("haproxy", &["-db".into(), "-f".into(), file.display().to_string()])?;
        self.all.push(Proxy { name: HAPROXY, port, pid });
        Ok(())
    }

    /// Bound to this process; its words are in a file.
    fn spawn(&self, program: &str, words: &[String]) -> anyhow::Result<u32> {
        let out = std::fs::File::create(self.directory.join(format!("{program}-{}.log", self.all.len())))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if binaries::is_root() {
            command.args(["--reuid", ACCOUNT, "--regid", ACCOUNT, "--init-groups"]);
        }
        command.arg(binaries::system(program)?).args(words);
        command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
        let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
        let pid = child.id();
        std::thread::spawn(move || child.wait());
        Ok(pid)
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        let all: Vec<_> = process::under(&self.directory);
        if let Err(error) = process::kill(&all) {
            eprintln!("{}: {error:#}", self.directory.display());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
