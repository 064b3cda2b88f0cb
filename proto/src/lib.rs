//! The protocol buffers that Bulkhead speaks.
