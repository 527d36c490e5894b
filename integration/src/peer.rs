//! What Quorate is measured against: a plain PostgreSQL primary with two plain streaming standbys and the same
//! `ANY 1`, on this machine, with the same settings as far as they decide the speed of a commit.

use crate::{Endpoint, binaries, ports, process, wait};
use anyhow::{Context, ensure};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const START_LIMIT: Duration = Duration::from_secs(30);
const STANDBYS: [&str; 2] = ["s1", "s2"];
/// Who its instances belong to when this runs as root, which PostgreSQL refuses to.
const ACCOUNT: &str = "postgres";

/// What these settings are at a port, for the peer to take over.
pub async fn settings_of(port: &Endpoint, names: &[&str]) -> anyhow::Result<Vec<(String, String)>> {
    let names: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    let sql = format!("SELECT name, setting FROM pg_settings WHERE name IN ({})", names.join(", "));
    let rows = port.session().await?.rows(&sql).await?;
    Ok(rows.into_iter().filter_map(|row| Some((row.first()?.clone()?, row.get(1)?.clone()?))).collect())
}

pub struct PlainCluster {
    directory: PathBuf,
    pub port: u16,
}

impl PlainCluster {
    /// `settings`: taken over into every instance, so that both sides have the same.
    pub async fn start(settings: &[(String, String)]) -> anyhow::Result<PlainCluster> {
        let directory = tempfile::Builder::new().prefix("qp-").tempdir_in("/tmp")?.keep();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755))?;
        if binaries::is_root() {
            run(Command::new("chown").arg(ACCOUNT).arg(&directory))?;
        }
        let cluster = PlainCluster { directory, port: ports::free_one()? };
        cluster.make_primary(settings)?;
        for standby in STANDBYS {
            cluster.make_standby(standby)?;
        }
        cluster.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (s1, s2)'")?;
        cluster.sql("postgres", "SELECT pg_reload_conf()")?;
        wait::until("two standbys in the quorum", START_LIMIT, async || {
            let count = cluster
                .sql("postgres", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'")?;
            Ok(if count.trim() == "2" { Ok(()) } else { Err(count) })
        })
        .await?;
        Ok(cluster)
    }

    /// The benchmark's database by the primary's TCP port.
    pub fn url(&self) -> String {
        format!("postgresql://demo:demo@127.0.0.1:{}/app", self.port)
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.port, "demo", "demo", "app")
    }

    /// Where its Unix socket is.
    pub fn sockets(&self) -> &Path {
        &self.directory
    }

    fn data(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn make_primary(&self, settings: &[(String, String)]) -> anyhow::Result<()> {
        let data = self.data("p");
        run(self
            .as_account("initdb")?
            .args(["-k", "-U", "quorate", "-A", "trust", "--no-sync", "-D"])
            .arg(&data))?;
        let mut config = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{}'\nwal_level = replica\n",
            self.port,
            self.directory.display()
        );
        for (name, value) in settings {
            config.push_str(&format!("{name} = '{value}'\n"));
        }
        self.append(&data.join("postgresql.conf"), &config)?;
        self.append(
            &data.join("pg_hba.conf"),
            "host app demo 127.0.0.1/32 scram-sha-256\nlocal app demo scram-sha-256\nlocal all quorate trust\nlocal replication quorate trust\n\
             host replication quorate 127.0.0.1/32 scram-sha-256\n",
        )?;
        // The lines that initdb wrote come first and would trust everybody over TCP.
        let hba = data.join("pg_hba.conf");
        let lines = std::fs::read_to_string(&hba)?;
        let kept: Vec<&str> =
            lines.lines().filter(|l| l.starts_with("local") || l.contains("scram-sha-256")).collect();
        std::fs::write(&hba, kept.join("\n") + "\n")?;
        self.start_instance("p")?;
        self.sql("postgres", "CREATE ROLE demo LOGIN PASSWORD 'demo'")?;
        self.sql("postgres", "ALTER ROLE quorate PASSWORD 'quorate'")?;
        self.sql("postgres", "CREATE DATABASE app OWNER demo")?;
        Ok(())
    }

    fn make_standby(&self, name: &str) -> anyhow::Result<()> {
        let data = self.data(name);
        let mut backup = self.as_account("pg_basebackup")?;
        backup.args([
            "--no-sync",
            "-U",
            "quorate",
            "-p",
            &self.port.to_string(),
            "-X",
            "stream",
            "-c",
            "fast",
            "-C",
            "-S",
            name,
        ]);
        run(backup.arg("-h").arg(&self.directory).arg("-D").arg(&data))?;
        // By TCP, as between two machines.
        let config = format!(
            "listen_addresses = ''\nport = {}\nprimary_slot_name = '{name}'\nprimary_conninfo = 'host=127.0.0.1 port={} user=quorate password=quorate sslmode=disable application_name={name}'\n",
            self.port
                + 1
                + STANDBYS.iter().position(|s| *s == name).map_or(0, |i| u16::try_from(i).unwrap_or(0)),
            self.port
        );
        self.append(&data.join("postgresql.conf"), &config)?;
        self.append(&data.join("standby.signal"), "")?;
        self.start_instance(name)
    }

    fn start_instance(&self, name: &str) -> anyhow::Result<()> {
        let data = self.data(name);
        let log = self.directory.join(format!("{name}.log"));
        let limit = START_LIMIT.as_secs().to_string();
        run(self
            .as_account("pg_ctl")?
            .args(["start", "-w", "-t", &limit, "-D"])
            .arg(&data)
            .arg("-l")
            .arg(log))
        .map(drop)
    }

    /// Runs SQL as superuser over the socket.
    pub fn sql(&self, database: &str, sql: &str) -> anyhow::Result<String> {
        let mut psql = Command::new(binaries::postgres("psql")?);
        psql.args([
            "-X",
            "-q",
            "-At",
            "-U",
            "quorate",
            "-d",
            database,
            "-p",
            &self.port.to_string(),
            "-c",
            sql,
        ]);
        run(psql.arg("-h").arg(&self.directory))
    }

    fn append(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        use std::io::Write;
        let existed = path.exists();
        std::fs::OpenOptions::new().append(true).create(true).open(path)?.write_all(text.as_bytes())?;
        if !existed && binaries::is_root() {
            run(Command::new("chown").arg(ACCOUNT).arg(path))?;
        }
        Ok(())
    }

    /// A server program, run as who it must be run as.
    fn as_account(&self, program: &str) -> anyhow::Result<Command> {
        let path = server_program(program)?;
        if !binaries::is_root() {
            return Ok(Command::new(path));
        }
        let mut command = Command::new("setpriv");
        command.args(["--reuid", ACCOUNT, "--regid", ACCOUNT, "--init-groups"]).arg(path);
        Ok(command)
    }
}

/// initdb and pg_ctl lie beside the server, which on Debian is not on PATH.
fn server_program(program: &str) -> anyhow::Result<PathBuf> {
    let path = binaries::postgres(program)?;
    ensure!(path.is_absolute(), "{} is not an absolute path", path.display());
    Ok(path)
}

impl Drop for PlainCluster {
    fn drop(&mut self) {
        let all = process::under(&self.directory);
        if let Err(error) = process::kill(&all) {
            eprintln!("{}: {error:#}", self.directory.display());
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    // A directory that the account may not enter would only bring warnings.
    command.current_dir("/").stdin(Stdio::null());
    // pg_ctl's server would hold a pipe open: what it says goes to files.
    let out = tempfile::tempfile()?;
    let err = tempfile::tempfile()?;
    command.stdout(out.try_clone()?).stderr(err.try_clone()?);
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}: {}", read(err)?);
    read(out)
}

fn read(mut file: std::fs::File) -> anyhow::Result<String> {
    use std::io::{Read, Seek};
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}
