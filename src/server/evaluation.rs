//! AuthZEN Authorization API 1.0: Access Evaluation and Access Evaluations.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::caller::{self, Call};
use super::check::{self, Pending};
use super::error::HttpError;
use super::request_id::RequestId;
use super::wire::{self, Answer, Questions, Semantic};
use super::{AppState, body};
use crate::gate::CheckRequest;

/// Items whose records are queued before the commits are waited for: a batch must not fill the tenant's share of the queue.
const COMMIT_EVERY: usize = 64;
/// Items after which other requests get their turn.
const YIELD_EVERY: usize = 16;

#[derive(Serialize)]
struct Answers {
    evaluations: Vec<Answer>,
}

/// `POST …/access/v1/evaluation`.
pub async fn one(
    State(state): State<AppState>,
    tenant: Option<Path<String>>,
    request: Request,
) -> Result<Json<Answer>, HttpError> {
    let (parts, sent) = request.into_parts();
    let call = caller::call(&state, &parts.headers, &parts.extensions, tenant.map(|Path(t)| t)).await?;
    let question = body::object(&parts.headers, sent, limit(&call)).await.and_then(wire::question);
    let id = parts.extensions.get::<RequestId>().map(RequestId::as_str);
    if let Some(refusal) = &call.refusal {
        return Err(match &question {
            Ok(question) => check::refuse(&state, &call, refusal, question, id),
            Err(_) => refusal.error(),
        });
    }
    single(&state, &Arc::new(call), question?, id).await.map(Json)
}

/// `POST …/access/v1/evaluations`.
pub async fn many(
    State(state): State<AppState>,
    tenant: Option<Path<String>>,
    request: Request,
) -> Result<Response, HttpError> {
    let (parts, sent) = request.into_parts();
    let call = caller::call(&state, &parts.headers, &parts.extensions, tenant.map(|Path(t)| t)).await?;
    let questions = body::object(&parts.headers, sent, limit(&call)).await.and_then(wire::questions);
    let id = parts.extensions.get::<RequestId>().map(RequestId::as_str);
    if let Some(refusal) = &call.refusal {
        // One refusal, one record, however many items.
        let first = match &questions {
            Ok(Questions::One(question)) => Some(question.as_ref()),
            Ok(Questions::Many(items, _)) => items.iter().find_map(|item| item.as_ref().ok()),
            Err(_) => None,
        };
        return Err(first.map_or_else(|| refusal.error(), |q| check::refuse(&state, &call, refusal, q, id)));
    }
    let call = Arc::new(call);
    match questions? {
        Questions::One(question) => Ok(Json(single(&state, &call, *question, id).await?).into_response()),
        Questions::Many(items, semantic) => {
            Ok(Json(Answers { evaluations: batch(&state, &call, items, semantic, id).await }).into_response())
        }
    }
}

/// Bytes of the body that are read for this caller.
fn limit(call: &Call) -> usize {
    if call.refusal.is_some() { body::MAX_REFUSED_BODY } else { body::MAX_BODY }
}

async fn single(
    state: &AppState,
    call: &Arc<Call>,
    question: CheckRequest,
    id: Option<&str>,
) -> Result<Answer, HttpError> {
    check::check(state, call, question, id).await?.answer(state).await
}

async fn batch(
    state: &AppState,
    call: &Arc<Call>,
    items: Vec<Result<CheckRequest, HttpError>>,
    semantic: Semantic,
    id: Option<&str>,
) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(items.len());
    let mut waiting: Vec<Result<Pending, HttpError>> = Vec::new();
    for (n, item) in items.into_iter().enumerate() {
        if n % YIELD_EVERY == YIELD_EVERY - 1 {
            tokio::task::yield_now().await;
        }
        let pending = match item {
            Ok(question) => check::check(state, call, question, id).await,
            Err(error) => {
                state.metrics.request_refused(error.code);
                Err(error)
            }
        };
        let allows = pending.as_ref().is_ok_and(Pending::allows);
        waiting.push(pending);
        let turning = match semantic {
            Semantic::ExecuteAll => false,
            Semantic::DenyOnFirstDeny => !allows,
            Semantic::PermitOnFirstPermit => allows,
        };
        if (turning || waiting.len() >= COMMIT_EVERY) && settle(state, &mut waiting, &mut answers, semantic).await {
            return answers;
        }
    }
    settle(state, &mut waiting, &mut answers, semantic).await;
    answers
}

/// Waits for the commits; true when the semantic ends the batch here. An allow that could not be kept counts as a deny.
async fn settle(
    state: &AppState,
    waiting: &mut Vec<Result<Pending, HttpError>>,
    answers: &mut Vec<Answer>,
    semantic: Semantic,
) -> bool {
    for pending in waiting.drain(..) {
        let answer = match pending {
            Ok(pending) => pending.answer(state).await,
            Err(error) => Err(error),
        };
        let answer = answer.unwrap_or_else(Answer::error);
        let decision = answer.decision;
        answers.push(answer);
        match semantic {
            Semantic::DenyOnFirstDeny if !decision => return true,
            Semantic::PermitOnFirstPermit if decision => return true,
            _ => {}
        }
    }
    false
}
