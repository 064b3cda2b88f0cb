//! The tree of all stacks, in preorder. The samples are sorted by their stacks, so that each subtree is a run of
//! samples, and a node is finished, and dropped if it is too small, as soon as its run is over.

use proto::pprof::{Profile, Sample};

use super::functions::{FOLDED, Frame, Functions, ROOT};
use super::{MAX_DEPTH, value};

/// Line of a node whose samples are at several lines.
const SEVERAL_LINES: i32 = -1;

/// The columns of the tree.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) depth: Vec<u16>,
    pub(super) function: Vec<u32>,
    pub(super) line: Vec<i32>,
    pub(super) own: Vec<u64>,
    /// Nodes with less than this in all were folded.
    pub(super) smallest: u64,
}

/// A node on the path to the one at hand.
struct Open {
    node: usize,
    /// What the node and all below it took.
    total: u64,
    /// What the nodes took that were dropped below it.
    folded: u64,
}

impl Tree {
    pub(super) fn of(profile: &Profile, functions: &Functions, max_nodes: usize) -> Self {
        let mut samples: Vec<&Sample> = profile.sample.iter().filter(|sample| value(sample) > 0).collect();
        samples.sort_by(|a, b| {
            let names = |sample| functions.stack(sample).map(|frame: Frame| frame.function);
            names(a).cmp(names(b))
        });
        let mut smallest = 1_u64;
        loop {
            // Once no sample is left that is not folded there are two nodes, so that this ends.
            match Self::build(&samples, functions, smallest, max_nodes.max(2)) {
                Some(tree) => return tree,
                None => smallest = smallest.saturating_mul(2),
            }
        }
    }

    /// The tree without the nodes that have less than `smallest`; none if it has more than `max_nodes`.
    fn build(samples: &[&Sample], functions: &Functions, smallest: u64, max_nodes: usize) -> Option<Self> {
        let mut tree = Tree { smallest, ..Tree::default() };
        let mut path: Vec<Open> = Vec::new();
        tree.open(&mut path, Frame { function: ROOT, line: 0 });
        for sample in samples {
            let mut depth = 1;
            for frame in bounded(functions.stack(sample)) {
                match path.get(depth).map(|open| open.node) {
                    Some(node) if tree.function[node] == frame.function => {
                        if tree.line[node] != frame.line {
                            tree.line[node] = SEVERAL_LINES;
                        }
                    }
                    _ => {
                        while path.len() > depth {
                            tree.close(&mut path);
                        }
                        tree.open(&mut path, frame);
                    }
                }
                depth += 1;
            }
            while path.len() > depth {
                tree.close(&mut path);
            }
            if let Some(leaf) = path.last_mut() {
                let value = value(sample);
                leaf.total = leaf.total.saturating_add(value);
                tree.own[leaf.node] = tree.own[leaf.node].saturating_add(value);
            }
            if tree.own.len() > max_nodes + path.len() {
                return None;
            }
        }
        while !path.is_empty() {
            tree.close(&mut path);
        }
        (tree.own.len() <= max_nodes).then_some(tree)
    }

    fn open(&mut self, path: &mut Vec<Open>, frame: Frame) {
        path.push(Open { node: self.own.len(), total: 0, folded: 0 });
        self.push(path.len() - 1, frame, 0);
    }

    fn push(&mut self, depth: usize, frame: Frame, own: u64) {
        // Bounded by MAX_DEPTH.
        self.depth.push(u16::try_from(depth).unwrap_or(u16::MAX));
        self.function.push(frame.function);
        self.line.push(frame.line);
        self.own.push(own);
    }

    fn close(&mut self, path: &mut Vec<Open>) {
        let Some(closed) = path.pop() else { return };
        let depth = path.len();
        if let Some(parent) = path.last_mut() {
            parent.total = parent.total.saturating_add(closed.total);
            if closed.total < self.smallest {
                // All that is below it stands behind it.
                parent.folded = parent.folded.saturating_add(closed.total);
                self.depth.truncate(closed.node);
                self.function.truncate(closed.node);
                self.line.truncate(closed.node);
                self.own.truncate(closed.node);
                return;
            }
        }
        if closed.folded > 0 {
            self.push(depth + 1, Frame { function: FOLDED, line: 0 }, closed.folded);
        }
    }
}

/// A stack with the frames beyond [`MAX_DEPTH`] as one.
fn bounded(stack: impl Iterator<Item = Frame>) -> impl Iterator<Item = Frame> {
    stack.enumerate().take(MAX_DEPTH).map(|(depth, frame)| {
        if depth + 1 == MAX_DEPTH { Frame { function: FOLDED, line: 0 } } else { frame }
    })
}
