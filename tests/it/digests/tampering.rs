//! An attacker with all rights on the sync tables, who knows how digests are made, and makes all of them again after the
//! alteration. Only a print that was kept elsewhere tells.

use sqlx::PgPool;

use super::{execute, print, print_file, verify_against, whole_journal};
use crate::backfill::add_minutes;
use crate::support::{TestEnv, output_of};

/// Makes all digests again: leaves (parts first), running digests, links and prints.
const FORGE: &str = "
    do $$ declare chain elven_sync.sync_links; before bytea; begin
        for level in 0..12 loop
            update elven_sync.sync_batches b set leaf = elven_sync.leaf(b) where leaf is not null;
        end loop;
        for chain in select * from elven_sync.sync_links order by entity_id, link loop
            before := (select digest from elven_sync.sync_links l
                        where l.entity_id = chain.entity_id and l.link = chain.link - 1);
            update elven_sync.sync_links l
               set digest = elven_sync.link_digest(l.kind, l.link, before, l.at, l.ref, c.fields, c.running)
              from elven_sync.link_contents(chain) c
             where l.entity_id = chain.entity_id and l.link = chain.link;
        end loop;
        update elven_sync.sync_state s
           set links = coalesce((select max(link) from elven_sync.sync_links l where l.entity_id = s.entity_id), 0),
               head = (select digest from elven_sync.sync_links l where l.entity_id = s.entity_id order by link desc limit 1),
               running = case when s.running is not null then (
                   select elven_sync.chain(b.leaf order by b.batch_id) from elven_sync.sync_batches b
                    where b.pass_id = s.pass_id and b.parent_id is null
                      and (b.last_xid, b.last_id::bigint) <= (s.cursor_xid, s.cursor_id::bigint)) end;
    end $$";

/// An alteration, and whether plain `verify` may still find something that does not fit.
struct Alteration {
    what: &'static str,
    sql: &'static str,
}

