//! The page and the interfaces for scripts.

pub mod api;
pub mod assets;
pub mod browse;
pub mod flamegraph;
mod host;
mod metrics;
pub mod pages;
pub mod selector;
pub mod server;

use std::{sync::Arc, time::Duration};

use axum::{Router, middleware, routing::get};
use tokio::sync::Semaphore;

pub use host::Hosts;

use crate::state::Shared;

/// Queries that may wait for a window at one time.
const MAX_WAITING: usize = 64;

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct Context {
    shared: Arc<Shared>,
    window: Duration,
    waiting: Arc<Semaphore>,
}

/// All routes.
pub fn router(shared: Arc<Shared>, window: Duration, hosts: Hosts) -> Router {
    let context = Context { shared, window, waiting: Arc::new(Semaphore::new(MAX_WAITING)) };
    Router::new()
        .route("/", get(browse::index))
        .route("/query", get(api::query))
        .route("/api/flamegraph", get(browse::flamegraph))
        .route("/api/targets", get(api::targets))
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .with_state(context)
        .merge(assets::router())
        .layer(middleware::from_fn_with_state(hosts, host::check))
        .layer(middleware::from_fn(host::protect))
}
