//! Bytes that cross the wall, in both directions. What is a message is the same message after another way.
#![no_main]

use ipc::{FromCollector, FromUploader, Hello};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = ipc::decode::<FromCollector>(data) {
        if let Ok(bytes) = ipc::encode(&message) {
            assert_eq!(ipc::decode::<FromCollector>(&bytes).unwrap(), message);
        }
    }
    if let Ok(message) = ipc::decode::<FromUploader>(data) {
        if let Ok(bytes) = ipc::encode(&message) {
            assert_eq!(ipc::decode::<FromUploader>(&bytes).unwrap(), message);
        }
    }
    if let Some(hello) = Hello::from_bytes(data) {
        assert_eq!(Hello::from_bytes(&hello.to_bytes()), Some(hello));
    }
});
