//! How an API server that fails is asked again (report S40). It does what a test wants; how a real one is asked is for
//! `tests/tests/kubernetes`.

#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::{net::TcpListener, time::sleep};
use tokio_stream as stream;
use uploader::discovery::{
    Discovery, Outcome,
    kubernetes::{self, ApiServer},
};

/// What the server does now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Fails,
    Gone,
    Well,
}

#[derive(Debug)]
struct Server {
    mood: Mood,
    /// Whatever was asked for, by its query.
    asked: Vec<HashMap<String, String>>,
}

type Shared = Arc<Mutex<Server>>;

async fn pods(State(server): State<Shared>, Query(query): Query<HashMap<String, String>>) -> Response {
    let mood = {
        let mut server = server.lock().unwrap();
        server.asked.push(query.clone());
        server.mood
    };
    let status = |code: u16, reason: &str| {
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason});
        (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
    };
    match mood {
        Mood::Fails => status(500, "InternalError"),
        Mood::Gone if query.contains_key("watch") => status(410, "Expired"),
        // Nothing happens for as long as anybody watches.
        _ if query.contains_key("watch") => {
            Body::from_stream(stream::pending::<Result<&str, Infallible>>()).into_response()
        }
        _ => {
            let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u1"}, "spec": {"containers": []}});
            let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": [pod]});
            Json(list).into_response()
        }
    }
}

async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}: not within a minute");
        sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_server_that_fails_is_asked_less_and_less() {
    let server = Arc::new(Mutex::new(Server { mood: Mood::Fails, asked: Vec::new() }));
    // Before there is a runtime, as the program does it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let text = format!(
        "clusters: [{{name: k, cluster: {{server: \"http://{}\"}}}}]\nusers: [{{name: u, user: {{token: word}}}}]\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\ncurrent-context: c\n",
        listener.local_addr().unwrap()
    );
    std::fs::write(&path, text).unwrap();
    let found = ApiServer::find(Some(&path)).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let router = Router::new().route("/api/v1/pods", get(pods)).with_state(Arc::clone(&server));
        let listener = TcpListener::from_std(listener).unwrap();
        tokio::spawn(async { axum::serve(listener, router).await });
        let source = Discovery::new(Duration::from_secs(10)).add_kubernetes(found.address.clone());
        tokio::spawn(kubernetes::run(found, "n1".into(), "app=web".into(), Arc::clone(&source)));

        let asked = || server.lock().unwrap().asked.len();
        sleep(Duration::from_secs(12)).await;
        // After a second, two, four and so on, or from half of it on by chance.
        assert!((3..=6).contains(&asked()), "{} times in 12 s", asked());
        assert!(matches!(source.outcome(), Outcome::Failing(..)));
        for query in &server.lock().unwrap().asked {
            assert_eq!(query["fieldSelector"], "spec.nodeName=n1");
            assert_eq!(query["labelSelector"], "app=web");
        }
        let said = source.sentence().unwrap();
        assert!(said.contains("InternalError") && !said.contains("word"), "{said}");

        // What it watched from is gone: all is listed anew, and no more often than that.
        server.lock().unwrap().mood = Mood::Gone;
        wait_until("the list is taken", || source.counts().pods == 1).await;
        let before = asked();
        sleep(Duration::from_secs(8)).await;
        assert!(asked() - before <= 4, "{} times in 8 s", asked() - before);

        server.lock().unwrap().mood = Mood::Well;
        wait_until("it follows", || source.outcome() == Outcome::Following).await;
        sleep(Duration::from_secs(3)).await;
        let before = asked();
        sleep(Duration::from_secs(3)).await;
        assert_eq!(asked(), before, "it only watches");
        assert_eq!(source.counts().pods, 1);
    });
}
