//! The nemesis: one fault after another, most of which end by themselves, many of which overlap.

use crate::dice::Dice;
use crate::pg::instance::SimInstance;
use crate::trace;
use crate::world::World;
use quorate_model::{Command, DatabaseId, NodeId, ReplicaId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Between two faults, milliseconds.
const SHORTEST_PAUSE: u64 = 40;
const LONGEST_PAUSE: u64 = 600;
/// Clocks of two nodes may differ by one in a thousand; each by less than half of that from the world's.
const DRIFT_MILLIONTHS: u64 = 450;

type Link = (NodeId, NodeId);

/// What ends a fault.
enum Undo {
    Cut(Vec<Link>),
    Loss(Vec<Link>),
    Slow(Vec<Link>),
    Disk(NodeId),
    Hang(NodeId, Arc<SimInstance>),
}

#[derive(Default)]
pub struct Nemesis {
    next: u64,
    undo: Vec<(u64, Undo)>,
    /// Faults by kind, those that took effect.
    pub tally: BTreeMap<&'static str, u64>,
}

impl Nemesis {
    pub fn faults(&self) -> u64 {
        self.tally.iter().filter(|(kind, _)| !kind.starts_with("order")).map(|(_, count)| count).sum()
    }

    pub fn step(&mut self, world: &mut World) {
        let now = world.now_ms;
        let due = self.undo.iter().any(|(at, _)| *at <= now);
        if due {
            let (over, rest) = std::mem::take(&mut self.undo).into_iter().partition(|(at, _)| *at <= now);
            self.undo = rest;
            let over: Vec<(u64, Undo)> = over;
            over.into_iter().for_each(|(_, undo)| end(world, undo));
        }
        if now < self.next {
            return;
        }
        let mut dice = world.dice.fork();
        self.next = now + dice.between(SHORTEST_PAUSE, LONGEST_PAUSE);
        if let Some(kind) = self.inject(world, &mut dice) {
            *self.tally.entry(kind).or_default() += 1;
        }
    }

    /// Everything works again.
    pub fn heal(&mut self, world: &mut World) {
        for (_, undo) in std::mem::take(&mut self.undo) {
            end(world, undo);
        }
        world.net.weather(|w| *w = Default::default());
        world.conditions.all_disks_well();
        let now = world.now_ms;
        for node in &mut world.nodes {
            node.paused_until = node.paused_until.map(|until| until.min(now));
            if !node.is_up() {
                node.restart_at = Some(now + 1);
            }
        }
        trace::note("HEAL");
    }

    fn inject(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        match dice.below(100) {
            0..8 => self.cut_pair(world, dice),
            8..17 => self.cut_one_way(world, dice),
            17..24 => self.isolate(world, dice),
            24..31 => self.split(world, dice),
            31..37 => self.lossy(world, dice),
            37..43 => self.slow(world, dice),
            43..53 => crash(world, dice, true),
            53..59 => crash(world, dice, false),
            59..68 => pause(world, dice),
            68..76 => kill_postmaster(world, dice),
            76..81 => self.hang_postmaster(world, dice),
            81..85 => self.slow_disk(world, dice),
            85..88 => lose_disk(world, dice),
            88..90 => lose_disks_of_node(world, dice),
            90..92 => lose_quorum(world, dice),
            92..95 => drift(world, dice),
            95..98 => switch_over(world, dice),
            _ => relocate(world, dice),
        }
    }

    fn cut(&mut self, world: &mut World, links: Vec<Link>, until: u64) {
        world.net.weather(|w| w.cut.extend(links.iter().copied()));
        self.undo.push((until, Undo::Cut(links)));
    }

    fn cut_pair(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        let (a, b) = pair(world, dice)?;
        let lasts = dice.between(100, 4_000);
        trace::note(&format!("FAULT {a} and {b} cut off from each other for {lasts} ms"));
        self.cut(world, vec![(a, b), (b, a)], world.now_ms + lasts);
        Some("partial partition")
    }

    fn cut_one_way(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        let (a, b) = pair(world, dice)?;
        let lasts = dice.between(100, 4_000);
        trace::note(&format!("FAULT nothing from {a} to {b} for {lasts} ms"));
        self.cut(world, vec![(a, b)], world.now_ms + lasts);
        Some("one-way partition")
    }

    fn isolate(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        let &alone = dice.pick(world.ids())?;
        let (out, into) = (dice.chance(750), dice.chance(750));
        let others = world.ids().iter().copied().filter(|n| *n != alone);
        let links: Vec<Link> = others
            .flat_map(|other| [out.then_some((alone, other)), into.then_some((other, alone))])
            .flatten()
            .collect();
        if links.is_empty() {
            return None;
        }
        let lasts = dice.between(200, 5_000);
        trace::note(&format!("FAULT {alone} isolated (out {out}, in {into}) for {lasts} ms"));
        self.cut(world, links, world.now_ms + lasts);
        Some("isolated node")
    }

    fn split(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        let sides: Vec<(NodeId, u64)> = world.ids().iter().map(|n| (*n, dice.below(3))).collect();
        // Side 2 sees both others.
        let apart = |a: u64, b: u64| a != b && a != 2 && b != 2;
        let links: Vec<Link> = sides
            .iter()
            .flat_map(|(a, x)| sides.iter().filter(move |(_, y)| apart(*x, *y)).map(move |(b, _)| (*a, *b)))
            .collect();
        if links.is_empty() {
            return None;
        }
        let lasts = dice.between(200, 4_000);
        trace::note(&format!("FAULT split {sides:?} for {lasts} ms"));
        self.cut(world, links, world.now_ms + lasts);
        Some("partition")
    }

    fn lossy(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        let links = some_links(world, dice);
        let (loss, lasts) = (dice.between(20, 500), dice.between(500, 4_000));
        trace::note(&format!("FAULT {} links lose {loss}/1000 for {lasts} ms", links.len()));
        world.net.weather(|w| w.loss.extend(links.iter().map(|l| (*l, loss))));
        self.undo.push((world.now_ms + lasts, Undo::Loss(links)));
        Some("lossy links")
    }

    fn slow(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        let links = some_links(world, dice);
        let (up_to, lasts) = (dice.between(10, 600), dice.between(500, 4_000));
        trace::note(&format!("FAULT {} links slow by up to {up_to} ms for {lasts} ms", links.len()));
        world.net.weather(|w| w.slow.extend(links.iter().map(|l| (*l, up_to))));
        self.undo.push((world.now_ms + lasts, Undo::Slow(links)));
        Some("slow links")
    }

    fn slow_disk(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        let &node = dice.pick(world.ids())?;
        let (up_to, lasts) = (dice.between(30, 1_500), dice.between(300, 4_000));
        trace::note(&format!("FAULT flushes on {node} take up to {up_to} ms for {lasts} ms"));
        world.conditions.slow_disk(node, Some(up_to));
        self.undo.push((world.now_ms + lasts, Undo::Disk(node)));
        Some("slow fsync")
    }

    /// SIGSTOP of a postmaster, or of all its processes. The daemon finds out by its probe.
    fn hang_postmaster(&mut self, world: &mut World, dice: &mut Dice) -> Option<&'static str> {
        let (at, victim) = instance(world, dice)?;
        let all = dice.chance(500);
        // Beyond what a hung secondary is given before it is killed, too.
        let lasts = if dice.chance(700) { dice.between(100, 4_000) } else { dice.between(4_000, 15_000) };
        let hung = world.nodes[at].as_kernel(|| victim.hang(all));
        trace::running(NodeId(0));
        let what = if all { "instance" } else { "postmaster" };
        let (id, node) = (victim.replica, world.nodes[at].id);
        trace::note(&format!("FAULT {what} of {id} on {node} stopped for {lasts} ms: {hung}"));
        if !hung {
            return None;
        }
        self.undo.push((world.now_ms + lasts, Undo::Hang(node, victim)));
        Some(if all { "instance hang" } else { "postmaster hang" })
    }
}

