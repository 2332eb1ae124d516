//! The cost of a page after a long history: its own rows and the open window, by the index alone.

use elven_sync::sandbox::{Fault, Gate};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use crate::backfill::add_minutes;
use crate::support::{TestEnv, eventually, output_of, stderr, stdout};

const ROWS: i64 = 1_000_000;

/// A ledger with a long history. PostgreSQL knows that one transaction wrote it, and so expects any other transaction
/// to have written a large part of it too.
async fn scene_with_a_history(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    // The default stamps these rows as the trigger does, in a third of the time.
    scene
        .sql(
            "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
             insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select case n % 10 when 0 then 'other' else 'acme' end, 'a' || n, 'BTC', '2024-01-01Z', n
               from generate_series(1, 1000000) n;
             alter table ledger.balance_snapshots enable always trigger stamp_change_xid;
             alter table ledger.balance_snapshots set (autovacuum_enabled = off);
             analyze ledger.balance_snapshots;",
        )
        .await;
    scene
}

/// Statistics of the reads of a table.
struct Reads {
    /// Rows read by scanning the table.
    scanned: i64,
    /// Entries read of all indexes.
    entries: i64,
    /// Pages of the indexes, including those of a session that writes.
    pages: i64,
}

/// Returns what all sessions have read of the ledger since [`forget`].
async fn reads(scene: &TestEnv) -> Reads {
    reads_of(scene, "ledger.balance_snapshots").await
}

async fn reads_of(scene: &TestEnv, table: &str) -> Reads {
    sessions_end(scene).await;
    statistics_are_new(scene).await;
    let (scanned, entries, pages) = sqlx::query_as(
        "select min(seq_tup_read), sum(idx_tup_read)::bigint, sum(idx_blks_hit + idx_blks_read)::bigint
           from pg_stat_all_tables t join pg_stat_all_indexes i using (relid)
           join pg_statio_all_indexes p using (indexrelid)
          where t.relid = $1::text::regclass",
    )
    .bind(table)
    .fetch_one(&scene.pool)
    .await
    .unwrap();
    Reads { scanned, entries, pages }
}

/// Resets the statistics.
async fn forget(scene: &mut TestEnv) {
    // The statistics of the writes of this test must not be reported after the reset: an idle session may keep them
    // for ten seconds.
    scene.pool.close().await;
    scene.pool = PgPoolOptions::new().max_connections(1).connect(&scene.url).await.unwrap();
    sessions_end(scene).await;
    scene.sql("select pg_stat_reset()").await;
}

/// Waits for the end of all sessions: a session reports its reads when it ends, before it disappears from the list. A
/// session that has written and is known to be open stays.
async fn sessions_end(scene: &TestEnv) {
    let sessions = "select count(*)::text from pg_stat_activity
                     where datname = current_database() and backend_type = 'client backend'
                       and pid <> pg_backend_pid() and state <> 'idle in transaction'";
    eventually("the sessions end", async || scene.text(sessions).await == "0").await;
}

/// Waits for statistics of now: before PostgreSQL 15 they are read from a file that may be half a second old.
async fn statistics_are_new(scene: &TestEnv) {
    let now = scene.text("select clock_timestamp()::text").await;
    let new = "select coalesce(pg_stat_get_snapshot_timestamp() >= $1::text::timestamptz, true)";
    eventually("the statistics are new", async || {
        sqlx::query_scalar(new).bind(&now).fetch_one(&scene.pool).await.unwrap()
    })
    .await;
}

/// The first pass over a long history: each page reads a part of the index, without a sort.
#[sqlx::test(migrations = false)]
async fn page_reads_only_its_own_rows(pool: PgPool) {
    let mut scene = scene_with_a_history(pool).await;
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.entity("acme", "UTC").await;
    forget(&mut scene).await;
    let gate = Gate::new();
    scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
    let mut run = scene.command(&["run"]).spawn().unwrap();
    gate.reached().await;
    // While the first batch is in flight, two pages are read: its own and the next one.
    let waiting = "select count(*)::text from pg_stat_activity where application_name like 'elven-sync%'
                      and datname = current_database() and state <> 'idle'";
    eventually("the next page is read", async || scene.text(waiting).await == "0").await;
    run.kill().await.unwrap();
    let Reads { scanned, entries, .. } = reads(&scene).await;
    assert_eq!(scanned, 0, "the table was scanned");
    assert!(
        (8000..8100).contains(&entries),
        "{entries} entries of the index were read for two pages of 4,000 rows"
    );
}

