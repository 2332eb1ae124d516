//! A process that runs workers: it may crash between any two steps, and freeze.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::world::World;

/// The most steps after which a process that is to crash does so.
const STEPS_MAX: u64 = 60;

#[derive(Debug)]
pub struct Process {
    pub world: Arc<World>,
    pub name: String,
    /// The steps that are left before it crashes. `u64::MAX`: it does not crash.
    steps_left: AtomicU64,
    /// From when, and how long, it is frozen.
    frozen: Option<(Instant, Duration)>,
    /// Becomes true when it has crashed.
    pub crashed: watch::Sender<bool>,
    /// Becomes true when a signal asks it to stop.
    pub stop: watch::Sender<bool>,
}

impl Process {
    pub fn start(world: &Arc<World>, name: String) -> Arc<Self> {
        let faults = world.faults;
        let steps_left = if world.happens(faults.crash) { world.below(STEPS_MAX) } else { u64::MAX };
        let frozen = world.happens(faults.freeze).then(|| (world.ms(0, 3_000), world.ms(500, 15_000)));
        let stop = watch::Sender::new(false);
        if world.happens(faults.shutdown) {
            let (stop, after) = (stop.clone(), world.ms(0, 3_000));
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                stop.send_replace(true);
            });
        }
        world.log(|| {
            let crash = if steps_left == u64::MAX {
                String::new()
            } else {
                format!(", crashes after {steps_left} steps")
            };
            let freeze = frozen.map_or_else(String::new, |(after, length)| {
                format!(", freezes after {after:?} for {length:?}")
            });
            format!("{name}: starts{crash}{freeze}")
        });
        Arc::new(Self {
            world: world.clone(),
            name,
            steps_left: AtomicU64::new(steps_left),
            frozen: frozen.map(|(after, length)| (Instant::now() + after, length)),
            crashed: watch::Sender::new(false),
            stop,
        })
    }

    /// The boundary of a step: time passes, and the process may crash or stand still here.
    pub async fn step(&self, from_ms: u64, to_ms: u64) {
        self.boundary();
        if *self.crashed.borrow() {
            std::future::pending::<()>().await;
        }
        let wait = self.world.ms(from_ms, to_ms);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if let Some((since, length)) = self.frozen
            && (since..since + length).contains(&Instant::now())
        {
            tokio::time::sleep_until(since + length).await;
        }
        if *self.crashed.borrow() {
            std::future::pending::<()>().await;
        }
    }

    fn boundary(&self) {
        let counted = self.steps_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left != u64::MAX).then(|| left.saturating_sub(1))
        });
        if counted == Ok(0) && !self.crashed.send_replace(true) {
            self.world.log(|| format!("{}: crashes", self.name));
        }
    }
}
