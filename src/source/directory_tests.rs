//! What a folder is read as, and what is a mistake.

use std::fs;

use super::*;

const AGENT: &str = "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {name: coder}\nspec: {trustLevel: 2}\n";
const PACKAGE: &str = "package: tools\nversion: 1.0.0\n";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn mistakes(files: &[(&str, &str)]) -> Vec<String> {
    read(folder(files).path()).unwrap_err().0
}

#[test]
fn a_package_with_objects_beside_it() {
    let dir = folder(&[
        ("package.yaml", PACKAGE),
        ("main.cedar", "// a"),
        ("entities.json", "[]"),
        ("tests/a.yaml", "[]"),
        ("agents.yaml", AGENT),
        (".remit/remit.db", "not read"),
        (".hidden.yaml", "not: read"),
        ("others.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: b}\n"),
        ("notes.txt", "for people"),
    ]);
    let read = read(dir.path()).unwrap();
    assert_eq!(read.agents.len(), 1);
    assert_eq!(read.packages.len(), 1);
    assert_eq!(read.packages[0].1.policies.len(), 1);
    assert_eq!(read.packages[0].1.entities.as_deref(), Some("[]"));
}

#[test]
fn objects_with_packages_as_folders_below() {
    let namespaced = |text: &str| text.replace("{name:", "{namespace: acme, name:");
    let object = "apiVersion: remit.dev/v1alpha1\nkind: PolicyPackage\nmetadata: {name: b}\nspec: {package: b, version: 1.0.0}\n";
    let list = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{}]}}",
        r#"{"apiVersion":"remit.dev/v1alpha1","kind":"TenantProfile","metadata":{"name":"default"},"spec":{"retentionDays":7}}"#
    );
    let dir = folder(&[
        ("a/package.yaml", PACKAGE),
        ("a/main.cedar", "// a"),
        ("unrelated/x.yaml", "any: thing"),
        ("all.yml", &format!("{}---\n{}", namespaced(AGENT), namespaced(object))),
        ("profile.json", &list),
        (
            "rollout.yaml",
            "apiVersion: remit.dev/v1alpha1\nkind: TenantRollout\nmetadata: {name: default}\nspec: {package: {name: b}}\n",
        ),
    ]);
    let read = read(dir.path()).unwrap();
    assert_eq!(read.packages.iter().map(|(_, p)| p.package.as_str()).collect::<Vec<_>>(), ["tools", "b"]);
    assert_eq!(read.namespace.as_deref(), Some("acme"));
    assert_eq!(read.profile.unwrap().spec.retention_days, Some(7));
    assert_eq!(read.rollout.unwrap().spec.package.unwrap().name.as_deref(), Some("b"));
}

#[test]
fn every_mistake_of_a_folder_is_said_with_its_place() {
    let found = mistakes(&[
        ("package.yaml", "package: tools\nversion: 1.0.0\nauthr: me\n"),
        ("a.yaml", &AGENT.replace("trustLevel", "trust")),
        ("b.yaml", &AGENT.replace("Agent", "Agnet")),
    ]);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("package.yaml:3:1") && found[0].contains("authr"), "{found:?}");
    assert!(found[1].contains("a.yaml:4:8: spec.trust: is no field"), "{found:?}");
    assert!(found[2].contains("b.yaml:1: kind: remit.dev/v1alpha1 has no kind \"Agnet\""), "{found:?}");
    for (text, words) in [
        ("apiVerson: remit.dev/v1alpha1\nkind: Agent\n", "apiVersion and kind are missing"),
        (&AGENT.replace("v1alpha1", "v1"), "apiVersion: is \"remit.dev/v1\""),
        (&AGENT.replace("coder", "Coder"), "metadata.name: must be there"),
        (&AGENT.replace("{name: coder}", "{}"), "metadata.name: must be there"),
        (&format!("{AGENT}---\n{AGENT}"), "is there already, in"),
        (&AGENT.replace("trustLevel: 2", "delegation: {mode: Required}"), "spec.delegation.mode: Required needs fixed"),
        (&AGENT.replace("trustLevel: 2", "identities: [{}]"), "exactly one of serviceAccount, oidc and spiffe"),
        (
            &AGENT.replace("trustLevel: 2", "identities: [{spiffe: 'spiffe://a/b'}, {spiffe: 'spiffe://a/b'}]"),
            "only once",
        ),
        (&AGENT.replace("Agent", "TenantProfile").replace("trustLevel: 2", ""), "must be 'default'"),
        (
            &format!(
                "{}---\n{}",
                AGENT.replace("{name: coder", "{namespace: a, name: one, x: "),
                AGENT.replace("{name: coder", "{namespace: b, name: two, x: ")
            ),
            "several namespaces",
        ),
        ("a: [", "a.yaml:"),
    ] {
        let found = mistakes(&[("a.yaml", text)]);
        assert!(found.len() == 1 && found[0].contains(words), "{words}: {found:?}");
    }
    assert!(read(Path::new("/nowhere/at/all")).is_err());
}

#[test]
fn a_fingerprint_sees_every_write_that_matters() {
    let dir = folder(&[("package.yaml", PACKAGE), ("tests/a.yaml", "[]"), ("agents.yaml", AGENT)]);
    let first = fingerprint(dir.path());
    assert_eq!(first, fingerprint(dir.path()));
    fs::create_dir(dir.path().join(STATE)).unwrap();
    fs::write(dir.path().join(STATE).join("remit.db"), "x").unwrap();
    assert_eq!(first, fingerprint(dir.path()), "Remit's own writes are none");
    let mut last = first;
    for (file, text) in [("tests/a.yaml", "[ ]"), ("agents.yaml", ""), ("new.cedar", "")] {
        fs::write(dir.path().join(file), text).unwrap();
        let now = fingerprint(dir.path());
        assert_ne!(last, now, "{file}");
        last = now;
    }
    // The same name, size and time, but another file.
    let path = dir.path().join("agents.yaml");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(dir.path().join(".swap"), "").unwrap();
    fs::File::options().write(true).open(dir.path().join(".swap")).unwrap().set_modified(time).unwrap();
    fs::rename(dir.path().join(".swap"), &path).unwrap();
    assert_ne!(last, fingerprint(dir.path()));
}
