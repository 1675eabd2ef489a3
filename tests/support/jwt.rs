//! Issuers of tests: keys, their JWK Set, and tokens that they sign, good ones and bad ones.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

/// One key of an issuer.
pub enum Signer {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256(RsaKeyPair),
}

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    pub fn es256() -> Self {
        let (rng, alg) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let document = EcdsaKeyPair::generate_pkcs8(alg, &rng).expect("key");
        Self::Es256(EcdsaKeyPair::from_pkcs8(alg, document.as_ref(), &rng).expect("key"))
    }

    pub fn eddsa() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("key");
        Self::EdDsa(Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("key"))
    }

    /// The one RSA key of the tests: making one takes seconds.
    pub fn rs256() -> Self {
        let key = include_bytes!("../data/issuers/rsa-test-only.pk8");
        Self::Rs256(RsaKeyPair::from_pkcs8(key).expect("key"))
    }

    pub fn alg(&self) -> &'static str {
        match self {
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
            Self::Rs256(_) => "RS256",
        }
    }

    /// The public key as its issuer publishes it.
    pub fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Es256(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "x": b64(&point[1..33]), "y": b64(&point[33..])})
            }
            Self::EdDsa(key) => json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64(key.public_key())}),
            Self::Rs256(key) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "kid": kid, "alg": "RS256", "use": "sig", "n": b64(public.n), "e": b64(public.e)})
            }
        }
    }

    /// A token with this key's own algorithm.
    pub fn token(&self, kid: &str, claims: &Value) -> String {
        self.with_header(&json!({"alg": self.alg(), "typ": "JWT", "kid": kid}), claims)
    }

    /// A token with any header.
    pub fn with_header(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let (rng, bytes) = (SystemRandom::new(), signed.as_bytes());
        let signature = match self {
            Self::Es256(key) => key.sign(&rng, bytes).expect("sign").as_ref().to_vec(),
            Self::EdDsa(key) => key.sign(bytes).as_ref().to_vec(),
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &rng, bytes, &mut signature).expect("sign");
                signature
            }
        };
        format!("{signed}.{}", b64(signature))
    }
}

/// The attack on verifiers that let the token choose: HMAC with what everybody knows, the public key.
pub fn hs256(kid: &str, claims: &Value, secret: &[u8]) -> String {
    let header = json!({"alg": "HS256", "typ": "JWT", "kid": kid});
    let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret).expect("any length");
    mac.update(signed.as_bytes());
    format!("{signed}.{}", b64(mac.finalize().into_bytes()))
}

/// A token that nobody signed.
pub fn unsigned(claims: &Value) -> String {
    format!("{}.{}.", b64(json!({"alg": "none", "typ": "JWT"}).to_string()), b64(claims.to_string()))
}
