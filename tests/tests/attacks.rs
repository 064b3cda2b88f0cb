//! Attacks on both running halves from outside, and what each half does to itself whatever it was started with: filters, capabilities,
//! who may look into it, what another user of the machine may do to it. Each test has halves of its own, one test at a time.
#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
};

use tests::{
    http,
    process::{Running, run},
    system::{
        CAPABILITIES, COLLECTOR_USER, Options, Place, System, UPLOADER_USER, alone, as_collector, as_user,
        free_port, ids, publish, status_fields, threads,
    },
    wait::wait_for,
};

/// The sets of capabilities that a thread has.
const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
/// A user who has to do with neither half.
const THIRD: &str = "65534";

fn system() -> System {
    System::start(Options { window: "2s", ..Options::default() })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Runs a shell as a user without any capability, or as who this test is. `"$1"` and so on are the arguments.
fn shell(user: Option<&str>, script: &str, arguments: &[&str]) -> (bool, String) {
    let flags = user.map(as_user).unwrap_or_default();
    let mut line: Vec<&str> = Vec::new();
    if user.is_some() {
        line.push("setpriv");
    }
    line.extend(flags.iter().map(String::as_str));
    line.extend(["/bin/sh", "-c", script, "sh"]);
    line.extend(arguments);
    let (status, output) = run(&line);
    (status.success(), output)
}

/// Whether something failed because this user may not do it, and for no other reason.
fn is_refused((success, output): &(bool, String)) -> bool {
    !success && (output.contains("Permission denied") || output.contains("Operation not permitted"))
}

/// How many filters a process has that nobody of these tests put there: where they run in a container it may have one.
fn filters_of_others() -> u32 {
    status_fields(std::process::id(), &["Seccomp_filters"])["Seccomp_filters"].parse().unwrap()
}

#[test]
fn every_thread_of_both_halves_has_the_filters_of_its_half() {
    let _alone = alone();
    let system = system();
    let others = filters_of_others();
    let assert_filters = |half: &str, threads: &[BTreeMap<String, String>], own: u32| {
        for thread in threads {
            let (mode, filters) = (&thread["Seccomp"], &thread["Seccomp_filters"]);
            assert_eq!(mode, "2", "Seccomp of the {half}");
            assert_eq!(filters, &(others + own).to_string(), "Seccomp_filters of the {half}");
        }
    };
    let names = ["Seccomp", "Seccomp_filters"];
    // One for each error that calls fail with, and the list.
    let collector = threads(system.collector_pid(), &names);
    assert_eq!(collector.len(), 1, "threads of the collector");
    assert_filters("collector", &collector, 2);
    // Threads that were started long after the filters were set have them too.
    wait_for("the uploader has more than one thread", 20, || {
        let uploader = threads(system.uploader_pid(), &names);
        assert_filters("uploader", &uploader, 3);
        (uploader.len() > 1).then_some(())
    });

    // landlock_create_ruleset(2) with LANDLOCK_CREATE_RULESET_VERSION: what this kernel has.
    let script = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let (_, version) = run(&["/usr/bin/python3", "-c", script]);
    let version: i32 = version.trim().parse().unwrap();
    let metrics = system.metrics();
    let log = system.place().log("uploader");
    for (since, part) in [
        (1, "files"),
        (3, "truncation"),
        (4, "tcp_ports"),
        (5, "device_control"),
        (6, "signals_and_abstract_sockets"),
    ] {
        let enforced = metrics[&format!("bulkhead_landlock_enforced{{part=\"{part}\"}}")] > 0.0;
        assert_eq!(enforced, version >= since, "{part}, where landlock has version {version}");
        let said = log.lines().any(|line| line.contains("does not restrict") && line.contains(part));
        assert_eq!(said, !enforced, "{part}: {log}");
    }
}

#[test]
fn the_running_uploader_opens_nothing_outside_its_folders() {
    const FIRST: &str = "the-first-token-of-this-test";
    const OUTSIDE: &str = "a-token-that-lies-elsewhere";
    const SECOND: &str = "the-second-token-of-this-test";
    let _alone = alone();
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = publish(folder.path(), "token", FIRST);
    let outside = publish(elsewhere.path(), "token", OUTSIDE);
    let place = Place::new();
    let address = format!("127.0.0.1:{}", free_port());
    let flags = [format!("--http-address={address}"), format!("--http-token-file={path}")];
    let _uploader = place.uploader_with(&flags);
    let is_let_in = |token: &str| {
        let bearer = format!("Bearer {token}");
        http::get(&address, "/metrics", &[("Authorization", &bearer)])
            .is_ok_and(|answer| answer.status == 200)
    };
    wait_for("the page answers", 20, || is_let_in(FIRST).then_some(()));
    // Any user may read it; what was named at the start is the folder of the first.
    assert!(shell(Some(UPLOADER_USER), "cat \"$1\"", &[&outside]).0);
    symlink(&outside, folder.path().join("link")).unwrap();
    fs::rename(folder.path().join("link"), &path).unwrap();
    wait_for("it is said", 10, || {
        assert!(!is_let_in(OUTSIDE), "a file outside its folders was read");
        place
            .log("uploader")
            .lines()
            .any(|line| line.contains("token") && line.contains("denied"))
            .then_some(())
    });
    assert!(is_let_in(FIRST));
    publish(folder.path(), "token", SECOND);
    wait_for("one in the folder is read", 10, || is_let_in(SECOND).then_some(()));
}

fn sets(pid: u32) -> Vec<BTreeMap<String, String>> {
    let mut names = SETS.to_vec();
    names.push("NoNewPrivs");
    threads(pid, &names)
}

fn bits(set: &str) -> u64 {
    u64::from_str_radix(set, 16).unwrap()
}

/// setpriv's flags for a user with these capabilities in all sets but the bounding one, which stays full.
fn with_ambient(user: &str, capabilities: &str) -> Vec<String> {
    [
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".into(),
        format!("--inh-caps=-all,{capabilities}"),
        format!("--ambient-caps=-all,{capabilities}"),
    ]
    .into()
}

#[test]
fn whatever_the_uploader_is_started_with_it_keeps_no_capability() {
    let _alone = alone();
    let every = bits(&status_fields(std::process::id(), &["CapBnd"])["CapBnd"]);
    let some = "+chown,+net_bind_service,+sys_admin";
    for (how, setpriv, said, bounding) in [
        ("as root", Vec::new(), "started as root", 0),
        (
            "with ambient capabilities",
            with_ambient(UPLOADER_USER, &format!("{some},+setpcap")),
            "started with capabilities",
            0,
        ),
        // The bounding set is whoever's may change it. Nothing can come of it: no exec gives a new privilege, and there is none.
        ("without CAP_SETPCAP", with_ambient(UPLOADER_USER, some), "started with capabilities", every),
    ] {
        let place = Place::new();
        let address = format!("127.0.0.1:{}", free_port());
        let uploader = place.uploader_as(&setpriv, &[], &words(&[&format!("--http-address={address}")]));
        wait_for("the page answers", 20, || {
            http::get(&address, "/healthz", &[]).ok().filter(|answer| answer.status == 200)
        });
        let log = place.log("uploader");
        assert_eq!(log.matches(said).count(), 1, "{how}: {log}");
        for thread in sets(uploader.pid()) {
            for set in SETS {
                let expected = if set == "CapBnd" { bounding } else { 0 };
                assert_eq!(bits(&thread[set]), expected, "{set} of the uploader, started {how}");
            }
            assert_eq!(thread["NoNewPrivs"], "1", "{how}");
        }
    }
}

#[test]
fn whatever_the_collector_is_started_with_it_keeps_three_capabilities() {
    let _alone = alone();
    // CAP_DAC_READ_SEARCH (2), CAP_SYS_PTRACE (19), CAP_CHECKPOINT_RESTORE (40); the six have CAP_SYSLOG (34), CAP_PERFMON (38) and CAP_BPF
    // (39) too.
    let kept = 1u64 << 2 | 1 << 19 | 1 << 40;
    let six = kept | 1 << 34 | 1 << 38 | 1 << 39;
    for (how, setpriv, bounding) in [
        ("as script/run does", as_collector(&CAPABILITIES), six),
        // Who may change the bounding set leaves nothing in it but what is kept.
        ("as root", Vec::new(), kept),
    ] {
        let place = Place::new();
        let collector = place.collector_as(&setpriv, &[]);
        wait_for("it listens", 30, || place.log("collector").contains("listening on").then_some(()));
        for thread in sets(collector.pid()) {
            let found = SETS.map(|set| bits(&thread[set]));
            assert_eq!(found, [0, kept, kept, bounding, 0], "{SETS:?} of the collector, started {how}");
            assert_eq!(thread["NoNewPrivs"], "1", "{how}");
        }
    }
}

/// Looks into a process, in three ways.
const LOOKS: [&str; 3] =
    ["cat \"/proc/$1/environ\" >/dev/null", "cat \"/proc/$1/maps\" >/dev/null", "exec 3<\"/proc/$1/mem\""];

#[test]
fn nobody_of_its_own_user_looks_into_a_half_and_it_leaves_no_core() {
    let _alone = alone();
    let system = system();
    for (user, pid) in [(COLLECTOR_USER, system.collector_pid()), (UPLOADER_USER, system.uploader_pid())] {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
        let core: Vec<_> = core.split_whitespace().collect();
        assert_eq!(core[..2], ["0", "0"], "core dumps of {user}");
        assert_eq!(status_fields(pid, &["Umask"])["Umask"], "0077", "umask of {user}");

        let environ = |pid: u32| fs::metadata(format!("/proc/{pid}/environ")).unwrap();
        assert_eq!(environ(pid).uid(), 0, "who may look into {user}");
        // Another process of the same user, which does nothing about it.
        let open =
            Running::start_line("sleep", &as_user(user), &["sleep", "60"], &system.place().path("log/sleep"));
        wait_for("it sleeps", 10, || {
            let comm = fs::read_to_string(format!("/proc/{}/comm", open.pid())).unwrap();
            (comm.trim() == "sleep").then_some(())
        });
        assert_eq!(environ(open.pid()).uid(), ids(user).0);
        for look in LOOKS {
            let into = |user: Option<&str>, pid: u32| shell(user, look, &[&pid.to_string()]);
            let (success, output) = into(Some(user), open.pid());
            assert!(success, "{look}, of a process that lets its user: {output}");
            let (success, output) = into(None, pid);
            assert!(success, "{look}, as root: {output}");
            let attempt = into(Some(user), pid);
            assert!(is_refused(&attempt), "{look}, as {user}: {attempt:?}");
        }
    }
}

/// What is done, by which users it is tried, and how: `$1` is the collector, `$2` the uploader, `$3` the folder of the place, `$4` a folder
/// that anybody may write to.
type Attack = (&'static str, &'static [&'static str], &'static str);

const ON_COLLECTOR: &[&str] = &[UPLOADER_USER, THIRD];
const ON_UPLOADER: &[&str] = &[COLLECTOR_USER, THIRD];
/// ptrace(2) with `PTRACE_SEIZE`, which does not stop it.
const TRACE: &str = "/usr/bin/python3 -c 'import ctypes, os, sys\n\
    libc = ctypes.CDLL(None, use_errno=True)\n\
    sys.exit(libc.ptrace(0x4206, int(sys.argv[1]), 0, 0) and os.strerror(ctypes.get_errno()))' \"$1\"";

/// Those that do most harm come last, since root does all of them.
const ATTACKS: &[Attack] = &[
    ("read the collector's memory", ON_COLLECTOR, "exec 3<\"/proc/$1/mem\""),
    ("read the collector's environment", ON_COLLECTOR, "cat \"/proc/$1/environ\""),
    ("list the collector's descriptors", ON_COLLECTOR, "ls \"/proc/$1/fd/\""),
    ("list what the collector has mapped", ON_COLLECTOR, "ls \"/proc/$1/map_files/\""),
    ("see the collector's addresses", ON_COLLECTOR, "cat \"/proc/$1/maps\""),
    ("enter the collector's root", ON_COLLECTOR, "ls \"/proc/$1/root/\""),
    ("trace the collector", ON_COLLECTOR, TRACE),
    ("read the collector's log", ON_COLLECTOR, "cat \"$3/log/collector\""),
    ("read the collector's log by its descriptor", ON_COLLECTOR, "cat \"/proc/$1/fd/2\""),
    ("read the uploader's memory", ON_UPLOADER, "exec 3<\"/proc/$2/mem\""),
    ("read the uploader's environment", ON_UPLOADER, "cat \"/proc/$2/environ\""),
    ("list the uploader's descriptors", ON_UPLOADER, "ls \"/proc/$2/fd/\""),
    ("list the store", ON_UPLOADER, "ls \"$3/data/store/\""),
    ("list the spool", ON_UPLOADER, "ls \"$3/data/spool/\""),
    ("find the socket", &[THIRD], "ls \"$3/run/\""),
    ("make a file beside the socket", ON_COLLECTOR, ": >\"$3/run/mine\""),
    ("open the socket's folder to all", ON_COLLECTOR, "chmod 2755 \"$3/run\""),
    ("open the socket to all", ON_COLLECTOR, "chmod 666 \"$3/run/collector.sock\""),
    ("move the socket's folder", ON_COLLECTOR, "mv \"$3/run\" \"$3/away\" && mv \"$3/away\" \"$3/run\""),
    ("unlink the socket", ON_COLLECTOR, "rm \"$3/run/collector.sock\""),
    ("replace the socket", ON_COLLECTOR, "touch \"$4/$$\" && mv \"$4/$$\" \"$3/run/collector.sock\""),
    ("kill the uploader", ON_UPLOADER, "kill -KILL \"$2\""),
    ("kill the collector", ON_COLLECTOR, "kill -KILL \"$1\""),
];

#[test]
fn other_users_can_do_nothing_to_either_half() {
    let _alone = alone();
    let (uploader, group) = ids(UPLOADER_USER);
    let options = Options { window: "2s", ..Options::default() };
    let system = System::start_with(options, |place| {
        // Folders that the uploader makes, where anybody may look.
        let data = place.path("data");
        fs::create_dir(&data).unwrap();
        chown(&data, Some(uploader), Some(group)).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| data.join(name).display().to_string();
        vec![
            format!("--local-store-directory={}", path("store")),
            format!("--spool-directory={}", path("spool")),
            // Nobody is there: profiles stay in the spool.
            format!("--store-address=127.0.0.1:{}", free_port()),
            "--insecure".into(),
        ]
    });
    let place = system.place();
    let public = place.path("public");
    fs::create_dir(&public).unwrap();
    fs::set_permissions(&public, Permissions::from_mode(0o777)).unwrap();
    let (collector, uploader) = (system.collector_pid().to_string(), system.uploader_pid().to_string());
    let (folder, public) = (place.path("").display().to_string(), public.display().to_string());
    let arguments = [collector.as_str(), &uploader, &folder, &public];
    for (what, users, script) in ATTACKS {
        for user in *users {
            let attempt = shell(Some(user), script, &arguments);
            assert!(is_refused(&attempt), "{user} could {what}: {attempt:?}");
        }
    }
    assert_eq!((system.collector_status(), system.uploader_status()), (None, None));
    assert!(Path::new(&place.socket()).exists());
    let metrics = system.metrics();
    assert!(
        metrics["bulkhead_collector_connected"] > 0.0 && metrics["bulkhead_collector_sessions_total"] < 2.0
    );

    // Each is something that can be done.
    for (what, _, script) in ATTACKS {
        let (success, output) = shell(None, script, &arguments);
        assert!(success, "root could not {what}: {output}");
    }
}

#[test]
fn a_fence_that_is_not_there_is_said() {
    let _alone = alone();
    let system = system();
    // The descriptor that keeps it up (`FENCE_LINK` in collector/src/policy.rs).
    let link = format!("/proc/{}/fd/1000", system.collector_pid());
    let is_there = fs::symlink_metadata(&link).is_ok();
    println!("this kernel has {} fence", if is_there { "a" } else { "no" });
    let metric = system.metrics()["bulkhead_collector_limited{by=\"no_fence\"}"];
    assert_eq!(metric > 0.0, !is_there, "/metrics: {metric}");
    let log = system.place().log("collector");
    let said =
        log.lines().filter(|line| line.contains("warning:") && line.contains("the fence of a BPF LSM"));
    assert_eq!(said.count(), usize::from(!is_there), "{log}");
}
