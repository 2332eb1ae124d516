//! Settings of the database behind a pooler: they hold in each server connection, and the pooler refuses options.

use elven_sync::sandbox::Options;
use sqlx::PgPool;

use super::{Pooler, database};
use crate::check::assert_found;
use crate::session_settings::{everything, scatter};
use crate::support::TestEnv;

#[sqlx::test(migrations = false)]
async fn drawn_settings_of_the_database_do_not_matter_behind_a_pooler(pool: PgPool) {
    let mut pooler = Pooler::new(&pool, "").await;
    let mut scene = TestEnv::connect_like(pool.clone(), Options::default()).await;
    scene.set("DATABASE_URL", &pooler.url(&database(&scene)));
    let expected = everything(&scene).await;
    sqlx::raw_sql("drop schema elven_sync, ledger cascade").execute(&pool).await.unwrap();
    let mut session = pool.acquire().await.unwrap();
    let seed = fastrand::u64(..1_000_000);
    let set = scatter(&mut session, None, seed).await;
    // The server connections of the pooler began before.
    pooler.kill();
    pooler.start().await;
    let mut scene = TestEnv::connect_like(pool, Options::default()).await;
    scene.set("DATABASE_URL", &pooler.url(&database(&scene)));
    println!("seed {seed}: {}", set.join("; "));
    assert_eq!(everything(&scene).await, expected, "seed {seed}");
}

/// A pooler in statement mode refuses transactions. It is found once, by its own check.
#[sqlx::test(migrations = false)]
async fn a_pooler_in_statement_mode_is_found(pool: PgPool) {
    let pooler = Pooler::new(&pool, "pool_mode = statement").await;
    let mut scene = TestEnv::new(pool).await;
    let right = scene.url.clone();
    scene.set("DATABASE_URL", &pooler.url(&database(&scene)));
    assert_found(&scene, "database.pooler", "failed", &["in statement mode", "set pool_mode = transaction"])
        .await;
    assert_found(&scene, "database.connection", "ok", &["connected to a pooler"]).await;
    assert_found(&scene, "database.schema", "skipped", &["needs database.pooler, which failed"]).await;
    scene.set("DATABASE_URL", &right);
    assert_found(&scene, "database.pooler", "ok", &["each of 3 transactions"]).await;
}
