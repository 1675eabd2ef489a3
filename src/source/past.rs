//! Packages that are not in force any more, from what still keeps their bytes: a ControllerRevision, a PolicyPackage or a folder.
//!
//! Only ever gives the package of exactly the digest that is asked for. It is for explaining, and never comes into force by this.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use semver::{Version, VersionReq};

use super::compile::Compiler;
use super::directory;
use super::index::find_bytes;
use super::kubernetes::Objects;
use crate::api::{PackageSelector, PolicyPackage, PolicyPackageSpec, READY, RevisionStatus, TenantRolloutStatus};
use crate::policy::{CompiledPackage, Side, digest as digest_of};

/// A package, when it is found.
pub type FoundPackage<'a> = Pin<Box<dyn Future<Output = Option<Arc<CompiledPackage>>> + Send + 'a>>;

/// Finds packages that are not in force any more.
pub trait PastPackages: Send + Sync {
    /// The package of exactly this digest; None where nothing keeps its text. On the platform's side `tenant` is the operator's
    /// namespace.
    fn find<'a>(&'a self, tenant: &'a str, digest: &'a str, side: Side) -> FoundPackage<'a>;

    /// The digest of a tenant's package by its name and version, or by itself where it is there; Err: why there is none, in words. Only of
    /// what verification has accepted, or what has decided here: a replay of any policy that somebody writes would read the records.
    fn digest_of(&self, tenant: &str, selector: &PackageSelector) -> Result<String, String>;
}

/// Nothing is kept but what is in force.
pub struct NothingPast;

impl PastPackages for NothingPast {
    fn find<'a>(&'a self, _: &'a str, _: &'a str, _: Side) -> FoundPackage<'a> {
        Box::pin(async { None })
    }

    fn digest_of(&self, _: &str, _: &PackageSelector) -> Result<String, String> {
        Err("this server keeps no packages but what is in force".to_owned())
    }
}

/// The highest version of the only package that the selector takes.
fn select<'a>(
    packages: impl Iterator<Item = &'a PolicyPackageSpec>,
    selector: &PackageSelector,
) -> Result<String, String> {
    let PackageSelector { name, version, digest } = selector;
    if let Some(wanted) = digest {
        let mut found = packages.map(digest_of);
        return found.find(|d| d == wanted).ok_or_else(|| format!("no package of this namespace has digest {wanted}"));
    }
    let range = match version {
        None => VersionReq::STAR,
        Some(text) => VersionReq::parse(text).map_err(|e| format!("version `{}`: {e}", text.escape_debug()))?,
    };
    let mut names = std::collections::BTreeSet::new();
    let mut best: Option<(Version, &PolicyPackageSpec)> = None;
    for spec in packages.filter(|spec| name.as_ref().is_none_or(|n| *n == spec.package)) {
        names.insert(spec.package.as_str());
        let Ok(version) = Version::parse(&spec.version) else { continue };
        // A range of `*` takes pre-releases too here: whoever replays one has named it, or has no other.
        let taken = range == VersionReq::STAR || range.matches(&version);
        if taken && best.as_ref().is_none_or(|(b, _)| version > *b) {
            best = Some((version, spec));
        }
    }
    if names.len() > 1 {
        return Err(format!("there are packages of several names: say which one ({})", join(&names)));
    }
    best.map(|(_, spec)| digest_of(spec)).ok_or_else(|| {
        let name = name.as_deref().map_or_else(|| "package".to_owned(), |n| format!("package {n:?}"));
        let version = version.as_deref().map(|v| format!(" with version {v}")).unwrap_or_default();
        format!("this namespace has no {name}{version}")
    })
}

fn join(names: &std::collections::BTreeSet<&str>) -> String {
    names.iter().take(5).copied().collect::<Vec<_>>().join(", ")
}

/// Looks among the objects that are watched.
pub struct KeptObjects {
    /// What is there.
    pub objects: Objects,
    /// Compiles what is found.
    pub compiler: Arc<Compiler>,
}

impl PastPackages for KeptObjects {
    fn find<'a>(&'a self, tenant: &'a str, digest: &'a str, side: Side) -> FoundPackage<'a> {
        Box::pin(async move {
            let recorded = RevisionStatus { digest: digest.to_owned(), ..RevisionStatus::default() };
            let bytes = find_bytes(&self.objects, tenant, &recorded, &[]).ok()?;
            compiled(&self.compiler, &bytes.spec, digest, side).await
        })
    }

    fn digest_of(&self, tenant: &str, selector: &PackageSelector) -> Result<String, String> {
        let rollout = self.objects.rollout_of(tenant);
        let status = rollout.as_ref().and_then(|r| r.0.as_ref().ok()?.status.as_ref());
        // What is kept of a package whose object is gone is found by its digest alone.
        if let Some(digest) = &selector.digest
            && status.is_some_and(|status| has_decided(status, digest))
        {
            let recorded = RevisionStatus { digest: digest.clone(), ..RevisionStatus::default() };
            if find_bytes(&self.objects, tenant, &recorded, &[]).is_ok_and(|bytes| digest_of(&bytes.spec) == *digest) {
                return Ok(digest.clone());
            }
        }
        let packages = self.objects.packages_of(tenant);
        let packages: Vec<&PolicyPackage> = packages.iter().filter_map(|p| p.0.as_ref().ok()).collect();
        let digest = select(packages.iter().map(|p| &p.spec), selector)?;
        if status.is_some_and(|status| has_decided(status, &digest)) {
            return Ok(digest);
        }
        accepted(&packages, &digest).map(|()| digest)
    }
}

