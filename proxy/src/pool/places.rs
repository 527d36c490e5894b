//! Who gets a server connection, who waits, and who is next. Pure.
//!
//! A *place* is the right to have one server connection of a database. There are so many for each database, and so many on
//! the node. A place is in use, or holds an idle server, or is free. Nobody overtakes: within a database clients are
//! served in the order in which they came, between tenants [`Turns`] decides.

use quorate_model::{DatabaseId, ServerId};
use quorate_throttle::Turns;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// `S`: an idle server. `K`: whom a server is for; only equal ones may share. `W`: how somebody who waits is told.
#[derive(Debug)]
pub struct Places<K, S, W> {
    /// Places of the node.
    limit: usize,
    /// How many clients of one tenant may wait.
    max_waiting: usize,
    /// Places that are not free.
    taken: usize,
    databases: BTreeMap<DatabaseId, Database<K, S, W>>,
    turns: Turns,
    tickets: u64,
}

#[derive(Debug)]
struct Database<K, S, W> {
    tenant: ServerId,
    size: usize,
    /// Places that are not free.
    taken: usize,
    /// The one that was used last is the last.
    idle: Vec<Idle<K, S>>,
    waiting: VecDeque<Waiting<K, W>>,
}

#[derive(Debug)]
struct Idle<K, S> {
    key: K,
    worker: usize,
    /// A time since any fixed moment.
    since: Duration,
    server: S,
}

#[derive(Debug)]
struct Waiting<K, W> {
    ticket: u64,
    key: K,
    since: Duration,
    teller: W,
}

/// Somebody asks for a place.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a, K> {
    pub database: DatabaseId,
    pub tenant: ServerId,
    /// Places of the database.
    pub size: usize,
    pub key: &'a K,
    pub worker: usize,
    pub now: Duration,
}

/// What somebody who asks is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked<S> {
    /// A place, and the idle server in it if there is one. `evicted` had to make room and is to be closed.
    Granted { server: Option<S>, evicted: Option<S> },
    /// With this ticket the wait can be given up.
    Wait(u64),
    /// Too many of the tenant's clients wait already.
    Full,
}

/// Somebody who waited has a place.
#[derive(Debug)]
pub struct Grant<K, S, W> {
    pub database: DatabaseId,
    pub key: K,
    pub teller: W,
    pub server: Option<S>,
    pub evicted: Option<S>,
}

/// One database's places, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub database: DatabaseId,
    pub size: usize,
    pub used: usize,
    pub idle: usize,
    pub waiting: usize,
    /// How long the first of them has waited.
    pub longest: Duration,
}

impl<K: PartialEq + Clone, S, W> Places<K, S, W> {
    pub fn new(limit: usize, max_waiting: usize) -> Self {
        Places {
            limit,
            max_waiting,
            taken: 0,
            databases: BTreeMap::new(),
            turns: Turns::default(),
            tickets: 0,
        }
    }

    /// A place for `asker`, or a ticket in its line; `teller` is kept if it waits.
    pub fn ask(&mut self, asker: Asker<'_, K>, teller: W) -> Asked<S> {
        let Asker { database: id, tenant, size, key, worker, now } = asker;
        let new = || Database { tenant, size, taken: 0, idle: Vec::new(), waiting: VecDeque::new() };
        let database = self.databases.entry(id).or_insert_with(new);
        database.size = size;
        if database.waiting.is_empty()
            && let Some((server, evicted)) = self.take(id, key, worker)
        {
            self.turns.begin(tenant);
            return Asked::Granted { server, evicted };
        }
        let of_tenant = self.databases.values().filter(|d| d.tenant == tenant);
        if of_tenant.map(|d| d.waiting.len()).sum::<usize>() >= self.max_waiting {
            return Asked::Full;
        }
        self.tickets += 1;
        let ticket = self.tickets;
        if let Some(database) = self.databases.get_mut(&id) {
            database.waiting.push_back(Waiting { ticket, key: key.clone(), since: now, teller });
        }
        self.turns.wait(tenant);
        Asked::Wait(ticket)
    }

    /// Takes a place of that database: with a server of that key, or a free one, or one whose idle server must go.
    fn take(&mut self, id: DatabaseId, key: &K, worker: usize) -> Option<(Option<S>, Option<S>)> {
        let (limit, taken) = (self.limit, self.taken);
        let database = self.databases.get_mut(&id)?;
        let suits = |idle: &Idle<K, S>| idle.key == *key;
        // Of the same worker's, the one used last: its caches are warm, and those that are not needed age.
        let same = database.idle.iter().rposition(|idle| idle.worker == worker && suits(idle));
        if let Some(at) = same.or_else(|| database.idle.iter().rposition(suits)) {
            return Some((Some(database.idle.remove(at).server), None));
        }
        if database.taken >= database.size {
            // Only one of its own can make room.
            let oldest = (!database.idle.is_empty()).then(|| database.idle.remove(0))?;
            return Some((None, Some(oldest.server)));
        }
        if taken < limit {
            self.taken += 1;
            database.taken += 1;
            return Some((None, None));
        }
        let (other, _) = self
            .databases
            .iter()
            .filter_map(|(id, database)| Some((*id, database.idle.first()?.since)))
            .min_by_key(|(_, since)| *since)?;
        let other = self.databases.get_mut(&other)?;
        let oldest = other.idle.remove(0);
        other.taken -= 1;
        self.databases.get_mut(&id)?.taken += 1;
        Some((None, Some(oldest.server)))
    }

