//! A limit that the lanes of all credentials share, without one credential keeping another one from working.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A limit of permits for all credentials together. Who waits longest comes first. If the limit is reached, a
/// credential that has no permit may take one in reserve; there are as many of these as the limit has.
#[derive(Clone, Debug)]
pub(super) struct SharedLimit(Arc<Mutex<Permits>>);

#[derive(Debug)]
struct Permits {
    max: usize,
    used: usize,
    /// By credential; none is 0.
    used_by: BTreeMap<Arc<str>, usize>,
    /// None of these may take a permit now.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    credential: Arc<str>,
    granted: oneshot::Sender<SharedPermit>,
}

/// A permit within a limit for all lanes together. It is released when it is dropped.
#[derive(Debug)]
pub(super) struct SharedPermit {
    limit: SharedLimit,
    credential: Arc<str>,
}

impl SharedLimit {
    pub(super) fn new(max: usize) -> Self {
        let (used_by, waiting) = (BTreeMap::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(Permits { max, used: 0, used_by, waiting })))
    }

    fn permits(&self) -> MutexGuard<'_, Permits> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit. `None`: the limit is gone.
    pub(super) async fn acquire(&self, credential: &Arc<str>) -> Option<SharedPermit> {
        let received = {
            let mut permits = self.permits();
            if permits.take(credential) {
                drop(permits);
                return Some(self.permit(credential));
            }
            let (granted, received) = oneshot::channel();
            permits.waiting.push_back(Waiting { credential: credential.clone(), granted });
            received
        };
        received.await.ok()
    }

    /// Returns a permit if one is free.
    pub(super) fn free(&self, credential: &Arc<str>) -> Option<SharedPermit> {
        let may = self.permits().take(credential);
        may.then(|| self.permit(credential))
    }

    fn permit(&self, credential: &Arc<str>) -> SharedPermit {
        SharedPermit { limit: self.clone(), credential: credential.clone() }
    }
}

impl Permits {
    /// Takes a permit if the credential may have one more.
    fn take(&mut self, credential: &Arc<str>) -> bool {
        let in_reserve = || !self.used_by.contains_key(credential) && self.used < self.max.saturating_mul(2);
        let may = self.used < self.max || in_reserve();
        if may {
            self.used += 1;
            *self.used_by.entry(credential.clone()).or_default() += 1;
        }
        may
    }

    /// Takes a permit back, and returns who may have one now. Their permits are taken.
    fn release(&mut self, credential: &Arc<str>) -> Vec<Waiting> {
        self.used -= 1;
        if let Some(used) = self.used_by.get_mut(credential) {
            *used -= 1;
            if *used == 0 {
                self.used_by.remove(credential);
            }
        }
        let mut granted = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.granted.is_closed() {
                continue;
            }
            if self.take(&waiting.credential) {
                granted.push(waiting);
            } else {
                self.waiting.push_back(waiting);
            }
        }
        granted
    }
}

impl Drop for SharedPermit {
    fn drop(&mut self) {
        let granted = self.limit.permits().release(&self.credential);
        for Waiting { credential, granted } in granted {
            // Who no longer waits returns the permit, which is dropped here.
            let _ = granted.send(self.limit.permit(&credential));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_credential_without_a_permit_waits_for_no_other_credential() {
        let limit = SharedLimit::new(2);
        let names = ["one", "two", "three", "four"].map(Arc::<str>::from);
        let [one, two, three, four] = &names;
        let take = |credential| limit.free(credential);
        let of_one = [take(one), take(one)];
        assert!(of_one.iter().all(Option::is_some) && take(one).is_none(), "the limit holds");
        let of_two = take(two);
        assert!(of_two.is_some() && take(two).is_none(), "one in reserve");
        let of_three = take(three);
        assert!(of_three.is_some() && take(four).is_none(), "the reserve has as many as the limit");
        drop(of_three);
        assert!(take(four).is_some());
        drop(of_one);
        let more_of_two = take(two);
        assert!(more_of_two.is_some(), "within the limit");
        assert!(take(two).is_none() && take(one).is_some());
    }

    #[tokio::test]
    async fn who_waits_longest_comes_first() {
        let limit = SharedLimit::new(1);
        let names = ["one", "two"].map(Arc::<str>::from);
        let [one, two] = &names;
        let first = limit.acquire(one).await.unwrap();
        let of_two = limit.acquire(two).await.unwrap();
        let mut waiting = [limit.acquire(one), limit.acquire(two), limit.acquire(one)].map(Box::pin);
        for waiting in &mut waiting {
            assert!(waiting.now_or_never().is_none());
        }
        let [second, of_two_next, third] = &mut waiting;
        drop(of_two);
        let of_two = of_two_next.now_or_never().flatten();
        assert!(of_two.is_some(), "a later waiter whose credential has no permit any more");
        drop(of_two);
        drop(first);
        let second = second.now_or_never().flatten();
        assert!(second.is_some() && third.now_or_never().is_none());
        drop(second);
        assert!(third.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn a_permit_for_a_waiter_that_is_gone_goes_to_the_next_one() {
        let limit = SharedLimit::new(1);
        let one = Arc::from("one");
        let first = limit.acquire(&one).await.unwrap();
        let mut gone = [limit.acquire(&one), limit.acquire(&one)].map(Box::pin);
        let mut next = Box::pin(limit.acquire(&one));
        assert!(
            gone.iter_mut().all(|gone| gone.now_or_never().is_none()) && (&mut next).now_or_never().is_none()
        );
        let [gone_before, gone_after] = gone;
        drop(gone_before);
        drop(first);
        // Its permit was granted, but not taken.
        drop(gone_after);
        assert!(next.now_or_never().flatten().is_some());
        assert_eq!(limit.permits().used, 0);
    }
}
