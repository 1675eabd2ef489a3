//! Packages as authors handle them: the real binary, offline, from `remit init` to a verified object, and every refusal on the way.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use remit::policy::{RefusalCode, digest};
use remit::source::folder;
use serde_json::Value;
use tempfile::TempDir;

/// An author's working folder.
struct Author {
    dir: TempDir,
}

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    #[track_caller]
    fn passes(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }

    /// Codes and messages of every refusal in a JSON answer.
    fn refusals(&self) -> Vec<(String, String)> {
        let answer = self.json();
        let packages = answer["packages"].as_array().into_iter().flatten();
        let lists = packages.map(|p| &p["refusals"]).chain([&answer["refusals"]]);
        lists
            .flat_map(|list| list.as_array().into_iter().flatten())
            .map(|r| (r["code"].as_str().unwrap().to_string(), r["message"].as_str().unwrap().to_string()))
            .collect()
    }

    #[track_caller]
    fn refused(&self, code: RefusalCode, words: &[&str]) {
        assert_eq!(self.code, 1, "{}\n{}", self.out, self.err);
        let refusals = self.refusals();
        let found = refusals.iter().find(|(c, _)| c == code.as_str());
        let (_, message) = found.unwrap_or_else(|| panic!("no {code} in {refusals:?}"));
        for word in words {
            assert!(message.contains(word), "{word:?} is not in {code}: {message}");
        }
        assert!(!message.contains('\n'), "{message}");
    }
}

impl Author {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With the package that `remit init` writes, in `policy`.
    fn with_package() -> Self {
        let author = Self::new();
        author.remit(&["init", "policy"]).passes();
        author
    }

    /// With that package signed for tenant `acme` by `release.key`, in `signed.yaml`.
    fn with_signed() -> Self {
        let author = Self::with_package();
        author.remit(&["keygen", "--out", "release"]).passes();
        author.sign("acme", "any", "signed.yaml");
        author
    }

    fn sign(&self, tenant: &str, installation: &str, file: &str) {
        let args = ["package", "sign", "policy", "--key", "release.key", "--tenant", tenant];
        self.remit(&[&args[..], &["--installation", installation, "--out", file]].concat()).passes();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// Changes a file; the text that is changed must be there.
    #[track_caller]
    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "{from:?} is not in {text}");
        self.write(name, &text.replacen(from, to, 1));
    }

    fn remit(&self, args: &[&str]) -> Ran {
        let ran = Command::new(env!("CARGO_BIN_EXE_remit")).args(args).current_dir(self.dir.path()).output().unwrap();
        Ran {
            code: ran.status.code().unwrap_or(-1),
            out: String::from_utf8(ran.stdout).unwrap(),
            err: String::from_utf8(ran.stderr).unwrap(),
        }
    }

    fn test(&self) -> Ran {
        self.remit(&["test", "policy", "-o", "json"])
    }

    fn verify(&self, more: &[&str]) -> Ran {
        let args = ["package", "verify", "signed.yaml", "--tenant", "acme", "-o", "json"];
        self.remit(&[&args[..], more].concat())
    }

    /// A PolicySigner object around `release.pub`, with further lines of spec.
    fn signer_object(&self, tenants: &str, more: &str) -> &'static str {
        let key = self.read("release.pub").replace('\n', "\n    ");
        self.write(
            "signer.yaml",
            &format!(
                "apiVersion: remit.dev/v1alpha1\nkind: PolicySigner\nmetadata: {{name: alice}}\nspec:\n  tenants: {tenants}\n  \
                 publicKey: |\n    {key}\n{more}"
            ),
        );
        "signer.yaml"
    }
}

