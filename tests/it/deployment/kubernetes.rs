//! The manifests of Kubernetes: their schemas, and what they promise.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use elven_sync::config::reference;
use serde_json::{Value, json};

use super::{OPERATING, STOP_S, assert_parses, not_tested, yaml};
use crate::support::{files_in, stderr, stdout};

const FOLDER: &str = "deploy/kubernetes";
/// The oldest version in use, and the newest that the checker knows.
const VERSIONS: [&str; 2] = ["1.25", "1.37"];

/// Asserts that manifests fit the schemas. Returns whether the checker is installed.
fn assert_valid(files: &[&Path]) -> bool {
    let checker =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/kubernetes-validate/bin/kubernetes-validate");
    for version in VERSIONS {
        let mut command = Command::new(&checker);
        let Ok(output) = command.args(["--strict", "-k", version]).args(files).output() else {
            not_tested("the schemas of the manifests of Kubernetes", "scripts/kubernetes-validate");
            return false;
        };
        assert!(output.status.success(), "{version}: {}{}", stdout(&output), stderr(&output));
    }
    true
}

#[test]
fn manifests_fit_their_schemas() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
    let manifests: Vec<_> = files_in(FOLDER, "yaml")
        .into_keys()
        .filter(|name| !name.ends_with("kustomization.yaml"))
        .map(|name| root.join(name))
        .collect();
    assert!(manifests.len() >= 6, "{manifests:?}");
    let paths: Vec<&Path> = manifests.iter().map(AsRef::as_ref).collect();
    if assert_valid(&paths) {
        // The checker finds a mistake.
        let wrong = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        let text = std::fs::read_to_string(root.join("cronjob/cronjob.yaml")).unwrap();
        std::fs::write(wrong.path(), text.replace("backoffLimit", "backofLimit")).unwrap();
        assert!(std::panic::catch_unwind(|| assert_valid(&[wrong.path()])).is_err());
    }
}

/// `kubectl kustomize` needs no cluster.
#[test]
fn kustomize_builds_both_forms() {
    for form in ["serve", "cronjob"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER).join(form);
        let Ok(output) = Command::new("kubectl").arg("kustomize").arg(&folder).output() else {
            return not_tested("kustomize", "install kubectl");
        };
        assert!(output.status.success(), "{}", stderr(&output));
        let built = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        std::fs::write(built.path(), &output.stdout).unwrap();
        assert_valid(&[built.path()]);
        let text = stdout(&output);
        assert!(text.contains("kind: ServiceAccount") && text.contains("kind: ConfigMap"), "{text}");
        let name = text.lines().find_map(|line| line.trim().strip_prefix("name: elven-sync-")).unwrap();
        assert_eq!(
            text.matches(&format!("name: elven-sync-{name}\n")).count(),
            3,
            "both pods mount it: {text}"
        );
    }
}

/// The only document of a manifest.
fn manifest(name: &str) -> Option<Value> {
    let mut documents = yaml(&format!("{FOLDER}/{name}"))?;
    assert_eq!(documents.len(), 1, "{name}");
    documents.pop()
}

/// What holds for the pods of each form.
fn assert_pod(name: &str, pod: &Value, secret: &Value) {
    let context = &pod["securityContext"];
    assert_eq!((&context["runAsNonRoot"], &context["runAsUser"]), (&json!(true), &json!(10001)), "{name}");
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > STOP_S, "{name}");
    assert_eq!(pod["serviceAccountName"], "elven-sync");
    assert_eq!(pod["automountServiceAccountToken"], false);
    let containers = pod["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1);
    let container = &containers[0];
    let context = &container["securityContext"];
    assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
    assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{name}");
    let words = container["args"].as_array().unwrap().iter();
    assert_parses(name, &words.map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>());
    // Each variable is one of the program, and each of its files is mounted.
    let known: BTreeSet<&str> =
        reference::VARIABLES.iter().flat_map(|variable| variable.names).copied().collect();
    let mounts = container["volumeMounts"].as_array().unwrap();
    for variable in container["env"].as_array().unwrap() {
        assert!(known.contains(variable["name"].as_str().unwrap()), "{name}: {variable}");
        let path = variable["value"].as_str().unwrap();
        let (folder, file) = path.rsplit_once('/').unwrap();
        let mount =
            mounts.iter().find(|mount| mount["mountPath"] == folder).unwrap_or_else(|| panic!("{path}"));
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
        if volume.get("secret").is_some() {
            assert_eq!(volume["secret"]["secretName"], secret["metadata"]["name"]);
            assert!(secret["stringData"].get(file).is_some(), "{name}: the secret has no {file}");
            // Readable for the group of the pod, and for nobody else.
            assert_eq!(volume["secret"]["defaultMode"], 0o440);
        } else {
            assert_eq!((&volume["configMap"]["name"], file), (&json!("elven-sync"), "elven-sync.toml"));
        }
    }
}

