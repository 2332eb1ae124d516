//! Time zone rules: which ones are used, the effect of a change, and the rules of the database server for the same
//! instants. The folders of `tests/data/zoneinfo` have made-up rules that no machine has.

use sqlx::{AssertSqlSafe, PgPool};

use elven_sync::sandbox::Fault;

use crate::support::{TestEnv, output_of, stderr, stdout};
use crate::verify::{findings, proof};

const ZONEINFO: &str = "ELVEN_SYNC_TIME__ZONEINFO";

fn compiled(name: &str) -> String {
    format!("{}/tests/data/zoneinfo/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Registers an entity with a row for each instant. Its id is its zone.
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

/// Returns the received records without the balances.
fn times(scene: &TestEnv) -> Vec<String> {
    scene.received().into_iter().map(|r| r.replace(" BTC ", " ").trim_end_matches(" 1").to_owned()).collect()
}

async fn run(scene: &TestEnv) -> String {
    output_of(scene, 0, &["run"]).await
}

#[sqlx::test(migrations = false)]
async fn rows_of_2026_use_the_zone_rules_of_2026(pool: PgPool) {
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
async fn newest_zone_rules_of_the_machine_are_used(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for zone in ["Europe/Zurich", "Asia/Tokyo"] {
        scene.entity(zone, zone).await;
    }
    // A zone that only the newer rules have can be registered under them, and is refused elsewhere.
    let newer = compiled("newer");
    assert!(
        output_of(&scene, 1, &["entity", "add", "isle", "--timezone", "Europe/Atlantis"])
            .await
            .contains("not an IANA")
    );
    scene.set("TZDIR", &newer);
    output_of(&scene, 0, &["entity", "add", "Europe/Atlantis", "--timezone", "Europe/Atlantis"]).await;
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
    // Older rules are used only on request.
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
async fn zone_rule_change_is_reported_once_with_rows_and_backfill(pool: PgPool) {
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

    // New rows are sent with the right times, and do not count.
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

    // The reported command can be pasted, and sends the present times.
    let words: Vec<String> =
        backfill.split_whitespace().skip(1).map(|word| word.trim_matches('\'').to_owned()).collect();
    output_of(&scene, 0, &words.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let received = times(&scene);
    for time in ["2026-12-01 14:00:00", "2026-12-02 14:00:00", "2026-12-03 14:00:00"] {
        assert!(received.contains(&format!("Europe/Zurich {time}")), "{time} in {received:?}");
    }
    assert_eq!(received.len(), 11, "two rows were sent again");
}

/// Earlier versions recorded only the version of the rules of a run, and used those of 2025b.
#[sqlx::test(migrations = false)]
async fn uploads_without_recorded_zone_rules_use_their_versions_rules(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set(ZONEINFO, "bundled");
    for zone in ["America/Vancouver", "Europe/Zurich"] {
        scene.entity(zone, zone).await;
        add(&scene, zone, &["2026-07-01T12:00:00Z", "2026-11-29T12:00:00Z", "2100-07-01T12:00:00Z"]).await;
    }
    // For an entity without uploads nothing is reported.
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
    // Each entity is compared with its own last run, not with the last run of the installation.
    scene.sql(forget).await;
    let only = ["run", "--entity", "Europe/Zurich"];
    assert!(output_of(&scene, 0, &only).await.contains("note: entity `Europe/Zurich`"));
    assert!(run(&scene).await.contains("note: entity `America/Vancouver`"));
    // Unknown rules are reported, too.
    scene.sql(forget).await;
    scene.sql("update elven_sync.sync_runs set tzdata = '2011k'").await;
    let text = run(&scene).await;
    assert!(text.contains("made by 2011k, which are not known to this program"), "{text}");
    assert!(!run(&scene).await.contains("note: entity"));
}

/// Rows of an open pass were uploaded as well. Rows that `--from-now` skipped were not.
#[sqlx::test(migrations = false)]
async fn zone_rule_change_ignores_rows_never_uploaded(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set(ZONEINFO, &compiled("older"));
    add(&scene, "Europe/Zurich", &["2026-12-01T12:00:00Z"; 3]).await;
    output_of(&scene, 0, &["entity", "add", "Europe/Zurich", "--timezone", "Europe/Zurich", "--from-now"])
        .await;
    add(&scene, "Europe/Zurich", &["2026-12-02T12:00:00Z"]).await;
    run(&scene).await;
    scene.set(ZONEINFO, &compiled("newer"));
    let text = run(&scene).await;
    assert!(
        text.contains("1 uploaded row captured from 2026-12-02T12:00:00Z to 2026-12-02T12:00:00Z"),
        "{text}"
    );
    // Another zone is no change of rules. The command that changes the zone reports its effect.
    scene.sql("update elven_sync.entities set timezone = 'America/Vancouver'").await;
    assert!(!run(&scene).await.contains(" captured from "));
}

#[sqlx::test(migrations = false)]
async fn different_server_zone_rules_are_reported_once_per_change(pool: PgPool) {
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
    // A run of one entity reports nothing of other entities, and keeps their records.
    assert!(!output_of(&scene, 0, &["run", "--entity", "tokyo"]).await.contains("database server"));
    assert!(!run(&scene).await.contains("database server"));
    assert_eq!(scene.text(fact).await, "Europe/Atlantis 2099a,Europe/Zurich 2099a");
    // Once the rules agree, that is recorded, and the next difference is reported again.
    scene.sql("delete from elven_sync.entities where entity_id = 'isle'").await;
    scene.set(ZONEINFO, &older);
    assert!(!run(&scene).await.contains("note: time zone"));
    scene.set(ZONEINFO, &newer);
    assert!(run(&scene).await.contains(&format!("note: time zone Europe/Zurich: {differs}")));
}

/// A comparison is work for the server, and its rules change only with an update of its software.
#[sqlx::test(migrations = false)]
async fn same_zone_rules_are_compared_again_after_an_hour(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("acme", "Europe/Zurich").await;
    scene.set(ZONEINFO, &compiled("newer"));
    assert!(run(&scene).await.contains("note: time zone Europe/Zurich"));
    // If the run compared, it would report the difference as new.
    scene.sql("delete from elven_sync.sync_facts where name = 'server_zone_rules'").await;
    assert!(!run(&scene).await.contains("note: time zone"), "it was compared just now");
    let age = "update elven_sync.sync_facts set checked_at = checked_at - interval '61 minutes'
                where name = 'zone_rules_compared'";
    scene.sql(age).await;
    assert!(run(&scene).await.contains("note: time zone Europe/Zurich"), "the comparison is an hour old");
    assert!(!run(&scene).await.contains("note: time zone"));
    // Another zone of an entity, or another entity, is compared at once.
    scene.sql("delete from elven_sync.sync_facts where name = 'server_zone_rules'").await;
    scene.entity("isle", "Europe/Zurich").await;
    assert!(run(&scene).await.contains("note: time zone Europe/Zurich"));
}

/// The server computes the instants of `timestamp` values.
#[sqlx::test(migrations = false)]
async fn different_server_zone_rules_are_reported_for_local_times(pool: PgPool) {
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
async fn batch_rebuilt_with_other_zone_rules_is_reported(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set(ZONEINFO, &compiled("older"));
    scene.set("ELVEN_SYNC_RETRY__ATTEMPTS", "1");
    scene.entity("Europe/Zurich", "Europe/Zurich").await;
    add(&scene, "Europe/Zurich", &["2026-12-01T12:00:00Z"]).await;
    scene.sandbox.inject(Fault::CutAfterWrite);
    output_of(&scene, 1, &["run"]).await;
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

/// Bodies are rebuilt with the rules that they were made with, whatever rules are in use.
#[sqlx::test(migrations = false)]
async fn bodies_of_earlier_zone_rules_are_proven(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.entity("Europe/Zurich", "Europe/Zurich").await;
    for (number, rules) in ["older", "newer", "bundled"].into_iter().enumerate() {
        scene.set(ZONEINFO, &if rules == "bundled" { rules.to_owned() } else { compiled(rules) });
        add(&scene, "Europe/Zurich", &[&format!("2026-12-0{}T12:00:00Z", number + 1)]).await;
        run(&scene).await;
    }
    let entity = proof(&scene, true).await.remove(0);
    assert_eq!((entity.holds(), entity.bodies_proven), (true, 3), "{entity:?}");
    // A version from before rules were recorded used those of 2025b, and so does this row.
    scene
        .sql(
            "update elven_sync.sync_batches set zone_rules = null where batch_id = 3;
               update elven_sync.sync_runs set tzdata = '2025b' where run_id = 3",
        )
        .await;
    scene.forget_digests().await;
    assert_eq!(proof(&scene, true).await.remove(0).bodies_proven, 3);
    // With the recorded rules available, another hash is not caused by rules.
    for batch in 1..=3 {
        let tamper = format!("update elven_sync.sync_batches set body_sha256 = 'x' where batch_id = {batch}");
        sqlx::raw_sql(AssertSqlSafe(tamper)).execute(&scene.pool).await.unwrap();
        let (found, text) = findings(&proof(&scene, true).await);
        assert!(
            found.contains("body") && text.contains(&format!("batch {batch} has sent")),
            "{batch}: {text}"
        );
    }
    // Without them the cause is unknown.
    scene.sql("truncate elven_sync.sync_zone_rules").await;
    let entity = proof(&scene, true).await.remove(0);
    assert_eq!((entity.bodies_proven, entity.bodies_not_provable), (0, 2), "{entity:?}");
}

/// Information must not prevent rows from being sent.
#[sqlx::test(migrations = false)]
async fn run_continues_without_the_zone_rule_tables(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    add(&scene, "acme", &["2026-12-01T12:00:00Z"]).await;
    scene.sql("drop table elven_sync.sync_facts cascade").await;
    let output = scene.output(&["run"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).contains("could not be compared"), "{}", stderr(&output));
    assert_eq!(times(&scene), ["acme 2026-12-01 12:00:00"]);
}

#[sqlx::test(migrations = false)]
async fn unusable_zone_rule_folder_is_refused(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for folder in ["/nonexistent", env!("CARGO_MANIFEST_DIR")] {
        scene.set(ZONEINFO, &format!("{folder}/src"));
        let text = output_of(&scene, 1, &["run"]).await;
        assert!(text.contains("[time] zoneinfo") && text.contains("hint: remove the setting"), "{text}");
    }
    // An empty setting is no setting.
    scene.set(ZONEINFO, "");
    scene.entity("acme", "UTC").await;
    run(&scene).await;
}

/// Names that look like an offset have the inverted sign, abbreviations have no summer, and old names have a new one.
#[sqlx::test(migrations = false)]
async fn a_zone_that_surprises_is_noted_and_never_suggested(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    for wanted in ["GMT+5", "UTC+5", "gmt+05:00", "EST+5"] {
        let said = output_of(&scene, 1, &["entity", "add", "acme", "--timezone", wanted]).await;
        assert!(said.contains("not an IANA time zone"), "{wanted}: {said}");
        assert!(!said.contains("Etc/GMT+5") && !said.contains("did you mean EST"), "{wanted}: {said}");
    }
    for (zone, expected) in [
        (
            "Etc/GMT+5",
            "note: `Etc/GMT+5` is 5 hours behind UTC in summer and winter; the sign in these names is inverted",
        ),
        ("EST", "note: `EST` is 5 hours behind UTC in summer and winter; hint: use the zone of a place"),
        ("US/Pacific", "note: `US/Pacific` is a deprecated name; hint: use America/Los_Angeles"),
    ] {
        let said = output_of(&scene, 0, &["entity", "add", zone, "--timezone", zone]).await;
        assert!(said.contains(expected), "{zone}: {said}");
    }
    let plain = output_of(&scene, 0, &["entity", "add", "acme", "--timezone", "Europe/Zurich"]).await;
    assert!(!plain.contains("note: `"), "{plain}");
    // The zone of a ledger without one of its own.
    scene.sql("alter table ledger.balance_snapshots alter captured_at type timestamp").await;
    for (zone, expected) in [("Etc/GMT+5", true), ("Europe/Zurich", false)] {
        scene.set("ELVEN_SYNC_LEDGER__CAPTURED_AT_ZONE", zone);
        for arguments in [&["attach", "--dry-run"][..], &["attach"], &["run", "--dry-run"]] {
            let said = output_of(&scene, 0, arguments).await;
            let noted = said.contains("note: [ledger] captured_at_zone: `Etc/GMT+5` is 5 hours behind UTC");
            assert_eq!(noted, expected, "{arguments:?}, {zone}: {said}");
        }
    }
}