    /// A place was used for so long, and comes back: with its server, if that can be used again. What is returned besides
    /// is to be closed; then [`Places::next`] must be asked until it has nobody.
    pub fn give_back(
        &mut self,
        id: DatabaseId,
        used: Duration,
        server: Option<(K, usize, S)>,
        now: Duration,
    ) -> Option<S> {
        let database = self.databases.get_mut(&id)?;
        self.turns.end(database.tenant, used);
        match server {
            Some((key, worker, server)) if database.taken <= database.size => {
                database.idle.push(Idle { key, worker, since: now, server });
                None
            }
            other => {
                database.taken -= 1;
                self.taken -= 1;
                self.forget_if_empty(id);
                other.map(|(_, _, server)| server)
            }
        }
    }

    /// The next one who waits and can be given a place.
    pub fn next(&mut self) -> Option<Grant<K, S, W>> {
        let mut able: BTreeMap<ServerId, (u64, DatabaseId)> = BTreeMap::new();
        for (id, database) in &self.databases {
            if let Some(first) = database.waiting.front()
                && self.has_place(database)
            {
                let longest = able.entry(database.tenant).or_insert((first.ticket, *id));
                *longest = (*longest).min((first.ticket, *id));
            }
        }
        if able.is_empty() {
            return None;
        }
        let tenant = self.turns.next(|tenant| able.contains_key(&tenant))?;
        let (_, id) = *able.get(&tenant)?;
        let key = self.databases.get(&id)?.waiting.front()?.key.clone();
        let (server, evicted) = self.take(id, &key, usize::MAX)?;
        let first = self.databases.get_mut(&id)?.waiting.pop_front()?;
        self.turns.begin(tenant);
        self.rest_if_served(tenant);
        Some(Grant { database: id, key, teller: first.teller, server, evicted })
    }

    /// Whether [`Places::take`] would find one.
    fn has_place(&self, database: &Database<K, S, W>) -> bool {
        !database.idle.is_empty()
            || database.taken < database.size
                && (self.taken < self.limit || self.databases.values().any(|d| !d.idle.is_empty()))
    }

    /// Somebody waits no longer. False: it has been given a place already.
    pub fn give_up(&mut self, id: DatabaseId, ticket: u64) -> bool {
        let Some(database) = self.databases.get_mut(&id) else { return false };
        let Some(at) = database.waiting.iter().position(|w| w.ticket == ticket) else { return false };
        database.waiting.remove(at);
        let tenant = database.tenant;
        self.rest_if_served(tenant);
        self.forget_if_empty(id);
        true
    }

    fn rest_if_served(&mut self, tenant: ServerId) {
        if !self.databases.values().any(|d| d.tenant == tenant && !d.waiting.is_empty()) {
            self.turns.rest(tenant);
        }
    }

    fn forget_if_empty(&mut self, id: DatabaseId) {
        if self.databases.get(&id).is_some_and(|d| d.taken == 0 && d.waiting.is_empty()) {
            self.databases.remove(&id);
        }
    }

    /// Idle servers that were last used before `before`, or that are `over`: to be closed.
    pub fn sweep(&mut self, before: Duration, over: impl Fn(DatabaseId, &S) -> bool) -> Vec<S> {
        let mut swept = Vec::new();
        for (id, database) in &mut self.databases {
            let gone = database.idle.extract_if(.., |idle| idle.since < before || over(*id, &idle.server));
            let from = swept.len();
            swept.extend(gone.map(|idle| idle.server));
            database.taken -= swept.len() - from;
            self.taken -= swept.len() - from;
        }
        self.databases.retain(|_, d| d.taken > 0 || !d.waiting.is_empty());
        swept
    }