const ALTERATIONS: &[Alteration] = &[
    Alteration {
        what: "the hash of a body",
        sql: "update elven_sync.sync_batches set body_sha256 = repeat('0', 64) where batch_id = 1",
    },
    Alteration {
        what: "the outcome of a batch: it was not ambiguous",
        sql: "update elven_sync.sync_batches set ambiguous = not ambiguous where batch_id = 1",
    },
    Alteration {
        what: "the status of an answer",
        sql: "update elven_sync.sync_batches set http_status = 201 where batch_id = 1",
    },
    Alteration { what: "attempts", sql: "update elven_sync.sync_batches set attempts = 7 where batch_id = 1" },
    Alteration {
        what: "which rows were set aside",
        sql: "update elven_sync.sync_batches set rejected_ids = '\\x0102'
               where batch_id = (select max(batch_id) from elven_sync.sync_batches where rejected_ids is not null)",
    },
    Alteration {
        what: "why rows were set aside",
        sql: "update elven_sync.sync_batches set rejected_kinds = 'invalid_row:99'
               where batch_id = (select max(batch_id) from elven_sync.sync_batches where rejected_kinds is not null)",
    },
    Alteration {
        what: "rules of the zone",
        sql: "update elven_sync.sync_batches set zone_rules = '1999z' where batch_id = 1",
    },
    Alteration {
        what: "a batch of a retry",
        sql: "update elven_sync.sync_batches set body_sha256 = repeat('1', 64)
               where batch_id = (select max(batch_id) from elven_sync.sync_batches where pass_id is null and backfill_id is null)",
    },
    Alteration {
        what: "a batch of a backfill",
        sql: "update elven_sync.sync_batches set body_sha256 = repeat('2', 64)
               where batch_id = (select max(batch_id) from elven_sync.sync_batches where backfill_id is not null)",
    },
    Alteration {
        what: "a part of a batch",
        sql: "update elven_sync.sync_batches set attempts = attempts + 1
               where batch_id = (select max(batch_id) from elven_sync.sync_batches where parent_id is not null)",
    },
    Alteration {
        what: "a batch of a pass that was given up",
        sql: "update elven_sync.sync_batches set attempts = attempts + 1
               where batch_id = (select max(batch_id) from elven_sync.sync_batches
                                  where pass_id = (select max(given_up) from elven_sync.sync_passes))",
    },
    Alteration {
        what: "the watermark of a pass",
        sql: "update elven_sync.sync_passes set target = pg_current_snapshot() where pass_id = (select min(pass_id) from elven_sync.sync_passes where kind = 'pass')",
    },
    Alteration {
        what: "the time of a link",
        sql: "update elven_sync.sync_links set at = at - interval '1 day' where entity_id = 'acme' and link = 1",
    },
    Alteration {
        what: "a link is removed, and the later ones renumbered",
        sql: "delete from elven_sync.sync_links where entity_id = 'acme' and link = 2;
              update elven_sync.sync_links set link = link - 1 where entity_id = 'acme' and link = 3;
              update elven_sync.sync_links set link = link - 1 where entity_id = 'acme' and link = 4",
    },
    Alteration {
        what: "the last link is removed",
        sql: "delete from elven_sync.sync_links where entity_id = 'acme' and link = 4",
    },
    Alteration {
        what: "all links of an entity are removed, as if an earlier version had written its journal",
        sql: "delete from elven_sync.sync_links where entity_id = 'beta';
              update elven_sync.sync_batches set leaf = null where entity_id = 'beta'",
    },
    Alteration {
        what: "links are said to be folded by prune",
        sql: "update elven_sync.sync_state set folded = 3 where entity_id = 'acme';
              update elven_sync.sync_batches set attempts = 9 where batch_id = 1",
    },
    Alteration {
        what: "the reason of an action",
        sql: "update elven_sync.sync_actions set reason = 'another' where action = 'rewind'",
    },
    Alteration {
        what: "who did it",
        sql: "update elven_sync.sync_actions set actor = 'somebody' where action = 'rewind'",
    },
    Alteration { what: "an action is removed", sql: "delete from elven_sync.sync_actions where action = 'rewind'" },
    Alteration {
        what: "an action is added to a link",
        sql: "insert into elven_sync.sync_actions (action, link) values ('pause', 1)",
    },
    Alteration {
        what: "a batch is removed",
        sql: "update elven_sync.sync_errors set batch_id = null where batch_id = (select max(batch_id) from elven_sync.sync_batches where backfill_id is not null);
              delete from elven_sync.sync_batches where batch_id = (select max(batch_id) from elven_sync.sync_batches where backfill_id is not null)",
    },
    Alteration {
        what: "an entity is removed with all its journal",
        sql: "delete from elven_sync.sync_links where entity_id = 'beta';
              delete from elven_sync.sync_errors where entity_id = 'beta';
              delete from elven_sync.sync_batches where entity_id = 'beta';
              delete from elven_sync.sync_backfill_lanes where entity_id = 'beta';
              delete from elven_sync.sync_passes where entity_id = 'beta';
              delete from elven_sync.sync_state where entity_id = 'beta';
              delete from elven_sync.entities where entity_id = 'beta'",
    },
    Alteration { what: "the print", sql: "update elven_sync.sync_prints set at = at - interval '1 hour'" },
    Alteration { what: "what the print names", sql: "update elven_sync.sync_prints set heads = '[]'" },
    Alteration { what: "the root", sql: "update elven_sync.sync_prints set root = sha256('x')" },
    Alteration { what: "all prints are removed", sql: "delete from elven_sync.sync_prints" },
];

const TABLES: [&str; 10] = [
    "entities",
    "sync_state",
    "sync_passes",
    "sync_backfills",
    "sync_backfill_lanes",
    "sync_batches",
    "sync_errors",
    "sync_actions",
    "sync_links",
    "sync_prints",
];

async fn save(scene: &TestEnv) {
    // The registration of an entity would fill other tables.
    execute(scene, "create schema saved; alter table elven_sync.entities disable trigger user").await;
    for table in TABLES {
        execute(scene, &format!("create table saved.{table} as table elven_sync.{table}")).await;
    }
}

