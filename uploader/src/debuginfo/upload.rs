//! The conversation about one build: `parca.debuginfo.v1alpha1.DebuginfoService`.

use std::{sync::Arc, time::Duration};

use objects::{FileId, IdKind};
use proto::debuginfo::{
    BuildIdType, DebuginfoType, InitiateUploadRequest, MarkUploadFinishedRequest,
    ShouldInitiateUploadRequest, UploadInfo, UploadInstructions, UploadRequest,
    upload_instructions::UploadStrategy, upload_request::Data,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

use super::{
    content::{self, Rate},
    copy::Copy,
    signed_url::{self, Allowed},
};
use crate::store::parca::{Failure, Parca, failure};

/// Most characters of a server's words that are shown.
const MAX_TEXT: usize = 300;
/// How long a call without content may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// What has become of a build.
#[derive(Debug)]
pub(super) enum Decision {
    /// The server has it now; bytes that were sent.
    Sent(u64),
    /// It has it already, or wants none, for this reason.
    NotWanted(String),
    /// It is to be asked again later, for this reason.
    Later(String),
}

/// Sends copies.
#[derive(Debug)]
pub(super) struct Uploader {
    store: Arc<Parca>,
    /// Where content may be sent by HTTP.
    allowed: Allowed,
    rate: Rate,
}

impl Uploader {
    pub(super) fn new(store: Arc<Parca>, allowed: Allowed, rate: Rate) -> Self {
        Uploader { store, allowed, rate }
    }

    /// Asks whether the server wants it. `None`: it does.
    pub(super) async fn ask(&self, id: &FileId, force: bool) -> Result<Option<Decision>, Failure> {
        let request = ShouldInitiateUploadRequest {
            build_id: id.to_string(),
            hash: String::new(),
            force,
            r#type: DebuginfoType::DebuginfoUnspecified.into(),
            build_id_type: kind(id).into(),
        };
        let request = self.store.request(request, CALL_LIMIT);
        let mut client = self.store.debuginfo().await?;
        let answer = self.store.noted(CALL_LIMIT, client.should_initiate_upload(request)).await?.into_inner();
        if answer.should_initiate_upload {
            return Ok(None);
        }
        let reason = text(&answer.reason);
        // The only reason for which time makes a difference.
        let is_in_progress = reason.contains("in progress") || reason.contains("in-progress");
        Ok(Some(if is_in_progress { Decision::Later(reason) } else { Decision::NotWanted(reason) }))
    }

    /// Sends it.
    pub(super) async fn send(&self, id: &FileId, copy: &Copy, force: bool) -> Result<Decision, Failure> {
        let request = InitiateUploadRequest {
            build_id: id.to_string(),
            size: i64::try_from(copy.size).unwrap_or(i64::MAX),
            hash: copy.hash.clone(),
            force,
            r#type: DebuginfoType::DebuginfoUnspecified.into(),
            build_id_type: kind(id).into(),
        };
        let request = self.store.request(request, CALL_LIMIT);
        let mut client = self.store.debuginfo().await?;
        let answer = match self.store.answer(CALL_LIMIT, client.initiate_upload(request)).await {
            Err(status) if has_it(&status) => return Ok(Decision::NotWanted(text_of(&status))),
            Err(status) if status.code() == Code::FailedPrecondition => {
                return Ok(Decision::Later(text_of(&status)));
            }
            answer => answer.map_err(|status| failure(&status))?.into_inner(),
        };
        let Some(instructions) = answer.upload_instructions else {
            return Err(Failure::Refused("the server's answer has no instructions for the upload".into()));
        };
        match instructions.upload_strategy() {
            UploadStrategy::Grpc => {
                if let Some(decision) = self.by_grpc(&instructions, copy).await? {
                    return Ok(decision);
                }
            }
            UploadStrategy::SignedUrl => {
                signed_url::put(&self.store, &instructions.signed_url, copy, &self.allowed, self.rate)
                    .await?;
            }
            UploadStrategy::Unspecified => {
                let text = "the server asks for an upload in a way that this release does not know";
                return Err(Failure::Refused(text.into()));
            }
        }
        let request = MarkUploadFinishedRequest {
            build_id: instructions.build_id,
            upload_id: instructions.upload_id,
            r#type: instructions.r#type,
        };
        let request = self.store.request(request, CALL_LIMIT);
        let mut client = self.store.debuginfo().await?;
        match self.store.noted(CALL_LIMIT, client.mark_upload_finished(request)).await {
            Ok(_) => Ok(Decision::Sent(copy.size)),
            // Somebody else has begun the same meanwhile.
            Err(Failure::Refused(reason)) => Ok(Decision::Later(reason)),
            Err(failure) => Err(failure),
        }
    }

    async fn by_grpc(
        &self,
        instructions: &UploadInstructions,
        copy: &Copy,
    ) -> Result<Option<Decision>, Failure> {
        let info = UploadInfo {
            build_id: instructions.build_id.clone(),
            upload_id: instructions.upload_id.clone(),
            r#type: instructions.r#type,
        };
        let limit = self.rate.limit(copy.size);
        let mut client = self.store.debuginfo().await?;
        let (rest, progress) = content::pieces(copy, self.rate, Data::ChunkData);
        let all = tokio_stream::once(Data::Info(info)).chain(rest);
        let request = self.store.request(all.map(|data| UploadRequest { data: Some(data) }), limit);
        let call = async {
            tokio::select! {
                answer = client.upload(request) => answer,
                words = progress.stalled() => Err(Status::deadline_exceeded(words)),
            }
        };
        let answer = self.store.answer(limit, call).await;
        match answer {
            Err(status) if has_it(&status) => Ok(Some(Decision::NotWanted(text_of(&status)))),
            // It does not know of this upload, or has it already: the next question tells.
            Err(status) if status.code() == Code::FailedPrecondition => {
                Ok(Some(Decision::Later(text_of(&status))))
            }
            answer => {
                let size = answer.map_err(|status| failure(&status))?.into_inner().size;
                if size == copy.size {
                    return Ok(None);
                }
                Err(Failure::Later("none", format!("the server got {size} bytes of {}", copy.size)))
            }
        }
    }
}

fn kind(id: &FileId) -> BuildIdType {
    match id.kind {
        IdKind::Gnu => BuildIdType::Gnu,
        IdKind::Go => BuildIdType::Go,
        IdKind::Hash => BuildIdType::Hash,
    }
}

/// A server's words, on one line and not without end.
fn text(words: &str) -> String {
    crate::printable::printable(words.chars().take(MAX_TEXT).collect::<String>().as_bytes())
}

fn text_of(status: &Status) -> String {
    text(status.message())
}

fn has_it(status: &Status) -> bool {
    status.code() == Code::AlreadyExists
}
