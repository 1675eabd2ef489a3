//! `remit check`: may this agent call this tool? Exit 0: allowed, 1: denied or in need of an approval, 2: no answer.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use serde_json::{Map, Value, json};

use super::output::{ERROR, FAIL, Format, PASS};
use super::pdp::{OpenError, PdpArgs};
use super::terminal::{self, json as print_json, printable};
use crate::enforce::authzen::Token;
use crate::enforce::{Pdp, PdpError, Question, Ruling, Verdict};
use crate::server::{Audience, parse_json};
use crate::source::kubernetes::{SourceError, call};

/// Seconds that a token lives that is made for one question: the least that the API server takes.
const TOKEN_LIFE: i64 = 600;

/// Asks whether an agent may call a tool. The question is recorded like any other.
///
/// Exit codes: 0 allowed, 1 denied or in need of an approval, 2 no answer.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pdp: PdpArgs,
    /// The tool, SERVER/NAME
    #[arg(long, value_name = "TOOL")]
    tool: String,
    /// An argument of the call: NAME=TEXT, or NAME:=JSON. May be repeated
    #[arg(long = "arg", value_name = "NAME=VALUE", value_parser = argument)]
    arguments: Vec<(String, Value)>,
    /// Ask with a short-lived token of this ServiceAccount, which the kubeconfig's user must be allowed to create
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_account, conflicts_with_all = ["policy", "token_file"])]
    as_serviceaccount: Option<(String, String)>,
    /// Lines for people, or JSON
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// `NAME=TEXT` or `NAME:=JSON`.
fn argument(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=TEXT or NAME:=JSON")?;
    let (name, value) = match name.strip_suffix(':') {
        Some(name) => (name, parse_json(value.as_bytes()).map_err(|e| format!("{name}: not JSON: {e}"))?),
        None => (name, Value::String(value.to_owned())),
    };
    match name {
        "" => Err("the name is missing: expected NAME=TEXT or NAME:=JSON".into()),
        name => Ok((name.to_owned(), value)),
    }
}

fn service_account(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("expected NAMESPACE/NAME".into()),
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Pdp(#[from] PdpError),
    #[error("--arg {0}: is given twice")]
    Twice(String),
    #[error("--as-serviceaccount: no Kubernetes: neither a ServiceAccount of a pod nor KUBECONFIG can be used: {0}")]
    Config(String),
    #[error("--as-serviceaccount {namespace}/{name}: no token: {source}")]
    Token { namespace: String, name: String, source: Box<SourceError> },
    #[error("--as-serviceaccount: the API server gave no token")]
    NoToken,
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command.
pub async fn run(args: Check) -> ExitCode {
    match check(args).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", printable(&error.to_string()));
            ExitCode::from(ERROR)
        }
    }
}

async fn check(args: Check) -> Result<u8, Error> {
    let mut arguments = Map::new();
    for (name, value) in args.arguments {
        if arguments.insert(name.clone(), value).is_some() {
            return Err(Error::Twice(name));
        }
    }
    let token = match &args.as_serviceaccount {
        Some((namespace, name)) => Some(mint(namespace, name).await?),
        None => None,
    };
    let (pdp, agent) = args.pdp.authzen(token).await?;
    let question = Question { tool: args.tool, arguments, ..args.pdp.question(&agent) };
    let answer = pdp.evaluate(&question).await;
    pdp.close().await;
    let (verdict, context) = answer?;
    let mut out = terminal::stdout();
    match args.output {
        Format::Json => print_json(&mut out, &document(&verdict, &context))?,
        Format::Text => print(&mut out, &question, &verdict, &context)?,
    }
    out.flush()?;
    Ok(if verdict.ruling == Ruling::Allow { PASS } else { FAIL })
}

