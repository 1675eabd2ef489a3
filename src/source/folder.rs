//! Packages as files: a folder that an author edits, or objects as `kubectl apply` takes them.
//!
//! Reads only, and only inside the folder that it was given: a link that leads out of it is refused, not followed. Everything
//! is bounded before it is read.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kube::ResourceExt;
use serde::Deserialize;

use crate::api::{Mapping, PolicyPackage, PolicyPackageSpec, PolicySigner, SourceFile, Tool};
use crate::package::yaml::{self, TextError};
use crate::policy::{MAX_PACKAGE_BYTES, Refusal, RefusalCode};

/// The file that makes a folder a package.
pub const MANIFEST: &str = "package.yaml";
/// The package's own types and actions.
pub const SCHEMA: &str = "schema.cedarschema";
/// What the package knows.
pub const ENTITIES: &str = "entities.json";
/// The folder of the tests.
pub const TESTS: &str = "tests";
/// The most files of one package.
const MAX_FILES: usize = 1000;
/// The largest file of objects: as many bytes as the API server takes in one request.
const MAX_OBJECT_BYTES: u64 = 3 * 1024 * 1024;

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file system says no.
    #[error("{path}: {error}")]
    Io {
        /// The file or folder.
        path: String,
        /// Its words.
        error: std::io::Error,
    },
    /// The path holds nothing that could be a package.
    #[error("{0}")]
    NotFound(String),
    /// There is a package, and it is not good.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// `package.yaml`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Manifest {
    package: String,
    version: String,
    #[serde(default)]
    author: Option<String>,
    #[serde(default)]
    tools: Vec<Tool>,
    #[serde(default)]
    mapping: Option<Mapping>,
}

/// Kind of an object, whatever else it holds.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    api_version: String,
    kind: String,
}

/// What a path holds.
#[derive(Debug)]
pub enum Packages {
    /// A folder: one package, unsigned.
    Folder(Box<PolicyPackageSpec>),
    /// A file of objects: at least one PolicyPackage.
    Objects(Vec<PolicyPackage>),
}

/// Reads a folder or a file of objects.
pub fn read(path: &Path) -> Result<Packages, SourceError> {
    let meta = std::fs::metadata(path).map_err(|error| io(path, error))?;
    if meta.is_dir() {
        return Ok(Packages::Folder(Box::new(read_folder(path)?)));
    }
    let file = path.display().to_string();
    let objects = packages_of(&file, &read_text(path, &file, MAX_OBJECT_BYTES)?)?;
    if objects.is_empty() {
        return Err(SourceError::NotFound(format!("{file}: holds no PolicyPackage of remit.dev/v1alpha1")));
    }
    Ok(Packages::Objects(objects))
}

/// Reads a package's folder: `package.yaml`, `*.cedar` beside it in the order of their names, and if they are there
/// `schema.cedarschema`, `entities.json` and `tests/*.yaml`. Line ends become LF, so that the digest is the same on every machine.
pub fn read_folder(path: &Path) -> Result<PolicyPackageSpec, SourceError> {
    let root = path.canonicalize().map_err(|error| io(path, error))?;
    let mut folder = Folder { root, left: MAX_PACKAGE_BYTES };
    let names = folder.names("")?;
    if !names.iter().any(|name| name == MANIFEST) {
        return Err(SourceError::NotFound(format!(
            "{}: there is no {MANIFEST}; `remit init` writes a package to begin with",
            path.display()
        )));
    }
    let manifest: Manifest = yaml::read(MANIFEST, &folder.text(MANIFEST)?).map_err(malformed)?;
    let mut spec = PolicyPackageSpec {
        package: manifest.package,
        version: manifest.version,
        author: manifest.author,
        tools: manifest.tools,
        mapping: manifest.mapping,
        ..Default::default()
    };
    for name in &names {
        if name.ends_with(".cedar") {
            spec.policies.push(SourceFile { name: name.clone(), text: folder.text(name)? });
        } else if name == SCHEMA {
            spec.schema = Some(folder.text(name)?);
        } else if name.ends_with(".cedarschema") {
            return Err(not_read(name, &format!("the schema is read from {SCHEMA} only")));
        } else if name == ENTITIES {
            spec.entities = Some(folder.text(name)?);
        } else if name == TESTS {
            for test in folder.names(TESTS)? {
                let test = format!("{TESTS}/{test}");
                if test.ends_with(".yml") {
                    return Err(not_read(&test, "tests are read from *.yaml"));
                }
                if test.ends_with(".yaml") {
                    spec.tests.push(SourceFile { text: folder.text(&test)?, name: test });
                }
            }
        } else if folder.is_folder(name) && folder.names(name)?.iter().any(|n| n.ends_with(".cedar")) {
            return Err(not_read(name, "policies are read from *.cedar beside package.yaml, not from folders below"));
        }
    }
    Ok(spec)
}

