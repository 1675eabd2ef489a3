//! Why a package is refused: one code for each reason, and a message that names what to mend.

use std::fmt;

/// A package (or a part of it) that is not put in force, with what to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Stable code, also the reason of the condition.
    pub code: RefusalCode,
    /// Names the field, file, line and column, policy id or test. One line.
    pub message: String,
}

impl Refusal {
    /// A refusal with its message.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $name:ident $provable:literal,)*) => {
        /// Stable refusal codes. `provable` ones follow from the bytes alone: admission refuses those and only warns of the others.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum RefusalCode { $($(#[doc = $doc])* $name,)* }

        impl RefusalCode {
            /// Every code, for docs and tests.
            pub const ALL: &'static [RefusalCode] = &[$(RefusalCode::$name,)*];

            /// The code as conditions, answers and metrics write it.
            pub fn as_str(self) -> &'static str {
                match self { $(RefusalCode::$name => stringify!($name),)* }
            }

            /// Whether the bytes alone prove it, so that admission may refuse.
            pub fn provable(self) -> bool {
                match self { $(RefusalCode::$name => $provable,)* }
            }
        }
    };
}

codes! {
    /// The signature names a key that no PolicySigner holds.
    UnknownSigner false,
    /// The key is known, but its signer does not cover this tenant.
    ForeignSigner false,
    /// The signer was revoked.
    RevokedSigner false,
    /// The signer's notBefore lies ahead.
    SignerNotYetValid false,
    /// The signer's notAfter has passed.
    SignerExpired false,
    /// The tenant needs signed packages and this one is not.
    Unsigned false,
    /// `spec.digest`, or the recorded digest, is not the digest of the content.
    DigestMismatch true,
    /// The signature does not verify under the key that it names.
    SignatureMismatch true,
    /// The envelope can't be read.
    EnvelopeMalformed true,
    /// The statement names another tenant.
    TenantMismatch true,
    /// The statement names another package.
    NameMismatch true,
    /// The statement names another version.
    VersionMismatch true,
    /// The statement names another installation.
    InstallationMismatch true,
    /// The version is not a semantic version, or carries `+build`.
    NotSemver true,
    /// The version is below the tenant's high-water mark.
    Downgrade false,
    /// This version was in force before with another digest.
    VersionReused false,
    /// A policy does not parse.
    CedarSyntax true,
    /// The package's schema does not parse.
    SchemaSyntax true,
    /// A policy, an entity or the mapping does not agree with the schema.
    SchemaViolation false,
    /// A name that Remit keeps for itself, or a core type or action that is defined again.
    ReservedName true,
    /// An annotation that Remit does not know.
    UnknownAnnotation true,
    /// An annotation whose value or place is wrong.
    InvalidAnnotation true,
    /// A test of the package fails.
    TestFailed false,
    /// A test file can't be read.
    TestSyntax true,
    /// Two policies, tools or tests of the package have the same id.
    DuplicateId true,
    /// A policy without `@id`.
    MissingId true,
    /// A field that the format does not know, or a value out of shape.
    Malformed true,
    /// Over a size limit.
    TooLarge true,
    /// Nested or chained deeper than Remit parses.
    TooDeep true,
    /// A pattern or a set that would take too long to evaluate.
    TooCostly true,
    /// These bytes ended a parser before; they are not tried again.
    Quarantined false,
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
