//! Time zone rules: which ones are used, what a change of them means, and what the database server makes of the same
//! instants. The folders of `tests/data/zoneinfo` have made-up rules that no machine has.

use sqlx::{AssertSqlSafe, PgPool};

use elven_sync::sandbox::Fault;

use crate::support::{TestEnv, said, stderr, stdout};
use crate::verify::{findings, proof};

const ZONEINFO: &str = "ELVEN_SYNC_TIME__ZONEINFO";

fn compiled(name: &str) -> String {
    format!("{}/tests/data/zoneinfo/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Registers an entity with a row for each instant, named like its zone.
async fn add(scene: &TestEnv, zone: &str, instants: &[&str]) {
    for instant in instants {
        sqlx::query(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
             values ($1, $1, 'BTC', $2::timestamptz, 1)",
        )
        .bind(zone)
        .bind(sqlx::types::chrono::DateTime::parse_from_rfc3339(instant).unwrap())
        .execute(&scene.pool)
        .await
        .unwrap();
    }
}

/// What was received, without the balance.
fn times(scene: &TestEnv) -> Vec<String> {
    scene.received().into_iter().map(|r| r.replace(" BTC ", " ").trim_end_matches(" 1").to_owned()).collect()
}

async fn run(scene: &TestEnv) -> String {
    said(scene, 0, &["run"]).await
}

#[sqlx::test(migrations = false)]
async fn rows_of_2026_are_sent_by_the_rules_of_2026(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set(ZONEINFO, "bundled");
    scene.set("TZDIR", &compiled("newer"));
    let cases = [
        ("Africa/Casablanca", "2026-11-29T12:00:00Z", "2026-11-29 12:00:00"),
        ("America/Edmonton", "2026-11-29T12:00:00Z", "2026-11-29 06:00:00"),
        ("America/Havana", "2026-11-29T12:00:00Z", "2026-11-29 08:00:00"),
        ("America/Inuvik", "2026-11-29T12:00:00Z", "2026-11-29 06:00:00"),
        ("America/Vancouver", "2026-11-29T12:00:00Z", "2026-11-29 05:00:00"),
        ("America/Winnipeg", "2026-11-29T12:00:00Z", "2026-11-29 07:00:00"),
        ("Australia/Sydney", "2150-07-01T12:00:00Z", "2150-07-01 22:00:00"),
        ("Europe/Chisinau", "2026-03-29T00:30:00Z", "2026-03-29 02:30:00"),
        ("Europe/Zurich", "2100-07-01T12:00:00Z", "2100-07-01 14:00:00"),
        ("Pacific/Kiritimati", "9999-12-31T09:59:59Z", "9999-12-31 23:59:59"),
    ];
    for (zone, instant, _) in cases {
        scene.entity(zone, zone).await;
        add(&scene, zone, &[instant]).await;
    }
    run(&scene).await;
    assert_eq!(times(&scene), cases.map(|(zone, _, local)| format!("{zone} {local}")));
    let recorded = "select string_agg(distinct r.tzdata || '|' || split_part(b.zone_rules, ' ', 1) || '|' || b.timezone, ',')
                      from elven_sync.sync_runs r join elven_sync.sync_batches b using (run_id) where b.entity_id like 'Eu%Z%'";
    assert_eq!(scene.text(recorded).await, "2026f bundled|2026f|Europe/Zurich");
}

#[sqlx::test(migrations = false)]
async fn the_newest_rules_that_the_machine_has_are_used(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for zone in ["Europe/Zurich", "Asia/Tokyo"] {
        scene.entity(zone, zone).await;
    }
    // A zone that only the newer rules have can be registered under them, and is refused elsewhere.
    let newer = compiled("newer");
    assert!(
        said(&scene, 1, &["entity", "add", "isle", "--timezone", "Europe/Atlantis"])
            .await
            .contains("not an IANA")
    );
    scene.set("TZDIR", &newer);
    said(&scene, 0, &["entity", "add", "Europe/Atlantis", "--timezone", "Europe/Atlantis"]).await;
    for zone in ["Europe/Zurich", "Asia/Tokyo", "Europe/Atlantis"] {
        add(&scene, zone, &["2026-12-01T12:00:00Z"]).await;
    }
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        times(&scene),
        [
            "Asia/Tokyo 2026-12-01 21:00:00",
            "Europe/Atlantis 2026-12-01 12:45:00",
            "Europe/Zurich 2026-12-01 14:00:00",
        ]
    );
    assert!(stderr(&output).contains("has no zone Asia/Tokyo"), "{}", stderr(&output));
    let rules = "select string_agg(timezone || ' ' || regexp_replace(zone_rules, ' [0-9a-f]+$', ''), ',' order by timezone)
                   from elven_sync.sync_batches";
    assert_eq!(
        scene.text(rules).await,
        format!("Asia/Tokyo 2026f bundled,Europe/Atlantis 2099a {newer},Europe/Zurich 2099a {newer}")
    );
    assert_eq!(scene.text("select tzdata from elven_sync.sync_runs").await, format!("2099a {newer}"));
    // Older ones are used only when that is said.
    scene.set("TZDIR", &compiled("older"));
    scene.set(ZONEINFO, &compiled("older"));
    add(&scene, "Europe/Zurich", &["2027-12-01T12:00:00Z"]).await;
    scene.sql("delete from elven_sync.entities where entity_id = 'Europe/Atlantis'; delete from ledger.balance_snapshots where entity_id = 'Europe/Atlantis'").await;
    run(&scene).await;
    assert_eq!(times(&scene).last().unwrap(), "Europe/Zurich 2027-12-01 13:00:00");
    assert!(
        scene
            .text("select max(tzdata) filter (where run_id = 2) from elven_sync.sync_runs")
            .await
            .starts_with("2019c /")
    );
}

#[sqlx::test(migrations = false)]
async fn a_change_of_the_rules_is_reported_once_with_the_rows_and_the_backfill(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set(ZONEINFO, &compiled("older"));
    scene.entity("Europe/Zurich", "Europe/Zurich").await;
    scene.entity("Asia/Tokyo", "Asia/Tokyo").await;
    let instants =
        ["2026-07-01T12:00:00Z", "2026-12-01T12:00:00.5Z", "2026-12-02T12:00:00Z", "2027-07-01T12:00:00Z"];
    for zone in ["Europe/Zurich", "Asia/Tokyo"] {
        add(&scene, zone, &instants).await;
    }
    assert!(!run(&scene).await.contains("wall-clock time"));
    assert!(times(&scene).contains(&"Europe/Zurich 2026-12-01 13:00:00".to_owned()));

    // Rows that come now are sent right, and do not count.
    scene.set(ZONEINFO, &compiled("newer"));
    add(&scene, "Europe/Zurich", &["2026-12-03T12:00:00Z"]).await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0));
    let backfill =
        "elven-sync backfill --entity 'Europe/Zurich' --from 2026-12-01T12:00:00Z --to 2026-12-02T12:00:01Z";
    let expected = format!(
        "The wall-clock time changes for 2 uploaded rows captured from 2026-12-01T12:00:00Z to 2026-12-02T12:00:00Z; the \
         records with the earlier times stay at Elven until they are deleted there; hint: {backfill}"
    );
    for text in [stdout(&output), stderr(&output)] {
        assert_eq!(text.matches(&expected).count(), 1, "{text}");
        assert!(text.contains("earlier uploads were made by 2019c /"), "{text}");
        assert!(!text.contains("Asia/Tokyo`"), "{text}");
    }
    let fact = "select concat_ws('|', value ->> 'timezone', left(value ->> 'rules', 5), value -> 'changed' ->> 'rows',
                                 value -> 'changed' ->> 'backfill')
                  from elven_sync.sync_facts where name = 'zone_rules' and entity_id = 'Europe/Zurich'";
    assert_eq!(scene.text(fact).await, format!("Europe/Zurich|2099a|2|{backfill}"));
    let again = run(&scene).await;
    assert!(!again.contains("wall-clock time"), "{again}");

    // What was said can be pasted, and sends the present times.
    let words: Vec<String> =
        backfill.split_whitespace().skip(1).map(|word| word.trim_matches('\'').to_owned()).collect();
    said(&scene, 0, &words.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let received = times(&scene);
    for time in ["2026-12-01 14:00:00", "2026-12-02 14:00:00", "2026-12-03 14:00:00"] {
        assert!(received.contains(&format!("Europe/Zurich {time}")), "{time} in {received:?}");
    }
    assert_eq!(received.len(), 11, "two rows were sent again");
}