/// The PolicyPackages of a YAML or JSON text; other objects are left alone.
pub fn packages_of(file: &str, text: &str) -> Result<Vec<PolicyPackage>, Refusal> {
    objects_of(file, text, "PolicyPackage")
}

/// The PolicySigners of a YAML or JSON file.
pub fn read_signers(path: &Path) -> Result<Vec<PolicySigner>, SourceError> {
    let file = path.display().to_string();
    Ok(objects_of(&file, &read_text(path, &file, MAX_OBJECT_BYTES)?, "PolicySigner")?)
}

/// A small text file, such as a key.
pub fn read_small(path: &Path) -> Result<String, SourceError> {
    read_text(path, &path.display().to_string(), 64 * 1024)
}

/// The text of a file of objects.
pub(super) fn read_objects_text(path: &Path, shown: &str) -> Result<String, SourceError> {
    read_text(path, shown, MAX_OBJECT_BYTES)
}

fn objects_of<T>(file: &str, text: &str, kind: &str) -> Result<Vec<T>, Refusal>
where
    T: serde::de::DeserializeOwned + ResourceExt,
{
    // Two readings of the same documents: the first only looks at the kind, so that other objects may have any shape.
    let kinds = yaml::read_all::<Kind>(file, text);
    let wanted = format!("{}/{}", crate::api::GROUP, crate::api::VERSION);
    let mut found = Vec::new();
    for (i, (object, read)) in yaml::read_all::<T>(file, text).into_iter().zip(kinds).enumerate() {
        let read = read.map_err(malformed)?;
        if read.kind != kind {
            continue;
        }
        if read.api_version != wanted {
            let why = format!("document {}: apiVersion is {:?}, expected {wanted:?}", i + 1, read.api_version);
            return Err(Refusal::new(RefusalCode::Malformed, format!("{file}: {why}")));
        }
        found.push(object.map_err(malformed)?);
    }
    Ok(found)
}

fn malformed(error: TextError) -> Refusal {
    Refusal::new(RefusalCode::Malformed, error.to_string())
}

fn not_read(name: &str, why: &str) -> SourceError {
    Refusal::new(RefusalCode::Malformed, format!("{name}: {why}")).into()
}

fn io(path: &Path, error: std::io::Error) -> SourceError {
    SourceError::Io { path: path.display().to_string(), error }
}

/// A package's folder while it is read.
struct Folder {
    root: PathBuf,
    /// Bytes that may still be read.
    left: usize,
}

