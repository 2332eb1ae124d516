//! `verify`: whatever was done to the journal or round it is found, and what people and workers do is not.

mod no_false_alarms;
mod repairs;
mod tampering;

use std::collections::BTreeSet;

use elven_sync::audit::{self, EntityProof};

use crate::support::TestEnv;

/// What is found out about the entities of a scene.
pub async fn proof(scene: &TestEnv, deep: bool) -> Vec<EntityProof> {
    let database = scene.database(4).await;
    let proof = audit::verify(&scene.settings(&[]), &database, &[], deep).await.unwrap();
    database.close().await;
    proof
}

/// The kinds of findings, and what they say.
pub fn findings(proof: &[EntityProof]) -> (BTreeSet<&'static str>, String) {
    let findings = proof.iter().flat_map(|entity| &entity.findings);
    let said: Vec<String> = findings.clone().map(|finding| format!("{finding:?}")).collect();
    (findings.map(|finding| finding.what).collect(), said.join("\n"))
}

/// Everything holds, all bodies included; returns how many rows are proven and how many wait.
pub async fn holds(scene: &TestEnv) -> (usize, i64) {
    let proof = proof(scene, true).await;
    let (found, said) = findings(&proof);
    assert!(found.is_empty(), "{said}");
    (
        proof.iter().map(|entity| entity.rows_proven).sum(),
        proof.iter().map(|entity| entity.rows_pending).sum(),
    )
}
