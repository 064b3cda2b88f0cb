//! Of the spool alone. What a full disk and an end at any instant do to it is tried with the whole program too.

use std::{os::unix::fs::PermissionsExt, time::Instant};

use super::*;

const MIB: u64 = 1 << 20;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn texts(taken: &Taken) -> Vec<&str> {
    taken.payloads.iter().map(|payload| std::str::from_utf8(payload).unwrap()).collect()
}

/// Opens a spool. A child that another test has just made holds its lock until it runs its program.
fn open(path: &Path, limit: u64) -> Spool {
    let begun = Instant::now();
    loop {
        match Spool::open(path, limit) {
            Err(SpoolError::InUse(_)) if begun.elapsed() < Duration::from_secs(10) => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened.unwrap(),
        }
    }
}

#[test]
fn what_is_put_comes_in_order_and_stays_until_it_has_arrived() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/spool");
    let spool = open(&path, MIB);
    assert!(spool.take(MIB).is_none());
    for text in ["one", "two", "three"] {
        spool.put(text.as_bytes(), 2).unwrap();
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join(&names(&path)[0]))), (0o700, 0o600));
    // Bytes of files: 12 and the payload.
    assert_eq!(texts(&spool.take(30).unwrap()), ["one", "two"]);
    // It goes wrong, and all of it is tried again.
    let taken = spool.take(1).unwrap();
    assert_eq!(texts(&taken), ["one"]);
    spool.remove(&taken);
    assert!(matches!(Spool::open(&path, MIB), Err(SpoolError::InUse(_))));
    drop(spool);
    // The next process goes on with what is left.
    let spool = open(&path, MIB);
    spool.put(b"four", 1).unwrap();
    let content = spool.content();
    assert_eq!((content.entries, content.profiles), (3, 5));
    assert!(content.oldest.unwrap() < Duration::from_mins(1));
    let taken = spool.take(MIB).unwrap();
    assert_eq!(texts(&taken), ["two", "three", "four"]);
    spool.remove(&taken);
    assert!(names(&path).is_empty());
    assert_eq!((spool.content().bytes, spool.content().oldest), (0, None));
}

#[test]
fn damaged_entries_are_set_aside_alone() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), MIB);
    for text in ["one", "two", "three", "four", "five"] {
        spool.put(text.as_bytes(), 1).unwrap();
    }
    let before = names(folder.path());
    let at = |index: usize| folder.path().join(&before[index]);
    fs::write(at(0), "").unwrap();
    fs::write(at(2), [&fs::read(at(2)).unwrap()[..], b"x"].concat()).unwrap();
    fs::remove_file(at(3)).unwrap();
    let taken = spool.take(MIB).unwrap();
    assert_eq!(texts(&taken), ["two", "five"]);
    spool.remove(&taken);
    assert_eq!(spool.counts().damaged, 3);
    let left = names(folder.path());
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().all(|name| name.ends_with(".entry.damaged")), "{left:?}");
    // They are not read again.
    drop(spool);
    assert!(open(folder.path(), MIB).take(MIB).is_none());
}

#[test]
fn the_oldest_go_when_there_is_no_room_but_not_what_is_being_sent() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 10 * (4096 + 12 + 1000);
    let spool = open(folder.path(), limit);
    let put = |byte: u8| spool.put(&[byte; 1000], 3).unwrap();
    (0..10).for_each(put);
    let taken = spool.take(1500).unwrap();
    assert_eq!(taken.payloads[0][0], 0);
    put(10);
    put(11);
    assert_eq!((spool.counts().dropped, spool.counts().dropped_bytes), (6, 2 * 1012));
    assert!(spool.content().bytes <= limit);
    spool.remove(&taken);
    let rest = spool.take(MIB).unwrap();
    assert_eq!(
        rest.payloads.iter().map(|payload| payload[0]).collect::<Vec<_>>(),
        (3..12).collect::<Vec<_>>()
    );
    spool.remove(&rest);
    assert!(matches!(
        spool.put(&vec![0; usize::try_from(limit).unwrap()], 1),
        Err(SpoolError::TooLarge { .. })
    ));
    assert_eq!(spool.counts().dropped, 7);
    // A smaller bound at the next start.
    (0..10).for_each(put);
    drop(spool);
    let spool = open(folder.path(), limit / 2);
    assert_eq!(spool.content().entries, 5);
    assert_eq!(names(folder.path()).len(), 5);
}

#[test]
fn what_was_refused_is_kept_for_as_long_as_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 80 * (4096 + 1000);
    let spool = open(folder.path(), limit);
    for _ in 0..30 {
        spool.keep_refused(&[1; 1000]);
    }
    assert_eq!(names(folder.path()).len(), 10, "an eighth of the bound");
    assert!(names(folder.path()).iter().all(|name| name.ends_with(".refused")));
    for _ in 0..79 {
        spool.put(&[0; 988], 1).unwrap();
    }
    assert_eq!(spool.counts().dropped, 0);
    assert_eq!(names(folder.path()).len(), 80);
    drop(spool);
    assert_eq!(open(folder.path(), limit).content().entries, 79);
}

#[test]
fn what_others_left_in_the_folder_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["README", "1.1.entry", "a.tmp", "b.refused", "00000000000000000001.1.entry.tmp"] {
        fs::write(folder.path().join(name), "x").unwrap();
    }
    fs::create_dir(folder.path().join("00000000000000000001.1.entry")).unwrap();
    let spool = open(folder.path(), 10);
    assert!(spool.take(MIB).is_none());
    assert_eq!(
        names(folder.path()),
        ["00000000000000000001.1.entry", "1.1.entry", "README", "a.tmp", "b.refused"]
    );
}

#[test]
fn a_folder_that_is_none_is_an_error_of_one_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for path in [file.path().to_owned(), file.path().join("below"), "/proc/nowhere".into()] {
        let message = Spool::open(&path, 1).unwrap_err().to_string();
        assert!(message.contains(path.to_str().unwrap()) && !message.contains('\n'), "{message}");
    }
}

/// What cannot be read now, for a reason that is not its own, is not given up.
#[test]
fn an_entry_that_cannot_be_read_now_stays() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), MIB);
    for text in ["one", "two"] {
        spool.put(text.as_bytes(), 1).unwrap();
    }
    // No descriptor is left. In a process of its own, since it would be felt by all tests.
    if std::env::var_os("BULKHEAD_TEST_NO_FILES").is_some() {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), maximum: limit.maximum }).unwrap();
        let nothing = spool.take(MIB).is_none();
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(nothing);
        assert_eq!(texts(&spool.take(MIB).unwrap()), ["one", "two"]);
        assert_eq!((spool.counts().damaged, spool.counts().dropped), (0, 0));
        return;
    }
    let name = "spool::tests::an_entry_that_cannot_be_read_now_stays";
    let mut own = std::process::Command::new(std::env::current_exe().unwrap());
    let output = own.args(["--exact", name]).env("BULKHEAD_TEST_NO_FILES", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn more_is_taken_behind_what_was_taken() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(folder.path(), MIB);
    for text in ["one", "two", "three"] {
        spool.put(text.as_bytes(), 1).unwrap();
    }
    let mut taken = spool.take(1).unwrap();
    assert!(spool.take_more(&mut taken, 1));
    assert_eq!(texts(&taken), ["one", "two"]);
    spool.remove(&taken);
    let mut taken = spool.take(1).unwrap();
    assert_eq!(texts(&taken), ["three"]);
    assert!(!spool.take_more(&mut taken, 1));
}
