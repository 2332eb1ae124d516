//! What a lane asks of the journal: leases, passes, and the writes about its batches.
//!
//! [`Journal`] answers from PostgreSQL. A simulation of lanes answers from a model.

use std::fmt;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::accepted::Accepted;
use super::leases::{Opened, Taken};
use super::writer::{JournalWrite, PendingWrite, WriteRequest};
use super::{
    Blocker, Journal, JournalError, KnownName, Lasts, Lease, NewPass, OpenWork, Problem, Purpose,
    RecordedBatch, StoredList, WorkContext,
};
use crate::batch::RecordRules;
use crate::elven::{List, ListEntry};

/// The answer of the journal, when it has come.
pub type Reply<'a, T> = BoxFuture<'a, Result<T, JournalError>>;

/// What a lane asks of the journal.
pub trait LaneStore: fmt::Debug + Send + Sync {
    /// Submits a write about batches. The writes of a lane are written in the order in which they are submitted.
    fn submit(&self, request: WriteRequest);

    /// Leases an entity and, in the same transaction, opens a pass if one is wanted and the entity is still in the
    /// expected state.
    fn take_and_open<'a>(
        &'a self,
        entity_id: &'a str,
        opening: Option<NewPass<'a>>,
        purpose: Purpose,
    ) -> Reply<'a, Taken>;

    /// Records that a worker waits for an entity which a backfill has, so that the backfill releases it.
    fn want<'a>(&'a self, entity_id: &'a str) -> Reply<'a, ()>;

    /// Checks that this worker still has a lease before something is sent under it, and renews the lease if it has
    /// expired. Returns how long it lasts.
    fn check_lease<'a>(&'a self, lease: &'a Lease) -> Reply<'a, Lasts>;

    /// Releases a lease, and records until when its attempts may still arrive.
    fn release<'a>(&'a self, lease: &'a Lease) -> Reply<'a, ()>;

    /// Adds the link of a slice of a retry that ends, under its lease.
    fn end_retry_slice<'a>(&'a self, lease: &'a Lease) -> Reply<'a, ()>;

    /// Opens a pass under a lease, after the entity's watermark.
    fn open_pass<'a>(&'a self, lease: &'a Lease, opening: NewPass<'a>) -> Reply<'a, Opened>;

    /// Records the mapping where an earlier version of elven-sync has not recorded it.
    fn fill_mapping<'a>(&'a self, lease: &'a Lease, mapping: &'a str) -> Reply<'a, ()>;

    /// Records that a lane stopped, why, and how long the API asked not to be called. Releases its lease.
    fn lane_failed<'a>(
        &'a self,
        lease: &'a Lease,
        run_id: i64,
        problem: &'a Problem,
        not_before: Option<Duration>,
    ) -> Reply<'a, ()>;

    /// Records problems that keep entities from being worked on, without leases.
    fn lanes_failed<'a>(&'a self, run_id: i64, problems: &'a [(String, Problem)]) -> Reply<'a, ()>;

    /// Returns the sessions that keep rows of an entity, or the row of a run, locked.
    fn blockers<'a>(&'a self, entity_id: &'a str, run_id: i64) -> Reply<'a, Vec<Blocker>>;

    /// Records that the entity of a lease is up to date, and releases the lease.
    fn lane_succeeded<'a>(&'a self, lease: &'a Lease) -> Reply<'a, ()>;

    /// Reads the batches that are recorded for the work: those after its cursor, and those before it that have no
    /// answer. A retry has none: it reads the errors again.
    fn batches<'a>(&'a self, pass: &'a OpenWork) -> Reply<'a, Vec<RecordedBatch>>;

    /// Counts the rows of an entity that the API refused and that are still set aside.
    fn rejections<'a>(&'a self, entity_id: &'a str) -> Reply<'a, usize>;

    /// Returns the latest accepted batches of an entity in this time zone and of this form, the newest first.
    fn accepted_lately<'a>(&'a self, entity_id: &'a str, rules: &'a RecordRules) -> Reply<'a, Vec<Accepted>>;

    /// Returns whether the API ever accepted a record of an entity.
    fn has_accepted<'a>(&'a self, entity_id: &'a str) -> Reply<'a, bool>;

    /// Returns the names of a list of a credential, if the list was stored within this time.
    fn recent_list<'a>(
        &'a self,
        credential: &'a str,
        list: List,
        age_max: Duration,
    ) -> Reply<'a, Option<Vec<String>>>;

    /// Stores a list of a credential in place of the list before.
    fn keep_list<'a>(&'a self, credential: &'a str, list: List, entries: &'a [ListEntry])
    -> Reply<'a, usize>;
}

