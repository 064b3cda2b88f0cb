//! Files that are replaced, deleted, broken or cut while they run.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    os::unix::ffi::OsStrExt as _,
    os::unix::fs::{FileExt as _, PermissionsExt as _, chown},
    path::Path,
};

use tests::{process::Running, system::System};
use workloads::{Broken, CallTree, Program, Start, plain, program, stage, write_broken};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("a_program_whose_file_is_replaced_keeps_its_names", a_program_whose_file_is_replaced_keeps_its_names),
    ("a_program_whose_file_is_deleted_keeps_its_names", a_program_whose_file_is_deleted_keeps_its_names),
    ("broken_files_that_are_mapped_do_no_harm", broken_files_that_are_mapped_do_no_harm),
    ("code_in_broken_files_keeps_its_frames", code_in_broken_files_keeps_its_frames),
    ("a_running_program_with_forged_sections", a_running_program_with_forged_sections),
    ("a_file_that_is_cut_while_it_is_mapped", a_file_that_is_cut_while_it_is_mapped),
    ("a_program_that_only_its_owner_may_read", a_program_that_only_its_owner_may_read),
    ("odd_paths_are_kept", odd_paths_are_kept),
    ("a_pipe_in_the_place_of_a_program_does_not_block", a_pipe_in_the_place_of_a_program_does_not_block),
];

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
}

fn a_program_whose_file_is_replaced_keeps_its_names(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("replaced");
    copy(&stage("before", "before", true).unwrap(), &path);
    let mut old = Running::start(&path, &[""; 0]);
    old.wait_ready();
    let next = folder.path().join("next");
    copy(&stage("after", "after", true).unwrap(), &next);
    fs::rename(&next, &path).unwrap();

    let profile = system.collect_settled("replaced", 60);
    let old_only = profile.count(|stack| stack.has_run(&["work_of_stage_before", "main"]));
    assert!(old_only as f64 > 0.97 * profile.total() as f64, "{}", profile.dump());

    // Now both run, under one path and one command name.
    let mut new = Running::start(&path, &[""; 0]);
    new.wait_ready();
    let both = system.collect_settled("replaced", 200);
    let count = |name: &str| both.count(|stack| stack.has_run(&[name, "main"]));
    let (before, after) = (count("work_of_stage_before"), count("work_of_stage_after"));
    assert!(before > 20 && after > 20, "before {before}, after {after}: {}", both.dump());
    assert!((before + after) as f64 > 0.97 * both.total() as f64, "{}", both.dump());
    let mut ids: Vec<_> =
        both.mappings.iter().filter(|(file, _)| file.ends_with("/replaced")).map(|(_, id)| id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 2, "two builds, two build ids: {:?}", both.mappings);
}

fn a_program_whose_file_is_deleted_keeps_its_names(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    // A file that is truly called so, beside one that is deleted.
    let odd = folder.path().join("odd (deleted)");
    let gone = folder.path().join("gone");
    copy(&stage("stage-kept", "kept", false).unwrap(), &odd);
    copy(&stage("stage-gone", "gone", false).unwrap(), &gone);
    let mut odd_running = Running::start(&odd, &[""; 0]);
    let mut gone_running = Running::start(&gone, &[""; 0]);
    odd_running.wait_ready();
    gone_running.wait_ready();
    fs::remove_file(&gone).unwrap();

    for (comm, work, file) in
        [("gone", "work_of_stage_gone", "/gone"), ("odd (deleted)", "work_of_stage_kept", "/odd (deleted)")]
    {
        let profile = system.collect_settled(comm, 60);
        let right = profile.count(|stack| {
            stack.has_run(&[work, "main"])
                && stack.user().next().is_some_and(|frame| frame.mapping.ends_with(file))
        });
        assert!(right as f64 > 0.97 * profile.total() as f64, "{right} of {}", profile.dump());
    }
}

fn broken_files_that_are_mapped_do_no_harm(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    let paths = Broken::ALL.map(|broken| {
        let path = folder.path().join(format!("{broken:?}.so"));
        write_broken(broken, &path).unwrap();
        path
    });
    let mut running = Running::start(&program(Program::Mapper).unwrap(), &paths);
    running.wait_ready();
    let profile = system.collect_settled("mapper", 150);
    let right = profile.count(|stack| stack.has_run(&["mapper_leaf", "mapper_work", "main"]));
    assert!(right as f64 > 0.97 * profile.total() as f64, "{}", profile.dump());
    assert_eq!((system.collector_status(), system.uploader_status()), (None, None), "both halves live");
}

fn code_in_broken_files_keeps_its_frames(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    for (broken, comm) in [(Broken::Forged, "run-forged"), (Broken::Sparse, "run-sparse")] {
        let file = folder.path().join(format!("{broken:?}.so"));
        write_broken(broken, &file).unwrap();
        let path = folder.path().join(comm);
        copy(&program(Program::Runner).unwrap(), &path);
        let mut running = Running::start(&path, &[&file]);
        running.wait_ready();
        let profile = system.collect_settled(comm, 100);
        let right = profile.count(|stack| {
            let frames: Vec<_> = stack.user().collect();
            frames.len() > 2
                && frames[0].mapping.contains(".so")
                && frames[0].name.is_empty()
                && frames[1].name == "runner_call"
        });
        assert!(right as f64 > 0.95 * profile.total() as f64, "{broken:?}: {right} of {}", profile.dump());
    }
}

