//! Docker's API: three paths, with GET alone. What they are asked beside (a query, a body) is not read.

use std::error::Error;

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use runtimes::{Docker, Event, RuntimeError};
use tokio_stream::StreamExt;

/// The runtime does not answer, or not as it should.
#[derive(Debug)]
struct BadGateway(RuntimeError);

impl IntoResponse for BadGateway {
    fn into_response(self) -> Response {
        (StatusCode::BAD_GATEWAY, self.0.to_string()).into_response()
    }
}

/// What a connection is answered by.
pub(crate) fn router(docker: Docker) -> Router {
    Router::new()
        .route("/version", get(version))
        .route("/containers/json", get(containers))
        .route("/events", get(events))
        .with_state(docker)
}

/// What a connection is answered by whose runtime does not answer: each request with the reason.
pub(crate) fn refusal(error: &RuntimeError) -> Router {
    let reason = error.to_string();
    Router::new().fallback(async move || (StatusCode::BAD_GATEWAY, reason))
}

async fn version(State(docker): State<Docker>) -> Result<impl IntoResponse, BadGateway> {
    docker.version().await.map(|version| Json(version.by_proxy())).map_err(BadGateway)
}

async fn containers(State(docker): State<Docker>) -> Result<impl IntoResponse, BadGateway> {
    docker.containers().await.map(Json).map_err(BadGateway)
}

async fn events(State(docker): State<Docker>) -> Result<Body, BadGateway> {
    let events = docker.events().await.map_err(BadGateway)?;
    Ok(Body::from_stream(events.map(line)))
}

/// A line for each event.
fn line(event: Result<Event, RuntimeError>) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
    let mut line = serde_json::to_vec(&event?)?;
    line.push(b'\n');
    Ok(line)
}
