//! The programs in `integration/drivers` that hold sessions, each by drivers of its language: found, and built.

use crate::{binaries, driver};
use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;

/// The first time, what a program is built of is compiled too.
const BUILD_LIMIT: Duration = Duration::from_secs(600);

/// Where distributions put JDBC's driver.
const JARS: [&str; 3] = [
    "/usr/share/java/postgresql.jar",
    "/usr/share/java/postgresql-jdbc.jar",
    "/usr/share/java/postgresql-jdbc/postgresql.jar",
];
/// Where distributions put packages of Node, and sources of Go.
const NODE_PACKAGES: &str = "/usr/share/nodejs";
const GO_PACKAGES: &str = "/usr/share/gocode";

/// A program, to be started with the URL and the file that ends it.
pub struct Program {
    pub drivers: &'static [&'static str],
    path: PathBuf,
    words: Vec<PathBuf>,
    variables: Vec<(&'static str, PathBuf)>,
}

/// All programs that can be run here, and what of them is built.
pub struct Programs {
    pub all: Vec<Program>,
    _built: tempfile::TempDir,
}

impl Program {
    fn new(drivers: &'static [&'static str], path: impl Into<PathBuf>) -> Program {
        Program { drivers, path: path.into(), words: Vec::new(), variables: Vec::new() }
    }

    fn with(mut self, words: impl IntoIterator<Item = PathBuf>) -> Program {
        self.words.extend(words);
        self
    }

    /// Runs it to its end and gives what it printed.
    pub async fn run(&self, url: &str, stop: &Path, limit: Duration) -> anyhow::Result<String> {
        let mut command = Command::new(&self.path);
        command.args(&self.words).arg(url).arg(stop).envs(self.variables.clone());
        driver::without_defaults(&mut command);
        let said = driver::run(command, "", limit).await?;
        ensure!(said.success, "{:?} failed:\n{}{}", self.drivers, said.out, said.err);
        Ok(said.out)
    }
}

impl Programs {
    /// Where the package manager is known to have them all, all of them; elsewhere a driver may be missing, and is named.
    pub async fn prepare() -> anyhow::Result<Programs> {
        let built = tempfile::tempdir()?;
        let sources = binaries::sources().join("drivers");
        let python = python(&sources)?;
        let mut missing = Vec::new();
        if !python.drivers.contains(&"asyncpg") {
            missing.push("asyncpg");
        }
        let mut all = vec![python, rust(&sources).await?];
        let others = [
            ("JDBC", java(&sources)),
            ("node-pg", node(&sources)),
            ("pq", go(&sources, built.path()).await?),
        ];
        for (driver, found) in others {
            match found {
                Some(program) => all.push(program),
                None => missing.push(driver),
            }
        }
        if !missing.is_empty() {
            let may_install = rustix::process::geteuid().is_root() || binaries::system("sudo").is_ok();
            let must = may_install && binaries::system("apt-get").is_ok();
            ensure!(!must, "no {missing:?} here: run scripts/setup --drivers");
            eprintln!("left out, for they are not installed: {missing:?}");
        }
        Ok(Programs { all, _built: built })
    }
}

/// With asyncpg where Python has it: of some systems' packages it has not.
fn python(sources: &Path) -> anyhow::Result<Program> {
    let python = binaries::python()?;
    let asked = std::process::Command::new(&python).args(["-c", "import asyncpg"]).output()?;
    let drivers: &[&str] =
        if asked.status.success() { &["psycopg", "pipelines", "asyncpg"] } else { &["psycopg", "pipelines"] };
    Ok(Program::new(drivers, python).with([sources.join("sessions.py")]))
}

fn java(sources: &Path) -> Option<Program> {
    // The compiler comes with it, or sources cannot be run.
    binaries::system("javac").ok()?;
    let java = binaries::system("java").ok()?;
    let jar = JARS.map(PathBuf::from).into_iter().find(|jar| jar.is_file())?;
    let words = ["-XX:TieredStopAtLevel=1".into(), "-cp".into(), jar, sources.join("Sessions.java")];
    Some(Program::new(&["JDBC"], java).with(words))
}

fn node(sources: &Path) -> Option<Program> {
    let node = binaries::system("node").ok()?;
    let candidates = [binaries::cache().map(|c| c.join("node")), Some(NODE_PACKAGES.into())];
    let packages = candidates.into_iter().flatten().find(|c| c.join("pg").is_dir())?;
    let mut program = Program::new(&["node-pg"], node).with([sources.join("sessions.js")]);
    program.variables.push(("NODE_PATH", packages));
    Some(program)
}

async fn go(sources: &Path, built: &Path) -> anyhow::Result<Option<Program>> {
    let Ok(go) = binaries::system("go") else { return Ok(None) };
    if !Path::new(GO_PACKAGES).join("src/github.com/lib/pq").is_dir() {
        return Ok(None);
    }
    let program = built.join("sessions-go");
    let mut command = Command::new(go);
    // As the distribution packages it: sources in a path, no modules.
    command.env("GO111MODULE", "off").env("GOPATH", GO_PACKAGES);
    command.args(["build", "-o"]).arg(&program).arg(sources.join("sessions.go"));
    build(command).await?;
    Ok(Some(Program::new(&["pq"], program)))
}

/// Beside what Cargo made of the workspace, so that it is compiled once for all clones.
async fn rust(sources: &Path) -> anyhow::Result<Program> {
    let me = std::env::current_exe().context("where is this program?")?;
    // target/release/deps/promises-…
    let target = me.ancestors().nth(3).context("a directory of Cargo's output")?.join("drivers");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(sources.join("rust/Cargo.toml"));
    command.arg("--target-dir").arg(&target);
    build(command).await?;
    Ok(Program::new(&["tokio-postgres", "sqlx"], target.join("debug/sessions")))
}

async fn build(command: Command) -> anyhow::Result<()> {
    let shown = format!("{:?}", command.as_std());
    let said = driver::run(command, "", BUILD_LIMIT).await?;
    ensure!(said.success, "{shown}:\n{}{}", said.out, said.err);
    Ok(())
}
