//! Prints what this crate finds in a file, and what that costs: `inspect FILE [ADDRESS...]`.

use std::{fs::File, time::Instant};

use objects::{ElfFacts, SymbolTable, demangle};
use records::ElfAddress;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().expect("a file to inspect");
    let file = File::open(&path).expect("a file that can be opened");
    let start = Instant::now();
    let facts = ElfFacts::read(&file);
    println!("facts in {:?}: {facts:#?}", start.elapsed());
    let start = Instant::now();
    let symbols = SymbolTable::read(&file, 256 << 20);
    println!("symbols in {:?}", start.elapsed());
    match &symbols {
        Ok(symbols) => println!(
            "{} functions in {} bytes; problem: {:?}",
            symbols.len(),
            symbols.memory_size(),
            symbols.problem()
        ),
        Err(error) => println!("no symbols: {error}"),
    }
    for address in arguments {
        let address =
            u64::from_str_radix(address.trim_start_matches("0x"), 16).expect("a hexadecimal address");
        let symbol = symbols.as_ref().ok().and_then(|symbols| symbols.lookup(ElfAddress(address)));
        println!("{address:#x}: {:?}", symbol.map(|(name, start)| (demangle(name), start)));
    }
}
