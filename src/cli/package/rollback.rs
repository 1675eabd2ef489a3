//! `remit package rollback`: a revision of a tenant's history as a folder again, to be changed or not, and signed again. Remit holds no key.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::api::{Mapping, PolicyPackageSpec, SourceFile, Tool};
use crate::cli::client::{Client, ClientError, ServerArgs};
use crate::cli::decisions::TenantArgs;
use crate::cli::output::{CommandError, PASS, print};
use crate::cli::terminal::printable;
use crate::source::folder::{ENTITIES, MANIFEST, SCHEMA, TESTS, read_folder};
use crate::transport::encode;

/// Writes the package of a former revision as a folder, to be signed and rolled out as a new version.
#[derive(Debug, Args)]
// `--version` is the folder's here.
#[command(disable_version_flag = true)]
pub struct Rollback {
    /// Number of the revision, as `remit rollout status` lists it
    #[arg(long, value_name = "REVISION")]
    to: i64,
    /// Folder to write; it must not be there yet
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Version that the folder says; a tenant goes below its highest version only by a rollback of Remit's own [default: the former]
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// `package.yaml`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    package: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Tool]>::is_empty")]
    tools: &'a [Tool],
    #[serde(skip_serializing_if = "Option::is_none")]
    mapping: Option<&'a Mapping>,
}

/// Runs the command.
pub async fn run(args: &Rollback) -> Result<u8, CommandError> {
    let wrong = |e: ClientError| CommandError::Usage(e.to_string());
    let client = Client::open(&args.server).await.map_err(wrong)?;
    let tenant = args.tenant.name(&client);
    let path = format!("/admin/tenants/{}/rollouts/{}/package", encode(&tenant), args.to);
    let found = client.get::<PolicyPackageSpec>(&path, &[]).await;
    client.close().await;
    let mut spec = found.map_err(wrong)?;
    if let Some(version) = &args.version {
        spec.version = version.clone();
    }
    write_folder(&args.dir, &spec)?;
    let (package, version) = (printable(&spec.package), printable(&spec.version));
    let dir = args.dir.display().to_string();
    print(&format!(
        "{package} {version} is in {dir}; sign it: remit package sign {dir} --key KEY --tenant {}\n",
        printable(&tenant)
    ));
    Ok(PASS)
}

/// Writes the folder; what is read from it again is the package, without digest and signature.
fn write_folder(dir: &Path, spec: &PolicyPackageSpec) -> Result<(), CommandError> {
    for file in spec.policies.iter().chain(&spec.tests) {
        // The names are a tenant's: nothing is written beside the folder.
        let inside = match file.name.strip_prefix(TESTS).and_then(|name| name.strip_prefix('/')) {
            Some(test) => plain(test) && test.ends_with(".yaml"),
            None => plain(&file.name) && file.name.ends_with(".cedar"),
        };
        if !inside {
            let why = format!("the package has a file named `{}`, which no folder has", printable(&file.name));
            return Err(CommandError::Usage(why));
        }
    }
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error| CommandError::Write { path, error }
    };
    std::fs::create_dir(dir).map_err(failed(dir))?;
    let manifest = Manifest {
        package: &spec.package,
        version: &spec.version,
        author: spec.author.as_deref(),
        tools: &spec.tools,
        mapping: spec.mapping.as_ref(),
    };
    let manifest = serde_saphyr::to_string(&manifest).map_err(|e| CommandError::Usage(format!("{MANIFEST}: {e}")))?;
    let mut files = vec![SourceFile { name: MANIFEST.into(), text: manifest }];
    files.extend(spec.policies.iter().chain(&spec.tests).cloned());
    for (name, text) in [(SCHEMA, &spec.schema), (ENTITIES, &spec.entities)] {
        files.extend(text.iter().map(|text| SourceFile { name: name.into(), text: text.clone() }));
    }
    if !spec.tests.is_empty() {
        let tests = dir.join(TESTS);
        std::fs::create_dir(&tests).map_err(failed(&tests))?;
    }
    for file in &files {
        let path = dir.join(&file.name);
        std::fs::write(&path, &file.text).map_err(failed(&path))?;
    }
    let wanted = PolicyPackageSpec { signer: None, digest: None, signature: None, ..spec.clone() };
    if read_folder(dir)? != wanted {
        let why = format!(
            "{}: what was written is not the package: its files stand in an order that no folder has",
            dir.display()
        );
        return Err(CommandError::Usage(why));
    }
    Ok(())
}

/// A name in the folder itself, not hidden.
fn plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> PolicyPackageSpec {
        let file = |name: &str, text: &str| SourceFile { name: name.into(), text: text.into() };
        PolicyPackageSpec {
            package: "base".into(),
            version: "1.2.3".into(),
            author: Some("Ann: \"x\"".into()),
            tools: serde_json::from_value(serde_json::json!([
                {"name": "git/log", "tier": "read"},
                {"name": "git/push", "tier": "write", "groups": ["vcs"], "description": "pushes\nall: of it"},
            ]))
            .unwrap(),
            policies: vec![
                file("a.cedar", "@id(\"a\")\npermit(principal, action, resource);\n"),
                file("b.cedar", "// b"),
            ],
            schema: Some("entity Doc;\n".into()),
            entities: Some("[]".into()),
            tests: vec![file("tests/a.yaml", "[]\n")],
            signer: Some("s".into()),
            digest: Some("sha256:00".into()),
            ..PolicyPackageSpec::default()
        }
    }

    #[test]
    fn a_revision_becomes_a_folder_that_is_the_same_package() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        write_folder(&out, &spec()).unwrap();
        let read = read_folder(&out).unwrap();
        assert_eq!(crate::policy::digest(&read), crate::policy::digest(&spec()));
        let error = write_folder(&out, &spec()).unwrap_err();
        assert!(matches!(error, CommandError::Write { .. }), "nothing is written over: {error}");
    }

    #[test]
    fn nothing_is_written_beside_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "../x.cedar",
            "/tmp/x.cedar",
            "sub/x.cedar",
            ".x.cedar",
            "package.yaml",
            "tests/../../x.yaml",
            "tests/x.sh",
        ] {
            let mut spec = spec();
            spec.policies[0].name = name.into();
            let out = dir.path().join("out");
            let error = write_folder(&out, &spec).unwrap_err().to_string();
            assert!(error.contains("no folder has") && !out.exists(), "{name}: {error}");
        }
    }
}
