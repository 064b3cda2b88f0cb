//! The wall between the halves and what happens when one of them goes: users, capabilities, who may connect, restarts,
//! and errors that a person meets. Each test has halves of its own, one test at a time.
#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::Path,
};

use rustix::{
    net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, connect, recv, send, socket},
    process::Signal,
};
use tests::{
    process::{Running, run},
    system::{AGAIN, CAPABILITIES, Options, Place, System, alone, publish, status_fields},
    wait::wait_for,
};
use workloads::{CallTree, Start};

fn system() -> System {
    System::start(Options { window: "2s", ..Options::default() })
}

fn flags(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

#[test]
fn each_half_has_its_own_user_and_only_what_it_still_needs() {
    let _alone = alone();
    let system = system();
    let names = ["CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "Uid"];
    let uploader = status_fields(system.uploader_pid(), &names);
    let collector = status_fields(system.collector_pid(), &names);
    let none = "0000000000000000";
    // CAP_DAC_READ_SEARCH (2), CAP_SYS_PTRACE (19), CAP_CHECKPOINT_RESTORE (40).
    let kept = format!("{:016x}", 1u64 << 2 | 1 << 19 | 1 << 40);
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(uploader[name], none, "{name} of the uploader");
        let expected = if name == "CapPrm" || name == "CapEff" { kept.as_str() } else { none };
        assert_eq!(collector[name], expected, "{name} of the collector");
    }
    assert_eq!((uploader["NoNewPrivs"].as_str(), collector["NoNewPrivs"].as_str()), ("1", "1"));
    assert_ne!(uploader["Uid"], collector["Uid"]);
    assert!(!uploader["Uid"].starts_with("0\t") && !collector["Uid"].starts_with("0\t"));
}

#[test]
fn halves_survive_each_other() {
    let _alone = alone();
    let system = system();
    let tree = CallTree::standard("survivor", Start::Bare);
    let _load = Running::start(&tree.build().unwrap(), &[""; 0]);
    system.collect("{comm=\"survivor\"}", 50, 30);

    system.stop_uploader(Signal::KILL);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(system.collector_status(), None, "{}", system.place().log("collector"));
    system.start_uploader();
    system.wait_ready();
    assert!(system.collect("{comm=\"survivor\"}", 50, 10).total() >= 50);
    let lost = "bulkhead_lost_total{reason=\"no_uploader\"}";
    wait_for("what was lost without an uploader is counted", 10, || {
        (system.metric(lost) > 0.0).then_some(())
    });

    system.stop_collector(Signal::KILL);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(system.uploader_status(), None, "{}", system.place().log("uploader"));
    system.start_collector();
    assert!(system.collect("{comm=\"survivor\"}", 50, 15).total() >= 50);
    assert!(system.metric("bulkhead_collector_sessions_total") >= 2.0);
    assert!(system.metric("bulkhead_collector_restarts_total") >= 1.0);
    assert!(system.metric("bulkhead_collector_disconnected_seconds_total") > 0.0);
}

/// A seqpacket connection to the socket, or why there is none.
fn connect_to(path: &str) -> rustix::io::Result<rustix::fd::OwnedFd> {
    let file = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    connect(&file, &SocketAddrUnix::new(path)?)?;
    Ok(file)
}

/// What comes next on a connection.
fn next_packet(file: &rustix::fd::OwnedFd) -> Vec<u8> {
    let mut buffer = [0; 128];
    let (length, _) = recv(file, &mut buffer, RecvFlags::empty()).unwrap_or((0, 0));
    buffer[..length].to_vec()
}

#[test]
fn another_user_may_not_connect() {
    let _alone = alone();
    let system = system();
    let path = system.place().socket();
    let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\ns.settimeout(5)\ns.connect(sys.argv[1])\nprint('got',len(s.recv(100)))";
    let as_nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        script,
        &path,
    ];
    let (status, output) = run(&as_nobody);
    assert!(!status.success() && output.contains("Permission"), "{output}");
    // Root can pass the folder and the mode, and is turned away before a byte.
    let stranger = connect_to(&path).unwrap();
    assert_eq!(next_packet(&stranger), [0; 0]);
    wait_for("it is said", 5, || system.place().log("collector").contains("user 0 connected").then_some(()));
    // The uploader goes on.
    system.collect("{comm=~\".*\"}", 1, 10);
}

