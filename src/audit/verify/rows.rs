//! The check of the ledger rows against the claims of the batches.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::batches::{Claim, Leaf};
use super::checker::{Checker, NEWEST, ROWS_NAMED_MAX};
use super::finding::Finding;
use super::listener::{BatchListener, Body, CheckedLeaf, ReadBatch, XidSpan, touches};
use super::span::Span;
use crate::align::{Names, Offsets, Zone, Zones};
use crate::batch::{Batch, RecordForm, RecordRules, unpack_ids};
use crate::database::Transaction;
use crate::journal::audit::{self as records, JournalBatch};
use crate::journal::{BatchState, MapHistory};
use crate::ledger::{Interval, Row};
use crate::sync::RunError;
use crate::sync::watermark_check::start_over;
use crate::text::and_more;
use crate::watermark::{Cursor, LedgerId};

/// The number of rows that are read of an interval beyond those that its batch lists. Each of them is a finding.
const ROWS_TOO_MANY: usize = ROWS_NAMED_MAX + 1;
/// As a limit of rows: all. It is a `bigint` of SQL.
const ROWS_ALL: usize = isize::MAX as usize;

impl Claim<'_> {
    fn interval(&self) -> Interval<'_> {
        Interval {
            settled: self.link.settled.as_ref(),
            target: &self.link.target,
            after: self.after.clone(),
            until: self.until.clone(),
            rows_max: self.rows + ROWS_TOO_MANY,
        }
    }

    /// Whether the interval may have rows of these transactions.
    fn touches(&self, span: &XidSpan) -> bool {
        let xid = |cursor: &Option<Cursor>| cursor.as_ref().and_then(Cursor::xid);
        touches(span, self.link)
            && xid(&self.after).is_none_or(|after| after <= *span.end())
            && xid(&self.until).is_none_or(|until| until >= *span.start())
    }
}