    pub fn rows(&self, now: Duration) -> Vec<Row> {
        let row = |(id, d): (&DatabaseId, &Database<K, S, W>)| Row {
            database: *id,
            size: d.size,
            used: d.taken - d.idle.len(),
            idle: d.idle.len(),
            waiting: d.waiting.len(),
            longest: d.waiting.front().map_or(Duration::ZERO, |first| now.saturating_sub(first.since)),
        };
        self.databases.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: ServerId = ServerId(1);
    const D: DatabaseId = DatabaseId(1);
    const MS: Duration = Duration::from_millis(1);

    type Of = Places<char, u32, &'static str>;

    fn ask(
        places: &mut Of,
        database: DatabaseId,
        tenant: ServerId,
        key: char,
        who: &'static str,
    ) -> Asked<u32> {
        let asker = Asker { database, tenant, size: 2, key: &key, worker: 0, now: MS };
        places.ask(asker, who)
    }

    fn granted(server: Option<u32>, evicted: Option<u32>) -> Asked<u32> {
        Asked::Granted { server, evicted }
    }

    #[test]
    fn servers_are_shared_by_those_of_one_key_and_make_room_for_others() {
        let mut places = Of::new(10, 10);
        assert_eq!(ask(&mut places, D, T, 'a', "a"), granted(None, None));
        assert_eq!(ask(&mut places, D, T, 'a', "b"), granted(None, None));
        assert_eq!(places.give_back(D, MS, Some(('a', 0, 1)), 2 * MS), None);
        assert_eq!(places.give_back(D, MS, Some(('a', 1, 2)), 3 * MS), None);
        assert_eq!(ask(&mut places, D, T, 'a', "c"), granted(Some(1), None), "that of its own worker");
        assert_eq!(ask(&mut places, D, T, 'b', "d"), granted(None, Some(2)), "both places are taken");
        assert_eq!(
            places.rows(5 * MS)[0],
            Row { database: D, size: 2, used: 2, idle: 0, waiting: 0, longest: Duration::ZERO }
        );
        assert_eq!(places.give_back(D, MS, None, 4 * MS), None);
        assert_eq!(places.give_back(D, MS, None, 4 * MS), None);
        assert!(places.rows(MS).is_empty() && places.taken == 0);
    }

    #[test]
    fn who_waits_is_served_in_order_and_may_give_up() {
        let mut places = Of::new(10, 2);
        for _ in 0..2 {
            assert_eq!(ask(&mut places, D, T, 'a', "in use"), granted(None, None));
        }
        let Asked::Wait(_) = ask(&mut places, D, T, 'a', "first") else { panic!("waits") };
        let Asked::Wait(second) = ask(&mut places, D, T, 'a', "second") else { panic!("waits") };
        assert_eq!(ask(&mut places, D, T, 'a', "third"), Asked::Full);
        assert!(places.next().is_none());
        places.give_back(D, MS, Some(('a', 0, 1)), MS);
        assert!(matches!(ask(&mut places, D, T, 'a', "overtakes"), Asked::Full), "nobody overtakes");
        let grant = places.next().unwrap_or_else(|| panic!("somebody waits"));
        assert_eq!((grant.teller, grant.server), ("first", Some(1)));
        assert!(places.next().is_none());
        assert!(places.give_up(D, second) && !places.give_up(D, second));
        assert_eq!(places.rows(MS)[0].waiting, 0);
    }

    #[test]
    fn the_places_of_the_node_go_round_between_tenants() {
        let mut places = Of::new(2, 100);
        let (u, e) = (ServerId(2), DatabaseId(2));
        for _ in 0..2 {
            assert_eq!(ask(&mut places, D, T, 'a', "t"), granted(None, None));
        }
        for _ in 0..20 {
            assert!(matches!(ask(&mut places, D, T, 'a', "t"), Asked::Wait(_)));
            assert!(matches!(ask(&mut places, e, u, 'a', "u"), Asked::Wait(_)));
        }
        let mut served = BTreeMap::<_, u32>::new();
        let mut holder = D;
        for _ in 0..20 {
            // Each holds it for longer than a round.
            places.give_back(holder, 20 * MS, Some(('a', 0, 7)), MS);
            let grant = places.next().unwrap_or_else(|| panic!("somebody waits"));
            holder = if grant.teller == "t" { D } else { e };
            *served.entry(grant.teller).or_default() += 1;
            assert!(places.next().is_none(), "one place came back");
        }
        assert!(served.values().all(|n| (8..=12).contains(n)), "{served:?}");
    }

    #[test]
    fn idle_servers_age_and_those_too_many_go() {
        let mut places = Of::new(10, 10);
        for _ in 0..2 {
            ask(&mut places, D, T, 'a', "a");
        }
        places.give_back(D, MS, Some(('a', 0, 1)), 2 * MS);
        // The pool is made smaller.
        let asker = Asker { database: D, tenant: T, size: 1, key: &'b', worker: 0, now: MS };
        assert_eq!(places.ask(asker, "b"), granted(None, Some(1)));
        assert_eq!(places.give_back(D, MS, Some(('a', 0, 2)), 2 * MS), Some(2));
        assert_eq!(places.give_back(D, MS, Some(('b', 0, 3)), 2 * MS), None);
        assert!(places.sweep(2 * MS, |_, _| false).is_empty());
        assert_eq!(places.sweep(3 * MS, |_, _| false), [3]);
        assert_eq!(places.taken, 0);
        ask(&mut places, D, T, 'a', "a");
        places.give_back(D, MS, Some(('a', 0, 4)), 2 * MS);
        assert_eq!(places.sweep(Duration::ZERO, |id, server| id == D && *server == 4), [4]);
    }
}