/// With a transaction that stays open: the probe, the new rows, and none of the rows that were settled since.
#[sqlx::test(migrations = false)]
async fn later_pass_reads_only_new_rows_and_open_window(pool: PgPool) {
    let mut scene = scene_with_a_history(pool).await;
    let output = scene.output(&["entity", "add", "acme", "--timezone", "UTC", "--from-now"]).await;
    assert!(output.status.success());
    let mut slow = PgConnection::connect(&scene.url).await.unwrap();
    let insert = |count: i32, name: &str| {
        sqlx::AssertSqlSafe(format!(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', '{name}' || n, 'BTC', '2024-01-01Z', n from generate_series(1, {count}) n"
        ))
    };
    slow.execute("begin").await.unwrap();
    slow.execute(insert(50, "slow")).await.unwrap();
    scene.pool.execute(insert(20_000, "settled")).await.unwrap();
    assert_eq!(scene.run().await.counters.rows_uploaded, 20_000);
    for (uploaded, window) in [(1000, 50), (0, 50)] {
        if uploaded > 0 {
            scene.pool.execute(insert(uploaded, "new")).await.unwrap();
        }
        forget(&mut scene).await;
        assert_eq!(scene.run().await.counters.rows_uploaded, i64::from(uploaded));
        let Reads { scanned, entries, .. } = reads(&scene).await;
        assert_eq!(scanned, 0, "the table was scanned");
        // The probe, the page, and the count of pending rows each read the window once.
        let bound = i64::from(uploaded) + 3 * window + 50;
        assert!(
            entries <= bound,
            "{entries} entries of the index for {uploaded} new rows, of {ROWS} in the ledger"
        );
    }
    slow.execute("commit").await.unwrap();
    slow.close().await.unwrap();
    forget(&mut scene).await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 50);
    let Reads { scanned, entries, .. } = reads(&scene).await;
    assert!(
        scanned == 0 && entries <= 200,
        "{scanned} rows scanned, {entries} entries read for 50 late rows"
    );
}

/// Rows behind the watermark are read once by their intervals, and once more for the bodies that are rebuilt. Nothing
/// else of the ledger is read.
#[sqlx::test(migrations = false)]
async fn verify_reads_only_the_intervals_of_batches(pool: PgPool) {
    let mut scene = scene_with_a_history(pool).await;
    let output = scene.output(&["entity", "add", "acme", "--timezone", "UTC", "--from-now"]).await;
    assert!(output.status.success());
    // All rows have one transaction, so that only their ids tell one interval from another.
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'new' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 40000) n;
             analyze ledger.balance_snapshots",
        )
        .await;
    assert_eq!(scene.run().await.counters.rows_uploaded, 40_000);
    for (arguments, bodies) in [(&["verify"][..], 20_000), (&["verify", "--deep"], 40_000)] {
        forget(&mut scene).await;
        let output = scene.output(arguments).await;
        assert!(output.status.success(), "{}", stdout(&output));
        // Either index may be used, whichever PostgreSQL finds cheaper where ids ascend with transactions.
        let Reads { scanned, entries, pages } = reads(&scene).await;
        assert_eq!(scanned, 0, "the table was scanned");
        // A page has some 250 entries. A scan that did not end with its interval would read all others.
        assert!(pages < 1200, "{arguments:?}: {pages} pages of the indexes");
        // A few more entries than rows may be read of each interval, to find its end.
        let (least, most) = (40_000 + bodies, 40_000 + bodies + 25 * (40_000 + bodies) / 1000);
        assert!((least..most).contains(&entries), "{arguments:?}: {entries} entries of the indexes");
    }
    // Reads only the row, by its key.
    let row = scene.text("select max(id)::text from ledger.balance_snapshots").await;
    forget(&mut scene).await;
    assert!(scene.output(&["status", "--row", &row]).await.status.success());
    assert_eq!(reads(&scene).await.scanned, 0, "the table was scanned");
}

