//! Which system calls a process may make from now on (seccomp(2)). Whatever is not allowed ends the process, and is named in its
//! log.
#![expect(unsafe_code, reason = "a signal handler, which names the call that was refused")]

use std::{collections::BTreeMap, io, mem, ptr};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use thiserror::Error;

use crate::system_calls;

/// A system call of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its name, as in its manual page.
    pub name: &'static str,
    /// With which arguments: all of this holds. Nothing: with any.
    pub only: &'static [Only],
    /// Who makes it, and what for.
    pub reason: &'static str,
}

impl Call {
    /// A line of a policy.
    #[must_use]
    pub const fn new(name: &'static str, only: &'static [Only], reason: &'static str) -> Self {
        Call { name, only, reason }
    }
}

/// With which arguments a call is allowed. Arguments count from 0; of each the low 32 bits are compared.
#[derive(Clone, Copy, Debug)]
pub enum Only {
    /// The argument has none of these bits.
    Without(u8, u32),
    /// The argument has all of these bits.
    With(u8, u32),
    /// The argument is one of these.
    OneOf(u8, &'static [u32]),
    /// The argument is not this.
    Not(u8, u32),
    /// The argument is the id of this process.
    Own(u8),
    /// With none: it fails with this error, and whoever tries it goes on without.
    Fails(i32),
}

impl Only {
    /// Of mmap(2) and mprotect(2): memory that is not executable.
    pub const NOT_EXECUTABLE: Only = Only::Without(2, libc::PROT_EXEC.cast_unsigned());
    /// Of mmap(2): memory without a file.
    pub const ANONYMOUS: Only = Only::With(3, libc::MAP_ANONYMOUS.cast_unsigned());
}

/// A policy could not be put in force.
#[derive(Debug, Error)]
pub enum SeccompError {
    /// The policy itself is at fault.
    #[error("the policy of system calls is wrong: {0}")]
    Policy(String),
    /// The kernel refused.
    #[error(
        "cannot restrict system calls: {0}; the kernel needs CONFIG_SECCOMP_FILTER, which every distribution has"
    )]
    Kernel(String),
    /// The handler that names refused calls could not be set.
    #[error("cannot handle SIGSYS: {0}")]
    Handler(io::Error),
}

/// Exit status of a process that made a call which is not allowed: what a shell says of one that SIGSYS ended.
pub const REFUSED: i32 = 128 + libc::SIGSYS;

/// Allows these calls alone, for all threads of this process and for good. Needs `no_new_privs`.
pub fn allow_only(policy: &[Call]) -> Result<(), SeccompError> {
    let programs = compile(policy)?;
    // Has rustix read what the kernel told this process at its start (getauxval(3)). It would do so when something of it is first asked for, by
    // prctl(2), and before Linux 6.4 by open(2).
    let _ = rustix::param::page_size();
    if cfg!(feature = "no-seccomp") {
        return Ok(());
    }
    handle_refusals().map_err(SeccompError::Handler)?;
    for program in programs {
        seccompiler::apply_filter_all_threads(&program)
            .map_err(|error| SeccompError::Kernel(error.to_string()))?;
    }
    Ok(())
}

/// One filter for each error that calls may fail with, and the list of all that are allowed, which comes last: it may not allow
/// seccomp(2) itself. Of several the kernel takes what the strictest says.
fn compile(policy: &[Call]) -> Result<Vec<BpfProgram>, SeccompError> {
    let fault = |error: String| SeccompError::Policy(error);
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut failing: BTreeMap<i32, BTreeMap<i64, Vec<SeccompRule>>> = BTreeMap::new();
    for call in policy {
        let number = system_calls::number(call.name).ok_or_else(|| fault(format!("no {:?}", call.name)))?;
        let rules = rules(call.only).map_err(|error| fault(format!("{}: {error}", call.name)))?;
        for only in call.only {
            if let Only::Fails(errno) = only {
                failing.entry(*errno).or_default().insert(number, Vec::new());
            }
        }
        if allowed.insert(number, rules).is_some() {
            return Err(fault(format!("{} is there twice", call.name)));
        }
    }
    if allowed.is_empty() {
        return Err(fault("it is empty".into()));
    }
    let program = |rules, otherwise, then| {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| fault(error.to_string()))?;
        let filter = SeccompFilter::new(rules, otherwise, then, arch);
        filter.and_then(BpfProgram::try_from).map_err(|error| fault(error.to_string()))
    };
    let mut programs = Vec::new();
    for (errno, calls) in failing {
        programs.push(program(calls, SeccompAction::Allow, SeccompAction::Errno(errno.unsigned_abs()))?);
    }
    programs.push(program(allowed, SeccompAction::Trap, SeccompAction::Allow)?);
    Ok(programs)
}

