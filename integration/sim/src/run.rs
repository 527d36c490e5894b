//! One seed from its beginning to its verdict: set up, faults, heal, and a last look.

use crate::faults::Nemesis;
use crate::scene::Plant;
use crate::trace;
use crate::world::World;
use quorate_model::{Command, DatabaseId, DatabaseOption, NodeId, Reads};
use std::collections::BTreeMap;

/// Databases of a world.
const DATABASES: u64 = 3;
/// The one of them whose results leave by confirmations instead of leases.
const CONFIRMED: &str = "d1";
/// A cluster without faults is set up in this time, milliseconds.
const SETUP_LIMIT_MS: u64 = 30_000;
/// I14: after the last fault everything is whole in this time, milliseconds.
const HEAL_LIMIT_MS: u64 = 90_000;
/// Statements under way end in this time.
const SETTLE_MS: u64 = 15_000;

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub faults: u64,
    pub tally: BTreeMap<&'static str, u64>,
    pub acknowledged: u64,
    pub reads: u64,
    pub unknown: u64,
    /// Results that left by a confirmation.
    pub confirmed: u64,
    pub lost: u64,
    /// Forced recoveries, and what clients had been told of that they gave up.
    pub recoveries: u64,
    pub accepted: u64,
    pub heal_ms: u64,
    pub elections: u64,
    pub simulated_ms: u64,
    pub messages: u64,
    pub lost_messages: u64,
    pub doubled_messages: u64,
    pub hash: u64,
    pub violations: Vec<String>,
}

/// Plays a seed. `fault_ms` is how long the nemesis works.
pub fn play(seed: u64, fault_ms: u64, plant: Option<Plant>) -> std::io::Result<Verdict> {
    let mut world = World::new(seed, plant)?;
    let mut nemesis = Nemesis::default();
    let mut verdict = Verdict::default();
    if set_up(&mut world)? {
        let until = world.now_ms + fault_ms;
        while world.now_ms < until && healthy_so_far(&world) {
            nemesis.step(&mut world);
            world.step()?;
        }
        if healthy_so_far(&world) {
            verdict.heal_ms = heal(&mut world, &mut nemesis)?;
        }
        if healthy_so_far(&world) {
            last_look(&mut world, &mut verdict)?;
        }
    }
    for panic in trace::panics() {
        world.oracle.fail(panic);
    }
    let counts = world.oracle.counts();
    let traffic = world.net.traffic();
    let map = world.map();
    verdict.faults = nemesis.faults();
    verdict.tally = nemesis.tally;
    verdict.acknowledged = counts.acknowledged;
    verdict.reads = counts.reads;
    verdict.unknown = counts.unknown;
    verdict.confirmed = counts.confirmed;
    verdict.accepted = counts.accepted;
    verdict.recoveries = map.databases.values().map(|d| d.epoch.data_loss).sum();
    verdict.elections = map.databases.values().map(|d| d.epoch.primary - 1).sum();
    verdict.simulated_ms = world.now_ms;
    verdict.messages = traffic.calls;
    verdict.lost_messages = traffic.lost;
    verdict.doubled_messages = traffic.doubled;
    verdict.violations = world.oracle.violations();
    verdict.hash = trace::hash();
    Ok(verdict)
}

fn healthy_so_far(world: &World) -> bool {
    world.oracle.violations().is_empty() && trace::panics().is_empty()
}

/// Steps until `done`, or until the limit. Whether it was done in time.
fn wait(world: &mut World, limit_ms: u64, done: impl Fn(&World) -> bool) -> std::io::Result<bool> {
    let until = world.now_ms + limit_ms;
    while world.now_ms < until && healthy_so_far(world) {
        // Looking costs more than a step.
        if world.now_ms.is_multiple_of(10) && done(world) {
            return Ok(true);
        }
        world.step()?;
    }
    Ok(false)
}