#[test]
fn from_init_to_a_verified_object() {
    let author = Author::new();
    let init = author.remit(&["init", "policy"]).passes();
    assert!(init.out.contains("remit test policy"), "{}", init.out);
    let test = author.remit(&["test", "policy"]).passes();
    assert!(test.out.contains("ok    nobody reads private keys"), "{}", test.out);
    assert!(test.out.contains("policy 0.1.0: passed: 7 of 7 tests passed"), "{}", test.out);
    author.remit(&["keygen", "--out", "release"]).passes();
    let args = [
        "package",
        "sign",
        "policy",
        "--key",
        "release.key",
        "--tenant",
        "acme",
        "--author",
        "Ann",
        "--signer",
        "alice",
    ];
    let signed = author.remit(&args).passes();
    author.write("signed.yaml", &signed.out);
    let verified = author.verify(&["--signer", "release.pub"]).passes().json();
    let verdict = &verified["packages"][0];
    assert_eq!(verdict["signer"], "release.pub");
    assert_eq!(verdict["author"], "Ann");
    assert_eq!((&verdict["policies"], &verdict["tests"]), (&7.into(), &7.into()));

    // The object is what `kubectl apply` takes, and its name tells what it is.
    let object = folder::packages_of("signed.yaml", &signed.out).unwrap().remove(0);
    let digest = digest(&object.spec);
    assert_eq!(object.spec.digest.as_deref(), Some(digest.as_str()));
    assert_eq!(object.metadata.name.as_deref(), Some(format!("policy-0.1.0-{}", &digest[7..15]).as_str()));
    assert_eq!(object.metadata.namespace.as_deref(), Some("acme"));
    assert_eq!(object.spec.signer.as_deref(), Some("alice"));
    assert_eq!(verdict["digest"], digest.as_str());

    let text =
        author.remit(&["package", "verify", "signed.yaml", "--tenant", "acme", "--signer", "release.pub"]).passes();
    assert!(text.out.starts_with("ok    policy 0.1.0 sha256:") && text.out.contains("author \"Ann\""), "{}", text.out);
}

#[test]
fn init_never_overwrites() {
    let author = Author::with_package();
    let again = author.remit(&["init", "policy"]);
    assert_eq!(again.code, 2);
    assert!(again.err.contains("policy: the folder is not empty"), "{}", again.err);
    author.remit(&["init", "My_Tools 2"]).passes();
    assert!(author.read("My_Tools 2/package.yaml").contains("package: my-tools-2\n"));
    author.remit(&["test", "My_Tools 2"]).passes();
}

