//! The Container Runtime Interface: three calls. Any other is answered `Unimplemented` by the generated server, which does not know it.

use std::sync::Arc;

use proto::cri::{
    ListContainersRequest, ListContainersResponse, ListPodSandboxRequest, ListPodSandboxResponse,
    VersionRequest, VersionResponse,
    runtime_service_server::{RuntimeService, RuntimeServiceServer},
};
use runtimes::{Cri, MAX_ANSWER, PROXY, RuntimeError};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status, async_trait};

/// Longest request, in bytes: all of them are empty, or nearly so.
const MAX_REQUEST: usize = 4096;

/// One call at a time for each connection, so that the runtime has no more work than that.
#[derive(Debug)]
pub(crate) struct Lists(Mutex<Cri>);

/// What a connection is answered by.
pub(crate) fn service(cri: Cri) -> RuntimeServiceServer<Lists> {
    RuntimeServiceServer::from_arc(Arc::new(Lists(Mutex::new(cri))))
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(MAX_ANSWER)
}

fn status(error: RuntimeError) -> Status {
    match error {
        RuntimeError::Cri(message, code) => Status::new(code, message),
        other => Status::unavailable(other.to_string()),
    }
}

#[async_trait]
impl RuntimeService for Lists {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        let version = self.0.lock().await.version().await.map_err(status)?;
        let runtime_name = version.runtime_name + PROXY;
        Ok(Response::new(VersionResponse { runtime_name, ..version }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let items = self.0.lock().await.pods().await.map_err(status)?;
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let containers = self.0.lock().await.containers().await.map_err(status)?;
        Ok(Response::new(ListContainersResponse { containers }))
    }
}
