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
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::{net::TcpListener, time::sleep};
use tokio_stream as stream;
use uploader::discovery::{
    Discovery, Outcome, Source,
    kubernetes::{self, ApiServer},
};

/// What the server does now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    Fails,
    Unauthorized,
    Gone,
    /// A watch ends as soon as it has begun.
    Closes,
    /// What is watched turns out to be too old.
    GoneLater,
    Well,
}

#[derive(Debug)]
struct Server {
    mood: Mood,
    /// Who says another word is turned away.
    token: &'static str,
    /// Whatever was asked for, by its query, and in what mood.
    asked: Vec<(Mood, HashMap<String, String>)>,
    asked_for_node: u32,
}

type Shared = Arc<Mutex<Server>>;

async fn pods(
    State(server): State<Shared>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let mood = {
        let mut server = server.lock().unwrap();
        let is_known = headers[header::AUTHORIZATION] == format!("Bearer {}", server.token);
        let mood = if is_known { server.mood } else { Mood::Unauthorized };
        server.asked.push((mood, query.clone()));
        mood
    };
    let status = |code: u16, reason: &str| {
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason});
        (StatusCode::from_u16(code).unwrap(), Json(body)).into_response()
    };
    match mood {
        Mood::Fails => status(500, "InternalError"),
        Mood::Unauthorized => status(401, "Unauthorized"),
        Mood::Gone if query.contains_key("watch") => status(410, "Expired"),
        Mood::Closes if query.contains_key("watch") => Body::empty().into_response(),
        Mood::GoneLater if query.contains_key("watch") => {
            let object = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"});
            Json(json!({"type": "ERROR", "object": object})).into_response()
        }
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

/// Labels of the node, but for the first time.
async fn node(State(server): State<Shared>) -> Response {
    let mut server = server.lock().unwrap();
    server.asked_for_node += 1;
    if server.asked_for_node == 1 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let metadata = json!({"name": "n1", "labels": {"zone": "z"}});
    Json(json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}))
        .into_response()
}

async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_mins(3), "{what}: not within three minutes");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Runs a server in a mood, what asks it as this user of a kubeconfig (its lines there), and the test.
fn with_server<T: Future<Output = ()>>(mood: Mood, user: &str, body: impl FnOnce(Shared, Arc<Source>) -> T) {
    let server = Arc::new(Mutex::new(Server { mood, token: "word", asked: Vec::new(), asked_for_node: 0 }));
    // Before there is a runtime, as the program does it.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let text = format!(
        "clusters: [{{name: k, cluster: {{server: \"http://{}\"}}}}]\nusers: [{{name: u, user: {{{user}}}}}]\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\ncurrent-context: c\n",
        listener.local_addr().unwrap()
    );
    std::fs::write(&path, text).unwrap();
    let found = ApiServer::find(Some(&path)).unwrap().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let router = Router::new().route("/api/v1/pods", get(pods)).route("/api/v1/nodes/n1", get(node));
        let router = router.with_state(Arc::clone(&server));
        let listener = TcpListener::from_std(listener).unwrap();
        tokio::spawn(async { axum::serve(listener, router).await });
        let source = Discovery::new(Duration::from_secs(10)).add_kubernetes(found.address.clone());
        tokio::spawn(kubernetes::run(found, "n1".into(), "app=web".into(), Arc::clone(&source)));
        body(server, source).await;
    });
}

/// Whether it was a watch that was asked for last, and answered so.
fn watches(server: &Shared, mood: Mood) -> bool {
    let server = server.lock().unwrap();
    server.asked.last().is_some_and(|(answered, query)| *answered == mood && query.contains_key("watch"))
}

/// A service account's token is replaced within its hour, and the one before it no longer taken.
#[test]
fn a_token_that_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "word").unwrap();
    with_server(Mood::Closes, &format!("tokenFile: {}", path.display()), async |server, source| {
        wait_until("the list is taken", || source.counts().pods == 1).await;
        std::fs::write(&path, "next-word").unwrap();
        server.lock().unwrap().token = "next-word";
        wait_until("it is turned away", || matches!(source.outcome(), Outcome::Failing(..))).await;
        let said = source.sentence().unwrap();
        assert!(said.contains("Unauthorized") && !said.contains("word"), "{said}");
        // What is known stays so meanwhile.
        assert_eq!(source.counts().pods, 1);
        server.lock().unwrap().mood = Mood::Well;
        wait_until("the next token is taken", || watches(&server, Mood::Well)).await;
        wait_until("it follows", || source.outcome() == Outcome::Following).await;
    });
}

/// Rules may leave out what is on a node without a label.
#[test]
fn labels_of_the_node_are_asked_for_again() {
    with_server(Mood::Well, "token: word", async |server, source| {
        let begun = Instant::now();
        wait_until("they are known", || {
            source.machine().get("__meta_kubernetes_node_label_zone").is_some_and(|zone| zone == "z")
        })
        .await;
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        assert_eq!(server.lock().unwrap().asked_for_node, 2);
    });
}

#[test]
fn a_server_that_fails_is_asked_less_and_less() {
    with_server(Mood::Fails, "token: word", async |server, source| {
        let asked = || server.lock().unwrap().asked.len();
        sleep(Duration::from_secs(12)).await;
        // After a second, two, four and so on, or from half of it on by chance.
        assert!((3..=6).contains(&asked()), "{} times in 12 s", asked());
        assert!(matches!(source.outcome(), Outcome::Failing(..)));
        for (_, query) in &server.lock().unwrap().asked {
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
        let lists = || {
            let server = server.lock().unwrap();
            let is_list =
                |(mood, query): &&(Mood, HashMap<_, _>)| *mood == Mood::Gone && !query.contains_key("watch");
            server.asked.iter().filter(is_list).count()
        };
        let before = lists();
        wait_until("it lists again", || lists() >= before + 2).await;

        // The same, said within a watch; and a watch that ends without a word, as behind a proxy.
        for mood in [Mood::GoneLater, Mood::Closes] {
            server.lock().unwrap().mood = mood;
            sleep(Duration::from_secs(2)).await;
            let before = asked();
            sleep(Duration::from_secs(8)).await;
            assert!(asked() - before <= 10, "{mood:?}: {} times in 8 s", asked() - before);
        }
        assert_eq!(source.counts().pods, 1);

        server.lock().unwrap().mood = Mood::Well;
        // It may be in the middle of a pause.
        wait_until("it watches", || watches(&server, Mood::Well)).await;
        wait_until("it follows", || source.outcome() == Outcome::Following).await;
        let before = asked();
        sleep(Duration::from_secs(3)).await;
        assert_eq!(asked(), before, "it only watches");
        assert_eq!(source.counts().pods, 1);
    });
}
