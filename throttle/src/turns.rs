//! Whose turn it is when tenants wait for the same thing: deficit round robin (Shreedhar and Varghese, SIGCOMM 1995).
//!
//! What is shared out is time: a tenant's balance pays for how long it holds what it was given, so that one with long
//! transactions gets fewer of them than one with short ones, and nobody gets more by asking more often. How long a turn
//! takes is known only when it is over: what such turns took lately is charged first, and the difference afterwards.

use quorate_model::ServerId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What a tenant is given in each round, microseconds.
const QUANTUM: i64 = 10_000;
/// A longer turn is charged as this, microseconds: who held something for an hour is not shut out for one.
const MAX_CHARGE: i64 = 10_000_000;
/// What a first turn is taken to last, microseconds.
const FIRST_GUESS: i64 = 1_000;

/// The tenants that wait, and what they may still use in this round.
#[derive(Debug, Default)]
pub struct Turns {
    /// Those that wait; the first is served until its balance is used up.
    ring: VecDeque<ServerId>,
    accounts: BTreeMap<ServerId, Account>,
}

#[derive(Debug)]
struct Account {
    balance: i64,
    /// How long a turn takes, smoothed.
    usual: i64,
    /// Turns that were given and are not over.
    open: u32,
}

impl Turns {
    /// Something of that tenant waits.
    pub fn wait(&mut self, tenant: ServerId) {
        if !self.ring.contains(&tenant) {
            self.ring.push_back(tenant);
        }
        self.account(tenant);
    }

    /// Nothing of that tenant waits any more: what it has not used is not kept for later.
    pub fn rest(&mut self, tenant: ServerId) {
        self.ring.retain(|waiting| *waiting != tenant);
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.balance = account.balance.min(0);
        }
        if self.ring.is_empty() {
            // Nobody was kept from anything: debts are forgiven.
            self.accounts.retain(|_, account| account.open > 0);
            self.accounts.values_mut().for_each(|account| account.balance = 0);
        }
    }

    /// Who is next, of those that wait and that can be served now.
    pub fn next(&mut self, can_be_served: impl Fn(ServerId) -> bool) -> Option<ServerId> {
        let able: Vec<ServerId> = self.ring.iter().copied().filter(|tenant| can_be_served(*tenant)).collect();
        if let Some(tenant) = able.iter().find(|tenant| self.balance(**tenant) > 0) {
            return Some(*tenant);
        }
        // As many rounds at once as it takes for one of them to have something.
        let rounds = able.iter().map(|tenant| -self.balance(*tenant) / QUANTUM + 1).min()?;
        for tenant in &able {
            self.account(*tenant).balance += rounds * QUANTUM;
        }
        able.into_iter().find(|tenant| self.balance(*tenant) > 0)
    }

    /// A turn begins.
    pub fn begin(&mut self, tenant: ServerId) {
        let account = self.account(tenant);
        account.open += 1;
        let usual = account.usual;
        self.charge(tenant, usual);
    }

    /// It is over, and has taken so long.
    pub fn end(&mut self, tenant: ServerId, took: Duration) {
        let took = i64::try_from(took.as_micros()).unwrap_or(MAX_CHARGE).clamp(1, MAX_CHARGE);
        let account = self.account(tenant);
        let charged = account.usual;
        account.open = account.open.saturating_sub(1);
        account.usual += (took - account.usual) / 8;
        let is_over = account.open == 0;
        if self.ring.is_empty() {
            if is_over {
                self.accounts.remove(&tenant);
            }
            return;
        }
        self.charge(tenant, took - charged);
    }

    fn charge(&mut self, tenant: ServerId, cost: i64) {
        let account = self.account(tenant);
        account.balance -= cost;
        if account.balance <= 0
            && let Some(at) = self.ring.iter().position(|waiting| *waiting == tenant)
        {
            // Its turn in this round is over.
            self.ring.remove(at);
            self.ring.push_back(tenant);
        }
    }

    fn account(&mut self, tenant: ServerId) -> &mut Account {
        self.accounts.entry(tenant).or_insert(Account { balance: 0, usual: FIRST_GUESS, open: 0 })
    }

    fn balance(&self, tenant: ServerId) -> i64 {
        self.accounts.get(&tenant).map_or(0, |account| account.balance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);
    const C: ServerId = ServerId(3);

    /// Serves `turns` turns, one at a time, of tenants whose turns take so many milliseconds. How often each was served.
    fn serve(turns: &mut Turns, of: &[(ServerId, u64)], count: usize) -> BTreeMap<ServerId, u64> {
        let mut served = BTreeMap::new();
        for _ in 0..count {
            let Some(tenant) = turns.next(|_| true) else { break };
            turns.begin(tenant);
            let ms = of.iter().find(|(who, _)| *who == tenant).map_or(1, |(_, ms)| *ms);
            turns.end(tenant, Duration::from_millis(ms));
            *served.entry(tenant).or_default() += 1;
        }
        served
    }

    #[test]
    fn who_has_long_turns_gets_fewer_of_them() {
        let mut turns = Turns::default();
        for tenant in [A, B, C] {
            turns.wait(tenant);
        }
        let served = serve(&mut turns, &[(A, 1), (B, 10), (C, 100)], 12_000);
        let time = |tenant, ms| (served[&tenant] * ms) as f64;
        let (a, b, c) = (time(A, 1), time(B, 10), time(C, 100));
        for (name, one) in [("b", b), ("c", c)] {
            assert!((0.9..1.1).contains(&(one / a)), "{name}: {served:?}");
        }
    }

    #[test]
    fn who_waits_is_served_within_a_round() {
        let mut turns = Turns::default();
        turns.wait(A);
        serve(&mut turns, &[(A, 1)], 1_000);
        turns.wait(B);
        let served = serve(&mut turns, &[(A, 1), (B, 1)], 25);
        assert!(served.get(&B).is_some_and(|n| *n >= 5), "{served:?}");
    }

    #[test]
    fn many_turns_at_once_are_charged_before_they_are_over() {
        let mut turns = Turns::default();
        turns.wait(A);
        // Its turns take long.
        serve(&mut turns, &[(A, 50)], 50);
        turns.wait(B);
        let mut begun = BTreeMap::<ServerId, u32>::new();
        for _ in 0..20 {
            let tenant = turns.next(|_| true).unwrap_or(C);
            turns.begin(tenant);
            *begun.entry(tenant).or_default() += 1;
        }
        assert!(begun[&B] >= 10, "{begun:?}");
    }

    #[test]
    fn only_those_that_can_be_served_are_and_those_that_rest_are_forgotten() {
        let mut turns = Turns::default();
        assert_eq!(turns.next(|_| true), None);
        turns.wait(A);
        turns.wait(B);
        assert_eq!(turns.next(|tenant| tenant == B), Some(B));
        assert_eq!(turns.next(|_| false), None);
        turns.begin(B);
        turns.rest(A);
        turns.rest(B);
        assert_eq!(turns.next(|_| true), None);
        turns.end(B, Duration::from_secs(5));
        assert!(turns.accounts.is_empty());
    }
}
