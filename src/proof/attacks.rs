//! Changes that look harmless to the solver.

use super::tests::*;
use crate::api::Tier;
use crate::lifecycle::evidence::ProofVerdict;
use crate::policy::portrait;

/// Cedar skips a policy that errs; Remit denies. To the solver a forbid that overflows for some calls, and matches no other, is nothing.
#[test]
fn proof_error_semantics() {
    let overflows = r#"@id("boom") forbid(principal, action == Action::"call_tool", resource)
        when { context.numbers.hasTag("n") && context.numbers.getTag("n") + 9223372036854775807 < -9223372036854775807
            && context.numbers.getTag("n") > 0 };"#;
    let with = format!("{READS}{overflows}");
    for (baseline, candidate) in [(READS, with.as_str()), (&with, READS)] {
        let proof = compared(package(baseline), package(candidate));
        assert_ne!(proof.alone, ProofVerdict::Equivalent, "{proof:?}");
        assert_ne!(proof.with_approval, ProofVerdict::Equivalent, "{proof:?}");
        assert_eq!(proof.alone, ProofVerdict::Unknown, "{proof:?}");
        assert!(proof.unknown_because[0].contains("tenant/test/boom can err in call_tool"), "{proof:?}");
    }
    // Remit's gates do tell the two apart.
    let call: super::Call = serde_json::from_value(serde_json::json!({
        "subjectType": "agent", "subject": "a", "action": "call_tool", "resourceType": "tool", "resource": "git/log",
        "agent": {"tenant": "acme", "name": "a", "uid": "1", "type": "", "teams": [], "trust": 2, "suspended": false, "attributes": {}},
        "arguments": {"n": 1}, "risk": 0, "granted": false, "hour": 12,
    }))
    .unwrap();
    let decide = |policies: &str| {
        let spec = package(policies);
        let compiled = crate::policy::CompiledPackage::compile(&spec, "sha256:0", crate::policy::Side::Tenant).unwrap();
        call.decide("acme", &[crate::policy::base_platform()], &compiled).0
    };
    assert_eq!((decide(READS), decide(&with)), (crate::gate::Outcome::Allow, crate::gate::Outcome::Deny));
    // A permit that errs, too: a deny for everybody.
    let permit = r#"@id("boom") permit(principal, action == Action::"call_tool", resource)
        when { context.numbers.hasTag("n") && context.numbers.getTag("n") + 9223372036854775807 < -9223372036854775807 };"#;
    let proof = compared(package(READS), package(&format!("{READS}{permit}")));
    assert_eq!(proof.alone, ProofVerdict::Unknown, "{proof:?}");
}

/// The solver does not see entities: moving a tool leaves the policies "equivalent".
#[test]
fn retiered_tool_is_an_expansion() {
    let baseline = package(FIRST);
    let mut candidate = baseline.clone();
    candidate.tools[2].tier = Tier::Read;
    let proof = compared(baseline.clone(), candidate.clone());
    assert_eq!(verdicts(&proof), (ProofVerdict::Expands, ProofVerdict::Expands), "{proof:?}");
    assert!(proof.counter_examples[0].sentence.contains("git/delete was admin and is read"), "{proof:?}");
    let back = compared(candidate, baseline.clone());
    assert_eq!(verdicts(&back), (ProofVerdict::Restricts, ProofVerdict::Restricts), "{back:?}");

    // Other groups, another sensitivity, and a tool that is new or gone.
    let grouped = format!(
        "{READS}{}{}",
        r#"@id("g") permit(principal, action == Action::"call_tool", resource in ToolGroup::"special");"#,
        r#"@id("s") forbid(principal, action == Action::"call_tool", resource) when { resource.sensitive };"#,
    );
    let base = package(&grouped);
    let mut special = base.clone();
    special.tools[1].groups = vec!["special".into()];
    let proof = compared(base.clone(), special);
    assert_eq!(proof.alone, ProofVerdict::Expands, "{proof:?}");
    assert!(proof.counter_examples[0].sentence.contains("git/push"));
    let mut sensitive = base.clone();
    sensitive.tools[0].sensitivity = crate::api::Sensitivity::Sensitive;
    let proof = compared(base.clone(), sensitive);
    assert_eq!(proof.alone, ProofVerdict::Restricts, "{proof:?}");
    let mut new = base.clone();
    new.tools.push(tool("git/show", Tier::Read));
    let proof = compared(base.clone(), new.clone());
    assert_eq!(proof.alone, ProofVerdict::Expands, "{proof:?}");
    assert!(proof.counter_examples[0].sentence.contains("git/show is new, read"), "{proof:?}");
    let proof = compared(new, base);
    assert_eq!(proof.alone, ProofVerdict::Restricts, "{proof:?}");
}

/// The platform learns a tool's tier from the tenant's package: moving it moves what the platform forbids.
#[test]
fn a_retiered_tool_is_seen_through_the_platforms_half_too() {
    let any = r#"@id("any") permit(principal, action == Action::"call_tool", resource);"#;
    let mut candidate = package(any);
    candidate.tools[2].tier = Tier::Read;
    let platform = crate::api::PolicyPackageSpec {
        tools: vec![],
        package: "further".into(),
        ..package(
            r#"@id("no-admin") forbid(principal, action == Action::"call_tool", resource in ToolGroup::"admin");"#,
        )
    };
    let input = super::Input {
        tenant: "acme".into(),
        baseline: package(any),
        candidate,
        platform: vec![platform],
        ..Default::default()
    };
    let proof = proved(&input);
    assert_eq!(verdicts(&proof), (ProofVerdict::Expands, ProofVerdict::Expands), "{proof:?}");
    assert!(proof.counter_examples[0].sentence.contains("git/delete"), "{proof:?}");
}

/// A context's further truth values are Remit's: no package can name them.
#[test]
fn what_is_left_open_can_not_be_named_by_a_package() {
    let named = READS.replace(';', " when { context.remit_m0 };");
    let error = super::prove(
        &super::Input { baseline: package(READS), candidate: package(&named), ..Default::default() },
        solver(),
        super::Limits::default(),
    )
    .unwrap_err();
    assert!(error.contains("remit_m0"), "{error}");
    assert!(portrait::joint_schema([None, None], &["remit_m0".into()]).is_ok());
}
