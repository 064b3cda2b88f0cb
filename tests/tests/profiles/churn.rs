//! What changes all the time, without frame pointers: libraries, short processes, templates, threads. Stacks are whole
//! nevertheless, and no name is another's.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
};

use tests::{
    entry::first_instructions,
    pprof::{Frame, Profile, Stack},
    process::{Running, run},
    statistics::compare,
    system::System,
};
use workloads::{
    CHURN_LIBRARIES, TEMPLATE_DEPTH, breeder, churn_library, churn_library_chain, churn_loader,
    frameless_brief, templates, thread_starts, tiny_chain, tiny_for_longer,
};

use crate::{Case, truth::user_names};

pub(crate) const CASES: &[Case] = &[
    ("libraries_come_and_go_without_frame_pointers", libraries_come_and_go_without_frame_pointers),
    ("executables_never_seen_before", executables_never_seen_before),
    ("short_processes_against_perf", short_processes_against_perf),
    ("cpp_templates", cpp_templates),
    ("a_thread_ends_at_its_start", a_thread_ends_at_its_start),
];

/// The thread's name in a stack's labels.
fn thread_name(stack: &Stack) -> &str {
    stack.labels.get("thread_name").map_or("", String::as_str)
}

/// The names of the frames that lie in one of these files, innermost first.
fn names_in(stack: &Stack, is_own: impl Fn(&Path) -> bool) -> Vec<&str> {
    let own = stack.user().filter(|frame| is_own(Path::new(&frame.mapping)));
    own.map(|frame| frame.name.as_str()).collect()
}

/// Each sample says by its thread's name which library was loaded, so that there is a truth for each one.
///
/// None may show a wrong frame, and all are whole: the kernel does not tell of what is unmapped, so at addresses that are used
/// again and again the collector unwinds what the BPF programs would take for the last library's.
fn libraries_come_and_go_without_frame_pointers(system: &System) {
    let numbers: Vec<u32> = (1..=CHURN_LIBRARIES).collect();
    let libraries: Vec<_> = numbers.iter().map(|number| churn_library(*number).unwrap()).collect();
    let program = churn_loader().unwrap().canonicalize().unwrap();
    let mut running = Running::start(&program, &libraries);
    running.wait_ready();
    let names = numbers.iter().map(|number| format!("churn-lib-{number}"));
    let selector = format!("{{comm=~\"{}\"}}", names.collect::<Vec<_>>().join("|"));
    // The first windows are those in which each library is met for the first time, or the second, if it was gone before anybody looked.
    system.collect(&selector, 200, 60);
    let profile = system.collect(&selector, 1200, 120);

    let (mut counts, mut cut) = (Vec::new(), 0);
    for number in numbers {
        let file = format!("churn-{number}.so");
        let mut whole = churn_library_chain(number);
        whole.extend(["use_library", "main", "_start"].map(Into::into));
        let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
        let thread = format!("churn-lib-{number}");
        let mut samples = 0;
        for stack in profile.stacks.iter().filter(|stack| thread_name(stack) == thread) {
            // Nothing of another library, whichever it is.
            let is_library = |frame: &&Frame| {
                frame.mapping.contains("/churn-") && Path::new(&frame.mapping).extension().is_some()
            };
            let is_other = |frame: &Frame| !frame.mapping.ends_with(&file);
            assert!(!stack.user().filter(is_library).any(is_other), "at {file}: {}", stack.line());
            if !stack.user().any(|frame| frame.mapping.ends_with(&file)) {
                continue;
            }
            samples += stack.count;
            // Not from the leaf on: the innermost functions may not be called yet.
            let names = names_in(stack, |path| path == program || path.ends_with(&file));
            if user_names(stack).last() == Some(&"_start") {
                assert!(whole.ends_with(&names), "no tail of {whole:?}: {}", stack.line());
            } else {
                assert!(whole.windows(names.len()).any(|part| part == names), "{whole:?}: {}", stack.line());
                cut += stack.count;
            }
        }
        counts.push(samples);
    }
    let all = counts.iter().sum::<i64>();
    println!("{counts:?} in the libraries, {cut} of them cut");
    assert!(all as f64 > 0.95 * profile.total() as f64, "{all} in libraries of {}", profile.dump());
    // Each works for as long as any other.
    let comparison = compare(&counts, &vec![1.0 / counts.len() as f64; counts.len()]);
    assert!(comparison.agrees(), "{comparison:?}: {counts:?}\n{}", profile.dump());
    assert!(cut as f64 <= 0.005 * all as f64, "{cut} of {all} are cut: {:?}", profile.comments);
    // It is a test of addresses that are used again.
    let output = running.output();
    let last = output.lines().last().unwrap();
    let visits: Vec<f64> = last.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    assert!(visits[1] > 0.9 * visits[0], "{last}");
}

