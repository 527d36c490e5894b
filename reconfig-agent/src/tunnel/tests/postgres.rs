//! PostgreSQL instances for tests: as the user `postgres` when the tests run as root, which Postgres refuses to be.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

use super::nodes::{LONG, eventually};
use crate::instance::Postgres;

/// A directory that other users may pass through.
pub fn shared_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("qt").tempdir_in(std::env::temp_dir()).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    dir
}

/// User and group of instances, when they are not ours.
pub fn owner() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|l| l.starts_with("postgres:")).expect("a user named postgres");
    let mut fields = line.split(':').skip(2).map(|f| f.parse().unwrap());
    Some((fields.next().unwrap(), fields.next().unwrap()))
}

/// A directory of the instances' user.
pub fn own_dir(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
    if let Some((user, group)) = owner() {
        chown(&path, Some(user), Some(group)).unwrap();
    }
    path
}

/// One of PostgreSQL's programs, of the installation that the daemon would use.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(Postgres::locate(None).unwrap().bin(name));
    if let Some((user, group)) = owner() {
        command.uid(user).gid(group);
    }
    command.current_dir("/").stdin(Stdio::null()).env("LC_ALL", "C");
    command
}

/// Runs a program to its end, elsewhere than on the runtime.
pub async fn run(mut command: Command) {
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// One instance. Dropped, it is killed.
pub struct Instance {
    pub data: PathBuf,
    pub socket_dir: PathBuf,
    postmaster: Option<Child>,
}

impl Instance {
    pub fn at(dir: &Path, name: &str) -> Instance {
        let data = own_dir(dir.join(name));
        Instance { data, socket_dir: own_dir(dir.join(format!("{name}.s"))), postmaster: None }
    }

    pub async fn init(&self) {
        let mut initdb = program("initdb");
        initdb.args(["-U", "quorate", "-A", "trust", "-E", "UTF8", "--no-sync", "-D"]).arg(&self.data);
        run(initdb).await;
        self.configure(&[
            "listen_addresses = ''",
            "shared_buffers = '64MB'",
            "wal_keep_size = '64MB'",
            "wal_retrieve_retry_interval = '100ms'",
            "restart_after_crash = off",
            "max_wal_size = '4GB'",
        ]);
    }

    pub fn configure(&self, lines: &[&str]) {
        let path = self.data.join("postgresql.conf");
        let former = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{former}\n{}\n", lines.join("\n"))).unwrap();
    }

    pub fn follow(&self, host: &Path, application: &str) {
        self.configure(&[
            &format!(
                "primary_conninfo = 'host={} port=5432 user=quorate application_name={application}'",
                host.display()
            ),
            "primary_slot_name = 'r2'",
        ]);
    }

    pub async fn start(&mut self) {
        let mut postmaster = program("postgres");
        postmaster.arg("-D").arg(&self.data).arg("-k").arg(&self.socket_dir);
        let log = fs::File::create(self.data.with_extension("log")).unwrap();
        postmaster.stdout(log.try_clone().unwrap()).stderr(log);
        self.postmaster = Some(postmaster.spawn().unwrap());
        eventually("the instance answers", async || self.try_connect().await.is_some()).await;
    }

    async fn try_connect(&self) -> Option<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket_dir).user("quorate").dbname("postgres").connect_timeout(LONG);
        let (client, connection) = config.connect(NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    pub async fn connect(&self) -> Client {
        self.try_connect().await.unwrap()
    }

    /// Runs a query in a session of its own; the first column of the first row as text.
    pub async fn ask(&self, sql: &str) -> Option<String> {
        let messages = self.connect().await.simple_query(sql).await.unwrap();
        messages.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    pub async fn set(&self, name: &str, value: &str) {
        self.ask(&format!("ALTER SYSTEM SET {name} = '{value}'")).await;
        self.ask("SELECT pg_reload_conf()").await;
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let Some(mut postmaster) = self.postmaster.take() else { return };
        // SIGQUIT: its children end with it.
        if let Some(pid) = rustix::process::Pid::from_raw(postmaster.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let _ = postmaster.wait();
    }
}
