//! Content that is sent to an address that the server names, by HTTP PUT: a store of objects behind it takes it. The address is as good
//! as a password, and is in no log.

use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Method, Request, Uri,
    body::{Bytes, Frame},
    header::CONTENT_LENGTH,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::{copy::Copy, upload::pieces};
use crate::store::parca::{Failure, Parca};

/// Bytes of an answer that are looked at.
const MAX_ANSWER: usize = 300;

/// To which addresses content may be sent.
#[derive(Clone, Debug)]
pub struct Allowed {
    /// Without TLS too.
    pub plain: bool,
    /// On these ports.
    pub ports: Vec<u16>,
}

/// Sends the content of a copy.
pub(super) async fn put(store: &Parca, url: &str, copy: &Copy, allowed: &Allowed) -> Result<(), Failure> {
    let refused = |text: &str| Failure::Refused(format!("the address for the upload {text}"));
    let uri: Uri = url.parse().map_err(|_| refused("is none"))?;
    let host = uri.host().ok_or_else(|| refused("has no host"))?.to_owned();
    let default_port = match uri.scheme_str() {
        Some("https") => 443,
        Some("http") if allowed.plain => 80,
        _ => return Err(refused(&format!("(on {host}) is without TLS, which --insecure alone allows"))),
    };
    let port = uri.port_u16().unwrap_or(default_port);
    if !allowed.ports.contains(&port) {
        return Err(refused(&format!(
            "(on {host}) is on port {port}, which --debug-info-upload-port does not allow"
        )));
    }
    let later = |text: String| Failure::Later("none", format!("{host}: {text}"));
    let pieces = ReceiverStream::new(pieces(copy, Bytes::from));
    let body = StreamBody::new(pieces.map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(piece))));
    let request = Request::builder()
        .method(Method::PUT)
        .uri(uri.clone())
        .header(CONTENT_LENGTH, copy.size)
        .body(body)
        .map_err(|error| later(error.to_string()))?;
    let client = store.http_client(&uri).map_err(|error| later(error.to_string()))?;
    let answer = client.request(request).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        later(format!("{error}{cause}"))
    })?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let mut body = answer.into_body();
    while let Some(Ok(frame)) = body.frame().await {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if text.len() > MAX_ANSWER {
            text.truncate(MAX_ANSWER);
            break;
        }
    }
    Err(later(format!("{status}: {}", crate::printable::printable(&text))))
}