/// All windows of a command name, when what makes its processes has ended. Says how it ended.
pub(crate) fn collect_all(system: &System, comm: &str, running: &mut Running) -> Profile {
    let status = running.wait_end(120);
    assert!(status.success(), "{status}: {}", running.output());
    // The window that it ended in, and one without it.
    let selector = format!("{{comm=\"{comm}\"}}");
    while system.query(&selector, "").is_ok() {}
    let mut all = Profile::default();
    for profile in system.stored(comm) {
        if all.stacks.is_empty() {
            all = profile;
        } else {
            all.append(profile);
        }
    }
    all
}

/// Whether a program begins there: at a `_start`, or where the headers of the dynamic linker say, which has no names.
fn is_root(frame: &Frame) -> bool {
    if !frame.mapping.contains("/ld-linux") {
        return frame.name == "_start";
    }
    first_instructions(Path::new(&frame.mapping)).contains(&frame.address)
}

/// Each runs for some 30 ms, and nobody has seen it before: the samples wait for the rows. (Of one that is gone before its file
/// can be opened nobody can know any.)
fn executables_never_seen_before(system: &System) {
    const EXECUTABLES: &str = "100";
    let folder = tempfile::tempdir().unwrap();
    let kind = CHURN_LIBRARIES;
    let path = tiny_for_longer(kind).unwrap();
    let mut running = Running::start(
        &breeder().unwrap(),
        &[folder.path().as_os_str(), EXECUTABLES.as_ref(), path.as_os_str()],
    );
    let profile = collect_all(system, &format!("tiny-{kind}"), &mut running);
    let start = first_instructions(&path);
    let chain = tiny_chain(kind);
    let whole =
        profile.count(|stack| stack.user().last().is_some_and(|frame| start.contains(&frame.address)));
    for stack in &profile.stacks {
        let names = user_names(stack);
        let is_nameless = names.iter().all(|name| name.is_empty());
        let parts = &mut chain.windows(names.len().max(1));
        assert!(is_nameless || parts.any(|part| part == names), "{}", stack.line());
    }
    let (_, user) = profile.said_complete();
    println!("{whole} of {user} whole");
    assert!(user > 30, "{}", profile.dump());
    let is_opened = |stack: &Stack| stack.user().next().is_some_and(|frame| !frame.build_id.is_empty());
    let opened = profile.count(is_opened);
    assert!(opened as f64 >= 0.5 * user as f64, "{opened} of {user} opened: {:?}", profile.comments);
    assert!(whole as f64 >= 0.95 * opened as f64, "{whole} of {opened}: {:?}", profile.comments);
}

