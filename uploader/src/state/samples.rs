//! From a sample of the collector's to the window.

use std::{collections::HashMap, sync::Arc, time::Instant};

use ipc::{KernelFrame, Sample, UserFrame};
use records::{MAX_KERNEL_FRAMES, MAX_USER_FRAMES};

use super::State;
use crate::{
    executables::ExecutableKey,
    printable::printable,
    processes::JitKey,
    profile::{Frame, Thread},
    targets::Origin,
};

/// Most names of threads that are kept for a window; more are made anew each time.
const MAX_THREAD_NAMES: usize = 8192;

/// Names of threads, made text once.
#[derive(Debug, Default)]
pub(super) struct ThreadNames(HashMap<Vec<u8>, Arc<str>>);

impl ThreadNames {
    fn get(&mut self, name: &[u8]) -> Arc<str> {
        if let Some(name) = self.0.get(name) {
            return Arc::clone(name);
        }
        let text: Arc<str> = printable(name).into();
        if self.0.len() < MAX_THREAD_NAMES {
            self.0.insert(name.to_vec(), Arc::clone(&text));
        }
        text
    }
}

impl State {
    pub(super) fn sample(&mut self, sample: &Sample, now: Instant) {
        self.counts.samples += 1;
        let guessed = sample.guessed > 0;
        self.counts.samples_guessed += u64::from(guessed);
        let origin = self.processes.origin(sample.process, &self.maker).unwrap_or_else(|| {
            self.counts.samples_unknown_process += 1;
            Arc::new(Origin { comm: printable(&sample.thread_comm), ..Origin::default() })
        });
        if !self.maker.keeps(&origin) {
            self.counts.samples_not_selected += 1;
            return;
        }
        let frames = self.frames(sample);
        let name = self.thread_labels.then(|| self.thread_names.get(&sample.thread_comm));
        let thread = name.map(|name| Thread { id: sample.tid, name });
        if self.window.add(&origin, &frames, thread, sample.end, guessed) {
            self.prepare(&frames, now);
        }
    }

    /// The frames as they are looked up: kernel first, innermost first.
    fn frames(&mut self, sample: &Sample) -> Vec<Frame> {
        let kernel = sample.kernel.iter().take(MAX_KERNEL_FRAMES).enumerate();
        let kernel = kernel.map(|(index, frame)| self.kernel_frame(*frame, index > 0));
        let mut frames: Vec<_> = kernel.collect();
        for (index, frame) in sample.user.iter().take(MAX_USER_FRAMES).enumerate() {
            let call = u64::from(index > 0);
            frames.push(match *frame {
                UserFrame::File(id, offset) => {
                    let key = self.executables.key(id).unwrap_or_else(|| {
                        self.counts.frames_unknown_executable += 1;
                        ExecutableKey::UNKNOWN
                    });
                    Frame::File(key, offset.0.saturating_sub(call))
                }
                UserFrame::Anonymous(address) => {
                    // A process that is not known has no perf map either.
                    let key = self.processes.jit(sample.process, || self.jit.make_key()).unwrap_or(JitKey(0));
                    Frame::Anonymous(key, address.0.saturating_sub(call))
                }
            });
        }
        frames
    }

    fn kernel_frame(&self, frame: KernelFrame, is_return_address: bool) -> Frame {
        match frame {
            KernelFrame::Known(module, offset) => match self.modules.number(module) {
                Some(number) => Frame::Kernel(number, offset.saturating_sub(u64::from(is_return_address))),
                None => Frame::UnknownKernel,
            },
            KernelFrame::Unknown => Frame::UnknownKernel,
        }
    }

    /// Asks for the files that the names of a new stack will need while its process still lives.
    fn prepare(&mut self, frames: &[Frame], now: Instant) {
        for frame in frames {
            if let Frame::File(key, offset) = frame
                && !self.names.contains(*key, *offset)
            {
                // Used: not to be forgotten.
                self.executables.get_mut(*key);
                if self.needs_file(*key, now) {
                    self.ask_for_file(*key, now);
                }
            }
        }
    }
}