/// Earlier versions recorded only the version of the rules of a run, and had those of 2025b.
#[sqlx::test(migrations = false)]
async fn uploads_of_a_version_that_recorded_no_rules_are_compared_with_its_rules(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set(ZONEINFO, "bundled");
    for zone in ["America/Vancouver", "Europe/Zurich"] {
        scene.entity(zone, zone).await;
        add(&scene, zone, &["2026-07-01T12:00:00Z", "2026-11-29T12:00:00Z", "2100-07-01T12:00:00Z"]).await;
    }
    // One that has uploaded nothing has nothing to be told of.
    scene.entity("America/Winnipeg", "America/Winnipeg").await;
    run(&scene).await;
    let forget = "update elven_sync.sync_runs set tzdata = '2025b'; update elven_sync.sync_batches set zone_rules = null;
                  truncate elven_sync.sync_facts, elven_sync.sync_zone_rules";
    scene.sql(forget).await;
    let text = run(&scene).await;
    assert_eq!(text.matches("note: entity").count(), 2, "{text}");
    assert!(text.contains("earlier uploads were made by 2025b. The wall-clock time changes for 2 uploaded rows captured from 2026-11-29T12:00:00Z to 2100-07-01T12:00:00Z"), "{text}");
    assert!(
        text.contains("--entity 'Europe/Zurich' --from 2100-07-01T12:00:00Z --to 2100-07-01T12:00:01Z"),
        "{text}"
    );
    assert!(!run(&scene).await.contains("note: entity"));
    // Each entity is compared with its own last run, and not with that of the installation.
    scene.sql(forget).await;
    let only = ["run", "--entity", "Europe/Zurich"];
    assert!(said(&scene, 0, &only).await.contains("note: entity `Europe/Zurich`"));
    assert!(run(&scene).await.contains("note: entity `America/Vancouver`"));
    // Rules that are not known: that is said, too.
    scene.sql(forget).await;
    scene.sql("update elven_sync.sync_runs set tzdata = '2011k'").await;
    let text = run(&scene).await;
    assert!(text.contains("made by 2011k, which are not known to this program"), "{text}");
    assert!(!run(&scene).await.contains("note: entity"));
}

