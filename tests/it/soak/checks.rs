//! The checks after the faults, by what the API received and what the ledger holds. `journal` checks the journal.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sqlx::{AssertSqlSafe, Connection, FromRow, PgConnection};

use super::api::Api;
use super::is_refused;
use super::journal::Journal;

/// Maximum number of violations that are shown.
const SHOWN_MAX: usize = 20;

/// A row version that was committed.
#[derive(Clone, Debug, FromRow)]
pub struct Version {
    pub id: i64,
    pub entity_id: String,
    account: String,
    currency: String,
    /// Wall-clock time of the entity, as it is sent.
    datetime: String,
    captured_us: i64,
    balance: String,
    pub xid: i64,
    /// Whether the ledger still holds the row, in any version.
    exists: bool,
    /// Whether the ledger holds this version.
    pub is_current: bool,
}

type Key = (String, String, String);

impl Version {
    fn key(&self) -> Key {
        (self.account.clone(), self.currency.clone(), self.datetime.clone())
    }
}

pub async fn all(url: &str, api: &Api) {
    let mut database = PgConnection::connect(url).await.unwrap();
    let complaints: Vec<String> =
        sqlx::query_scalar("select concat_ws(' ', at, process, what) from soak.complaints order by at")
            .fetch_all(&mut database)
            .await
            .unwrap();
    assert_none("the watchers in the database complain", complaints);
    let sql = "select distinct v.id, v.entity_id, v.entity_account_id as account, v.currency,
                      to_char(v.captured_at at time zone e.timezone, 'YYYY-MM-DD HH24:MI:SS') as datetime,
                      (extract(epoch from v.captured_at) * 1000000)::bigint as captured_us,
                      trim_scale(v.balance)::text as balance, v.change_xid::text::bigint as xid,
                      l.id is not null as exists,
                      l.balance is not distinct from v.balance and l.change_xid = v.change_xid is true as is_current
                 from soak.versions v join elven_sync.entities e using (entity_id)
                 left join ledger.balance_snapshots l on l.id = v.id";
    let versions: Vec<Version> = sqlx::query_as(sql).fetch_all(&mut database).await.unwrap();
    let rows = text(url, "select count(*)::text from ledger.balance_snapshots").await;
    assert_eq!(versions.iter().filter(|version| version.is_current).count().to_string(), rows);
    let journal = Journal::read(&mut database).await;
    journal.check(&mut database, &versions).await;
    check_requests(&mut database, api, &journal, &versions).await;
    check_rows(api, &journal, &versions);
}

/// Each row is accounted for, and the last record that the API received for a key is what the ledger holds.
fn check_rows(api: &Api, journal: &Journal, versions: &[Version]) {
    let by_balance: HashMap<&str, &Version> = versions.iter().map(|v| (v.balance.as_str(), v)).collect();
    let mut wrong = Vec::new();
    let mut received: HashSet<&str> = HashSet::new();
    let mut last: HashMap<Key, &Version> = HashMap::new();
    for record in api.sandbox.received() {
        let key = (record.entity_account_id, record.currency, record.datetime);
        match by_balance.get(record.balance.as_str()) {
            Some(version) if version.key() == key => {
                received.insert(&version.balance);
                last.insert(key, version);
            }
            _ => wrong.push(format!("{key:?} {} was received, and never committed", record.balance)),
        }
    }
    assert_none("of what was received", wrong);

    let mut of_key: HashMap<Key, Vec<&Version>> = HashMap::new();
    for version in versions {
        of_key.entry(version.key()).or_default().push(version);
    }
    let mut wrong = Vec::new();
    for version in versions.iter().filter(|version| version.is_current) {
        let kind = journal.open_error(version);
        let expected = if version.balance == "NaN" {
            Some("invalid_row")
        } else if is_refused(&version.account) {
            Some("rejected_row")
        } else {
            None
        };
        let is_newer = |rival: &Version| (rival.captured_us, rival.id) > (version.captured_us, version.id);
        let has_newer = of_key[&version.key()].iter().any(|v| is_newer(v) && received.contains(&*v.balance));
        let is_received = received.contains(&*version.balance);
        // The error of an earlier version stays open if this version is superseded: `errors retry` resolves it.
        if kind != expected && (expected.is_some() || is_received || !has_newer) {
            wrong.push(format!("{version:?} stands as {kind:?} in sync_errors and not as {expected:?}"));
        }
        if expected.is_none() && !is_received && !has_newer {
            wrong.push(format!("{version:?} was not received, nor anything in its place"));
        }
    }
    assert_none("rows are lost or set aside without need", wrong);

    let mut wrong = Vec::new();
    for (key, versions) in &of_key {
        // A deletion cannot be taken back at the API, and a row that is set aside now may have been received earlier.
        let may_be_last = |v: &Version| !v.exists || journal.open_error(v).is_some();
        let newest = versions
            .iter()
            .filter(|v| v.is_current && journal.open_error(v).is_none())
            .max_by_key(|v| (journal.place(v), v.captured_us, v.id));
        let fits = match (last.get(key), newest) {
            (Some(last), _) if may_be_last(last) => true,
            (last, newest) => last.map(|v| &v.balance) == newest.map(|v| &v.balance),
        };
        if !fits {
            wrong.push(format!("{key:?}: received last: {:?}; in the ledger: {newest:?}", last.get(key)));
        }
    }
    assert_none("what was received last is not what the ledger holds", wrong);
}