/// A long history, of which each page of a range reads a part of the index.
#[sqlx::test(migrations = false)]
async fn page_of_a_range_reads_only_its_own_rows(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    scene.set("ELVEN_SYNC_SYNC__REQUESTS_IN_FLIGHT", "1");
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 200_000).await;
    scene.sql("create index by_range on ledger.balance_snapshots (entity_id, captured_at, id)").await;
    scene.sql("analyze ledger.balance_snapshots").await;
    forget(&mut scene).await;
    output_of(&scene, 0, &["backfill", "--from", "2024-03-01", "--to", "2024-03-02"]).await;
    let Reads { scanned, entries, .. } = reads(&scene).await;
    assert_eq!(scanned, 0, "the table was scanned");
    // The rows are counted and read, with the entry after each page. On a slow machine the backfill has several slices,
    // each of which reads again what the one before had read ahead.
    let slices: i64 =
        sqlx::query_scalar("select lease_epoch from elven_sync.sync_state where entity_id = 'acme'")
            .fetch_one(&scene.pool)
            .await
            .unwrap();
    assert!(
        (2 * 1440..3 * 1440 + (slices - 1) * 1000).contains(&entries),
        "{entries} entries of the index for a day of 1,440 rows in {slices} slices"
    );
    assert_eq!(scene.received().len(), 1440);
}

/// A long journal, nearly all of it of one pass and one backfill, as after a first upload, and many entities. Work on
/// one entity reads neither that journal nor the states of other entities.
#[sqlx::test(migrations = false)]
async fn long_journal_is_not_scanned(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    // A heartbeat looks for the states of its worker, and would be counted on a slow machine.
    scene.set("ELVEN_SYNC_SYNC__LEASE", "10m");
    scene
        .sql(
            "insert into elven_sync.entities (entity_id, timezone) select 'aa' || n, 'UTC' from generate_series(1, 10000) n;
             insert into elven_sync.sync_runs (worker, version, tzdata, alive_until, status, finished_at)
             values ('w', 'v', 't', '2024-01-01Z', 'succeeded', '2024-01-01Z');
             insert into elven_sync.sync_passes (entity_id, run_id, target, finished_at)
             values ('aa1', 1, '100:100:', '2024-01-01Z');
             -- As if they were of the backfill that is begun below.
             alter table elven_sync.sync_batches drop constraint sync_batches_backfill_id_fkey;
             insert into elven_sync.sync_batches
                    (run_id, pass_id, backfill_id, entity_id, last_xid, last_at, last_id, row_ids, rows_read, row_count,
                     body_bytes, body_sha256, status, finished_at)
             select 1, case when n % 2 = 0 then 1 end, case when n % 2 = 1 then 1 end, 'aa' || 1 + n % 2 * n / 100,
                    case when n % 2 = 0 then '5'::xid8 end, case when n % 2 = 1 then '2024-01-01Z'::timestamptz end, n, '',
                    1000, 1000, 1, '', 'accepted', '2024-01-01Z'
               from generate_series(1, 200000) n;
             alter table elven_sync.sync_batches set (autovacuum_enabled = off);
             alter table elven_sync.sync_state set (autovacuum_enabled = off);
             analyze elven_sync.sync_batches, elven_sync.sync_state",
        )
        .await;
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 3000).await;
    // Once an hour, a print reads the state of each entity.
    output_of(&scene, 0, &["digest"]).await;
    for arguments in [
        &["run", "--entity", "acme"][..],
        &["run", "--entity", "acme"],
        &["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--entity", "acme"],
        &["verify", "--entity", "acme"],
        &["errors", "list"],
    ] {
        forget(&mut scene).await;
        output_of(&scene, 0, arguments).await;
        for table in ["elven_sync.sync_batches", "elven_sync.sync_state"] {
            let Reads { scanned, entries, pages } = reads_of(&scene, table).await;
            if (arguments[0], table) == ("verify", "elven_sync.sync_state") {
                // The run asks once for the list of entities.
                continue;
            }
            assert!(
                scanned == 0 && entries < 100 && pages < 300,
                "{scanned} rows of {table} scanned, {entries} entries and {pages} pages of its indexes: {arguments:?}"
            );
        }
    }
}

