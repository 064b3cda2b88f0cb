//! What people ask with a browser: the table of targets, the page of a profile, and the profile that it draws.

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::task::spawn_blocking;

use super::{
    Context,
    api::{PROFILE_TYPE, QueryParameters, Refusal, complete, find},
    flamegraph::flamegraph_json,
    pages::{self, ProfilePage, TargetRow},
    selector::Selector,
};
use crate::{profile::decode, targets::Labels, time::rfc3339};

/// `/`: the table of targets.
pub async fn index(State(context): State<Context>) -> Response {
    let rows: Vec<TargetRow> = context
        .shared
        .profiles
        .all()
        .into_iter()
        .map(|profile| TargetRow {
            profile_type: PROFILE_TYPE.into(),
            labels: pairs(&profile.labels),
            last_profile: Some(rfc3339(profile.ended_nanos)),
            error: profile.problem.as_deref().map(str::to_owned),
            samples: profile.samples,
            complete: complete(&profile),
            query: profile.labels.to_string(),
        })
        .collect();
    let state = context.shared.state();
    let mut notices = state.remarks();
    if !state.is_connected() {
        notices.insert(0, "No collector is connected: nothing is sampled now.".into());
    }
    drop(state);
    let notice = (!notices.is_empty()).then(|| notices.join("; "));
    let store = context.delivery.as_ref().map(|delivery| delivery.sentence());
    let sentences = [("store", store), ("names", context.shared.discovery.sentence())];
    let sentences: Vec<_> = sentences.iter().filter_map(|(id, text)| Some((*id, text.as_deref()?))).collect();
    pages::response(pages::index_page(&rows, notice.as_deref(), &sentences))
}

/// `/query?debug=1`: the page of the targets that match.
pub fn profile(context: &Context, query: &str) -> Response {
    let selector = match Selector::parse(query) {
        Ok(selector) => selector,
        Err(error) => {
            let page = pages::message_page("This selector cannot be read", &error.to_string());
            return (StatusCode::BAD_REQUEST, pages::response(page)).into_response();
        }
    };
    let all = context.shared.profiles.all();
    let targets: Vec<_> = all
        .iter()
        .filter(|profile| selector.matches(&profile.labels))
        .map(|profile| pairs(&profile.labels))
        .collect();
    let page = ProfilePage { query, profile_type: PROFILE_TYPE, targets: &targets, window: context.window };
    pages::response(pages::profile_page(&page))
}

/// `/api/flamegraph`: the profile as the page draws it.
pub async fn flamegraph(
    State(context): State<Context>,
    parameters: Result<Query<QueryParameters>, QueryRejection>,
) -> Result<Response, Refusal> {
    let pprof = find(&context, parameters).await?;
    let json = spawn_blocking(move || decode(&pprof).map(|profile| flamegraph_json(&profile))).await;
    match json {
        Ok(Ok(json)) => Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response()),
        Ok(Err(error)) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(_) => Err(Refusal(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the profile could not be drawn: a fault of Bulkhead's".into(),
        )),
    }
}

fn pairs(labels: &Labels) -> Vec<(String, String)> {
    labels.0.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}