#[test]
fn halves_of_different_versions_tell_each_other() {
    let _alone = alone();
    let place = Place::new();
    // The one user who may connect is the test's own.
    let collector = place.collector_with(&CAPABILITIES, &flags(&["--uploader-user=0"]));
    wait_for("the collector listens", 20, || connect_to(&place.socket()).ok().map(drop));
    let peer = wait_for("the place is free", 10, || {
        let peer = connect_to(&place.socket()).ok()?;
        let hello = ipc::Hello { protocol: 99, role: ipc::Role::Uploader, release: "bulkhead 9.9".into() };
        send(&peer, &hello.to_bytes(), SendFlags::NOSIGNAL).ok()?;
        let answer = ipc::Hello::from_bytes(&next_packet(&peer))?;
        Some((peer, answer))
    });
    assert_eq!(peer.1.protocol, ipc::PROTOCOL_VERSION);
    assert_eq!(next_packet(&peer.0), [0; 0], "the connection is closed");
    wait_for("both versions are named", 5, || {
        let both = format!("speaks protocol 99, this one {}", ipc::PROTOCOL_VERSION);
        place.log("collector").contains(&both).then_some(())
    });
    drop(collector);
}

/// Starts a collector that must end by itself; gives its status and what it said.
fn failing_collector(place: &Place, capabilities: &[&str], more: &[&str]) -> (i32, String) {
    let mut collector = place.collector_with(capabilities, &flags(more));
    let status = collector.wait_end(20);
    (status.code().unwrap_or(-1), place.log("collector"))
}

#[test]
fn what_a_collector_lacks_is_named() {
    let _alone = alone();
    for missing in ["bpf", "perfmon"] {
        let place = Place::new();
        let capabilities: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != missing).collect();
        let (status, log) = failing_collector(&place, &capabilities, &[]);
        assert_eq!(status, 1, "{log}");
        assert!(
            log.contains(&format!("CAP_{}", missing.to_uppercase())) && log.lines().count() == 1,
            "{log}"
        );
    }
    for (missing, named) in [
        ("syslog", "CAP_SYSLOG"),
        ("sys_ptrace", "CAP_SYS_PTRACE"),
        ("dac_read_search", "CAP_DAC_READ_SEARCH"),
        ("checkpoint_restore", "CAP_CHECKPOINT_RESTORE"),
    ] {
        let place = Place::new();
        let capabilities: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != missing).collect();
        let mut collector = place.collector_with(&capabilities, &[]);
        wait_for("it runs, and says what is missing", 20, || {
            let log = place.log("collector");
            (log.contains(named) && log.contains("sampling")).then_some(())
        });
        assert_eq!(collector.status(), None);
    }
}

#[test]
fn errors_that_a_person_meets_are_one_line() {
    let _alone = alone();
    let place = Place::new();
    let (status, log) = failing_collector(&place, &CAPABILITIES, &["--uploader-user=no-such-user"]);
    assert!(status == 1 && log.contains("no-such-user") && log.lines().count() == 1, "{status}: {log}");

    let place = Place::new();
    let first = place.collector_with(&CAPABILITIES, &[]);
    wait_for("the first listens", 20, || place.log("collector").contains("listening").then_some(()));
    let (status, log) = failing_collector(&place, &CAPABILITIES, &[]);
    assert!(status == 1 && log.contains("another process listens"), "{status}: {log}");
    drop(first);

    let place = Place::new();
    fs::write(place.socket(), "").unwrap();
    let (status, log) = failing_collector(&place, &CAPABILITIES, &[]);
    assert!(status == 1 && log.contains("is no socket"), "{status}: {log}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let store = "--store-address=localhost:7070";
    for (line, status, part) in [
        (&[&format!("--http-address={address}") as &str][..], 1, address.as_str()),
        (&["--local-store-directory=/proc/no"], 1, "/proc/no"),
        (&[store, "--spool-directory=/proc/no"], 1, "/proc/no"),
        (&[store, "--bearer-token-file=/no/token"], 1, "/no/token"),
        (&[store, "--store-ca-file=/no/ca.pem"], 1, "/no/ca.pem"),
        (&[store, "--store-ca-file=/etc/hostname"], 1, "no certificate"),
        (&["--store-address=https://localhost"], 2, "store-address"),
        (&["--kubernetes"], 1, "--kubeconfig"),
        (&["--kubeconfig=/no/config"], 1, "/no/config"),
        (&["--bogus"], 2, "bogus"),
    ] {
        let place = Place::new();
        let mut uploader = place.uploader_with(&flags(line));
        let ended = uploader.wait_end(20);
        let log = place.log("uploader");
        assert_eq!(ended.code(), Some(status), "{line:?}: {log}");
        assert!(log.contains(part), "{line:?}: {log}");
        assert!(status == 2 || log.lines().count() == 1, "{line:?}: {log}");
    }
}

/// A setting of the kernel's that is put back, whatever happens.
struct Setting {
    path: &'static str,
    old: String,
}

impl Setting {
    fn set(path: &'static str, value: &str) -> Self {
        let old = fs::read_to_string(path).unwrap().trim().to_owned();
        fs::write(path, value).unwrap();
        Setting { path, old }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.path, &self.old);
    }
}

