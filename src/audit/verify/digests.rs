//! The digests of the journal: whether each leaf, each link and each running digest is the one that the rest of the journal
//! gives, and whether the chains extend what prints have named.

use std::collections::{BTreeMap, BTreeSet};

use super::checker::EntityProof;
use super::finding::Finding;
use crate::database::Transaction;
use crate::journal::chain_records::{self as records, ChangeFields, LinkContents, LinkRecord, OpenDigest};
use crate::journal::{ACTIONS, Digest, Head, JournalError, OpenHead, RecordedLeaf, chained};

/// The ends of the chain of one entity that prints have named.
#[derive(Clone, Debug, Default)]
pub(crate) struct Named {
    /// The newest print that was given. Ends that have not changed before it are in earlier ones.
    pub(super) given: i64,
    /// The end of each print, with its number, in order.
    pub(super) heads: Vec<(i64, Head)>,
}

impl Named {
    /// Of the last print: the number and the end.
    fn last(&self) -> Option<&(i64, Head)> {
        self.heads.last()
    }

    fn open(&self) -> impl Iterator<Item = (i64, &OpenHead)> {
        self.heads.iter().flat_map(|(print_id, head)| head.open.iter().map(move |open| (*print_id, open)))
    }
}

/// The check of the chain of an entity.
struct Digests<'a> {
    entity_id: &'a str,
    named: &'a Named,
    report: &'a mut EntityProof,
    /// The places of open work that prints have named and that were found, by work and cursor.
    found: BTreeSet<Place>,
}

/// A place in work: `pass` or `backfill`, its number, and a cursor.
type Place = (&'static str, i64, String, String);

/// How far the batches of some work are chained.
#[derive(Default)]
struct Chaining {
    running: Option<Digest>,
    /// The running digest at the cursor that was asked for.
    at_cursor: Option<Digest>,
}

/// Checks the chain of an entity.
pub(super) async fn check(
    transaction: &mut Transaction,
    entity_id: &str,
    named: &Named,
    report: &mut EntityProof,
) -> Result<(), JournalError> {
    let mut digests = Digests { entity_id, named, report, found: BTreeSet::new() };
    digests.chain(transaction).await
}

/// The kinds of links that stand for a change of the watermark.
const CHANGES: [&str; 5] = ["adopted", "pass", "rewind", "rebind", "from_now"];

fn hint() -> &'static str {
    "hint: find out who has changed it, and restore it from a backup"
}

