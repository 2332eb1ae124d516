//! The metrics: names and types, values against SQL, the parser of Prometheus, and the cost of a scrape.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Service, add_row, arrives, get, value};
use crate::support::{TestEnv, eventually, fault_rules, output_of};

const GOLDEN: &str = "tests/data/metrics.txt";
const OPENMETRICS: &str =
    "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";

/// Two entities, of which one has an error, and a run.
async fn scene_with_an_error(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("b\"{}\\ \u{e4}\n", "UTC").await;
    scene.sandbox.set_rules(fault_rules(&["reject:account=x"]));
    add_row(&scene, "a").await;
    add_row(&scene, "x").await;
    assert_eq!(scene.output(&["run"]).await.status.code(), Some(3));
    scene.sandbox.set_rules(Vec::new());
    scene
}

/// Returns the families of metrics in the format of Prometheus: name, type, and the names of the labels.
fn families(metrics: &str) -> String {
    let mut families: BTreeMap<&str, (&str, Vec<String>)> = BTreeMap::new();
    for line in metrics.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            families.insert(name, (kind, Vec::new()));
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            // Values of labels are left out: what is between an odd quotation mark and the next one.
            let labels = line.strip_prefix(name).unwrap().rsplit_once('}').map_or("", |(labels, _)| labels);
            let labels = labels.replace("\\\"", "");
            let names = labels.split('"').step_by(2).map(|name| name.trim_matches(['{', ',', '=']));
            let names: Vec<&str> = names.filter(|name| !name.is_empty()).collect();
            let (_, known) = families.get_mut(name).unwrap_or_else(|| panic!("{name} has no type"));
            let names = names.join(",");
            if !known.contains(&names) {
                known.push(names);
            }
        }
    }
    let lines =
        families.into_iter().map(|(name, (kind, labels))| format!("{name} {kind} {{{}}}", labels.join("|")));
    lines.map(|line| line + "\n").collect()
}

/// `ELVEN_REWRITE_DOCS=1` writes the file.
#[sqlx::test(migrations = false)]
async fn names_types_and_labels_are_those_of_the_golden_file(pool: PgPool) {
    let scene = scene_with_an_error(pool).await;
    let service = Service::start(&scene, &[]).await;
    service.answers("/readyz", 200).await;
    let found = families(&service.get("/metrics").await.body);
    service.stop().await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN);
    if crate::support::variable("ELVEN_REWRITE_DOCS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    assert_eq!(
        found,
        std::fs::read_to_string(&path).unwrap(),
        "hint: ELVEN_REWRITE_DOCS=1, and docs/operating.md"
    );
    let operating = std::fs::read_to_string("docs/operating.md").unwrap();
    for family in found.lines() {
        let name = family.split(' ').next().unwrap();
        assert!(operating.contains(&format!("`{name}`")), "docs/operating.md lacks {name}");
    }
}

