//! A service whose runtime does not run any more.

use std::time::{Duration, Instant};

use elven_sync::config::Flags;
use elven_sync::serve::{Options, Signals, listen, serve};
use sqlx::PgPool;
use tokio::sync::{mpsc, watch};

use super::get;
use crate::support::TestEnv;

/// A task that never yields blocks the runtime, and with it all runs. Only a restart helps.
#[sqlx::test(migrations = false)]
async fn a_frozen_runtime_is_unhealthy(pool: PgPool) {
    let scene = TestEnv::new(pool).await;
    let settings = scene.settings(&[]);
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (freeze, frozen) = std::sync::mpsc::channel::<Duration>();
    let service = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let (stop, stopped) = watch::channel(false);
            let (_hang_up, hangups) = mpsc::channel(1);
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if let Ok(time) = frozen.try_recv() {
                        std::thread::sleep(time);
                        tokio::time::sleep(Duration::from_secs(2)).await;
                        stop.send_replace(true);
                    }
                }
            });
            let every = Duration::from_hours(1);
            let options =
                Options { every, hosts: Vec::new(), page: false, flags: Flags::default(), settings };
            serve(options, listener, Signals { stop: stopped, hangups }).await.unwrap();
        });
    });
    assert_eq!(get(&address, "/healthz", &[]).await.status, 200);
    freeze.send(Duration::from_secs(14)).unwrap();
    let begun = Instant::now();
    let mut answer = get(&address, "/healthz", &[]).await;
    while answer.status == 200 && begun.elapsed() < Duration::from_secs(14) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = get(&address, "/healthz", &[]).await;
    }
    assert_eq!(answer.status, 503);
    assert!(answer.body.starts_with("the runtime has not run for 1"), "{answer:?}");
    assert!(begun.elapsed() > Duration::from_secs(9), "a short pause is no ailment");
    tokio::task::spawn_blocking(move || service.join().unwrap()).await.unwrap();
}
