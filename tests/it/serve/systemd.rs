//! Messages to systemd.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::PgPool;

use super::Service;
use crate::support::TestEnv;

/// Receives messages until one has these words, and returns all of them.
fn messages_until(socket: &UnixDatagram, words: &str) -> String {
    let mut received = String::new();
    while !received.contains(words) {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).unwrap_or_else(|_| panic!("no {words} in {received}"));
        received += std::str::from_utf8(&message[..length]).unwrap();
    }
    received
}

#[sqlx::test(migrations = false)]
async fn systemd_hears_of_the_start_a_reload_the_health_and_the_end(pool: PgPool) {
    let mut scene = TestEnv::new(pool).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    scene.set("NOTIFY_SOCKET", path.to_str().unwrap());
    scene.set("WATCHDOG_USEC", "400000");
    let service = Service::start(&scene, &["--every", "1h"]).await;
    messages_until(&socket, "READY=1\n");
    messages_until(&socket, "WATCHDOG=1\n");
    messages_until(&socket, "STATUS=run 1 succeeded");
    service.signal(Signal::SIGHUP);
    let reloaded = messages_until(&socket, "READY=1\n");
    let reloading = reloaded.find("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{reloaded}"));
    assert!(Some(reloading) < reloaded.find("READY=1"), "{reloaded}");
    service.signal(Signal::SIGTERM);
    messages_until(&socket, "STOPPING=1\n");
    assert_eq!(service.ended().await.0, Some(0));
}
