//! The nemesis: one fault after another, most of which end by themselves, many of which overlap.

use crate::dice::Dice;
use crate::trace;
use crate::world::World;
use quorate_model::{Command, DatabaseId, NodeId};
use std::collections::BTreeMap;

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
        self.undo.clear();
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
            59..70 => pause(world, dice),
            70..80 => kill_postmaster(world, dice),
            80..86 => self.slow_disk(world, dice),
            86..90 => lose_disk(world, dice),
            90..94 => drift(world, dice),
            94..98 => switch_over(world, dice),
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
}

fn end(world: &mut World, undo: Undo) {
    match undo {
        Undo::Cut(links) => world.net.weather(|w| w.cut.retain(|link| !links.contains(link))),
        Undo::Loss(links) => world.net.weather(|w| w.loss.retain(|link, _| !links.contains(link))),
        Undo::Slow(links) => world.net.weather(|w| w.slow.retain(|link, _| !links.contains(link))),
        Undo::Disk(node) => world.conditions.slow_disk(node, None),
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

fn kill_postmaster(world: &mut World, dice: &mut Dice) -> Option<&'static str> {
    let up: Vec<usize> = (0..world.nodes.len()).filter(|at| world.nodes[*at].live().is_some()).collect();
    let &at = dice.pick(&up)?;
    let instances = world.nodes[at].live()?.registry.instances();
    let victim = dice.pick(&instances)?;
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
    world.crash(at, true);
    *world.disks.open(node, replica).content() = Default::default();
    world.oracle.lost(replica);
    world.nodes[at].restart_at = Some(world.now_ms + dice.between(50, 2_000));
    Some("disk loss")
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