/// What of a pass or a backfill is done is not read again when it is resumed and closed.
#[sqlx::test(migrations = false)]
async fn resuming_and_closing_costs_the_same_however_many_batches_are_done(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "10m");
    scene.set("ELVEN_SYNC_SYNC__BATCH_ROWS", "100");
    scene.entity("acme", "UTC").await;
    add_minutes(&scene, "acme", 3000).await;
    let backfill = ["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--entity", "acme"];
    for (arguments, work) in [(&["run"][..], "pass_id = 1"), (&backfill[..], "backfill_id = 1")] {
        scene.sandbox.set_rules(vec!["forbidden@once:8".parse().unwrap()]);
        output_of(&scene, 1, arguments).await;
        scene.sandbox.set_rules(Vec::new());
        // As if 100,000 batches had been accepted before those.
        let many = format!(
            "insert into elven_sync.sync_batches
                    (batch_id, run_id, pass_id, backfill_id, entity_id, last_xid, last_at, last_id, row_ids, rows_read,
                     row_count, body_bytes, body_sha256, status, finished_at) overriding system value
             select -n, run_id, pass_id, backfill_id, entity_id, last_xid, last_at, last_id || '-' || n, row_ids,
                    rows_read, row_count, body_bytes, body_sha256, 'accepted', finished_at
               from (select * from elven_sync.sync_batches where {work} order by batch_id desc limit 1) b,
                    (select 1 - min(batch_id) as lowest from elven_sync.sync_batches) before,
                    generate_series(lowest, lowest + 99999) n;
             analyze elven_sync.sync_batches"
        );
        scene.pool.execute(AssertSqlSafe(many)).await.unwrap();
        forget(&mut scene).await;
        output_of(&scene, 0, arguments).await;
        let Reads { scanned, entries, pages } = reads_of(&scene, "elven_sync.sync_batches").await;
        assert!(
            scanned == 0 && entries < 1500 && pages < 3000,
            "{scanned} batches scanned, {entries} entries and {pages} pages of their indexes: {arguments:?}"
        );
    }
}

/// A bulk load that is open for long: its rows are not visible, and no statement of a run passes over them.
#[sqlx::test(migrations = false)]
async fn rows_of_an_open_bulk_load_are_not_read(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for entity_id in ["acme", "beta"] {
        scene.entity(entity_id, "UTC").await;
        add_minutes(&scene, entity_id, 50).await;
    }
    assert_eq!(scene.run().await.counters.rows_uploaded, 100);
    let mut load = PgConnection::connect(&scene.url).await.unwrap();
    load.execute(
        "begin;
         insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
         select case n % 2 when 0 then 'acme' else 'beta' end, 'l' || n, 'BTC', '2024-01-01Z', n
           from generate_series(1, 40000) n",
    )
    .await
    .unwrap();
    // With new rows, without new rows, and beside a run that was begun before the load.
    for new_rows in [1, 0] {
        if new_rows > 0 {
            add_minutes(&scene, "acme", new_rows).await;
        }
        forget(&mut scene).await;
        assert_eq!(scene.run().await.counters.rows_uploaded, i64::from(new_rows));
        let Reads { scanned, entries, .. } = reads(&scene).await;
        assert!(
            scanned == 0 && entries < 300,
            "{scanned} rows scanned, {entries} entries read beside an open load of 40,000 rows, {new_rows} new"
        );
        forget(&mut scene).await;
        output_of(&scene, 0, &["status"]).await;
        let entries = reads(&scene).await.entries;
        assert!(entries < 300, "status: {entries} entries read beside an open load of 40,000 rows");
    }
    load.execute("commit").await.unwrap();
    load.close().await.unwrap();
    assert_eq!(scene.run().await.counters.rows_uploaded, 40_000);
}

/// All accounts are captured at one instant, more of them than the connector keeps in memory. Each row is read a
/// bounded number of times, also where each account has two rows.
#[sqlx::test(migrations = false)]
async fn backfill_of_one_instant_reads_each_row_a_bounded_number_of_times(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_SYNC__LEASE", "10m");
    let output = scene.output(&["entity", "add", "acme", "--timezone", "UTC", "--from-now"]).await;
    assert!(output.status.success());
    scene
        .sql(
            "alter table ledger.balance_snapshots disable trigger stamp_change_xid;
             insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 110000) n;
             insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             select 'acme', 'a' || n % 105000, 'BTC', '2024-02-01Z', n from generate_series(1, 210000) n;
             alter table ledger.balance_snapshots enable always trigger stamp_change_xid;
             create index by_range on ledger.balance_snapshots (entity_id, captured_at, id);",
        )
        .await;
    scene.sql("vacuum analyze ledger.balance_snapshots").await;
    for (month, rows, uploaded, most) in
        [("01", 110_000, 110_000, 3 * 110_000), ("02", 210_000, 105_000, 6 * 210_000)]
    {
        forget(&mut scene).await;
        let (from, to) = (format!("2024-{month}-01"), format!("2024-{month}-02"));
        let text = output_of(&scene, 0, &["backfill", "--from", &from, "--to", &to, "--dry-run"]).await;
        assert!(text.contains(&uploaded.to_string()), "{text}");
        let Reads { scanned, entries, .. } = reads(&scene).await;
        assert!(
            scanned <= 700_000 && entries <= most,
            "{scanned} rows scanned and {entries} entries read for {rows} rows of one instant"
        );
    }
}

