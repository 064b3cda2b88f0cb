//! The uploader's parts and a collector that the tests play: sessions, names, profiles, and what a broken or hostile
//! collector can do.

#![expect(clippy::unwrap_used, reason = "a test; clippy only knows those in #[test] functions")]

mod fake;

use std::{fs::File, io::Write, path::Path, process::Command, time::Duration};

use fake::{
    Bench, WINDOW, encoded, executable, kernel_symbols, own_offset, process, samples, stacks, total, welcome,
};
use ipc::{
    Anonymous, ExecutableId, FromCollector, FromUploader, Hello, KernelFrame, ModuleId, NotReopened,
    ProcessId, Role, Sample, UserFrame,
};
use records::{End, FileOffset, ProcessAddress};
use tokio::time::sleep;
use uploader::profile::check::check;

#[inline(never)]
fn known_caller(count: u64) -> u64 {
    std::hint::black_box(known_leaf(count)) + 1
}

#[inline(never)]
fn known_leaf(count: u64) -> u64 {
    std::hint::black_box(count) * 3
}

/// A stack in this program: the leaf, and a return address in its caller.
fn known_stack(id: u32) -> [UserFrame; 2] {
    let leaf = own_offset(known_leaf as fn(u64) -> u64 as usize);
    let caller = own_offset(known_caller as fn(u64) -> u64 as usize);
    [UserFrame::File(ExecutableId(id), leaf), UserFrame::File(ExecutableId(id), FileOffset(caller.0 + 5))]
}

fn own_path() -> std::path::PathBuf {
    std::env::current_exe().unwrap()
}

#[tokio::test]
async fn samples_become_a_named_profile_that_pprof_reads() {
    assert_eq!(known_caller(2), 7);
    let mut bench = Bench::start().await;
    let session = bench.session(1).await;
    let (message, file) = kernel_symbols();
    session.send_with(&message, &file).await;
    session.send(&process(1, "session")).await;
    let own = File::open(own_path()).unwrap();
    session.send_with(&executable(5, 50, &own_path()), &own).await;
    let kernel = vec![
        KernelFrame::Known(ModuleId(1), 0x10),
        KernelFrame::Known(ModuleId::KERNEL, 0x2010),
        KernelFrame::Known(ModuleId::KERNEL, 0x1010),
    ];
    let message = FromCollector::Samples(vec![Sample {
        timestamp: 1,
        process: ProcessId(1),
        tid: 8,
        cpu: 0,
        thread_comm: b"reader".to_vec(),
        end: End::Memory as u8,
        guessed: 1,
        kernel,
        user: known_stack(5).to_vec(),
    }]);
    let (profile, ()) = tokio::join!(bench.profile("{comm=\"session\"}", ""), async {
        session.send(&samples(1, 9, &known_stack(5))).await;
        session.send(&message).await;
    });
    let profile = profile.unwrap();
    check(&profile).unwrap();
    let stacks = stacks(&profile);
    let (user, count) = stacks.iter().find(|(_, count)| *count == 9).unwrap_or_else(|| panic!("{stacks:?}"));
    assert_eq!(*count, 9);
    assert!(user[0].ends_with("known_leaf") && user.last().unwrap().ends_with("known_caller"), "{user:?}");
    let (kernel, _) = stacks.iter().find(|(_, count)| *count == 1).unwrap();
    assert_eq!(kernel[..3], ["ext4_file_read_iter", "vfs_read", "do_syscall_64"]);
    assert!(kernel[3].ends_with("known_leaf"));
    let comment = profile.string_table[usize::try_from(profile.comment[0]).unwrap()].clone();
    assert!(comment.starts_with("9 of 10 user stacks are complete"), "{comment}");
    let comment = profile.string_table[usize::try_from(profile.comment[1]).unwrap()].clone();
    assert!(comment.starts_with("frames of 1 of 10 user stacks were left by frame pointers"), "{comment}");
    let targets: serde_json::Value = serde_json::from_slice(&bench.get("/api/targets").await.body).unwrap();
    assert_eq!((&targets[0]["complete"], &targets[0]["by_frame_pointers"]), (&0.9.into(), &0.1.into()));
    assert_eq!(profile.period, 10_000_000);

    // The independent judge.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("profile.pb.gz");
    let answer = bench.get(&format!("/query?query={}&window=last", encoded("{comm=\"session\"}"))).await;
    assert!(answer.head.contains("content-type: application/vnd.google.protobuf+gzip"), "{}", answer.head);
    assert!(answer.head.contains("filename=\"profile.pb.gz\""), "{}", answer.head);
    std::fs::write(&path, &answer.body).unwrap();
    let raw = go_pprof(&["-raw"], &path);
    assert!(raw.contains("samples/count") && raw.contains("thread_name:[worker]"), "{raw}");
    assert!(go_pprof(&["-top"], &path).contains("known_leaf"));
    assert!(go_pprof(&["-traces"], &path).contains("do_syscall_64"));
}

