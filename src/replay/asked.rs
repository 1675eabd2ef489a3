//! From what somebody asks for to a run: every package by its digest, an end to the selection, invariants that can be judged.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::api::{Invariant, PackageSelector, PolicyReplaySpec, ReplaySelection};
use crate::gate::Snapshot;
use crate::store::RunSpec;

/// Invariants of one run.
const MAX_INVARIANTS: usize = 16;

/// What somebody asks for, in an object or a body.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Asked {
    /// Package to compare with; the one in force if not set.
    #[serde(default)]
    pub baseline: Option<PackageSelector>,
    /// Package to try.
    pub candidate: PackageSelector,
    /// Which decisions.
    #[serde(default)]
    pub selection: ReplaySelection,
    /// What must hold of the candidate.
    #[serde(default)]
    pub invariants: Vec<Invariant>,
}

impl From<&PolicyReplaySpec> for Asked {
    fn from(spec: &PolicyReplaySpec) -> Self {
        // Taken apart by name, so that a new field can't be forgotten here.
        let PolicyReplaySpec { baseline, candidate, selection, invariants } = spec;
        Self {
            baseline: baseline.clone(),
            candidate: candidate.clone(),
            selection: selection.clone().unwrap_or_default(),
            invariants: invariants.clone(),
        }
    }
}

/// Why nothing can be run: the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct AskedError {
    /// Path in what was asked.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub why: String,
}

impl Asked {
    /// Fixes everything, so that the run is of exactly these packages and records whenever it is carried out. `find` names the digest
    /// of a package of this tenant.
    pub fn fixed(
        self,
        tenant: &str,
        snapshot: &Snapshot,
        now: Timestamp,
        find: impl Fn(&PackageSelector) -> Result<String, String>,
    ) -> Result<RunSpec, AskedError> {
        let error = |field, why: String| AskedError { field, why };
        self.selection.check().map_err(|(field, why)| error(field, why))?;
        if self.invariants.len() > MAX_INVARIANTS {
            return Err(error("invariants", format!("at most {MAX_INVARIANTS}")));
        }
        super::judged(&self.invariants).map_err(|e| error("invariants", e.to_string()))?;
        let platform = match &snapshot.platform {
            Some(Ok(packages)) => packages.iter().map(|p| p.digest().to_owned()).collect(),
            Some(Err(_)) | None => {
                return Err(error("baseline", "the platform's policy packages are not loaded now".to_owned()));
            }
        };
        let baseline = match &self.baseline {
            Some(selector) => find(selector).map_err(|why| error("baseline", why))?,
            None => {
                let in_force = snapshot.tenants.get(tenant).and_then(|t| t.package.as_ref());
                in_force.map(|p| p.digest().to_owned()).ok_or_else(|| {
                    error("baseline", "no package is in force here: name the one to compare with".to_owned())
                })?
            }
        };
        let candidate = find(&self.candidate).map_err(|why| error("candidate", why))?;
        let end = end_of_second(now);
        let until = self.selection.until.map_or(end.0, |until| until.0.min(end.0));
        let selection = ReplaySelection { until: Some(Time(until)), ..self.selection };
        Ok(RunSpec { baseline, candidate, platform, selection, invariants: self.invariants })
    }
}

/// The whole second that ends next. Times in objects and runs have seconds: cut short, the newest decisions would be left out.
pub fn end_of_second(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second().saturating_add(1)).unwrap_or(now))
}