fn a_running_program_with_forged_sections(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("forged-elf");
    copy(&stage("forged-source", "forged", false).unwrap(), &path);
    // The kernel reads program headers alone: e_shoff, e_shnum and e_shstrndx may say anything.
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&(u64::MAX - 100).to_le_bytes(), 40).unwrap();
    file.write_all_at(&[0xff; 4], 60).unwrap();
    drop(file);
    let mut running = Running::start(&path, &[""; 0]);
    running.wait_ready();
    let profile = system.collect_settled("forged-elf", 100);
    // Names may be gone; the frames, their file and the rest of the machine are not.
    let own = profile
        .count(|stack| stack.user().next().is_some_and(|frame| frame.mapping.ends_with("/forged-elf")));
    assert!(own as f64 > 0.95 * profile.total() as f64, "{}", profile.dump());
}

fn a_file_that_is_cut_while_it_is_mapped(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    // A library of 64 MB, mostly padding, that is cut while it is looked at, again and again.
    let library =
        plain("big.so", "int big_data[1 << 24] = {1};\nSPENDER(big_work)\n", &["-shared", "-fPIC"]).unwrap();
    let whole = fs::metadata(&library).unwrap().len();
    let mapper = folder.path().join("mapper-cut");
    copy(&program(Program::Mapper).unwrap(), &mapper);
    let mut children = Vec::new();
    for index in 0..8 {
        let path = folder.path().join(format!("cut-{index}.so"));
        copy(&library, &path);
        let mut running = Running::start(&mapper, &[&path]);
        running.wait_ready();
        File::options().write(true).open(&path).unwrap().set_len(whole / (index + 1) / 2).unwrap();
        children.push(running);
    }
    let profile = system.collect_settled("mapper-cut", 150);
    let right = profile.count(|stack| stack.has_run(&["mapper_leaf", "mapper_work", "main"]));
    assert!(right as f64 > 0.97 * profile.total() as f64, "{}", profile.dump());
    assert_eq!((system.collector_status(), system.uploader_status()), (None, None), "both halves live");
}

/// 0500 its owner may read and run, 0100 nobody may read: the kernel then hides from others what the process has mapped.
fn a_program_that_only_its_owner_may_read(system: &System) {
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).unwrap();
    for (comm, mode) in [("owner-only", 0o500), ("unreadable", 0o100)] {
        let path = folder.path().join(comm);
        copy(&stage(&format!("stage-{comm}"), "private", false).unwrap(), &path);
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()];
        let line = user.iter().map(AsRef::as_ref).chain([path.as_os_str()]).collect::<Vec<_>>();
        let mut running = Running::start(Path::new("/usr/bin/setpriv"), &line);
        running.wait_ready();
        let profile = system.collect_settled(comm, 60);
        let right = profile.count(|stack| stack.has_run(&["work_of_stage_private", "main"]));
        assert!(right as f64 > 0.97 * profile.total() as f64, "{comm}: {}", profile.dump());
    }
}

fn odd_paths_are_kept(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    let source = CallTree::standard("odd-path", Start::Bare).build().unwrap();
    for (name, comm) in [
        (&b"odd a b"[..], "odd a b"),
        (b"odd\ttab", "odd.*tab"),
        (b"odd trailing ", "odd trailing "),
        (b"odder\n\"\x1b[2J\xff", "odder.*"),
    ] {
        let path = folder.path().join(OsStr::from_bytes(name));
        copy(&source, &path);
        let _running = Running::start(&path, &[""; 0]);
        let name = String::from_utf8_lossy(name);
        let profile = system.collect(&format!("{{comm=~\"{comm}\"}}"), 30, 60);
        assert!(profile.count(|stack| stack.has_run(&["parse", "main", "_start"])) > 0, "{}", profile.dump());
        let stem = name.split(['\t', ' ', '\n']).next().unwrap_or_default();
        assert!(
            !profile.mappings.iter().any(|(file, _)| file.contains(char::is_control)),
            "{:?}",
            profile.mappings
        );
        assert!(
            profile
                .mappings
                .iter()
                .any(|(file, _)| file.rsplit('/').next().is_some_and(|last| last.starts_with(stem))),
            "{name:?} in {:?}",
            profile.mappings
        );
    }
}

fn a_pipe_in_the_place_of_a_program_does_not_block(system: &System) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("piped");
    copy(&stage("stage-piped", "piped", false).unwrap(), &path);
    let mut running = Running::start(&path, &[""; 0]);
    running.wait_ready();
    fs::remove_file(&path).unwrap();
    let (status, output) = tests::process::run(&["mkfifo", &path.display().to_string()]);
    assert!(status.success(), "{output}");
    let profile = system.collect_settled("piped", 60);
    let right = profile.count(|stack| stack.has_run(&["work_of_stage_piped", "main"]));
    assert!(right as f64 > 0.97 * profile.total() as f64, "{}", profile.dump());
}
