//! Recovery: what was being sent when its worker stopped.

use super::{Journal, Lease};

impl Journal {
    pub(super) async fn recover_pass(&self, pass_id: i64, lease: &Lease) -> Result<(), sqlx::Error> {
        let recovered = self.database.execute(|| {
            sqlx::query!(
                "update elven_sync.sync_batches b set status = 'unknown'
                  where b.entity_id = $2 and elven_sync.is_open(b.status, b.row_count) and b.pass_id = $1
                    and b.status = 'sending' and b.attempts > 0 and b.row_count > 0
                    and exists (select from elven_sync.sync_state s
                                 where s.entity_id = $2 and s.lease_epoch = $3 and s.lease_owner = $4)",
                pass_id,
                lease.entity_id,
                lease.epoch,
                lease.owner
            )
        });
        recovered.await.map(drop)
    }

    pub(super) async fn recover_backfill(&self, backfill_id: i64, lease: &Lease) -> Result<(), sqlx::Error> {
        let recovered = self.database.execute(|| {
            sqlx::query!(
                "update elven_sync.sync_batches b set status = 'unknown'
                  where b.entity_id = $2 and elven_sync.is_open(b.status, b.row_count) and b.backfill_id = $1
                    and b.status = 'sending' and b.attempts > 0 and b.row_count > 0
                    and exists (select from elven_sync.sync_state s
                                 where s.entity_id = $2 and s.lease_epoch = $3 and s.lease_owner = $4)",
                backfill_id,
                lease.entity_id,
                lease.epoch,
                lease.owner
            )
        });
        recovered.await.map(drop)
    }
}
