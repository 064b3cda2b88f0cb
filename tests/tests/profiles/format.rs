//! The interfaces: profiles as other programs read them, and the answers of the page's addresses.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use prost::Message as _;
use proto::pprof;
use tests::{
    pprof::Profile,
    process::{Running, run},
    system::System,
};
use workloads::{CallTree, Start};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("go_tool_pprof_reads_what_we_write", go_tool_pprof_reads_what_we_write),
    ("go_tool_pprof_finds_the_same_names_by_itself", go_tool_pprof_finds_the_same_names_by_itself),
    ("the_fields_of_a_profile", the_fields_of_a_profile),
    ("several_targets_are_merged", several_targets_are_merged),
    ("queries_that_cannot_be_answered", queries_that_cannot_be_answered),
    ("the_list_of_targets", the_list_of_targets),
    ("metrics_count_what_happens", metrics_count_what_happens),
];

fn pprof_tool(arguments: &[&str], file: &Path) -> String {
    let file = file.display().to_string();
    let line: Vec<&str> =
        ["go", "tool", "pprof"].iter().chain(arguments).copied().chain([file.as_str()]).collect();
    let (status, output) = run(&line);
    assert!(status.success(), "{line:?}:\n{output}");
    for complaint in ["error", "warning", "malformed", "unrecognized"] {
        let found = output.lines().find(|line| line.to_lowercase().starts_with(complaint));
        assert_eq!(found, None, "{line:?} complains");
    }
    output
}

fn go_tool_pprof_reads_what_we_write(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    // The whole machine, in one: kernel, libraries, stripped files, whatever runs.
    let profile = system.collect("{comm=~\".*\"}", 50, 60);
    let file = folder.path().join("all.pb.gz");
    fs::write(&file, &profile.raw).unwrap();
    for arguments in [&["-raw"][..], &["-top"], &["-traces"], &["-tags"]] {
        let output = pprof_tool(&[&["-symbolize=none"], arguments].concat(), &file);
        assert!(output.lines().count() > 3, "{arguments:?}:\n{output}");
    }
}

/// Flat counts by name as `go tool pprof -top` prints them.
fn flat_counts(output: &str) -> BTreeMap<String, i64> {
    let lines = output.lines().skip_while(|line| !line.trim_start().starts_with("flat "));
    lines
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let flat = fields.next()?.parse().ok()?;
            let name = fields.skip(4).collect::<Vec<_>>().join(" ");
            Some((name.trim_end_matches(" (inline)").to_owned(), flat))
        })
        .filter(|(_, flat)| *flat > 0)
        .collect()
}

fn go_tool_pprof_finds_the_same_names_by_itself(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    let tree = CallTree::standard("pprof-names", Start::Libc);
    let paths = [
        // Go's own tool reads names from DWARF, not from an ELF symbol table.
        tree.build_with(&["-g"]).unwrap(),
        CallTree::standard("pprof-bare", Start::Bare).build_with(&["-g"]).unwrap(),
        tree.build_with(&["-g", "-no-pie", "-DFIXED"]).unwrap(),
    ];
    for (index, path) in paths.iter().enumerate() {
        // The name of the file is the command name; two of the three share it, one after the other.
        let comm = path.file_name().unwrap().to_string_lossy().into_owned();
        let _running = Running::start(path, &[""; 0]);
        let profile = system.collect_settled(&comm, 200);
        let mut message = pprof::Profile::decode(&*unzip(&profile.raw)).unwrap();
        for location in &mut message.location {
            location.line.clear();
        }
        message.function.clear();
        for mapping in &mut message.mapping {
            mapping.has_functions = false;
            mapping.has_filenames = false;
            mapping.has_line_numbers = false;
            mapping.has_inline_frames = false;
        }
        let bare = folder.path().join(format!("nameless-{index}.pb.gz"));
        fs::write(&bare, zip(&message.encode_to_vec())).unwrap();
        let ours = folder.path().join(format!("ours-{index}.pb.gz"));
        fs::write(&ours, &profile.raw).unwrap();

        let ours = flat_counts(&pprof_tool(
            &["-symbolize=none", "-top", "-nodecount=1000", "-nodefraction=0"],
            &ours,
        ));
        let theirs = flat_counts(&pprof_tool(
            &["-symbolize=force", "-top", "-nodecount=1000", "-nodefraction=0"],
            &bare,
        ));
        for leaf in &tree.leaves {
            let name = leaf.path.last().expect("a leaf");
            assert_eq!(ours.get(name), theirs.get(name), "{name}: ours {ours:?}\ntheirs {theirs:?}");
        }
        assert!(ours.contains_key("decode"), "{ours:?}");
    }
}

fn unzip(raw: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(raw).read_to_end(&mut bytes).unwrap();
    bytes
}

