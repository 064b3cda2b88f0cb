//! What the tree must look like: arrows between the crates, heads and sizes of files, paths that documents name.
#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every crate that is linked into `package`, and those that work while it is built.
fn linked(package: &str) -> BTreeSet<String> {
    tree(package, "normal")
}

fn tree(package: &str, edges: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--edges", edges, "--prefix=none", "--format={p}", "--package", package])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let crates: BTreeSet<String> =
        text.lines().filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect();
    assert!(crates.contains(package), "{crates:?}");
    crates
}

const OURS: [&str; 10] = [
    "records",
    "unwinder",
    "collector",
    "ipc",
    "security",
    "objects",
    "proto",
    "runtimes",
    "runtime-proxy",
    "uploader",
];

fn ours(package: &str) -> Vec<String> {
    linked(package).into_iter().filter(|name| name != package && OURS.contains(&name.as_str())).collect()
}

#[test]
fn arrows_between_our_crates() {
    assert_eq!(ours("collector"), ["ipc", "records", "security", "unwinder"]);
    assert_eq!(ours("uploader"), ["ipc", "objects", "proto", "records", "runtimes", "security"]);
    assert_eq!(ours("runtime-proxy"), ["proto", "runtimes", "security"]);
    assert_eq!(ours("runtimes"), ["proto"]);
    assert_eq!(ours("ipc"), ["records"]);
    assert_eq!(ours("objects"), ["records"]);
    assert_eq!(ours("unwinder"), ["records"]);
    assert_eq!(ours("security"), [""; 0]);
    assert_eq!(ours("proto"), [""; 0]);
    assert_eq!(linked("records").len(), 1);
}

#[test]
fn what_must_not_be_linked() {
    let collector = linked("collector");
    for refused in
        ["aya-ebpf", "gimli", "addr2line", "prost", "hyper", "axum", "rustls", "serde_json", "flate2"]
    {
        assert!(!collector.contains(refused), "{refused} is linked into the privileged half");
    }
    let objects = linked("objects");
    for refused in ["tokio", "hyper", "rustls", "mio", "socket2", "memmap2"] {
        assert!(!objects.contains(refused), "{refused} is linked into the parsers");
    }
    let uploader = linked("uploader");
    for refused in ["aya", "aya-obj", "memmap2", "perf-event2"] {
        assert!(!uploader.contains(refused), "{refused} is linked into the unprivileged half");
    }
}

/// Every crate that is linked into the privileged half (promise W1). What comes new is a decision: each can do all that the half can.
const IN_COLLECTOR: &str = "assert_matches aya aya-obj bincode bitflags bytes c-enum caps cfg-if collector crc32fast equivalent errno filedesc \
    foldhash hashbrown indexmap ipc lexopt libc linux-raw-sys log memchr memmap2 memoffset mio object once_cell perf-event-data \
    perf-event-open-sys2 perf-event2 pin-project-lite records rustix scopeguard seccompiler security serde serde_core signal-hook-registry \
    socket2 thiserror tokio tokio-seqpacket unty unwinder";

#[test]
fn what_the_privileged_half_is_made_of() {
    // Those that only write code for it are not in it.
    let crates = tree("collector", "normal,no-proc-macro");
    let known: BTreeSet<String> = IN_COLLECTOR.split_whitespace().map(str::to_owned).collect();
    let more: Vec<_> = crates.difference(&known).collect();
    let less: Vec<_> = known.difference(&crates).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "new in the privileged half: {more:?}; gone from it: {less:?}"
    );
}

/// Files with this ending that git knows.
fn files(ending: &str) -> Vec<PathBuf> {
    let output =
        Command::new("git").args(["ls-files", &format!("*{ending}")]).current_dir(root()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let files: Vec<PathBuf> =
        text.lines().map(|line| root().join(line)).filter(|path| path.exists()).collect();
    assert!(!files.is_empty());
    files
}

#[test]
fn every_source_says_what_it_is_and_is_one_idea_long() {
    for path in files(".rs") {
        // Generated code and programs that tests compile have heads of their own.
        if path.components().any(|part| {
            ["programs", "generated", "assets", "fuzz"].contains(&part.as_os_str().to_str().unwrap())
        }) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let is_generated =
            text.starts_with("// This file is @generated") || text.starts_with("// @generated");
        assert!(is_generated || text.starts_with("//! "), "{} does not say what it is", path.display());
        let lines = text.lines().count();
        assert!(is_generated || lines <= 600, "{} has {lines} lines", path.display());
    }
}

#[test]
fn paths_that_documents_name_exist() {
    for document in ["ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let mut checked = 0;
        for name in text.split('`').skip(1).step_by(2) {
            let is_path = [
                "collector",
                "uploader",
                "records",
                "ipc",
                "objects",
                "unwinder",
                "tests",
                "script",
                "proto",
                "runtimes",
                "runtime-proxy",
            ]
            .iter()
            .any(|room| name.starts_with(&format!("{room}/")) || name.starts_with(&format!("{room}-ebpf/")));
            if is_path && !name.contains([' ', '*']) {
                assert!(root().join(name).exists(), "{document} names {name}, which is not there");
                checked += 1;
            }
        }
        assert!(checked > 3, "{document} names {checked} paths");
    }
}

#[test]
fn the_committed_object_has_the_hash_beside_it() {
    let status = Command::new("sha256sum")
        .args(["--check", "--quiet", "collector.bpf.o.sha256"])
        .current_dir(root().join("collector-ebpf"))
        .status()
        .unwrap();
    assert!(status.success());
}
