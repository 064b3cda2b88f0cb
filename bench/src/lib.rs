//! Measurements that compare in the same run.
