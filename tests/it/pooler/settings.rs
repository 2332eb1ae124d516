//! Settings of the database behind a pooler: they hold in each server connection, and the pooler refuses options.

use elven_sync::sandbox::Options;
use sqlx::PgPool;

use super::{Pooler, database};
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