#[test]
fn keygen_never_overwrites_and_keeps_the_key_to_its_owner() {
    let author = Author::new();
    let made = author.remit(&["keygen", "--out", "k", "-o", "json"]).passes().json();
    assert_eq!(fs::metadata(author.path("k.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let (key, public) = (author.read("k.key"), author.read("k.pub"));
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n") && public.starts_with("-----BEGIN PUBLIC KEY-----\n"));
    assert_eq!(made["publicKey"], public.as_str());
    assert!(!made.to_string().contains(key.lines().nth(1).unwrap()), "the private key is printed");

    let again = author.remit(&["keygen", "--out", "k"]);
    assert_eq!(again.code, 2);
    assert!(again.err.contains("k.pub"), "{}", again.err);
    fs::remove_file(author.path("k.pub")).unwrap();
    let again = author.remit(&["keygen", "--out", "k"]);
    assert_eq!((again.code, author.read("k.key")), (2, key), "{}", again.err);
    assert!(!author.path("k.pub").exists(), "a public key without its private one is left behind");

    let signer = author.remit(&["keygen", "--out", "s", "--signer", "alice", "--tenants", "acme,other"]).passes();
    author.write("signer.yaml", &signer.out);
    let read = folder::read_signers(&author.path("signer.yaml")).unwrap();
    assert_eq!(read[0].spec.tenants, ["acme", "other"]);
    assert_eq!(read[0].spec.public_key, author.read("s.pub"));
}

#[test]
fn a_key_that_others_may_read_is_warned_of_and_a_bad_one_not_shown() {
    let author = Author::with_signed();
    fs::set_permissions(author.path("release.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let args = ["package", "sign", "policy", "--key", "release.key", "--tenant", "acme"];
    let warned = author.remit(&args).passes();
    assert!(warned.err.contains("release.key: others may read"), "{}", warned.err);
    author.write("release.key", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n");
    let bad = author.remit(&args);
    assert_eq!(bad.code, 2);
    assert!(
        bad.err.contains("release.key: not an ed25519 private key") && !bad.err.contains("c2VjcmV0"),
        "{}",
        bad.err
    );
}

#[test]
fn the_digest_does_not_depend_on_how_clients_write_the_object() {
    let author = Author::with_signed();
    let yaml = author.read("signed.yaml");
    let object = folder::packages_of("signed.yaml", &yaml).unwrap().remove(0);
    // As the API server gives it back: JSON, keys sorted, a status, metadata of its own.
    let mut value = serde_json::to_value(&object).unwrap();
    value["status"] = serde_json::json!({"observedGeneration": 1});
    value["metadata"]["uid"] = "x".into();
    value["spec"]["tools"][0]["sensitivity"] = "normal".into();
    value["spec"]["tools"][0]["groups"] = serde_json::json!([]);
    author.write("signed.yaml", &value.to_string());
    author.verify(&["--signer", "release.pub"]).passes();
    // Built twice, from a checkout with other line ends: the same bytes.
    let built = author.remit(&["package", "build", "policy", "-n", "acme"]).passes().out;
    author.edit("policy/main.cedar", "\n", "\r\n");
    assert_eq!(author.remit(&["package", "build", "policy", "-n", "acme"]).passes().out, built);
}

#[test]
fn built_yaml_holds_what_yaml_would_bend() {
    let author = Author::with_package();
    let odd = "// \"quotes\" 'and' \\back\\slashes, tab\there, trailing  \n\n\n//: - {[ # é 𝄞 \u{7f}\n// on no 1e3\n";
    let before = author.read("policy/main.cedar");
    author.write("policy/main.cedar", &format!("{odd}{before}\n\n\n"));
    author.write("policy/z.cedar", "\n  // indented\n");
    let built = author.remit(&["package", "build", "policy"]).passes().out;
    let object = folder::packages_of("built", &built).unwrap().remove(0);
    assert_eq!(object.spec.policies[0].text, author.read("policy/main.cedar"));
    assert_eq!(object.spec.policies[1].text, author.read("policy/z.cedar"));
    let json = author.remit(&["package", "build", "policy", "-o", "json"]).passes();
    assert_eq!(json.json()["spec"]["digest"], object.spec.digest.unwrap().as_str());
}

/// Changes of the package's folder, the code that `remit test` answers, and words of its message.
type ContentCase = (RefusalCode, fn(&Author), &'static [&'static str]);
const CONTENT: &[ContentCase] = &[
    (RefusalCode::NotSemver, |a| a.edit("policy/package.yaml", "0.1.0", "1.2"), &["version", "\"1.2\""]),
    (RefusalCode::NotSemver, |a| a.edit("policy/package.yaml", "0.1.0", "1.2.3+b4"), &["version", "+b4"]),
    (
        RefusalCode::Malformed,
        |a| a.edit("policy/package.yaml", "read_file, tier: read", "read_file, teir: read"),
        &["package.yaml:8:", "teir"],
    ),
    (
        RefusalCode::Malformed,
        |a| a.edit("policy/package.yaml", "package: policy", "package: My_Policy"),
        &["My_Policy"],
    ),
    (RefusalCode::CedarSyntax, |a| a.edit("policy/main.cedar", "permit (", "pemit ("), &["main.cedar:3:1", "pemit"]),
    (
        RefusalCode::SchemaSyntax,
        |a| a.write("policy/schema.cedarschema", "entity X {\n  a: ;\n};"),
        &["schema.cedarschema:2:"],
    ),
    (
        RefusalCode::SchemaViolation,
        |a| a.edit("policy/main.cedar", "principal.trust >= 2", "principal.thrust >= 2"),
        &["main.cedar:7:", "writes", "thrust"],
    ),
    (
        RefusalCode::ReservedName,
        |a| a.write("policy/schema.cedarschema", "entity Agent;"),
        &["schema.cedarschema", "Agent"],
    ),
    (
        RefusalCode::UnknownAnnotation,
        |a| a.edit("policy/main.cedar", "@require_approval", "@require_aproval"),
        &["main.cedar:37:", "ask-admin", "require_aproval"],
    ),
    (
        RefusalCode::InvalidAnnotation,
        |a| a.edit("policy/main.cedar", "@id(\"reads\")", "@id(\"reads\") @require_approval(\"leads\")"),
        &["main.cedar:2:", "reads", "require_approval"],
    ),
    (RefusalCode::MissingId, |a| a.edit("policy/main.cedar", "@id(\"reads\")", ""), &["main.cedar:3:1", "@id"]),
    (
        RefusalCode::DuplicateId,
        |a| a.edit("policy/main.cedar", "\"writes\"", "\"reads\""),
        &["main.cedar:5:", "`reads`", "main.cedar:2:"],
    ),
    (
        RefusalCode::TestFailed,
        |a| a.edit("policy/tests/main.yaml", "decision: allow", "decision: deny"),
        &["tests/main.yaml:2:3", "\"everybody reads\"", "expected deny", "got allow", "tenant/policy/reads"],
    ),
    (
        RefusalCode::TestSyntax,
        |a| a.edit("policy/tests/main.yaml", "agent:", "agnet:"),
        &["tests/main.yaml:3:", "agnet"],
    ),
    (RefusalCode::TooLarge, |a| a.write("policy/z.cedar", &"// comment\n".repeat(100_000)), &["z.cedar", "bytes"]),
    (
        RefusalCode::TooDeep,
        |a| a.edit("policy/main.cedar", "principal.trust >= 2", &format!("{}true{}", "(".repeat(150), ")".repeat(150))),
        &["main.cedar:7:"],
    ),
    (
        RefusalCode::TooCostly,
        |a| a.edit("policy/main.cedar", "*.ssh/*", &"*a".repeat(2000)),
        &["main.cedar:21:", "pattern"],
    ),
];

#[test]
fn every_refusal_of_the_content_names_what_to_mend() {
    for (code, change, words) in CONTENT {
        let author = Author::with_package();
        author.test().passes();
        change(&author);
        author.test().refused(*code, words);
        // For people the same, on stderr or in the list of tests, and nothing is signed.
        let text = author.remit(&["test", "policy"]);
        assert_eq!(text.code, 1, "{code}");
        let all = format!("{}{}", text.out, text.err);
        let differs = ["FAIL  everybody reads  tests/main.yaml:2", "- decision: deny", "+ decision: allow"];
        let words = if *code == RefusalCode::TestFailed { &differs } else { *words };
        assert!(words.iter().all(|word| all.contains(word)), "{code}: {all}");
        author.remit(&["keygen", "--out", "release"]).passes();
        let signed = author.remit(&["package", "sign", "policy", "--key", "release.key", "--tenant", "acme"]);
        assert_eq!((signed.code, signed.out.as_str()), (1, ""), "{code}");
        assert!(signed.err.contains(code.as_str()), "{code}: {}", signed.err);
    }
}

/// Changes of a signed object, arguments of `remit package verify`, the code and words of its message.
type SignatureCase = (RefusalCode, fn(&Author), &'static [&'static str], &'static [&'static str]);
const SIGNATURE: &[SignatureCase] = &[
    (
        RefusalCode::Unsigned,
        |a| {
            a.remit(&["package", "build", "policy", "--out", "signed.yaml"]).passes();
        },
        PEM,
        &["acme", "spec.signature"],
    ),
    (
        RefusalCode::UnknownSigner,
        |a| {
            a.remit(&["keygen", "--out", "other"]).passes();
        },
        &["--signer", "other.pub"],
        &["PolicySigner", "sha256:"],
    ),
    (
        RefusalCode::ForeignSigner,
        |a| {
            a.signer_object("[other]", "");
        },
        OBJECT,
        &["alice", "acme"],
    ),
    (
        RefusalCode::RevokedSigner,
        |a| {
            a.signer_object("[acme]", "  revoked: {reason: Superseded}\n");
        },
        OBJECT,
        &["alice", "superseded"],
    ),
    (
        RefusalCode::RevokedSigner,
        |a| {
            a.signer_object("[acme]", "  revoked: {reason: Compromised}\n");
        },
        OBJECT,
        &["alice", "compromised"],
    ),
    (
        RefusalCode::SignerNotYetValid,
        |a| {
            a.signer_object("['*']", "  notBefore: 2999-01-01T00:00:00Z\n");
        },
        OBJECT,
        &["alice", "2999-01-01"],
    ),
    (
        RefusalCode::SignerExpired,
        |a| {
            a.signer_object("['*']", "  notAfter: 2001-01-01T00:00:00Z\n");
        },
        OBJECT,
        &["alice", "2001-01-01"],
    ),
    (RefusalCode::DigestMismatch, |a| a.edit("signed.yaml", "trust >= 2", "trust >= 1"), PEM, &["spec.digest"]),
    (RefusalCode::DigestMismatch, |a| a.edit("signed.yaml", "tier: admin", "tier: read"), PEM, &["spec.digest"]),
    (RefusalCode::SignatureMismatch, other_signature, PEM, &["signatures[0].sig"]),
    (
        RefusalCode::EnvelopeMalformed,
        |a| a.edit("signed.yaml", "vnd.remit.package.v1+json", "json"),
        PEM,
        &["payloadType"],
    ),
    (RefusalCode::TenantMismatch, |a| a.sign("other", "any", "signed.yaml"), PEM, &["\"other\"", "\"acme\""]),
    (
        RefusalCode::NameMismatch,
        |a| a.edit("signed.yaml", "package: policy", "package: police"),
        PEM,
        &["\"policy\"", "\"police\""],
    ),
    (
        RefusalCode::VersionMismatch,
        |a| a.edit("signed.yaml", "version: \"0.1.0\"", "version: \"9.1.0\""),
        PEM,
        &["0.1.0", "9.1.0"],
    ),
    (
        RefusalCode::InstallationMismatch,
        |a| a.sign("acme", "here", "signed.yaml"),
        &["--signer", "release.pub", "--installation", "there"],
        &["\"here\"", "\"there\""],
    ),
];
const PEM: &[&str] = &["--signer", "release.pub"];
const OBJECT: &[&str] = &["--signer", "signer.yaml"];

/// The good signature of another statement.
fn other_signature(author: &Author) {
    let sig = |text: &str| text.lines().find_map(|l| l.trim().strip_prefix("sig: ").map(str::to_owned)).unwrap();
    let mine = author.read("signed.yaml");
    author.sign("acme", "elsewhere", "other.yaml");
    let other = author.read("other.yaml");
    author.write("signed.yaml", &mine.replace(&sig(&mine), &sig(&other)));
}

#[test]
fn every_refusal_of_the_signature_names_what_to_mend() {
    for (code, change, args, words) in SIGNATURE {
        let author = Author::with_signed();
        author.verify(PEM).passes();
        change(&author);
        author.verify(args).refused(*code, words);
    }
}

#[test]
fn every_code_is_reached() {
    let here: BTreeSet<RefusalCode> = CONTENT.iter().map(|c| c.0).chain(SIGNATURE.iter().map(|c| c.0)).collect();
    // These need a tenant's history or a parser that has died; the tests of policy::verify and of the operator reach them.
    let elsewhere = [RefusalCode::Downgrade, RefusalCode::VersionReused, RefusalCode::Quarantined];
    for code in RefusalCode::ALL {
        assert_ne!(here.contains(code), elsewhere.contains(code), "{code}");
    }
}

#[test]
fn a_signature_that_nobody_can_check_is_not_unsigned() {
    let author = Author::with_signed();
    author.verify(&[]).refused(RefusalCode::UnknownSigner, &["sha256:"]);
    author.remit(&["package", "build", "policy", "--out", "signed.yaml"]).passes();
    author.verify(&[]).passes();
}

#[test]
fn signatures_hold_for_one_installation_or_any() {
    let author = Author::with_signed();
    author.verify(&["--signer", "release.pub", "--installation", "uid-1"]).passes();
    author.sign("acme", "uid-1", "signed.yaml");
    author.verify(&["--signer", "release.pub", "--installation", "uid-1"]).passes();
    author.verify(&["--signer", "release.pub"]).passes();
}

#[test]
fn several_documents_are_answered_one_by_one() {
    let author = Author::with_signed();
    let agent = "apiVersion: remit.dev/v1alpha1\nkind: Agent\nmetadata: {name: a}\nspec: {}\n";
    let good = author.read("signed.yaml");
    let bad = good.replacen("trust >= 2", "trust >= 1", 1);
    author.write("signed.yaml", &format!("{agent}---\n{good}---\n{bad}"));
    let verified = author.verify(PEM);
    verified.refused(RefusalCode::DigestMismatch, &["spec.digest"]);
    let passed: Vec<bool> =
        verified.json()["packages"].as_array().unwrap().iter().map(|p| p["passed"] == true).collect();
    assert_eq!(passed, [true, false]);
}

#[test]
fn usage_and_missing_files_end_with_2_and_name_them() {
    let author = Author::with_signed();
    author.write("empty.yaml", "kind: Agent\napiVersion: remit.dev/v1alpha1\n");
    for (args, word) in [
        (&["test", "nowhere"][..], "nowhere"),
        (&["test", "."][..], "no package.yaml"),
        (&["test", "empty.yaml"][..], "empty.yaml: holds no PolicyPackage"),
        (&["package", "verify", "signed.yaml", "--tenant", "acme", "--signer", "none.pub"][..], "none.pub"),
        (
            &["package", "verify", "signed.yaml", "--tenant", "acme", "--signer", "empty.yaml"][..],
            "empty.yaml: holds neither",
        ),
        (&["package", "verify", "signed.yaml"][..], "--tenant"),
        (
            &["package", "sign", "policy", "--key", "release.pub", "--tenant", "acme"][..],
            "release.pub: not an ed25519 private",
        ),
        (&["keygen", "--signer", "x"][..], "--tenants"),
        (&["frobnicate"][..], "frobnicate"),
    ] {
        let ran = author.remit(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.out.is_empty() && ran.err.contains(word), "{args:?}: {}", ran.err);
    }
}

/// What Remit brings itself passes its own tests, and has some.
#[test]
fn packages_of_this_repository_pass_their_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let author = Author::new();
    for package in ["policies/default", "examples/coordinator"] {
        let path = root.join(package);
        let ran = author.remit(&["test", path.to_str().unwrap(), "-o", "json"]).passes().json();
        assert!(ran["packages"][0]["tests"].as_array().unwrap().len() >= 5, "{package}: {ran}");
    }
}
