//! Where profiles go beside the page.

pub mod connection;
pub mod local;
pub mod parca;
mod tls;
