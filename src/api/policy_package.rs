//! `PolicyPackage`: an immutable version of a tenant's policies, tools, entities and tests.
//!
//! Texts and enums only: a number could be re-encoded by a client, and the digest is over what the author wrote.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::never_observed;
use super::crd::Rule;

/// Rules over the whole object. Immutability stands here and not at the fields: a transition rule of a field is skipped where the field is
/// absent before or after, so that adding or removing an optional one would get around it.
pub(super) const RULES: &[Rule] = &[Rule {
    rule: "self.spec == oldSelf.spec",
    message: "spec cannot be changed: a package is an immutable version; apply a new object with a new version instead",
}];

/// Characters that one text of a package may have: the whole object may have 900 KiB.
const MAX_TEXT: u32 = 900 * 1024;

/// An immutable version of a tenant's policies, tools, entities and tests; named by its digest, signed where the tenant has a signer.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "remit.dev",
    version = "v1alpha1",
    kind = "PolicyPackage",
    namespaced,
    status = "PolicyPackageStatus",
    category = "remit",
    shortname = "pp",
    derive = "PartialEq",
    selectable = ".spec.package",
    selectable = ".spec.version",
    selectable = ".spec.digest",
    printcolumn(name = "Package", type_ = "string", json_path = ".spec.package"),
    printcolumn(name = "Version", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Signed", type_ = "string", json_path = r#".status.conditions[?(@.type=="Signed")].status"#),
    printcolumn(name = "Policies", type_ = "integer", json_path = ".status.policies"),
    printcolumn(name = "Cost", type_ = "string", json_path = ".status.costClass", priority = 1),
    printcolumn(name = "Digest", type_ = "string", json_path = ".status.digest", priority = 1),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Reason", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyPackageSpec {
    /// Name of the package, the same in all its versions: lower-case letters, digits and `-`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub package: String,
    /// Semantic version, without `+build`. A tenant never goes below the highest that was in force, except by rollback.
    #[schemars(length(min = 1, max = 128))]
    pub version: String,
    /// Tools that the policies speak of. A tool that is not listed is denied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "atomic"))]
    pub tools: Vec<Tool>,
    /// Cedar policies, one entry a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "atomic"))]
    pub policies: Vec<SourceFile>,
    /// Cedar schema in its human-readable form: types and actions besides the core ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT))]
    pub schema: Option<String>,
    /// Entities as Cedar's JSON, as text: groups, users and resources that the package knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_TEXT))]
    pub entities: Option<String>,
    /// How AuthZEN subject and resource types map to Cedar types, and where their attributes come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Mapping>,
    /// Tests, one entry a YAML file. A package whose tests fail does not come into force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), extend("x-kubernetes-list-type" = "atomic"))]
    pub tests: Vec<SourceFile>,
    /// Who wrote this version, as the author calls themselves. Signed with the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub author: Option<String>,
    /// Name of the PolicySigner whose key signed. A hint for people: the key is found by its fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub signer: Option<String>,
    /// `sha256:` and 64 hex digits: SHA-256 over the RFC 8785 form of every other field except signer and signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
    /// DSSE envelope over the statement that names tenant, package, version and digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Envelope>,
}

/// A text file of the package.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceFile {
    /// File name, relative to the package's folder; error messages name it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Content of the file.
    #[schemars(length(max = MAX_TEXT))]
    pub text: String,
}

/// A tool and how much harm it can do.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tool {
    /// `server/name`, as agents call it.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Tier of the tool, also the ToolGroup that policies name: `read` (reads only), `write` (what it changes can be changed back) or
    /// `admin` (it changes what can't be undone, or who may do what).
    pub tier: Tier,
    /// Whether the tool touches what needs extra care, `normal` or `sensitive`; policies read it as `resource.sensitive`.
    #[serde(default, skip_serializing_if = "Sensitivity::is_normal")]
    pub sensitivity: Sensitivity,
    /// Further ToolGroups of the tool. `read`, `write` and `admin` are reserved for the tier.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 253)), extend("x-kubernetes-list-type" = "atomic"))]
    pub groups: Vec<String>,
    /// What the tool does, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// Pins the definition (description, schemas, hints) that was reviewed: `sha256:` and 64 hex digits, as `remit tools import` writes
    /// it. A call that comes with another digest is denied `tool_changed` until the tool is imported again. Without it nothing is pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub schema_digest: Option<String>,
}

/// How much harm a tool can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Tier {
    /// Reads only.
    Read,
    /// Changes something that can be changed back.
    Write,
    /// Changes what can't be undone, or who may do what.
    Admin,
}

impl Tier {
    /// The tier as policies and records write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Read => "read",
            Tier::Write => "write",
            Tier::Admin => "admin",
        }
    }
}

/// Whether a tool touches what needs extra care.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Sensitivity {
    /// Nothing special.
    #[default]
    Normal,
    /// `resource.sensitive` is true.
    Sensitive,
}

impl Sensitivity {
    fn is_normal(&self) -> bool {
        *self == Sensitivity::Normal
    }
}

/// How AuthZEN types map to Cedar's. `agent`, `user`, `service`, `tool` and `domain` are built in and can't be mapped again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    /// Subject types that gateways may ask about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub subjects: Vec<MappedType>,
    /// Resource types.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub resources: Vec<MappedType>,
}

/// One AuthZEN type and its Cedar type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MappedType {
    /// Type as it stands in AuthZEN requests.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 253))]
    pub type_: String,
    /// Cedar entity type, with its namespace: `Docs::Document`.
    #[schemars(length(min = 1, max = 253))]
    pub entity: String,
    /// Attributes that may come with the request. All others come from the package's entities only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub attributes: Vec<MappedAttribute>,
}

/// An attribute that may come with the request, and from whom.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MappedAttribute {
    /// Name of the attribute in the Cedar schema and in `properties`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Who is believed: `caller` (a gateway that enforces for others, not the agent itself) or `agent` (the agent itself, too).
    pub from: AttributeSource,
}

/// Who is believed for an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AttributeSource {
    /// A gateway that enforces for others. Not the agent itself.
    Caller,
    /// The agent itself, too: it can't gain by lying, or the author accepts that it may.
    Agent,
}

/// A DSSE envelope (<https://github.com/secure-systems-lab/dsse>), texts only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Envelope {
    /// Media type of the payload, `application/vnd.remit.package.v1+json`.
    #[schemars(length(max = 253))]
    pub payload_type: String,
    /// The signed statement, base64.
    #[schemars(length(max = 16_384))]
    pub payload: String,
    /// Signatures, one a key.
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "atomic"))]
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature of an envelope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// Fingerprint of the key, `sha256:` and 64 hex digits.
    #[schemars(length(max = 253))]
    pub keyid: String,
    /// Ed25519 signature over DSSE's pre-authentication encoding, base64.
    #[schemars(length(max = 1024))]
    pub sig: String,
}

/// What Remit found out about the package.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyPackageStatus {
    /// Generation of the spec that this status describes; -1 before the first visit.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// Digest that Remit computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Number of policies.
    #[serde(default)]
    pub policies: i64,
    /// Share of the package's policies that a check has to look at: `indexed` (few) or `scan` (many are unconstrained).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_class: Option<String>,
    /// Valid: it parses, agrees with the schema and its tests pass. Signed: by whom. Ready: it may come into force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
