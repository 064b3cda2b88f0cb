//! An uploader that was taken over: it sends unwind rows that point everywhere. What it then gets to see of a process is
//! still nothing but addresses of code.
#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::time::{Duration, Instant};

use ipc::{ExecutableId, FromCollector, FromUploader, PageRows, TableBegin, UserFrame};
use records::{Cfa, End, REGISTERS, Row, Rule, SavedFp};
use tests::{
    peer::Peer,
    process::Running,
    system::{CAPABILITIES, Place},
    wait::wait_for,
};
use workloads::{Frameless, SECRET, frameless};

/// How long the attack lasts.
const SECONDS: u64 = 12;
/// Rows of each page of a hostile table, and pages: 32 MiB of text.
const ROWS: u16 = 16;
const PAGES: u32 = 512;
/// Rules of a hostile table.
const RULES: u16 = 256;

/// A small generator; the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    /// A rule that leads somewhere near the stack pointer, the frame pointer or another register.
    fn rule(&mut self) -> Rule {
        let named =
            [Cfa::Sp, Cfa::Sp, Cfa::Sp, Cfa::Fp, Cfa::AtFp, Cfa::AtSp, Cfa::AtSpPlus8, Cfa::Plt, Cfa::Signal];
        let kind = match self.below(10) {
            9 => Cfa::FROM_REGISTERS + u8::try_from(self.below(REGISTERS.into())).unwrap(),
            number => named[usize::try_from(number).unwrap()] as u8,
        };
        let fps = [SavedFp::Same, SavedFp::AtCfa, SavedFp::AtFp];
        let near = |random: &mut Random| i32::try_from(random.below(1024)).unwrap() * 8 - 1024;
        Rule {
            cfa: kind,
            fp: fps[usize::try_from(self.below(3)).unwrap()] as u8,
            fp_offset: i16::try_from(near(self)).unwrap(),
            cfa_offset: near(self),
        }
    }
}

/// How long a packet is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// An uploader that speaks the protocol well, and means ill.
struct Attacker(Peer);

impl Attacker {
    fn say(&self, message: &FromUploader) {
        self.0.send(&ipc::encode(message).unwrap()).unwrap();
    }

    /// Sends a table of rows that are all lies.
    fn send_rows(&self, executable: ExecutableId, random: &mut Random) {
        self.say(&FromUploader::TableBegin(TableBegin {
            executable,
            first_page: 0,
            pages: PAGES,
            rows: u32::from(ROWS) * PAGES,
        }));
        self.say(&FromUploader::TableRules((0..RULES).map(|_| random.rule()).collect()));
        let rows = u32::from(ROWS);
        let pages = (0..PAGES).map(|page| PageRows { first: page * rows, count: rows });
        self.say(&FromUploader::TablePages(pages.collect()));
        for _ in 0..PAGES / 256 {
            let mut rule = || u16::try_from(random.below(u64::from(RULES))).unwrap();
            let rows = (0..256).flat_map(|_| 0..ROWS).map(|i| Row::new(i << 12, rule()).0);
            self.say(&FromUploader::TableRows(rows.collect()));
        }
        self.say(&FromUploader::TableEnd);
    }
}

#[test]
fn rows_that_point_everywhere_carry_nothing_out() {
    let path = frameless("secrets", Frameless::Secrets, &[]).unwrap();
    let _running = Running::start(&path, &[""; 0]);
    let place = Place::new();
    // The one user who may connect is the test's own.
    let mut collector = place.collector_with(&CAPABILITIES, &["--uploader-user=0".to_owned()]);
    let connected =
        wait_for("the collector takes the attacker in", 20, || Peer::greeted(&place.socket(), PATIENCE));
    let attacker = Attacker(connected);

    let secret: Vec<u8> = SECRET.to_le_bytes()[2..6].to_vec();
    let mut random = Random(88_172_645_463_325_252);
    let (mut samples, mut cut, mut tables, mut known) = (0, 0, 0, Vec::new());
    let begun = Instant::now();
    let mut renewed = Instant::now();
    while begun.elapsed() < Duration::from_secs(SECONDS) {
        // Other lies every half second.
        if renewed.elapsed() > Duration::from_millis(500) {
            renewed = Instant::now();
            for id in &known {
                attacker.send_rows(*id, &mut random);
                tables += 1;
            }
        }
        let Some(packet) = attacker.0.packet() else { continue };
        assert!(!packet.windows(secret.len()).any(|bytes| bytes == secret), "a secret came out: {packet:x?}");
        match ipc::decode::<FromCollector>(&packet).unwrap() {
            FromCollector::WantRows(id) if !known.contains(&id) => {
                attacker.send_rows(id, &mut random);
                known.push(id);
            }
            FromCollector::Samples(taken) => {
                for sample in taken.iter().filter(|sample| sample.thread_comm == b"secrets") {
                    samples += 1;
                    cut += u64::from(sample.end == End::NotCode as u8);
                    for frame in &sample.user {
                        // The program has no code without a file, so no address of its own may be seen at all.
                        assert!(
                            matches!(frame, UserFrame::File(_, offset) if offset.0 < 1 << 32),
                            "{sample:x?}"
                        );
                    }
                }
            }
            _ => {}
        }
        assert_eq!(collector.status(), None, "{}", place.log("collector"));
    }
    println!("{tables} tables, {samples} samples, {cut} cut");
    assert!(samples > 200, "{samples} samples of the victim");
    // The attack reached its goal in the kernel: words of the stack were taken for return addresses, and stayed inside.
    assert!(cut > 20, "{cut} of {samples} stacks were led astray");
}
