//! A folder as one tenant: the objects that `kubectl apply` would take, and packages as folders.
//!
//! Reads only. Nothing is left out in silence: what belongs to Remit and can't be read is a mistake with its place, and a set with a
//! mistake is no set.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kube::ResourceExt;

use super::folder::{ENTITIES, MANIFEST, SourceError, TESTS, read_folder, read_objects_text};
use super::object::{Document, documents};
use crate::api::{
    Agent, DEFAULT_NAME, DelegationMode, Enforcement, GROUP, PolicyPackage, PolicyPackageSpec, PolicySigner,
    TenantProfile, TenantRollout, VERSION,
};

/// Where Remit keeps what belongs to a folder, inside of it. Hidden, so that it is never read as objects.
pub const STATE: &str = ".remit";
/// The most files of one folder.
const MAX_FILES: usize = 1000;

/// Everything that a folder says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directory {
    /// The one namespace that its objects name, if any does.
    pub namespace: Option<String>,
    /// Agents, by name.
    pub agents: Vec<Agent>,
    /// Packages, with where each is from.
    pub packages: Vec<(String, PolicyPackageSpec)>,
    /// PolicySigners, by name.
    pub signers: Vec<PolicySigner>,
    /// TenantRollout/default.
    pub rollout: Option<TenantRollout>,
    /// TenantProfile/default.
    pub profile: Option<TenantProfile>,
}

/// What is wrong in a folder, one line each, with file, line and field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Mistakes(pub Vec<String>);

/// Names, times, sizes and inodes of everything that is read: equal as long as nobody wrote.
pub type Fingerprint = Vec<(PathBuf, Option<[i128; 4]>)>;

/// What a folder holds now, to notice that somebody writes.
pub fn fingerprint(dir: &Path) -> Fingerprint {
    let mut out = Fingerprint::new();
    let nested = look(dir, &mut out);
    if dir.join(MANIFEST).exists() {
        look(&dir.join(TESTS), &mut out);
        return out;
    }
    for folder in nested.into_iter().filter(|f| f.join(MANIFEST).exists()) {
        look(&folder, &mut out);
        look(&folder.join(TESTS), &mut out);
    }
    out
}

/// Notes the entries of a folder; gives the folders among them.
fn look(dir: &Path, out: &mut Fingerprint) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(dir) {
        Ok(entries) => entries.filter_map(|e| Some(e.ok()?.path())).take(4 * MAX_FILES).collect(),
        Err(_) => Vec::new(),
    };
    paths.retain(|path| !is_hidden(path));
    paths.sort();
    for path in paths {
        // Followed: what a link leads to is what is read.
        let meta = std::fs::metadata(&path).ok();
        if meta.as_ref().is_some_and(std::fs::Metadata::is_dir) {
            folders.push(path);
            continue;
        }
        let nanos = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        let seen = meta.map(|m| {
            let (modified, changed) = (nanos(m.mtime(), m.mtime_nsec()), nanos(m.ctime(), m.ctime_nsec()));
            [modified, changed, i128::from(m.size()), (i128::from(m.dev()) << 64) | i128::from(m.ino())]
        });
        out.push((path, seen));
    }
    folders
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Reads a folder: a package with objects beside it, or objects with packages as folders below.
pub fn read(dir: &Path) -> Result<Directory, Mistakes> {
    let mut reading = Reading::default();
    let names = match names(dir) {
        Ok(names) => names,
        Err(why) => return Err(Mistakes(vec![why])),
    };
    let is_package = names.iter().any(|name| name == MANIFEST);
    if is_package {
        reading.package(dir, &dir.display().to_string());
    }
    for name in &names {
        let path = dir.join(name);
        let shown = path.display().to_string();
        if path.is_dir() {
            if !is_package && path.join(MANIFEST).exists() {
                reading.package(&path, &shown);
            }
        } else if is_objects(name) && !(is_package && (name == MANIFEST || name == ENTITIES)) {
            reading.file(&path, &shown);
        }
    }
    reading.finish(dir)
}

fn is_objects(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|ext| name.ends_with(ext))
}

