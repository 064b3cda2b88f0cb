//! The one list of ways in which an unwind can end, and the one list of ways in which a sample can be lost. Numbers
//! are never reused: they stand in the kernel's counters, in messages between the halves and in `/metrics`.

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $id:literal, $label:literal, $sentence:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $(#[doc = $sentence] $variant = $id),* }

        impl $name {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The reason with this number, if there is one.
            #[must_use]
            pub const fn from_id(id: u8) -> Option<Self> {
                match id { $($id => Some($name::$variant),)* _ => None }
            }

            /// The word for this reason in `/metrics` and in JSON.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $($name::$variant => $label),* }
            }

            /// The reason as a sentence for people.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $($name::$variant => $sentence),* }
            }
        }
    };
}

reasons! {
    /// Why the unwind of a user stack ended.
    End {
        Root = 1, "root", "reached the root of the stack";
        TooDeep = 2, "too_deep", "more frames than a record holds: the stack is truncated";
        Memory = 3, "memory", "the stack could not be read (paged out, or not mapped)";
        NotClimbing = 4, "not_climbing", "code without unwind rows, and the frame pointer does not lead to a caller";
        NoUserSpace = 5, "no_user_space", "a kernel thread, or a process that ends or executes another program and has given up its memory: there is no user stack";
        NoRegisters = 6, "no_registers", "the user's registers could not be found";
        Compat = 7, "compat", "a 32-bit process: only its innermost frame is recorded";
        NotCode = 8, "not_code", "the next frame lies in no executable mapping: the stack is cut there";
        OutOfCalls = 9, "out_of_calls", "the kernel refused another tail call: the stack is truncated";
        NoRule = 10, "no_rule", "the frame's unwind rule is none that Bulkhead can execute";
        NotPlaced = 11, "not_placed", "the next frame lies in memory of which nothing is known (yet)";
        Stale = 12, "stale", "the process had just executed another program, or mapped another file there: the stack is cut where that matters";
        RowsMissing = 13, "rows_missing", "the unwind rows of the next frame's file did not come in time, or found no room";
    }
}

impl End {
    /// Whether a stack that ended so has all its frames, from the innermost to the root.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        matches!(self, End::Root | End::NoUserSpace)
    }
}

reasons! {
    /// Why a sample, or a part of what is known about a process, was lost before it reached the uploader.
    Loss {
        RingFull = 1, "ring_full", "the collector did not drain the ring in time";
        OutsideNamespace = 2, "outside_namespace", "the process is not in the collector's pid namespace or below it";
        UnknownProcess = 3, "unknown_process", "the process was gone before anything was learnt of it";
        NoUploader = 4, "no_uploader", "no uploader was connected";
        QueueFull = 5, "queue_full", "the uploader did not read in time: the oldest samples were dropped";
        KernelEvents = 6, "kernel_events", "records of mappings and processes that the kernel could not deliver";
        BadRecord = 7, "bad_record", "a record that was not of the agreed form";
        TooManyMappings = 8, "too_many_mappings", "mappings beyond the bound for one process, or for all together";
        TooManyProcesses = 9, "too_many_processes", "processes beyond the bound for the machine";
        NotOpened = 10, "not_opened", "executables that could not be opened: their frames have no names";
        UnknownKernelCode = 11, "unknown_kernel_code", "kernel frames in no known kernel text";
        OnFuse = 12, "on_fuse", "executables on a file system that another process answers for (FUSE), where opening may take for ever: their frames have no names";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_labels_are_unique_and_lead_back() {
        for (i, end) in End::ALL.iter().enumerate() {
            assert_eq!(End::from_id(*end as u8), Some(*end));
            assert!(End::ALL[..i].iter().all(|other| other.label() != end.label()));
        }
        for (i, loss) in Loss::ALL.iter().enumerate() {
            assert_eq!(Loss::from_id(*loss as u8), Some(*loss));
            assert!(Loss::ALL[..i].iter().all(|other| other.label() != loss.label()));
        }
        assert_eq!(End::from_id(0), None);
        assert_eq!(Loss::from_id(255), None);
    }
}
