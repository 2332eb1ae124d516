//! The model of the ledger: transactions that write rows, and the reads of a lane.

use std::sync::Arc;

use futures_util::FutureExt;

use elven_sync::align::Names;
use elven_sync::ledger::{
    LaneLedger, LedgerError, Mapping, NewRows, Pages, PassRead, ProbeResult, Progress, Read, Row, Unreadables,
};
use elven_sync::watermark::{Cursor, LedgerId, Order, Snapshot, segments_between};

use super::process::Process;
use super::world::{Sabotage, State, Version, World};

pub const CLUSTER: i64 = 7;
const TABLE: &str = "ledger.balance_snapshots";
const MAPPING: &str = r#"{"relation":"1:ledger.balance_snapshots","columns":{},"api_version":3}"#;
const ACCOUNTS: u64 = 4;
const SECONDS: u64 = 4;

#[derive(Debug)]
pub struct ModelLedger {
    process: Arc<Process>,
    mapping: Mapping,
    json: Arc<str>,
}

impl ModelLedger {
    pub fn new(process: Arc<Process>) -> Self {
        Self { process, mapping: serde_json::from_str(MAPPING).unwrap(), json: MAPPING.into() }
    }

    fn probe(&self, lane: &Progress) -> ProbeResult {
        let state = self.process.world.state();
        let has_new_rows = state.current.values().any(|version| {
            entity_name(version.entity) == lane.entity_id
                && !lane.settled.as_ref().is_some_and(|settled| settled.contains(version.xid))
        });
        let entities = [(lane.entity_id.clone(), NewRows { has_new_rows, ..NewRows::default() })];
        ProbeResult {
            target: state.snapshot(),
            system_identifier: CLUSTER,
            entities: entities.into(),
            unreadable: Unreadables::new(),
        }
    }
}

pub fn entity_name(entity: usize) -> String {
    format!("e{entity}")
}

/// A `numeric` in binary form (its integer digits to the base of 10,000).
pub fn numeric(mut value: i64) -> Vec<u8> {
    let mut digits: Vec<i16> = Vec::new();
    while value > 0 {
        digits.insert(0, i16::try_from(value % 10_000).unwrap());
        value /= 10_000;
    }
    let count = i16::try_from(digits.len()).unwrap();
    let header = [count, count - 1, 0, 0];
    header.iter().chain(&digits).flat_map(|part| part.to_be_bytes()).collect()
}

pub fn row(version: &Version) -> Row {
    let balance = numeric(version.balance);
    let id = LedgerId::Number(version.id);
    let (account, at) = (Some(version.account.as_str()), Some(version.captured_at_us));
    Row::new(version.xid, id, account, Some("BTC"), at, Some(&balance))
}

/// The rows of a pass, read a page at a time: each page sees the rows as they are then.
#[derive(Debug)]
struct ModelPages {
    process: Arc<Process>,
    entity_id: String,
    settled: Option<Snapshot>,
    target: Snapshot,
    after: Option<Cursor>,
    until: Option<Cursor>,
    page_rows: usize,
}

fn place(cursor: &Cursor) -> (u64, i64) {
    (cursor.xid().unwrap(), cursor.id.parse().unwrap())
}

impl ModelPages {
    fn page(&mut self) -> Option<Vec<Row>> {
        let world = &self.process.world;
        let state = world.state();
        let (settled, target) = (self.settled.as_ref(), &self.target);
        let segments = segments_between(settled, target, self.after.as_ref(), self.until.as_ref());
        let (after, until) = (self.after.as_ref().map(place), self.until.as_ref().map(place));
        let mut found: Vec<&Version> = state
            .current
            .values()
            .filter(|version| {
                let at = (version.xid, version.id);
                entity_name(version.entity) == self.entity_id
                    && self.target.contains(version.xid)
                    && segments.iter().any(|segment| (segment.from..segment.until).contains(&version.xid))
                    && after.is_none_or(|after| at > after)
                    && until.is_none_or(|until| at <= until)
            })
            .collect();
        found.sort_by_key(|version| (version.xid, version.id));
        found.truncate(self.page_rows);
        let last = found.last().map(|version| Cursor {
            at: elven_sync::watermark::At::Xid(version.xid),
            id: version.id.to_string(),
        });
        if world.is(Sabotage::RowSkipped) && found.len() > 2 {
            found.remove(1);
        }
        self.after = Some(last?);
        Some(found.into_iter().map(row).collect())
    }
}

impl Pages for ModelPages {
    fn order(&self) -> Order {
        Order::ChangeXid
    }

