//! Content that is sent to an address that the server names, by HTTP PUT: a store of objects behind it takes it. The address is as good
//! as a password, and is in no log.

use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    Method, Request, Uri,
    body::{Bytes, Frame},
    header::CONTENT_LENGTH,
};
use tokio_stream::StreamExt as _;

use super::{
    content::{self, Rate},
    copy::Copy,
};
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
pub(super) async fn put(
    store: &Parca,
    url: &str,
    copy: &Copy,
    allowed: &Allowed,
    rate: Rate,
) -> Result<(), Failure> {
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
    // Perhaps it is the size of this one: others are tried meanwhile.
    let of_this = |text: String| Failure::Stumbles("none", format!("{host}: {text}"));
    let (pieces, progress) = content::pieces(copy, rate, Bytes::from);
    let body = StreamBody::new(pieces.map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(piece))));
    let request = Request::builder()
        .method(Method::PUT)
        .uri(uri.clone())
        .header(CONTENT_LENGTH, copy.size)
        .body(body)
        .map_err(|error| later(error.to_string()))?;
    let client = store.http_client(&uri).map_err(|error| later(error.to_string()))?;
    let exchange = async {
        let answer = client.request(request).await.map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            later(format!("{error}{cause}"))
        })?;
        accepted(answer).await.map_err(of_this)
    };
    tokio::select! {
        result = exchange => result,
        words = progress.stalled() => Err(of_this(words)),
        () = tokio::time::sleep(rate.limit(copy.size)) => Err(of_this("the upload took too long".to_owned())),
    }
}

/// Whether the answer says that the content was taken; if not, what it says.
async fn accepted(answer: hyper::Response<hyper::body::Incoming>) -> Result<(), String> {
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
    Err(format!("{status}: {}", crate::printable::printable(&text)))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use super::*;

    /// A host that takes the connection and then says nothing. The clock is the test's.
    #[tokio::test(start_paused = true)]
    async fn a_silent_host_is_given_up() {
        let line = ["bulkhead-uploader", "--store-address=a:1", "--insecure"];
        let store = Parca::open(&crate::flags::Flags::parse_line(line).unwrap().store).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let copy = Copy { file: Arc::new(file), size: 1000, hash: String::new() };
        let allowed = Allowed { plain: true, ports: vec![port] };
        let url = format!("http://127.0.0.1:{port}/a?signature=secret");
        let result = put(&store, &url, &copy, &allowed, Rate(1 << 20)).await;
        let Err(Failure::Stumbles(_, words)) = result else { panic!("{result:?}") };
        assert!(words.contains("no answer for") && !words.contains("secret"), "{words}");
    }
}
