//! The Container Runtime Interface (`runtime.v1`), as far as it lists.

use std::path::Path;

use hyper::Uri;
use hyper_util::client::legacy::Client;
use proto::cri::{
    Container, ListContainersRequest, ListPodSandboxRequest, PodSandbox, VersionRequest, VersionResponse,
    runtime_service_client::RuntimeServiceClient,
};
use tonic::{Status, body::Body};

use crate::{
    MAX_ANSWER, RuntimeError, in_time,
    socket::{ADDRESS, ToSocket, client},
};

impl From<Status> for RuntimeError {
    fn from(status: Status) -> Self {
        RuntimeError::Cri(status.message().to_owned(), status.code())
    }
}

/// A runtime that is asked by the interface.
#[derive(Clone, Debug)]
pub struct Cri(RuntimeServiceClient<Client<ToSocket, Body>>);

impl Cri {
    /// The one that listens on this socket. Connects when it is asked something.
    pub fn new(path: &Path) -> Self {
        let connections = client(path, |builder| {
            builder.http2_only(true);
        });
        let client = RuntimeServiceClient::with_origin(connections, Uri::from_static(ADDRESS));
        Cri(client.max_decoding_message_size(MAX_ANSWER))
    }

    /// Who it is.
    pub async fn version(&self) -> Result<VersionResponse, RuntimeError> {
        let request = VersionRequest { version: "v1".into() };
        Ok(in_time(self.0.clone().version(request)).await?.into_inner())
    }

    /// All pods.
    pub async fn pods(&self) -> Result<Vec<PodSandbox>, RuntimeError> {
        let answer = in_time(self.0.clone().list_pod_sandbox(ListPodSandboxRequest {})).await?;
        Ok(answer.into_inner().items)
    }

    /// All containers, also those that have ended.
    pub async fn containers(&self) -> Result<Vec<Container>, RuntimeError> {
        let answer = in_time(self.0.clone().list_containers(ListContainersRequest {})).await?;
        Ok(answer.into_inner().containers)
    }
}
