//! The dashboard of Grafana: each of its queries works for a role that may read the sync tables and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Column, Executor, PgPool, Row};

use super::read;
use crate::support::{TestEnv, files_in, output_of};

const DASHBOARD: &str = "deploy/grafana/dashboards/elven-sync.json";

/// Replaces the macros of Grafana's data source for PostgreSQL, and the variables, as Grafana does.
fn expanded(sql: &str, entities: &str) -> String {
    let mut sql = sql.replace("$__interval", "'1m'").replace("$entity", entities);
    sql = sql
        .replace("$__timeFrom()", "'2024-01-01T00:00:00Z'")
        .replace("$__timeTo()", "'2100-01-01T00:00:00Z'");
    while let Some((before, rest)) = sql.split_once("$__timeFilter(") {
        let (column, rest) = rest.split_once(')').unwrap();
        sql = format!("{before}{column} BETWEEN '2024-01-01T00:00:00Z' AND '2100-01-01T00:00:00Z'{rest}");
    }
    while let Some((before, rest)) = sql.split_once("$__timeGroup(") {
        let (column, rest) = rest.split_once(", '1m')").unwrap();
        sql = format!("{before}floor(extract(epoch from {column})/60)*60{rest}");
    }
    assert!(!sql.contains('$'), "a macro or a variable is not known: {sql}");
    sql
}

/// The panels with a query: the panel, and the query.
fn panels(dashboard: &Value) -> Vec<(&Value, &str)> {
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().filter(|panel| panel["type"] != "row").map(|panel| {
        let targets = panel["targets"].as_array().unwrap();
        assert_eq!(targets.len(), 1, "{}", panel["title"]);
        (panel, targets[0]["rawSql"].as_str().unwrap())
    });
    queries.collect()
}

/// Rows that were sent and set aside, an entity that is not registered, a backfill, and a proof.
async fn scene_with_everything(pool: PgPool) -> TestEnv {
    let scene = TestEnv::new(pool).await;
    scene.entity("acme", "UTC").await;
    scene.entity("o'hara", "UTC").await;
    scene
        .sql(
            "insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance) values
                 ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'b', 'BTC', '2024-01-01Z', 'NaN'),
                 ('ghost', 'a', 'BTC', '2024-01-01Z', 1)",
        )
        .await;
    output_of(&scene, 3, &["run"]).await;
    output_of(&scene, 0, &["backfill", "--from", "2024-01-01", "--to", "2024-01-02", "--account", "a"]).await;
    output_of(&scene, 0, &["verify"]).await;
    scene
}

/// The statements of `reader.sql`, which psql runs, for a role of this database alone.
fn grants(role: &str) -> String {
    let text =
        read("deploy/grafana/reader.sql").replace(":'password'", "'x'").replace("elven_sync_dashboard", role);
    let kept = text.lines().filter(|line| !line.starts_with('\\') && !line.ends_with("\\gset"));
    kept.collect::<Vec<_>>().join("\n")
}

/// Two files that define a role of one name replace its password, or fail.
#[test]
fn each_role_is_defined_in_one_place() {
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let files = files_in("docs", "md").into_iter().chain(files_in("deploy", "sql"));
    for (name, text) in files {
        let roles =
            text.split("create role ").skip(1).map(|rest| rest.split([' ', ';']).next().unwrap_or_default());
        for role in roles.filter(|role| role.starts_with("elven_sync")) {
            places.entry(role.to_owned()).or_default().insert(name.clone());
        }
    }
    assert!(
        places.contains_key("elven_sync_read") && places.contains_key("elven_sync_dashboard"),
        "{places:?}"
    );
    assert!(places.values().all(|places| places.len() == 1), "{places:?}");
}

#[sqlx::test(migrations = false)]
async fn each_query_of_the_dashboard_works_for_a_role_that_only_reads(pool: PgPool) {
    let scene = scene_with_everything(pool).await;
    let oid = scene.text("select oid::text from pg_database where datname = current_database()").await;
    let role = format!("elven_sync_dashboard_{oid}");
    // A careful administrator: no role has a right that was not granted to it.
    scene.sql("revoke execute on all functions in schema elven_sync from public").await;
    sqlx::raw_sql(AssertSqlSafe(grants(&role))).execute(&scene.pool).await.unwrap();
    let separator = if scene.url.contains('?') { '&' } else { '?' };
    let reader =
        PgPool::connect(&format!("{}{separator}options=-c%20role%3D{role}", scene.url)).await.unwrap();
    let ledger = sqlx::raw_sql("select balance from ledger.balance_snapshots").execute(&reader).await;
    assert!(ledger.is_err(), "the role may not read the ledger");

    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let entity = &dashboard["templating"]["list"][1];
    assert_eq!(entity["name"], "entity");
    let listed = entity["query"].as_str().unwrap();
    let names: Vec<String> = sqlx::query_scalar(AssertSqlSafe(listed)).fetch_all(&reader).await.unwrap();
    assert_eq!(names, ["acme", "o'hara"]);
    // Grafana writes chosen values in quotes, and the value of All as it is.
    for entities in ["'acme','o''hara'", entity["allValue"].as_str().unwrap()] {
        for (panel, sql) in panels(&dashboard) {
            let sql = expanded(sql, entities);
            let rows = reader.fetch_all(AssertSqlSafe(sql.clone())).await;
            let rows = rows.unwrap_or_else(|error| panic!("{}: {error}\n{sql}", panel["title"]));
            assert!(!rows.is_empty(), "{}: no row\n{sql}", panel["title"]);
            let columns: BTreeSet<&str> = rows[0].columns().iter().map(Column::name).collect();
            if panel["type"] == "timeseries" {
                assert!(columns.contains("time"), "{}: {columns:?}", panel["title"]);
            }
            for setting in panel["fieldConfig"]["overrides"].as_array().unwrap() {
                let column = setting["matcher"]["options"].as_str().unwrap();
                assert!(columns.contains(column), "{}: no column {column}", panel["title"]);
            }
        }
    }
    reader.close().await;
    let gone = format!("drop owned by {role}; drop role {role}");
    sqlx::raw_sql(AssertSqlSafe(gone)).execute(&scene.pool).await.unwrap();
}

/// Grafana refuses or mixes up panels of one id; and a data source that is chosen nowhere has no name in the file.
#[test]
fn panels_have_ids_places_and_the_chosen_data_source() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<i64> = panels.iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = BTreeSet::new();
    for panel in panels {
        let number = |key: &str| panel["gridPos"][key].as_i64().unwrap();
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(x < 24 && taken.insert((x, y)), "{}: overlaps another at {x}, {y}", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
            assert_eq!(panel["targets"][0]["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
            assert!(
                panel["description"].as_str().is_some_and(|text| text.ends_with('.')),
                "{}",
                panel["title"]
            );
        }
    }
}
