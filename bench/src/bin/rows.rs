//! What unwind rows take and what they cannot say, over all executables below some folders:
//! `cargo run --release -p bench --bin rows -- /usr/bin /usr/lib`. Prints tables in Markdown.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use objects::{ObjectError, UnwindRows};
use records::{MAX_ROWS_PER_PAGE, Rule};

#[derive(Default)]
struct Sums {
    files: u64,
    without: u64,
    partly: u64,
    rows: u64,
    pages: u64,
    rules: HashSet<Rule>,
    most_rules: usize,
    most_rows_in_page: u32,
    misfits: BTreeMap<&'static str, u64>,
    time: Duration,
    slowest: (Duration, PathBuf, usize),
}

fn main() {
    let mut sums = Sums::default();
    let mut seen = HashSet::new();
    for folder in std::env::args().skip(1) {
        walk(Path::new(&folder), &mut seen, &mut sums);
    }
    let bytes = sums.rows * 4 + sums.pages * 8;
    println!("| what | |\n|---|---|");
    println!("| ELF files with unwind information | {} |", sums.files);
    println!("| of which not all could be read | {} |", sums.partly);
    println!("| ELF files without | {} |", sums.without);
    println!("| rows | {} |", sums.rows);
    println!("| distinct rules | {} (in one file at most {}) |", sums.rules.len(), sums.most_rules);
    println!("| bytes a row, with the index of pages | {:.3} |", bytes as f64 / sums.rows.max(1) as f64);
    println!("| most rows in a page | {} of {MAX_ROWS_PER_PAGE} |", sums.most_rows_in_page);
    println!("| rows a second | {:.2} million |", sums.rows as f64 / 1e6 / sums.time.as_secs_f64());
    let (time, path, rows) = &sums.slowest;
    println!("| slowest | {rows} rows in {} ms: {} |", time.as_millis(), path.display());
    println!("\n| what no row can say | places |\n|---|---|");
    for (kind, count) in &sums.misfits {
        println!("| {kind} | {count} |");
    }
}

fn walk(folder: &Path, seen: &mut HashSet<(u64, u64)>, sums: &mut Sums) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            walk(&path, seen, sums);
        } else if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
            add(&path, sums);
        }
    }
}

fn add(path: &Path, sums: &mut Sums) {
    let Ok(file) = File::open(path) else { return };
    let begun = Instant::now();
    let rows = match UnwindRows::read(&file, 1 << 25) {
        Ok(rows) => rows,
        Err(ObjectError::Missing(_)) => {
            sums.without += 1;
            return;
        }
        Err(_) => return,
    };
    let took = begun.elapsed();
    sums.time += took;
    if took > sums.slowest.0 {
        sums.slowest = (took, path.to_owned(), rows.rows.len());
    }
    if let Some(problem) = &rows.problem {
        eprintln!("{}: {problem}", path.display());
        sums.partly += 1;
    }
    sums.files += 1;
    sums.rows += rows.rows.len() as u64;
    sums.pages += rows.pages.len() as u64;
    sums.most_rules = sums.most_rules.max(rows.rules.len());
    sums.most_rows_in_page =
        rows.pages.iter().map(|page| page.count).max().unwrap_or(0).max(sums.most_rows_in_page);
    sums.rules.extend(rows.rules);
    for (kind, count) in rows.misfits {
        *sums.misfits.entry(kind).or_default() += count;
    }
}