#[sqlx::test(migrations = false)]
async fn values_are_those_of_the_tables(pool: PgPool) {
    let scene = scene_with_an_error(pool).await;
    add_row(&scene, "c").await;
    scene.sql("update elven_sync.sync_state set pending_rows = 7 where entity_id = 'acme'").await;
    let metrics = output_of(&scene, 0, &["status", "--prometheus"]).await;
    let of_acme = "{entity=\"acme\",credential=\"default\"}";
    for (series, sql) in [
        ("elven_sync_up", "select '1'"),
        (
            "elven_sync_rows_uploaded_total{entity=\"acme\"}",
            "select rows_uploaded::text from elven_sync.sync_state where entity_id = 'acme'",
        ),
        (
            &format!("elven_sync_pending_rows{of_acme}"),
            "select pending_rows::text from elven_sync.sync_health where entity_id = 'acme'",
        ),
        (&format!("elven_sync_consecutive_failures{of_acme}"), "select '0'"),
        (
            "elven_sync_entity_status{entity=\"acme\",credential=\"default\",status=\"incomplete\"}",
            "select count(*)::text from elven_sync.sync_health where entity_id = 'acme' and status = 'incomplete'",
        ),
        (
            "elven_sync_entities{status=\"incomplete\"}",
            "select count(*)::text from elven_sync.sync_health where status = 'incomplete'",
        ),
        (
            "elven_sync_entities{status=\"ok\"}",
            "select count(*)::text from elven_sync.sync_health where status = 'ok'",
        ),
        ("elven_sync_entities{status=\"failing\"}", "select '0'"),
        (
            "elven_sync_open_errors{kind=\"rejected_row\"}",
            "select count(*)::text from elven_sync.sync_errors where kind = 'rejected_row'",
        ),
        ("elven_sync_open_errors{kind=\"auth\"}", "select '0'"),
        (
            "elven_sync_alerts{name=\"OpenErrors\",severity=\"warning\"}",
            "select count(*)::text from elven_sync.alerts where name = 'OpenErrors' and severity = 'warning'",
        ),
        ("elven_sync_requests_total{outcome=\"accepted\"}", "select '1'"),
        ("elven_sync_requests_total{outcome=\"refused\"}", "select '2'"),
    ] {
        assert_eq!(
            value(&metrics, series).as_deref(),
            Some(scene.text(sql).await.as_str()),
            "{series}\n{metrics}"
        );
    }
    let checked = value(&metrics, &format!("elven_sync_checked_timestamp_seconds{of_acme}")).unwrap();
    let in_table = "select extract(epoch from checked_at)::float8::text from elven_sync.sync_health
                     where entity_id = 'acme'";
    assert_eq!(checked, scene.text(in_table).await);
}

/// Each request of a run has one outcome.
#[sqlx::test(migrations = false)]
async fn requests_are_counted_by_outcome(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    scene.set("ELVEN_SYNC_RETRY__INITIAL", "1ms");
    scene.entity("acme", "UTC").await;
    for (rule, account, expected) in [
        ("answer-lost@once:1", "a", "1 0 0 1"),
        ("error-500@first:2", "b", "1 0 0 2"),
        ("throttle=0s@once:1", "c", "1 0 1 0"),
        ("unavailable=0s@once:1", "d", "1 0 1 0"),
        ("reject:account=e", "e", "0 1 0 0"),
    ] {
        let before = "update elven_sync.sync_state set requests_accepted = 0, requests_refused = 0, requests_throttled = 0,
                             requests_unknown = 0";
        scene.sql(before).await;
        scene.sandbox.set_rules(fault_rules(&[rule]));
        add_row(&scene, account).await;
        scene.output(&["run"]).await;
        let counted =
            "select concat_ws(' ', requests_accepted, requests_refused, requests_throttled, requests_unknown)
                         from elven_sync.sync_state";
        assert_eq!(scene.text(counted).await, expected, "{rule}");
        let sums = "select (requests_accepted + requests_refused + requests_throttled + requests_unknown
                            - (select requests from elven_sync.sync_runs order by run_id desc limit 1))::text
                      from elven_sync.sync_state";
        assert_eq!(scene.text(sums).await, "0", "{rule}");
    }
}

/// A counter that shrinks looks like a restart, and its rate like a burst.
#[sqlx::test(migrations = false)]
async fn counters_do_not_shrink_when_the_journal_is_pruned(pool: PgPool) {
    let scene = scene_with_an_error(pool).await;
    output_of(&scene, 0, &["errors", "retry"]).await;
    // The newest pass is not pruned.
    add_row(&scene, "newer").await;
    scene.run().await;
    let counters = async || {
        let metrics = output_of(&scene, 0, &["status", "--prometheus"]).await;
        let counters = metrics.lines().filter(|line| line.contains("_total{")).map(str::to_owned);
        counters.collect::<Vec<_>>()
    };
    let before = counters().await;
    assert!(
        before.iter().any(|line| line == "elven_sync_requests_total{outcome=\"accepted\"} 3"),
        "{before:?}"
    );
    output_of(&scene, 0, &["prune", "--older-than", "1ms"]).await;
    let pruned = "select (sum(batches) >= 3)::text from elven_sync.sync_pruned";
    assert_eq!(scene.text(pruned).await, "true");
    assert_eq!(counters().await, before);
    scene.sql("delete from elven_sync.entities where entity_id = 'acme'").await;
    let outcomes =
        |lines: Vec<String>| lines.into_iter().filter(|line| line.contains("outcome")).collect::<Vec<_>>();
    assert_eq!(outcomes(counters().await), outcomes(before), "also when an entity is removed");
}

