//! A worker freezes, another one takes over, and the first one is thawed: it moves nothing, and the API refuses what
//! it still sends.

use chrono::{DateTime, TimeDelta, Utc};
use elven_sync::fault_point::{Side, Step};
use elven_sync::sandbox::{Fault, Gate, Request};
use nix::sys::signal::Signal;
use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use super::points::{Point, points};
use super::{Case, SIGNATURE_WINDOW, at_each};

use crate::support::{FAULT_POINT, is_import, signal};

/// Lasts while the worker has the lease, and a while longer.
const OF_A_LEASE: [(Step, &[u32]); 9] = [
    (Step::TakeLease, &[1]),
    (Step::OpenPass, &[1]),
    (Step::Announce, &[1]),
    (Step::Send, &[1]),
    (Step::Settle, &[1]),
    (Step::Split, &[1]),
    (Step::SetAside, &[1]),
    (Step::ClosePass, &[1]),
    (Step::ReleaseLease, &[1]),
];

/// Whether the point lies after the check of lease and signature, so that an old signature is sent.
fn sends_late(point: Point) -> bool {
    matches!((point.0, point.1), (Step::Send, Side::Before))
}

impl Case {
    /// Starts a run that is to freeze. Its lease is shorter than the life of its signatures, so that a takeover at
    /// the end of the lease, and no later, would be too early.
    fn spawn(&mut self, point: Option<Point>) -> Child {
        self.scene.set("ELVEN_SYNC_API__SIGNATURE_WINDOW", &format!("{}ms", SIGNATURE_WINDOW.as_millis()));
        let mut command = self.scene.command(&["run", "--entity", &self.entities[0]]);
        command.env(FAULT_POINT, point.map(|point| format!("{point}=stop")).unwrap_or_default());
        command.spawn().unwrap()
    }

    fn imports(&self) -> Vec<Request> {
        self.scene.sandbox.requests().into_iter().filter(|request| is_import(&request.path)).collect()
    }

    /// Returns everything that a worker moves, apart from the times of its probes and successes.
    async fn state(&self) -> String {
        self.value(
            "select concat_ws(E'\\n',
                (select string_agg((to_jsonb(s) - 'checked_at')::text, E'\\n') from elven_sync.sync_state s
                  where entity_id = any (ENTITIES)),
                (select string_agg(to_jsonb(p)::text, E'\\n' order by pass_id) from elven_sync.sync_passes p
                  where entity_id = any (ENTITIES)),
                (select string_agg(to_jsonb(b)::text, E'\\n' order by batch_id) from elven_sync.sync_batches b
                  where entity_id = any (ENTITIES)),
                (select string_agg(to_jsonb(e)::text, E'\\n' order by error_id) from elven_sync.sync_errors e
                  where entity_id = any (ENTITIES)))",
        )
        .await
    }

    /// Lets another worker take over from a frozen one, after known rows were written again. Then thaws the first
    /// one. Returns the requests that it still sent.
    async fn is_taken_over(&mut self, child: Child, thaw: impl FnOnce()) -> Vec<Request> {
        self.update("(1, 2, 4)").await;
        let expires_at = sqlx::query_scalar::<_, DateTime<Utc>>(
            "select lease_expires_at from elven_sync.sync_state where entity_id = any ($1)",
        );
        let expires_at = expires_at.bind(&self.entities).fetch_one(&self.scene.pool).await.unwrap();
        let sent = self.imports().len();
        self.go_on().await;
        let early = expires_at + SIGNATURE_WINDOW - self.imports()[sent].at;
        assert!(early <= TimeDelta::zero(), "taken over while a signature was good for another {early}");
        let (state, received, sent) = (self.state().await, self.scene.received(), self.imports().len());
        thaw();
        signal(&child, Signal::SIGCONT);
        let output = child.wait_with_output().await.unwrap();
        assert!(output.status.code().is_some(), "{:?}", output.status);
        assert_eq!(self.state().await, state, "it moves nothing");
        assert_eq!(self.scene.received(), received, "nothing of what it sends is taken");
        self.assert_newest_values().await;
        self.imports().split_off(sent)
    }

    /// Asserts that the API has the current value of each account.
    async fn assert_newest_values(&self) {
        let newest: std::collections::BTreeMap<String, String> = self.scene.balances().into_iter().collect();
        let rows: Vec<(String, String)> = sqlx::query_as(
            "select entity_account_id, trim_scale(balance)::text from ledger.balance_snapshots
              where entity_id = any ($1) and currency = 'BTC' and balance <> 'NaN'",
        )
        .bind(&self.entities)
        .fetch_all(&self.scene.pool)
        .await
        .unwrap();
        assert!(rows.len() > 4);
        for (account, balance) in rows {
            assert_eq!(newest[&account], balance, "{account}");
        }
    }
}

#[sqlx::test(migrations = false)]
async fn worker_frozen_at_any_step_moves_nothing_after_takeover(pool: PgPool) {
    let freeze = async |case: &mut Case, point| {
        case.add_entity().await;
        let mut child = case.spawn(Some(point));
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        loop {
            let line = log.next_line().await.unwrap();
            if line.unwrap_or_else(|| panic!("{point} was not reached")).contains("stopped at a fault point")
            {
                break;
            }
        }
        let sent = case.is_taken_over(child, || ()).await;
        if sends_late(point) {
            let [late] = &sent[..] else { panic!("{sent:?}") };
            let message = late.message.as_deref().unwrap_or_default();
            assert!(late.status == Some(401) && message.contains("from the server's clock"), "{late:?}");
        } else {
            assert!(sent.is_empty(), "{sent:?}");
        }
    };
    let mut points = points(&OF_A_LEASE);
    points.retain(|point| {
        // A pass is opened with the taking of the lease, and the last one closed with its release.
        let has_no_lease = matches!(
            (point.0, point.1),
            (Step::TakeLease | Step::OpenPass, Side::Before)
                | (Step::ClosePass | Step::ReleaseLease, Side::After)
        );
        !has_no_lease
    });
    at_each(pool, points, freeze, async |_| ()).await;
}

/// The worker has sent a request and waits for the answer.
#[sqlx::test(migrations = false)]
async fn worker_frozen_before_the_answer_moves_nothing_after_takeover(pool: PgPool) {
    let freeze = async |case: &mut Case, _| {
        case.add_entity().await;
        let gate = Gate::new();
        case.scene.sandbox.inject(Fault::HoldResponse(gate.clone()));
        let child = case.spawn(None);
        gate.reached().await;
        signal(&child, Signal::SIGSTOP);
        assert_eq!(case.stand().await.in_flight().count(), 1);
        assert!(case.is_taken_over(child, || gate.open()).await.is_empty());
    };
    at_each(pool, vec![Point(Step::Send, Side::After, 1)], freeze, async |_| ()).await;
}