#[test]
fn hidden_kernel_addresses_are_said_and_come_back() {
    let _alone = alone();
    let place = Place::new();
    let setting = Setting::set("/proc/sys/kernel/kptr_restrict", "2");
    let mut collector = place.collector_with(&CAPABILITIES, &[]);
    wait_for("it runs", 20, || place.log("collector").contains("sampling").then_some(()));
    let log = place.log("collector");
    assert_eq!(log.lines().filter(|line| line.contains("kptr_restrict")).count(), 1, "{log}");
    assert_eq!(collector.status(), None);
    drop(setting);
    if fs::read_to_string("/proc/sys/kernel/kptr_restrict").unwrap().trim() == "2" {
        return;
    }
    assert_eq!(collector.wait_end(10).code(), Some(AGAIN), "{}", place.log("collector"));
}

#[test]
fn a_cpu_that_comes_online_is_profiled() {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    let _alone = alone();
    if !Path::new(ONLINE).exists() {
        println!("this machine has no second CPU that can go offline");
        return;
    }
    let place = Place::new();
    let mut collector = place.collector_with(&CAPABILITIES, &[]);
    wait_for("it runs", 20, || place.log("collector").contains("sampling 2 CPUs").then_some(()));
    let offline = Setting::set(ONLINE, "0");
    wait_for("it is said", 10, || place.log("collector").contains("went offline").then_some(()));
    assert_eq!(collector.status(), None, "a CPU that goes offline is no error");
    drop(offline);
    assert_eq!(collector.wait_end(10).code(), Some(AGAIN), "{}", place.log("collector"));
    drop(collector);
    // Its supervisor starts it again.
    let _again = place.collector_with(&CAPABILITIES, &[]);
    wait_for("both are sampled", 20, || {
        (place.log("collector").matches("sampling 2 CPUs").count() == 2).then_some(())
    });
}

#[test]
fn a_collector_that_is_told_to_stop_leaves_with_0() {
    let _alone = alone();
    let system = system();
    assert_eq!(system.stop_collector(Signal::TERM).code(), Some(0));
    let status = system.stop_uploader(Signal::TERM);
    assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", system.place().log("uploader"));
}

#[test]
fn requests_for_another_host_or_of_another_site_are_refused() {
    let _alone = alone();
    let system = system();
    let own = system.address();
    for (host, origin, status) in [
        (own, String::new(), "200"),
        (own, format!("Origin: http://{own}\r\n"), "200"),
        ("evil.example", String::new(), "421"),
        (own, "Origin: http://evil.example\r\n".into(), "403"),
        (own, "Origin: null\r\n".into(), "403"),
    ] {
        let mut stream = std::net::TcpStream::connect(own).unwrap();
        let request =
            format!("GET /api/targets HTTP/1.1\r\nHost: {host}\r\n{origin}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}{answer}");
        assert!(status == "200" || !answer.contains("comm"), "{answer}");
        assert!(!answer.to_ascii_lowercase().contains("access-control-"), "{answer}");
    }
}

#[test]
fn a_page_with_a_token_shows_nothing_without_it() {
    const TOKEN: &str = "a-token-for-this-test-alone";
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = publish(folder.path(), "token", TOKEN);
    let system = System::start(Options {
        uploader_flags: flags(&[&format!("--http-token-file={path}")]),
        ..Options::default()
    });
    let status = |path: &str, authorization: &[(&str, &str)]| {
        let answer = tests::http::get(system.address(), path, authorization).unwrap();
        assert!(!String::from_utf8_lossy(&answer.body).contains(TOKEN), "{path}");
        answer.status
    };
    wait_for("the page answers", 20, || {
        tests::http::get(system.address(), "/healthz", &[]).ok().filter(|answer| answer.status == 200)
    });
    let bearer = format!("Bearer {TOKEN}");
    for path in ["/", "/api/targets", "/api/flamegraph", "/query", "/metrics"] {
        assert_eq!(status(path, &[]), 401, "{path}");
        assert_eq!(status(path, &[("Authorization", "Bearer a-token-for-another-test")]), 401, "{path}");
        assert_ne!(status(path, &[("Authorization", &bearer)]), 401, "{path}");
    }
    assert_eq!(status("/debug", &[("Authorization", &bearer)]), 404);
    // The token is replaced while it runs.
    publish(folder.path(), "token", "the-next-token-of-this-test");
    assert_eq!(status("/metrics", &[("Authorization", &bearer)]), 401);
    assert_eq!(status("/metrics", &[("Authorization", "Bearer the-next-token-of-this-test")]), 200);
    assert!(!system.place().log("uploader").contains(TOKEN));
}
