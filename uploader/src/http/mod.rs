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
mod token;

use std::{sync::Arc, time::Duration};

use axum::{Router, middleware, routing::get};
use tokio::sync::Semaphore;

pub use host::Hosts;
pub use token::Token;

use crate::{confine::Confinement, delivery::Delivery, state::Shared};

/// Queries that may wait for a window at one time.
const MAX_WAITING: usize = 64;

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct Context {
    shared: Arc<Shared>,
    window: Duration,
    waiting: Arc<Semaphore>,
    confinement: Confinement,
    delivery: Option<Arc<Delivery>>,
}

/// Who may ask.
#[derive(Debug)]
pub struct Access {
    /// By these names.
    pub hosts: Hosts,
    /// With this token, if there is one.
    pub token: Option<Token>,
}

/// What there is to be asked for.
#[derive(Debug)]
pub struct Routers {
    /// All of it, for those who may.
    pub page: Router,
    /// What tells nothing of what runs on the machine: counts, and whether this process is well. For anybody.
    pub status: Router,
}

/// All routes.
pub fn routers(
    shared: Arc<Shared>,
    window: Duration,
    access: Access,
    confinement: Confinement,
    delivery: Option<Arc<Delivery>>,
) -> Routers {
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let context = Context { shared, window, waiting, confinement, delivery };
    let metrics = Router::new().route("/metrics", get(metrics::metrics)).with_state(context.clone());
    let mut page = Router::new()
        .route("/", get(browse::index))
        .route("/query", get(api::query))
        .route("/api/flamegraph", get(browse::flamegraph))
        .route("/api/targets", get(api::targets))
        .with_state(context.clone())
        .merge(metrics.clone())
        .merge(assets::router());
    if let Some(token) = access.token {
        page = page.layer(middleware::from_fn_with_state(Arc::new(token), token::check));
    }
    // Whoever looks after this process needs no token, and learns nothing of the machine.
    let probes = Router::new().route("/healthz", get(api::healthz)).route("/readyz", get(api::readyz));
    let probes = probes.with_state(context);
    let page = page
        .merge(probes.clone())
        .layer(middleware::from_fn_with_state(access.hosts, host::check))
        .layer(middleware::from_fn(host::protect));
    let status = probes.merge(metrics).layer(middleware::from_fn(host::protect));
    Routers { page, status }
}