fn short_processes_against_perf(system: &System) {
    const PROCESSES: usize = 600;
    let path = frameless_brief("churn-brief").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("perf.data");
    // perf takes what it starts as its span. It is killed when the test fails, and then those with it. If all lived as long as
    // each other, the processes could keep step with the samples' 10 ms, so that perf always catches three samples of one where
    // the collector, whose clock ticks elsewhere, catches two: the lengths go all over a whole period, from 15 to 25 ms.
    // Nor may they take turns with other cases' programs: turns change with the tick, and of the two samplers, each in step with it, one
    // would always look when they run and the other when they wait. A real-time process takes no turns.
    let script = format!(
        "exec perf record --quiet --all-cpus --freq=100 --event=cpu-clock --output=\"$2\" -- \
         setpriv --pdeathsig=KILL -- chrt --fifo 1 sh -c '\
         cat /proc/uptime; i=0; while [ $i -lt {PROCESSES} ]; do \
         \"$1\" $((15000 + i * 6180 % 10000)) || exit 1; i=$((i + 1)); done; cat /proc/uptime' sh \
         \"$1\""
    );
    let mut running = Running::shell(&script, &[&path, &data]);
    let profile = collect_all(system, "churn-brief", &mut running);

    let data = data.display().to_string();
    let (status, script) =
        run(&["perf", "script", "--comms=churn-brief", "--fields=comm,pid", "--input", &data]);
    assert!(status.success(), "{script}");
    let mut per_process = HashMap::<&str, f64>::new();
    for line in script.lines().filter(|line| line.trim_start().starts_with("churn-brief")) {
        *per_process.entry(line.split_whitespace().last().unwrap()).or_default() += 1.0;
    }
    let perf: f64 = per_process.values().sum();
    assert!(perf > 0.9 * PROCESSES as f64 * 2.0, "perf saw {perf} samples:\n{script}");

    // Both take a sample each 10 ms, but not the same ones. What chance does to the number of samples of one process is not
    // more than how that number differs from one process to another, as perf saw it (about a half, when nothing interrupts
    // them); over n processes that is sqrt(n) times as much, and sqrt(2 n) for the difference of two such sums.
    let processes = PROCESSES as f64;
    let mean = perf / processes;
    let seen: f64 = per_process.values().map(|count| (count - mean).powi(2)).sum();
    let unseen = (processes - per_process.len() as f64).max(0.0) * mean.powi(2);
    let tolerance = 3.719 * (2.0 * (seen + unseen)).sqrt();
    let ours = profile.total() as f64;
    println!("{ours} samples, perf has {perf} of {} processes, tolerance {tolerance:.0}", per_process.len());
    for (name, value) in system.metrics().iter().filter(|(name, value)| {
        (name.contains("lost_total") || name.contains("degraded_total")) && **value > 0.0
    }) {
        println!("{name} {value}");
    }
    assert!(tolerance < 0.2 * perf, "too rough to tell anything: {tolerance} of {perf}");
    assert!(ours >= 0.99 * perf - tolerance, "{ours}, perf {perf} within {tolerance}\n{}", profile.dump());
    // perf is no upper bound: on a busy machine it may lose some. The time that they took, one after another, is one; the CPU time
    // is not, which leaves out what the host of a virtual machine has taken from it.
    let output = running.output();
    let uptimes: Vec<f64> = output.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    let &[begun, ended] = uptimes.as_slice() else { panic!("/proc/uptime twice is: {output}") };
    let took = ended - begun;
    assert!(ours <= 100.0 * took + tolerance, "{ours} in {took} s within {tolerance}\n{}", profile.dump());

    // Whole, by what the profile says and by the names: the program's own, or the dynamic linker's before it.
    let (complete, all) = profile.said_complete();
    assert!(complete as f64 >= 0.99 * all as f64, "{complete} of {all}: {:?}", profile.comments);
    let whole = profile.count(|stack| stack.user().last().is_none_or(is_root));
    assert!(whole as f64 >= 0.99 * ours, "{whole} of {ours} end at a root:\n{}", profile.dump());
    let chain = ["brief_leaf", "brief_inner", "brief_outer", "main"];
    let in_chain = profile.count(|stack| stack.has_run(&chain));
    let in_leaf = profile.count(|stack| user_names(stack).contains(&"brief_leaf"));
    assert!(in_chain as f64 >= 0.99 * in_leaf as f64, "{in_chain} of {in_leaf}:\n{}", profile.dump());
    // How long it takes to start one is the machine's affair.
    let is_own = |stack: &Stack| {
        stack.user().next().is_some_and(|frame| Path::new(&frame.mapping).file_name() == path.file_name())
    };
    let is_lost = |stack: &Stack| stack.user().any(|frame| frame.mapping.is_empty());
    let (own, lost) = (profile.count(is_own), profile.count(is_lost));
    let of_work = format!("{in_leaf} in the work of {own}, {lost} lost");
    println!("{of_work}, {ours} in all");
    assert!(in_leaf as f64 > 0.75 * ours, "{of_work}:\n{}", profile.dump());
    assert!(in_leaf as f64 >= 0.97 * (own + lost) as f64, "{of_work}:\n{}", profile.dump());
}