/// A token of a ServiceAccount, for Remit only and for ten minutes.
async fn mint(namespace: &str, name: &str) -> Result<Token, Error> {
    // Another library may have set one before; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = kube::Config::infer().await.map_err(|e| Error::Config(e.to_string()))?;
    let client = kube::Client::try_from(config).map_err(|e| Error::Config(e.to_string()))?;
    let api: Api<ServiceAccount> = Api::namespaced(client, namespace);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![Audience::Checks.as_str().to_owned()]),
            expiration_seconds: Some(TOKEN_LIFE),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let made = call("TokenRequest", api.create_token_request(name, &PostParams::default(), &request)).await;
    let failed = |source| Error::Token { namespace: namespace.into(), name: name.into(), source: Box::new(source) };
    let token = made.map_err(failed)?.status.and_then(|s| s.token).ok_or(Error::NoToken)?;
    Token::held(&token).ok_or(Error::NoToken)
}

fn word(ruling: Ruling) -> &'static str {
    match ruling {
        Ruling::Allow => "allow",
        Ruling::Deny => "deny",
        Ruling::ApprovalRequired => "approval_required",
    }
}

fn document(verdict: &Verdict, context: &Map<String, Value>) -> Value {
    let mut out = json!({
        "decision": word(verdict.ruling), "code": verdict.code, "reason": verdict.reason, "id": verdict.decision_id,
    });
    for name in ["rule", "policies", "asks", "errors", "would_be"] {
        if let Some(value) = context.get(name) {
            out[name] = value.clone();
        }
    }
    out
}

fn print(out: &mut impl Write, q: &Question, v: &Verdict, context: &Map<String, Value>) -> io::Result<()> {
    writeln!(out, "{}: {} calls {}", word(v.ruling), printable(&q.agent), printable(&q.tool))?;
    let mut line = |name: &str, value: &str| match value {
        "" => Ok(()),
        value => writeln!(out, "  {:<12}{}", format!("{name}:"), printable(value)),
    };
    line("Reason", &v.reason)?;
    line("Code", &v.code)?;
    line("Rule", v.rule.as_deref().unwrap_or_default())?;
    for policy in context.get("policies").and_then(Value::as_array).into_iter().flatten() {
        line("Policy", policy.as_str().unwrap_or_default())?;
    }
    for ask in context.get("asks").and_then(Value::as_array).into_iter().flatten() {
        let group = ask.get("group").and_then(Value::as_str).unwrap_or_default();
        line("Asks", &format!("{} of {group}", ask.get("count").and_then(Value::as_u64).unwrap_or(1)))?;
    }
    if let Some(would) = context.get("would_be") {
        let text = |name: &str| would.get(name).and_then(Value::as_str).unwrap_or_default();
        line("Would be", &format!("not allowed, were it enforced ({}): {}", text("code"), text("reason")))?;
    }
    line("Decision", &v.decision_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_texts_or_json() {
        assert_eq!(argument("a=b=c"), Ok(("a".into(), json!("b=c"))));
        assert_eq!(argument("n:=[1,{\"x\":null}]"), Ok(("n".into(), json!([1, {"x": null}]))));
        assert_eq!(argument("empty="), Ok(("empty".into(), json!(""))));
        for wrong in ["a", "=b", ":=1", "a:={\"x\":1,\"x\":2}", "a:=", "a:=b"] {
            assert!(argument(wrong).is_err(), "{wrong}");
        }
        assert_eq!(service_account("acme/coder"), Ok(("acme".into(), "coder".into())));
        for wrong in ["coder", "/coder", "acme/", "a/b/c"] {
            assert!(service_account(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_policies_say_reaches_the_terminal_without_control_characters() {
        let verdict = Verdict {
            ruling: Ruling::Deny,
            code: "denied_by_policy".into(),
            rule: Some("no-force".into()),
            reason: "no\u{1b}[31m".into(),
            decision_id: "d".into(),
            asks: Vec::new(),
        };
        let context = json!({"policies": ["tenant/tools/no-force"], "would_be": {"code": "no_permit", "reason": "r"}});
        let mut out = Vec::new();
        let question = Question { agent: "coder".into(), tool: "git/push".into(), ..Question::default() };
        print(&mut out, &question, &verdict, context.as_object().unwrap()).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("deny: coder calls git/push\n") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("Policy:     tenant/tools/no-force") && text.contains("(no_permit): r"), "{text}");
        let document = document(&verdict, context.as_object().unwrap());
        assert_eq!((&document["decision"], &document["id"]), (&json!("deny"), &json!("d")));
    }
}
