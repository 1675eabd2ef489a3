//! Attacks that were tried and worked elsewhere, kept as tests under the names of the issue.

use serde_json::json;

use super::support::{Ask, agent, compile, docs, first, ids, refused, spec};
use super::{CallerKind, CompiledPackage, RefusalCode, Side, base_platform};
use crate::api::{AttributeSource, MappedAttribute, MappedType, Mapping, SourceFile};

const PERMIT: &str = "@id(\"all\") permit(principal, action, resource);";

fn mapping(attributes: &[(&str, AttributeSource)]) -> Mapping {
    let attributes =
        attributes.iter().map(|(name, from)| MappedAttribute { name: (*name).into(), from: *from }).collect();
    Mapping {
        resources: vec![MappedType { type_: "doc".into(), entity: "Doc".into(), attributes }],
        ..Mapping::default()
    }
}

#[test]
fn tenant_entity_joins_platform_group() {
    // By listing the agent, its team or its tool as an entity: refused by name.
    for (ty, parent) in
        [("Agent", "Team"), ("Tool", "ToolGroup"), ("Team", "Team"), ("Action", "Action"), ("Domain", "Domain")]
    {
        let mut spec = spec(PERMIT);
        spec.entities = Some(format!(
            "[{{\"uid\": {{\"type\": \"{ty}\", \"id\": \"acme/coder\"}}, \"attrs\": {{}}, \
             \"parents\": [{{\"type\": \"{parent}\", \"id\": \"admins\"}}]}}]"
        ));
        let (code, message) = first(&spec);
        assert_eq!(code, RefusalCode::ReservedName, "{message}");
        assert!(message.starts_with("entities.json:1:19: ") && message.contains("acme/coder"), "{message}");
    }
    // By the escaped form of a uid, too.
    let mut escaped = spec(PERMIT);
    escaped.entities =
        Some(r#"[{"uid": {"__entity": {"type": "Agent", "id": "x"}}, "attrs": {}, "parents": []}]"#.into());
    assert_eq!(first(&escaped).0, RefusalCode::ReservedName);
    // By a tool group of the package: the platform sees the tier and no more.
    let platform = compile(
        &spec(
            "@id(\"exempt\") permit(principal, action, resource in ToolGroup::\"exempt\");
             @id(\"reads\") permit(principal, action, resource in ToolGroup::\"read\");",
        ),
        Side::Platform,
    );
    let mut ask = Ask::tool("files/read");
    ask.tool = Some(super::support::tool("files/read", crate::api::Tier::Read));
    ask.tool.as_mut().unwrap().groups = vec!["exempt".into()];
    assert_eq!(ids(&ask.of(&platform).unwrap().permits), ["reads"]);
    // By a team that is named like the platform's: `team` of acme is `acme/team` there.
    let platform =
        compile(&spec("@id(\"sre\") permit(principal in Team::\"platform/sre\", action, resource);"), Side::Platform);
    let mut ask = Ask::tool("git/log");
    ask.agent.teams = vec!["platform/sre".into(), "sre".into()];
    assert!(ask.of(&platform).unwrap().permits.is_empty());
    ask.agent.tenant = "platform".into();
    assert_eq!(ids(&ask.of(&platform).unwrap().permits), ["sre"]);
}

#[test]
fn tenant_fragment_redefines_core_type() {
    for (schema, place) in [
        ("entity Agent { trust: Long };", "schema.cedarschema:1:8"),
        ("entity Doc;\nentity Tool in [Doc];", "schema.cedarschema:2:8"),
        ("namespace Docs { entity Agent; }", "schema.cedarschema:1:25"),
        ("type CallContext = { risk: Long };", "schema.cedarschema:1:6"),
        ("@doc(\"entity\") entity Group;", "schema.cedarschema:1:23"),
        (
            "entity Doc;\naction call_tool appliesTo { principal: [Agent], resource: [Doc], context: {} };",
            "schema.cedarschema:2:8",
        ),
        ("action \"call_tool\";", "schema.cedarschema:1:8"),
        ("action tenant_action;", "schema.cedarschema:1:8"),
        (
            "entity Doc;\naction read in [call_tool] appliesTo { principal: [Agent], resource: [Doc], context: {} };",
            "schema.cedarschema:2:",
        ),
        (
            "entity Doc;\naction read in [Action::\"network_access\"] appliesTo { principal: [Agent], resource: [Doc] };",
            "schema.cedarschema:2:",
        ),
    ] {
        let mut spec = spec(PERMIT);
        spec.schema = Some(schema.into());
        let (code, message) = first(&spec);
        assert_eq!(code, RefusalCode::ReservedName, "{schema}: {message}");
        assert!(message.starts_with(place), "{schema}: {message}");
    }
    // An action's context is what Remit gives, under its type, or nothing.
    for context in
        ["{ risk: String }", "{ granted: Long }", "{ session: String }", "{ approved: Bool }", "{ arguments: Numbers }"]
    {
        let mut spec = spec(PERMIT);
        spec.schema = Some(format!(
            "entity Doc; action read appliesTo {{ principal: [Agent], resource: [Doc], context: {context} }};"
        ));
        assert_eq!(first(&spec).0, RefusalCode::SchemaViolation, "{context}");
    }
    // Core types can't be mapped, so that no call makes an agent or a tool.
    for entity in ["Agent", "Tool", "User", "Action", "Arguments"] {
        let mut spec = spec(PERMIT);
        spec.mapping = Some(Mapping {
            resources: vec![MappedType { type_: "thing".into(), entity: entity.into(), attributes: vec![] }],
            ..Mapping::default()
        });
        assert_eq!(first(&spec).0, RefusalCode::ReservedName, "{entity}");
    }
}

#[test]
fn same_policy_id_in_platform_and_tenant() {
    let platform = compile(
        &spec("@id(\"x\") forbid(principal, action, resource) when { context.tenant == \"acme\" };"),
        Side::Platform,
    );
    let tenant = compile(&spec("@id(\"x\") permit(principal, action, resource);"), Side::Tenant);
    let mut ask = Ask::tool("git/log");
    let permits = ask.of(&tenant).unwrap().permits;
    ask.tool = tenant.tool("git/log").cloned();
    let forbids = ask.of(&platform).unwrap().forbids;
    assert_eq!(permits[0].id, "tenant/test/x");
    assert_eq!(forbids[0].id, "platform/test/x");
    // Within one package an id is there once, whatever the file.
    let mut twice = spec("@id(\"x\") permit(principal, action, resource);");
    twice.policies.push(SourceFile {
        name: "b.cedar".into(),
        text: "\n  @id(\"x\") forbid(principal, action, resource);".into(),
    });
    let (code, message) = first(&twice);
    assert_eq!(code, RefusalCode::DuplicateId);
    assert!(message.starts_with("b.cedar:2:3: ") && message.ends_with("test.cedar:1:1"), "{message}");
}

#[test]
fn paren_bomb_unsigned() {
    for depth in [33, 150, 100_000] {
        let bomb = format!(
            "@id(\"a\") permit(principal, action, resource) when {{ {}true{} }};",
            "(".repeat(depth),
            ")".repeat(depth)
        );
        let (code, message) = first(&spec(&bomb));
        assert_eq!(code, RefusalCode::TooDeep);
        assert!(message.starts_with("test.cedar:1:"), "{message}");
    }
    // Unclosed, and in a place that no policy has.
    for text in ["(".repeat(5000), format!("@id({}", "[".repeat(5000)), "{".repeat(150)] {
        assert_eq!(first(&spec(&text)).0, RefusalCode::TooDeep);
    }
    // What the scan lets through compiles, is evaluated and dropped on this thread's small stack.
    let depth = 31;
    let deep = format!(
        "@id(\"a\") permit(principal, action, resource) when {{ {}true{} }};",
        "(".repeat(depth),
        ")".repeat(depth)
    );
    assert_eq!(Ask::tool("git/log").of(&compile(&spec(&deep), Side::Tenant)).unwrap().permits.len(), 1);
}

#[test]
fn deep_schema() {
    for (open, close) in [("Set<", ">"), ("{ a: ", "}")] {
        let mut bomb = spec(PERMIT);
        bomb.schema = Some(format!("entity Doc {{ a: {}Long{} }};", open.repeat(3000), close.repeat(3000)));
        assert_eq!(first(&bomb).0, RefusalCode::TooDeep);
    }
    // Wide where it looks flat: each type doubles the one before.
    let mut wide = spec(PERMIT);
    let mut text = String::from("type T0 = Long;");
    for n in 1..25 {
        text.push_str(&format!("type T{n} = {{ a: T{p}, b: T{p} }};", p = n - 1));
    }
    wide.schema = Some(text + "entity Doc { a: T24 };");
    assert_eq!(first(&wide).0, RefusalCode::TooDeep);
    // A type that is just small enough, named again and again.
    let list = |n: usize, ty: &str| (0..n).map(|i| format!("a{i}: {ty}")).collect::<Vec<_>>().join(", ");
    let (one, two) = (list(80, "Long"), list(30, "One"));
    wide.schema =
        Some(format!("type One = {{ {one} }}; type Two = {{ {two} }}; entity Doc {{ {} }};", list(4000, "Two")));
    assert_eq!(first(&wide).0, RefusalCode::TooCostly);
    // And in the entities' JSON.
    let mut deep = spec(PERMIT);
    deep.entities = Some("[".repeat(10_000));
    assert_eq!(first(&deep).0, RefusalCode::TooDeep);
    // A chain of groups makes ancestors in the square of its length.
    let mut chain = spec(PERMIT);
    let one = |n: usize| {
        format!(
            "{{\"uid\":{{\"type\":\"Group\",\"id\":\"{n}\"}},\"attrs\":{{}},\"parents\":[{{\"type\":\"Group\",\"id\":\"{}\"}}]}}",
            n + 1
        )
    };
    let plain = (0..5000).map(one).collect::<Vec<_>>().join(",");
    // Nor does another spelling of the same parents hide it.
    for (from, to) in [
        ("", ""),
        ("[{\"type\":\"Group\",", "[{\"x\":0,\"type\":\"Group\","),
        ("[{\"type\":\"Group\",", "[{\"__entity\":0,\"type\":\"Group\","),
    ] {
        chain.entities = Some(format!("[{}]", if from.is_empty() { plain.clone() } else { plain.replace(from, to) }));
        assert_eq!(first(&chain).0, RefusalCode::TooCostly, "{to}");
    }
}

#[test]
fn operator_chain_bomb() {
    let policy = |condition: String| format!("@id(\"a\") permit(principal, action, resource) when {{ {condition} }};");
    for condition in [
        format!("true{}", " && true".repeat(20_000)),
        format!("context{} == 1", ".risk".repeat(2000)),
        format!("{}true{}", "if true then ".repeat(500), " else true".repeat(500)),
        format!("1{} > 0", " + 1".repeat(2000)),
        format!("{}true", "!".repeat(2000)),
        format!("true{}", " || true".repeat(129)),
    ] {
        let (code, message) = first(&spec(&policy(condition)));
        assert!(matches!(code, RefusalCode::TooDeep | RefusalCode::TooLarge), "{message}");
    }
    // The longest chain that is let through is evaluated and dropped on a worker's stack of 8 MiB, in a debug build, too.
    for condition in [format!("true{}", " && true".repeat(127)), format!("1{} > 0", " + 1".repeat(126))] {
        let package = compile(&spec(&policy(condition)), Side::Tenant);
        let thread = std::thread::Builder::new().stack_size(8 * 1024 * 1024).spawn(move || {
            let found = Ask::tool("git/log").of(&package).unwrap();
            drop(package);
            found
        });
        let found = thread.unwrap().join().unwrap();
        assert_eq!((found.permits.len(), found.errors.len()), (1, 0), "{:?}", found.errors);
    }
}

#[test]
fn omitted_sensitivity() {
    let policies = "@id(\"all\") permit(principal, action, resource);
        @id(\"no-secrets\") forbid(principal, action, resource is Doc) when { resource has secret && resource.secret };";
    let package = compile(&docs(policies, mapping(&[("secret", AttributeSource::Caller)])), Side::Tenant);
    let ask = || Ask::on("read_doc", "doc", "plan");
    // Leaving the attribute out does not get around a forbid that asks for it by `has`.
    assert_eq!(ask().of(&package).unwrap().attributes_missing, ["resource.properties.secret"]);
    let open = ask().properties(json!({"secret": false})).of(&package).unwrap();
    assert!(open.attributes_missing.is_empty() && open.forbids.is_empty());
    let closed = ask().properties(json!({"secret": true})).of(&package).unwrap();
    assert_eq!(ids(&closed.forbids), ["no-secrets"]);
    // Nor does the agent saying it itself, where only a gateway is believed.
    let mut own = ask().properties(json!({"secret": false}));
    own.caller = CallerKind::Agent;
    assert_eq!(own.of(&package).unwrap_err().field, "resource.properties.secret");
    own.properties.clear();
    assert_eq!(own.of(&package).unwrap().attributes_missing, ["resource.properties.secret"]);
    // An attribute that no candidate forbid mentions may be left out; one that only permits mention, too.
    let package = compile(
        &docs(
            "@id(\"mine\") permit(principal, action, resource) when { resource has title };",
            mapping(&[("title", AttributeSource::Agent)]),
        ),
        Side::Tenant,
    );
    assert!(ask().of(&package).unwrap().attributes_missing.is_empty());
}

#[test]
fn typo_property() {
    let package = compile(&docs(PERMIT, mapping(&[("secret", AttributeSource::Caller)])), Side::Tenant);
    for (properties, field) in [
        (json!({"secrte": true}), "resource.properties.secrte"),
        (json!({"Secret": true}), "resource.properties.Secret"),
        // In the schema, but not for callers to say.
        (json!({"owner": {"type": "User", "id": "eve"}}), "resource.properties.owner"),
        // Of another type.
        (json!({"secret": "false"}), "resource.properties.secret"),
        (json!({"secret": null}), "resource.properties.secret"),
        (json!({"secret": {"__extn": {"fn": "unknown", "arg": "x"}}}), "resource.properties.secret"),
    ] {
        let error = Ask::on("read_doc", "doc", "plan").properties(properties).of(&package).unwrap_err();
        assert_eq!(error.field, field);
    }
    assert_eq!(Ask::on("raed_doc", "doc", "plan").of(&package).unwrap_err().field, "action.name");
    assert_eq!(Ask::on("read_doc", "dok", "plan").of(&package).unwrap_err().field, "resource.type");
    assert_eq!(Ask::on("call_tool", "doc", "plan").of(&package).unwrap_err().field, "resource.type");
}

#[test]
fn agent_supplies_own_attributes() {
    let trusted = "@id(\"t\") permit(principal, action == Action::\"call_tool\", resource) when { principal.trust >= 3 && !resource.sensitive };";
    let package = compile(&spec(trusted), Side::Tenant);
    // What a package says of a tool is what counts: another value is refused, the same one is nothing new.
    for (properties, wrong) in [
        (json!({"tier": "read"}), "resource.properties.tier"),
        (json!({"sensitive": true}), "resource.properties.sensitive"),
        (json!({"trust": 4}), "resource.properties.trust"),
    ] {
        assert_eq!(Ask::tool("git/push").properties(properties).of(&package).unwrap_err().field, wrong);
    }
    assert!(Ask::tool("git/push").properties(json!({"tier": "write", "server": "git"})).of(&package).is_ok());
    // Nothing among the arguments becomes an attribute of the agent or of the context.
    let claims = json!({"trust": 4, "principal.trust": 4, "context": {"granted": true}, "granted": true, "risk": 0});
    assert!(Ask::tool("git/log").arguments(claims).of(&package).unwrap().permits.is_empty());
    // An entity that the package lists is as the package says, attributes left out included.
    let mut listed = docs(
        "@id(\"open\") permit(principal, action, resource) unless { resource has secret && resource.secret };",
        mapping(&[("secret", AttributeSource::Agent), ("title", AttributeSource::Agent)]),
    );
    listed.entities = Some(
        r#"[{"uid": {"type": "Doc", "id": "plan"}, "attrs": {"secret": true}, "parents": []},
            {"uid": {"type": "Doc", "id": "empty"}, "attrs": {}, "parents": []}]"#
            .into(),
    );
    let package = compile(&listed, Side::Tenant);
    let ask = |id: &str| Ask::on("read_doc", "doc", id);
    assert_eq!(
        ask("plan").properties(json!({"secret": false})).of(&package).unwrap_err().field,
        "resource.properties.secret"
    );
    assert_eq!(
        ask("empty").properties(json!({"title": "x"})).of(&package).unwrap_err().field,
        "resource.properties.title"
    );
    assert!(ask("plan").properties(json!({"secret": true})).of(&package).unwrap().permits.is_empty());
    assert!(ask("plan").of(&package).unwrap().permits.is_empty());
    assert_eq!(ask("other").properties(json!({"secret": false})).of(&package).unwrap().permits.len(), 1);
}

#[test]
fn oversized_argument_under_a_forbid() {
    let policies = "@id(\"all\") permit(principal, action, resource);
        @id(\"no-rm\") forbid(principal, action, resource == Tool::\"git/push\")
          when { context.arguments.hasTag(\"command\") && context.arguments.getTag(\"command\") like \"*rm -rf*\" };";
    let package = compile(&spec(policies), Side::Tenant);
    let long = format!("{} rm -rf /", "x".repeat(70_000));
    let found = Ask::tool("git/push").arguments(json!({"command": long, "note": long})).of(&package).unwrap();
    assert_eq!(found.arguments_too_large, ["command"]);
    // A tool whose policies don't read it takes it.
    assert!(
        Ask::tool("git/log").arguments(json!({"command": long})).of(&package).unwrap().arguments_too_large.is_empty()
    );
    // A key that is computed may be any.
    let computed = "@id(\"c\") forbid(principal, action, resource)
        when { principal.hasTag(\"key\") && context.arguments.hasTag(principal.getTag(\"key\")) };";
    let found =
        Ask::tool("git/log").arguments(json!({"note": long})).of(&compile(&spec(computed), Side::Tenant)).unwrap();
    assert_eq!(found.arguments_too_large, ["note"]);
}

#[test]
fn like_bomb_argument() {
    let pattern = format!("*{}", "a*".repeat(500));
    let policy = |p: &str| {
        format!(
            "@id(\"a\") forbid(principal, action, resource) when {{ context.arguments.hasTag(\"x\") && context.arguments.getTag(\"x\") like \"{p}\" }};"
        )
    };
    let package = compile(&spec(&policy(&pattern)), Side::Tenant);
    let cost =
        |text: usize| package.pattern_cost(&Ask::tool("git/log").arguments(json!({"x": "a".repeat(text)})).query());
    assert!(cost(60_000) >= 60_000 * 1001, "{}", cost(60_000));
    assert!(cost(60_000) > 10 * cost(100));
    // Many patterns make a short argument costly.
    let mut many = policy(&pattern);
    for n in 0..200 {
        many.push_str(&policy(&pattern).replace("@id(\"a\")", &format!("@id(\"a{n}\")")));
    }
    let many = compile(&spec(&many), Side::Tenant);
    let short = Ask::tool("git/log").arguments(json!({"x": "a".repeat(2000)}));
    assert!(many.pattern_cost(&short.query()) >= 201 * 1001 * 2000);
    // A session's name is a text, too.
    let mut session = Ask::tool("git/log");
    session.session = Some("a".repeat(60_000));
    assert!(package.pattern_cost(&session.query()) >= 60_000 * 1001);
    // No pattern, no cost.
    let plain = compile(&spec(PERMIT), Side::Tenant);
    assert_eq!(plain.pattern_cost(&Ask::tool("git/log").arguments(json!({"x": "a".repeat(60_000)})).query()), 0);
    // A pattern over the limit does not come in.
    assert_eq!(first(&spec(&policy(&"a*".repeat(600)))).0, RefusalCode::TooCostly);
}

#[test]
fn the_base_package_denies_trust_zero_everything() {
    let base = base_platform();
    for (action, type_, id) in
        [("call_tool", "tool", "a/b"), ("network_access", "domain", "example.org"), ("read_doc", "doc", "plan")]
    {
        let mut ask = Ask::on(action, type_, id);
        ask.tool = Some(super::support::tool("a/b", crate::api::Tier::Read));
        for (trust, forbids) in [(0, 1), (1, 0)] {
            ask.agent = agent(trust);
            let found = ask.of(&base).unwrap();
            assert_eq!((found.forbids.len(), found.errors.len()), (forbids, 0), "{action} at {trust}");
        }
    }
    assert!(base.evaluate(&Ask::on("read_doc", "doc", "plan").query()).unwrap().permits.is_empty());
}

#[test]
fn every_refusal_names_its_place() {
    let two = "@id(\"a\") permit(principal, action, resource) when { principal.thrust > 1 };\n@id(\"b\") permit(principal, action == Action::\"cal_tool\", resource);";
    let refusals = refused(&spec(two), Side::Tenant);
    assert_eq!(refusals.len(), 2, "{refusals:?}");
    assert!(refusals.iter().all(|r| r.code == RefusalCode::SchemaViolation));
    assert!(refusals[0].message.starts_with("test.cedar:1:53: policy `a`: "), "{}", refusals[0].message);
    assert!(refusals[1].message.starts_with("test.cedar:2:"), "{}", refusals[1].message);
    assert!(refusals[1].message.contains("policy `b`"), "{}", refusals[1].message);
    let (code, message) = first(&spec("@id(\"a\") permit(principal, action, resource) when { true &&& false };"));
    assert_eq!(code, RefusalCode::CedarSyntax);
    assert!(message.starts_with("test.cedar:1:"), "{message}");
    assert_eq!(first(&spec("@id(\"a\") permit(principal == ?principal, action, resource);")).0, RefusalCode::Malformed);
    let (code, message) = first(&spec("permit(principal, action, resource);"));
    assert_eq!((code, message.starts_with("test.cedar:1:1: ")), (RefusalCode::MissingId, true), "{message}");
    let mut tools = spec(PERMIT);
    tools.tools[1].groups = vec!["admin".into()];
    tools.tools[2].name = "nameless".into();
    let found: Vec<_> = refused(&tools, Side::Tenant).into_iter().map(|r| r.code).collect();
    assert_eq!(found, [RefusalCode::ReservedName, RefusalCode::Malformed]);
    let bad = "@id(\"d\") forbid(principal, action, resource in Domain::\"Example.org\");";
    assert_eq!(first(&spec(bad)).0, RefusalCode::Malformed);
    for version in ["1", "1.0.0+build", "v1.0.0"] {
        let mut spec = spec(PERMIT);
        spec.version = version.into();
        assert!(CompiledPackage::compile(&spec, "", Side::Tenant).is_err_and(|r| r[0].code == RefusalCode::NotSemver));
    }
}
