//! `verify`: any change to the journal or around it is found, and the normal work of people and workers is not.

mod grouped;
mod no_false_alarms;
mod remedies;
mod repairs;
mod tampering;

use std::collections::BTreeSet;

use elven_sync::audit::{self, EntityProof};

use crate::support::TestEnv;

/// Verifies the entities of an environment.
pub async fn proof(scene: &TestEnv, deep: bool) -> Vec<EntityProof> {
    let database = scene.database(4).await;
    let proof = audit::verify(&scene.settings(&[]), &database, &[], deep, &[]).await.unwrap().entities;
    database.close().await;
    proof
}

/// Returns the kinds of findings, and their texts.
pub fn findings(proof: &[EntityProof]) -> (BTreeSet<&'static str>, String) {
    let findings = proof.iter().flat_map(|entity| &entity.findings);
    let said: Vec<String> = findings.clone().map(|finding| format!("{finding:?}")).collect();
    (findings.map(|finding| finding.what).collect(), said.join("\n"))
}

/// Asserts that there is no finding, including all bodies. Returns the number of proven and of pending rows.
pub async fn assert_verified(scene: &TestEnv) -> (usize, i64) {
    let proof = proof(scene, true).await;
    let (found, said) = findings(&proof);
    assert!(found.is_empty(), "{said}");
    (
        proof.iter().map(|entity| entity.rows_proven).sum(),
        proof.iter().map(|entity| entity.rows_pending).sum(),
    )
}
