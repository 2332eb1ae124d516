//! `errors resolve`: a person closes errors by number or by filter.

use sqlx::PgPool;

use super::scene_with_rows_set_aside;
use crate::support::output_of;

const RESOLVED: &str =
    "select coalesce(string_agg(concat_ws(' ', kind, resolution, dismissed), ',' order by error_id), '')
                          from elven_sync.sync_errors where resolved_at is not null";

#[sqlx::test(migrations = false)]
async fn several_errors_are_resolved_at_once_or_none(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    let numbers = "select string_agg(error_id::text, ' ' order by error_id) from elven_sync.sync_errors";
    let numbers = scene.text(numbers).await;
    let [first, second, third] = numbers.split(' ').collect::<Vec<_>>()[..] else { panic!("{numbers}") };
    let resolve = async |code, more: &[&str]| {
        let command = [&["errors", "resolve", "--reason", "closed"], more].concat();
        output_of(&scene, code, &command).await
    };
    assert!(resolve(1, &[first, "999"]).await.contains("there is no error 999; nothing was changed"));
    assert_eq!(scene.text(RESOLVED).await, "");
    let resolved = resolve(0, &[second, first, first]).await;
    assert!(
        resolved.contains(&format!("error {first} is resolved\nerror {second} is resolved\n")),
        "{resolved}"
    );
    assert!(resolve(1, &[third, first]).await.contains("already resolved: closed; nothing was changed"));
    assert_eq!(scene.text(RESOLVED).await.matches("closed t").count(), 2);
    assert_eq!(
        scene.text("select count(*)::text from elven_sync.sync_errors where resolved_at is null").await,
        "1"
    );
}

#[sqlx::test(migrations = false)]
async fn errors_are_resolved_by_entity_and_kind(pool: PgPool) {
    let scene = scene_with_rows_set_aside(pool).await;
    scene
        .sql("insert into elven_sync.sync_errors (entity_id, kind, message) values ('beta', 'config', 'x')")
        .await;
    let resolve = async |code, more: &[&str]| {
        let command = [&["errors", "resolve", "--reason", "closed"], more].concat();
        output_of(&scene, code, &command).await
    };
    // Without a number or a filter nothing is closed by mistake, and a filter next to a number is ambiguous.
    for wrong in [&[][..], &["1", "--entity", "acme"], &["1", "--all"], &["--all", "--kind", "auth"]] {
        assert!(resolve(2, wrong).await.contains("Usage"), "{wrong:?}");
    }
    assert!(resolve(2, &["--kind", "nope"]).await.contains("rejected_row"));
    for none in [&["--entity", "beta", "--kind", "rejected_row"][..], &["--entity", "typo"]] {
        let said = resolve(1, none).await;
        let open = "no error is open that matches; open: 2 rejected_row of `acme`, 1 invalid_row of `acme`, \
                    1 config of `beta`; nothing was changed";
        assert!(said.contains(open), "{said}");
    }
    let listed = output_of(&scene, 0, &["errors", "list", "--entity", "typo"]).await;
    assert!(listed.contains("2 rejected_row of `acme`"), "{listed}");
    assert_eq!(scene.text(RESOLVED).await, "");
    let resolved = resolve(0, &["--entity", "acme", "--kind", "rejected_row"]).await;
    assert!(resolved.contains("2 errors are resolved: 2 rejected_row"), "{resolved}");
    assert_eq!(scene.text(RESOLVED).await, "rejected_row closed t,rejected_row closed t");
    let rest = resolve(0, &["--all"]).await;
    assert!(rest.contains("2 errors are resolved: 1 config, 1 invalid_row"), "{rest}");
    assert!(resolve(0, &["--all"]).await.contains("no error is open"));
    assert!(resolve(1, &["--kind", "auth"]).await.contains("no error is open; nothing was changed"));
}
