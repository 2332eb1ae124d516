//! The lease: the right of one worker to work on one entity.

use super::Fence;

/// A lease on an entity. Every write of the lane names it.
///
/// Writes also name its owner: after a failover that loses the newest writes, epochs are assigned again.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The entity.
    pub entity_id: String,
    /// The worker.
    pub owner: String,
    /// The number of the lease on this entity.
    pub epoch: i64,
    /// The attempts that may still arrive; recorded when the lease is released.
    pub fence: Fence,
}

impl Lease {
    /// Returns the lease with the fence of the previous lease, if no other worker had one in between: then the keys
    /// are known.
    #[must_use]
    pub fn after(self, before: Option<Lease>) -> Self {
        match before {
            Some(Lease { owner, epoch, fence, .. }) if owner == self.owner && epoch + 1 == self.epoch => {
                Self { fence, ..self }
            }
            _ => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn lease(owner: &str, epoch: i64) -> Lease {
        let fence = Fence::new(Duration::from_secs(30), None);
        Lease { entity_id: "acme".to_owned(), owner: owner.to_owned(), epoch, fence }
    }

    /// A worker that had the lease in between may have sent batches with unknown keys.
    #[test]
    fn a_lease_knows_the_keys_of_the_one_right_before_it_alone() {
        let before = lease("one", 4);
        let is_same = |after: &Lease| Arc::ptr_eq(&after.fence.0, &before.fence.0);
        assert!(is_same(&lease("one", 5).after(Some(before.clone()))));
        for (owner, epoch) in [("one", 6), ("other", 5), ("one", 4)] {
            assert!(!is_same(&lease(owner, epoch).after(Some(before.clone()))), "{owner} {epoch}");
        }
        assert!(!is_same(&lease("one", 5).after(None)));
    }
}
