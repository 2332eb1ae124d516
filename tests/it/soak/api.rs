//! The API: a sandbox with its own thread, so that it answers whatever the test waits for.

use std::cell::RefCell;
use std::fmt::Write as _;

use elven_sync::sandbox::{Credential, Options, Request, Rule, Sandbox};
use tokio::runtime::{Builder, Runtime};

use super::{ENTITIES, SIGNATURE_WINDOW, account_refused, entity_id, is_refused};
use crate::support::{KEY, SECRET};

pub struct Api {
    pub sandbox: Sandbox,
    /// All requests that were collected so far.
    requests: RefCell<Vec<Request>>,
    runtime: Option<Runtime>,
}

impl Api {
    pub async fn start(seed: u64) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options = Options {
            credentials: vec![Credential::new("default", KEY, SECRET)],
            signature_window: SIGNATURE_WINDOW,
            keep_records_max: usize::MAX,
            rules: rules(&[]),
            seed,
            ..Options::default()
        };
        let sandbox = runtime.spawn(Sandbox::start(options)).await.unwrap().unwrap();
        Self { sandbox, requests: RefCell::default(), runtime: Some(runtime) }
    }

    /// Sets the faults. Some accounts are refused in addition, as always.
    pub fn set_faults(&self, faults: &[&str]) {
        self.sandbox.set_rules(rules(faults));
    }

    /// Collects the newest requests. The sandbox keeps a bounded number, so this has to be called often enough.
    pub fn collect(&self) {
        let mut requests = self.requests.borrow_mut();
        let last = requests.last().map_or(0, |request| request.seq);
        let new = self.sandbox.requests().into_iter().filter(|request| request.seq > last);
        requests.extend(new);
        assert!(
            requests
                .iter()
                .rev()
                .zip(requests.iter().rev().skip(1))
                .take(10_000)
                .all(|(b, a)| b.seq == a.seq + 1),
            "requests were dropped before they were collected"
        );
    }

    /// All imports.
    pub fn imports(&self) -> Vec<Request> {
        self.collect();
        self.requests.borrow().iter().filter(|request| request.method == "POST").cloned().collect()
    }

    /// Returns SQL that counts the requests that were refused for their age after another process had taken the
    /// entity.
    pub fn count_expired_requests(&self) -> String {
        let mut values = String::from("('', now())");
        for late in
            self.imports().iter().filter(|request| request.status == Some(401) && request.fault.is_none())
        {
            write!(values, ", ('{}', '{}')", late.body_sha256, late.at.to_rfc3339()).unwrap();
        }
        format!(
            "select count(*)::text from (values {values}) late (body_sha256, at)
              where exists (select from soak.sends s join elven_sync.sync_batches b using (batch_id)
                              join soak.takes t on t.entity_id = b.entity_id
                             where s.body_sha256 = late.body_sha256 and s.at < t.at and t.at < late.at
                               and t.process <> s.process)"
        )
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// The refusals come first, so that no other fault lets a refused record be kept.
fn rules(faults: &[&str]) -> Vec<Rule> {
    let refused = (0..ENTITIES).map(|number| account_refused(&entity_id(number)));
    let refused =
        refused.filter(|account| is_refused(account)).map(|account| format!("reject:account={account}"));
    let faults = faults.iter().map(|fault| (*fault).to_owned());
    refused.chain(faults).map(|rule| rule.parse().unwrap()).collect()
}