/// What `go tool pprof` makes of a profile; it must not complain.
fn go_pprof(arguments: &[&str], profile: &Path) -> String {
    let output = Command::new("go").args(["tool", "pprof"]).args(arguments).arg(profile).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.lines().all(|line| line.starts_with("Main binary")), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn both_sides_of_a_restart_are_counted_and_files_are_known_again() {
    let mut bench = Bench::start().await;
    assert_eq!(bench.get("/readyz").await.status, 503);
    let session = bench.session(1).await;
    session.send(&process(1, "before")).await;
    let own = File::open(own_path()).unwrap();
    session.send_with(&executable(5, 50, &own_path()), &own).await;
    session.send(&samples(1, 2, &known_stack(5))).await;
    let profile = bench.profile("{comm=\"before\"}", "").await.unwrap();
    assert!(stacks(&profile)[0].0[0].ends_with("known_leaf"));
    assert_eq!(bench.get("/readyz").await.status, 200);
    drop(session);

    bench.until("the uploader sees the end", async || bench.get("/readyz").await.status == 503).await;
    let session = bench.session(2).await;
    // Other ids, the same file; without its open file, as the names are known.
    session.send(&process(9, "after")).await;
    session.send(&executable(1, 50, &own_path())).await;
    let message = samples(9, 3, &known_stack(1));
    let (profile, ()) = tokio::join!(bench.profile("{comm=\"after\"}", ""), session.send(&message));
    let profile = profile.unwrap();
    check(&profile).unwrap();
    assert_eq!(total(&profile), 3);
    assert!(stacks(&profile)[0].0[0].ends_with("known_leaf"), "{:?}", stacks(&profile));
    assert_eq!(bench.metric("bulkhead_collector_reconnects_total").await, 1);
    assert_eq!(bench.metric("bulkhead_collector_restarts_total").await, 1);
    assert_eq!(bench.metric("bulkhead_samples_total").await, 5);
    assert_eq!(bench.metric("bulkhead_degraded_total{reason=\"unknown_process\"}").await, 0);
}

#[tokio::test]
async fn targets_are_listed_waited_for_and_merged() {
    let mut bench = Bench::start().await;
    let session = bench.session(1).await;
    for (id, comm) in [(1, "a"), (2, "b<b>\"")] {
        session.send(&process(id, comm)).await;
    }
    let feed = async {
        loop {
            session.send(&samples(1, 2, &[])).await;
            session.send(&samples(2, 3, &[])).await;
            sleep(WINDOW / 20).await;
        }
    };
    let look = async {
        let merged = bench.profile("{comm=~\"a|b.*\", zone=\"z\"}", "").await.unwrap();
        check(&merged).unwrap();
        let one = bench.profile("{comm=\"a\"}", "&window=last").await.unwrap();
        assert!(total(&merged) > total(&one));
        let all = bench.profile("{}", "&window=last").await.unwrap();
        assert!(total(&all) > 0);

        let missing = bench.profile("{comm=\"c\"}", "&window=last").await.unwrap_err();
        assert_eq!(missing.status, 404);
        assert!(missing.text().contains("/api/targets"));
        let started = std::time::Instant::now();
        let missing = bench.profile("{comm=\"c\"}", "").await.unwrap_err();
        assert_eq!(missing.status, 404);
        assert!(missing.text().contains("no target that matches was running"), "{}", missing.text());
        assert!(started.elapsed() >= WINDOW);
        for path in ["/query", "/query?query=x", "/query?query=%7B%7D&window=first", "/query?query=%ff"] {
            let answer = bench.get(path).await;
            assert_eq!(answer.status, 400, "{path}: {}", answer.head);
            assert!(answer.text().len() > 20, "{path}");
        }

        let answer = bench.get("/api/targets").await;
        let targets: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(targets[0]["labels"]["comm"], "a");
        assert_eq!(targets[0]["labels"]["node"], "node-1");
        assert_eq!(targets[1]["labels"]["comm"], "b<b>\"");
        assert_eq!(targets[1]["profile_type"], "cpu");
        assert_eq!(targets[1]["complete"], 1.0);
        assert_eq!(targets[1]["by_frame_pointers"], 0.0);
        assert!(targets[1]["samples"].as_u64().unwrap() > 0);
        assert_eq!(targets[1]["ends"]["root"], targets[1]["samples"]);
        assert_eq!(targets[1]["error"], serde_json::Value::Null);
        let time = targets[1]["last_profile"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z'), "{time}");
        // A target's own selector leads back to it.
        let query = targets[1]["query"].as_str().unwrap();
        assert!(total(&bench.profile(query, "&window=last").await.unwrap()) > 0);
    };
    tokio::select! { () = feed => {}, () = look => {} }
    let folders = std::fs::read_dir(bench.store()).unwrap().count();
    assert_eq!(folders, 2, "each target has a folder");
}

#[tokio::test]
async fn files_are_asked_for_and_what_cannot_be_had_stays_unnamed() {
    let mut bench = Bench::start().await;
    let mut session = bench.session(1).await;
    session.send(&process(1, "late")).await;
    session.send(&executable(5, 50, &own_path())).await;
    session.send(&executable(6, 51, Path::new("/gone"))).await;
    let mut stack = known_stack(5).to_vec();
    stack.push(UserFrame::File(ExecutableId(6), FileOffset(0x1235)));
    stack.push(UserFrame::Anonymous(ProcessAddress(0x7000_0011)));
    stack.push(UserFrame::Anonymous(ProcessAddress(0x7000_2000)));
    let mut map = tempfile::tempfile().unwrap();
    write!(map, "70000000 20 jit <b>name</b>\nbroken line\n").unwrap();
    let answer = async {
        session.send(&FromCollector::Anonymous(Anonymous { process: ProcessId(1) })).await;
        session.send(&samples(1, 4, &stack)).await;
        let mut seen = Vec::new();
        let all = [
            FromUploader::Reopen(ExecutableId(5)),
            FromUploader::Reopen(ExecutableId(6)),
            FromUploader::ReopenPerfMap(ProcessId(1)),
        ];
        while !all.iter().all(|request| seen.contains(request)) {
            let request = session.request().await;
            seen.push(request.clone());
            match request {
                FromUploader::Reopen(ExecutableId(5)) => {
                    session
                        .send_with(&executable(5, 50, &own_path()), &File::open(own_path()).unwrap())
                        .await;
                }
                FromUploader::Reopen(id) => {
                    session.send(&FromCollector::NotReopened(NotReopened::Executable(id))).await;
                }
                FromUploader::ReopenPerfMap(process) => {
                    session.send_with(&FromCollector::Anonymous(Anonymous { process }), &map).await;
                }
                unasked => panic!("{unasked:?}"),
            }
        }
        seen
    };
    let (profile, seen) = tokio::join!(bench.profile("{comm=\"late\"}", ""), answer);
    let profile = profile.unwrap();
    check(&profile).unwrap();
    let stacks = stacks(&profile);
    let names = &stacks[0].0;
    assert!(names[0].ends_with("known_leaf"), "{names:?}");
    let expected = ["/gone+0x1234", "jit <b>name</b>", "[anonymous]+0x70001fff"];
    assert_eq!(names[names.len() - 3..], expected);
    assert!(seen.len() <= 6, "it asks again and again: {seen:?}");
    let targets = bench.get("/api/targets").await.text();
    assert!(targets.contains("frames in /gone have no names"), "{targets}");
}

#[tokio::test]
async fn another_release_is_refused_without_haste() {
    let mut bench = Bench::start().await;
    let socket = bench.accept().await;
    let (sender, mut receiver) = socket.split();
    let hello = Hello { protocol: 99, role: Role::Collector, release: "bulkhead 9.9".into() };
    sender.send_packet(&hello.to_bytes(), None).await.unwrap();
    // The uploader hangs up.
    while receiver.receive().await.is_ok() {}
    let again = tokio::time::timeout(Duration::from_secs(2), bench.accept()).await;
    assert!(again.is_err(), "it waits for somebody to install another release");
    assert_eq!(bench.get("/healthz").await.status, 200);
    assert_eq!(bench.get("/readyz").await.status, 503);
    assert_eq!(bench.metric("bulkhead_collector_sessions_total").await, 0);
}

#[tokio::test]
async fn what_a_broken_collector_says_ends_its_session_and_no_more() {
    let mut bench = Bench::start().await;
    // No message at all.
    let session = bench.session(1).await;
    session.send_bytes(&[0xff; 100]).await.unwrap();
    session.hung_up().await;
    // A second welcome.
    let session = bench.session(1).await;
    session.send(&welcome(1)).await;
    session.hung_up().await;
    // A file where none belongs.
    let session = bench.session(1).await;
    session.send_with(&process(1, "x"), &tempfile::tempfile().unwrap()).await;
    session.hung_up().await;
    // No welcome.
    let mut channel = bench.accept().await;
    ipc::greet_uploader(&mut channel).await.unwrap();
    let (sender, mut receiver) = channel.split();
    sender.send(&process(1, "x"), None).await.unwrap();
    while receiver.receive().await.is_ok() {}
    assert_eq!(bench.metric("bulkhead_collector_faults_total").await, 4);

    // Files that are none, and files that are no executables.
    let session = bench.session(1).await;
    session.send(&process(1, "x")).await;
    let (pipe, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    session.send_with(&executable(1, 1, Path::new("/pipe")), &pipe).await;
    session.send_with(&executable(2, 2, Path::new("/empty")), &tempfile::tempfile().unwrap()).await;
    let mut cut = tempfile::tempfile().unwrap();
    cut.write_all(&std::fs::read(own_path()).unwrap()[..5000]).unwrap();
    session.send_with(&executable(3, 3, Path::new("/cut")), &cut).await;
    let sparse = tempfile::tempfile().unwrap();
    sparse.set_len(1 << 30).unwrap();
    session.send_with(&executable(4, 4, Path::new("/sparse")), &sparse).await;
    session.send_with(&kernel_symbols().0, &pipe).await;
    let stack: Vec<_> = (1..=6)
        .map(|id| UserFrame::File(ExecutableId(id), FileOffset(u64::MAX - u64::from(id))))
        .chain([UserFrame::Anonymous(ProcessAddress(u64::MAX)), UserFrame::Anonymous(ProcessAddress(0))])
        .collect();
    let kernel: Vec<_> = (0..2000).map(|id| KernelFrame::Known(ModuleId(id), u64::MAX)).collect();
    let hostile = Sample {
        timestamp: u64::MAX,
        process: ProcessId(1),
        tid: u32::MAX,
        cpu: u32::MAX,
        thread_comm: vec![0xff; 500],
        end: 255,
        guessed: 0,
        kernel,
        user: stack,
    };
    let message = FromCollector::Samples(vec![hostile]);
    let (profile, ()) = tokio::join!(bench.profile("{comm=\"x\"}", ""), session.send(&message));
    let profile = profile.unwrap();
    check(&profile).unwrap();
    assert_eq!(total(&profile), 1);
    assert!(bench.metric("bulkhead_executables_total{outcome=\"unreadable\"}").await >= 3);
}

#[tokio::test]
async fn mirrors_do_not_grow_without_bound() {
    let mut bench = Bench::start().await;
    let session = bench.session(1).await;
    for id in 0..70_000 {
        session.send(&process(id, "x")).await;
    }
    for id in 0..20_000 {
        session.send(&executable(id, id.into(), Path::new("/x"))).await;
    }
    bench.until("all is read", async || bench.metric("bulkhead_messages_total").await == 90_001).await;
    assert_eq!(bench.metric("bulkhead_entries{of=\"processes\"}").await, 65_536);
    assert_eq!(bench.metric("bulkhead_entries{of=\"executables\"}").await, 16_384);
    assert_eq!(bench.metric("bulkhead_degraded_total{reason=\"mirror_full\"}").await, 70_000 - 65_536);
}

#[tokio::test]
async fn foreign_hosts_and_large_heads_are_refused() {
    let bench = Bench::start().await;
    let answer = bench.ask("GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.status, 421);
    assert!(answer.text().contains("--http-allowed-host=evil.example"));
    let answer = bench.get("/healthz").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-security-policy: default-src 'none'"), "{}", answer.head);
    assert!(answer.head.contains("x-content-type-options: nosniff"));
    let long = "x".repeat(100_000);
    let answer = bench.ask(&format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    assert!(answer.status == 431 || answer.status == 414 || answer.status == 0, "{}", answer.status);
    let answer = bench.ask("POST /query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.status, 405);
    assert_eq!(bench.get("/nowhere").await.status, 404);
    assert_eq!(bench.get("/healthz").await.status, 200);
}
