//! Every number on the page and in `/status.json` is the one that SQL gives.

use serde_json::{Value, json};
use sqlx::PgPool;

use super::Page;

/// A number as the page writes it.
fn shown(number: &Value) -> String {
    let digits = number.as_i64().unwrap_or_else(|| panic!("{number}")).to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    groups.iter().map(|group| std::str::from_utf8(group).unwrap()).collect::<Vec<_>>().join(",")
}

const ENTITIES: &str = "
    select jsonb_agg(jsonb_build_array(entity_id, status, pending_rows, open_errors,
                                       (select coalesce(sum(row_count), 0) from elven_sync.sync_batches b
                                         where b.entity_id = h.entity_id and b.status = 'accepted'
                                           and b.finished_at >= $FROM))
                     order by case status when 'failing' then 1 when 'stale' then 2 when 'incomplete' then 3
                                          when 'behind' then 4 when 'paused' then 5 else 6 end,
                              open_errors desc, pending_rows desc, entity_id)
      from elven_sync.sync_health h";

/// The beginning of the first of the last 96 quarter hours.
const FROM: &str =
    "(to_timestamp(floor(extract(epoch from now()) / 900) * 900) - interval '23 hours 45 minutes')";

const QUARTERS: &str = "
    select jsonb_agg(jsonb_build_object(
               'rows_uploaded', (select coalesce(sum(row_count), 0) from elven_sync.sync_batches
                                  where status = 'accepted' and finished_at >= q and finished_at < q + interval '15 min'),
               'rows_set_aside', (select coalesce(sum(rows_rejected), 0) from elven_sync.sync_batches
                                   where finished_at >= q and finished_at < q + interval '15 min'),
               'batches', (select count(*) from elven_sync.sync_batches
                            where finished_at >= q and finished_at < q + interval '15 min'),
               'batches_not_accepted', (select count(*) from elven_sync.sync_batches
                                         where status <> 'accepted' and finished_at >= q
                                           and finished_at < q + interval '15 min'),
               'runs', (select count(*) from elven_sync.sync_runs
                         where finished_at >= q and finished_at < q + interval '15 min'),
               'runs_not_succeeded', (select count(*) from elven_sync.sync_runs
                                       where status <> 'succeeded' and finished_at >= q
                                         and finished_at < q + interval '15 min')) order by q)
      from generate_series($FROM, now(), interval '15 min') q";

const ANSWERS: &str = "
    select jsonb_agg(jsonb_build_array(outcome, http_status, batches, p50, p95) order by batches desc, outcome, http_status)
      from (select case when status = 'accepted' then 'accepted' when status = 'unknown' then 'unknown'
                        when http_status in (408, 425, 429, 503) then 'throttled'
                        when http_status is null then 'not delivered' else 'refused' end as outcome,
                   http_status, count(*) as batches,
                   percentile_disc(0.5) within group (order by duration_ms) as p50,
                   percentile_disc(0.95) within group (order by duration_ms) as p95
              from elven_sync.sync_batches where attempts > 0 and finished_at >= $FROM group by 1, 2) a";

async fn sql(page: &Page, sql: &str) -> Value {
    let sql = sql.replace("$FROM", FROM);
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&page.scene.pool).await.unwrap()
}

/// Returns what the page shows and what SQL gives at the same time: no quarter hour began in between.
async fn at_one_time(page: &Page) -> (Value, [Value; 3]) {
    loop {
        let before = sql(page, "select to_jsonb($FROM)").await;
        let expected = [sql(page, ENTITIES).await, sql(page, QUARTERS).await, sql(page, ANSWERS).await];
        let json = page.json().await;
        let from: sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc> =
            serde_json::from_value(json["day"]["from"].clone()).unwrap();
        let is_same =
            serde_json::from_value::<sqlx::types::chrono::DateTime<sqlx::types::chrono::Utc>>(before.clone())
                .unwrap()
                == from;
        if is_same && before == sql(page, "select to_jsonb($FROM)").await {
            return (json, expected);
        }
    }
}

