//! 24 simulated hours of failures, a run each quarter of an hour: each message is counted.

use elven_sync::database::Database;
use elven_sync::journal::RunStatus;
use elven_sync::notify::after_run;
use elven_sync::sync::Worker;
use sqlx::PgPool;
use tokio::sync::watch;

use super::{minutes_pass, scene_with_webhook, set_guard};
use crate::alerts::add_row;
use crate::support::{TestEnv, fault_rules};

/// The quarter of an hour at this time.
const fn at(hour: u32, minute: u32) -> u32 {
    hour * 4 + minute / 15
}

/// Outages, a revoked key, flapping, an outage of all entities, a broken guard, 5,000 alerts at once, and recoveries.
#[sqlx::test(migrations = false)]
async fn day_of_failures_is_told_in_few_messages(pool: PgPool) {
    let (mut scene, receiver) = scene_with_webhook(pool).await;
    scene.set("ELVEN_SYNC_NOTIFY__HEARTBEAT_URL", &format!("{}/beat", receiver.url));
    scene.entity("beta", "UTC").await;
    let database = scene.database(16).await;
    let mut told = Vec::new();
    let mut heartbeats = 0;
    for quarter in 0..at(24, 0) {
        // The time of a row is that of its quarter.
        let time = format!("{:02}:{:02}", quarter / 4, quarter % 4 * 15);
        minutes_pass(&scene, 15).await;
        let rules: &[&str] = match quarter {
            // An outage of the API: after an hour, the rows are stale, too.
            q if (at(1, 0)..at(3, 0)).contains(&q) => &["unavailable"],
            q if (at(5, 0)..at(5, 45)).contains(&q) => &["revoked"],
            // It fails every other quarter, for four hours.
            q if (at(8, 0)..at(12, 0)).contains(&q) && q % 2 == 0 => &["unavailable"],
            q if (at(15, 0)..at(16, 0)).contains(&q) => &["unavailable"],
            _ => &[],
        };
        scene.sandbox.set_rules(fault_rules(rules));
        if quarter == at(14, 30) {
            scene
                .sql("insert into elven_sync.entities (entity_id, timezone) select 'n' || n, 'UTC' from generate_series(1, 30) n")
                .await;
        }
        if quarter == at(15, 0) {
            for n in 1..=30 {
                add_row(&scene, &format!("n{n}")).await;
            }
        }
        if quarter == at(18, 0) || quarter == at(19, 0) {
            set_guard(&scene, quarter == at(19, 0)).await;
        }
        if quarter == at(20, 0) {
            scene
                .sql(
                    "insert into elven_sync.entities (entity_id, timezone, paused, created_at)
                      select 'p' || n, 'UTC', true, now() - interval '8 days' from generate_series(1, 5000) n;
                      delete from elven_sync.sync_actions",
                )
                .await;
        }
        if quarter == at(22, 0) {
            scene.sql("delete from elven_sync.entities where paused").await;
        }
        add_row(&scene, "acme").await;
        add_row(&scene, "beta").await;
        let status = run(&scene, &database).await;
        assert_eq!(status == RunStatus::Succeeded, rules.is_empty(), "{time}: {status:?}");
        heartbeats += receiver.heartbeats();
        told.extend(receiver.told().into_iter().map(|message| format!("{time} {message}")));
    }
    assert_eq!(
        told,
        [
            "01:00 began Failing warning 2",
            "02:00 began Stale critical 2",
            "03:00 ended Failing warning 2",
            "03:00 ended Stale critical 2",
            "05:00 began Failing critical 2",
            "05:45 ended Failing critical 2",
            // The flapping: each hour, at the first run at which it holds.
            "08:00 began Failing warning 2",
            "08:15 ended Failing warning 2",
            "09:30 began Failing warning 2",
            "09:45 ended Failing warning 2",
            "11:00 began Failing warning 2",
            "11:15 ended Failing warning 2",
            "15:00 began Failing warning 32",
            "16:00 ended Failing warning 32",
            "18:00 began GuardBroken critical 1",
            "19:00 ended GuardBroken critical 1",
            "20:00 began Paused warning 5000",
            "22:00 ended Paused warning 5000",
        ]
    );
    assert_eq!(heartbeats, 96, "each run polled all entities");
    database.close().await;
}

/// Makes a run in this process, as `elven-sync run` and `serve` do.
async fn run(scene: &TestEnv, database: &Database) -> RunStatus {
    let settings = scene.settings(&[]);
    let (_sender, stop) = watch::channel(false);
    let worker = Worker::open(settings.clone(), database.clone(), stop.clone()).await.unwrap();
    let report = worker.run(&[]).await;
    after_run(&settings.notify, database, &stop, &report, true).await;
    report.unwrap().status
}
