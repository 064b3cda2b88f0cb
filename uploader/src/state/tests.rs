//! Messages and what they do to the state.

use ipc::{
    Anonymous, Cgroup, CgroupId, Counters, Identity, KernelFrame, KernelSymbols, ModuleId, Process, Sample,
    UserFrame,
};
use records::{End, FileOffset, ProcessAddress};

use super::*;
use crate::{
    profile::Frame,
    targets::{Pattern, Selection},
};

fn shared() -> (Arc<Shared>, mpsc::Receiver<Request>) {
    let (shared, outbox) =
        Shared::new(TargetMaker::new("n", []), true, 20 << 20, Duration::from_secs(10), None, Arc::default());
    (shared, outbox.requests)
}

fn welcome(epoch: u64) -> FromCollector {
    FromCollector::Welcome(Welcome {
        epoch,
        sampling_frequency: 50,
        cpus: 2,
        kernel_release: String::new(),
        limitations: vec![],
    })
}

fn begin(state: &mut State) {
    state.begin_session();
    apply(state, welcome(1));
}

fn apply(state: &mut State, message: FromCollector) -> Option<Job> {
    state.apply(message, None, Instant::now()).unwrap().into_iter().next()
}

fn with_file(state: &mut State, message: FromCollector) -> Option<Job> {
    let file = File::open("/proc/self/exe").unwrap();
    state.apply(message, Some(file.into()), Instant::now()).unwrap().into_iter().next()
}

fn executable(id: u32, inode: u64) -> FromCollector {
    let identity = Identity { device: 1, inode, ctime: 0, ctime_nanos: 0, size: 1 };
    FromCollector::Executable(ipc::Executable {
        id: ExecutableId(id),
        kind: ExecutableKind::File(identity),
        path: b"/bin/x".to_vec(),
    })
}

fn process(id: u32) -> FromCollector {
    FromCollector::Process(Process {
        id: ProcessId(id),
        pid: id,
        start_time: 0,
        comm: b"x".to_vec(),
        cgroup: Some(CgroupId(1)),
    })
}

fn sample(process: u32, kernel: Vec<KernelFrame>, user: Vec<UserFrame>) -> FromCollector {
    FromCollector::Samples(vec![Sample {
        timestamp: 0,
        process: ProcessId(process),
        tid: 7,
        cpu: 0,
        thread_comm: b"t".to_vec(),
        end: End::Root as u8,
        guessed: 0,
        kernel,
        user,
    }])
}

fn file_frame(id: u32, offset: u64) -> UserFrame {
    UserFrame::File(ExecutableId(id), FileOffset(offset))
}

#[test]
fn return_addresses_are_looked_up_at_the_byte_before() {
    let (shared, _requests) = shared();
    let mut state = shared.state();
    begin(&mut state);
    apply(
        &mut state,
        FromCollector::KernelSymbols(KernelSymbols { modules: vec![String::new(), "m".into()] }),
    );
    apply(&mut state, process(1));
    apply(&mut state, executable(5, 50));
    let kernel = vec![
        KernelFrame::Known(ModuleId(1), 10),
        KernelFrame::Known(ModuleId(0), 20),
        KernelFrame::Known(ModuleId(9), 20),
        KernelFrame::Unknown,
    ];
    let user = vec![file_frame(5, 30), file_frame(5, 40), file_frame(6, 50), file_frame(5, 0)];
    apply(&mut state, sample(1, kernel, user));
    let key = state.executables.key(ExecutableId(5)).unwrap();
    let expected = [
        Frame::Kernel(1, 10),
        Frame::Kernel(0, 19),
        Frame::UnknownKernel,
        Frame::UnknownKernel,
        Frame::File(key, 30),
        Frame::File(key, 39),
        Frame::File(ExecutableKey::UNKNOWN, 49),
        Frame::File(key, 0),
    ];
    assert_eq!(*state.window().stacks[0], expected);
    assert_eq!(state.window().frequency, 50);
    assert_eq!(state.counts.frames_unknown_executable, 1);
}