#[sqlx::test(migrations = false)]
async fn every_number_is_the_one_of_sql(pool: PgPool) {
    let page = Page::filled(pool).await;
    let (json, [entities, quarters, answers]) = at_one_time(&page).await;
    let html = page.html("/").await;

    let listed = json["entities"]["worst"].as_array().unwrap();
    let from_json: Vec<Value> = listed
        .iter()
        .map(|e| {
            let hours = e["uploaded_by_hour"].as_array().unwrap();
            let day: i64 = hours.iter().map(|hour| hour.as_i64().unwrap()).sum();
            json!([e["entity_id"], e["status"], e["pending_rows"], e["open_errors"], day])
        })
        .collect();
    assert_eq!(json!(from_json), entities);
    for (row, expected) in html.rows("entities, worst first").iter().zip(entities.as_array().unwrap()) {
        assert_eq!(row[0], expected[0].as_str().unwrap());
        assert!(row[1].ends_with(expected[1].as_str().unwrap()), "{row:?}");
        assert_eq!(
            [&row[2], &row[5], &row[6]],
            [&shown(&expected[2]), &shown(&expected[3]), &shown(&expected[4])]
        );
    }

    let of_json: Vec<Value> = json["day"]["quarters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|quarter| {
            let mut quarter = quarter.clone();
            quarter.as_object_mut().unwrap().remove("from");
            quarter
        })
        .collect();
    assert_eq!(of_json.len(), 96);
    assert_eq!(json!(of_json), quarters);
    let rows = html.rows("Quarter hours");
    assert_eq!(rows.len(), 96);
    for (row, quarter) in rows.iter().rev().zip(quarters.as_array().unwrap()) {
        let expected = [
            "rows_uploaded",
            "rows_set_aside",
            "batches",
            "batches_not_accepted",
            "runs",
            "runs_not_succeeded",
        ];
        assert_eq!(row[1..], expected.map(|name| shown(&quarter[name])), "{quarter}");
    }
    assert!(quarters.to_string().contains("\"runs_not_succeeded\":1"), "{quarters}");

    for (answer, expected) in json["answers"].as_array().unwrap().iter().zip(answers.as_array().unwrap()) {
        let names = ["outcome", "http_status", "batches", "p50_ms", "p95_ms"];
        assert_eq!(json!(names.map(|name| answer[name].clone())), *expected);
    }
    assert_eq!(json["answers"].as_array().unwrap().len(), answers.as_array().unwrap().len());
    for (row, answer) in html.rows("by their last answer").iter().zip(answers.as_array().unwrap()) {
        assert_eq!(
            row[2..],
            [shown(&answer[2]), shown(&answer[3]) + " ms", shown(&answer[4]) + " ms"],
            "{answer}"
        );
    }
    the_rest_is_that_of_sql(&page, &json).await;
    page.service.stop().await;
}

async fn the_rest_is_that_of_sql(page: &Page, json: &Value) {
    let html = page.html("/").await;
    let by_status = page
        .sql("select jsonb_object_agg(status, n) from (select status, count(*) n from elven_sync.sync_health group by 1) s")
        .await;
    for count in json["entities"]["by_status"].as_array().unwrap() {
        assert_eq!(count["entities"], by_status[count["status"].as_str().unwrap()], "{count}");
    }
    assert_eq!(json["entities"]["by_status"].as_array().unwrap().len(), by_status.as_object().unwrap().len());
    assert_eq!(json["entities"]["total"], 8);

    let alerts = page
        .sql("select jsonb_object_agg(name, n) from (select name, count(*) n from elven_sync.alerts group by 1) a")
        .await;
    let groups = json["alerts"].as_array().unwrap();
    assert!(groups.len() >= 4 && groups.len() == alerts.as_object().unwrap().len(), "{groups:#?}");
    for group in groups {
        assert_eq!(group["alerts"], alerts[group["name"].as_str().unwrap()], "{group}");
        for alert in group["oldest"].as_array().unwrap() {
            assert!(html.text().contains(alert["hint"].as_str().unwrap()), "{alert}");
        }
    }
    let critical =
        page.sql("select to_jsonb(count(*)) from elven_sync.alerts where severity = 'critical'").await;
    let text = json["verdict"]["text"].as_str().unwrap();
    let of_entities = json["verdict"]["entities"].as_str().unwrap();
    assert_eq!(
        of_entities,
        "3 of 8 entities are up to date; 1 failing, 1 stale, 1 incomplete, 1 behind, 1 paused."
    );
    assert!(text.starts_with(&format!("A person must act: {critical} critical alerts and ")), "{text}");
    assert!(html.text().starts_with(&format!("✕ {text} {of_entities} As of ")), "{}", html.text());

    let runs = page
        .sql(
            "select jsonb_agg(jsonb_build_array(run_id, rows_read, rows_uploaded, rows_rejected, rows_superseded,
                                                requests, retries) order by run_id desc)
               from (select * from elven_sync.sync_runs order by run_id desc limit 20) r",
        )
        .await;
    let rows = html.rows("runs, newest first");
    assert_eq!(rows.len(), 20);
    for ((row, run), of_json) in
        rows.iter().zip(runs.as_array().unwrap()).zip(json["runs"].as_array().unwrap())
    {
        assert_eq!(row[0].split(' ').next().unwrap(), run[0].to_string());
        assert_eq!(row[4..], [1, 2, 3, 4, 5, 6].map(|at| shown(&run[at])), "{run}");
        let names = [
            "run_id",
            "rows_read",
            "rows_uploaded",
            "rows_rejected",
            "rows_superseded",
            "requests",
            "retries",
        ];
        assert_eq!(json!(names.map(|name| of_json[name].clone())), *run);
    }

    let causes = page
        .sql(
            "select jsonb_agg(jsonb_build_array(entity_id, rows) order by rows desc, entity_id, kind)
               from elven_sync.error_causes",
        )
        .await;
    let shown_causes = html.rows("Open errors by cause");
    assert_eq!((json["causes"]["causes"].as_i64(), shown_causes.len()), (Some(3), 3));
    for (row, cause) in shown_causes.iter().zip(causes.as_array().unwrap()) {
        assert_eq!([&row[0], &row[2]], [cause[0].as_str().unwrap(), &shown(&cause[1])]);
    }

    let backfill = &html.rows("Backfills that are running")[0];
    assert_eq!(
        backfill[1..9],
        [
            "2026-01-01 to 2026-07-01",
            "acme-treasury, northwind-holding",
            "a1, a2, a3, a4, a5 and 2 more",
            "all",
            "61,000 of 250,000",
            "60,500",
            "12",
            "1",
        ]
    );
    assert!(html.text().contains("no finding by elven-sync verify --deep at "), "{}", html.text());
}

