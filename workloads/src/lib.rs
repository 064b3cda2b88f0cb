//! Programs with a known call tree and known shares of time.
