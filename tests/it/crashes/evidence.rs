//! The state after a crash, and the state that the next run has to reach: ledger, journal and API compared.

use std::collections::{BTreeMap, BTreeSet};

use elven_sync::audit::{EntityProof, verify};
use sqlx::{AssertSqlSafe, FromRow};

use super::Case;

use crate::support::is_import;

/// A batch in the journal.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Batch {
    #[sqlx(rename = "batch_id")]
    id: i64,
    status: String,
    attempts: i32,
    ambiguous: bool,
    row_count: i32,
    accounts: Vec<String>,
}

impl Batch {
    /// Whether the outcome of the batch is unknown.
    pub fn is_in_flight(&self) -> bool {
        self.row_count > 0 && (self.status == "unknown" || (self.status == "sending" && self.attempts > 0))
    }

    fn is_done(&self) -> bool {
        self.status == "accepted"
            || self.status == "split"
            || (self.status == "rejected" && self.row_count == 0)
    }
}

/// The state after a process was killed.
#[derive(Debug)]
pub struct Stand {
    batches: Vec<Batch>,
    /// How often the record of each account was accepted.
    arrived: BTreeMap<String, usize>,
}

impl Case {
    /// Asserts that `verify` has no finding, whichever step a process was killed at.
    async fn assert_verified(&self) {
        let proof =
            verify(&self.scene.settings(&[]), &self.database, &self.entities, true, &[]).await.unwrap();
        assert!(proof.entities.iter().all(EntityProof::holds), "{proof:?}");
    }

    pub async fn stand(&self) -> Stand {
        self.assert_verified().await;
        let batches = sqlx::query_as(
            "select batch_id, status, attempts, ambiguous, row_count,
                    array(select s.entity_account_id from elven_sync.batch_row_ids(batch_id) r (id)
                            join ledger.balance_snapshots s on s.id = r.id::bigint) as accounts
               from elven_sync.sync_batches where entity_id = any ($1) order by batch_id",
        );
        let batches = batches.bind(&self.entities).fetch_all(&self.scene.pool).await.unwrap();
        let mut arrived = BTreeMap::new();
        for (account, _) in self.scene.balances() {
            *arrived.entry(account).or_default() += 1;
        }
        Stand { batches, arrived }
    }

    /// Asserts that the refused rows have now arrived: once, unless the journal has a batch of unknown outcome and
    /// marks the accepted batch as ambiguous.
    pub async fn assert_retried(&self) {
        let open = "select count(*)::text from elven_sync.sync_errors
                     where kind = 'rejected_row' and resolved_at is null and entity_id = any (ENTITIES)";
        assert_eq!(self.value(open).await, "0", "rows that are still set aside");
        let now = self.stand().await;
        let is_retry = |batch: &&Batch| batch.row_count > 0 && batch.accounts[0].contains("rejected_row");
        for batch in now.batches.iter().filter(is_retry).filter(|batch| batch.status != "split") {
            let maybe = self.stands[0].in_flight().any(|other| other.accounts == batch.accounts);
            assert!(!maybe || batch.ambiguous || batch.status == "unknown", "{batch:?}");
            let arrived = now.arrived[&batch.accounts[0]];
            assert!(arrived == 1 || (arrived == 2 && maybe), "{arrived} times: {batch:?}");
        }
        self.assert_journal_is_whole().await;
        self.assert_verified().await;
    }

    /// Returns a value of a query in which `ENTITIES` and `RUNS` are replaced by those of the case.
    pub async fn value(&self, sql: &str) -> String {
        let sql = sql.replace("ENTITIES", &format!("array['{}']", self.entities.join("', '")));
        let sql = sql.replace("RUNS", &format!("array{:?}::bigint[]", self.runs));
        let value: Option<Option<String>> =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_optional(&self.scene.pool).await.unwrap();
        value.flatten().unwrap_or_default()
    }
}

impl Stand {
    pub fn in_flight(&self) -> impl Iterator<Item = &Batch> {
        self.batches.iter().filter(|batch| batch.is_in_flight())
    }

    /// Asserts that a later run did nothing to a finished batch, and that a batch that was in flight stays ambiguous.
    fn assert_leads_to(&self, now: &Self) {
        for before in &self.batches {
            let after = now.batches.iter().find(|batch| batch.id == before.id).unwrap();
            if before.is_done() {
                let unchanged = (&after.status, after.attempts, after.ambiguous);
                assert_eq!(unchanged, (&before.status, before.attempts, before.ambiguous), "{before:?}");
            } else if before.is_in_flight() {
                let again = after.attempts > before.attempts || after.row_count == 0;
                assert!(again && after.ambiguous, "{before:?} became {after:?}");
            }
        }
    }
}

impl Case {
    /// Asserts that nothing is missing, that only batches in flight were sent twice, and that the journal records it.
    pub async fn assert_recovered(&self) {
        let now = self.stand().await;
        for (nth, stand) in self.stands.iter().enumerate() {
            stand.assert_leads_to(&now);
            if let Some(next) = self.stands.get(nth + 1) {
                let in_flight: BTreeSet<&String> = stand.in_flight().flat_map(|b| &b.accounts).collect();
                for (account, times) in &next.arrived {
                    let before = stand.arrived.get(account).copied().unwrap_or(0);
                    let may_again = before == 0 || in_flight.contains(account);
                    assert!(*times <= before + usize::from(may_again), "times {account} arrived");
                }
            }
        }
        let ids = |batches: Vec<&Batch>| -> BTreeSet<i64> { batches.iter().map(|b| b.id).collect() };
        let in_flight = ids(self.stands.iter().flat_map(Stand::in_flight).collect());
        let ambiguous = ids(now.batches.iter().filter(|batch| batch.ambiguous).collect());
        assert_eq!(ambiguous, in_flight, "what was in flight, and nothing else: {:?}", now.batches);
        assert!(now.batches.iter().all(Batch::is_done), "{:?}", now.batches);
        self.assert_each_row_arrived(&now).await;
        self.assert_journal_is_whole().await;
    }