#[test]
fn samples_find_their_targets() {
    let (shared, _requests) = shared();
    let mut state = shared.state();
    begin(&mut state);
    let text = b"0::/system.slice/a.service".to_vec();
    apply(&mut state, FromCollector::Cgroup(Cgroup { id: CgroupId(1), text }));
    apply(&mut state, process(1));
    apply(&mut state, sample(1, vec![], vec![]));
    apply(&mut state, sample(2, vec![], vec![]));
    apply(&mut state, FromCollector::Exit(ProcessId(1)));
    apply(&mut state, sample(1, vec![], vec![]));
    let (maker, mut window) = (state.maker(), state.end_window(Instant::now()));
    assert_eq!(window.find_targets(|origin| maker.target(origin, &shared.discovery)), 0);
    let mut targets: Vec<_> =
        window.targets.iter().map(|(labels, samples)| (labels.to_string(), samples.total())).collect();
    targets.sort();
    let expected = [
        (r#"{comm="t", node="n"}"#.to_owned(), 2),
        (r#"{comm="x", node="n", systemd_unit="a.service"}"#.to_owned(), 1),
    ];
    assert_eq!(targets, expected, "a sample of a process that nobody knows is kept");
    assert_eq!(state.counts.samples_unknown_process, 2);
}

#[test]
fn a_session_begins_with_one_welcome() {
    let (shared, _requests) = shared();
    let mut state = shared.state();
    state.begin_session();
    let now = Instant::now();
    assert_eq!(state.apply(process(1), None, now).unwrap_err(), Fault::NoWelcome);
    apply(&mut state, welcome(1));
    assert_eq!(state.apply(welcome(1), None, now).unwrap_err(), Fault::SecondWelcome);
}

#[test]
fn facts_are_read_at_once_and_once() {
    let (shared, _requests) = shared();
    let mut state = shared.state();
    begin(&mut state);
    assert!(apply(&mut state, executable(1, 1)).is_none(), "without a file there is nothing to read");
    let job = with_file(&mut state, executable(1, 1));
    let Some(Job::Facts(key, _, _)) = job else { panic!("{job:?}") };
    assert!(with_file(&mut state, executable(1, 1)).is_none(), "somebody reads them already");
    state.set_facts(key, Facts::Unreadable("x".into()));
    assert!(with_file(&mut state, executable(1, 1)).is_none());
    assert!(!state.needs_file(key, Instant::now()));
}

#[test]
fn rows_are_computed_once_at_a_time() {
    let (shared, _requests) = shared();
    let mut state = shared.state();
    begin(&mut state);
    with_file(&mut state, executable(1, 1));
    let want = || FromCollector::WantRows(ExecutableId(1));
    let Some(Job::Rows(session, id, ..)) = apply(&mut state, want()) else { panic!("its file is here") };
    assert!(apply(&mut state, want()).is_none(), "they are under way");
    state.rows_under_way.remove(&(session, id));
    assert!(apply(&mut state, want()).is_some());
    // The next session has ids of its own.
    state.end_session();
    begin(&mut state);
    with_file(&mut state, executable(1, 1));
    assert!(apply(&mut state, want()).is_some());
}

#[test]
fn files_are_asked_for_when_a_new_stack_needs_them() {
    let (shared, mut requests) = shared();
    let mut state = shared.state();
    begin(&mut state);
    apply(&mut state, process(1));
    apply(&mut state, executable(1, 1));
    apply(&mut state, sample(1, vec![], vec![file_frame(1, 10)]));
    apply(&mut state, sample(1, vec![], vec![file_frame(1, 11)]));
    assert_eq!(requests.try_recv(), Ok((1, FromUploader::Reopen(ExecutableId(1)))));
    assert!(requests.try_recv().is_err(), "once in a window");
    assert!(state.awaited.contains(&Awaited::Executable(ExecutableId(1))));
    apply(&mut state, FromCollector::NotReopened(NotReopened::Executable(ExecutableId(1))));
    assert!(state.awaited.is_empty());

    state.end_window(Instant::now());
    apply(&mut state, sample(1, vec![], vec![file_frame(1, 10)]));
    assert!(requests.try_recv().is_ok(), "again in the next");
    with_file(&mut state, executable(1, 1));
    assert!(state.awaited.is_empty());
    let unopened = ipc::Executable { id: ExecutableId(2), kind: ExecutableKind::Unopened, path: vec![] };
    apply(&mut state, FromCollector::Executable(unopened));
    apply(&mut state, sample(1, vec![], vec![file_frame(2, 10), file_frame(1, 12)]));
    assert!(requests.try_recv().is_err(), "one cannot be opened, the other is here");
}

#[test]
fn requests_are_limited() {
    let (shared, mut requests) = shared();
    let mut state = shared.state();
    begin(&mut state);
    let now = Instant::now();
    for id in 0..1000 {
        state.ask_for_perf_map(ProcessId(id), now);
    }
    let mut sent = 0;
    while requests.try_recv().is_ok() {
        sent += 1;
    }
    assert!((1..=MAX_REQUESTS).contains(&sent), "{sent}");
    assert_eq!(state.counts.requests_refused, 1000 - sent as u64);
    state.end_session();
    assert!(!state.ask_for_perf_map(ProcessId(1), now), "there is nobody to ask");
}

#[test]
fn another_session_has_other_ids() {
    let (shared, _requests) = shared();
    let mut state = shared.state();
    begin(&mut state);
    apply(&mut state, process(1));
    apply(&mut state, executable(1, 1));
    apply(&mut state, sample(1, vec![], vec![file_frame(1, 10)]));
    let key = state.executables.key(ExecutableId(1)).unwrap();
    let counters = Counters { samples: 5, ..Counters::default() };
    apply(&mut state, FromCollector::Counters(counters.clone()));
    state.end_session();
    assert!(!state.is_connected() && state.processes.is_empty());

    assert_eq!(state.begin_session(), 2);
    apply(&mut state, welcome(2));
    apply(&mut state, executable(1, 2));
    apply(&mut state, executable(2, 1));
    assert_eq!(state.executables.key(ExecutableId(2)), Some(key), "the same file");
    apply(&mut state, process(1));
    apply(&mut state, sample(1, vec![], vec![file_frame(2, 10)]));
    assert_eq!(state.window().stacks.len(), 1, "so its stacks are the same too");
    assert_eq!(state.window().total(), 2, "and what the first collector sent is kept");
    apply(&mut state, FromCollector::Counters(counters));
    assert_eq!(state.collector.total().samples, 10);
    assert_eq!((state.counts.sessions, state.counts.collector_restarts), (2, 1));
}

#[test]
fn code_without_a_file_is_told_apart_by_process() {
    let (shared, mut requests) = shared();
    let mut state = shared.state();
    begin(&mut state);
    for id in [1, 2] {
        apply(&mut state, process(id));
        apply(&mut state, FromCollector::Anonymous(Anonymous { process: ProcessId(id) }));
        apply(&mut state, sample(id, vec![], vec![UserFrame::Anonymous(ProcessAddress(0x1000))]));
    }
    assert_eq!(state.window().stacks.len(), 2);
    let Frame::Anonymous(key, 0x1000) = state.window().stacks[0][0] else { panic!() };
    assert_eq!(state.jit.to_ask(key), Some(ProcessId(1)));
    assert!(state.ask_for_perf_map(ProcessId(1), Instant::now()));
    assert!(requests.try_recv().is_ok());
    apply(&mut state, FromCollector::Exit(ProcessId(1)));
    assert_eq!(state.jit.to_ask(key), None);
}

#[test]
fn what_flags_leave_out_is_skipped() {
    let skips = |selection, texts: &[&str]| {
        let maker = TargetMaker::new("n", []).with_selection(selection);
        let window = Duration::from_secs(10);
        let (shared, mut outbox) = Shared::new(maker, true, 20 << 20, window, None, Arc::default());
        let mut state = shared.state();
        begin(&mut state);
        for (id, text) in (1..).zip(texts) {
            let cgroup = Cgroup { id: CgroupId(id), text: text.as_bytes().to_vec() };
            apply(&mut state, FromCollector::Cgroup(cgroup));
        }
        std::iter::from_fn(|| outbox.skips.try_recv().ok()).collect::<Vec<_>>()
    };
    let pod = "0::/kubepods.slice/kubepods-pod0aa1dc2e_15b3_4c0c_8d3b_0ab0f4a2a0c5.slice/cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope";
    let texts = ["0::/", "0::/system.slice/a.service", "0::/system.slice/b.service", pod];
    let skip = |id| (1, FromUploader::Skip(CgroupId(id)));
    let names = || vec![Pattern::of_unit("a").unwrap()];
    assert_eq!(skips(Selection::default(), &texts), []);
    assert_eq!(skips(Selection { names: names(), ..Selection::default() }, &texts), [1, 3, 4].map(skip));
    // What may turn out to be a pod that is followed is not.
    assert_eq!(
        skips(Selection { names: names(), pods: true, ..Selection::default() }, &texts),
        [1, 3].map(skip)
    );
    // A part of the targets is chosen by labels, which rules may change.
    assert_eq!(skips(Selection { ratio: 0.0, ..Selection::default() }, &texts), []);
}