/// Every request was announced, every batch that counts as accepted was accepted, and every record that arrived twice
/// belongs to an ambiguous batch.
async fn check_requests(database: &mut PgConnection, api: &Api, journal: &Journal, versions: &[Version]) {
    let sends: Vec<(i64, String)> =
        sqlx::query_as("select batch_id, body_sha256 from soak.sends").fetch_all(database).await.unwrap();
    let mut announced: HashMap<&str, usize> = HashMap::new();
    let mut batches: HashMap<&str, BTreeSet<i64>> = HashMap::new();
    for (batch_id, sha256) in &sends {
        *announced.entry(sha256).or_default() += 1;
        batches.entry(sha256).or_default().insert(*batch_id);
    }
    let imports = api.imports();
    let mut arrived: HashMap<&str, usize> = HashMap::new();
    for import in imports.iter().filter(|import| !import.body_sha256.is_empty()) {
        *arrived.entry(&import.body_sha256).or_default() += 1;
    }
    let accepted: BTreeMap<u64, &str> =
        imports.iter().filter(|import| import.records > 0).map(|i| (i.seq, &*i.body_sha256)).collect();
    let mut wrong = Vec::new();
    for (sha256, times) in arrived {
        let announced = announced.get(sha256).copied().unwrap_or(0);
        if times > announced {
            wrong.push(format!("{sha256} arrived {times} times and was announced {announced} times"));
        }
    }
    let bodies: HashSet<&str> = accepted.values().copied().collect();
    for batch in journal.batches.values().filter(|batch| batch.status == "accepted" && batch.row_count > 0) {
        if !bodies.contains(&*batch.body_sha256) {
            wrong.push(format!("the API never accepted {batch:?}"));
        }
    }
    let by_balance: HashMap<&str, &Version> = versions.iter().map(|v| (v.balance.as_str(), v)).collect();
    let mut requests: HashMap<String, Vec<u64>> = HashMap::new();
    for record in api.sandbox.received() {
        requests.entry(record.balance).or_default().push(record.request);
    }
    for (balance, requests) in requests.iter().filter(|(_, requests)| requests.len() > 1) {
        let batches: BTreeSet<i64> =
            requests.iter().filter_map(|seq| batches.get(accepted[seq])).flatten().copied().collect();
        let roots: BTreeSet<i64> = batches.iter().map(|batch_id| journal.root(*batch_id)).collect();
        let is_known = batches.iter().any(|batch_id| journal.batches[batch_id].ambiguous);
        if roots.len() != 1 || !is_known {
            wrong.push(format!(
                "{:?} was received by requests {requests:?}, of batches {batches:?}, parts of {roots:?}",
                by_balance.get(&**balance)
            ));
        }
    }
    assert_none("of the requests", wrong);
}

/// Fails with a list of violations, if there are any.
pub fn assert_none(what: &str, wrong: Vec<String>) {
    let (count, shown) = (wrong.len(), wrong.into_iter().take(SHOWN_MAX).collect::<Vec<_>>().join("\n"));
    assert!(count == 0, "{what}: {count} times, of which\n{shown}");
}

/// Returns a single value as text.
pub async fn text(url: &str, sql: &str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let value: Option<String> =
        sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    value.unwrap_or_else(|| "NULL".to_owned())
}
