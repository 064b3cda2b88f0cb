//! Rust with known shares: 75 % in a trait's method, 25 % in a generic function.

use std::hint::black_box;

trait Work {
    fn perform(&self, iterations: u64) -> u64;
}

struct Heavy(u64);

impl Work for Heavy {
    #[inline(never)]
    fn perform(&self, iterations: u64) -> u64 {
        let mut x = self.0;
        for _ in 0..iterations {
            x = black_box(x.wrapping_mul(6364136223846793005).wrapping_add(1));
        }
        x
    }
}

#[inline(never)]
fn light<T: Into<u64>>(seed: T, iterations: u64) -> u64 {
    let mut x = seed.into();
    for _ in 0..iterations {
        x = black_box(x.wrapping_mul(6364136223846793005).wrapping_add(1));
    }
    x
}

#[inline(never)]
fn dispatch(work: &dyn Work, heavy: bool) {
    let x = if heavy { work.perform(100_000) } else { light(7u32, 100_000) };
    black_box(x);
}

fn main() {
    let start = std::time::Instant::now();
    let work: Box<dyn Work> = black_box(Box::new(Heavy(1)));
    let mut random = 88172645463325252u64;
    while start.elapsed().as_secs() < 600 {
        for _ in 0..100 {
            // Of each four, three.
            let (mut heavy, mut rest) = (3, 4);
            while rest > 0 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let is_heavy = random % rest < heavy;
                heavy -= u64::from(is_heavy);
                rest -= 1;
                dispatch(&*work, is_heavy);
            }
        }
    }
}
