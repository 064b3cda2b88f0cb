//! Records, what `/proc` says, and what is known then.

use super::*;
use crate::kernel_events::FileNumbers;

struct World {
    registry: Registry,
    link: Link,
    now: u64,
}

impl World {
    fn new() -> Self {
        World { registry: Registry::new(), link: Link::default(), now: 0 }
    }

    fn apply(&mut self, what: What) {
        self.now += 1;
        self.registry.apply(KernelEvent { timestamp: self.now, what }, self.now, &mut self.link);
    }

    fn map(&mut self, pid: u32, start: u64, inode: u64) {
        let file = FileNumbers { major: 0xfff, minor: 1, inode, generation: 0 };
        let path = format!("/no/such/file/{inode}").into_bytes();
        self.apply(What::Map(Box::new(Mapped {
            pid,
            start,
            end: start + 0x1000,
            opened_at: (start, start + 0x1000),
            offset: 0,
            file,
            path,
        })));
    }

    fn code(&mut self, pid: u32, address: u64) -> Option<Code> {
        Some(self.registry.processes.get_mut(pid)?.space.find(address)?.code)
    }
}

#[test]
fn executables_that_are_gone_are_not_kept_for_ever() {
    let mut world = World::new();
    world.apply(What::Fork { pid: A, parent: 0 });
    world.registry.insert(A, NewProcess { threads: 1, ..NewProcess::default() }, &mut world.link);
    // Each in the place of the one before.
    for inode in 1..=KEPT_EXECUTABLES as u64 {
        world.map(A, 0x1000, inode);
    }
    assert!(world.registry.tick(0), "the vdso makes one more");
    assert_eq!(world.registry.executables.len(), 2);
    assert!(matches!(world.code(A, 0x1000), Some(Code::File(_))));
    // Those that are mapped stay, and are not looked through each second.
    for inode in 1..=KEPT_EXECUTABLES as u64 {
        world.map(A, 0x10_0000 + inode * 0x2000, inode);
    }
    assert!(world.registry.tick(0));
    assert!(world.registry.executables.len() > KEPT_EXECUTABLES);
    assert!(!world.registry.tick(0));
}

/// Pids that cannot be there (above the kernel's limit of 2^22).
const A: u32 = 1 << 23;
const B: u32 = A + 1;

#[test]
fn a_fork_shares_and_an_exec_begins_anew() {
    let mut world = World::new();
    world.apply(What::Exec { pid: A, comm: b"a".to_vec() });
    world.map(A, 0x1000, 1);
    world.apply(What::Fork { pid: B, parent: A });
    assert_eq!(world.code(B, 0x1000), world.code(A, 0x1000));
    assert!(world.code(B, 0x1000).is_some());
    // A mapping of the child is not its parent's.
    world.map(B, 0x5000, 2);
    assert_eq!(world.code(A, 0x5000), None);
    let before = world.registry.processes.get_mut(B).unwrap().id;
    world.apply(What::Exec { pid: B, comm: b"b".to_vec() });
    assert_ne!(world.registry.processes.get_mut(B).unwrap().id, before);
    assert_eq!(world.code(B, 0x1000), None);
    assert!(world.code(A, 0x1000).is_some());
}

#[test]
fn a_process_ends_with_its_last_thread() {
    let mut world = World::new();
    world.apply(What::Exec { pid: A, comm: b"a".to_vec() });
    world.apply(What::Fork { pid: A, parent: A });
    world.apply(What::Exit { pid: A });
    assert!(world.registry.processes.get_mut(A).is_some());
    world.apply(What::Exit { pid: A });
    // It is known a little longer, and then no more.
    world.registry.forget_ended(world.now, &mut world.link);
    assert!(world.registry.processes.get_mut(A).is_some());
    world.registry.forget_ended(world.now + 1, &mut world.link);
    assert!(world.registry.processes.get_mut(A).is_none());
    // One that nobody knew.
    world.apply(What::Exit { pid: B });
}

