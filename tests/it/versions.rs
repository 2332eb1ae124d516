//! The version of PostgreSQL that `make test-versions` starts.

use sqlx::PgPool;

use crate::support::variable;

/// Without this test, the tests of a version would pass on another one whose programs were found instead.
#[sqlx::test(migrations = false)]
async fn server_has_the_version_that_is_tested(pool: PgPool) {
    let Some(wanted) = variable("ELVEN_TEST_PG_VERSION") else { return };
    let found = "select current_setting('server_version_num')::bigint / 10000";
    let found: i64 = sqlx::query_scalar(found).fetch_one(&pool).await.unwrap();
    assert_eq!(found, wanted, "the server is of another major version");
}
