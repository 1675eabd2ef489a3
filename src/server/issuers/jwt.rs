//! One compact JWS (RFC 7515) with the claims of a JWT (RFC 7519): what it says, and whether that is timely and meant for us.
//!
//! Read as I-JSON, so that a claim that stands twice is refused. Must never let the token choose how it is verified: the
//! algorithm must be one of the issuer's (RFC 8725, 3.1), and a header that Remit must understand (`crit`) is one that it does not.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Issuer;
use crate::server::authn::AuthnError;
use crate::server::ijson;

/// Asymmetric algorithms of RFC 7518 and RFC 8037. There is no `none` and no `HS…` to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Algorithm {
    /// RSA PKCS #1 v1.5, SHA-256.
    RS256,
    /// RSA PKCS #1 v1.5, SHA-384.
    RS384,
    /// RSA PKCS #1 v1.5, SHA-512.
    RS512,
    /// RSA PSS, SHA-256.
    PS256,
    /// RSA PSS, SHA-384.
    PS384,
    /// RSA PSS, SHA-512.
    PS512,
    /// ECDSA on P-256, SHA-256.
    ES256,
    /// ECDSA on P-384, SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    /// As headers and keys write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::RS256 => "RS256",
            Algorithm::RS384 => "RS384",
            Algorithm::RS512 => "RS512",
            Algorithm::PS256 => "PS256",
            Algorithm::PS384 => "PS384",
            Algorithm::PS512 => "PS512",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::EdDSA => "EdDSA",
        }
    }
}

/// A token in its parts. Nothing of it is proven.
pub struct Token<'a> {
    header: Map<String, Value>,
    claims: Map<String, Value>,
    /// What is signed.
    pub signed: &'a [u8],
    /// The signature.
    pub signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// None: not a compact JWS with JSON in it.
    pub fn read(token: &'a str) -> Option<Self> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.').filter(|(_, claims)| !claims.contains('.'))?;
        let object = |part: &str| ijson::parse_object(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        Some(Self {
            header: object(header)?,
            claims: object(claims)?,
            signed: signed.as_bytes(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    fn claim(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// Who is said to have issued it. A claim of another type is not absent: it names nobody who is configured.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").map(|value| value.as_str().unwrap_or_default())
    }

    /// Of whom it speaks.
    pub fn subject(&self) -> Option<&str> {
        self.claim("sub")
    }

    /// The key that it names.
    pub fn key_id(&self) -> Option<&str> {
        self.header.get("kid").and_then(Value::as_str).filter(|kid| !kid.is_empty())
    }

    /// When it expires.
    pub fn expires(&self) -> Option<Timestamp> {
        self.time("exp").ok().flatten()
    }

    /// Its algorithm, where the issuer's configuration has it.
    pub fn algorithm(&self, allowed: &[Algorithm]) -> Result<Algorithm, AuthnError> {
        if self.header.contains_key("crit") {
            return Err(AuthnError::Unverified("its header has extensions that must be understood (`crit`)"));
        }
        match self.header.get("typ") {
            None => {}
            // `at+jwt` is RFC 9068; SPIFFE has `JOSE`, too.
            Some(Value::String(typ)) if ["jwt", "jose", "at+jwt"].iter().any(|t| typ.eq_ignore_ascii_case(t)) => {}
            Some(_) => return Err(AuthnError::Unverified("its type is not JWT")),
        }
        let named = self.header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let found = allowed.iter().find(|algorithm| algorithm.as_str() == named);
        found.copied().ok_or(AuthnError::Unverified("its algorithm is not one of the issuer's"))
    }

    /// `exp` must be there and to come, `nbf` and `iat` must not lie ahead, and it must not live too long.
    pub fn timely(&self, now: Timestamp, issuer: &Issuer) -> Result<(), AuthnError> {
        let skew = issuer.skew();
        let expires = self.time("exp")?.ok_or(AuthnError::Malformed("it has no expiry"))?;
        if expires + skew <= now {
            return Err(AuthnError::Expired);
        }
        let issued = self.time("iat")?;
        for time in [self.time("nbf")?, issued].into_iter().flatten() {
            if time > now + skew {
                return Err(AuthnError::Unverified("it is not valid yet"));
            }
        }
        if let Some(most) = issuer.max_token_lifetime_seconds {
            let issued = issued.ok_or(AuthnError::Unverified("it does not say when it was issued"))?;
            let most = SignedDuration::from_secs(i64::try_from(most).unwrap_or(i64::MAX));
            if expires.duration_since(issued) > most {
                return Err(AuthnError::Unverified("it lives longer than the issuer's tokens may"));
            }
        }
        Ok(())
    }

    /// A NumericDate. One that is there and can't be read is an error, never absence.
    fn time(&self, claim: &str) -> Result<Option<Timestamp>, AuthnError> {
        let Some(value) = self.claims.get(claim) else { return Ok(None) };
        let seconds = value.as_f64().filter(|seconds| (0.0..=1e11).contains(seconds));
        let time = seconds.and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
        time.map(Some).ok_or(AuthnError::Malformed("one of its times can't be read"))
    }

    /// Whether it names one of the audiences, to the byte.
    pub fn meant_for(&self, audiences: &[String]) -> Result<(), AuthnError> {
        let ours = |value: &Value| value.as_str().is_some_and(|named| audiences.iter().any(|a| a == named));
        let meant = match self.claims.get("aud") {
            Some(Value::Array(many)) => many.iter().any(ours),
            Some(one) => ours(one),
            None => false,
        };
        if meant { Ok(()) } else { Err(AuthnError::ForeignAudience) }
    }
}
