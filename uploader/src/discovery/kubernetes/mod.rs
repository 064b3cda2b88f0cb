//! Kubernetes: the pods of this node, as its API server tells of them.

mod api_server;
mod facts;

use std::{pin::pin, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    core::Status,
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::{Instant, sleep};
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
/// How often the node's labels are read.
const NODE_EVERY: Duration = Duration::from_mins(10);

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
    tokio::join!(
        follow_pods(client, &address, &node, &selector, &source),
        follow_node(node_client, &node, &source)
    );
}

async fn follow_pods(client: Client, address: &str, node: &str, selector: &str, source: &Source) {
    let config =
        watcher::Config::default().fields(&format!("spec.nodeName={node}")).labels(selector).page_size(PAGE);
    let mut events = pin!(watcher(Api::<Pod>::all(client), config));
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
            Some(Err(error)) if status(&error).is_some_and(|status| status.code == 410) => {
                debug!("pods are listed anew: {}", chain(&error));
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

/// Reads the node's labels again and again. They are for rules alone, and may be forbidden.
async fn follow_node(client: Client, node: &str, source: &Source) {
    let nodes = Api::<Node>::all(client);
    loop {
        match nodes.get_metadata(node).await {
            Ok(found) => source.set_machine(facts::node(&found.metadata)),
            Err(error) => debug!("labels of the node {node} cannot be read: {}", chain(&error)),
        }
        sleep(NODE_EVERY).await;
    }
}

/// What is wrong, and what to do about it.
fn words(error: &watcher::Error) -> String {
    let Some(status) = status(error) else { return chain(error) };
    let hint = match status.code {
        401 => "; its token is refused: is it this cluster's?",
        403 => {
            "; its account needs the verbs get, list and watch on pods (deploy/kubernetes has such a role)"
        }
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