impl Checker<'_> {
    /// Compares claims with the ledger, and with the errors of the rows that were set aside. With a listener that wants
    /// the rows of a period, only the claims that may have such rows.
    pub(super) async fn check_rows(
        &mut self,
        transaction: &mut Transaction,
        mut claims: Vec<Claim<'_>>,
        listener: &mut impl BatchListener,
    ) -> Result<(), RunError> {
        let span = listener.span();
        if let Some(span) = &span {
            claims.retain(|claim| claim.touches(span));
        }
        self.check_set_aside(transaction, &claims).await?;
        // Transaction ids of another cluster, and ids of another table, have no meaning in this ledger.
        if !self.fits {
            return Ok(());
        }
        let mut unlisted: BTreeMap<usize, Vec<LedgerId>> = BTreeMap::new();
        let left: Vec<HashMap<LedgerId, u32>> = {
            let (intervals, mut left): (Vec<_>, Vec<_>) = claims
                .iter_mut()
                .map(|claim| (std::mem::take(&mut claim.ids), &*claim))
                .map(|(ids, claim)| (claim.interval(), (ids, claim.is_done)))
                .unzip();
            let proven = &mut self.report.rows_proven;
            let row = |place: usize, id: LedgerId| {
                let Some((ids, is_done)) = left.get_mut(place) else { return };
                match ids.get_mut(&id).filter(|times| **times > 0) {
                    Some(times) => {
                        *times -= 1;
                        *proven += usize::from(*is_done);
                    }
                    None => unlisted.entry(place).or_default().push(id),
                }
            };
            self.ledger.listed(transaction, self.entity_id, &intervals, row).await?;
            left.into_iter().map(|(ids, _)| ids).collect()
        };
        for (_, left) in claims.iter().zip(left).filter(|(claim, _)| claim.is_done && claim.rows > 0) {
            self.newest.push_back(left);
            if self.newest.len() > NEWEST {
                self.newest.pop_front();
            }
        }
        for (place, ids) in unlisted {
            let claim = &claims[place];
            let count =
                if ids.len() > ROWS_NAMED_MAX { self.unlisted(transaction, claim).await? } else { ids.len() };
            let finding =
                unlisted_rows(claim, &ids, count, self.report.needs_rewind.then_some(self.entity_id));
            self.report.find(finding);
        }
        for claim in claims {
            if span.is_none() && !(claim.is_sampled && claim.leaves.iter().any(has_body)) {
                continue;
            }
            let rows = self.ledger.rows_of(transaction, self.entity_id, &claim.interval()).await?;
            let mut leaves = Vec::with_capacity(claim.leaves.len());
            for leaf in claim.leaves {
                let body = if has_body(&leaf) {
                    let recorded = rules_of(transaction, self.zones, leaf.batch.rules()).await?;
                    let names = self.recorded_names(transaction, &leaf).await?;
                    self.check_body(&leaf, &rows, recorded, names)
                } else {
                    Body::Empty
                };
                leaves.push(CheckedLeaf { leaf, body });
            }
            listener.read(transaction, ReadBatch { link: claim.link, leaves, rows }).await?;
        }
        Ok(())
    }

    /// Counts all rows of an interval that its batch does not list.
    async fn unlisted(&self, transaction: &mut Transaction, claim: &Claim<'_>) -> Result<usize, RunError> {
        let mut left: HashMap<&LedgerId, u32> = HashMap::new();
        for id in claim.leaves.iter().flat_map(|leaf| &leaf.ids) {
            *left.entry(id).or_insert(0) += 1;
        }
        let mut unlisted = 0;
        let row = |_, id: LedgerId| match left.get_mut(&id).filter(|times| **times > 0) {
            Some(times) => *times -= 1,
            None => unlisted += 1,
        };
        let interval = Interval { rows_max: ROWS_ALL, ..claim.interval() };
        self.ledger.listed(transaction, self.entity_id, &[interval], row).await?;
        Ok(unlisted)
    }

    /// Returns the names by the maps with which the body of a batch was made.
    async fn recorded_names(
        &mut self,
        transaction: &mut Transaction,
        leaf: &Leaf,
    ) -> Result<Names, RunError> {
        let version = leaf.batch.map_version;
        if version.is_none() {
            return Ok(Names::default());
        }
        let maps = match &mut self.maps {
            Some(maps) => maps,
            unread => unread.insert(MapHistory::read_in(transaction, self.entity_id).await?),
        };
        Ok(maps.names_at(self.entity_id, version))
    }

    /// Rebuilds a body, if none of its rows has changed, and compares its hash. Rows that were set aside are left out:
    /// they were not in the body, supersede nothing, and may have been corrected since. `recorded`: the zone with the
    /// rules of that time. `names`: the names of that time.
    fn check_body(&mut self, leaf: &Leaf, rows: &[Row], recorded: Option<Zone>, names: Names) -> Body {
        let batch = &leaf.batch;
        let all: HashSet<&LedgerId> = leaf.ids.iter().collect();
        // The order of rows that share an id is not defined, and a list of ids does not show which of these rows was
        // set aside.
        let has_ties = all.len() < leaf.ids.len();
        let set_aside = batch.rejected_ids.as_deref().filter(|_| !has_ties).and_then(unpack_ids);
        let set_aside: HashSet<LedgerId> =
            set_aside.unwrap_or_default().into_iter().filter(|id| all.contains(id)).collect();
        let rows: Vec<Row> = rows
            .iter()
            .filter(|row| all.contains(&row.id) && !set_aside.contains(&row.id))
            .cloned()
            .collect();
        if rows.is_empty() || rows.len() != leaf.ids.len() - set_aside.len() {
            self.report.bodies_changed += 1;
            return Body::Changed;
        }
        // The batch is from before the ids of rejected rows were recorded.
        let unknown_set_aside = batch.rows_rejected > 0 && batch.rejected_ids.is_none();
        let has_rules = recorded.is_some();
        let in_use = || match &batch.timezone {
            Some(name) => self.zones.get(name).ok(),
            None => self.zone.clone(),
        };
        let Some(zone) = recorded.or_else(in_use) else {
            self.report.bodies_not_provable += 1;
            return Body::NotProvable;
        };
        let kind = self.ledger.mapping().currency_kind.unwrap_or_default();
        let form = RecordForm::recorded(batch.api_version, batch.source_id.as_deref(), kind);
        let Some(form) = form else {
            self.report.bodies_not_provable += 1;
            return Body::NotProvable;
        };
        let made = Batch::build(None, rows, &RecordRules { zone, names: names.into(), form });
        if made.body_sha256 == batch.body_sha256 {
            self.report.bodies_proven += 1;
            Body::Proven(Box::new(made))
        } else if self.other_values_before.is_some_and(|pass_id| batch.pass_id < pass_id)
            || !has_rules
            || has_ties
            || unknown_set_aside
        {
            self.report.bodies_not_provable += 1;
            Body::NotProvable
        } else {
            self.report.resend = Span::around(self.report.resend, Span::of(&made.rows));
            let finding = other_body(batch.batch_id, self.entity_id, &made.rows);
            self.report.find(finding.of_pass(batch.pass_id));
            Body::Other
        }
    }

    /// Checks that each row that was set aside has an error in `sync_errors`.
    async fn check_set_aside(
        &mut self,
        transaction: &mut Transaction,
        claims: &[Claim<'_>],
    ) -> Result<(), RunError> {
        let leaves = claims.iter().filter(|claim| claim.is_done).flat_map(|claim| &claim.leaves);
        let leaves: Vec<&Leaf> = leaves.filter(|leaf| leaf.batch.rows_rejected > 0).collect();
        if leaves.is_empty() {
            return Ok(());
        }
        let mut asked: Vec<String> = Vec::new();
        let mut of_leaves: Vec<(&Leaf, Vec<String>)> = Vec::new();
        for leaf in leaves {
            self.report.rows_set_aside += i64::from(leaf.batch.rows_rejected);
            let ids = match &leaf.batch.rejected_ids {
                Some(packed) => unpack_ids(packed).unwrap_or_default(),
                // A batch from before these ids were recorded: only their number is known.
                None => leaf.ids.clone(),
            };
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            asked.extend(ids.iter().cloned());
            of_leaves.push((leaf, ids));
        }
        let batch_ids: Vec<i64> = of_leaves.iter().map(|(leaf, _)| leaf.batch.batch_id).collect();
        let found = records::with_error(transaction, self.entity_id, &asked, &batch_ids).await?;
        let found: HashSet<String> = found.into_iter().collect();
        for (leaf, ids) in of_leaves {
            let batch = &leaf.batch;
            if batch.rejected_ids.is_some() {
                for id in ids.into_iter().filter(|id| !found.contains(id)) {
                    let message = format!(
                        "batch {} set row {id} aside, but the row has no error in sync_errors: the error was removed; \
                         hint: update row {id} in the ledger, and the next run uploads it",
                        batch.batch_id
                    );
                    let finding = Finding::new("no_error", message).of_pass(batch.pass_id);
                    self.report.find(finding.of_batch(Some(batch.batch_id)).of_rows(vec![id]));
                }
                continue;
            }
            let distinct: HashSet<&String> = ids.iter().collect();
            let known = distinct.iter().filter(|id| found.contains(**id)).count();
            let expected = usize::try_from(batch.rows_rejected).unwrap_or(0);
            // Rows that share an id share an error.
            if distinct.len() == ids.len() && known < expected {
                let message = format!(
                    "batch {} set {expected} of its rows aside, but only {known} of them have an error in sync_errors: \
                     errors were removed; hint: {}",
                    batch.batch_id,
                    start_over(self.entity_id)
                );
                let finding = Finding::new("no_error", message).of_pass(batch.pass_id);
                self.report.find(finding.of_batch(Some(batch.batch_id)).mended_by_rewind());
            }
        }
        Ok(())
    }
}

