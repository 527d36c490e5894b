//! A report, not a test: `cargo test --release -p quorate-proxy --test bench -- --ignored --nocapture`.
use crate::common::*;
use std::process::Command as Process;

fn pgbench(args: &[&str], host: &str, port: u16, user: &str) -> f64 {
    let output = Process::new(bin("pgbench"))
        .args(["-h", host, "-p", &port.to_string(), "-U", user, "-n", "-S", "-T"])
        .arg(std::env::var("BENCH_SECONDS").unwrap_or_else(|_| "4".into()))
        .args(args)
        .arg("app")
        .env("PGPASSWORD", "demo")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps = text.lines().find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&output.stderr)))
}

/// Processor time of this process, user and system, in microseconds.
fn cpu_us() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10_000.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn pgbench_select_only_against_a_direct_connection() {
    let postgres = Postgres::start().await;
    let cluster = Cluster::with(|c| c.workers = 2).await;
    cluster.open(1, &postgres);
    let socket = postgres.socket();
    let socket = socket.to_str().unwrap();
    let made = Process::new(bin("pgbench"))
        .args(["-h", socket, "-U", "quorate", "-i", "-q", "-s", "5", "app"])
        .output()
        .unwrap();
    assert!(made.status.success());
    postgres.admin().await.batch_execute("grant all on all tables in schema public to demo").await.unwrap();
    let ports = [1, 2].map(|n: usize| cluster.nodes[n - 1].proxy.address().port());
    for args in [&["-c", "16", "-j", "2"][..], &["-c", "1"], &["-c", "16", "-j", "2", "-M", "prepared"]] {
        if std::env::var("BENCH_ONLY").is_ok_and(|only| only != args.join(" ")) {
            continue;
        }
        for round in 0..2 {
            let direct = pgbench(args, socket, 5432, "demo");
            let mut line = format!("{args:?} round {round}: direct {direct:.0}");
            for (name, port) in ["local", "remote"].iter().zip(ports) {
                let before = cpu_us();
                let tps = pgbench(args, "127.0.0.1", port, "demo");
                let seconds: f64 =
                    std::env::var("BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4.0);
                let cpu = (cpu_us() - before) / (tps * seconds);
                line += &format!("  {name} {tps:.0} ({:.2}, {cpu:.1} us cpu)", tps / direct);
            }
            println!("{line}");
        }
    }
}
