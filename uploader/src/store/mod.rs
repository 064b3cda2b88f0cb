//! Where profiles go beside the page.

pub mod local;