impl Digests<'_> {
    async fn chain(&mut self, transaction: &mut Transaction) -> Result<(), JournalError> {
        let state = records::chain_state(transaction, self.entity_id).await?;
        self.folded(state.folded);
        let (mut last, mut first): (Option<LinkRecord>, Option<LinkRecord>) = (None, None);
        let is_change = |link: &LinkRecord| CHANGES.contains(&&*link.kind);
        let mut retried_until = 0;
        loop {
            let after = last.as_ref().map_or(0, |last| last.link);
            let links = records::links_after(transaction, self.entity_id, after).await?;
            if links.is_empty() {
                break;
            }
            let checked: Vec<&LinkRecord> = links.iter().filter(|link| link.link > state.folded).collect();
            let contents = self.contents(transaction, &checked, retried_until, &links).await?;
            for link in &links {
                if link.link > state.folded {
                    first = first.or_else(|| is_change(link).then(|| link.clone()));
                    self.link(last.as_ref(), link, contents.get(&link.link));
                }
                if link.kind == "retry" {
                    retried_until = link.of.unwrap_or(retried_until);
                }
                last = Some(link.clone());
            }
        }
        let (links, head) = last.as_ref().map_or((0, None), |last| (last.link, Some(&last.digest)));
        if self.entity_id != ACTIONS && (links, head) != (state.links, state.head.as_ref()) {
            self.find(Finding::new(
                "digest",
                format!(
                    "the chain of digests ends with link {links}, but sync_state says link {}, or another digest; links \
                     were removed or added; {}",
                    state.links,
                    hint()
                ),
            ));
        }
        self.unreached(links);
        if self.entity_id != ACTIONS {
            self.unlinked(transaction, first.as_ref(), (state.links, state.folded)).await?;
            self.open(transaction, state.pass.iter(), &state.backfills).await?;
        }
        self.unfound(state.folded);
        Ok(())
    }

    fn find(&mut self, finding: Finding) {
        self.report.find(finding);
    }

    /// A print covers links that prune has folded since.
    fn folded(&mut self, folded: i64) {
        let print_id = self.named.given;
        if let Some((_, head)) = self.named.last()
            && folded > head.folded
            && head.links > head.folded
        {
            let (from, until) = (head.folded + 1, folded.min(head.links));
            self.find(Finding::new(
                "digest_folded",
                format!(
                    "print {print_id} covers links {from} to {until}, but `elven-sync prune` has removed since what they \
                     cover, so it cannot be shown that nothing was changed; hint: compare with a print that was made \
                     after that"
                ),
            ));
        }
    }

    /// Compares a link with what it covers, and with what prints have named.
    fn link(&mut self, before: Option<&LinkRecord>, link: &LinkRecord, contents: Option<&LinkContents>) {
        self.report.links += 1;
        let follows = before.map_or(link.link == 1, |before| before.link + 1 == link.link);
        let what = format!(
            "link {} ({}{})",
            link.link,
            link.kind,
            link.of.map_or(String::new(), |of| format!(" {of}"))
        );
        if !follows {
            self.find(Finding::new(
                "digest",
                format!("the link before {what} is missing from sync_links; {}", hint()),
            ));
        } else if let Some(contents) = contents {
            let made = link.made(before.map(|before| &before.digest[..]), contents);
            if made[..] != link.digest[..] {
                self.find(Finding::new(
                    "digest",
                    format!(
                        "{what} has another digest than what it covers: the link, or a row that it covers, was changed, \
                         added or removed after {}; {}",
                        link.at.format("%Y-%m-%d %H:%M:%SZ"),
                        hint()
                    ),
                ));
            }
        } else {
            self.find(Finding::new("digest", format!("what {what} refers to is missing; {}", hint())));
        }
        let digest = Some(hex::encode(&link.digest));
        let named = self.named.heads.iter().filter(|(_, head)| head.links == link.link);
        let other: Vec<i64> = named.filter(|(_, head)| head.digest != digest).map(|(id, _)| *id).collect();
        if let Some(print_id) = other.first() {
            self.find(Finding::new(
                "digest",
                format!(
                    "{what} has another digest than print {print_id} names: the journal up to this link is not the one \
                     of that time; {}",
                    hint()
                ),
            ));
        }
    }

    /// Makes what links cover, by link. `all`: all links of the page, which tell where retries begin.
    async fn contents(
        &mut self,
        transaction: &mut Transaction,
        links: &[&LinkRecord],
        mut retried_until: i64,
        all: &[LinkRecord],
    ) -> Result<BTreeMap<i64, LinkContents>, JournalError> {
        let of = |kinds: &[&str]| -> Vec<i64> {
            links.iter().filter(|link| kinds.contains(&&*link.kind)).filter_map(|link| link.of).collect()
        };
        let changes = of(&CHANGES);
        let changes = records::change_fields(transaction, self.entity_id, &changes).await?;
        let given_up = changes.values().filter_map(|change: &ChangeFields| change.given_up);
        let passes: BTreeSet<i64> = of(&["pass"]).into_iter().chain(given_up).collect();
        let passes = self.passes(transaction, &passes.into_iter().collect::<Vec<_>>(), None).await?;
        let lanes = of(&["backfill", "backfill_cancel"]);
        let lanes = records::lane_fields(transaction, self.entity_id, &lanes).await?;
        let actions: Vec<i64> =
            links.iter().filter(|link| link.kind == "actions").map(|link| link.link).collect();
        let actions = records::action_digests(transaction, &actions).await?;
        let running_of = |pass_id: i64| passes.get(&pass_id).and_then(|chaining| chaining.running);
        let mut contents = BTreeMap::new();
        for link in all {
            let of = link.of.unwrap_or_default();
            let is_checked = links.iter().any(|checked| checked.link == link.link);
            let made = match &*link.kind {
                _ if !is_checked => None,
                "pass" => changes.get(&of).map(|change| (change.fields.clone(), running_of(of))),
                "rewind" => changes
                    .get(&of)
                    .map(|change| (change.fields.clone(), change.given_up.and_then(running_of))),
                "adopted" | "rebind" | "from_now" => {
                    changes.get(&of).map(|change| (change.fields.clone(), None))
                }
                "backfill" | "backfill_cancel" => match lanes.get(&of) {
                    Some(fields) => {
                        let chaining = self.backfill(transaction, of, None).await?;
                        Some((fields.clone(), chaining.running))
                    }
                    None => None,
                },
                "retry" => Some((Vec::new(), self.retries(transaction, retried_until, of).await?)),
                _ => {
                    let digests = actions.get(&link.link).map(Vec::as_slice).unwrap_or_default();
                    let chain =
                        digests.iter().fold(None, |running, leaf| Some(chained(running.as_ref(), leaf)));
                    Some((Vec::new(), chain))
                }
            };
            if link.kind == "retry" {
                retried_until = of;
            }
            if let Some((fields, running)) = made {
                contents.insert(link.link, LinkContents { fields, running });
            }
        }
        Ok(contents)
    }

    /// Chains the batches of passes. `cursor`: also up to this place.
    async fn passes(
        &mut self,
        transaction: &mut Transaction,
        pass_ids: &[i64],
        cursor: Option<&(String, String)>,
    ) -> Result<BTreeMap<i64, Chaining>, JournalError> {
        let mut chains: BTreeMap<i64, Chaining> = BTreeMap::new();
        let mut after = (0, 0);
        loop {
            let batches = if pass_ids.is_empty() {
                Vec::new()
            } else {
                records::batches_of_passes(transaction, pass_ids, after).await?
            };
            let Some(last) = batches.last() else { return Ok(chains) };
            after = (last.pass_id.unwrap_or_default(), last.batch_id);
            for batch in &batches {
                let pass_id = batch.pass_id.unwrap_or_default();
                let chaining = chains.entry(pass_id).or_default();
                self.batch(batch, ("pass", pass_id), chaining, cursor)?;
            }
        }
    }

    /// Chains the batches of a backfill. `cursor`: also up to this place.
    async fn backfill(
        &mut self,
        transaction: &mut Transaction,
        backfill_id: i64,
        cursor: Option<&(String, String)>,
    ) -> Result<Chaining, JournalError> {
        let (mut chaining, mut after) = (Chaining::default(), 0);
        loop {
            let batches =
                records::batches_of_backfill(transaction, self.entity_id, backfill_id, after).await?;
            let Some(last) = batches.last() else { return Ok(chaining) };
            after = last.batch_id;
            for batch in &batches {
                self.batch(batch, ("backfill", backfill_id), &mut chaining, cursor)?;
            }
        }
    }

    /// Chains the batches of retries after one and up to another.
    async fn retries(
        &mut self,
        transaction: &mut Transaction,
        mut after: i64,
        until: i64,
    ) -> Result<Option<Digest>, JournalError> {
        let mut chaining = Chaining::default();
        loop {
            let batches = records::batches_of_retries(transaction, self.entity_id, after, until).await?;
            let Some(last) = batches.last() else { return Ok(chaining.running) };
            after = last.batch_id;
            for batch in &batches {
                self.batch(batch, ("retry", 0), &mut chaining, None)?;
            }
        }
    }

    /// Compares the leaf of a batch with what is recorded of it, and adds it to a chain.
    fn batch(
        &mut self,
        batch: &RecordedLeaf,
        work: (&'static str, i64),
        chaining: &mut Chaining,
        cursor: Option<&(String, String)>,
    ) -> Result<(), JournalError> {
        let Some(leaf) = batch.leaf()? else { return Ok(()) };
        self.report.leaves += 1;
        if leaf != batch.made()? {
            let message = format!(
                "batch {} has another leaf than what is recorded of it: it was changed after it was done; {}",
                batch.batch_id,
                hint()
            );
            self.find(Finding::new("digest", message).of_batch(Some(batch.batch_id)));
        }
        if batch.parent_id.is_some() {
            return Ok(());
        }
        chaining.running = Some(chained(chaining.running.as_ref(), &leaf));
        let end = batch.end();
        if cursor == Some(&end) {
            chaining.at_cursor = chaining.running;
        }
        let is_here = |open: &OpenHead| {
            (&*open.kind, open.of, &open.cursor_at, &open.cursor_id) == (work.0, work.1, &end.0, &end.1)
        };
        let running = chaining.running.map(hex::encode);
        let other =
            self.named.open().find(|(_, open)| is_here(open) && running.as_ref() != Some(&open.running));
        let other = other.map(|(print_id, _)| print_id);
        if self.named.open().any(|(_, open)| is_here(open)) {
            self.found.insert((work.0, work.1, end.0, end.1));
        }
        if let Some(print_id) = other {
            let message = format!(
                "the batches of {} {} up to batch {} have another running digest than print {print_id} names: one of them \
                 is not the one of that time; {}",
                work.0,
                work.1,
                batch.batch_id,
                hint()
            );
            self.find(Finding::new("digest", message).of_batch(Some(batch.batch_id)));
        }
        Ok(())
    }

    /// The chain ends before a link that a print names.
    fn unreached(&mut self, links: i64) {
        let missing = self.named.heads.iter().find(|(_, head)| head.links > links);
        if let Some((print_id, head)) = missing {
            let message = format!(
                "print {print_id} names link {}, but the chain ends with link {links}; {}",
                head.links,
                hint()
            );
            self.find(Finding::new("digest", message));
        }
    }

    /// Each change of the watermark has a link, after the first one that is not folded.
    async fn unlinked(
        &mut self,
        transaction: &mut Transaction,
        first: Option<&LinkRecord>,
        (links, folded): (i64, i64),
    ) -> Result<(), JournalError> {
        let after = match first {
            // Before an adoption, and before what is folded, there may be changes without a link.
            Some(first) if first.kind == "adopted" || folded > 0 => first.of.unwrap_or_default(),
            Some(_) => 0,
            None if links > 0 && folded == 0 => 0,
            // All is folded, or the next run adopts the journal of an earlier version.
            None => return Ok(()),
        };
        for pass_id in records::unlinked_changes(transaction, self.entity_id, after).await? {
            let message = format!(
                "pass {pass_id} has no link in sync_links, so it was not written by elven-sync; {}",
                hint()
            );
            self.find(Finding::new("digest", message).of_pass(pass_id));
        }
        Ok(())
    }

    /// Compares the running digests of open work with its batches.
    async fn open(
        &mut self,
        transaction: &mut Transaction,
        passes: impl Iterator<Item = &OpenDigest>,
        backfills: &[OpenDigest],
    ) -> Result<(), JournalError> {
        for pass in passes {
            let chains = self.passes(transaction, &[pass.of], pass.cursor.as_ref()).await?;
            let at_cursor = chains.get(&pass.of).and_then(|chaining| chaining.at_cursor);
            self.compare_running("pass", pass, at_cursor);
        }
        for lane in backfills {
            let chaining = self.backfill(transaction, lane.of, lane.cursor.as_ref()).await?;
            self.compare_running("backfill", lane, chaining.at_cursor);
        }
        Ok(())
    }

    fn compare_running(&mut self, kind: &str, open: &OpenDigest, at_cursor: Option<Digest>) {
        if open.running.as_deref() != at_cursor.as_ref().map(|running| &running[..]) {
            let message = format!(
                "the running digest of {kind} {} is not that of its batches up to the cursor: one of them, the cursor, or \
                 the digest was changed; {}",
                open.of,
                hint()
            );
            self.find(Finding::new("digest", message));
        }
    }

    /// Places that prints name and that no batch has any more.
    fn unfound(&mut self, folded: i64) {
        let named: Vec<(i64, OpenHead)> =
            self.named.open().map(|(print_id, open)| (print_id, open.clone())).collect();
        for (print_id, open) in named {
            let is_same = |place: &Place| {
                (place.0, place.1, &place.2, &place.3)
                    == (&*open.kind, open.of, &open.cursor_at, &open.cursor_id)
            };
            // What is folded is told once, by its links.
            if folded == 0 && !self.found.iter().any(is_same) {
                let message = format!(
                    "print {print_id} names a place in {} {} where no batch ends: batches were removed or changed; {}",
                    open.kind,
                    open.of,
                    hint()
                );
                self.find(Finding::new("digest", message));
            }
        }
    }
}