fn zip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn the_fields_of_a_profile(system: &System) {
    let path = CallTree::standard("fields", Start::Libc).build().unwrap();
    let _running = Running::start(&path, &[""; 0]);
    let profile = system.collect_settled("fields", 50);
    assert_eq!(profile.sample_types, ["samples/count"]);
    assert_eq!(profile.period_type, "cpu/nanoseconds");
    assert_eq!(profile.period, 10_000_000, "100 samples a second");
    let one = system.query("{comm=\"fields\"}", "&window=last").unwrap();
    let (window, tolerance) = (4_000_000_000_i64, 500_000_000);
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    let end = one.time_nanos + one.duration_nanos;
    assert!((0..3 * window).contains(&(now - end)), "the window ended {} ns ago", now - end);
    // One may begin or end late, when the machine stands still for a moment.
    let mut lengths = [(); 3].map(|()| system.query("{comm=\"fields\"}", "").unwrap().duration_nanos);
    lengths.sort_unstable();
    assert!((lengths[1] - window).abs() < tolerance, "{lengths:?} ns");
    // The build id is the file's own.
    let (_, notes) = run(&["readelf", "-n", &path.display().to_string()]);
    let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).expect("a build id");
    let expected = (path.canonicalize().unwrap().display().to_string(), id.to_owned());
    assert!(profile.mappings.contains(&expected), "{expected:?} in {:?}", profile.mappings);
    assert!(
        profile
            .stacks
            .iter()
            .all(|stack| stack.labels.get("thread_name").is_some_and(|name| name == "fields"))
    );
}

fn several_targets_are_merged(system: &System) {
    let trees = ["merged-one", "merged-two"].map(|name| CallTree::standard(name, Start::Bare));
    let _running = trees.each_ref().map(|tree| Running::start(&tree.build().unwrap(), &[""; 0]));
    for tree in &trees {
        system.collect(&format!("{{comm=\"{}\"}}", tree.name), 20, 60);
    }
    let both = system.collect("{comm=~\"merged-.*\"}", 100, 60);
    for tree in &trees {
        let own = both.count(|stack| stack.frames[0].mapping.ends_with(&tree.name));
        assert!(own > 20, "{} has {own}: {}", tree.name, both.dump());
    }
}

fn queries_that_cannot_be_answered(system: &System) {
    for selector in ["", "{", "{comm=}", "{comm=~\"(\"}", "comm"] {
        let answer = system.query(selector, "&window=last").expect_err("no selector");
        assert_eq!(answer.status, 400, "{selector}: {}", answer.text());
        assert!(answer.body.len() > 10, "{selector}: no explanation");
    }
    let answer = system.query("{comm=\"there is none\"}", "&window=last").expect_err("no target");
    assert_eq!(answer.status, 404);
    assert!(answer.body.len() > 10, "no explanation");
    assert_eq!(system.get("/no-such-page").status, 404);
    // A page of another site that reaches this address by a name of its own (DNS rebinding) gets nothing.
    let answer = tests::http::get(system.address(), "/", &[("host", "attacker.example")]).unwrap();
    assert!((400..500).contains(&answer.status), "{}", answer.status);
    assert!(!answer.text().contains("Active Profilers"));
    let policy = system.get("/");
    let policy = policy.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'none'") || policy.contains("default-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe-inline") || !policy.contains("script-src 'unsafe-inline'"), "{policy}");
}

fn the_list_of_targets(system: &System) {
    let _running = Running::start(&CallTree::standard("listed", Start::Bare).build().unwrap(), &[""; 0]);
    let profile: Profile = system.collect("{comm=\"listed\"}", 20, 60);
    assert!(profile.total() >= 20);
    let targets: serde_json::Value = serde_json::from_slice(&system.get("/api/targets").body).unwrap();
    let target = targets
        .as_array()
        .expect("a list")
        .iter()
        .find(|target| target["labels"]["comm"] == "listed")
        .unwrap_or_else(|| panic!("not listed: {targets}"));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(target["labels"]["node"], host.trim());
    assert!(target["samples"].as_u64().is_some_and(|samples| samples > 0), "{target}");
    for field in ["profile_type", "last_profile", "error"] {
        assert!(target.get(field).is_some(), "{field} is missing: {target}");
    }
    let page = system.get("/").text();
    for text in ["Active Profilers", "Show Profile", "listed"] {
        assert!(page.contains(text), "{text} is missing on the page");
    }
}

fn metrics_count_what_happens(system: &System) {
    let before = system.metrics();
    let names: Vec<_> = before.keys().filter(|name| !name.starts_with("bulkhead_")).collect();
    assert!(names.is_empty(), "names of ours begin with bulkhead_: {names:?}");
    let _running = Running::start(&CallTree::standard("metered", Start::Bare).build().unwrap(), &[""; 0]);
    system.collect_settled("metered", 100);
    let after = system.metrics();
    let grew = |part: &str| {
        let sum = |metrics: &BTreeMap<String, f64>| -> f64 {
            metrics.iter().filter(|(name, _)| name.contains(part)).map(|(_, value)| value).sum()
        };
        sum(&after) - sum(&before)
    };
    assert!(grew("samples") > 50.0, "{after:?}");
    assert!(grew("root") > 50.0, "unwinds that reached the root are counted: {after:?}");
}