/// What is in an open pass was uploaded as well; what `--from-now` has skipped was not.
#[sqlx::test(migrations = false)]
async fn rows_that_were_never_uploaded_do_not_count(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set(ZONEINFO, &compiled("older"));
    add(&scene, "Europe/Zurich", &["2026-12-01T12:00:00Z"; 3]).await;
    said(&scene, 0, &["entity", "add", "Europe/Zurich", "--timezone", "Europe/Zurich", "--from-now"]).await;
    add(&scene, "Europe/Zurich", &["2026-12-02T12:00:00Z"]).await;
    run(&scene).await;
    scene.set(ZONEINFO, &compiled("newer"));
    let text = run(&scene).await;
    assert!(
        text.contains("1 uploaded row captured from 2026-12-02T12:00:00Z to 2026-12-02T12:00:00Z"),
        "{text}"
    );
    // Another zone is no change of rules: the command that changes it says what that means.
    scene.sql("update elven_sync.entities set timezone = 'America/Vancouver'").await;
    assert!(!run(&scene).await.contains(" captured from "));
}

#[sqlx::test(migrations = false)]
async fn other_rules_of_the_database_server_are_reported_once_per_change(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zurich").await;
    scene.entity("tokyo", "Asia/Tokyo").await;
    let (newer, older) = (compiled("newer"), compiled("older"));
    let differs = "the rules of the database server differ from those in use (2099a";
    scene.set(ZONEINFO, &older);
    let text = run(&scene).await;
    assert!(!text.contains("database server"), "{text}");
    scene.set(ZONEINFO, &newer);
    let text = run(&scene).await;
    assert!(text.contains(&format!("note: time zone Europe/Zurich: {differs}")), "{text}");
    assert!(text.contains("hint: update the time zone data of the database server"), "{text}");
    assert!(!text.contains("time zone Asia/Tokyo"), "{text}");
    let fact = "select string_agg(zone || ' ' || left(v.value ->> 'rules', 5), ',' order by zone)
                  from elven_sync.sync_facts f cross join jsonb_each(f.value) v (zone, value) where f.name = 'server_zone_rules'";
    assert_eq!(scene.text(fact).await, "Europe/Zurich 2099a");
    assert!(!run(&scene).await.contains("database server"), "once");
    // Another zone, which the server does not know at all.
    scene
        .sql("insert into elven_sync.entities (entity_id, timezone) values ('isle', 'Europe/Atlantis')")
        .await;
    let text = run(&scene).await;
    assert!(
        text.contains("note: time zone Europe/Atlantis")
            && text.contains("the server does not know the zone"),
        "{text}"
    );
    assert!(!text.contains("note: time zone Europe/Zurich"), "{text}");
    // A run of one entity says nothing of the others, and forgets nothing of them.
    assert!(!said(&scene, 0, &["run", "--entity", "tokyo"]).await.contains("database server"));
    assert!(!run(&scene).await.contains("database server"));
    assert_eq!(scene.text(fact).await, "Europe/Atlantis 2099a,Europe/Zurich 2099a");
    // Once they agree that is noted, and the next difference is reported again.
    scene.sql("delete from elven_sync.entities where entity_id = 'isle'").await;
    scene.set(ZONEINFO, &older);
    assert!(!run(&scene).await.contains("note: time zone"));
    scene.set(ZONEINFO, &newer);
    assert!(run(&scene).await.contains(&format!("note: time zone Europe/Zurich: {differs}")));
}

