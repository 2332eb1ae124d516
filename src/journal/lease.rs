//! The right of one worker to work on one entity.

use super::Fence;

/// A lease on an entity. Every write of the lane names it.
///
/// By its owner as well: after a failover that loses the tail, epochs are given out again.
#[derive(Clone, Debug)]
pub struct Lease {
    /// The entity.
    pub entity_id: String,
    /// The worker.
    pub owner: String,
    /// Which of the leases given out on it.
    pub epoch: i64,
    /// What was sent and may still arrive, which is written down when the lease is given back.
    pub fence: Fence,
}

impl Lease {
    /// The lease with the fence of the one before it, if nobody had one in between: then the keys are known.
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

    /// Whoever had the lease in between may have sent something of which the keys are not known.
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
