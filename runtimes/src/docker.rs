//! Docker's HTTP API, as far as it lists (<https://docs.docker.com/reference/api/engine/>). What is not named here is not read: no
//! environment, no command line, no mounts.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::{
    Request, Response,
    body::{Body as _, Bytes, Incoming},
};
use hyper_util::client::legacy::Client;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio_stream::Stream;

use crate::{
    MAX_ANSWER, PROXY, RuntimeError, chain, in_time,
    socket::{ADDRESS, ToSocket, client},
};

/// Events of containers that begin: `{"type":["container"],"event":["start"]}`.
const EVENTS: &str =
    "/events?filters=%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22start%22%5D%7D";
/// Longest reason for a refusal that is repeated, in bytes.
const MAX_REASON: usize = 500;
/// Longest event, in bytes: it has the labels of a container.
const MAX_EVENT: usize = 256 << 10;

/// Who it is.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DockerVersion {
    /// Its version.
    pub version: String,
    /// What it consists of; the first is the engine.
    pub components: Vec<Component>,
}

/// A part of a runtime.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Component {
    /// Its name: `Engine`, `Podman Engine`.
    pub name: String,
}

impl DockerVersion {
    /// Its name: Docker, or who speaks as it does.
    pub fn name(&self) -> &str {
        match self.components.first().map(|component| component.name.as_str()) {
            None | Some("" | "Engine") => "Docker",
            Some(name) => name,
        }
    }

    /// As the proxy says it.
    #[must_use]
    pub fn by_proxy(self) -> Self {
        let name = format!("{}{PROXY}", self.name());
        DockerVersion { components: vec![Component { name }], ..self }
    }
}

/// A container that runs.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DockerContainer {
    /// Its id.
    pub id: String,
    /// Its names, each with a slash before it.
    pub names: Vec<String>,
    /// The image, as whoever ran it named it.
    pub image: String,
    /// Its labels. Some write `null`.
    pub labels: Option<BTreeMap<String, String>>,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Event {
    /// To what it happened.
    pub actor: Actor,
}

/// To what something happened.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Actor {
    /// The container's id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its labels, and beside them `name` and `image`.
    pub attributes: BTreeMap<String, String>,
}

impl From<Event> for DockerContainer {
    fn from(Event { actor: Actor { id, mut attributes } }: Event) -> Self {
        let mut take = |name| attributes.remove(name).unwrap_or_default();
        let (name, image) = (take("name"), take("image"));
        DockerContainer { id, names: vec![format!("/{name}")], image, labels: Some(attributes) }
    }
}

/// A runtime that is asked by Docker's API.
#[derive(Clone, Debug)]
pub struct Docker(Client<ToSocket, Empty<Bytes>>);

impl Docker {
    /// The one that listens on this socket. Connects when it is asked something.
    pub fn new(path: &Path) -> Self {
        Docker(client(path, |_| {}))
    }

    /// Who it is.
    pub async fn version(&self) -> Result<DockerVersion, RuntimeError> {
        self.get("/version").await
    }

    /// All containers that run.
    pub async fn containers(&self) -> Result<Vec<DockerContainer>, RuntimeError> {
        self.get("/containers/json").await
    }

    /// Tells of containers as they begin.
    pub async fn events(&self) -> Result<Events, RuntimeError> {
        let body = in_time(self.request(EVENTS)).await?.into_body();
        Ok(Events { body, lines: Lines::default() })
    }

