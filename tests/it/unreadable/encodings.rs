//! Text that the encoding of the database cannot hold, and bytes that are no text.

use std::fmt::Write as _;

use sqlx::{AssertSqlSafe, ConnectOptions, PgPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{BACKFILL, assert_unfit_rows_are_set_aside};
use crate::support::{TestEnv, output_of};

/// An environment with its own database of another encoding.
async fn scene_in_encoding(pool: &PgPool, encoding: &str) -> TestEnv {
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(pool).await.unwrap();
    // A name has at most 63 bytes, and its end differs between tests.
    let name = format!("{}_{}", encoding.to_lowercase(), &name[name.len() - 40..]);
    let create = format!(
        "create database \"{name}\" encoding '{encoding}' template template0 lc_collate 'C' lc_ctype 'C'"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(pool).await.unwrap();
    let options = pool.connect_options().as_ref().clone().database(&name);
    TestEnv::new(PgPool::connect(options.to_url_lossy().as_str()).await.unwrap()).await
}

async fn drop_database(scene: TestEnv, pool: &PgPool) {
    let name = scene.text("select current_database()::text").await;
    scene.pool.close().await;
    sqlx::raw_sql(AssertSqlSafe(format!("drop database \"{name}\" with (force)")))
        .execute(pool)
        .await
        .unwrap();
}

/// Bytes that PostgreSQL accepts as text without a check.
const BYTES_AS_TEXT: &str = "create cast (bytea as text) without function";

#[sqlx::test(migrations = false)]
async fn undecodable_bytes_are_set_aside_and_others_sent(pool: PgPool) {
    // In UTF-8 by a cast, as in a damaged cluster; without an encoding; and bytes that are undefined in the encoding.
    for (encoding, bytes) in [("UTF8", "ff"), ("SQL_ASCII", "ff"), ("WIN1252", "81"), ("EUC_JP", "8ea1ff")] {
        let scene = scene_in_encoding(&pool, encoding).await;
        scene.entity("acme", "UTC").await;
        scene.sql(BYTES_AS_TEXT).await;
        let insert = format!(
            r"insert into ledger.balance_snapshots (id, entity_id, entity_account_id, currency, captured_at, balance)
              overriding system value values
                 (1, 'acme', 'a', 'BTC', '2024-01-01 10:00Z', 1),
                 (2, 'acme', '\x41{bytes}'::bytea::text, 'BTC', '2024-01-01 10:00Z', 2),
                 (3, 'acme', 'a', '\x41{bytes}'::bytea::text, '2024-01-01 10:00Z', 3),
                 (9, 'acme', 'b', 'BTC', '2024-01-01 11:00Z', 9)"
        );
        sqlx::raw_sql(AssertSqlSafe(insert)).execute(&scene.pool).await.unwrap();
        let unfit = [("2", "entity_account_id is not valid text"), ("3", "currency is not valid text")];
        assert_unfit_rows_are_set_aside(&scene, &unfit).await;
        let before = scene.received().len();
        output_of(&scene, 3, &[&BACKFILL[..], &["--dry-run"]].concat()).await;
        output_of(&scene, 3, &BACKFILL).await;
        assert_eq!(scene.received().len(), before + 2, "{encoding}");
        let names = output_of(&scene, 3, &["reference", "accounts"]).await;
        assert_eq!(names.matches("acme").count(), 3, "{encoding}: {names}");
        drop_database(scene, &pool).await;
    }
}

/// Starts an API that refuses each import with this message, and whose lists are empty.
async fn api_that_refuses(message: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let read = connection.read(&mut buffer).await.unwrap_or(0);
                    if read == 0 {
                        return;
                    }
                    request.extend_from_slice(&buffer[..read]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|line| {
                        let (name, value) = line.split_once(':')?;
                        name.eq_ignore_ascii_case("content-length")
                            .then(|| value.trim().parse::<usize>().ok())?
                    });
                    if body.len() < length.unwrap_or(0) {
                        continue;
                    }
                    let (status, answer) = if head.starts_with("GET") {
                        ("200 OK", r#"{"total":0,"list":[]}"#.to_owned())
                    } else {
                        let answer = format!(
                            r#"{{"status":"failed","data":{{"code":"{message}","message":"{message}"}}}}"#
                        );
                        ("400 Bad Request", answer)
                    };
                    let mut response = String::new();
                    let _ = write!(
                        response,
                        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{answer}",
                        answer.len()
                    );
                    let _ = connection.write_all(response.as_bytes()).await;
                    return;
                }
            });
        }
    });
    url
}

#[sqlx::test(migrations = false)]
async fn unstorable_message_is_stored_with_replacement_characters(pool: PgPool) {
    let message = "Größe: 账户不存在 😀";
    for (encoding, stored) in [
        ("UTF8", "Größe: 账户不存在 😀"),
        ("SQL_ASCII", "Größe: 账户不存在 😀"),
        ("LATIN1", "Größe: ????? ?"),
        ("WIN1252", "Größe: ????? ?"),
        // The encoding has these characters, but neither the umlaut nor the sharp s.
        ("EUC_CN", "Gr??e: 账户不存在 ?"),
    ] {
        let mut scene = scene_in_encoding(&pool, encoding).await;
        scene.entity("acme", "UTC").await;
        scene.sql("insert into ledger.balance_snapshots (entity_id, entity_account_id, currency, captured_at, balance)
                   values ('acme', 'a', 'BTC', '2024-01-01Z', 1), ('acme', 'b', 'BTC', '2024-01-01Z', 2)").await;
        let api = api_that_refuses(message).await;
        scene.set("ELVEN_API_URL", &api);
        let report = output_of(&scene, 3, &["run"]).await;
        assert!(report.contains("2 set aside"), "{encoding}: {report}");
        let errors = "select string_agg(concat_ws(' ', ledger_id, kind, api_code, message, record->>'entityAccountId'), E'\\n' order by ledger_id)
                        from elven_sync.sync_errors";
        let errors = scene.text(errors).await;
        assert_eq!(errors.matches(stored).count(), 6, "{encoding}: {errors}");
        let batches = "select string_agg(status, ',' order by batch_id) from elven_sync.sync_batches";
        assert_eq!(scene.text(batches).await, "split,rejected,rejected", "{encoding}");
        output_of(&scene, 3, &["errors", "retry"]).await;
        output_of(&scene, 0, &["run"]).await;
        // A stopped lane stores the message too, as do the run and a backfill.
        scene.set("ELVEN_SYNC_SYNC__MAX_REJECTIONS", "0");
        scene.sql("update ledger.balance_snapshots set balance = 3 where id = 1").await;
        output_of(&scene, 1, &["run"]).await;
        let stops = "select concat_ws(' ', (select last_error from elven_sync.sync_state), (select error from elven_sync.sync_runs order by run_id desc limit 1))";
        let stopped = scene.text(stops).await;
        assert_eq!(stopped.matches(stored).count(), 4, "{encoding}: {stopped}");
        output_of(&scene, 1, &BACKFILL).await;
        let of_backfill = scene.text("select error from elven_sync.sync_backfills").await;
        assert!(of_backfill.contains(stored), "{encoding}: {of_backfill}");
        let number = scene
            .text("select max(error_id)::text from elven_sync.sync_errors where resolved_at is null")
            .await;
        output_of(&scene, 0, &["errors", "resolve", &number, "--reason", message]).await;
        let resolution = scene
            .text("select string_agg(resolution, ',') from elven_sync.sync_errors where dismissed")
            .await;
        assert_eq!(resolution, stored, "{encoding}");
        drop_database(scene, &pool).await;
    }
}
