//! Kubernetes: the pods of this node, as its API server tells of them.

mod api_server;
mod facts;

use std::{fmt::Write as _, pin::pin, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use tokio::time::sleep;
use tokio_stream::StreamExt as _;
use tracing::{debug, info, warn};

pub use api_server::{ApiServer, ApiServerError};

use super::Discovery;
use crate::printable::printable;

/// Pods that one answer tells of, while all are listed: an answer is held in memory as a whole.
const PAGE: u32 = 50;
/// How often the node's labels are read.
const NODE_EVERY: Duration = Duration::from_mins(10);

/// Follows the pods of a node as they come, change and go. `selector`: of those, the ones with such labels. Never ends.
pub async fn run(server: ApiServer, node: String, selector: String, discovery: Arc<Discovery>) {
    let address = server.address.clone();
    let answered = {
        let (discovery, address) = (Arc::clone(&discovery), address.clone());
        move || {
            if let Some(after) = discovery.answered() {
                info!("the Kubernetes API server {address} answers again, after {} s", after.as_secs());
            }
        }
    };
    let client = match server.client(answered) {
        Ok(client) => client,
        Err(error) => {
            warn!("{error}; containers have no names");
            discovery.failed(error.to_string());
            return std::future::pending().await;
        }
    };
    tokio::join!(
        follow_pods(client.clone(), &address, &node, &selector, &discovery),
        follow_node(client, &node, &discovery)
    );
}

async fn follow_pods(client: Client, address: &str, node: &str, selector: &str, discovery: &Discovery) {
    let config =
        watcher::Config::default().fields(&format!("spec.nodeName={node}")).labels(selector).page_size(PAGE);
    // It waits longer and longer between tries, and lists all anew when it has missed something (410 Gone).
    let mut events = pin!(watcher(Api::<Pod>::all(client), config).default_backoff());
    loop {
        match events.next().await {
            Some(Ok(Event::Init)) => discovery.begin_list(),
            Some(Ok(Event::InitApply(pod) | Event::Apply(pod))) => {
                if let Some(pod) = facts::pod(&pod) {
                    discovery.apply(pod);
                }
            }
            Some(Ok(Event::InitDone)) => discovery.end_list(),
            Some(Ok(Event::Delete(pod))) => {
                if let Some(uid) = &pod.metadata.uid {
                    discovery.remove(uid);
                }
            }
            Some(Err(error)) => {
                let reason = words(&error);
                if discovery.failed(reason.clone()) {
                    warn!(
                        "the Kubernetes API server {address} does not tell of pods: {reason}; what is known stays in use"
                    );
                }
            }
            None => return std::future::pending().await,
        }
    }
}

/// Reads the node's labels again and again. They are for rules alone, and may be forbidden.
async fn follow_node(client: Client, node: &str, discovery: &Discovery) {
    let nodes = Api::<Node>::all(client);
    loop {
        match nodes.get_metadata(node).await {
            Ok(found) => discovery.set_node(facts::node(&found.metadata)),
            Err(error) => debug!("labels of the node {node} cannot be read: {}", chain(&error)),
        }
        sleep(NODE_EVERY).await;
    }
}

/// What is wrong, and what to do about it.
fn words(error: &watcher::Error) -> String {
    let hint = match status(error) {
        Some(401) => "; its token is refused: is it this cluster's?",
        Some(403) => {
            "; its account needs the verbs get, list and watch on pods (deploy/kubernetes has such a role)"
        }
        _ => "",
    };
    format!("{}{hint}", chain(error))
}

fn status(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

/// An error with what caused it, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {words}");
        }
        cause = error.source();
    }
    printable(text.as_bytes())
}