impl dyn LaneStore + '_ {
    /// Submits a write, to be waited for.
    pub(super) fn write(&self, context: WorkContext<'_>, writing: JournalWrite) -> PendingWrite {
        let (request, pending) = WriteRequest::new(context, writing);
        self.submit(request);
        pending
    }
}

impl LaneStore for Journal {
    fn submit(&self, request: WriteRequest) {
        self.group.submit(request);
    }

    fn take_and_open<'a>(
        &'a self,
        entity_id: &'a str,
        opening: Option<NewPass<'a>>,
        purpose: Purpose,
    ) -> Reply<'a, Taken> {
        Journal::take_and_open(self, entity_id, opening, purpose).boxed()
    }

    fn want<'a>(&'a self, entity_id: &'a str) -> Reply<'a, ()> {
        Journal::want(self, entity_id).boxed()
    }

    fn check_lease<'a>(&'a self, lease: &'a Lease) -> Reply<'a, Lasts> {
        Journal::check_lease(self, lease).boxed()
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> Reply<'a, ()> {
        Journal::release(self, lease).boxed()
    }

    fn end_retry_slice<'a>(&'a self, lease: &'a Lease) -> Reply<'a, ()> {
        Journal::end_retry_slice(self, lease).boxed()
    }

    fn open_pass<'a>(&'a self, lease: &'a Lease, opening: NewPass<'a>) -> Reply<'a, Opened> {
        Journal::open_pass(self, lease, opening).boxed()
    }

    fn fill_mapping<'a>(&'a self, lease: &'a Lease, mapping: &'a str) -> Reply<'a, ()> {
        Journal::fill_mapping(self, lease, mapping).boxed()
    }

    fn lane_failed<'a>(
        &'a self,
        lease: &'a Lease,
        run_id: i64,
        problem: &'a Problem,
        not_before: Option<Duration>,
    ) -> Reply<'a, ()> {
        Journal::lane_failed(self, lease, run_id, problem, not_before).boxed()
    }

    fn lanes_failed<'a>(&'a self, run_id: i64, problems: &'a [(String, Problem)]) -> Reply<'a, ()> {
        Journal::lanes_failed(self, run_id, problems).boxed()
    }

    fn blockers<'a>(&'a self, entity_id: &'a str, run_id: i64) -> Reply<'a, Vec<Blocker>> {
        Journal::blockers(self, entity_id, run_id).boxed()
    }

    fn lane_succeeded<'a>(&'a self, lease: &'a Lease) -> Reply<'a, ()> {
        Journal::lane_succeeded(self, lease).boxed()
    }

    fn batches<'a>(&'a self, pass: &'a OpenWork) -> Reply<'a, Vec<RecordedBatch>> {
        Journal::batches(self, pass).boxed()
    }

    fn rejections<'a>(&'a self, entity_id: &'a str) -> Reply<'a, usize> {
        Journal::rejections(self, entity_id).boxed()
    }

    fn accepted_lately<'a>(&'a self, entity_id: &'a str, rules: &'a RecordRules) -> Reply<'a, Vec<Accepted>> {
        Journal::accepted_lately(self, entity_id, rules).boxed()
    }

    fn has_accepted<'a>(&'a self, entity_id: &'a str) -> Reply<'a, bool> {
        Journal::has_accepted(self, entity_id).boxed()
    }

    fn recent_list<'a>(
        &'a self,
        credential: &'a str,
        list: List,
        age_max: Duration,
    ) -> Reply<'a, Option<Vec<String>>> {
        KnownName::recent(&self.database, credential, list, age_max).boxed()
    }

    fn keep_list<'a>(
        &'a self,
        credential: &'a str,
        list: List,
        entries: &'a [ListEntry],
    ) -> Reply<'a, usize> {
        StoredList::replace(&self.database, credential, list, entries).boxed()
    }
}
