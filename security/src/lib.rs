//! Mechanism of the wall: capabilities and peer credentials.
