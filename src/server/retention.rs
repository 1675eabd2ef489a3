//! Keeps the record as long as the profiles say, and no longer.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::gate::Snapshot;
use crate::store::Store;

/// How often old records are looked for.
const RETENTION: Duration = Duration::from_secs(3600);
/// The first time: once what is in force is known, also where the process never lives for an hour.
const FIRST_RETENTION: Duration = Duration::from_secs(60);
/// Records that are deleted at a time.
const BATCH: u32 = 1000;

/// Deletes records past their tenant's retention, in batches, until `stop`. `platform`: the tenant whose profile counts for what
/// belongs to no tenant.
pub async fn retain(
    store: Arc<dyn Store>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    platform: String,
    mut stop: watch::Receiver<bool>,
) {
    let mut wait = FIRST_RETENTION;
    loop {
        tokio::select! {
            _ = stop.wait_for(|s| *s) => return,
            () = tokio::time::sleep(wait) => wait = RETENTION,
        }
        let tenants = match store.recorded_tenants().await {
            Ok(tenants) => tenants,
            Err(error) => {
                tracing::warn!(%error, "old records could not be looked for");
                continue;
            }
        };
        for tenant in tenants {
            let Some(days) = retention_days(&snapshot.load(), &platform, &tenant) else { break };
            let days = u64::try_from(days).unwrap_or(u64::MAX);
            let Ok(before) = Timestamp::now().checked_sub(Duration::from_secs(days.saturating_mul(86_400))) else {
                continue;
            };
            loop {
                match store.retain(&tenant, before, BATCH).await {
                    Ok(deleted) if deleted >= u64::from(BATCH) && !*stop.borrow() => continue,
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!(%tenant, %error, "old records could not be deleted");
                        break;
                    }
                }
            }
        }
    }
}

/// Days for which a tenant's records are kept; None before anybody knows. What a deleted namespace left, and the refusals of
/// callers from namespaces that are no tenants, are kept as long as the platform's own.
fn retention_days(snapshot: &Snapshot, platform: &str, tenant: &str) -> Option<i64> {
    snapshot.platform.as_ref()?;
    let known = snapshot.tenants.get(tenant).or_else(|| snapshot.tenants.get(platform));
    Some(known.map(|t| t.profile).unwrap_or_default().retention_days)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::EffectiveProfile;
    use crate::gate::Tenant;

    #[test]
    fn records_of_deleted_namespaces_are_kept_as_long_as_the_platforms_own() {
        let tenant = |name: &str, retention_days| {
            let profile = EffectiveProfile { retention_days, ..EffectiveProfile::default() };
            let tenant = Tenant {
                name: name.into(),
                uid: String::new(),
                agents: Default::default(),
                package: None,
                canary: None,
                profile,
            };
            (name.to_owned(), Arc::new(tenant))
        };
        let mut snapshot = Snapshot { platform: Some(Ok(vec![])), ..Snapshot::default() };
        assert_eq!(retention_days(&snapshot, "remit-system", "gone"), Some(90));
        snapshot.tenants = [tenant("remit-system", 30), tenant("acme", 3650)].into();
        assert_eq!(retention_days(&snapshot, "remit-system", "acme"), Some(3650));
        assert_eq!(retention_days(&snapshot, "remit-system", "gone"), Some(30));
        // Before the caches are synced every tenant looks gone: nothing is deleted on such a ground.
        snapshot.platform = None;
        assert_eq!(retention_days(&snapshot, "remit-system", "acme"), None);
    }
}
