//! Telling the uploader, if there is one. A session that fails ends here, and is counted.

use std::os::fd::OwnedFd;

use ipc::{CollectorEnd, FromCollector, FromUploader, Process, Sample};
use records::Loss;

use crate::{
    counters::Losses,
    logger,
    session::{Session, SessionError},
};

/// The place of the one uploader.
#[derive(Default)]
pub(crate) struct Link {
    session: Option<Session>,
    sessions: u32,
    /// Whether what processes and threads call themselves stays here.
    hides_names: bool,
}

impl Link {
    /// No session yet.
    pub(crate) fn new(command_names: bool) -> Self {
        Link { hides_names: !command_names, ..Link::default() }
    }

    /// The number of the session, if there is one. Numbers begin at 1.
    pub(crate) fn session(&self) -> Option<u32> {
        self.session.as_ref().map(|session| session.number)
    }

    /// An uploader has greeted.
    pub(crate) fn begin(&mut self, channel: CollectorEnd) {
        self.sessions = self.sessions.wrapping_add(1).max(1);
        self.session = Some(Session::new(self.sessions, channel));
    }

    /// The session is over.
    pub(crate) fn end(&mut self, reason: &SessionError, losses: &mut Losses) {
        if let Some(session) = self.session.take() {
            losses.add(Loss::NoUploader, session.unsent_samples());
            logger::sparingly(log::Level::Info, format_args!("the uploader is gone: {reason}"));
        }
    }

    /// Tells the uploader, if there is one.
    pub(crate) fn tell(&mut self, message: &FromCollector, file: Option<OwnedFd>, losses: &mut Losses) {
        let nameless;
        let message = match message {
            FromCollector::Comm(_) if self.hides_names => return,
            FromCollector::Process(process) if self.hides_names => {
                nameless = FromCollector::Process(Process { comm: Vec::new(), ..process.clone() });
                &nameless
            }
            other => other,
        };
        if let Some(session) = &mut self.session
            && let Err(error) = session.push(message, file, losses)
        {
            self.end(&error, losses);
        }
    }

    /// Whether there is an uploader, and room for what it need not know yet.
    pub(crate) fn has_room_to_spare(&self) -> bool {
        self.session.as_ref().is_some_and(Session::has_room_to_spare)
    }

    /// Passes a sample on, or counts it as lost.
    pub(crate) fn sample(&mut self, mut sample: Sample, losses: &mut Losses) {
        if self.hides_names {
            sample.thread_comm.clear();
        }
        match &mut self.session {
            Some(session) => {
                if let Err(error) = session.push_sample(sample, losses) {
                    losses.add(Loss::NoUploader, 1);
                    self.end(&error, losses);
                }
            }
            None => losses.add(Loss::NoUploader, 1),
        }
    }

    /// Passes on what is in the batch.
    pub(crate) fn flush(&mut self, losses: &mut Losses) {
        if let Some(session) = &mut self.session
            && let Err(error) = session.flush_batch(losses)
        {
            self.end(&error, losses);
        }
    }

    /// Sends what waits, until the uploader asks for something; without an uploader, waits for ever. Cancel-safe.
    pub(crate) async fn next_request(&mut self) -> Result<FromUploader, SessionError> {
        match &mut self.session {
            Some(session) => session.next_request().await,
            None => std::future::pending().await,
        }
    }

    /// Whether the uploader may have an answer now.
    pub(crate) fn may_ask(&mut self, now: u64) -> bool {
        self.session.as_mut().is_some_and(|session| session.may_ask(now))
    }
}
