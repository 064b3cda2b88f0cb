//! Programs on other file systems, in mount namespaces of their own: what a script mounts goes with it.

use tests::{process::Running, system::System};
use workloads::stage;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("two_tmpfs_with_one_inode_number", two_tmpfs_with_one_inode_number),
    ("a_mount_that_is_gone", a_mount_that_is_gone),
    ("a_program_on_overlayfs", a_program_on_overlayfs),
    ("two_btrfs_subvolumes_with_one_inode_number", two_btrfs_subvolumes_with_one_inode_number),
];

/// Runs a script in a mount namespace with two programs, `$1` and `$2`; expects both at work under these command names.
fn check(system: &System, script: &str, names: [&str; 2]) {
    let programs = names.map(|name| stage(&format!("src-{name}"), &name.replace('-', "_"), true).unwrap());
    let script =
        format!("set -e; place=$(mktemp -d); mount -t tmpfs tmpfs \"$place\"; cd \"$place\"\n{script}\nwait");
    let mut running =
        Running::unshared_shell(&["-m", "-p", "-f", "--mount-proc", "--kill-child"], &script, &programs);
    for name in names {
        let selector = format!("{{comm=\"{name}\"}}");
        tests::wait::wait_for(&format!("{name} runs"), 60, || {
            assert_eq!(running.status(), None, "the script ended:\n{}", running.output());
            system.query(&selector, "").ok()
        });
        let profile = system.collect(&selector, 60, 60);
        let work = format!("work_of_stage_{}", name.replace('-', "_"));
        let right = profile.count(|stack| stack.has_run(&[&work, "main"]));
        assert!(right as f64 > 0.95 * profile.total() as f64, "{work} in {right} of {}", profile.dump());
        let other = names.iter().find(|other| **other != name).expect("the other").replace('-', "_");
        let wrong = profile.count(|stack| stack.frames.iter().any(|frame| frame.name.ends_with(&other)));
        assert_eq!(wrong, 0, "{}", profile.dump());
    }
}

/// Both files must have one inode number, or the case shows nothing.
const SAME_INODE: &str = "
    [ $(stat -c %i \"$a\") = $(stat -c %i \"$b\") ] || { stat \"$a\" \"$b\"; echo 'the inode numbers differ'; exit 1; }
    \"$a\" & \"$b\" &";

fn two_tmpfs_with_one_inode_number(system: &System) {
    let script = format!(
        "mkdir one two; mount -t tmpfs tmpfs one; mount -t tmpfs tmpfs two
         a=one/tmpfs-a b=two/tmpfs-b; cp \"$1\" $a; cp \"$2\" $b; {SAME_INODE}"
    );
    check(system, &script, ["tmpfs-a", "tmpfs-b"]);
}

fn a_mount_that_is_gone(system: &System) {
    let script = "
         mkdir one; mount -t tmpfs tmpfs one; cp \"$1\" one/gone-a; cp \"$2\" one/gone-b
         one/gone-a & one/gone-b &
         sleep 0.5; umount -l one; [ ! -e one/gone-a ]";
    check(system, script, ["gone-a", "gone-b"]);
}

fn a_program_on_overlayfs(system: &System) {
    // One file of the lower layer, one that was copied up.
    let script = "
         mkdir lower upper work merged; cp \"$1\" lower/overlay-a; cp \"$2\" lower/overlay-b
         mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
         touch merged/overlay-b; [ -e upper/overlay-b ]
         merged/overlay-a & merged/overlay-b &";
    check(system, script, ["overlay-a", "overlay-b"]);
}

fn two_btrfs_subvolumes_with_one_inode_number(system: &System) {
    let script = format!(
        "truncate -s 128M image; mkfs.btrfs -q image; mkdir disk; mount -o loop image disk
         btrfs -q subvolume create disk/one 2>/dev/null || btrfs subvolume create disk/one
         btrfs -q subvolume create disk/two 2>/dev/null || btrfs subvolume create disk/two
         a=disk/one/btrfs-a b=disk/two/btrfs-b; cp \"$1\" $a; cp \"$2\" $b; sync; {SAME_INODE}"
    );
    check(system, &script, ["btrfs-a", "btrfs-b"]);
}