#[sqlx::test(migrations = false)]
async fn each_format_is_answered_to_the_clients_that_parse_it(pool: PgPool) {
    let scene = scene_with_an_error(pool).await;
    let service = Service::start(&scene, &["--every", "1h"]).await;
    service.answers("/readyz", 200).await;
    let plain = service.get("/metrics").await;
    assert!(plain.headers.contains("content-type: text/plain; version=0.0.4; charset=utf-8\n"), "{plain:?}");
    assert!(
        plain.body.contains("# TYPE elven_sync_rows_uploaded_total counter\n")
            && !plain.body.contains("# EOF")
    );
    let open = get(&service.address, "/metrics", &[OPENMETRICS]).await;
    let content_type = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\n";
    assert!(open.headers.contains(content_type), "{open:?}");
    assert!(
        open.body.contains("# TYPE elven_sync_rows_uploaded counter\n") && open.body.ends_with("# EOF\n")
    );
    let series = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_process_"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    // The run may be under way still, and a reading is used for a second.
    let is_same = async || {
        let (plain, open) = (
            service.get("/metrics").await.body,
            get(&service.address, "/metrics", &[OPENMETRICS]).await.body,
        );
        let textfile = output_of(&scene, 0, &["status", "--prometheus"]).await;
        series(&plain) == series(&open) && series(&textfile) == series(&plain)
    };
    eventually("both formats and the textfile collector have the same series", is_same).await;
    service.stop().await;
}

/// `promtool` is a part of the package `prometheus`. It parses as Prometheus does, and knows the conventions for names.
#[sqlx::test(migrations = false)]
async fn prometheus_parses_the_metrics(pool: PgPool) {
    let scene = scene_with_an_error(pool).await;
    let service = Service::start(&scene, &[]).await;
    service.answers("/readyz", 200).await;
    let metrics = service.get("/metrics").await.body;
    service.stop().await;
    let textfile = output_of(&scene, 0, &["status", "--prometheus"]).await;
    for text in [metrics, textfile] {
        let mut promtool = Command::new("promtool");
        promtool
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let Ok(mut child) = promtool.spawn() else {
            eprintln!("NOT TESTED: promtool is not installed; hint: apt-get install prometheus");
            return;
        };
        child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
    }
}

/// Registers entities as a run leaves them: polled, and without pending rows.
async fn add_entities(scene: &TestEnv, count: i32) {
    sqlx::query("insert into elven_sync.entities (entity_id, timezone) select 'e' || n, 'UTC' from generate_series(1, $1) n")
        .bind(count)
        .execute(&scene.pool)
        .await
        .unwrap();
    scene
        .sql(
            "update elven_sync.sync_state set checked_at = now(), last_success_at = now(), rows_uploaded = 3",
        )
        .await;
}

