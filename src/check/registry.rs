//! The table of the checks, in the order in which they are made. Their ids are public and never change.

use std::future::ready;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::finding::{Category, Outcome};
use super::surroundings::Surroundings;
use super::{
    api, configuration, data, database, entities, host, journal, ledger, ledger_files, pooler, standby,
};

type Make = for<'a> fn(&'a Surroundings) -> BoxFuture<'a, Outcome>;

/// A check.
pub(super) struct Check {
    pub(super) id: &'static str,
    pub(super) category: Category,
    /// When it fails, the later checks of its category are skipped.
    pub(super) is_fatal: bool,
    pub(super) make: Make,
}

const fn check(category: Category, id: &'static str, make: Make) -> Check {
    Check { id, category, is_fatal: false, make }
}

const fn fatal(category: Category, id: &'static str, make: Make) -> Check {
    Check { id, category, is_fatal: true, make }
}

use Category::{Api, Configuration, Data, Database, Entities, Host, Journal, Ledger};

/// All checks.
pub(super) const CHECKS: &[Check] = &[
    fatal(Configuration, "configuration.load", |s| ready(Ok(configuration::load(s))).boxed()),
    check(Configuration, "configuration.variables", |s| ready(Ok(configuration::variables(s))).boxed()),
    check(Configuration, "configuration.secrets", |s| ready(configuration::secrets(s)).boxed()),
    check(Configuration, "configuration.secret_files", |s| ready(configuration::secret_files(s)).boxed()),
    check(Configuration, "configuration.durations", |s| ready(configuration::durations(s)).boxed()),
    fatal(Database, "database.connection", |s| database::connection(s).boxed()),
    fatal(Database, "database.pooler", |s| pooler::pooler(s).boxed()),
    check(Database, "database.version", |s| database::version(s).boxed()),
    check(Database, "database.tls", |s| database::tls(s).boxed()),
    check(Database, "database.primary", |s| database::primary(s).boxed()),
    check(Database, "database.standby", |s| standby::standby(s).boxed()),
    check(Database, "database.connections", |s| database::connections(s).boxed()),
    check(Database, "database.installations", |s| database::installations(s).boxed()),
    check(Database, "database.schema", |s| database::schema(s).boxed()),
    check(Database, "database.timeline", |s| database::timeline(s).boxed()),
    check(Database, "database.privileges", |s| database::privileges(s).boxed()),
    fatal(Ledger, "ledger.table", |s| ledger::table(s).boxed()),
    check(Ledger, "ledger.privileges", |s| ledger::privileges(s).boxed()),
    check(Ledger, "ledger.row_security", |s| ledger::row_security(s).boxed()),
    check(Ledger, "ledger.readable", |s| ledger::readable(s).boxed()),
    check(Ledger, "ledger.guard", |s| ledger::guard(s).boxed()),
    check(Ledger, "ledger.index", |s| ledger::index(s).boxed()),
    check(Ledger, "ledger.nulls", |s| ledger::nulls(s).boxed()),
    check(Ledger, "ledger.stamps", |s| ledger::stamps(s).boxed()),
    check(Ledger, "ledger.files", |s| ledger_files::files(s).boxed()),
    check(Ledger, "ledger.writers", |s| ledger::writers(s).boxed()),
    check(Ledger, "ledger.publications", |s| ledger::publications(s).boxed()),
    check(Entities, "entities.registered", |s| entities::registered(s).boxed()),
    check(Entities, "entities.unregistered", |s| entities::unregistered(s).boxed()),
    check(Entities, "entities.zones", |s| entities::zones(s).boxed()),
    check(Entities, "entities.zone_rules", |s| entities::zone_rules(s).boxed()),
    check(Entities, "entities.rows", |s| entities::rows(s).boxed()),
    check(Entities, "entities.credentials", |s| entities::credentials(s).boxed()),
    check(Entities, "entities.shared_keys", |s| entities::shared_keys(s).boxed()),
    fatal(Api, "api.reachable", |s| api::reachable(s).boxed()),
    check(Api, "api.key", |s| api::key(s).boxed()),
    check(Api, "api.envelope", |s| api::envelope(s).boxed()),
    check(Api, "api.clock", |s| api::clock(s).boxed()),
    check(Api, "api.round_trip", |s| api::round_trip(s).boxed()),
    check(Api, "api.import", |s| api::import(s).boxed()),
    check(Data, "data.accounts", |s| data::accounts(s).boxed()),
    check(Data, "data.currencies", |s| data::currencies(s).boxed()),
    check(Data, "data.amounts", |s| data::amounts(s).boxed()),
    check(Data, "data.decimals", |s| data::decimals(s).boxed()),
    check(Data, "data.times", |s| data::times(s).boxed()),
    check(Journal, "journal.watermarks", |s| journal::watermarks(s).boxed()),
    check(Journal, "journal.passes", |s| journal::passes(s).boxed()),
    check(Journal, "journal.batches", |s| journal::batches(s).boxed()),
    check(Journal, "journal.leases", |s| journal::leases(s).boxed()),
    check(Journal, "journal.errors", |s| journal::errors(s).boxed()),
    check(Journal, "journal.failing", |s| journal::failing(s).boxed()),
    check(Journal, "journal.alerts", |s| journal::alerts(s).boxed()),
    check(Journal, "journal.last_run", |s| journal::last_run(s).boxed()),
    check(Journal, "journal.verify", |s| journal::verify(s).boxed()),
    check(Journal, "journal.size", |s| journal::size(s).boxed()),
    check(Host, "host.clock", |s| host::clock(s).boxed()),
    check(Host, "host.files", |s| ready(host::files(s)).boxed()),
    check(Host, "host.zone_rules", |s| ready(host::zone_rules(s)).boxed()),
];

/// Returns the ids of all checks, in the order in which they are made.
pub fn ids() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|check| check.id)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The category is the prefix of the id, ids are unique, and the checks of a category stay together: a fatal one
    /// stops those behind it.
    #[test]
    fn ids_are_unique_and_begin_with_their_category() {
        let mut categories: Vec<Category> = CHECKS.iter().map(|check| check.category).collect();
        categories.dedup();
        assert_eq!(categories.len(), categories.iter().collect::<BTreeSet<_>>().len());
        for check in CHECKS {
            let name = check.id.strip_prefix(check.category.word()).and_then(|rest| rest.strip_prefix('.'));
            let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(name.is_some_and(is_name), "{}", check.id);
        }
        assert_eq!(ids().count(), ids().collect::<BTreeSet<_>>().len());
    }
}
