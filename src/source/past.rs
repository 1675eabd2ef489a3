//! Packages that are not in force any more, from what still keeps their bytes: a ControllerRevision, a PolicyPackage or a folder.
//!
//! Only ever gives the package of exactly the digest that is asked for. It is for explaining, and never comes into force by this.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use super::compile::Compiler;
use super::directory;
use super::index::find_bytes;
use super::kubernetes::Objects;
use crate::api::{PolicyPackageSpec, RevisionStatus};
use crate::policy::{CompiledPackage, Side, digest as digest_of};

/// A package, when it is found.
pub type FoundPackage<'a> = Pin<Box<dyn Future<Output = Option<Arc<CompiledPackage>>> + Send + 'a>>;

/// Finds packages that are not in force any more.
pub trait PastPackages: Send + Sync {
    /// The package of exactly this digest; None where nothing keeps its text. On the platform's side `tenant` is the operator's
    /// namespace.
    fn find<'a>(&'a self, tenant: &'a str, digest: &'a str, side: Side) -> FoundPackage<'a>;
}

/// Nothing is kept but what is in force.
pub struct NothingPast;

impl PastPackages for NothingPast {
    fn find<'a>(&'a self, _: &'a str, _: &'a str, _: Side) -> FoundPackage<'a> {
        Box::pin(async { None })
    }
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
