//! Debug information on its way to the store, and what it is good for there.

use std::{path::PathBuf, process::Command};

use tests::{pprof::Profile, store::Build};
use workloads::plain;

use super::*;

/// The flags of a pair that sends no more than it must: debug information of the tests' programs alone.
fn only(name: &str) -> String {
    format!("--debug-info-allow=.*/{name}[^/]*")
}

/// The build id of a file, as readelf has it.
fn build_id(path: &Path) -> String {
    let (_, output) = run(&["readelf", "-nW", &path.display().to_string()]);
    let id = output.split("Build ID: ").nth(1).and_then(|rest| rest.split_whitespace().next());
    id.unwrap_or_else(|| panic!("no build id: {output}")).to_owned()
}

/// The debug information of a build, when it has arrived.
fn wait_build(journal: &Journal, id: &str) -> Build {
    wait_for(&format!("debug information of {id} arrives"), 60, || journal.builds().remove(id))
}

/// What binutils find by what has arrived: the function at each address.
fn functions(build: &Build, addresses: &[u64]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("debuginfo");
    fs::write(&path, &build.content).unwrap();
    let addresses = addresses.iter().map(|address| format!("{address:#x}"));
    let output = Command::new("addr2line").args(["-f", "-e"]).arg(path).args(addresses).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().step_by(2).map(str::to_owned).collect()
}

fn profile_of(journal: &Journal, comm: &str, samples: i64) -> Profile {
    wait_for(&format!("{samples} samples of {comm} arrive"), 60, || {
        let mut all = Profile::default();
        for one in journal.arrived().into_iter().filter(|one| one.labels["comm"] == comm) {
            all.append(one.profile);
        }
        (all.total() >= samples).then_some(all)
    })
}

/// Compares the names that are in a profile with those that the store finds by itself.
fn check_names(profile: &Profile, build: &Build, file: &str, names: impl Fn(u64) -> String) {
    let own = |frame: &&tests::pprof::Frame| frame.mapping.ends_with(file);
    let frames: HashSet<u64> =
        profile.stacks.iter().flat_map(|stack| stack.user().filter(own)).map(|frame| frame.address).collect();
    let frames: Vec<u64> = frames.into_iter().collect();
    assert!(frames.len() >= 3, "{}", profile.dump());
    for (address, name) in frames.iter().zip(functions(build, &frames)) {
        assert_eq!(name, names(*address), "{address:#x}");
    }
}

fn tree(name: &str, flags: &[&str]) -> PathBuf {
    CallTree::standard(name, Start::Libc)
        .build_with(&[&["-g", "-no-pie", "-O1", "-fno-inline"], flags].concat())
        .unwrap()
}

#[test]
fn the_store_finds_the_same_names_by_itself() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let program = tree("debug-names", &[]);
    let _running = Running::start(&program, &[""; 0]);
    let system = system(port, &["--insecure", &only("debug-names")]);
    let build = wait_build(&journal, &build_id(&program));
    assert_eq!(build.kind, proto::debuginfo::BuildIdType::Gnu as i32);
    assert_eq!(build.hash.len(), 64);
    assert!(build.size < fs::metadata(&program).unwrap().len());
    let profile = profile_of(&journal, "debug-names", 100);
    let by_address: std::collections::HashMap<u64, String> = profile
        .stacks
        .iter()
        .flat_map(tests::pprof::Stack::user)
        .map(|frame| (frame.address, frame.name.clone()))
        .collect();
    check_names(&profile, &build, "/debug-names", |address| by_address[&address].clone());
    // Once, and nothing but what was asked for; after a restart the store is not even asked.
    assert_eq!(journal.builds().len(), 1);
    let asked = journal.asked_for_builds();
    system.stop_uploader(Signal::TERM);
    system.start_uploader();
    let arrived = journal.arrived().len();
    wait_arrived(&journal, arrived + 20);
    assert_eq!((journal.asked_for_builds(), build.begun), (asked, 1));
    assert!(system.metric("bulkhead_debuginfo_known") >= 1.0);
    assert_eq!(journal.problems(), [""; 0]);
}

