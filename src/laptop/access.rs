//! Who may ask a folder's Remit: whoever can read its tokens. One token asks about calls, the other reads the records.

use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::server::{
    Ask, Audience, Authenticated, Authenticator, AuthnError, Authorizer, BoxFuture, Identity, NoVerdict,
};

/// Who has the token for enforcement points.
pub const GATEWAY: &str = "local-token";
/// Who has the owner's token.
pub const OWNER: &str = "local-admin-token";

/// The generated tokens. It keeps their digests only.
pub struct LocalTokens {
    checks: ([u8; 32], Arc<Identity>),
    admin: ([u8; 32], Arc<Identity>),
}

impl LocalTokens {
    /// Over these tokens.
    pub fn new(token: &str, admin_token: &str) -> Self {
        let identity = |name: &str| Arc::new(Identity { username: name.to_owned(), ..Identity::default() });
        Self { checks: (hash(token), identity(GATEWAY)), admin: (hash(admin_token), identity(OWNER)) }
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Compares all of it, whatever differs first.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y))) == 0
}

impl Authenticator for LocalTokens {
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        audience: Audience,
        _: IpAddr,
    ) -> BoxFuture<'a, Result<Authenticated, AuthnError>> {
        let token = hash(token);
        let (checks, admin) = (equal(&token, &self.checks.0), equal(&token, &self.admin.0));
        let known = match (audience, checks, admin) {
            (Audience::Checks, true, _) => Ok(self.checks.1.clone()),
            (Audience::Admin, _, true) => Ok(self.admin.1.clone()),
            (_, false, false) => Err(AuthnError::Unknown),
            _ => Err(AuthnError::Audience(audience.as_str())),
        };
        Box::pin(std::future::ready(known.map(|identity| Authenticated { identity, stale: false })))
    }
}

/// What the tokens' holders may do: in their own tenant only.
pub struct LocalRights {
    /// The tenant.
    pub tenant: String,
}

impl Authorizer for LocalRights {
    fn allowed<'a>(&'a self, who: &'a Identity, ask: Ask) -> BoxFuture<'a, Result<bool, NoVerdict>> {
        let may = ask.namespace == self.tenant
            && match who.username.as_str() {
                GATEWAY => (ask.verb, ask.resource) == ("check", "agents"),
                // The folder's owner: what they may not do by Remit, they could do by an editor.
                OWNER => true,
                _ => false,
            };
        Box::pin(std::future::ready(Ok(may)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn each_token_is_good_for_its_own_audience_only() {
        let tokens = LocalTokens::new("ask", "read");
        let who = async |token: &str, audience| {
            tokens.authenticate(token, audience, FROM).await.map(|a| a.identity.username.clone())
        };
        assert_eq!(who("ask", Audience::Checks).await.unwrap(), GATEWAY);
        assert_eq!(who("read", Audience::Admin).await.unwrap(), OWNER);
        assert_eq!(who("ask", Audience::Admin).await, Err(AuthnError::Audience("remit-admin")));
        assert_eq!(who("read", Audience::Checks).await, Err(AuthnError::Audience("remit")));
        for wrong in ["", "as", "askk", "Ask"] {
            assert_eq!(who(wrong, Audience::Checks).await, Err(AuthnError::Unknown), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn the_gateway_asks_the_owner_reads_and_nobody_leaves_the_tenant() {
        let rights = LocalRights { tenant: "acme".into() };
        let may = async |name: &str, verb, resource, namespace: &str| {
            let who = Identity { username: name.into(), ..Identity::default() };
            rights.allowed(&who, Ask { verb, resource, namespace: namespace.into() }).await.unwrap()
        };
        assert!(may(GATEWAY, "check", "agents", "acme").await);
        assert!(!may(GATEWAY, "get", "decisions", "acme").await);
        assert!(!may(GATEWAY, "check", "agents", "other").await);
        assert!(may(OWNER, "get", "decisions", "acme").await);
        assert!(!may(OWNER, "get", "decisions", "other").await);
        assert!(!may("somebody", "check", "agents", "acme").await);
    }
}
