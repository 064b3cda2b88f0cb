//! The unprivileged half of Bulkhead. Modules follow the walk of a sample: what the collector says is kept in mirrors
//! ([`processes`], [`executables`]), becomes targets ([`targets`]) and profiles ([`profile`]) with names
//! ([`symbols`]).

#[cfg(all(feature = "no-landlock", not(debug_assertions)))]
compile_error!("no-landlock is for script/test-layers: what is built for use has the whole wall");

pub mod app;
mod backoff;
mod causes;
pub mod check;
pub mod collector_client;
pub mod config;
pub mod confine;
pub mod debuginfo;
pub mod delivery;
pub mod discovery;
pub mod executables;
pub mod expression;
pub mod flags;
pub mod http;
pub mod policy;
pub mod printable;
pub mod private_file;
pub mod processes;
pub mod profile;
pub mod relabel;
pub mod resolve;
mod resolver;
pub mod rows;
pub mod secret;
mod sparingly;
pub mod spool;
mod stamp;
pub mod state;
pub mod store;
pub mod symbols;
pub mod targets;
pub mod time;
pub mod windows;
pub mod worker;