async fn restore(scene: &TestEnv) {
    let of = |table: &&str| format!("elven_sync.{table}");
    let all = TABLES.iter().map(of).collect::<Vec<_>>().join(", ");
    let mut sql = format!("set session_replication_role = replica; truncate {all} cascade; ");
    for table in TABLES {
        let insert = format!("insert into elven_sync.{table} overriding system value table saved.{table}; ");
        sql.push_str(&insert);
    }
    sql.push_str(
        "update elven_sync.sync_passes set written_by = pg_current_xact_id(); set session_replication_role = origin",
    );
    execute(scene, &sql).await;
}

/// Each alteration of what a print covers is found with it, although all digests are made again.
#[sqlx::test(migrations = false)]
async fn verify_against_a_print_finds_each_alteration_of_what_it_covers(pool: PgPool) {
    let scene = whole_journal(pool).await;
    let print = print(&scene).await;
    // What comes after the print is not covered, and does not disturb.
    add_minutes(&scene, "acme", 12).await;
    scene.run().await;
    output_of(&scene, 0, &["entity", "pause", "beta"]).await;
    super::print(&scene).await;
    let well = verify_against(&scene, &print, 0).await;
    assert!(well.contains("the journal extends print"), "{well}");
    save(&scene).await;
    let mut unseen = Vec::new();
    for Alteration { what, sql } in ALTERATIONS {
        // The references between the tables keep nobody with all rights from anything.
        execute(
            &scene,
            &format!("set session_replication_role = replica; {sql}; set session_replication_role = origin"),
        )
        .await;
        execute(&scene, FORGE).await;
        let output = scene.output(&["verify"]).await;
        let unproven = output.status.code();
        let file = print_file(&scene);
        let output = scene.output(&["verify", "--against", file.to_str().unwrap()]).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.code() != Some(3) || !(said.contains("print") || unproven == Some(3)) {
            unseen.push(format!("{what}: {:?} {said}", output.status.code()));
        }
        restore(&scene).await;
        let again = scene.output(&["verify", "--against", file.to_str().unwrap()]).await;
        assert_eq!(
            again.status.code(),
            Some(0),
            "restored after {what}: {}",
            String::from_utf8_lossy(&again.stdout)
        );
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n\n"));
}

/// What no print covers, and what the digests do not: free text of errors, durations, what came after the print.
#[sqlx::test(migrations = false)]
async fn what_a_print_does_not_cover_is_not_found(pool: PgPool) {
    let scene = whole_journal(pool).await;
    let print = print(&scene).await;
    execute(
        &scene,
        "update elven_sync.sync_batches set error = 'another', duration_ms = 1, finished_at = finished_at + interval '1 s';
         update elven_sync.sync_errors set message = 'another' where resolved_at is not null",
    )
    .await;
    verify_against(&scene, &print, 0).await;
}

/// Without a print, an alteration without new digests is found, and one with new digests is not, as `verify` says.
#[sqlx::test(migrations = false)]
async fn verify_finds_alterations_whose_digests_were_not_made_again(pool: PgPool) {
    let scene = whole_journal(pool).await;
    print(&scene).await;
    let well = output_of(&scene, 0, &["verify"]).await;
    assert!(well.contains("nobody has changed the journal together with its digests"), "{well}");
    save(&scene).await;
    for (what, sql) in [
        ("a batch", "update elven_sync.sync_batches set attempts = 5 where batch_id = 1"),
        ("a leaf", "update elven_sync.sync_batches set leaf = sha256('x') where batch_id = 1"),
        ("a link", "update elven_sync.sync_links set at = now() where entity_id = 'acme' and link = 2"),
        ("the head", "update elven_sync.sync_state set head = sha256('x') where entity_id = 'acme'"),
        ("an action", "update elven_sync.sync_actions set reason = 'another' where action = 'rewind'"),
    ] {
        execute(&scene, sql).await;
        let said = output_of(&scene, 3, &["verify"]).await;
        assert!(said.contains("hint: find out who has changed it"), "{what}: {said}");
        restore(&scene).await;
    }
}