/// A stripped program has no names here; its debug file, which a package has put elsewhere, gives the store all of them.
#[test]
fn a_stripped_program_has_the_names_of_its_separate_debug_file() {
    let _alone = alone();
    let (journal, port, folder) = (Journal::default(), free_port(), tempfile::tempdir().unwrap());
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let whole = tree("debug-split", &[]);
    let id = build_id(&whole);
    let separate = PathBuf::from(format!("/usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]));
    fs::create_dir_all(separate.parent().unwrap()).unwrap();
    let stripped = folder.path().join("debug-split");
    publish(folder.path(), "none", "");
    for line in [
        &["objcopy", "--only-keep-debug", &whole.display().to_string(), &separate.display().to_string()][..],
        &["strip", "-s", "-o", &stripped.display().to_string(), &whole.display().to_string()],
    ] {
        let (status, output) = run(line);
        assert!(status.success(), "{output}");
    }
    let _running = Running::start(&stripped, &[""; 0]);
    let _system = system(port, &["--insecure", &only("debug-split")]);
    let build = wait_build(&journal, &id);
    let profile = profile_of(&journal, "debug-split", 100);
    fs::remove_file(&separate).unwrap();
    let own = profile.stacks.iter().flat_map(tests::pprof::Stack::user);
    let mut own = own.filter(|frame| frame.mapping.ends_with("/debug-split"));
    assert!(own.all(|frame| frame.name.is_empty() && frame.build_id == id), "{}", profile.dump());
    let expected = names_of(&whole);
    check_names(&profile, &build, "/debug-split", |address| {
        expected.range(..=address).next_back().unwrap().1.clone()
    });
    assert_eq!(journal.problems(), [""; 0]);
}

/// Functions by address, as nm has them.
fn names_of(path: &Path) -> std::collections::BTreeMap<u64, String> {
    let (_, output) = run(&["nm", "--defined-only", &path.display().to_string()]);
    let line = |line: &str| {
        let mut fields = line.split(' ');
        let address = u64::from_str_radix(fields.next()?, 16).ok()?;
        matches!(fields.next()?, "t" | "T").then(|| fields.next().map(|name| (address, name.to_owned())))?
    };
    output.lines().filter_map(line).collect()
}

#[test]
fn by_a_signed_address_that_nobody_is_told() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let http = format!("--debug-info-upload-port={}", journal.take_by_http());
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let program = tree("debug-signed", &[]);
    let _running = Running::start(&program, &[""; 0]);
    let system = system(port, &["--insecure", &only("debug-signed"), &http, "--log-level=debug"]);
    let build = wait_build(&journal, &build_id(&program));
    assert_eq!(build.content.len() as u64, build.size);
    assert_eq!(journal.problems(), [""; 0]);
    let log = system.place().log("uploader");
    assert!(log.contains("sent debug information") && !log.contains("signature=secret"), "{log}");
}

#[test]
fn what_is_not_to_leave_stays() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let programs = ["debug-denied", "debug-allowed"].map(|name| tree(name, &[]));
    let _running = programs.each_ref().map(|program| Running::start(program, &[""; 0]));
    let allowed = build_id(&programs[1]);
    {
        let _system = system(port, &["--insecure", &only("debug-"), "--debug-info-deny=.*/debug-denied"]);
        wait_build(&journal, &allowed);
        wait_arrived(&journal, 20);
        assert_eq!(journal.builds().len(), 1);
    }
    let asked = journal.asked_for_builds();
    let system = system(port, &["--insecure", "--debug-info-disable"]);
    let arrived = journal.arrived().len();
    wait_arrived(&journal, arrived + 10);
    assert_eq!((journal.builds().len(), journal.asked_for_builds()), (1, asked));
    assert!(!system.metrics().keys().any(|name| name.contains("debuginfo")));
}

