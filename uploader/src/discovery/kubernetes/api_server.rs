//! How the API server is reached: as a pod of its cluster, or as a kubeconfig says.

use std::{
    env,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::Request;
use hyper_rustls::HttpsConnector;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tower::{BoxError, ServiceBuilder, service_fn};
use tracing::warn;

use super::{PAUSES, chain};
use crate::{backoff::Backoff, resolver::Resolver};

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long nothing may come on a connection that is waited on. A watch says at least once a minute that it lives, and ends by itself after
/// five.
const READ_LIMIT: Duration = Duration::from_mins(6);
/// A watch that has lasted for less ended too early. The server ends each after some minutes.
const SHORT_WATCH: Duration = Duration::from_secs(10);
/// How long a request may take to be written.
const WRITE_LIMIT: Duration = Duration::from_mins(1);

/// Why there is no API server to be asked.
#[derive(Debug, Error)]
pub enum ApiServerError {
    /// A pod's own way.
    #[error(
        "cannot reach the API server as a pod does (KUBERNETES_SERVICE_HOST is set): {0}; is its service account's token mounted?"
    )]
    InCluster(String),
    /// A kubeconfig's.
    #[error("cannot use the kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is neither.
    #[error(
        "--kubernetes: this is no pod (KUBERNETES_SERVICE_HOST is not set), and there is no kubeconfig: name one with --kubeconfig"
    )]
    Neither,
    /// What it takes to connect could not be made.
    #[error("cannot connect to the Kubernetes API server {0}: {1}")]
    Client(String, String),
}

/// An API server, and how it is reached.
#[derive(Debug)]
pub struct ApiServer {
    /// Its address, for people.
    pub address: String,
    /// The port that is connected to.
    pub port: u16,
    /// Files that are read again and again.
    pub files: Vec<PathBuf>,
    config: Config,
    connector: HttpsConnector<HttpConnector<Resolver>>,
}

impl ApiServer {
    /// That of the cluster whose pod this is, or of a kubeconfig: the one that is named, that of the environment (`KUBECONFIG`) or that
    /// of the user. `None` where there is none of these. All files that are named are read now.
    pub fn find(kubeconfig: Option<&Path>) -> Result<Option<Self>, ApiServerError> {
        if kubeconfig.is_none() && env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Self::in_cluster().map(Some);
        }
        let path = match kubeconfig {
            Some(path) => path.to_owned(),
            None => match Self::default_kubeconfig() {
                Some(path) => path,
                None => return Ok(None),
            },
        };
        Self::of_kubeconfig(&path).map(Some)
    }

    /// The first file of `KUBECONFIG`, else that in the home folder if it is there.
    fn default_kubeconfig() -> Option<PathBuf> {
        if let Some(named) = env::var_os("KUBECONFIG").filter(|named| !named.is_empty()) {
            return env::split_paths(&named).next();
        }
        let path = env::home_dir()?.join(".kube/config");
        path.is_file().then_some(path)
    }

    fn in_cluster() -> Result<Self, ApiServerError> {
        let config = Config::incluster_env().map_err(|error| ApiServerError::InCluster(chain(&error)))?;
        Self::new(config).map_err(ApiServerError::InCluster)
    }

    fn of_kubeconfig(path: &Path) -> Result<Self, ApiServerError> {
        let error = |reason| ApiServerError::Kubeconfig { path: path.to_owned(), reason };
        let text = Kubeconfig::read_from(path).map_err(|problem| match problem {
            KubeconfigError::ReadConfig(source, _) => error(source.to_string()),
            // What is said of other faults has lines of the file in it, and so what is secret.
            _ => error("it is no kubeconfig, or no valid YAML (kubectl --kubeconfig says where)".into()),
        })?;
        let contexts =
            text.contexts.iter().filter(|named| Some(&named.name) == text.current_context.as_ref());
        let used: Vec<_> = contexts.filter_map(|named| Some(&named.context.as_ref()?.cluster)).collect();
        let clusters = text.clusters.iter().filter(|named| used.contains(&&named.name));
        let mut proxies = clusters.filter_map(|named| named.cluster.as_ref()?.proxy_url.as_ref());
        if proxies.any(|proxy| !proxy.is_empty()) {
            return Err(error("it names a proxy, which is not supported".into()));
        }
        // It only waits where the file wants a program to be run.
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let config = runtime
            .map_err(|problem| error(problem.to_string()))?
            .block_on(Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()))
            .map_err(|problem| error(chain(&problem)))?;
        Self::new(config).map_err(error)
    }

    fn new(mut config: Config) -> Result<Self, String> {
        let auth = &config.auth_info;
        if auth.exec.is_some() || auth.auth_provider.is_some() {
            return Err("it has a program run for a token, and this process may run none; use a token (tokenFile) or a client certificate".into());
        }
        if config.accept_invalid_certs {
            warn!(
                "the kubeconfig has the API server taken for it without a check of its certificate (insecure-skip-tls-verify)"
            );
        }
        // That of the environment is the store's.
        config.proxy_url = None;
        let files = [auth.token_file.as_ref().map(PathBuf::from), config.root_cert_file.clone()];
        let files = files.into_iter().flatten().collect();
        if config.root_cert.is_none() && config.root_cert_file.is_none() && !config.accept_invalid_certs {
            let found = rustls_native_certs::load_native_certs();
            config.root_cert = Some(found.certs.iter().map(|certificate| certificate.to_vec()).collect());
        }
        let uri = &config.cluster_url;
        let host = uri.host().ok_or("the server's address has no host")?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let address = format!("{host}:{port}");
        let mut http = HttpConnector::new_with_resolver(Resolver::new());
        http.enforce_http(false);
        http.set_nodelay(true);
        let connector = config.rustls_https_connector_with_connector(http).map_err(|error| chain(&error))?;
        Ok(ApiServer { address, port, files, config, connector })
    }

    /// A client, which connects when it is first used; to be made where there is a runtime. `watched` is called whenever a watch has begun.
    pub(super) fn client(
        &self,
        watched: impl Fn() + Clone + Send + 'static,
    ) -> Result<Client, ApiServerError> {
        let failed = |error: kube::Error| ApiServerError::Client(self.address.clone(), chain(&error));
        let mut connector = TimeoutConnector::new(self.connector.clone());
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        connector.set_read_timeout(Some(READ_LIMIT));
        connector.set_write_timeout(Some(WRITE_LIMIT));
        connector.set_reset_reader_on_write(true);
        let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
        let pace = Arc::new(Mutex::new(Pace::new()));
        let watching = service_fn(move |request: Request<Body>| {
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let (watched, http) = (watched.clone(), http.clone());
            let pause = if is_watch { Pace::pause(&pace) } else { Duration::ZERO };
            async move {
                sleep(pause).await;
                let answer = http.request(request).await;
                if is_watch && answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                    watched();
                }
                answer
            }
        });
        let service = ServiceBuilder::new()
            .layer(self.config.base_uri_layer())
            .option_layer(self.config.auth_layer().map_err(failed)?)
            .layer(self.config.extra_headers_layer().map_err(failed)?)
            .map_err(BoxError::from)
            .service(watching);
        Ok(Client::new(service, self.config.default_namespace.clone()))
    }
}