#[test]
fn one_that_runs_on_has_not_ended() {
    let mut world = World::new();
    world.apply(What::Exec { pid: A, comm: b"a".to_vec() });
    world.apply(What::Exit { pid: A });
    // A thread whose beginning was heard of late.
    world.apply(What::Fork { pid: A, parent: A });
    world.registry.changed.clear();
    world.registry.forget_ended(world.now + 1, &mut world.link);
    assert!(world.registry.processes.get_mut(A).is_some() && world.registry.changed == [A]);
    world.apply(What::Exit { pid: A });
    world.registry.forget_ended(world.now + 1, &mut world.link);
    assert!(world.registry.processes.get_mut(A).is_none());
}

#[test]
fn who_has_no_number_here_is_nobody() {
    let mut world = World::new();
    for pid in [0, u32::MAX] {
        world.apply(What::Exec { pid, comm: b"a".to_vec() });
        world.map(pid, 0x1000, 1);
        world.apply(What::Fork { pid: A, parent: pid });
        world.apply(What::Exit { pid });
    }
    assert_eq!(world.registry.processes.pids().count(), 0);
}

#[test]
fn what_cannot_be_read_again_is_kept() {
    let mut world = World::new();
    let own = std::process::id();
    let known = |world: &mut World| {
        world.registry.look_up(own, world.now, &mut world.link);
        world.registry.processes.get_mut(own).unwrap().space.mappings().len()
    };
    let before = known(&mut world);
    assert!(before > 0);
    be_left_alone();
    assert_eq!(known(&mut world), before);
}

/// Until looks at this process have taken so long that it is left alone.
fn be_left_alone() {
    let slow = || {
        // So much longer than is harmless that it takes seconds to be forgotten.
        std::thread::sleep(std::time::Duration::from_millis(400));
        Ok(())
    };
    while patience::look(std::process::id(), slow).is_ok() {}
}

#[test]
fn who_is_met_while_left_alone_is_read_later() {
    let mut world = World::new();
    let own = std::process::id();
    let mappings = |world: &mut World| world.registry.processes.get_mut(own).unwrap().space.mappings().len();
    be_left_alone();
    world.registry.look_up(own, world.now, &mut world.link);
    assert_eq!(mappings(&mut world), 0);
    // What is heard of meanwhile does not make it known.
    world.map(own, 0x1000, 1);
    world.apply(What::Fork { pid: A, parent: own });
    world.registry.look_again(world.now, &mut world.link);
    assert_eq!(mappings(&mut world), 1);
    assert!(world.registry.for_later.contains(&own) && !world.registry.for_later.contains(&B));
    let begun = Instant::now();
    while mappings(&mut world) == 1 {
        assert!(begun.elapsed() < std::time::Duration::from_mins(1));
        std::thread::sleep(std::time::Duration::from_millis(10));
        world.registry.look_again(world.now, &mut world.link);
    }
    assert!(!world.registry.for_later.contains(&own));
}

#[test]
fn text_whose_pieces_cannot_be_read_now_is_read_later() {
    let mut world = World::new();
    let own = std::process::id();
    world.registry.look_up(own, world.now, &mut world.link);
    let mappings = world.registry.processes.get_mut(own).unwrap().space.mappings();
    let mapping = *mappings.iter().find(|mapping| mapping.file().is_some_and(|id| id != VDSO)).unwrap();
    // Memory in its place, the kernel says; the text is still there.
    let (start, end) = (mapping.start, mapping.start + 0x1000);
    let file = FileNumbers { major: 0, minor: 0, inode: 0, generation: 0 };
    let path = b"//anon".to_vec();
    let mapped = Mapped { pid: own, start, end, opened_at: (start, end), offset: 0, file, path };
    world.registry.look_ups = LOOK_UPS_PER_SECOND;
    world.apply(What::Map(Box::new(mapped)));
    assert_eq!(world.code(own, start), Some(Code::Anonymous));
    world.registry.tick(world.now);
    world.registry.look_again(world.now, &mut world.link);
    assert_eq!(world.code(own, start), Some(mapping.code));
}