#[test]
fn deployment_has_two_replicas_with_probes_and_no_privileges() {
    let (Some(deployment), Some(secret)) =
        (manifest("serve/deployment.yaml"), manifest("secret.example.yaml"))
    else {
        return;
    };
    let spec = &deployment["spec"];
    assert_eq!(spec["replicas"], 2);
    let labels = &spec["template"]["metadata"]["labels"];
    assert_eq!(&spec["selector"]["matchLabels"], labels);
    let pod = &spec["template"]["spec"];
    assert_pod("deployment.yaml", pod, &secret);
    let container = &pod["containers"][0];
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"], json!({ "path": path, "port": "metrics" }));
    }
    let port = &container["ports"][0];
    assert_eq!((&port["name"], &port["containerPort"]), (&json!("metrics"), &json!(9464)));
    assert!(container["args"].as_array().unwrap().contains(&json!("0.0.0.0:9464")));
    for other in ["serve/service.yaml", "serve/poddisruptionbudget.yaml"] {
        let selector = &manifest(other).unwrap()["spec"]["selector"];
        assert_eq!(selector.get("matchLabels").unwrap_or(selector), labels, "{other}");
    }
}

#[test]
fn cronjob_makes_one_run_at_a_time_and_repeats_none() {
    let (Some(cronjob), Some(secret)) = (manifest("cronjob/cronjob.yaml"), manifest("secret.example.yaml"))
    else {
        return;
    };
    let spec = &cronjob["spec"];
    assert_eq!(spec["schedule"], "* * * * *");
    assert_eq!(spec["concurrencyPolicy"], "Forbid");
    assert!(
        spec["startingDeadlineSeconds"].as_u64().unwrap() >= 60,
        "less than the interval would leave starts out"
    );
    let job = &spec["jobTemplate"]["spec"];
    assert_eq!(job["backoffLimit"], 0);
    let pod = &job["template"]["spec"];
    assert_eq!(pod["restartPolicy"], "Never");
    assert_pod("cronjob.yaml", pod, &secret);
    let verify = manifest("base/verify.yaml").unwrap();
    assert_pod("verify.yaml", &verify["spec"]["jobTemplate"]["spec"]["template"]["spec"], &secret);
}

#[test]
fn kustomizations_name_files_that_exist_and_the_version_of_the_program() {
    for form in ["base", "serve", "cronjob"] {
        let Some(kustomization) = manifest(&format!("{form}/kustomization.yaml")) else { return };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER).join(form);
        for resource in kustomization["resources"].as_array().unwrap() {
            assert!(folder.join(resource.as_str().unwrap()).exists(), "{form}: {resource}");
        }
        if form == "base" {
            assert_eq!(kustomization["configMapGenerator"][0]["name"], "elven-sync");
        } else {
            let image = &kustomization["images"][0];
            assert_eq!(
                (&image["name"], &image["newTag"]),
                (&json!("elven-sync"), &json!(env!("CARGO_PKG_VERSION")))
            );
        }
    }
}

/// The recipe of the handbook for a command by hand changes the job that the `CronJob` makes.
#[test]
fn job_by_hand_has_the_arguments_of_the_command() {
    let (_, recipe) = OPERATING.split_once("<!-- by hand with kubectl -->\n\n```sh\n").expect("the recipe");
    let recipe = recipe.split_once("```").unwrap().0;
    let Some(cronjob) = manifest("cronjob/cronjob.yaml") else { return };
    let patch = recipe.split_once("-p '").unwrap().1.split_once('\'').unwrap().0;
    let patch: Value = serde_json::from_str(patch).unwrap_or_else(|problem| panic!("{problem}: {patch}"));
    assert_eq!(patch[0]["op"], "replace");
    // A job has the template of the CronJob.
    let place = patch[0]["path"].as_str().unwrap();
    let args = cronjob["spec"]["jobTemplate"].pointer(place);
    assert_eq!(args, Some(&json!(["run"])), "{place}");
    assert_eq!(patch[0]["value"][0], "entity");
}
