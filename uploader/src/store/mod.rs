//! Where profiles go beside the page.

pub mod connection;
pub mod local;
mod names;
pub mod parca;
mod tls;
