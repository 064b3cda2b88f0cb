//! Kubernetes: the pods of this node, as its API server tells of them.

mod api_server;
mod facts;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    core::Status,
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt as _;
use tracing::{debug, info, warn};

pub use api_server::{ApiServer, ApiServerError};

use super::Source;
use crate::{backoff::Backoff, causes::with_causes, printable::printable};

/// Pods that one answer tells of, while all are listed: an answer is held in memory as a whole.
const PAGE: u32 = 50;
/// How long is waited after a failure, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// After so long without a failure the next is the first again.
const WELL_AGAIN: Duration = Duration::from_mins(2);
/// Longest message of the API server's that is repeated, in characters.
const MAX_MESSAGE: usize = 180;
/// How often the node's labels are read, and how long is waited at most after a failure.
const NODE_EVERY: Duration = Duration::from_mins(10);
/// How long pods wait for the node's labels.
const FIRST_OF_NODE: Duration = Duration::from_secs(2);

/// Follows the pods of a node as they come, change and go. `selector`: of those, the ones with such labels. Never ends.
pub async fn run(server: ApiServer, node: String, selector: String, source: Arc<Source>) {
    let address = server.address.clone();
    let answered = {
        let (source, address) = (Arc::clone(&source), address.clone());
        move || {
            if let Some(after) = source.answered() {
                info!("the Kubernetes API server {address} tells of pods again, after {} s", after.as_secs());
            }
        }
    };
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let (client, node_client) = loop {
        // What is heard of the node says nothing of pods.
        match server.client(answered.clone()).and_then(|client| Ok((client, server.client(|| ())?))) {
            Ok(clients) => break clients,
            // A token that is not there yet.
            Err(error) => {
                if source.failed(&error.to_string()) {
                    warn!("{error}; containers have no names until it can be");
                }
                sleep(backoff.next()).await;
            }
        }
    };
    let mut labels = NodeLabels::new(node_client, &node, &source);
    // Rules that look at them find them with the first pods.
    let pause = timeout(FIRST_OF_NODE, labels.read()).await.unwrap_or_default();
    tokio::join!(follow_pods(client, &address, &node, &selector, &source), labels.follow(pause));
}

async fn follow_pods(client: Client, address: &str, node: &str, selector: &str, source: &Source) {
    let config =
        watcher::Config::default().fields(&format!("spec.nodeName={node}")).labels(selector).page_size(PAGE);
    let begin = || Box::pin(watcher(Api::<Pod>::all(client.clone()), config.clone()));
    let mut events = begin();
    // The library's own pauses begin anew with each event, and it has one that says only that it is about to ask.
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut last_failure: Option<Instant> = None;
    loop {
        let event = events.next().await;
        let has_failed = matches!(event, Some(Err(_)));
        match event {
            Some(Ok(Event::Init)) => source.begin_list(),
            Some(Ok(Event::InitApply(pod) | Event::Apply(pod))) => {
                if let Some(pod) = facts::pod(&pod) {
                    source.apply(pod);
                }
            }
            Some(Ok(Event::InitDone)) => source.end_list(),
            Some(Ok(Event::Delete(pod))) => {
                if let Some(uid) = &pod.metadata.uid {
                    source.remove(uid);
                }
            }
            // What it watched from is too old, as happens after a while: all is listed anew.
            Some(Err(error)) if is_outdated(&error) => {
                debug!("pods are listed anew: {}", chain(&error));
                // The library begins anew where this is said within a watch; as the answer to one it would ask the same again.
                events = begin();
            }
            Some(Err(error)) => {
                let reason = words(&error);
                if source.failed(&reason) {
                    warn!(
                        "the Kubernetes API server {address} does not tell of pods: {reason}; what is known stays in use"
                    );
                }
            }
            None => return std::future::pending().await,
        }
        if has_failed {
            if last_failure.is_none_or(|last| last.elapsed() > WELL_AGAIN) {
                backoff.reset();
            }
            sleep(backoff.next()).await;
            last_failure = Some(Instant::now());
        }
    }
}

/// Whether what is watched from is too old. A list that is refused so, which begins from nothing, is a failure like any other.
fn is_outdated(error: &watcher::Error) -> bool {
    !matches!(error, watcher::Error::InitialListFailed(_))
        && status(error).is_some_and(|status| status.code == 410)
}

/// The node's labels. They are for rules alone, and may be forbidden.
struct NodeLabels<'a> {
    nodes: Api<Node>,
    node: &'a str,
    source: &'a Source,
    backoff: Backoff,
    has_failed: bool,
}

impl<'a> NodeLabels<'a> {
    fn new(client: Client, node: &'a str, source: &'a Source) -> Self {
        let backoff = Backoff::new(PAUSES.0, NODE_EVERY);
        NodeLabels { nodes: Api::all(client), node, source, backoff, has_failed: false }
    }

    /// Reads them. Says how long they are good for.
    async fn read(&mut self) -> Duration {
        match self.nodes.get_metadata(self.node).await {
            Ok(found) => {
                self.source.set_machine(facts::node(&found.metadata));
                self.backoff.reset();
                self.has_failed = false;
                NODE_EVERY
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    let reason = match &error {
                        kube::Error::Api(status) => said(status, "; its account needs the verb get on nodes"),
                        other => chain(other),
                    };
                    info!("rules see no labels of the node {}: {reason}", self.node);
                }
                self.backoff.next()
            }
        }
    }

    /// Reads them again and again.
    async fn follow(mut self, pause: Duration) {
        let mut pause = pause;
        loop {
            sleep(pause).await;
            pause = self.read().await;
        }
    }
}

/// What is wrong, and what to do about it.
fn words(error: &watcher::Error) -> String {
    match status(error) {
        Some(status) => said(
            status,
            "; its account needs the verbs list and watch on pods (deploy/kubernetes has such a role)",
        ),
        None => chain(error),
    }
}

/// What the API server says, and what to do about it where that is forbidden.
fn said(status: &Status, where_forbidden: &'static str) -> String {
    let hint = match status.code {
        401 => "; its token is refused: is it this cluster's?",
        403 => where_forbidden,
        _ => "",
    };
    // What to do is said behind it, and stays in what is kept of the whole.
    let message: String = status.message.chars().take(MAX_MESSAGE).collect();
    format!("{} ({}){hint}", printable(message.as_bytes()), status.code)
}

/// What the API server itself says is wrong.
fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// An error with what caused it.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    with_causes(&error.to_string(), error.source())
}
