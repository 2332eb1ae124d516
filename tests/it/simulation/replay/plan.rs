//! A plan: what happens to one entity, in an order that does not depend on time.

use fastrand::Rng;

use super::super::api::is_poison;

/// The rows of an entity have the ids from its number times this on.
pub(super) const IDS_PER_ENTITY: i64 = 1_000;
/// The imports that may go wrong.
const FAULTS: usize = 40;
const ACCOUNTS: [&str; 4] = ["a0", "a1", "a2", "a3"];

/// The accounts that the API knows.
pub(super) fn known_accounts() -> impl Iterator<Item = String> {
    ACCOUNTS.into_iter().map(str::to_owned)
}

/// What happens to an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The import is processed, and the connection is cut.
    AnswerLost,
    /// The connection is cut before anything arrives.
    NothingArrived,
    /// 500, and nothing is kept.
    Failed,
    /// The import is processed, and the answer is 500.
    FailedAfterwards,
    /// 502 with a page of a proxy.
    BadGateway,
    /// 200 with a login page.
    LoginPage,
    /// 400, whatever the import contains.
    Refused,
    /// 429 without a wait.
    Throttled,
    /// 503 without a wait.
    Unavailable,
    /// 403. The plan has it for list calls only.
    Forbidden,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::AnswerLost,
        Self::NothingArrived,
        Self::Failed,
        Self::FailedAfterwards,
        Self::BadGateway,
        Self::LoginPage,
        Self::Refused,
        Self::Throttled,
        Self::Unavailable,
    ];

    /// The rule of the sandbox that does this.
    pub(super) fn rule(self) -> Option<&'static str> {
        Some(match self {
            Self::None => return None,
            Self::AnswerLost => "answer-lost",
            Self::NothingArrived => "cut-before",
            Self::Failed => "error-500",
            Self::FailedAfterwards => "error-500-kept",
            Self::BadGateway => "html-502",
            Self::LoginPage => "html-200",
            Self::Refused => "refuses-all",
            Self::Throttled => "throttle",
            Self::Unavailable => "unavailable",
            Self::Forbidden => "forbidden",
        })
    }
}

/// A row version that a transaction writes.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) id: i64,
    pub(super) account: &'static str,
    pub(super) captured_at_us: i64,
    pub(super) balance: i64,
}

/// The process dies at this import of its run, counted from 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Death {
    pub(super) import: usize,
    /// The API has processed the import.
    pub(super) is_processed: bool,
}

/// One run, and what precedes it.
#[derive(Clone, Debug)]
pub(super) struct Round {
    /// The transactions that commit before the run, one after the other.
    pub(super) transactions: Vec<Vec<Write>>,
    /// The time since the run before is longer than every lease, signature and fence. Otherwise the run follows at once.
    pub(super) is_late: bool,
    pub(super) death: Option<Death>,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) entity: usize,
    pub(super) rounds: Vec<Round>,
    /// By the number of the import, over all runs.
    faults: Vec<Fault>,
    /// The key may import, but not list.
    pub(super) is_import_only: bool,
}

impl Plan {
    pub(super) fn of_seed(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let entity = usize::try_from(seed).unwrap();
        let mut rows: Vec<Write> = Vec::new();
        let mut balance = 0;
        let rounds = (0..random.usize(3..=6)).map(|number| {
            let transactions = random.usize(usize::from(number == 0)..=3);
            let transactions = (0..transactions)
                .map(|_| transaction(&mut random, &mut rows, &mut balance, entity))
                .collect();
            let death = (random.u8(..4) == 0)
                .then(|| Death { import: random.usize(..4), is_processed: random.bool() });
            Round { transactions, is_late: random.bool(), death }
        });
        let rounds = rounds.collect();
        // Of some plans most imports go wrong, of others few.
        let parts = random.u8(1..=7);
        let fault = |random: &mut Rng| {
            let goes_wrong = random.u8(..10) < parts;
            if goes_wrong { random.choice(Fault::ALL).unwrap_or(Fault::None) } else { Fault::None }
        };
        let faults = (0..FAULTS).map(|_| fault(&mut random)).collect();
        let is_import_only = random.u8(..4) == 0;
        Self { entity, rounds, faults, is_import_only }
    }

    /// What happens to the import with this number. The API fails for some row versions, always.
    pub(super) fn fault_of_import(&self, import: usize, balances: &[i64]) -> Fault {
        if balances.iter().any(|balance| is_poison(*balance)) {
            return Fault::Failed;
        }
        self.faults.get(import).copied().unwrap_or(Fault::None)
    }

    /// What happens to a list call.
    pub(super) fn fault_of_list(&self) -> Fault {
        if self.is_import_only { Fault::Forbidden } else { Fault::None }
    }
}

/// A transaction with new rows and new versions of old ones, at most one version of each row.
fn transaction(random: &mut Rng, rows: &mut Vec<Write>, balance: &mut i64, entity: usize) -> Vec<Write> {
    let mut written: Vec<Write> = Vec::new();
    let first = i64::try_from(entity).unwrap() * IDS_PER_ENTITY;
    for _ in 0..random.usize(1..=6) {
        *balance += 1;
        let is_poisoned = random.u8(..25) == 0;
        while is_poison(*balance) != is_poisoned {
            *balance += 1;
        }
        let old = if random.u8(..3) == 0 { random.choice(rows.iter()).cloned() } else { None };
        let new = || Write {
            id: first + i64::try_from(rows.len()).unwrap() + 1,
            account: "",
            captured_at_us: 0,
            balance: 0,
        };
        let is_new = old.is_none();
        let mut write = old.unwrap_or_else(new);
        write.balance = *balance;
        if is_new {
            write.account = match random.u8(..24) {
                0 | 1 => "bad0",
                // Such a row is set aside before it is sent.
                2 => "",
                _ => ACCOUNTS[random.usize(..ACCOUNTS.len())],
            };
            write.captured_at_us = random.i64(0..4) * 1_000_000 + random.i64(0..3) * 1_000;
            rows.push(write.clone());
        }
        written.retain(|before| before.id != write.id);
        written.push(write);
    }
    written
}
