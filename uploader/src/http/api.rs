//! What scripts ask: `/query`, `/api/targets`, `/healthz`, `/readyz`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

use super::{Context, browse, selector::Selector};
use crate::{
    profile::{Finished, MergeError, decode, merge, to_gzip},
    time::rfc3339,
};

/// How much longer than a window a query waits: names have to be found.
const GRACE: Duration = Duration::from_secs(4);
/// What every profile is of.
pub const PROFILE_TYPE: &str = "cpu";

/// Parameters of `/query`.
#[derive(Debug, Deserialize)]
pub struct QueryParameters {
    /// The selector.
    query: Option<String>,
    /// `last` for the last finished window; else the next one is waited for.
    window: Option<String>,
    /// `1` for the page instead of the pprof.
    debug: Option<String>,
}

/// Why there is no profile.
#[derive(Debug)]
pub struct Refusal(pub StatusCode, pub String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

/// `/query`: the gzipped pprof of the targets that match; with `debug=1` the page of it.
pub async fn query(
    State(context): State<Context>,
    parameters: Result<Query<QueryParameters>, QueryRejection>,
) -> Result<Response, Refusal> {
    if let Ok(Query(QueryParameters { query: Some(query), debug: Some(debug), .. })) = &parameters
        && debug == "1"
    {
        return Ok(browse::profile(&context, query));
    }
    let pprof = find(&context, parameters).await?;
    let headers = [
        (header::CONTENT_TYPE, "application/vnd.google.protobuf+gzip"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"profile.pb.gz\""),
    ];
    Ok((headers, pprof).into_response())
}

/// The gzipped pprof that a query asks for.
pub async fn find(
    context: &Context,
    parameters: Result<Query<QueryParameters>, QueryRejection>,
) -> Result<Vec<u8>, Refusal> {
    let bad = |message: String| Refusal(StatusCode::BAD_REQUEST, message);
    let Query(parameters) = parameters.map_err(|error| bad(error.body_text()))?;
    let query = parameters.query.ok_or_else(|| {
        bad("the parameter `query` is missing; write ?query={label=\"value\"} (encoded for a URL)".into())
    })?;
    let selector = Selector::parse(&query).map_err(|error| bad(error.to_string()))?;
    let found = match parameters.window.as_deref() {
        None | Some("next") => next(context, &selector, &query).await?,
        Some("last") => last(context, &selector, &query)?,
        Some(other) => return Err(bad(format!("window={other:?} is neither `next` nor `last`"))),
    };
    merged(found).await
}

/// Waits for the next window in which a target matches.
async fn next(context: &Context, selector: &Selector, query: &str) -> Result<Vec<Finished>, Refusal> {
    let Ok(_slot) = context.waiting.try_acquire() else {
        let message =
            "too many queries are waiting for a window already; try again later, or use &window=last";
        return Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, message.into()));
    };
    let mut watch = context.shared.profiles.watch();
    let begun = *watch.borrow_and_update();
    let patience = context.window + GRACE + context.shared.discovery.longest_settle();
    let deadline = Instant::now() + patience;
    loop {
        // The sender lives as long as the context.
        if !matches!(timeout_at(deadline, watch.changed()).await, Ok(Ok(()))) {
            break;
        }
        watch.borrow_and_update();
        let found = newest(context, selector, begun + 1);
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let connected = context.shared.state().is_connected();
    let why = if connected { "no target that matches was running" } else { "no collector is connected" };
    let message = format!(
        "no profile for {query} within {} ms: {why}. /api/targets lists what there is; &window=last answers at once.",
        patience.as_millis()
    );
    Err(Refusal(StatusCode::NOT_FOUND, message))
}

/// The last window in which a target matched.
fn last(context: &Context, selector: &Selector, query: &str) -> Result<Vec<Finished>, Refusal> {
    let found = newest(context, selector, 0);
    if found.is_empty() {
        let message = format!(
            "no finished window has a target that matches {query}; /api/targets lists what there is."
        );
        return Err(Refusal(StatusCode::NOT_FOUND, message));
    }
    Ok(found)
}

/// The profiles of the newest window that has any that match, if it is not older than `oldest`.
fn newest(context: &Context, selector: &Selector, oldest: u64) -> Vec<Finished> {
    let mut found = context.shared.profiles.all();
    found.retain(|profile| profile.window >= oldest && selector.matches(&profile.labels));
    let newest = found.iter().map(|profile| profile.window).max();
    found.retain(|profile| Some(profile.window) == newest);
    found
}

/// The profiles as one, gzipped.
async fn merged(found: Vec<Finished>) -> Result<Vec<u8>, Refusal> {
    let kept: Vec<Arc<[u8]>> = found.into_iter().filter_map(|profile| profile.pprof).collect();
    if let [single] = kept.as_slice() {
        return Ok(single.to_vec());
    }
    if kept.is_empty() {
        let message = "there was no room to keep this profile; ask for the next window, without &window=last";
        return Err(Refusal(StatusCode::NOT_FOUND, message.into()));
    }
    let merged = spawn_blocking(move || {
        let profiles = kept.iter().map(|bytes| decode(bytes)).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, MergeError>(to_gzip(&merge(&profiles)?))
    });
    match merged.await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
        Err(_) => {
            Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "merging failed: a fault of Bulkhead's".into()))
        }
    }
}

/// A target, for scripts.
#[derive(Debug, Serialize)]
struct Target {
    labels: BTreeMap<String, String>,
    profile_type: &'static str,
    /// The end of its last window.
    last_profile: String,
    samples: u64,
    error: Option<String>,
    /// Share of its user stacks that reach their root; null without user stacks.
    complete: Option<f64>,
    /// Share of its user stacks with frames in files that were left by frame pointers, for want of unwind rows.
    by_frame_pointers: Option<f64>,
    /// How the unwinds ended, by reason.
    ends: BTreeMap<&'static str, u64>,
    /// The selector that means this target alone.
    query: String,
}

/// `/api/targets`: every target with its last profile.
pub async fn targets(State(context): State<Context>) -> Response {
    let targets = context.shared.profiles.all().into_iter().map(|profile| {
        let mut ends: BTreeMap<_, _> = profile.ends.iter().map(|(end, count)| (end.label(), count)).collect();
        if profile.ends.unknown > 0 {
            ends.insert("unknown", profile.ends.unknown);
        }
        Target {
            query: profile.labels.to_string(),
            labels: profile.labels.0.clone(),
            profile_type: PROFILE_TYPE,
            last_profile: rfc3339(profile.ended_nanos),
            samples: profile.samples,
            error: profile.problem.as_deref().map(str::to_owned),
            complete: complete(&profile),
            by_frame_pointers: share(profile.ends.guessed, profile.ends.complete().0),
            ends,
        }
    });
    Json(targets.collect::<Vec<_>>()).into_response()
}

/// Share of a profile's user stacks that reach their root.
pub fn complete(profile: &Finished) -> Option<f64> {
    let (total, complete) = profile.ends.complete();
    share(complete, total)
}

fn share(part: u64, total: u64) -> Option<f64> {
    (total > 0).then(|| part as f64 / total as f64)
}

/// `/healthz`: the process lives.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// `/readyz`: a collector is connected, and a window was finished.
pub async fn readyz(State(context): State<Context>) -> Response {
    if !context.shared.state().is_connected() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: no collector is connected\n").into_response();
    }
    if *context.shared.profiles.watch().borrow() == 0 {
        return (StatusCode::SERVICE_UNAVAILABLE, "not ready: the first window is not finished\n")
            .into_response();
    }
    "ok\n".into_response()
}
