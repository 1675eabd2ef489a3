//! The platform's base package: compiled into the binary, always evaluated, undone by no tenant.

use std::sync::{Arc, LazyLock};

use super::compiled::CompiledPackage;
use super::query::Side;
use crate::api::{PolicyPackageSpec, SourceFile};

/// The base package as its author would write it.
fn spec() -> PolicyPackageSpec {
    PolicyPackageSpec {
        package: "base".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        policies: vec![SourceFile {
            name: "base.cedar".to_owned(),
            text: include_str!("../../policies/platform/base.cedar").to_owned(),
        }],
        ..PolicyPackageSpec::default()
    }
}

/// The one compiled base package.
#[expect(clippy::expect_used, reason = "compiled-in text, and a test compiles it; without it nothing may be decided")]
pub fn base_platform() -> Arc<CompiledPackage> {
    static BASE: LazyLock<Arc<CompiledPackage>> = LazyLock::new(|| {
        let spec = spec();
        let digest = super::digest(&spec);
        CompiledPackage::compile(&spec, &digest, Side::Platform).expect("the base package compiles")
    });
    BASE.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_package_compiles() {
        assert_eq!(base_platform().package(), "base");
        assert!(base_platform().policy_count() > 0);
        assert_eq!(base_platform().cost_class(), "indexed");
    }
}