#[test]
fn each_has_its_turn_to_be_looked_at_later() {
    let mut world = World::new();
    // Nobody has these: a look finds nobody.
    let pids = u32::MAX - 10_000..u32::MAX;
    pids.clone().for_each(|pid| world.registry.look_later(pid));
    assert_eq!(world.registry.for_later.len(), MOST_FOR_LATER);
    world.registry.tried_last = pids.start + 100;
    world.registry.look_again(0, &mut world.link);
    assert_eq!(world.registry.for_later.len(), MOST_FOR_LATER - TRIED_PER_SECOND);
    assert!(world.registry.for_later.contains(&pids.start) && world.registry.tried_last > pids.start + 100);
    for _ in 0..MOST_FOR_LATER / TRIED_PER_SECOND {
        world.registry.look_again(0, &mut world.link);
    }
    assert!(world.registry.for_later.is_empty());
}

#[test]
fn the_end_of_a_process_is_not_that_of_the_next_one_with_its_pid() {
    let mut world = World::new();
    world.apply(What::Exec { pid: A, comm: b"a".to_vec() });
    world.apply(What::Exit { pid: A });
    world.apply(What::Exec { pid: A, comm: b"b".to_vec() });
    world.registry.forget_ended(world.now + 1, &mut world.link);
    assert_eq!(world.registry.processes.get_mut(A).unwrap().comm, b"b");
}

#[test]
fn only_the_main_thread_names_the_process() {
    let mut world = World::new();
    world.apply(What::Exec { pid: A, comm: b"a".to_vec() });
    world.apply(What::Comm { pid: A, tid: B, comm: b"worker".to_vec() });
    assert_eq!(world.registry.processes.get_mut(A).unwrap().comm, b"a");
    world.apply(What::Comm { pid: A, tid: A, comm: b"\xff\n".to_vec() });
    assert_eq!(world.registry.processes.get_mut(A).unwrap().comm, b"\xff\n");
}

#[test]
fn memory_without_a_file_and_the_vdso_are_told_apart() {
    let mut world = World::new();
    world.apply(What::Exec { pid: A, comm: b"a".to_vec() });
    let file = FileNumbers { major: 0, minor: 1, inode: 0, generation: 0 };
    for (start, path, inode) in
        [(0x1000, &b"//anon"[..], 0), (0x3000, b"[vdso]", 0), (0x5000, b"/dev/zero (deleted)", 9)]
    {
        let file = FileNumbers { inode, ..file };
        let (end, path) = (start + 0x1000, path.to_vec());
        let mapped = Mapped { pid: A, start, end, opened_at: (start, end), offset: 7, file, path };
        world.apply(What::Map(Box::new(mapped)));
    }
    assert_eq!(world.code(A, 0x1000), Some(Code::Anonymous));
    assert_eq!(world.code(A, 0x3000), Some(Code::File(VDSO)));
    assert_eq!(world.code(A, 0x5000), Some(Code::Anonymous));
}

#[test]
fn lost_records_ask_for_a_new_look() {
    let mut world = World::new();
    world.apply(What::Exec { pid: A, comm: b"a".to_vec() });
    world.apply(What::Lost(5));
    assert!(world.registry.incomplete);
    while world.registry.read_again(world.now, &mut world.link).unwrap() {}
    assert!(!world.registry.incomplete);
    // What is not there is gone, and this process is known now.
    assert!(world.registry.processes.get_mut(A).is_none());
    let own = world.registry.processes.get_mut(std::process::id()).unwrap();
    assert!(own.threads >= 1 && !own.space.mappings().is_empty());
    let id = own.id;
    // A second look does not make another process of it.
    world.registry.scan(world.now, &mut world.link).unwrap();
    assert_eq!(world.registry.processes.get_mut(std::process::id()).unwrap().id, id);
}
