//! Bytes that cross the wall, in both directions. What is a message is the same message after another way.
#![no_main]

use std::fmt::Debug;

use ipc::{FromCollector, FromUploader, Hello};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|data: &[u8]| {
    check::<FromCollector>(data);
    check::<FromUploader>(data);
    if let Some(hello) = Hello::from_bytes(data) {
        // A release that was not text has become longer, and is cut.
        let again = Hello::from_bytes(&hello.to_bytes()).unwrap();
        assert_eq!((again.protocol, again.role), (hello.protocol, hello.role));
        assert!(hello.release.starts_with(&again.release), "{hello:?} {again:?}");
        assert!(again.release.len() > 44 || again.release == hello.release, "{hello:?} {again:?}");
    }
});

fn check<M: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) {
    let Ok(message) = ipc::decode::<M>(data) else { return };
    // Nothing is longer than what came, so it can be sent on.
    let bytes = ipc::encode(&message).unwrap();
    assert!(bytes.len() <= data.len());
    assert_eq!(ipc::decode::<M>(&bytes).unwrap(), message);
}