/// What a batch records of the wall-clock times of its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RulesOfBatch<'a> {
    /// The zone, if it was noted.
    pub timezone: Option<&'a str>,
    /// The rules of the zone, if they were noted.
    pub zone_rules: Option<&'a str>,
    /// The version of the rules of the run that sent the batch.
    pub tzdata: &'a str,
}

impl JournalBatch {
    /// What it records of the wall-clock times of its body.
    pub(crate) fn rules(&self) -> RulesOfBatch<'_> {
        RulesOfBatch {
            timezone: self.timezone.as_deref(),
            zone_rules: self.zone_rules.as_deref(),
            tzdata: &self.tzdata,
        }
    }
}

/// Returns the zone of the body of a batch with the zone rules of that time. `None`: these rules are not known.
pub(crate) async fn rules_of(
    transaction: &mut Transaction,
    zones: &Zones,
    recorded: RulesOfBatch<'_>,
) -> Result<Option<Zone>, RunError> {
    let Some(name) = recorded.timezone else { return Ok(None) };
    let in_use = zones.get(name).ok();
    Ok(match recorded.zone_rules {
        Some(rules) if in_use.as_ref().is_some_and(|zone| zone.follows(rules)) => in_use,
        Some(rules) => {
            let offsets = records::offsets(transaction, name, rules).await?;
            offsets.map(|offsets| Zone::recorded(name, rules, offsets))
        }
        None if recorded.tzdata == chrono_tz::IANA_TZDB_VERSION => {
            Offsets::of_chrono_tz(name).map(|offsets| Zone::new(name, recorded.tzdata, offsets))
        }
        None => None,
    })
}