fn cpp_templates(system: &System) {
    let _running = Running::start(&templates().unwrap(), &[""; 0]);
    let profile = system.collect_settled("templates", 300);
    let rooted = profile.count(|stack| user_names(stack).last() == Some(&"_start"));
    assert_eq!(rooted, profile.total(), "every stack ends at its root:\n{}", profile.dump());
    let (complete, all) = profile.said_complete();
    assert_eq!(complete, all, "{:?}", profile.comments);

    let work = "std::function<unsigned long (unsigned long)> const&, unsigned long";
    let descent: Vec<String> =
        (0..=TEMPLATE_DEPTH).map(|n| format!("deep::Descent<{n}>::go({work})")).collect();
    let descent: Vec<&str> = descent.iter().map(String::as_str).chain(["main"]).collect();
    let slowly = "deep::Slowly<unsigned long>::operator()(unsigned long const&, unsigned long const&) const";
    let sorting = profile.count(|stack| {
        let names = user_names(stack);
        stack.has_run(&descent)
            && names.contains(&slowly)
            && names.iter().any(|name| name.contains("std::_Function_handler<") && name.contains("_M_invoke"))
    });
    assert!(sorting as f64 > 0.95 * profile.total() as f64, "{sorting} in the sort:\n{}", profile.dump());
    // The last part of a sort is inlined into who calls it.
    let introsort = "void std::__introsort_loop<__gnu_cxx::__normal_iterator<unsigned long*, ";
    let in_loop = profile.count(|stack| user_names(stack).iter().any(|name| name.starts_with(introsort)));
    assert!(in_loop as f64 > 0.2 * profile.total() as f64, "{in_loop} in the loop:\n{}", profile.dump());
}

/// Where a file says that there is no caller: ranges of addresses of its functions whose return address is undefined, as the
/// DWARF standard (version 5, section 6.4.4) has the outermost frame.
fn roots_of(file: &str) -> Vec<std::ops::Range<u64>> {
    let (status, text) = run(&["readelf", "--wide", "--debug-dump=frames,no-follow-links", file]);
    assert!(status.success(), "{text}");
    let mut range = 0..0;
    let mut roots = Vec::new();
    for line in text.lines() {
        if let Some((_, pc)) = line.split_once(" FDE ").and_then(|(_, rest)| rest.split_once("pc=")) {
            let (start, end) = pc.trim().split_once("..").unwrap();
            range = u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap();
        } else if line.contains("DW_CFA_undefined: r16 (rip)") && !range.is_empty() {
            roots.push(range.clone());
        }
    }
    assert!(!roots.is_empty(), "{file} has no function without a caller");
    roots
}

fn a_thread_ends_at_its_start(system: &System) {
    let _running = Running::start(&thread_starts().unwrap(), &[""; 0]);
    let profile = system.collect_settled("thread-starts", 300);
    let mut roots = None;
    for stack in &profile.stacks {
        let last = stack.user().last().unwrap_or_else(|| panic!("no user stack: {}", stack.line()));
        assert!(last.mapping.contains("/libc.so"), "{}", stack.line());
        let roots = roots.get_or_insert_with(|| roots_of(&last.mapping));
        assert!(
            roots.iter().any(|range| range.contains(&last.address)),
            "{:x}: {}",
            last.address,
            stack.line()
        );
    }
    for (thread, function, beyond) in
        [("by-pthread", "in_pthread(void*)", 2), ("by-std", "in_std_thread(int)", 3)]
    {
        let of_thread = profile.count(|stack| thread_name(stack) == thread);
        assert!(of_thread as f64 > 0.3 * profile.total() as f64, "{thread}:\n{}", profile.dump());
        for stack in profile.stacks.iter().filter(|stack| thread_name(stack) == thread) {
            let names = user_names(stack);
            let at = names.iter().position(|name| *name == function);
            let at = at.unwrap_or_else(|| panic!("not in {function}: {}", stack.line()));
            // start_thread and clone3, and of a std::thread the C++ library's own start before them, with what the compiler
            // has left of the call of its function.
            let outer = names.len() - at - 1;
            assert!((beyond..=beyond + 4).contains(&outer), "{}", stack.line());
        }
    }
    let (complete, all) = profile.said_complete();
    assert_eq!((complete, all), (all, profile.total()), "{:?}", profile.comments);
    let target = system.target("thread-starts");
    assert_eq!(target["complete"].as_f64(), Some(1.0), "{target}");
    let ends: BTreeSet<_> = target["ends"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(ends, BTreeSet::from(["root"]), "{target}");
}