    async fn get<T: DeserializeOwned>(&self, path: &'static str) -> Result<T, RuntimeError> {
        let body = in_time(async {
            let response = self.request(path).await?;
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
                Some(_) => {
                    RuntimeError::Http(format!("the answer to {path} is longer than {MAX_ANSWER} bytes"))
                }
                None => RuntimeError::Http(error.to_string()),
            })
        });
        let bytes = body.await?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|error| RuntimeError::Answer(path, error))
    }

    async fn request(&self, path: &'static str) -> Result<Response<Incoming>, RuntimeError> {
        let request = Request::get(format!("{ADDRESS}{path}")).body(Empty::new());
        let request = request.map_err(|error| RuntimeError::Http(error.to_string()))?;
        let response = self.0.request(request).await.map_err(|error| RuntimeError::Http(chain(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        // Whoever says no says why.
        let reason = Limited::new(response.into_body(), MAX_REASON).collect().await;
        let reason = reason.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
        Err(RuntimeError::Http(format!("{path}: {status} {}", reason.unwrap_or_default())))
    }
}

/// Containers as they begin; a stream that ends when the runtime does, and is of no use after an error.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    lines: Lines,
}

impl Stream for Events {
    type Item = Result<Event, RuntimeError>;

    /// The next one. `None`: whoever told of them is gone.
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(line) = self.lines.next() {
                let event = serde_json::from_slice(&line);
                return Poll::Ready(Some(event.map_err(|error| RuntimeError::Answer("/events", error))));
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
                return Poll::Ready(None);
            };
            let frame = frame.map_err(|error| RuntimeError::Http(chain(&error)));
            let pushed = frame.and_then(|frame| match frame.data_ref() {
                Some(data) => self.lines.push(data),
                None => Ok(()),
            });
            if let Err(error) = pushed {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

/// Lines out of pieces.
#[derive(Debug, Default)]
struct Lines {
    whole: VecDeque<Vec<u8>>,
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, data: &[u8]) -> Result<(), RuntimeError> {
        let mut parts = data.split(|byte| *byte == b'\n');
        self.rest.extend(parts.next().unwrap_or_default());
        for part in parts {
            let line = std::mem::replace(&mut self.rest, part.to_vec());
            if !line.trim_ascii().is_empty() {
                self.whole.push_back(line);
            }
        }
        if self.rest.len() > MAX_EVENT {
            return Err(RuntimeError::Http(format!("an event is longer than {MAX_EVENT} bytes")));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.whole.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_any_pieces() {
        let text = b"{\"a\":1}\n{\"b\":2}\r\n\n{\"c\":3}\n{";
        for size in 1..=text.len() {
            let mut lines = Lines::default();
            for piece in text.chunks(size) {
                lines.push(piece).unwrap();
            }
            let whole: Vec<_> = std::iter::from_fn(|| lines.next()).collect();
            assert_eq!(whole, [&b"{\"a\":1}"[..], b"{\"b\":2}\r", b"{\"c\":3}"], "{size}");
        }
        let mut lines = Lines::default();
        assert!((0..=MAX_EVENT).any(|_| lines.push(b"x").is_err()));
    }

    #[test]
    fn what_begins_is_a_container() {
        let text = r#"{"status":"start","id":"ab","Type":"container","Action":"start","Actor":{"ID":"ab",
            "Attributes":{"image":"i:1","name":"web","team":"shop"}},"scope":"local","time":1}"#;
        let container = DockerContainer::from(serde_json::from_str::<Event>(text).unwrap());
        assert_eq!((container.id.as_str(), container.image.as_str()), ("ab", "i:1"));
        assert_eq!(container.names, ["/web"]);
        assert_eq!(container.labels.unwrap(), [("team".to_owned(), "shop".to_owned())].into());
    }

    #[test]
    fn what_is_not_asked_for_is_not_passed_on() {
        let text = r#"[{"Id":"ab","Names":["/web"],"Image":"i","Command":"serve --password=x","Labels":null,
            "State":"running","Mounts":[{"Source":"/secret"}],"Env":["TOKEN=x"]}]"#;
        let containers: Vec<DockerContainer> = serde_json::from_str(text).unwrap();
        let again = serde_json::to_string(&containers).unwrap();
        assert_eq!(again, r#"[{"Id":"ab","Names":["/web"],"Image":"i","Labels":null}]"#);
    }
}
