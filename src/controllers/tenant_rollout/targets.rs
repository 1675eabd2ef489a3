//! What a rollback, or the way back from a compromised key, would put in force is looked at first: it was right once, and may not compile, or
//! fail its tests, as things are today.

use std::collections::{BTreeMap, BTreeSet};

use super::ReconcileError;
use super::pass::{PATIENCE, Pass};
use crate::api::{PolicyPackageSpec, RevisionStatus};
use crate::controllers::verdict::obstacle;
use crate::lifecycle::rollout::{Effect, Next, Observation, revision, step, urgent};
use crate::source::index::find_bytes;

impl Pass<'_> {
    /// The next step. `whole`: bytes of packages that compile and pass their tests now.
    pub(super) async fn step(
        &self,
        o: &Observation<'_>,
        whole: &BTreeMap<String, (PolicyPackageSpec, Option<String>)>,
    ) -> Result<Next, ReconcileError> {
        let obstacles = self.obstacles(o, whole, |o| Some(step(o))).await?;
        Ok(step(&Observation { obstacles: &obstacles, ..*o }))
    }

    /// What waits for no package to be judged but those that it goes back to itself.
    pub(super) async fn urgent(&self, o: &Observation<'_>) -> Result<Option<Next>, ReconcileError> {
        let obstacles = self.obstacles(o, &BTreeMap::new(), urgent).await?;
        Ok(urgent(&Observation { obstacles: &obstacles, ..*o }))
    }

    /// Why what is gone back to by the next step can't come into force, for as many revisions as are tried one after the other.
    async fn obstacles(
        &self,
        o: &Observation<'_>,
        whole: &BTreeMap<String, (PolicyPackageSpec, Option<String>)>,
        next: impl Fn(&Observation<'_>) -> Option<Next>,
    ) -> Result<BTreeMap<String, String>, ReconcileError> {
        let mut obstacles = BTreeMap::new();
        let mut looked_at: BTreeSet<String> = whole.keys().cloned().collect();
        loop {
            let found = next(&Observation { obstacles: &obstacles, ..*o });
            let back = found.iter().flat_map(goes_back_to).find(|r| !looked_at.contains(&r.digest));
            let Some(back) = back else { return Ok(obstacles) };
            let bytes = find_bytes(&self.ctx.objects, &self.tenant.name, &back, &self.tenant.signers);
            let why = match bytes {
                Ok(bytes) => {
                    obstacle(self.ctx, &bytes.spec, &back.digest, PATIENCE).await?.map(|refusal| refusal.to_string())
                }
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                tracing::warn!(tenant = %self.tenant.name, digest = %back.digest, %why, "a former revision can't come into force");
                obstacles.insert(back.digest.clone(), why);
            }
            looked_at.insert(back.digest);
        }
    }
}

/// Former revisions that come into force by this step.
fn goes_back_to(next: &Next) -> Vec<RevisionStatus> {
    let steps = next.effects.iter().filter_map(|e| match e {
        Effect::Commit(step) => Some(step),
        _ => None,
    });
    let back = |cause: &str| matches!(cause, "RolledBack" | "SignerCompromised");
    steps
        .flat_map(|step| {
            let row_of = |revision| step.in_force.iter().find(move |row| row.revision == revision);
            let back = step.records.iter().filter(|r| r.phase == "completed" && back(&r.cause));
            back.filter_map(move |r| row_of(r.revision))
        })
        .map(revision)
        .collect()
}