    async fn assert_each_row_arrived(&self, now: &Stand) {
        let last = self.stands.last().unwrap();
        let in_flight: BTreeSet<&String> = last.in_flight().flat_map(|batch| &batch.accounts).collect();
        let newest: BTreeMap<String, String> = self.scene.balances().into_iter().collect();
        let rows: Vec<(String, String, Option<String>)> = sqlx::query_as(
            "select entity_account_id, trim_scale(balance)::text,
                    (select string_agg(kind, ' ') from elven_sync.sync_errors e
                      where e.ledger_id = s.id::text and e.resolved_at is null)
               from ledger.balance_snapshots s where entity_id = any ($1)",
        )
        .bind(&self.entities)
        .fetch_all(&self.scene.pool)
        .await
        .unwrap();
        assert!(!rows.is_empty());
        for (account, balance, set_aside) in rows {
            let kind = ["rejected_row", "invalid_row"].into_iter().find(|kind| account.contains(kind));
            assert_eq!(set_aside.as_deref(), kind, "{account}");
            let arrived = now.arrived.get(&account).copied().unwrap_or(0);
            if kind.is_some() {
                assert_eq!(arrived, 0, "times {account} arrived");
                continue;
            }
            assert_eq!(newest[&account], balance, "{account}");
            let before = last.arrived.get(&account).copied().unwrap_or(0);
            let in_flight = in_flight.contains(&account);
            let again = before == 0 || in_flight || self.updated.contains(&account);
            // Of several batches in flight, one may have been on the wire when the process died.
            let on_the_wire = before == 0 && in_flight && !self.one_at_a_time;
            let expected =
                before + usize::from(again)..=before + usize::from(again) + usize::from(on_the_wire);
            assert!(expected.contains(&arrived), "{arrived} times {account} arrived, not {expected:?}");
        }
    }

    /// Asserts that counters agree, passes form a chain, leases are free, and every run has ended or is marked as
    /// killed.
    async fn assert_journal_is_whole(&self) {
        let value = async |sql| self.value(sql).await;
        let in_runs = "select concat_ws(' ', sum(rows_read), sum(rows_uploaded), sum(rows_rejected), sum(rows_superseded))
                         from elven_sync.sync_runs where run_id = any (RUNS)";
        let in_batches = "select concat_ws(' ', sum(rows_read), sum(row_count) filter (where status = 'accepted'),
                                           sum(rows_rejected), sum(rows_superseded))
                            from elven_sync.sync_batches where status not in ('split', 'unknown') and entity_id = any (ENTITIES)";
        assert_eq!(value(in_runs).await, value(in_batches).await, "counters of runs and of batches");
        let in_states =
            "select sum(rows_uploaded)::text from elven_sync.sync_state where entity_id = any (ENTITIES)";
        let uploaded = "select sum(rows_uploaded)::text from elven_sync.sync_runs where run_id = any (RUNS)";
        assert_eq!(value(in_states).await, value(uploaded).await, "rows uploaded by states and by runs");
        let requests = "select sum(requests)::text from elven_sync.sync_runs where run_id = any (RUNS)";
        let requests: usize = value(requests).await.parse().unwrap();
        let imports = self.scene.sandbox.requests().iter().filter(|request| is_import(&request.path)).count();
        let (least, most) = self.unrecorded;
        let unrecorded = imports - requests;
        assert!((least..=most).contains(&unrecorded), "{unrecorded} requests without a recorded answer");
        let open = "select coalesce(string_agg(pass_id::text, ' '), '') from (
                        select pass_id, finished_at, settled,
                               lag(target) over (partition by entity_id order by pass_id) as before
                          from elven_sync.sync_passes where entity_id = any (ENTITIES)) p
                     where finished_at is null or settled::text is distinct from before::text";
        assert_eq!(
            value(open).await,
            "",
            "passes that are open, or begin elsewhere than the one before ended"
        );
        let astray = "select string_agg(entity_id, ' ') from elven_sync.sync_state s
                       where entity_id = any (ENTITIES)
                         and (lease_owner is not null or pass_id is not null or cursor_id is not null
                              or settled::text <> (select target::text from elven_sync.sync_passes p
                                                    where p.entity_id = s.entity_id order by pass_id desc limit 1))";
        assert_eq!(value(astray).await, "", "entities that are leased, in a pass, or stand elsewhere");
        let unwell = "select string_agg(entity_id || ' ' || status, ', ') from elven_sync.sync_health h
                       where entity_id = any (ENTITIES)
                         and (last_error is not null
                              or status <> case when exists (select from elven_sync.sync_errors e
                                                              where e.entity_id = h.entity_id and e.ledger_id is not null
                                                                and e.resolved_at is null) then 'incomplete' else 'ok' end)";
        assert_eq!(value(unwell).await, "", "entities that are not well");
        let runs = "select string_agg(run_id || ' ' || status, ', ') from elven_sync.sync_runs
                     where run_id = any (RUNS) and (status = 'running' or finished_at is null)";
        assert_eq!(value(runs).await, "", "runs that seem to go on");
    }
}