/// Returns whether the API accepted a body of this batch.
fn has_body(leaf: &Leaf) -> bool {
    leaf.batch.state == BatchState::Accepted && leaf.batch.row_count > 0
}

/// The finding that a rebuilt body differs from the body that was sent.
fn other_body(batch_id: i64, entity_id: &str, rows: &[Row]) -> Finding {
    let named: Vec<String> = rows.iter().take(ROWS_NAMED_MAX).map(|row| row.id.to_string()).collect();
    let message = format!(
        "the ledger now has other values for some of the rows that batch {batch_id} has sent ({}), although none \
         has a newer change_xid: a view or a mapping table that [ledger] reads has changed, rows were changed without \
         the trigger, or the recorded hash (body_sha256) was altered; Elven may hold the earlier values; hint: `{}` \
         sends the present values; the finding disappears after the rows are updated in the ledger, which gives them a \
         newer change_xid, and a run uploads them",
        and_more(&named, rows.len()),
        Span::backfill(Span::of(rows), entity_id)
    );
    Finding::new("body", message).of_batch(Some(batch_id)).of_rows(named)
}

/// The finding that an interval has `count` rows that its batch does not list. `ids`: the first of these rows.
/// `rewound`: the entity of which another finding asks for a rewind to the start, which uploads these rows, too.
fn unlisted_rows(claim: &Claim<'_>, ids: &[LedgerId], count: usize, rewound: Option<&str>) -> Finding {
    let (what, place) = match claim.batch_id {
        Some(batch_id) => (
            "unlisted_row",
            format!("are in the interval of batch {batch_id}, but the batch does not list them"),
        ),
        None => ("row_behind", "come after the last batch of their pass, which is closed".to_owned()),
    };
    let named: Vec<String> = ids.iter().take(ROWS_NAMED_MAX).map(ToString::to_string).collect();
    let remedy = match rewound {
        Some(entity_id) => format!("{}, also these rows", start_over(entity_id)),
        None => "update them in the ledger, and the next run uploads them".to_owned(),
    };
    let message = format!(
        "rows {} of the ledger {place}: they were inserted while the trigger was bypassed, so that their change_xid is \
         older than the watermark, or the journal was altered; they may not be uploaded; hint: {remedy}",
        and_more(&named, count)
    );
    let finding = Finding::new(what, message).of_pass(claim.link.pass_id).of_batch(claim.batch_id);
    Finding { is_mended_by_rewind: rewound.is_some(), ..finding.of_rows(named) }
}
