//! From the command line to the lockdown, in one ordered function: everything that needs privilege is made first, then
//! the privilege is given up, and only then is anything heard from outside.

use std::io;

use ipc::{Limitation, Welcome};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use security::{Capability, SocketError, Supervisor};
use thiserror::Error;
use tokio_seqpacket::UnixSeqpacketListener;

use crate::{
    flags::Flags,
    kernel_events::{KernelEvents, KernelEventsError},
    kernel_symbols::KernelText,
    policy,
    profiler::{Parts, Profiler},
    programs::{self, Machine, Programs, ProgramsError},
    serve::{self, Stop, Wake},
    socket, vdso,
};

#[derive(Debug, Error)]
pub(crate) enum SetupError {
    #[error(transparent)]
    User(#[from] security::UserError),
    #[error(transparent)]
    Capability(#[from] security::CapabilityError),
    #[error(transparent)]
    Process(#[from] security::ProcessError),
    #[error(transparent)]
    SystemCalls(#[from] security::SeccompError),
    #[error(
        "not enough privilege: {} {} missing; start the collector as root, or as a user with the capabilities that --help lists", .0, if .0.contains(',') { "are" } else { "is" }
    )]
    Privilege(String),
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    #[error(transparent)]
    KernelEvents(#[from] KernelEventsError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("cannot look at this machine: {0}; is /proc mounted?")]
    Machine(#[source] io::Error),
    #[error("cannot read the kernel's symbols: {0}")]
    KernelSymbols(#[source] io::Error),
    #[error("cannot read /proc: {0}")]
    Scan(#[source] io::Error),
    #[error(transparent)]
    Supervisor(io::Error),
    #[error("cannot wait for the kernel's records and for signals: {0}")]
    Wake(#[source] io::Error),
}

/// What is left after the start: no capability but those of [`policy::KEPT`].
pub(crate) struct Ready {
    pub(crate) profiler: Profiler,
    pub(crate) listener: UnixSeqpacketListener,
    pub(crate) uploader: u32,
    pub(crate) wake: Wake,
    pub(crate) stop: Stop,
    pub(crate) supervisor: Supervisor,
    /// Kernel addresses were hidden at the start, and this process would be allowed to read them.
    pub(crate) waits_for_kernel_addresses: bool,
}

pub(crate) fn start(flags: &Flags) -> Result<Ready, SetupError> {
    let uploader = security::uid_of(&flags.uploader_user)?;
    check_privilege()?;
    let limitations = Limitations::find()?;
    raise_file_limit();

    let machine = Machine::look().map_err(SetupError::Machine)?;
    let (mut programs, shared) = programs::start(&machine, flags.sampling_frequency, flags.table_memory)?;
    let kernel_events = KernelEvents::open(&programs.cpus)?;
    let mut kernel_text = KernelText::open().map_err(SetupError::KernelSymbols)?;
    let kernel_symbols = kernel_text.read().map_err(SetupError::KernelSymbols)?;
    let vdso = vdso::copy().inspect_err(|error| log::warn!("frames in the vdso have no names: {error}")).ok();
    let wake = Wake::new(&programs, &kernel_events).map_err(SetupError::Wake)?;
    let listener = socket::listen(&flags.socket)?;
    let supervisor = Supervisor::of_environment().map_err(SetupError::Supervisor)?;
    let stop = Stop::listen().map_err(SetupError::Wake)?;
    let may_read_addresses = !limitations.no_syslog;
    // Known from now on: where the library finds it (/proc/self/auxv) is beyond the fence.
    let _ = rustix::param::page_size();
    let fence = programs.put_up_fence();
    let mut welcome =
        limitations.welcome(&machine, &programs, flags.sampling_frequency, kernel_symbols.is_some());
    if let Err(error) = fence {
        log::warn!(
            "this process, if it were taken over, could read any file: the fence of a BPF LSM program is not there: {error}"
        );
        welcome.limitations.push(Limitation::NoFence);
    }
    let command_names = flags.command_names;
    let parts =
        Parts { programs, shared, kernel_events, kernel_text, kernel_symbols, vdso, welcome, command_names };

    // From here on nothing can be loaded, attached or opened that needs more than this.
    security::keep_exactly(&policy::KEPT.map(|(capability, _)| capability))?;
    security::harden()?;
    security::allow_only(policy::CALLS)?;

    let waits_for_kernel_addresses = parts.kernel_symbols.is_none() && may_read_addresses;
    let profiler = Profiler::new(parts, serve::now()).map_err(SetupError::Scan)?;
    security::give_back_memory();
    log::info!(
        "sampling {} CPUs {} times a second; listening on {} for user {} ({uploader})",
        profiler.cpus().len(),
        flags.sampling_frequency,
        flags.socket.display(),
        flags.uploader_user,
    );
    supervisor.ready();
    Ok(Ready { profiler, listener, uploader, wake, stop, supervisor, waits_for_kernel_addresses })
}

/// What must be there is there, or is named.
fn check_privilege() -> Result<(), SetupError> {
    let missing = security::missing(&policy::NEEDED_AT_START.map(|(capability, _)| capability))?;
    if missing.is_empty() {
        return Ok(());
    }
    let named = policy::NEEDED_AT_START.iter().filter(|(capability, _)| missing.contains(capability));
    let named: Vec<String> =
        named.map(|(capability, reason)| format!("{capability} (to {reason})")).collect();
    Err(SetupError::Privilege(named.join(", ")))
}

/// What this collector will have to do without.
struct Limitations {
    no_syslog: bool,
    cannot_open: bool,
}

impl Limitations {
    fn find() -> Result<Self, SetupError> {
        let no_syslog = !security::missing(&[policy::READS_KERNEL_ADDRESSES])?.is_empty();
        let missing = security::missing(&policy::KEPT.map(|(capability, _)| capability))?;
        for (capability, reason) in policy::KEPT.iter().filter(|(capability, _)| missing.contains(capability))
        {
            log::warn!("{capability} is missing (to {reason}): other users' programs have no names");
        }
        Ok(Limitations { no_syslog, cannot_open: !missing.is_empty() })
    }

    fn welcome(
        &self,
        machine: &Machine,
        programs: &Programs,
        frequency: u32,
        kernel_symbols: bool,
    ) -> Welcome {
        let mut limitations = Vec::new();
        if !kernel_symbols {
            let reason = if self.no_syslog {
                format!("{} is missing, or kernel.kptr_restrict is 2", Capability::CAP_SYSLOG)
            } else {
                "kernel.kptr_restrict is 2 (1 is enough to hide them from others)".into()
            };
            log::warn!("kernel frames have no names, since the kernel hides its addresses: {reason}");
            limitations.push(Limitation::KernelAddressesHidden);
        }
        if machine.pid_namespace.is_some() {
            log::warn!(
                "running in a pid namespace: the processes of that namespace are seen, no others of the host"
            );
            limitations.push(Limitation::PidNamespace);
        }
        if self.cannot_open {
            limitations.push(Limitation::ExecutablesNotOpened);
        }
        Welcome {
            epoch: u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs()) << 32
                ^ serve::now(),
            sampling_frequency: frequency,
            cpus: u32::try_from(programs.cpus.len()).unwrap_or(u32::MAX),
            kernel_release: machine.release.clone(),
            limitations,
        }
    }
}

/// Two files for each CPU, and those that wait to be passed on: more than the usual soft limit on a large machine.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}
