//! The demo's directory: certificates, secrets, one directory a node.
//!
//! ```text
//! DIR/quorate-demo        says that this is a demo's directory
//! DIR/authority/          the cluster's CA
//! DIR/cluster.key, DIR/admin.password
//! DIR/n1/node.toml, tls/, data/, log, pid
//! DIR/demo.json           written when all is ready
//! ```

use crate::config::{Admin, Config, Limits, Listen, Peer, Timings};
use anyhow::{Context, bail, ensure};
use quorate_model::NodeId;
use quorate_transport::authority::Authority;
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For what is deleted to stay so.
const REMOVE_LIMIT: Duration = Duration::from_secs(10);

const MARK: &str = "quorate-demo";
/// Short, because a Unix socket's path ends at 107 bytes.
const LONGEST_RUN_DIR: usize = 60;

pub struct Layout {
    pub directory: PathBuf,
    pub nodes: Vec<Config>,
    /// Held as long as this demo runs: another one would take its nodes for left ones.
    _lock: File,
}

/// Where the demo lives when nobody says.
pub fn default_directory() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/quorate/demo"));
    }
    if let Some(data) = std::env::var_os("XDG_DATA_HOME") {
        return Ok(PathBuf::from(data).join("quorate/demo"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set; hint: give --dir")?;
    Ok(PathBuf::from(home).join(".local/share/quorate/demo"))
}

impl Layout {
    pub fn prepare(directory: &Path, count: u16, base_port: u16, fresh: bool) -> anyhow::Result<Layout> {
        ensure!((1024..=65_000).contains(&base_port), "--base-port must be between 1024 and 65000");
        let mark = directory.join(MARK);
        let used = directory.is_dir() && fs::read_dir(directory)?.next().is_some();
        ensure!(
            !used || mark.exists(),
            "the directory is not empty and not a demo's; hint: give another --dir"
        );
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(directory)?;
        let lock = take(&mark)?;
        if fresh && used {
            super::nodes::kill_former(directory)?;
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                if path != mark {
                    remove(&path)?;
                }
            }
        }
        // The instances' user passes through.
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        let authority_dir = directory.join("authority");
        let authority = if authority_dir.join("ca.key").exists() {
            Authority::load(&authority_dir)?
        } else {
            builder.create(&authority_dir)?;
            Authority::create(&authority_dir)?
        };
        write_once(&directory.join("cluster.key"), || {
            rand::random::<[u8; 32]>().iter().map(|b| format!("{b:02x}")).collect()
        })?;
        write_once(&directory.join("admin.password"), || "admin".to_owned())?;
        let nodes: Vec<Config> = (1..=count).map(|i| node(directory, i, count, base_port)).collect();
        for config in &nodes {
            let home = directory.join(&config.name);
            for path in [&home, &config.tls_dir, &config.data_dir, &config.run_dir] {
                builder.create(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o711))?;
            }
            if !config.tls_dir.join("node.key").exists() {
                authority.issue(NodeId(config.id), &config.tls_dir)?;
            }
            let path = home.join("node.toml");
            if path.exists() {
                let kept = Config::load(&path)?;
                ensure!(
                    kept.listen.client == config.listen.client && kept.peers.len() == config.peers.len(),
                    "this demo was made with other ports or another number of nodes; hint: use the same options, or --fresh"
                );
            } else {
                fs::write(&path, toml::to_string_pretty(config)?)?;
            }
        }
        // What an operator changed in a file counts.
        let nodes = nodes
            .iter()
            .map(|c| Config::load(&directory.join(&c.name).join("node.toml")))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Layout { directory: directory.to_owned(), nodes, _lock: lock })
    }

    pub fn home(&self, config: &Config) -> PathBuf {
        self.directory.join(&config.name)
    }

    pub fn start_command(&self, name: &str) -> String {
        let program = std::env::current_exe().map_or("quorate".into(), |p| p.display().to_string());
        format!("{program} node --config {}", self.directory.join(name).join("node.toml").display())
    }

    pub fn json(&self) -> PathBuf {
        self.directory.join("demo.json")
    }

    /// Says where nothing is any more, or not yet: for whoever waits for it, it is written when all is ready.
    pub fn forget_json(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.json()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub fn url(&self) -> String {
        self.url_of("app")
    }

    pub fn url_of(&self, database: &str) -> String {
        format!("postgresql://demo:demo@{}/{database}", self.nodes[0].listen.client)
    }

    pub fn admin_url(&self) -> String {
        format!("postgresql://admin:admin@{}/quorate", self.nodes[0].listen.admin)
    }

    /// A port in use is told before anything starts.
    pub fn check_ports(&self) -> anyhow::Result<()> {
        for config in &self.nodes {
            let l = &config.listen;
            for (what, address) in
                [("client", l.client), ("admin", l.admin), ("peer", l.peer), ("http", l.http)]
            {
                if let Err(error) = TcpListener::bind(address) {
                    bail!(
                        "the {what} port {address} of {} cannot be opened: {error}; hint: give another --base-port",
                        config.name
                    );
                }
            }
        }
        Ok(())
    }
}

fn node(directory: &Path, i: u16, count: u16, base_port: u16) -> Config {
    let at = |offset: u16, n: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, base_port + offset + n - 1));
    let name = format!("n{i}");
    let home = directory.join(&name);
    Config {
        id: u64::from(i),
        fault_domain: format!("fd{i}"),
        update_domain: format!("ud{i}"),
        region: "local".to_owned(),
        data_dir: home.join("data"),
        run_dir: run_dir(&home),
        tls_dir: home.join("tls"),
        cluster_key_file: directory.join("cluster.key"),
        pg_bin: std::env::var_os("QUORATE_PG_BIN").map(PathBuf::from),
        listen: Listen { client: at(0, i), admin: at(100, i), peer: at(200, i), http: at(300, i) },
        admin: Admin { user: "admin".to_owned(), password_file: directory.join("admin.password") },
        peers: (1..=count)
            .map(|n| Peer { id: u64::from(n), name: format!("n{n}"), peer: at(200, n) })
            .collect(),
        timings: Timings { replace_after_s: 15, ..Timings::default() },
        limits: Limits::default(),
        name,
    }
}

/// Beside the data when that is short enough, else under /tmp by a number made from the path.
fn run_dir(home: &Path) -> PathBuf {
    let beside = home.join("run");
    if beside.as_os_str().len() <= LONGEST_RUN_DIR {
        return beside;
    }
    // FNV-1a: only has to differ between demos of one machine.
    let hash = home
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    PathBuf::from(format!("/tmp/quorate-{hash:016x}"))
}

/// Marks the directory as a demo's, and takes it for this one.
fn take(mark: &Path) -> anyhow::Result<File> {
    let mut file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(mark)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!(
                "a demo runs here already; hint: end it first (Ctrl-C), or give another --dir and --base-port"
            )
        }
        Err(error) => return Err(std::io::Error::from(error).into()),
    }
    writeln!(file, "This directory belongs to `quorate demo`.")?;
    Ok(file)
}

/// Instances of nodes that were just ended may still write for a moment.
fn remove(path: &Path) -> std::io::Result<()> {
    let began = Instant::now();
    loop {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        match removed {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty || began.elapsed() > REMOVE_LIMIT => {
                return Err(error);
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

fn write_once(path: &Path, make: impl FnOnce() -> String) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{}", make())?;
    Ok(file.sync_all()?)
}
