//! Parsers of ELF, DWARF and perf maps over a read-at trait, without I/O.