#[sqlx::test(migrations = false)]
async fn above_500_entities_only_those_that_are_not_ok_are_listed(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let listed = async |family: &str| {
        let metrics = output_of(&scene, 0, &["status", "--prometheus"]).await;
        let lines = metrics.lines().filter(|line| line.starts_with(family) && line.contains("entity="));
        (lines.count(), metrics)
    };
    add_entities(&scene, 500).await;
    assert_eq!(listed("elven_sync_pending_rows{").await.0, 500);
    assert_eq!(listed("elven_sync_rows_uploaded_total{").await.0, 500);
    scene.sql("insert into elven_sync.entities (entity_id, timezone) values ('new', 'UTC')").await;
    scene.sql("update elven_sync.sync_state set consecutive_failures = 1 where entity_id = 'e7'").await;
    let (count, metrics) = listed("elven_sync_pending_rows{").await;
    assert_eq!(count, 2, "one was never polled, and one fails: {metrics}");
    assert!(metrics.contains("elven_sync_pending_rows{entity=\"e7\""), "{metrics}");
    assert_eq!(value(&metrics, "elven_sync_rows_uploaded_total").as_deref(), Some("1500"));
    assert_eq!(value(&metrics, "elven_sync_entities{status=\"ok\"}").as_deref(), Some("499"));
    let newest = value(&metrics, "elven_sync_poll_timestamp_seconds");
    assert!(newest.is_some(), "a stalled scheduler is seen without the entities: {metrics}");
}

/// Replicas of one installation show the same series of the tables, so that `max by` counts nothing twice.
#[sqlx::test(migrations = false)]
async fn replicas_show_the_same(pool: PgPool) {
    let scene = scene_with_an_error(pool).await;
    let one = Service::start(&scene, &["--every", "1h"]).await;
    one.answers("/readyz", 200).await;
    let two = Service::start(&scene, &["--every", "1h"]).await;
    two.answers("/readyz", 200).await;
    add_row(&scene, "c").await;
    one.signal(nix::sys::signal::Signal::SIGHUP);
    arrives(&scene, &one, "c").await;
    one.logs("run 4 succeeded").await;
    let series = |text: String| {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_process_"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    // A reading is used for a second.
    let is_same = async || series(one.get("/metrics").await.body) == series(two.get("/metrics").await.body);
    eventually("replicas have the same series", is_same).await;
    one.stop().await;
    two.stop().await;
}

/// The time of a scrape grows with the entities, and not with their square, and not with the history.
#[sqlx::test(migrations = false)]
async fn a_scrape_over_5000_entities_is_fast(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    add_entities(&scene, 5_000).await;
    scene
        .sql(
            "insert into elven_sync.sync_errors (entity_id, ledger_id, kind, message, resolved_at, resolution)
             select 'e' || n % 5000, n::text, 'rejected_row', 'no', case when n > 5000 then now() end,
                    case when n > 5000 then 'done' end
               from generate_series(1, 50000) n;
             analyze elven_sync.sync_errors, elven_sync.entities, elven_sync.sync_state",
        )
        .await;
    // No run changes the tables meanwhile.
    scene.sql("update elven_sync.entities set paused = false").await;
    let database = scene.database(2).await;
    let (mut reads, mut times) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        let begun = Instant::now();
        let readings = elven_sync::journal::metrics::Readings::read(&database).await.unwrap();
        reads.push(begun.elapsed());
        let metrics = elven_sync::serve::of_tables(readings).unwrap();
        times.push(begun.elapsed());
        assert!(metrics.lines().count() > 15_000, "each entity has an open error, so each is listed");
    }
    reads.sort();
    times.sort();
    let (reading, whole) = (reads[3], times[3]);
    eprintln!(
        "a scrape over 5,000 entities with an open error each took {whole:?}, of which {reading:?} to read (medians)"
    );
    scene.sql("update elven_sync.sync_errors set resolved_at = now(), resolution = 'done' where resolved_at is null").await;
    let begun = Instant::now();
    let readings = elven_sync::journal::metrics::Readings::read(&database).await.unwrap();
    elven_sync::serve::of_tables(readings).unwrap();
    eprintln!("a scrape over 5,000 entities that are ok took {:?}", begun.elapsed());
    // Generous, since tests run beside each other in a build without optimization: a plan that is quadratic takes longer.
    assert!(times[3] < Duration::from_millis(1500), "{times:?}");
}