/// The instants that a `timestamp` names are made by the server.
#[sqlx::test(migrations = false)]
async fn other_rules_for_a_ledger_without_instants_are_reported(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.sql("create table ledger.local (id bigint primary key, entity_id text not null, entity_account_id text not null,
                   currency text not null, captured_at timestamp not null, balance numeric not null,
                   change_xid xid8 not null default pg_current_xact_id());
               create index on ledger.local (entity_id, change_xid, id);
               create trigger stamp_change_xid before insert or update on ledger.local
                   for each row execute function ledger.stamp_change_xid();
               alter table ledger.local enable always trigger stamp_change_xid").await;
    scene.entity("acme", "UTC").await;
    scene.set("ELVEN_SYNC_LEDGER__TABLE", "ledger.local");
    scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", "Europe/Zurich");
    scene.set(ZONEINFO, &compiled("newer"));
    let text = run(&scene).await;
    assert!(text.contains("note: time zone Europe/Zurich"), "{text}");
    assert!(text.contains("decide which instants the ledger's captured_at names"), "{text}");
    assert!(!run(&scene).await.contains("note: time zone"));
}

#[sqlx::test(migrations = false)]
async fn a_batch_that_is_made_again_by_other_rules_says_so(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set(ZONEINFO, &compiled("older"));
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("Europe/Zurich", "Europe/Zurich").await;
    add(&scene, "Europe/Zurich", &["2026-12-01T12:00:00Z"]).await;
    scene.sandbox.inject(Fault::CutAfterWrite);
    said(&scene, 1, &["run"]).await;
    assert_eq!(times(&scene), ["Europe/Zurich 2026-12-01 13:00:00"]);
    scene.set(ZONEINFO, &compiled("newer"));
    let output = scene.output(&["run"]).await;
    let log = stderr(&output);
    assert!(
        log.contains("it is sent again by zone rules 2099a") && log.contains("it was made by 2019c"),
        "{log}"
    );
    assert!(log.contains("same_bytes=false"), "{log}");
    assert_eq!(times(&scene), ["Europe/Zurich 2026-12-01 13:00:00", "Europe/Zurich 2026-12-01 14:00:00"]);
    let rules = scene.text("select string_agg(left(zone_rules, 5) || ' ' || status || ' ' || attempts, ',') from elven_sync.sync_batches").await;
    assert_eq!(rules, "2099a accepted 2", "the rules are those of the body that was accepted");
}

