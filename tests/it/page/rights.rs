//! A role that may only read is enough for the pages.

use elven_sync::config::Settings;
use elven_sync::database::Database;
use elven_sync::journal::status_page::{EntityPage, StatusPage};
use sqlx::{AssertSqlSafe, PgPool};
use url::Url;

use super::FILLED;
use crate::support::TestEnv;

#[sqlx::test(migrations = false)]
async fn role_that_may_only_read_is_enough(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    scene.sql(FILLED).await;
    let role = scene.text("select 'reads_' || left(md5(current_database()), 16)").await;
    let sql = async |sql: String| sqlx::raw_sql(AssertSqlSafe(sql)).execute(&scene.pool).await.unwrap();
    sql(format!(
        "revoke all on schema elven_sync from public; revoke all on all tables in schema elven_sync from public;
         revoke execute on all functions in schema elven_sync from public;
         create role {role} login; grant usage on schema elven_sync to {role};
         grant select on all tables in schema elven_sync to {role};
         grant execute on all functions in schema elven_sync to {role};
         alter role {role} set default_transaction_read_only = on"
    ))
    .await;
    let mut url = Url::parse(&scene.url).unwrap();
    url.set_username(&role).unwrap();
    let settings: Settings = scene.settings(&[("DATABASE_URL", url.as_str())]);
    let database =
        Database::connect(settings.database_url().unwrap(), 2, settings.database.reconnect_timeout)
            .await
            .unwrap();
    let page = StatusPage::read(&database).await.unwrap();
    assert_eq!((page.entities.total, page.day.quarters.len()), (8, 96));
    let entity = EntityPage::read(&database, "globex").await.unwrap().unwrap();
    assert_eq!(entity.entity.status, "failing");
    assert!(EntityPage::read(&database, "nobody").await.unwrap().is_none());
    database.close().await;
    sql(format!("drop owned by {role}; drop role {role}")).await;
}