/// The rules of which one must hold; none: with any arguments.
fn rules(only: &[Only]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let mut alternatives: Vec<Vec<SeccompCondition>> = vec![Vec::new()];
    for only in only {
        let conditions = conditions(*only)?;
        let with = |before: &Vec<SeccompCondition>, condition: &SeccompCondition| {
            before.iter().chain([condition]).cloned().collect::<Vec<_>>()
        };
        if !conditions.is_empty() {
            let each = |before| conditions.iter().map(move |condition| with(before, condition));
            alternatives = alternatives.iter().flat_map(each).collect();
        }
    }
    alternatives.into_iter().filter(|conditions| !conditions.is_empty()).map(SeccompRule::new).collect()
}

/// The conditions of which one must hold.
fn conditions(only: Only) -> Result<Vec<SeccompCondition>, seccompiler::BackendError> {
    let one = |argument, comparison, value: u32| {
        SeccompCondition::new(argument, Dword, comparison, value.into()).map(|condition| vec![condition])
    };
    let masked = |bits: u32| SeccompCmpOp::MaskedEq(bits.into());
    match only {
        Only::Fails(_) => Ok(Vec::new()),
        Only::Without(argument, bits) => one(argument, masked(bits), 0),
        Only::With(argument, bits) => one(argument, masked(bits), bits),
        Only::Not(argument, value) => one(argument, SeccompCmpOp::Ne, value),
        Only::Own(argument) => one(argument, SeccompCmpOp::Eq, std::process::id()),
        Only::OneOf(argument, values) => {
            let each = values.iter().map(|value| one(argument, SeccompCmpOp::Eq, *value));
            Ok(each.collect::<Result<Vec<_>, _>>()?.concat())
        }
    }
}

fn handle_refusals() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = refused;
    // SAFETY: the structure is valid when all of it is zero; the handler has the form that SA_SIGINFO asks for, and does only
    // what signal-safety(7) allows.
    let result = unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs in the place of the call that was refused (`SECCOMP_RET_TRAP`: the number is in rax, as the call had it).
extern "C" fn refused(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel gives the handler a `ucontext_t` (sigaction(2)).
    let number = unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RAX as usize] };
    let mut digits = [0; 20];
    for text in [
        "this process made the system call ",
        system_calls::name(number).unwrap_or("number "),
        " (",
        decimal(number.unsigned_abs(), &mut digits),
        "), which no part of it needs: refused, and the process ends\n",
    ] {
        // SAFETY: writes from a string that lives until then; both calls are safe in a signal handler.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }
    // SAFETY: as above.
    unsafe { libc::_exit(REFUSED) };
}

/// A number in decimal, without an allocation.
fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &str {
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 || first == 0 {
            return std::str::from_utf8(&digits[first..]).unwrap_or("?");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &'static str, only: &'static [Only]) -> Call {
        Call { name, only, reason: "a test" }
    }

    #[test]
    fn a_policy_that_cannot_be_meant_is_refused() {
        for wrong in [
            &[][..],
            &[call("no such call", &[])],
            &[call("read", &[]), call("read", &[Only::Own(0)])],
            &[call("read", &[Only::Own(6)])],
        ] {
            assert!(matches!(allow_only(wrong), Err(SeccompError::Policy(_))), "{wrong:?}");
        }
        let fine = [
            call("read", &[]),
            call("ioctl", &[Only::Fails(libc::ENOTTY)]),
            call("bpf", &[Only::Fails(1)]),
            call("mmap", &[Only::Without(2, 4), Only::With(3, 0x20), Only::OneOf(0, &[1, 2])]),
        ];
        assert_eq!(compile(&fine).unwrap().len(), 3, "one for each error, and the list");
    }

    #[test]
    fn numbers_are_written_without_an_allocation() {
        for number in [0, 7, 10, 321, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string());
        }
    }
}