/// The ids are texts, which a range orders by their bytes.
#[sqlx::test(migrations = false)]
async fn backfill_of_text_ids_reads_each_row_a_bounded_number_of_times(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "books.balances");
    scene
        .sql(
            "create schema books;
             create table books.balances (id text collate \"und-x-icu\" primary key, entity_id text not null,
                    entity_account_id text not null, currency text not null, captured_at timestamptz not null,
                    balance numeric not null);
             insert into books.balances
             select 'row ' || n, 'acme', 'a' || n, 'BTC', '2024-01-01Z', n from generate_series(1, 40000) n;
             insert into books.balances values ('last', 'acme', 'a', 'BTC', '2024-02-01Z', 1)",
        )
        .await;
    output_of(&scene, 0, &["attach", "--backfill-index", "--yes"]).await;
    scene.sql("vacuum analyze books.balances").await;
    output_of(&scene, 0, &["entity", "add", "acme", "--timezone", "UTC", "--from-now"]).await;
    forget(&mut scene).await;
    let range = |from, to| ["backfill", "--from", from, "--to", to];
    let rehearsal = [&range("2024-01-01", "2024-01-02")[..], &["--dry-run"]].concat();
    let text = output_of(&scene, 0, &rehearsal).await;
    assert!(text.contains("40000"), "{text}");
    let Reads { scanned, entries, .. } = reads_of(&scene, "books.balances").await;
    assert!(
        scanned <= 120_000 && entries <= 120_000,
        "{scanned} rows scanned and {entries} entries read for 40000 rows"
    );
    // A backfill looks for the index that attach creates.
    let output = scene.output(&range("2024-02-01", "2024-02-02")).await;
    assert!(output.status.success() && !stderr(&output).contains("index"), "{}", stderr(&output));
}

/// Each resolved error is read a few times, however many are deleted.
#[sqlx::test(migrations = false)]
async fn prune_reads_each_record_a_bounded_number_of_times(pool: PgPool) {
    const ERRORS: i64 = 30_000;
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene
        .sql(
            "insert into elven_sync.sync_runs (worker, version, tzdata, alive_until, status, finished_at)
             values ('w', 'v', 't', '2024-01-01Z', 'succeeded', '2024-01-01Z');
             insert into elven_sync.sync_errors (entity_id, kind, ledger_id, message, resolved_at, resolution)
             select 'acme', 'invalid_row', n, 'm', '2024-01-01Z', 'r' from generate_series(1, 30000) n;
             insert into elven_sync.sync_batches
                    (run_id, entity_id, last_xid, last_id, row_ids, rows_read, row_count, body_bytes, body_sha256,
                     status, finished_at)
             select 1, 'acme', '5'::xid8, n, '', 1, 1, 1, '', 'accepted', '2024-01-01Z'
               from generate_series(1, 30000) n;
             analyze",
        )
        .await;
    forget(&mut scene).await;
    output_of(&scene, 0, &["prune", "--older-than", "90d"]).await;
    for table in ["elven_sync.sync_errors", "elven_sync.sync_batches"] {
        let Reads { scanned, entries, .. } = reads_of(&scene, table).await;
        assert!(
            scanned + entries <= 8 * ERRORS,
            "{table}: {scanned} rows scanned and {entries} entries read to delete {ERRORS}"
        );
    }
    let left = "select concat_ws(' ', (select count(*) from elven_sync.sync_errors),
                                 (select count(*) from elven_sync.sync_batches))";
    assert_eq!(scene.text(left).await, "0 0");
}
