//! The unprivileged half of Bulkhead. Modules follow the walk of a sample: what the collector says
//! ([`collector_client`]) is kept in mirrors ([`processes`], [`executables`]), becomes targets ([`targets`]) and
//! profiles ([`profile`]) with names ([`symbols`]), which go to folders ([`store`]) and to the page ([`http`]).

pub mod flags;
pub mod printable;
pub mod targets;