fn end(world: &mut World, undo: Undo) {
    match undo {
        Undo::Cut(links) => world.net.weather(|w| w.cut.retain(|link| !links.contains(link))),
        Undo::Loss(links) => world.net.weather(|w| w.loss.retain(|link, _| !links.contains(link))),
        Undo::Slow(links) => world.net.weather(|w| w.slow.retain(|link, _| !links.contains(link))),
        Undo::Disk(node) => world.conditions.slow_disk(node, None),
        Undo::Hang(id, instance) => {
            if let Some(node) = world.nodes.iter().find(|n| n.id == id) {
                let went_on = node.as_kernel(|| instance.go_on());
                trace::running(NodeId(0));
                trace::note(&format!("{} goes on: {went_on}", instance.replica));
            }
        }
    }
}

fn pair(world: &World, dice: &mut Dice) -> Option<Link> {
    let &a = dice.pick(world.ids())?;
    let others: Vec<NodeId> = world.ids().iter().copied().filter(|n| *n != a).collect();
    dice.pick(&others).map(|b| (a, *b))
}

fn some_links(world: &World, dice: &mut Dice) -> Vec<Link> {
    let share = dice.between(100, 1000);
    let ids = world.ids();
    let all = ids.iter().flat_map(|a| ids.iter().filter(move |b| *b != a).map(move |b| (*a, *b)));
    all.filter(|_| dice.chance(share)).collect()
}

