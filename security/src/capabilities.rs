//! Capabilities: what this process has, and getting rid of them.

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use thiserror::Error;

/// A capability set could not be read or changed.
#[derive(Debug, Error)]
#[error("cannot {action} the {set:?} capabilities of this process: {source}")]
pub struct CapabilityError {
    action: &'static str,
    set: CapSet,
    source: CapsError,
}

/// The capabilities that this thread can use now.
pub fn effective() -> Result<CapsHashSet, CapabilityError> {
    caps::read(None, CapSet::Effective).map_err(|source| CapabilityError {
        action: "read",
        set: CapSet::Effective,
        source,
    })
}

/// Those of `needed` that this thread cannot use.
pub fn missing(needed: &[Capability]) -> Result<Vec<Capability>, CapabilityError> {
    let have = effective()?;
    Ok(needed.iter().copied().filter(|capability| !have.contains(capability)).collect())
}

/// Gives up every capability but `keep`, for good: the bounding set shrinks to the same (where this process may do
/// that), and the inheritable and ambient sets, which an exec would pass on, are emptied.
///
/// Works on the calling thread: call it before there are others.
pub fn keep_exactly(keep: &[Capability]) -> Result<(), CapabilityError> {
    if cfg!(feature = "no-drop") {
        return Ok(());
    }
    let keep: CapsHashSet = keep.iter().copied().collect();
    let error = |set| move |source| CapabilityError { action: "drop", set, source };

    // The bounding set needs CAP_SETPCAP, so it comes first; whoever started this process without that capability
    // is expected to have set it (systemd's CapabilityBoundingSet=, setpriv's --bounding-set).
    if effective()?.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(error(CapSet::Bounding))? {
            if !keep.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(error(CapSet::Bounding))?;
            }
        }
    }
    // Kernels without ambient capabilities (before 4.3) have nothing to clear.
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).map_err(error(CapSet::Ambient))?;
    }
    caps::clear(None, CapSet::Inheritable).map_err(error(CapSet::Inheritable))?;
    let have = caps::read(None, CapSet::Permitted).map_err(error(CapSet::Permitted))?;
    let keep: CapsHashSet = keep.intersection(&have).copied().collect();
    caps::set(None, CapSet::Effective, &keep).map_err(error(CapSet::Effective))?;
    caps::set(None, CapSet::Permitted, &keep).map_err(error(CapSet::Permitted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_gone_for_good() {
        // In a thread of its own: capabilities are a thread's.
        std::thread::spawn(|| {
            let keep = [Capability::CAP_SYS_PTRACE];
            let had = effective().unwrap();
            keep_exactly(&keep).unwrap();
            let expected: CapsHashSet = keep.iter().copied().filter(|c| had.contains(c)).collect();
            assert_eq!(effective().unwrap(), expected);
            assert_eq!(caps::read(None, CapSet::Permitted).unwrap(), expected);
            assert!(caps::read(None, CapSet::Inheritable).unwrap().is_empty());
            assert!(caps::read(None, CapSet::Ambient).unwrap().is_empty());
            if had.contains(&Capability::CAP_SETPCAP) {
                assert!(caps::read(None, CapSet::Bounding).unwrap().is_subset(&keep.into()));
            }
            assert!(caps::raise(None, CapSet::Effective, Capability::CAP_BPF).is_err());
            assert_eq!(missing(&[Capability::CAP_BPF]).unwrap(), [Capability::CAP_BPF]);
            keep_exactly(&[]).unwrap();
            assert!(effective().unwrap().is_empty());
        })
        .join()
        .unwrap();
    }
}