/// Somebody else sends the same now; a file that is not there any more; a store that asks for a token.
#[test]
fn a_busy_store_is_asked_again_later_and_a_deleted_program_is_sent() {
    let _alone = alone();
    let (journal, port, folder) = (Journal::default(), free_port(), tempfile::tempdir().unwrap());
    let options = StoreOptions { token: Some("debug-token".into()), ..StoreOptions::default() };
    let _store = Store::start(port, &options, &journal);
    journal.set_busy(true);
    let original = plain(
        "debug-deleted",
        "SPENDER(debug_work)\nint main(void) { ready(); for (;;) debug_work(1); }",
        &["-g"],
    )
    .unwrap();
    let path = folder.path().join("debug-deleted");
    fs::copy(&original, &path).unwrap();
    let mut running = Running::start(&path, &[""; 0]);
    running.wait_ready();
    fs::remove_file(&path).unwrap();
    let token = publish(folder.path(), "token", "debug-token");
    let system =
        system(port, &["--insecure", &only("debug-deleted"), &format!("--bearer-token-file={token}")]);
    wait_for("it was asked", 30, || (journal.asked_for_builds() > 0).then_some(()));
    wait_for("it says so", 30, || {
        (system.metric("bulkhead_debuginfo_total{outcome=\"later\"}") >= 1.0).then_some(())
    });
    assert_eq!(journal.builds().len(), 0);
    // Five minutes are too long to wait here: another uploader does not know of it.
    journal.set_busy(false);
    system.stop_uploader(Signal::TERM);
    system.start_uploader();
    wait_build(&journal, &build_id(&original));
    assert_eq!(journal.problems(), [""; 0]);
}

/// A store that is away for debug information alone is asked less and less, and gets each build once (report R47).
#[test]
fn a_store_that_is_away_is_not_hammered() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    journal.set_away(true);
    let programs: Vec<_> = (0..5).map(|number| tree(&format!("debug-away-{number}"), &["-g"])).collect();
    let _running: Vec<_> = programs.iter().map(|program| Running::start(program, &[""; 0])).collect();
    let system = system(port, &["--insecure", &only("debug-away")]);
    wait_for("profiles arrive all the same, half a minute of them", 120, || {
        let times: HashSet<i64> = journal.arrived().iter().map(|one| one.profile.time_nanos).collect();
        let (first, last) = (times.iter().min()?, times.iter().max()?);
        (last - first >= 30_000_000_000).then_some(())
    });
    // After 10 s, then 20, with up to half more or less: for five builds together.
    let asked = journal.asked_for_builds();
    assert!((2..=6).contains(&asked), "asked {asked} times");
    let log = system.place().log("uploader");
    let lines =
        log.lines().filter(|line| line.contains("debug information") && line.contains("WARN")).count();
    assert!(lines <= 2, "{log}");
    journal.set_away(false);
    for program in &programs {
        assert_eq!(wait_build(&journal, &build_id(program)).begun, 1);
    }
    assert_eq!(journal.problems(), [""; 0]);
}

/// What was sent from here without DWARF is replaced when the same build is seen with it (report R60).
#[test]
fn a_better_file_takes_the_place_of_a_poor_one() {
    let _alone = alone();
    let (journal, port, folder) = (Journal::default(), free_port(), tempfile::tempdir().unwrap());
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let original = tree("debug-swap", &["-g"]);
    let path = folder.path().join("debug-swap");
    let (from, to) = (original.display().to_string(), path.display().to_string());
    assert!(run(&["objcopy", "--strip-debug", &from, &to]).0.success());
    let mut running = Running::start(&path, &[""; 0]);
    let _system = system(port, &["--insecure", &only("debug-swap")]);
    let has_dwarf = |build: &Build| build.content.windows(11).any(|bytes| bytes == b".debug_info");
    let poor = wait_build(&journal, &build_id(&original));
    assert!(!has_dwarf(&poor) && poor.begun == 1);

    running.kill();
    fs::remove_file(&path).unwrap();
    fs::copy(&original, &path).unwrap();
    let _running = Running::start(&path, &[""; 0]);
    let better = wait_for("the better one arrives", 90, || {
        journal.builds().remove(&build_id(&original)).filter(has_dwarf)
    });
    assert_eq!(better.begun, 2);
    let profile = profile_of(&journal, "debug-swap", 100);
    let names = names_of(&original);
    check_names(&profile, &better, "/debug-swap", |address| {
        names.range(..=address).next_back().unwrap().1.clone()
    });
    assert_eq!(journal.problems(), [""; 0]);
}