/// Bodies are made again by the rules that they were made with, whatever rules are in use.
#[sqlx::test(migrations = false)]
async fn bodies_of_earlier_rules_are_proven(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("Europe/Zurich", "Europe/Zurich").await;
    for (number, rules) in ["older", "newer", "bundled"].into_iter().enumerate() {
        scene.set(ZONEINFO, &if rules == "bundled" { rules.to_owned() } else { compiled(rules) });
        add(&scene, "Europe/Zurich", &[&format!("2026-12-0{}T12:00:00Z", number + 1)]).await;
        run(&scene).await;
    }
    let entity = proof(&scene, true).await.remove(0);
    assert_eq!((entity.holds(), entity.bodies_proven), (true, 3), "{entity:?}");
    // A version from before rules were recorded had those of 2025b, and so has this row.
    scene
        .sql(
            "update elven_sync.sync_batches set zone_rules = null where batch_id = 3;
               update elven_sync.sync_runs set tzdata = '2025b' where run_id = 3",
        )
        .await;
    assert_eq!(proof(&scene, true).await.remove(0).bodies_proven, 3);
    // With the rules at hand another hash is no matter of rules.
    for batch in 1..=3 {
        let tamper = format!("update elven_sync.sync_batches set body_sha256 = 'x' where batch_id = {batch}");
        sqlx::raw_sql(AssertSqlSafe(tamper)).execute(&scene.pool).await.unwrap();
        let (found, text) = findings(&proof(&scene, true).await);
        assert!(
            found.contains("body") && text.contains(&format!("batch {batch} has sent")),
            "{batch}: {text}"
        );
    }
    // Without them nothing can be said.
    scene.sql("truncate elven_sync.sync_zone_rules").await;
    let entity = proof(&scene, true).await.remove(0);
    assert_eq!((entity.bodies_proven, entity.bodies_not_provable), (0, 2), "{entity:?}");
}

/// What only informs must not keep rows from being sent.
#[sqlx::test(migrations = false)]
async fn a_run_goes_on_without_the_tables_of_the_rules(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add(&scene, "acme", &["2026-12-01T12:00:00Z"]).await;
    scene.sql("drop table elven_sync.sync_facts").await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("could not be compared"), "{}", stderr(&output));
    assert_eq!(times(&scene), ["acme 2026-12-01 12:00:00"]);
}

#[sqlx::test(migrations = false)]
async fn a_folder_that_cannot_be_used_is_refused(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for folder in ["/nonexistent", env!("CARGO_MANIFEST_DIR")] {
        scene.set(ZONEINFO, &format!("{folder}/src"));
        let text = said(&scene, 1, &["run"]).await;
        assert!(text.contains("[time] zoneinfo") && text.contains("hint: remove the setting"), "{text}");
    }
    // An empty setting is none.
    scene.set(ZONEINFO, "");
    scene.entity("acme", "UTC").await;
    run(&scene).await;
}