/// Whether a rollout's status, which only Remit writes, names this package: it was accepted then.
fn has_decided(status: &TenantRolloutStatus, digest: &str) -> bool {
    let revisions = status.stable.iter().chain(&status.candidate).chain(status.history.iter().map(|h| &h.revision));
    revisions.into_iter().any(|revision| revision.digest == digest)
}

/// Whether the package of this digest may come into force, as it is now; Err: why not. Remit alone writes its status.
fn accepted(packages: &[&PolicyPackage], digest: &str) -> Result<(), String> {
    let mut why = None;
    for package in packages.iter().filter(|p| digest_of(&p.spec) == digest) {
        let status = package.status.as_ref().filter(|s| {
            s.digest.as_deref() == Some(digest) && Some(s.observed_generation) == package.metadata.generation
        });
        let name = package.metadata.name.as_deref().unwrap_or_default();
        let ready = status.and_then(|s| s.conditions.iter().find(|c| c.type_ == READY));
        match ready {
            Some(ready) if ready.status == "True" => return Ok(()),
            Some(ready) => why = Some(format!("package {name} is not accepted: {}: {}", ready.reason, ready.message)),
            None => why = why.or_else(|| Some(format!("package {name} is not verified yet"))),
        }
    }
    Err(why.unwrap_or_else(|| format!("nothing keeps package {digest}")))
}

/// Looks among the packages of a folder.
pub struct KeptFiles {
    /// The folder.
    pub dir: PathBuf,
    /// Compiles what is found.
    pub compiler: Compiler,
}

impl PastPackages for KeptFiles {
    fn find<'a>(&'a self, _: &'a str, digest: &'a str, side: Side) -> FoundPackage<'a> {
        Box::pin(async move {
            let dir = self.dir.clone();
            let set = tokio::task::spawn_blocking(move || directory::read(&dir)).await.ok()?.ok()?;
            let (_, spec) = set.packages.iter().find(|(_, spec)| digest_of(spec) == digest)?;
            compiled(&self.compiler, spec, digest, side).await
        })
    }

    fn digest_of(&self, _: &str, selector: &PackageSelector) -> Result<String, String> {
        let set = directory::read(&self.dir).map_err(|e| e.to_string())?;
        select(set.packages.iter().map(|(_, spec)| spec), selector)
    }
}

async fn compiled(
    compiler: &Compiler,
    spec: &PolicyPackageSpec,
    digest: &str,
    side: Side,
) -> Option<Arc<CompiledPackage>> {
    // A name is a promise; the bytes are what decided.
    if digest_of(spec) != digest {
        return None;
    }
    match compiler.compile(spec, digest, side).await {
        Ok(compiled) => compiled.ok(),
        Err(error) => {
            tracing::warn!(%error, digest, "a package could not be compiled to explain a decision");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{HistoryEntry, PolicyPackageStatus, set_condition};

    fn package(ready: Option<bool>, generation: i64) -> PolicyPackage {
        let mut package =
            PolicyPackage::new("first", PolicyPackageSpec { package: "first".into(), ..Default::default() });
        package.metadata.generation = Some(generation);
        package.status = ready.map(|ready| {
            let mut status = PolicyPackageStatus {
                observed_generation: 1,
                digest: Some(digest_of(&package.spec)),
                ..PolicyPackageStatus::default()
            };
            let now = jiff::Timestamp::UNIX_EPOCH;
            set_condition(&mut status.conditions, READY, ready, "Unsigned", "spec.signature is missing", 1, now);
            status
        });
        package
    }

    /// The attack: whoever may write packages writes one that no signer knows, and replays it to find out what was recorded.
    #[test]
    fn only_what_was_accepted_is_replayed() {
        let digest = digest_of(&package(None, 1).spec);
        let is = |package: &PolicyPackage| accepted(&[package], &digest);
        assert_eq!(is(&package(Some(true), 1)), Ok(()));
        let refused = is(&package(Some(false), 1)).unwrap_err();
        assert_eq!(refused, "package first is not accepted: Unsigned: spec.signature is missing");
        assert!(is(&package(None, 1)).unwrap_err().contains("not verified yet"));
        assert!(
            is(&package(Some(true), 2)).unwrap_err().contains("not verified yet"),
            "it was accepted as it was before"
        );
        let mut other = package(Some(true), 1);
        other.spec.version = "2.0.0".into();
        assert!(accepted(&[&other], &digest_of(&other.spec)).is_err(), "the status is of other bytes");
        assert_eq!(
            accepted(&[&package(Some(false), 1), &package(Some(true), 1)], &digest),
            Ok(()),
            "the same under two names"
        );
    }

    #[test]
    fn what_has_decided_is_known_by_the_rollouts_status() {
        let revision = |digest: &str| RevisionStatus { digest: digest.into(), ..RevisionStatus::default() };
        let status = TenantRolloutStatus {
            stable: Some(revision("a")),
            candidate: Some(revision("b")),
            history: vec![HistoryEntry { revision: revision("c"), ..HistoryEntry::default() }],
            ..TenantRolloutStatus::default()
        };
        assert!(["a", "b", "c"].iter().all(|digest| has_decided(&status, digest)) && !has_decided(&status, "d"));
    }
}