fn names(dir: &Path) -> Result<Vec<String>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if is_hidden(&entry.path()) {
            continue;
        }
        match entry.file_name().into_string() {
            Ok(name) => names.push(name),
            Err(name) => return Err(format!("{}: the name is not UTF-8", dir.join(name).display())),
        }
        if names.len() > MAX_FILES {
            return Err(format!("{}: more than {MAX_FILES} files: give Remit a folder of its own", dir.display()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A folder while it is read. Objects are kept with their place until all are there.
#[derive(Default)]
struct Reading {
    agents: BTreeMap<String, (String, Agent)>,
    signers: BTreeMap<String, (String, PolicySigner)>,
    objects: BTreeMap<String, (String, PolicyPackageSpec)>,
    folders: Vec<(String, PolicyPackageSpec)>,
    rollout: BTreeMap<String, (String, TenantRollout)>,
    profile: BTreeMap<String, (String, TenantProfile)>,
    namespaces: BTreeMap<String, String>,
    mistakes: Vec<String>,
}

impl Reading {
    fn package(&mut self, path: &Path, shown: &str) {
        match read_folder(path) {
            Ok(spec) => self.folders.push((shown.to_owned(), spec)),
            Err(SourceError::Refused(refusal)) => self.mistakes.push(format!("{shown}/{}", refusal.message)),
            Err(error) => self.mistakes.push(error.to_string()),
        }
    }

    fn file(&mut self, path: &Path, shown: &str) {
        let text = match read_objects_text(path, shown) {
            Ok(text) => text,
            Err(SourceError::Refused(refusal)) => return self.mistakes.push(refusal.message),
            Err(error) => return self.mistakes.push(error.to_string()),
        };
        match documents(shown, &text) {
            Ok(documents) => documents.into_iter().for_each(|document| self.document(document)),
            Err(mut mistakes) => self.mistakes.append(&mut mistakes),
        }
    }

    fn document(&mut self, document: Document) {
        let place = document.place();
        let (Some(api), Some(kind)) = (document.text("apiVersion"), document.text("kind")) else {
            let why = "apiVersion and kind are missing: every YAML and JSON file here is read as Kubernetes objects";
            return self.mistakes.push(format!("{place}: {why}"));
        };
        if (api, kind) == ("v1", "List") {
            return document.items().into_iter().for_each(|item| self.document(item));
        }
        let Some((_, version)) = api.split_once('/').filter(|(group, _)| *group == GROUP) else {
            return tracing::debug!(%place, %api, %kind, "an object of another API group is left alone");
        };
        if version != VERSION {
            let why = format!("apiVersion: is {api:?}, expected \"{GROUP}/{VERSION}\"");
            return self.mistakes.push(format!("{place}: {why}"));
        }
        let kind = kind.to_owned();
        match kind.as_str() {
            "Agent" => {
                let Some(agent) = self.read::<Agent>(&document, &kind, true) else { return };
                self.mistakes.extend(rules_of(&agent).map(|why| format!("{place}: Agent {}: {why}", agent.name_any())));
                add(&mut self.agents, &mut self.mistakes, &kind, place, agent.name_any(), agent);
            }
            "PolicyPackage" => {
                let Some(package) = self.read::<PolicyPackage>(&document, &kind, true) else { return };
                let name = package.name_any();
                add(&mut self.objects, &mut self.mistakes, &kind, place, name, package.spec);
            }
            "PolicySigner" => {
                let Some(signer) = self.read::<PolicySigner>(&document, &kind, false) else { return };
                if let Err(why) = crate::policy::Signer::try_from(&signer) {
                    self.mistakes.push(format!("{place}: {why}"));
                }
                add(&mut self.signers, &mut self.mistakes, &kind, place, signer.name_any(), signer);
            }
            "TenantRollout" => {
                let Some(rollout) = self.read::<TenantRollout>(&document, &kind, true) else { return };
                self.only_default(&place, &kind, &rollout.name_any());
                let selector = rollout.spec.package.clone().unwrap_or_default();
                if selector.digest.is_some() && (selector.name.is_some() || selector.version.is_some()) {
                    let why = "digest names exactly one package: leave out name and version, or leave out digest";
                    self.mistakes.push(format!("{place}: TenantRollout default: spec.package: {why}"));
                }
                add(&mut self.rollout, &mut self.mistakes, &kind, place, rollout.name_any(), rollout);
            }
            "TenantProfile" => {
                let Some(profile) = self.read::<TenantProfile>(&document, &kind, true) else { return };
                self.only_default(&place, &kind, &profile.name_any());
                let observes = profile.spec.enforcement == Some(Enforcement::Observe);
                if observes != profile.spec.observe_until.is_some() {
                    let why = "must be there with enforcement: Observe, and only with it";
                    self.mistakes.push(format!("{place}: TenantProfile default: spec.observeUntil: {why}"));
                }
                add(&mut self.profile, &mut self.mistakes, &kind, place, profile.name_any(), profile);
            }
            _ => self.mistakes.push(format!("{place}: kind: {GROUP}/{VERSION} has no kind {kind:?}")),
        }
    }

    fn read<K>(&mut self, document: &Document, kind: &str, namespaced: bool) -> Option<K>
    where
        K: serde::de::DeserializeOwned + ResourceExt,
    {
        let object: K = match document.object(kind) {
            Ok(object) => object,
            Err(mut mistakes) => {
                self.mistakes.append(&mut mistakes);
                return None;
            }
        };
        let name = object.name_any();
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let bytes = name.as_bytes();
        if bytes.len() > 253 || !name.bytes().all(plain) || !edge(bytes.first()) || !edge(bytes.last()) {
            let why = "must be there, of lower-case letters, digits, '-' and '.'";
            self.mistakes.push(format!("{}: {kind}: metadata.name: {why}", document.place()));
            return None;
        }
        if let Some(namespace) = object.namespace().filter(|_| namespaced) {
            self.namespaces.entry(namespace).or_insert_with(|| document.place());
        }
        Some(object)
    }

    fn only_default(&mut self, place: &str, kind: &str, name: &str) {
        if name != DEFAULT_NAME {
            let why = format!("metadata.name: must be '{DEFAULT_NAME}': a tenant has one {kind}");
            self.mistakes.push(format!("{place}: {kind} {name}: {why}"));
        }
    }

    fn finish(mut self, dir: &Path) -> Result<Directory, Mistakes> {
        if self.namespaces.len() > 1 {
            let named: Vec<String> = self.namespaces.iter().map(|(n, place)| format!("{n} ({place})")).collect();
            let why = format!("a folder is one tenant, but its objects name several namespaces: {}", named.join(", "));
            self.mistakes.push(format!("{}: metadata.namespace: {why}", dir.display()));
        }
        if !self.mistakes.is_empty() {
            return Err(Mistakes(self.mistakes));
        }
        let packages = self.folders.into_iter().chain(self.objects.into_values());
        Ok(Directory {
            namespace: self.namespaces.into_keys().next(),
            agents: self.agents.into_values().map(|(_, agent)| agent).collect(),
            packages: packages.collect(),
            signers: self.signers.into_values().map(|(_, signer)| signer).collect(),
            rollout: self.rollout.into_values().next().map(|(_, rollout)| rollout),
            profile: self.profile.into_values().next().map(|(_, profile)| profile),
        })
    }
}

/// Keeps an object; two of one name are a mistake: which of them counts would depend on the order of files.
fn add<T>(
    to: &mut BTreeMap<String, (String, T)>,
    mistakes: &mut Vec<String>,
    kind: &str,
    place: String,
    name: String,
    object: T,
) {
    match to.get(&name) {
        Some((first, _)) => mistakes.push(format!("{place}: {kind} {name}: is there already, in {first}")),
        None => drop(to.insert(name, (place, object))),
    }
}

/// What the API server checks of an Agent by CEL.
fn rules_of(agent: &Agent) -> impl Iterator<Item = &'static str> {
    let spec = &agent.spec;
    let mut mistakes = Vec::new();
    if let Some(delegation) = &spec.delegation {
        match (delegation.mode, &delegation.fixed) {
            (DelegationMode::None, Some(_)) => {
                mistakes.push("spec.delegation.fixed: needs mode Optional or Required");
            }
            (DelegationMode::Required, None) => mistakes.push("spec.delegation.mode: Required needs fixed"),
            _ => {}
        }
        let own = |d: &crate::api::Delegator| {
            d.kind == crate::api::DelegatorKind::Agent && agent.metadata.name.as_deref() == Some(&d.name)
        };
        if delegation.fixed.as_ref().is_some_and(own) {
            mistakes.push("spec.delegation.fixed: an agent cannot act on behalf of itself");
        }
    }
    if spec.identities.iter().any(|identity| identity.username("default").is_none()) {
        mistakes.push("spec.identities: an identity is exactly one of serviceAccount, oidc and spiffe");
    }
    if spec.attributes.keys().any(|name| name.is_empty() || name.chars().count() > 63) {
        mistakes.push("spec.attributes: names of attributes have 1 to 63 characters");
    }
    if (1..spec.identities.len()).any(|n| spec.identities[..n].contains(&spec.identities[n])) {
        mistakes.push("spec.identities: each identity may be listed only once");
    }
    mistakes.into_iter()
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
