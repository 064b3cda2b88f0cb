//! Messages as bytes. The one file that knows bincode, which is no longer maintained (RUSTSEC-2025-0141): whoever
//! replaces it changes this file.

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

use crate::channel::MAX_MESSAGE_SIZE;

/// Why bytes are no message, or a message no bytes.
#[derive(Debug, Error)]
pub enum CodecError {
    /// The message is larger than a packet, or cannot be encoded.
    #[error("cannot encode a message: {0}")]
    Encode(String),
    /// The bytes are no message of this direction, or announce more than a packet can hold.
    #[error("cannot decode a message of {length} bytes: {reason}")]
    Decode {
        /// Length of the packet.
        length: usize,
        /// What the decoder said.
        reason: String,
    },
}

/// The limit stops a length field from making the decoder allocate more than a whole packet could fill.
fn configuration() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<{ MAX_MESSAGE_SIZE * 4 }>()
}

/// Encodes a message.
pub fn encode<M: Serialize>(message: &M) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(message, configuration())
        .map_err(|error| CodecError::Encode(error.to_string()))?;
    if bytes.len() > MAX_MESSAGE_SIZE {
        return Err(CodecError::Encode(format!("{} bytes, a packet holds {MAX_MESSAGE_SIZE}", bytes.len())));
    }
    Ok(bytes)
}

/// Decodes a message, which must be the whole of `bytes`.
pub fn decode<M: DeserializeOwned>(bytes: &[u8]) -> Result<M, CodecError> {
    let error = |reason: String| CodecError::Decode { length: bytes.len(), reason };
    let (message, used) = bincode::serde::decode_from_slice(bytes, configuration())
        .map_err(|cause| error(cause.to_string()))?;
    if used != bytes.len() {
        return Err(error(format!("{} bytes are left over", bytes.len() - used)));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FromCollector, FromUploader, ProcessId, messages::examples};

    #[test]
    fn every_message_survives_the_way_there_and_back() {
        for message in examples::from_collector() {
            let bytes = encode(&message).unwrap();
            assert_eq!(decode::<FromCollector>(&bytes).unwrap(), message);
        }
        for message in examples::from_uploader() {
            let bytes = encode(&message).unwrap();
            assert_eq!(decode::<FromUploader>(&bytes).unwrap(), message);
        }
    }

    #[test]
    fn every_truncated_form_is_refused() {
        for message in examples::from_collector() {
            let bytes = encode(&message).unwrap();
            for length in 0..bytes.len() {
                assert!(decode::<FromCollector>(&bytes[..length]).is_err(), "{message:?} cut to {length}");
            }
            let mut longer = bytes.clone();
            longer.push(0);
            assert!(decode::<FromCollector>(&longer).is_err(), "{message:?} with a byte more");
        }
    }

    #[test]
    fn a_length_field_cannot_make_the_decoder_allocate() {
        // Samples (variant 7) that claims 2^60 elements.
        let mut bytes = vec![7, 253];
        bytes.extend((1u64 << 60).to_le_bytes());
        assert!(decode::<FromCollector>(&bytes).is_err());
    }

    #[test]
    fn what_is_larger_than_a_packet_is_not_encoded() {
        let text = vec![b'x'; MAX_MESSAGE_SIZE + 1];
        let message = FromCollector::Comm(crate::Comm { process: ProcessId(1), comm: text });
        assert!(matches!(encode(&message), Err(CodecError::Encode(_))));
    }
}