impl Folder {
    /// Names in a folder, sorted by their bytes, without hidden ones.
    fn names(&self, below: &str) -> Result<Vec<String>, SourceError> {
        let path = self.inside(below)?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(|error| io(&path, error))? {
            let entry = entry.map_err(|error| io(&path, error))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(not_read(&entry.path().display().to_string(), "the name is not UTF-8"));
            };
            if !name.starts_with('.') {
                names.push(name.to_string());
            }
            if names.len() > MAX_FILES {
                let why = format!("{}: more than {MAX_FILES} files", path.display());
                return Err(Refusal::new(RefusalCode::TooLarge, why).into());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn is_folder(&self, name: &str) -> bool {
        // A link out of the folder that nobody reads is nobody's business.
        self.inside(name).is_ok_and(|path| path.is_dir())
    }

    /// Where the name really lies: inside the package's folder, or nowhere.
    fn inside(&self, name: &str) -> Result<PathBuf, SourceError> {
        let path = self.root.join(name);
        let real = path.canonicalize().map_err(|error| io(&path, error))?;
        if !real.starts_with(&self.root) {
            return Err(not_read(name, "is a link that leads out of the package's folder"));
        }
        Ok(real)
    }

    fn text(&mut self, name: &str) -> Result<String, SourceError> {
        let text = read_text(&self.inside(name)?, name, self.left as u64)?;
        self.left -= text.len().min(self.left);
        Ok(if text.contains('\r') { text.replace("\r\n", "\n") } else { text })
    }
}

/// A regular file's text, of at most `limit` bytes.
fn read_text(path: &Path, name: &str, limit: u64) -> Result<String, SourceError> {
    // Asked before opening: opening a pipe would wait for ever.
    if !std::fs::metadata(path).map_err(|error| io(path, error))?.is_file() {
        return Err(not_read(name, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(|error| io(path, error))?;
    if bytes.len() as u64 > limit {
        return Err(
            Refusal::new(RefusalCode::TooLarge, format!("{name}: over {limit} bytes that may still be read")).into()
        );
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let before = &e.as_bytes()[..good];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        not_read(&format!("{name}:{line}:{column}"), "is not UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GOOD: &str = "package: tools\nversion: 1.0.0\ntools:\n  - {name: git/log, tier: read}\n";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn refused(files: &[(&str, &str)]) -> String {
        read_folder(folder(files).path()).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_becomes_a_package() {
        let dir = folder(&[
            (MANIFEST, GOOD),
            ("b.cedar", "// b\r\n// c\n"),
            ("a.cedar", "// a"),
            (".#a.cedar", "an editor's lock"),
            ("README.md", "for people"),
            (SCHEMA, "entity X;"),
            (ENTITIES, "[]"),
            ("tests/b.yaml", "[]"),
            ("tests/a.yaml", "[]"),
            ("tests/notes.txt", "for people"),
        ]);
        let spec = read_folder(dir.path()).unwrap();
        let names = |files: &[SourceFile]| files.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&spec.policies), ["a.cedar", "b.cedar"]);
        assert_eq!(names(&spec.tests), ["tests/a.yaml", "tests/b.yaml"]);
        assert_eq!(spec.policies[1].text, "// b\n// c\n");
        assert_eq!((spec.schema.as_deref(), spec.entities.as_deref()), (Some("entity X;"), Some("[]")));
        assert_eq!((spec.package.as_str(), spec.version.as_str(), spec.tools.len()), ("tools", "1.0.0", 1));
    }

    #[test]
    fn a_mistake_in_the_manifest_has_its_place() {
        let text = refused(&[(MANIFEST, "package: tools\nversion: 1.0.0\nauthr: me\n")]);
        assert!(text.contains("package.yaml:3:1") && text.contains("authr"), "{text}");
        let text = refused(&[(MANIFEST, "package: tools\nversion: 1.0.0\ntools:\n  - {name: a/b, tier: raed}\n")]);
        assert!(text.contains("package.yaml:4:") && text.contains("raed"), "{text}");
        let text = refused(&[("a.cedar", "")]);
        assert!(text.contains("no package.yaml") && text.contains("remit init"), "{text}");
    }

    #[test]
    fn nothing_is_left_out_in_silence() {
        for (file, word) in [
            ("other.cedarschema", "schema.cedarschema only"),
            ("tests/a.yml", "*.yaml"),
            ("policies/a.cedar", "not from folders below"),
        ] {
            let text = refused(&[(MANIFEST, GOOD), (file, "")]);
            assert!(text.contains(file.split('/').next().unwrap()) && text.contains(word), "{text}");
        }
    }

    #[test]
    fn links_that_lead_out_are_refused() {
        let outside = folder(&[("secret.cedar", "x")]);
        let dir = folder(&[(MANIFEST, GOOD), ("tests/a.yaml", "[]")]);
        std::os::unix::fs::symlink(dir.path().join("tests/a.yaml"), dir.path().join("tests/b.yaml")).unwrap();
        assert_eq!(read_folder(dir.path()).unwrap().tests.len(), 2, "a link inside is followed");
        std::os::unix::fs::symlink(outside.path().join("secret.cedar"), dir.path().join("a.cedar")).unwrap();
        let text = read_folder(dir.path()).unwrap_err().to_string();
        assert!(text.contains("a.cedar: is a link that leads out"), "{text}");
        fs::remove_file(dir.path().join("a.cedar")).unwrap();
        fs::remove_dir_all(dir.path().join("tests")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("tests")).unwrap();
        assert!(read_folder(dir.path()).unwrap_err().to_string().contains("tests: is a link"));
    }

    #[test]
    fn huge_odd_and_unreadable_files_are_refused() {
        let text = refused(&[(MANIFEST, GOOD), ("a.cedar", &"x".repeat(MAX_PACKAGE_BYTES + 1))]);
        assert!(text.contains("TooLarge") && text.contains("a.cedar"), "{text}");
        let half = "x".repeat(MAX_PACKAGE_BYTES / 2 + 1);
        let text = refused(&[(MANIFEST, GOOD), ("a.cedar", &half), ("b.cedar", &half)]);
        assert!(text.contains("TooLarge") && text.contains("b.cedar"), "{text}");
        let dir = folder(&[(MANIFEST, GOOD)]);
        fs::write(dir.path().join("a.cedar"), b"ok\nok \xff").unwrap();
        assert!(read_folder(dir.path()).unwrap_err().to_string().contains("a.cedar:2:4: is not UTF-8"));
        fs::remove_file(dir.path().join("a.cedar")).unwrap();
        fs::create_dir(dir.path().join("a.cedar")).unwrap();
        assert!(read_folder(dir.path()).unwrap_err().to_string().contains("a.cedar: is not a regular file"));
        assert!(matches!(read(&dir.path().join("none")), Err(SourceError::Io { .. })));
    }

    #[test]
    fn objects_among_others_in_yaml_and_json() {
        let yaml = "kind: Agent\napiVersion: remit.dev/v1alpha1\nanything: {goes: here}\n---\n---\n\
                    apiVersion: remit.dev/v1alpha1\nkind: PolicyPackage\nmetadata: {name: a}\nspec: {package: a, version: 1.0.0}\n\
                    ---\napiVersion: remit.dev/v1alpha1\nkind: PolicyPackage\nmetadata: {name: b}\n\
                    spec: {package: b, version: 1.0.0}\nstatus: {observedGeneration: 1}\n";
        let found = packages_of("f.yaml", yaml).unwrap();
        assert_eq!(found.iter().map(|p| p.spec.package.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let json = r#"{"apiVersion":"remit.dev/v1alpha1","kind":"PolicyPackage","metadata":{"name":"a"},"spec":{"package":"a","version":"1.0.0"}}"#;
        assert_eq!(packages_of("f.json", json).unwrap().len(), 1);
        let text = packages_of("f.yaml", &yaml.replace("package: b", "package: b, packge: c")).unwrap_err().to_string();
        assert!(text.contains("f.yaml:14:") && text.contains("packge"), "{text}");
        let text = packages_of("f.yaml", &yaml.replace("remit.dev/v1alpha1", "remit.dev/v1")).unwrap_err().to_string();
        assert!(text.contains("document 2: apiVersion is \"remit.dev/v1\""), "{text}");
        let dir = folder(&[("f.yaml", "kind: Agent\napiVersion: v1\n")]);
        assert!(matches!(read(&dir.path().join("f.yaml")), Err(SourceError::NotFound(_))));
    }
}