fn set_up(world: &mut World) -> std::io::Result<bool> {
    let nodes = world.ids().len();
    let mut ready = wait(world, SETUP_LIMIT_MS, |w| w.map().nodes.len() == nodes)?;
    world.propose(Command::CreateServer {
        name: "sim".to_owned(),
        admin: "sim".to_owned(),
        verifier: "none".to_owned(),
    });
    ready &= wait(world, SETUP_LIMIT_MS, |w| w.map().servers.len() == 1)?;
    for number in 0..DATABASES {
        let first = number as usize % nodes;
        let placement: Vec<NodeId> = (0..3).map(|i| world.ids()[(first + i) % nodes]).collect();
        world.propose(Command::CreateDatabase {
            server: "sim".to_owned(),
            name: format!("d{number}"),
            placement,
            now_ms: crate::clock::unix_ms(world.now_ms),
        });
    }
    ready &= wait(world, SETUP_LIMIT_MS, |w| w.map().databases.len() as u64 == DATABASES)?;
    let databases: Vec<DatabaseId> = world.map().databases.keys().copied().collect();
    world.databases = databases.clone();
    let option = DatabaseOption::Reads(Reads::Confirm);
    world.propose(Command::SetOption { server: "sim".to_owned(), name: CONFIRMED.to_owned(), option });
    let is_set = |w: &World| w.map().databases.values().any(|d| d.options.reads == Reads::Confirm);
    ready &= wait(world, SETUP_LIMIT_MS, is_set)?;
    ready &= wait(world, SETUP_LIMIT_MS, World::are_whole)?;
    databases.into_iter().for_each(|d| world.serve(d));
    if !ready && healthy_so_far(world) {
        let text = format!("a cluster without faults was not set up in time: {:?}", world.troubles());
        world.oracle.fail(text);
    }
    trace::note("SET UP");
    Ok(ready)
}

/// I14: with everything well again, every database is whole in bounded time. Returns how long the longest took.
fn heal(world: &mut World, nemesis: &mut Nemesis) -> std::io::Result<u64> {
    nemesis.heal(world);
    let from = world.now_ms;
    if !wait(world, HEAL_LIMIT_MS, World::are_whole)? && healthy_so_far(world) {
        let text = format!("I14: not healed within {HEAL_LIMIT_MS} ms: {:?}", world.troubles());
        world.oracle.fail(text);
    }
    Ok(world.now_ms - from)
}

/// Everything that clients were told of is there, and what was there stays through one more failover.
fn last_look(world: &mut World, verdict: &mut Verdict) -> std::io::Result<()> {
    world.let_clients_work(false);
    let until = world.now_ms + SETTLE_MS;
    while world.now_ms < until && healthy_so_far(world) {
        world.step()?;
    }
    wait(world, HEAL_LIMIT_MS, World::are_whole)?;
    let map = world.map();
    let mut before = Vec::new();
    for record in map.databases.values() {
        let Some(log) = world.primary_log(record) else {
            world.oracle.fail(format!("I14: {} has no primary at the end", record.id));
            continue;
        };
        verdict.lost += world.oracle.lost_commits(record.id, &log) as u64;
        world.oracle.refused_stay_out(record.id, &log);
        before.push((record.id, log));
    }
    for record in map.databases.values() {
        if let Some(at) = record.primary_node().and_then(|n| world.nodes.iter().position(|x| x.id == n)) {
            let lasts = world.dice.between(50, 900);
            if world.nodes[at].is_up() {
                world.crash(at, true);
                world.nodes[at].restart_at = Some(world.now_ms + lasts);
            }
        }
    }
    trace::note("LAST FAILOVER");
    world.step()?;
    if !wait(world, HEAL_LIMIT_MS, World::are_whole)? && healthy_so_far(world) {
        world.oracle.fail(format!("I14: the last failover did not end: {:?}", world.troubles()));
    }
    if !healthy_so_far(world) {
        return Ok(());
    }
    let map = world.map();
    for (id, log) in before {
        let after = map.databases.get(&id).and_then(|record| world.primary_log(record)).unwrap_or_default();
        if !after.starts_with(&log) {
            world.oracle.fail(format!(
                "I8: {id}: what stood in the log before the last failover is not there after it"
            ));
        }
        verdict.lost += world.oracle.lost_commits(id, &after) as u64;
    }
    if verdict.lost > 0 {
        world.oracle.fail(format!("I1: {} commits that clients were told of are lost", verdict.lost));
    }
    Ok(())
}
