//! Every source file is part of the crate: one that no `mod` names is not compiled, and its tests never run.

use std::path::{Path, PathBuf};

use crate::support;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The files that may hold the `mod` of this one.
fn parents(file: &Path) -> Vec<PathBuf> {
    let folder = if file.ends_with("mod.rs") { file.parent().unwrap() } else { file }.parent().unwrap();
    vec![folder.join("mod.rs"), folder.with_extension("rs"), folder.join("lib.rs"), folder.join("main.rs")]
}

#[test]
fn every_source_file_is_compiled() {
    for room in ["src", "tests"] {
        let mut files = Vec::new();
        sources(&support::root().join(room), &mut files);
        assert!(files.len() > 10);
        for file in files {
            if ["src/lib.rs", "src/main.rs", "tests/main.rs"].iter().any(|root| file.ends_with(root)) {
                continue;
            }
            let named = if file.ends_with("mod.rs") { file.parent().unwrap() } else { &file };
            let name = named.file_stem().unwrap().to_str().unwrap();
            let (module, path) = (format!("mod {name};"), format!("{name}.rs\"]"));
            let siblings =
                file.parent().unwrap().read_dir().unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
            let texts = parents(&file).into_iter().chain(siblings).filter_map(|p| std::fs::read_to_string(p).ok());
            let named = texts.flat_map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>());
            let named = named.map(|l| l.trim().to_owned()).any(|l| l.ends_with(&module) || l.ends_with(&path));
            assert!(named, "{}: no `{module}` names it", file.display());
        }
    }
}

/// Fault points end a process when an environment variable says so: no release may have them. They hang on `debug_assertions`, and the
/// Dockerfile looks into the binary that it ships.
#[test]
fn no_release_has_fault_points() {
    let manifest = std::fs::read_to_string(support::file("Cargo.toml")).unwrap();
    let profiles: String = manifest.split("\n[").filter(|s| s.starts_with("profile.")).collect();
    assert!(profiles.contains("profile.release]") && !profiles.contains("debug-assertions"), "{profiles}");
    let fault = std::fs::read_to_string(support::file("src/fault.rs")).unwrap();
    assert_eq!(fault.matches("#[cfg(debug_assertions)]\nmod armed {").count(), 1);
    let armed = fault.find("mod armed {").unwrap();
    let code = fault.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    assert!(!fault[..armed].contains("std::env") && code.contains("\"REMIT_FAULT\""));
    let mut files = Vec::new();
    sources(&support::root().join("src"), &mut files);
    // Modules of tests are in no release.
    let of_tests = |f: &std::path::Path| f.to_string_lossy().ends_with("_tests.rs");
    for file in files.iter().filter(|f| !f.ends_with("src/fault.rs") && !of_tests(f.as_ref())) {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(!text.contains("REMIT_FAULT") && !text.contains("REMIT_PAUSE"), "{}", file.display());
    }
    let image = std::fs::read_to_string(support::file("Dockerfile")).unwrap();
    assert!(image.contains("! grep -q REMIT_FAULT"), "the Dockerfile does not look");
}
