//! The way of a process to the API, on which the plan decides what happens to each import.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::watch;

use elven_sync::elven::{Answer, Client, Signed, Transport};
use elven_sync::sandbox::Sandbox;

use super::super::api::{Request, answer};
use super::super::world::World;
use super::history::{Import, Run};
use super::plan::{Death, Fault, Plan};
use super::stage::Stage;
use crate::support::fault_rules;

/// What delivers the requests.
pub(super) enum Delivery {
    Model(Arc<World>),
    Real(Client, Arc<Sandbox>),
}

/// The way of one process to the API. It has one request in flight.
pub(super) struct Network {
    pub(super) plan: Arc<Plan>,
    pub(super) stage: Arc<Stage>,
    /// The imports of the runs before.
    pub(super) imports_before: usize,
    pub(super) death: Option<Death>,
    pub(super) run: Mutex<Run>,
    /// Becomes true when the process dies.
    pub(super) died: watch::Sender<bool>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").finish_non_exhaustive()
    }
}

fn balances(signed: &Signed) -> Option<Vec<i64>> {
    let request = signed.try_clone()?.into_request().ok()?;
    let records: Vec<Value> = serde_json::from_slice(request.body()?.as_bytes()?).ok()?;
    Some(records.iter().map(|record| record["balance"].as_i64().unwrap()).collect())
}

fn describe(answer: &Answer) -> String {
    match answer {
        Answer::Response { status, .. } => status.to_string(),
        Answer::Lost(_) => "lost".to_owned(),
        Answer::NotSent(_) => "not sent".to_owned(),
        Answer::OpenedLate => "opened late".to_owned(),
    }
}

impl Delivery {
    async fn deliver(&self, signed: Signed, fault: Fault) -> Answer {
        match self {
            Self::Model(world) => deliver_to_model(world, signed, fault).await,
            Self::Real(client, sandbox) => {
                sandbox.set_rules(fault_rules(&fault.rule().into_iter().collect::<Vec<_>>()));
                let mut answer = client.send(signed.try_clone().unwrap()).await;
                // The machine is busy. The connection is open by now.
                while answer == Answer::OpenedLate {
                    answer = client.send(signed.try_clone().unwrap()).await;
                }
                sandbox.set_rules(Vec::new());
                answer
            }
        }
    }
}

async fn deliver_to_model(world: &World, signed: Signed, fault: Fault) -> Answer {
    let request = Request::read(world, signed);
    let process = "process";
    tokio::time::sleep(Duration::from_millis(5)).await;
    let arrive = || {
        world.state().sent(process, &request);
        let (status, text) = world.state().arrive(world, &request, process);
        world.state().answered(process, &request);
        answer(status, text)
    };
    let is_accepted = |answer: &Answer| matches!(answer, Answer::Response { status: 200, .. });
    let lost = || Answer::Lost("the connection was cut".to_owned());
    match fault {
        Fault::None => arrive(),
        Fault::AnswerLost => Some(arrive()).filter(|answer| !is_accepted(answer)).unwrap_or_else(lost),
        Fault::FailedAfterwards => {
            Some(arrive()).filter(|answer| !is_accepted(answer)).unwrap_or_else(|| answer(500, ""))
        }
        Fault::NothingArrived => lost(),
        Fault::Failed => answer(500, ""),
        Fault::BadGateway => answer(502, "<html>"),
        Fault::LoginPage => answer(200, "<html>"),
        Fault::Refused => answer(400, r#"{"data":{"code":"ALL","message":"the request is not understood"}}"#),
        Fault::Throttled => answer(429, ""),
        Fault::Unavailable => answer(503, "<html>"),
        Fault::Forbidden => answer(403, r#"{"data":{"code":"NO","message":"the key may not do this"}}"#),
    }
}

impl Network {
    async fn send_import(&self, signed: Signed, balances: Vec<i64>) -> Answer {
        let journaled = self.stage.journaled().await;
        let number = self.run.lock().unwrap().imports.len();
        let death = self.death.filter(|death| death.import == number);
        let fault = self.plan.fault_of_import(self.imports_before + number, &balances);
        let answer = "none: the process died".to_owned();
        self.run.lock().unwrap().imports.push(Import { journaled, balances, answer });
        if death.is_none_or(|death| death.is_processed) {
            let answer = self.stage.delivery().deliver(signed, fault).await;
            if death.is_none() {
                self.run.lock().unwrap().imports[number].answer = describe(&answer);
                return answer;
            }
        }
        self.died.send_replace(true);
        std::future::pending().await
    }
}

impl Transport for Network {
    fn send(&self, signed: Signed) -> BoxFuture<'_, Answer> {
        async move {
            if let Some(balances) = balances(&signed) {
                return self.send_import(signed, balances).await;
            }
            self.run.lock().unwrap().list_calls += 1;
            self.stage.delivery().deliver(signed, self.plan.fault_of_list()).await
        }
        .boxed()
    }
}
