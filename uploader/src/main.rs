//! The unprivileged half: targets, symbols, profiles, the page.
fn main() {}