#[sqlx::test(migrations = false)]
async fn page_of_an_entity_has_its_own_numbers(pool: PgPool) {
    let page = Page::filled(pool).await;
    let html = page.html("/entities/stark%20industries").await;
    let state = html.pairs("State of the entity");
    let expected = page
        .sql(
            "select jsonb_build_array(status, h.pending_rows, open_errors, rows_uploaded, timezone)
               from elven_sync.sync_health h join elven_sync.sync_state using (entity_id)
              where entity_id = 'stark industries'",
        )
        .await;
    assert!(state["Status"].ends_with(expected[0].as_str().unwrap()), "{state:#?}");
    assert_eq!(state["Pending rows"], shown(&expected[1]));
    assert_eq!(state["Open errors"], shown(&expected[2]));
    assert_eq!(state["Rows uploaded, ever"], shown(&expected[3]));
    assert_eq!(state["Time zone"], expected[4].as_str().unwrap());
    assert_eq!(state["Freshness"], "1h");
    let batches = page
        .sql(
            "select jsonb_agg(jsonb_build_array(batch_id, row_count, rows_rejected, rows_superseded, attempts)
                              order by batch_id desc)
               from (select * from elven_sync.sync_batches where entity_id = 'stark industries'
                      order by batch_id desc limit 20) b",
        )
        .await;
    let rows = html.rows("batches, newest first");
    assert_eq!(rows.len(), 20);
    for (row, batch) in rows.iter().zip(batches.as_array().unwrap()) {
        assert_eq!(row[0], format!("{} pass", batch[0]));
        assert_eq!(row[3..7], [1, 2, 3, 4].map(|at| shown(&batch[at])), "{batch}");
    }
    let day: i64 =
        html.rows("Quarter hours").iter().map(|row| row[1].replace(',', "").parse::<i64>().unwrap()).sum();
    let uploaded = sql(
        &page,
        "select to_jsonb(sum(row_count)) from elven_sync.sync_batches
          where entity_id = 'stark industries' and status = 'accepted' and finished_at >= $FROM",
    )
    .await;
    assert_eq!(day, uploaded.as_i64().unwrap());
    assert_eq!(html.rows("Open errors by cause").len(), 2);
    assert_eq!(html.rows("changes of the watermark").len(), 10);
    assert!(html.text().contains("OpenErrors"), "{}", html.text());
    assert!(!html.text().contains("globex"), "{}", html.text());
    page.service.stop().await;
}

/// With an empty journal, the page says what to do.
#[sqlx::test(migrations = false)]
async fn empty_installation_is_told_what_to_do(pool: PgPool) {
    let page = Page::with(pool, "select 1").await;
    let html = page.html("/").await;
    assert!(
        html.text().starts_with("! Nothing is synced. No entity is registered. As of "),
        "{}",
        html.text()
    );
    for words in ["elven-sync entity add ID --timezone ZONE", "Not verified yet.", "No error is open."] {
        assert!(html.text().contains(words), "{words}: {}", html.text());
    }
    page.scene.entity("acme", "UTC").await;
    page.service.stop().await;
}

#[sqlx::test(migrations = false)]
async fn installation_without_alerts_is_said_to_be_well(pool: PgPool) {
    let page = Page::with(
        pool,
        "insert into elven_sync.entities (entity_id, timezone) values ('a', 'UTC'), ('b', 'UTC');
         update elven_sync.sync_state set checked_at = now(), last_success_at = now()",
    )
    .await;
    let html = page.html("/").await;
    assert!(
        html.text().starts_with("✓ Nothing needs a person. All 2 entities are up to date. As of "),
        "{}",
        html.text()
    );
    page.service.stop().await;
}