/// Seldom more than two nodes at once are away.
fn victim(world: &World, dice: &mut Dice) -> Option<usize> {
    let well = |at: &usize| world.nodes[*at].is_up() && world.nodes[*at].paused_until.is_none();
    let up: Vec<usize> = (0..world.nodes.len()).filter(well).collect();
    let away = world.nodes.len() - up.len();
    if away >= 2 && !dice.chance(100) {
        return None;
    }
    dice.pick(&up).copied()
}

/// `heard`: the process ends, and its connections break visibly. Otherwise the machine loses power.
fn crash(world: &mut World, dice: &mut Dice, heard: bool) -> Option<&'static str> {
    let at = victim(world, dice)?;
    let lasts = if dice.chance(800) { dice.between(100, 3_000) } else { dice.between(3_000, 12_000) };
    let id = world.nodes[at].id;
    trace::note(&format!("FAULT {id} {} for {lasts} ms", if heard { "crashes" } else { "loses power" }));
    world.crash(at, heard);
    world.nodes[at].restart_at = Some(world.now_ms + lasts);
    Some(if heard { "node crash" } else { "power loss" })
}

fn pause(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let at = victim(world, dice)?;
    let lasts = if dice.chance(500) { dice.between(20, 700) } else { dice.between(700, 8_000) };
    trace::note(&format!("FAULT {} stopped for {lasts} ms", world.nodes[at].id));
    world.nodes[at].paused_until = Some(world.now_ms + lasts);
    Some("node pause")
}

/// Any instance of any node that is up.
fn instance(world: &World, dice: &mut Dice) -> Option<(usize, Arc<SimInstance>)> {
    let up: Vec<usize> = (0..world.nodes.len()).filter(|at| world.nodes[*at].live().is_some()).collect();
    let &at = dice.pick(&up)?;
    let instances = world.nodes[at].live()?.registry.instances();
    Some((at, dice.pick(&instances)?.clone()))
}

fn kill_postmaster(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let (at, victim) = instance(world, dice)?;
    let forgets = world.conditions.plant == Some(crate::scene::Plant::ForgottenFlush);
    let killed = world.nodes[at].as_kernel(|| victim.kill(dice, forgets));
    trace::running(NodeId(0));
    trace::note(&format!(
        "FAULT postmaster of {} on {} killed: {killed}",
        victim.replica, world.nodes[at].id
    ));
    killed.then_some("postmaster kill")
}

/// A replica's directory is gone: at a whole database only, so that what was acknowledged is still somewhere.
fn lose_disk(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let map = world.map();
    let whole: Vec<DatabaseId> =
        world.databases.iter().copied().filter(|d| world.is_whole(&map, *d)).collect();
    let record = map.databases.get(dice.pick(&whole)?)?;
    let replicas: Vec<_> = record.replicas.iter().map(|(id, r)| (*id, r.node)).collect();
    let &(replica, node) = dice.pick(&replicas)?;
    let at = world.nodes.iter().position(|n| n.id == node && n.is_up())?;
    trace::note(&format!("FAULT the disk of {replica} on {node} is lost"));
    wipe(world, at, &[replica]);
    world.nodes[at].restart_at = Some(world.now_ms + dice.between(50, 2_000));
    Some("disk loss")
}