/// How often watches are begun. One that has ended without an error is begun again by the library at once, and so would be one that ends as soon as
/// it has begun, for ever.
#[derive(Debug)]
struct Pace {
    begun: Option<Instant>,
    backoff: Backoff,
}

impl Pace {
    fn new() -> Self {
        Pace { begun: None, backoff: Backoff::new(PAUSES.0, PAUSES.1) }
    }

    /// How long to wait before a watch that is to begin now.
    fn pause(pace: &Mutex<Self>) -> Duration {
        let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let lasted = pace.begun.map(|begun| now.saturating_duration_since(begun));
        let pause = match lasted {
            Some(lasted) if lasted < SHORT_WATCH => pace.backoff.next(),
            _ => {
                pace.backoff.reset();
                Duration::ZERO
            }
        };
        pace.begun = Some(now + pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, text).unwrap();
        ApiServer::find(Some(&path)).unwrap_err().to_string()
    }

    const CONTEXT: &str = "contexts: [{name: c, context: {cluster: k, user: u}}]\ncurrent-context: c\n";

    #[test]
    fn a_kubeconfig_says_where_and_as_whom() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let token = folder.path().join("token");
        std::fs::write(&token, "word").unwrap();
        let text = format!(
            "{CONTEXT}clusters: [{{name: k, cluster: {{server: \"https://api.example:6443\"}}}}]\nusers: [{{name: u, user: {{tokenFile: {}}}}}]\n",
            token.display()
        );
        std::fs::write(&path, text).unwrap();
        let server = ApiServer::find(Some(&path)).unwrap().unwrap();
        assert_eq!((server.address.as_str(), server.port), ("api.example:6443", 6443));
        assert_eq!(server.files, [token]);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let wrong = error("users: [{name: u, user: {token: secret-word]");
        assert!(wrong.contains("cannot use the kubeconfig") && !wrong.contains("secret-word"), "{wrong}");
        let clusters = "clusters: [{name: k, cluster: {server: \"https://h\"}}]\n";
        let exec =
            "users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: aws}}}]\n";
        assert!(error(&format!("{CONTEXT}{clusters}{exec}")).contains("tokenFile"));
        let proxy = "clusters: [{name: k, cluster: {server: \"https://h\", proxy-url: \"http://p:1\"}}]\n";
        assert!(error(&format!("{CONTEXT}{proxy}users: [{{name: u, user: {{}}}}]\n")).contains("proxy"));
        // Not that of another cluster, which is not asked.
        let others = proxy.replace("[{name: k", "[{name: k, cluster: {server: \"https://h\"}}, {name: other");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, format!("{CONTEXT}{others}users: [{{name: u, user: {{}}}}]\n")).unwrap();
        assert!(ApiServer::find(Some(&path)).is_ok());
    }
}