    fn next_page(&mut self) -> Read<'_, Option<Vec<Row>>> {
        async {
            self.process.clone().step(0, 20).await;
            Ok::<_, LedgerError>(self.page())
        }
        .boxed()
    }
}

impl LaneLedger for ModelLedger {
    fn name(&self) -> &str {
        TABLE
    }

    fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn mapping_json(&self) -> &Arc<str> {
        &self.json
    }

    fn probe_entity<'a>(&'a self, lane: &'a Progress) -> Read<'a, ProbeResult> {
        async {
            self.process.step(0, 10).await;
            Ok(self.probe(lane))
        }
        .boxed()
    }

    fn pages<'a>(&'a self, reading: PassRead<'a>) -> Read<'a, Box<dyn Pages>> {
        let pages = ModelPages {
            process: self.process.clone(),
            entity_id: reading.entity_id.to_owned(),
            settled: reading.settled.cloned(),
            target: reading.target.clone(),
            after: reading.after,
            until: reading.until,
            page_rows: reading.page_rows,
        };
        async { Ok(Box::new(pages) as Box<dyn Pages>) }.boxed()
    }

    fn rows_with_id<'a>(&'a self, entity_id: &'a str, id: &'a str) -> Read<'a, Vec<Row>> {
        async move {
            self.process.step(0, 10).await;
            let state = self.process.world.state();
            let found = state
                .current
                .get(&id.parse().unwrap())
                .filter(|found| entity_name(found.entity) == entity_id);
            Ok(found.into_iter().map(row).collect())
        }
        .boxed()
    }

    /// The names of the model are not mapped.
    fn has_shared_key<'a>(&'a self, _: &'a str, _: &'a Names) -> Read<'a, bool> {
        async { Ok(false) }.boxed()
    }

    fn same_second<'a>(&'a self, _: &'a str, _: &'a [Row], _: &'a Names) -> Read<'a, Vec<Row>> {
        async { Ok(Vec::new()) }.boxed()
    }

    fn rivals<'a>(&'a self, entity_id: &'a str, of: &'a Row, _: &'a Names) -> Read<'a, Vec<Row>> {
        async move {
            self.process.step(0, 10).await;
            let state = self.process.world.state();
            let same = |version: &&Version| {
                entity_name(version.entity) == entity_id && Some(version.account.as_str()) == of.account()
            };
            Ok(state.current.values().filter(same).map(row).collect())
        }
        .boxed()
    }
}

/// A client of the ledger: its transactions write new rows and new versions of old ones, and some are rolled back.
pub async fn write_rows(world: Arc<World>, entities: usize) {
    while world.has_trouble() {
        world.pause(10, 3_000).await;
        let xid = world.state().begin();
        for _ in 0..=world.below(5) {
            let mut state = world.state();
            let state: &mut State = &mut state;
            let count = state.versions.iter().map(|version| version.id).max().unwrap_or(0);
            state.balance += 1;
            let balance = state.balance;
            // A row that another open transaction has written is locked.
            let old = if world.below(3) == 0 { known_row(&world, state, xid, count) } else { None };
            let version = old.unwrap_or_else(|| {
                let kind = if world.below(25) == 0 { "bad" } else { "a" };
                let entity = usize::try_from(world.below(entities as u64)).unwrap();
                Version {
                    xid,
                    id: count + 1,
                    entity,
                    account: format!("{kind}{}-{entity}", world.below(ACCOUNTS)),
                    captured_at_us: i64::try_from(world.below(SECONDS) * 1_000_000 + world.below(3) * 1000)
                        .unwrap(),
                    balance,
                    is_committed: false,
                }
            });
            state.versions.retain(|known| known.xid != xid || known.id != version.id);
            state.versions.push(Version { balance, ..version });
        }
        world.pause(0, 2_000).await;
        let is_kept = world.below(10) > 0;
        world.log(|| {
            format!("ledger: transaction {xid} {}", if is_kept { "commits" } else { "is rolled back" })
        });
        let mut state = world.state();
        if is_kept { state.commit(xid) } else { state.abort(xid) }
    }
}

fn known_row(world: &World, state: &State, xid: u64, count: i64) -> Option<Version> {
    let id = i64::try_from(world.below(u64::try_from(count).unwrap())).unwrap() + 1;
    let versions = || state.versions.iter().filter(|version| version.id == id);
    let is_locked = versions().any(|version| !version.is_committed && version.xid != xid);
    let newest = versions().max_by_key(|version| version.xid)?;
    (!is_locked).then(|| Version { xid, is_committed: false, ..newest.clone() })
}
