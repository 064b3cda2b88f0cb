//! Names for the stacks of a window: asks the collector for the files that are missing, reads them on threads of their
//! own, and keeps what was found. Nothing here delays the samples that come in meanwhile.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use ipc::ExecutableKind;
use objects::ObjectError;
use tokio::{
    sync::mpsc,
    time::{sleep_until, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    debuginfo::{Candidate, Offers},
    executables::{DEVICE_PAUSE, Executable, ExecutableKey, Facts},
    processes::JitKey,
    profile::{ExecutableInfo, Frame, Names},
    rows,
    sparingly::warn_sparingly,
    state::{Job, Shared, State},
    symbols::{
        Answer, Function, JitQuestion, KernelNames, Line, Lines, Question, read_facts, read_kernel_symbols,
    },
    worker::JobError,
};

/// How long the facts of a file may take.
const FACTS_LIMIT: Duration = Duration::from_secs(2);
/// How long the names of one file may take.
const NAMES_LIMIT: Duration = Duration::from_secs(10);
/// How long the kernel's symbols may take.
const KERNEL_LIMIT: Duration = Duration::from_secs(30);
/// How long the collector's answers are waited for.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The names of a window take no longer than this.
const LONGEST: Duration = Duration::from_secs(30);
/// Executables that the collector is asked for in one window, only for their debug information.
const MAX_WANTED: usize = 8;
/// DWARF is read so seldom that it takes at most one part in so many of the time.
const DWARF_SHARE: u32 = 1000;

/// Reads something that came from the collector.
pub async fn run_job(shared: Arc<Shared>, job: Job) {
    match job {
        Job::Facts(key, kind, file) => {
            let result = shared.files.run(FACTS_LIMIT, move || read_facts(&file)).await;
            let now = Instant::now();
            let mut state = shared.state();
            let facts = match result {
                Ok(Ok(facts)) => Facts::Known(Arc::new(facts)),
                Ok(Err(error)) => {
                    state.counts.executables_unreadable += 1;
                    unreadable(&mut state, key, &error)
                }
                Err(error) => {
                    let path = path_of(&state, key);
                    warn_sparingly(format_args!("cannot read {path}: {error}; its frames have no names"));
                    not_done(&mut state, kind, &path, &error, now)
                }
            };
            let known = matches!(facts, Facts::Known(_));
            state.set_facts(key, facts);
            if !known {
                state.executables.close(key);
            }
            drop(state);
            shared.arrived.notify_waiters();
        }
        Job::Rows(session, id, path, file) => {
            rows::compute(&shared, session, id, &path, file).await;
            shared.state().rows_under_way.remove(&(session, id));
        }
        Job::KernelSymbols(file) => {
            let result = shared.files.run(KERNEL_LIMIT, move || read_kernel_symbols(&file)).await;
            match result {
                Ok(Ok(symbols)) => {
                    let mut state = shared.state();
                    let names = KernelNames::new(symbols, &state.modules);
                    info!("read {} kernel symbols", names.len());
                    state.kernel = Arc::new(names);
                }
                Ok(Err(error)) => no_kernel_symbols(&error),
                Err(error) => no_kernel_symbols(&error),
            }
        }
    }
}

fn no_kernel_symbols(error: &dyn std::error::Error) {
    warn!("cannot read the kernel's symbols: {error}; kernel frames have no names");
}

/// One warning for a file that should be readable and is not. What is no ELF file (a jit dump, a font) is no fault.
fn unreadable(state: &mut State, key: ExecutableKey, error: &ObjectError) -> Facts {
    let path = path_of(state, key);
    if matches!(error, ObjectError::NotElf) {
        debug!("{path} is no ELF file; its frames have no names");
    } else {
        warn_sparingly(format_args!("cannot read {path}: {error}; its frames have no names"));
    }
    if let Some(entry) = state.executables.get_mut(key) {
        entry.warned = true;
    }
    Facts::Unreadable(error.to_string().into())
}

/// What is known of a file that was not read to its end. That others' files are stuck is no fault of its own: it is tried again.
fn not_done(state: &mut State, kind: ExecutableKind, path: &str, error: &JobError, now: Instant) -> Facts {
    if matches!(error, JobError::TimedOut(_) | JobError::Hung(_)) {
        state.counts.executables_timed_out += 1;
    }
    // What takes long to read is its own fault, not that of all that lies beside it.
    if matches!(error, JobError::Hung(_)) && state.executables.strike(kind, now) {
        warn_sparingly(format_args!("the device of {path} hangs: nothing is read from it for ten minutes"));
    }
    match error {
        JobError::Refused | JobError::Busy => Facts::Unread,
        JobError::TimedOut(_) | JobError::Hung(_) => {
            Facts::Late(error.to_string().into(), now + DEVICE_PAUSE)
        }
        JobError::Panicked => Facts::Unreadable(error.to_string().into()),
    }
}

fn path_of(state: &State, key: ExecutableKey) -> Arc<str> {
    state.executables.get(key).map_or_else(|| "[unknown]".into(), |entry| Arc::clone(&entry.path))
}

/// Offsets in files, and addresses of code that is in none.
type PendingFiles = HashMap<ExecutableKey, BTreeSet<u64>>;
type PendingAnonymous = HashMap<JitKey, BTreeSet<u64>>;

/// What has to be looked up for some stacks.
#[derive(Debug, Default)]
struct Pending {
    files: PendingFiles,
    anonymous: PendingAnonymous,
    kernel: BTreeSet<(u16, u64)>,
}

/// The names of all frames of these stacks, as far as they are to be had.
///
/// What has no name within `limit` (30 s at most) stays without one: who maps what takes long to read must not keep everybody's windows from
/// being finished.
pub async fn names(shared: &Arc<Shared>, stacks: &[Arc<[Frame]>], limit: Duration) -> Names {
    let limit = limit.min(LONGEST);
    let mut pending = Pending::default();
    for frame in stacks.iter().flat_map(|stack| stack.iter()) {
        match *frame {
            Frame::File(key, offset) => _ = pending.files.entry(key).or_default().insert(offset),
            Frame::Anonymous(key, address) => _ = pending.anonymous.entry(key).or_default().insert(address),
            Frame::Kernel(module, offset) => _ = pending.kernel.insert((module, offset)),
            Frame::UnknownKernel | Frame::TooManyStacks => {}
        }
    }
    let mut names = Names::default();
    let used: Vec<_> = pending.files.keys().copied().collect();
    let deadline = Instant::now() + limit;
    take_cached(shared, &mut pending.files, &mut names);
    ask(shared, &pending, &used).await;
    let resolved = timeout(limit, async {
        let Pending { files, anonymous, .. } = &mut pending;
        let files = async {
            facts(shared, files, deadline).await;
            resolve_files(shared, files, &mut names).await;
        };
        // Names of code that is in no file are looked for meanwhile.
        tokio::join!(files, resolve_anonymous(shared, anonymous));
    });
    if resolved.await.is_err() {
        warn_sparingly(format_args!(
            "names were not found within {} s: some frames have none",
            limit.as_secs()
        ));
    }
    finish(shared, &used, &pending, &mut names);
    names
}

/// Takes what is known already out of what is to be looked up.
fn take_cached(shared: &Shared, files: &mut PendingFiles, names: &mut Names) {
    let mut state = shared.state();
    files.retain(|key, offsets| {
        offsets.retain(|offset| match state.names.get(*key, *offset) {
            Some(lines) => {
                names.lines.insert(Frame::File(*key, *offset), lines);
                false
            }
            None => true,
        });
        !offsets.is_empty()
    });
}

/// Asks for the files that are missing, and waits a moment for the answers.
async fn ask(shared: &Shared, pending: &Pending, used: &[ExecutableKey]) {
    let until = Instant::now() + ANSWER_LIMIT;
    {
        let mut state = shared.state();
        let now = Instant::now();
        for key in pending.files.keys() {
            if state.needs_file(*key, now) {
                state.ask_for_file(*key, now);
            }
        }
        // Also what has its names already, but not yet its debug information at the store.
        let wanted = used.iter().filter(|key| is_wanted(shared, &state, **key)).take(MAX_WANTED);
        for key in wanted.copied().collect::<Vec<_>>() {
            state.ask_for_file(key, now);
        }
        for (key, addresses) in &pending.anonymous {
            if state.jit.unresolved(*key, addresses, now).is_empty() {
                continue;
            }
            if let Some(process) = state.jit.to_ask(*key) {
                state.ask_for_perf_map(process, now);
            }
        }
    }
    loop {
        // Before the look, so that no answer comes between the two.
        let arrived = shared.arrived.notified();
        if shared.state().awaited.is_empty() {
            return;
        }
        tokio::select! {
            () = arrived => {}
            () = sleep_until(until.into()) => {
                // Never waited for again, even if they never come.
                shared.state().awaited.clear();
                return;
            }
        }
    }
}

/// Whether debug information is to be sent of an executable whose file is not here.
fn is_wanted(shared: &Shared, state: &State, key: ExecutableKey) -> bool {
    let (Some(offers), Some(entry)) = (&shared.debug_info, state.executables.get(key)) else { return false };
    entry.file.is_none() && entry.known().is_some_and(|facts| offers.wants(facts, &entry.path))
}

/// Offers an executable that has been in a profile, while its file is open.
fn offer(offers: &Offers, entry: &Executable) {
    let (Some(facts), Some(file)) = (entry.known(), &entry.file) else { return };
    if offers.wants(facts, &entry.path) {
        let (facts, file, path) = (Arc::clone(facts), Arc::clone(file), Arc::clone(&entry.path));
        offers.offer(Candidate { path, facts, file });
    }
}

/// Waits until the facts of all files that are here were read.
async fn facts(shared: &Arc<Shared>, files: &PendingFiles, deadline: Instant) {
    for key in files.keys() {
        let job = shared.state().read_facts_now(*key, Instant::now());
        if let Some(job) = job {
            tokio::spawn(run_job(Arc::clone(shared), job));
        }
    }
    loop {
        let arrived = shared.arrived.notified();
        let reading = |key: &ExecutableKey| {
            shared.state().executables.get(*key).is_some_and(|entry| matches!(entry.facts, Facts::Reading))
        };
        if !files.keys().any(reading) {
            return;
        }
        tokio::select! {
            () = arrived => {}
            () = sleep_until(deadline.into()) => return,
        }
    }
}

/// What takes longer than anybody waits goes on, for the next window.
async fn resolve_files(shared: &Arc<Shared>, files: &mut PendingFiles, names: &mut Names) {
    let mut tried = HashSet::new();
    loop {
        // Before the look at what is under way, so that no end comes between the two.
        let arrived = shared.arrived.notified();
        let (done, mut answers) = mpsc::unbounded_channel();
        for (key, offsets) in &*files {
            // It may be under way for another window, which has it soon.
            if tried.contains(key) || !shared.state().begin_naming(*key) {
                continue;
            }
            tried.insert(*key);
            match question(shared, *key, offsets) {
                Some(question) => _ = tokio::spawn(name(Arc::clone(shared), *key, question, done.clone())),
                None => _ = shared.state().naming.remove(key),
            }
        }
        drop(done);
        while let Some((key, lines)) = answers.recv().await {
            names.lines.extend(lines);
            files.remove(&key);
        }
        if files.keys().all(|key| tried.contains(key)) {
            return;
        }
        arrived.await;
        take_cached(shared, files, names);
    }
}

/// Reads the names of an executable, keeps them, and tells whoever waits.
async fn name(
    shared: Arc<Shared>,
    key: ExecutableKey,
    question: Question,
    done: mpsc::UnboundedSender<(ExecutableKey, Vec<(Frame, Lines)>)>,
) {
    let kind = shared.state().executables.get(key).map(|entry| entry.kind);
    // Its device may have been found to hang since.
    let is_closed = kind.is_some_and(|kind| shared.state().executables.is_closed(kind, Instant::now()));
    let answer = if is_closed {
        Err(JobError::Refused)
    } else {
        shared.names.run(NAMES_LIMIT, move || question.answer()).await
    };
    {
        let mut state = shared.state();
        state.naming.remove(&key);
        match answer {
            Ok(answer) => {
                let lines = keep(&mut state, key, answer);
                // Nobody may be waiting any more.
                let _ = done.send((key, lines));
            }
            Err(error) => failed(&mut state, key, &error),
        }
    }
    shared.arrived.notify_waiters();
}

/// What to ask of an executable; `None` when there is nothing to read it from.
fn question(shared: &Shared, key: ExecutableKey, offsets: &BTreeSet<u64>) -> Option<Question> {
    let mut state = shared.state();
    let table = state.tables.get(key);
    let entry = state.executables.get_mut(key)?;
    let facts = Arc::clone(entry.known()?);
    if entry.file.is_none() && table.is_none() {
        state.counts.executables_unavailable += 1;
        return None;
    }
    let dwarf = entry.dwarf_again.is_none_or(|again| Instant::now() >= again);
    let file = entry.file.clone();
    Some(Question { file, facts, table, dwarf, offsets: offsets.iter().copied().collect() })
}

/// Keeps an answer for later windows.
fn keep(state: &mut State, key: ExecutableKey, answer: Answer) -> Vec<(Frame, Lines)> {
    let now = Instant::now();
    let mut result = Vec::with_capacity(answer.lines.len());
    for (offset, lines) in answer.lines {
        let lines = state.names.share(lines);
        // What DWARF could tell better later is looked up again then.
        if !answer.provisional {
            state.names.insert(key, offset, Arc::clone(&lines));
        }
        result.push((Frame::File(key, offset), lines));
    }
    if let Some(table) = answer.table {
        if !state.tables.contains(key) {
            state.counts.executables_named += 1;
        }
        state.tables.insert(key, table);
    }
    if let Some(entry) = state.executables.get_mut(key) {
        if !answer.dwarf_cost.is_zero() {
            entry.dwarf_again = Some(now + answer.dwarf_cost * DWARF_SHARE);
        }
        if let Some(problem) = answer.problem.filter(|_| !entry.warned) {
            entry.warned = true;
            warn_sparingly(format_args!("{}: {problem}; some of its frames may have no names", entry.path));
        }
    }
    result
}

/// Gives an executable up whose names could not be read.
fn failed(state: &mut State, key: ExecutableKey, error: &JobError) {
    let Some(before) = state.executables.get(key).cloned() else { return };
    let (now, path) = (Instant::now(), &before.path);
    warn_sparingly(format_args!("cannot read the names of {path}: {error}; its frames have no names"));
    let facts = not_done(state, before.kind, path, error, now);
    let Some(entry) = state.executables.get_mut(key) else { return };
    let had_dwarf = before.known().is_some_and(|facts| facts.contents.dwarf)
        && before.dwarf_again.is_none_or(|again| now >= again);
    match facts {
        // What is known of it is not unread again for having been refused.
        Facts::Unread => {}
        // In the next window its symbol table alone is read.
        Facts::Late(..) if had_dwarf => entry.dwarf_again = Some(now + NAMES_LIMIT * DWARF_SHARE),
        facts => entry.facts = facts,
    }
}

async fn resolve_anonymous(shared: &Arc<Shared>, anonymous: &PendingAnonymous) {
    let questions: Vec<(JitKey, JitQuestion)> = {
        let mut state = shared.state();
        let now = Instant::now();
        let question = |(key, addresses): (&JitKey, &BTreeSet<u64>)| {
            let unresolved = state.jit.unresolved(*key, addresses, now);
            let question = if unresolved.is_empty() { None } else { state.jit.question(*key, unresolved) };
            Some((*key, question?))
        };
        anonymous.iter().filter_map(question).collect()
    };
    // Goes on when nobody waits for it any more: what was read is there for the next window.
    let reading = tokio::spawn(read_perf_maps(Arc::clone(shared), questions));
    // It does nothing that could fail.
    let _ = reading.await;
}

/// Small maps first: who has a large one waits, and not those who have not. If large ones are being read, only small ones.
async fn read_perf_maps(shared: Arc<Shared>, questions: Vec<(JitKey, JitQuestion)>) {
    let mut sized = Vec::with_capacity(questions.len());
    for (key, question) in questions {
        // A file that cannot be asked for its size is not read either.
        match shared.files.run(FACTS_LIMIT, move || (question.unread(), question)).await {
            Ok((unread, question)) => sized.push((unread, key, question)),
            Err(error) => no_perf_map(&error),
        }
    }
    sized.sort_unstable_by_key(|(unread, ..)| *unread);
    for (unread, key, question) in sized {
        let begun = Instant::now();
        if !shared.state().jit.begin_reading(unread, begun) {
            shared.state().counts.perf_maps_put_off += 1;
            continue;
        }
        let answered = shared.files.run(NAMES_LIMIT, move || question.answer()).await;
        let ended = Instant::now();
        let mut state = shared.state();
        state.jit.end_reading(unread, ended.duration_since(begun), ended);
        match answered {
            Ok(answer) => {
                if let Some(problem) = &answer.problem {
                    debug!("a perf map: {problem}");
                }
                state.jit.answer(key, &answer, ended);
            }
            Err(error) => no_perf_map(&error),
        }
    }
}

fn no_perf_map(error: &JobError) {
    warn_sparingly(format_args!("cannot read a perf map: {error}; the process's own code has no names"));
}

/// Closes the files, and adds what needs none.
fn finish(shared: &Shared, used: &[ExecutableKey], pending: &Pending, names: &mut Names) {
    let mut state = shared.state();
    names.remarks = state.remarks();
    for key in used {
        if let (Some(offers), Some(entry)) = (&shared.debug_info, state.executables.get(*key)) {
            offer(offers, entry);
        }
        state.executables.close(*key);
        let Some(entry) = state.executables.get(*key) else { continue };
        let not_had = || pending.files.contains_key(key).then(|| "its file could not be had".into());
        let problem = entry.problem().cloned().or_else(not_had);
        let info = ExecutableInfo { path: Arc::clone(&entry.path), facts: entry.known().cloned(), problem };
        names.executables.insert(*key, info);
    }
    for (key, addresses) in &pending.anonymous {
        for address in addresses {
            if let Some(name) = state.jit.name(*key, *address) {
                names.lines.insert(Frame::Anonymous(*key, *address), one_line(&name, String::new()));
            }
        }
    }
    let kernel = Arc::clone(&state.kernel);
    for (module, offset) in &pending.kernel {
        if let Some(name) = kernel.lookup(*module, *offset) {
            let module_name = state.modules.name(*module);
            let place = if module_name.is_empty() { String::new() } else { format!("[{module_name}]") };
            let name = crate::printable::printable(name.as_bytes());
            names.lines.insert(Frame::Kernel(*module, *offset), one_line(&name, place));
        }
    }
    state.names.shrink();
}

fn one_line(name: &str, file: String) -> Lines {
    let function = Function { name: name.to_owned(), system_name: name.to_owned(), file };
    Arc::new([Line { function: Arc::new(function), line: 0 }])
}

#[cfg(test)]
mod tests {
    use ipc::Identity;

    use super::*;
    use crate::targets::TargetMaker;

    const KIND: ExecutableKind =
        ExecutableKind::File(Identity { device: 1, inode: 1, ctime: 0, ctime_nanos: 0, size: 1 });

    fn shared() -> Arc<Shared> {
        let maker = TargetMaker::new("n", []);
        Shared::new(maker, true, 20 << 20, Duration::from_secs(10), None, Arc::default()).0
    }

    #[test]
    fn a_file_that_nobody_could_read_yet_is_not_given_up() {
        let shared = shared();
        let mut state = shared.state();
        let limit = Duration::from_secs(1);
        let mut facts = |error| not_done(&mut state, KIND, "/x", &error, Instant::now());
        for error in [JobError::Refused, JobError::Busy] {
            assert!(matches!(facts(error), Facts::Unread));
        }
        assert!(matches!(facts(JobError::Panicked), Facts::Unreadable(_)));
        for error in [JobError::TimedOut(limit), JobError::Hung(limit)] {
            assert!(matches!(facts(error), Facts::Late(..)));
        }
        assert_eq!(state.counts.executables_timed_out, 2);
    }

    #[test]
    fn who_is_late_with_lines_has_the_names_of_the_symbol_table_next() {
        let shared = shared();
        let mut state = shared.state();
        let executable = ipc::Executable { id: ipc::ExecutableId(1), kind: KIND, path: b"/x".to_vec() };
        let key = state.executables.add(&executable, None, Instant::now());
        let own = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let facts = read_facts(&own).unwrap();
        assert!(facts.contents.dwarf);
        state.executables.get_mut(key).unwrap().facts = Facts::Known(Arc::new(facts));
        let late = JobError::TimedOut(NAMES_LIMIT);
        failed(&mut state, key, &late);
        let entry = state.executables.get(key).unwrap();
        assert!(entry.known().is_some() && entry.dwarf_again.is_some_and(|again| again > Instant::now()));
        failed(&mut state, key, &late);
        assert!(matches!(state.executables.get(key).unwrap().facts, Facts::Late(..)));
    }
}
