//! What sending costs: CPU time and bytes on the wire for each profile, and how long the copy of debug information of a large
//! executable takes, beside what `cp` takes for the file. As root: `script/bench-sending`. Prints tables in Markdown.

use std::{
    env,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bench::usage::usage;
use tests::{
    process::Running,
    store::{Journal, Store, StoreOptions},
    system::{Options, System, free_port},
};
use workloads::{CallTree, Start};

/// Programs that are profiled, each a target.
const PROGRAMS: usize = 20;
/// How long each state is measured, in turns: without a store and with one.
const SECONDS: u64 = 60;
const TURNS: usize = 3;
/// Bytes of debug information of the large executable.
const LARGE: u64 = 1 << 30;
/// How often its copy is made.
const COPIES: usize = 5;
/// The argument that has this program make a copy, and say what it took.
const COPY: &str = "copy";

/// Passes connections on to a port, and counts what goes over them.
fn counted(to: u16, bytes: &Arc<AtomicU64>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let bytes = Arc::clone(bytes);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
            let other = (server.try_clone().expect("a socket"), client.try_clone().expect("a socket"));
            for (mut from, mut to) in [(client, server), other] {
                let bytes = Arc::clone(&bytes);
                thread::spawn(move || {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(length @ 1..) = from.read(&mut buffer) {
                        bytes.fetch_add(length as u64, Ordering::Relaxed);
                        if to.write_all(&buffer[..length]).is_err() {
                            break;
                        }
                    }
                });
            }
        }
    });
    port
}

/// CPU time of the uploader in one state, in seconds, and what was sent: profiles, their bytes, and bytes on the wire.
fn measure(system: &System, sent: impl Fn(&System) -> [f64; 3]) -> (f64, [f64; 3]) {
    // The first windows read the symbols of what runs, and send its debug information.
    thread::sleep(Duration::from_secs(15));
    let (cpu, before) = (usage(system.uploader_pid()).cpu, sent(system));
    thread::sleep(Duration::from_secs(SECONDS));
    let after = sent(system);
    (usage(system.uploader_pid()).cpu - cpu, [0, 1, 2].map(|index| after[index] - before[index]))
}

fn profiles() {
    let _programs: Vec<Running> = (0..PROGRAMS)
        .map(|number| {
            let tree = CallTree::standard(&format!("send-{number}"), Start::Libc);
            Running::start(&tree.build().expect("a program"), &[""; 0])
        })
        .collect();
    let (mut without, mut with, mut all) = (0.0, 0.0, [0.0; 3]);
    for turn in 1..=TURNS {
        eprintln!("turn {turn} of {TURNS}");
        let options = Options { window: "2s", ..Options::default() };
        without += measure(&System::start(options.clone()), |_| [0.0; 3]).0;
        let (journal, wire) = (Journal::default(), Arc::new(AtomicU64::new(0)));
        let store = Store::start(free_port(), &StoreOptions::default(), &journal);
        let port = counted(store.port(), &wire);
        let system = System::start_with(options, |place| {
            let spool = place.path("spool").display().to_string();
            vec![
                format!("--store-address=127.0.0.1:{port}"),
                "--insecure".into(),
                "--debug-info-disable".into(),
                format!("--spool-directory={spool}"),
                "--batch-write-interval=10s".into(),
            ]
        });
        let (cpu, sent) = measure(&system, |system| {
            let state = |name: &str| system.metric(&format!("bulkhead_store_{name}_total{{state=\"sent\"}}"));
            [state("profiles"), state("bytes"), wire.load(Ordering::Relaxed) as f64]
        });
        with += cpu;
        (0..3).for_each(|index| all[index] += sent[index]);
        assert!(journal.problems().is_empty(), "{:?}", journal.problems());
    }
    let [profiles, bytes, wire] = all;
    println!(
        "| profiles sent | CPU of the uploader without a store | with one | more for each profile | bytes a profile | bytes on the wire |"
    );
    println!("|---|---|---|---|---|---|");
    println!(
        "| {profiles:.0} | {without:.2} s | {with:.2} s | {:.0} us | {:.0} | {:.0} |",
        (with - without) / profiles * 1e6,
        bytes / profiles,
        wire / profiles
    );
}

/// A program with so much debug information.
fn large(folder: &Path) -> io::Result<std::path::PathBuf> {
    let small = CallTree::standard("large", Start::Libc).build_with(&["-g"]).map_err(io::Error::other)?;
    let content = folder.join("content");
    // Not all zeros, which some file systems do not write.
    let mut file = File::create(&content)?;
    let piece: Vec<u8> =
        (0..1u32 << 18).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    for _ in 0..LARGE / piece.len() as u64 {
        file.write_all(&piece)?;
    }
    let path = folder.join("large");
    let add = format!("--add-section=.debug_more={}", content.display());
    let status = Command::new("objcopy").arg(add).arg(small).arg(&path).status()?;
    fs::remove_file(content)?;
    if status.success() { Ok(path) } else { Err(io::Error::other("objcopy failed")) }
}

/// Makes one copy, and prints seconds and the most memory in KiB.
fn copy(path: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let begun = Instant::now();
    let mut out = File::create(to)?;
    objects::write_debug_copy(&File::open(path)?, &mut out, 2 << 30)?;
    let seconds = begun.elapsed().as_secs_f64();
    let status = fs::read_to_string("/proc/self/status")?;
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    println!("{seconds} {}", most.split_whitespace().next().unwrap_or_default());
    Ok(())
}

fn copies() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let (path, to) = (large(folder.path())?, folder.path().join("copy"));
    let (mut ours, mut theirs, mut most) = (Vec::new(), Vec::new(), 0);
    for _ in 0..COPIES {
        let begun = Instant::now();
        if !Command::new("cp").args([&path, &to]).status()?.success() {
            return Err("cp failed".into());
        }
        theirs.push(begun.elapsed().as_secs_f64());
        fs::remove_file(&to)?;
        let output = Command::new(env::current_exe()?).arg(COPY).args([&path, &to]).output()?;
        let text = String::from_utf8(output.stdout)?;
        let (seconds, memory) = text.trim().split_once(' ').ok_or("no answer of the copy")?;
        ours.push(seconds.parse()?);
        most = most.max(memory.parse::<u64>()?);
        fs::remove_file(&to)?;
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "\n| executable | copy of its debug information | cp of the file | ratio | most memory |\n|---|---|---|---|---|"
    );
    println!(
        "| 1 GiB | {ours:.2} s | {theirs:.2} s | {:.2} | {:.1} MiB |",
        ours / theirs,
        most as f64 / 1024.0
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [what, path, to] = arguments.as_slice()
        && what == COPY
    {
        return copy(Path::new(path), Path::new(to));
    }
    profiles();
    copies()
}