/// The node ends, and these replicas' directories are empty when it comes back, the promises with them.
fn wipe(world: &mut World, at: usize, replicas: &[ReplicaId]) {
    world.crash(at, true);
    let node = world.nodes[at].id;
    for replica in replicas {
        *world.disks.open(node, *replica).content() = Default::default();
        world.oracle.lost(*replica);
    }
}

/// Every replica of a node is gone at once, of whole databases only. The map's disk is another: Raft does not tolerate a
/// voter that forgot its votes, and such a node has to join under a new id.
fn lose_disks_of_node(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let at = victim(world, dice)?;
    let node = world.nodes[at].id;
    let map = world.map();
    let here =
        |d: &DatabaseId| map.databases.get(d).is_some_and(|r| r.replicas.values().any(|x| x.node == node));
    let whole = world.databases.iter().filter(|d| here(d)).all(|d| world.is_whole(&map, *d));
    let replicas = world.disks.on(node);
    if !whole || replicas.is_empty() {
        return None;
    }
    trace::note(&format!("FAULT the disks of {replicas:?} on {node} are lost"));
    wipe(world, at, &replicas);
    world.nodes[at].restart_at = Some(world.now_ms + dice.between(50, 4_000));
    Some("disk loss of a node")
}

/// Two of a database's three copies are gone for good. What only they held, only an operator can give up.
fn lose_quorum(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let map = world.map();
    let whole: Vec<DatabaseId> =
        world.databases.iter().copied().filter(|d| world.is_whole(&map, *d)).collect();
    let &database = dice.pick(&whole)?;
    let record = map.databases.get(&database)?;
    let mut replicas: Vec<(ReplicaId, NodeId)> =
        record.replicas.iter().map(|(id, r)| (*id, r.node)).collect();
    let up = |node: NodeId| world.nodes.iter().position(|n| n.id == node && n.is_up());
    // Most of the time the primary is among them.
    let spared = match dice.chance(200) {
        true => record.current.primary,
        false => *dice.pick(&record.current.voters.iter().copied().collect::<Vec<_>>())?,
    };
    replicas.retain(|(id, _)| *id != spared);
    let places: Vec<usize> = replicas.iter().filter_map(|(_, node)| up(*node)).collect();
    if places.len() != replicas.len() {
        return None;
    }
    trace::note(&format!("FAULT of {database} only {spared} is left; the disks of {replicas:?} are lost"));
    for ((replica, _), at) in replicas.into_iter().zip(places) {
        wipe(world, at, &[replica]);
        world.nodes[at].restart_at = Some(world.now_ms + dice.between(50, 2_000));
    }
    world.operator.knows_of_ruin(database);
    Some("quorum loss")
}

fn drift(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let at = dice.below(world.nodes.len() as u64) as usize;
    let drift = dice.between(0, 2 * DRIFT_MILLIONTHS) as i64 - DRIFT_MILLIONTHS as i64;
    trace::note(&format!("FAULT the clock of {} runs {drift} millionths fast", world.nodes[at].id));
    world.nodes[at].set_drift(drift);
    Some("clock drift")
}

fn switch_over(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let &database = dice.pick(&world.databases)?;
    trace::note(&format!("ORDER switchover of {database}"));
    let now_ms = crate::clock::unix_ms(world.now_ms);
    world.propose(Command::BeginSwitchover { database, to: None, now_ms });
    Some("order: switchover")
}

fn relocate(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let &database = dice.pick(&world.databases)?;
    let map = world.map();
    let record = map.databases.get(&database)?;
    let voters: Vec<NodeId> = record.current.voters.iter().filter_map(|r| record.node_of(*r)).collect();
    let free: Vec<NodeId> =
        world.ids().iter().copied().filter(|n| record.replicas_on(*n).next().is_none()).collect();
    let (&from, &to) = (dice.pick(&voters)?, dice.pick(&free)?);
    trace::note(&format!("ORDER move {database} from {from} to {to}"));
    let now_ms = crate::clock::unix_ms(world.now_ms);
    world.propose(Command::BeginMove { database, from, to, now_ms });
    Some("order: move")
}
