//! What a worker's computing consists of: stretches after which a chunk may leave.

use tally_numerics::tree::Node;
use tally_numerics::wire::WireDtype;

use super::cluster::{Cluster, Computing};

/// A stretch of computing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    /// It begins a leaf or a subtree.
    pub begins: bool,
    /// Seconds of a core.
    pub cpu: f64,
    /// It is not done before so many seconds after that beginning.
    pub due: f64,
    /// The node, by its place among the worker's, and the chunk of its sum that may leave then.
    pub ready: Option<(usize, usize)>,
}

/// The pieces of these nodes, in the order in which they are computed.
#[must_use]
pub fn pieces(cluster: &Cluster, nodes: &[Node]) -> Vec<Piece> {
    let Computing { sample, subtree, at_once, .. } = cluster.computing;
    let mut pieces = Vec::new();
    for (place, &node) in nodes.iter().enumerate() {
        let mut stretches: Vec<f64> = if at_once {
            vec![cluster.samples(node) as f64 * sample]
        } else {
            let leaves = cluster.tree.leaves(node).map(|leaf| cluster.samples(cluster.tree.leaf(leaf)));
            leaves.filter(|&samples| samples > 0).map(|samples| samples as f64 * sample).collect()
        };
        let Some(last) = stretches.pop() else { continue };
        // What a subtree takes besides comes before anything of it leaves.
        if subtree > 0.0 {
            pieces.push(whole(cluster, subtree, 0.0));
        }
        let making = cluster.computing.element * cluster.parameters as f64;
        // A leaf that is not the last is added to those before it.
        let adding = (cluster.costs.add_element + rounding(cluster)) * cluster.parameters as f64;
        for seconds in stretches {
            pieces.push(whole(cluster, seconds, making));
            pieces.push(Piece { begins: true, cpu: adding, due: 0.0, ready: None });
        }
        streamed(cluster, place, last, &mut pieces);
    }
    pieces
}

/// Seconds of a core to round an element, where that is done.
fn rounding(cluster: &Cluster) -> f64 {
    match cluster.wire_dtype {
        WireDtype::F32 => 0.0,
        WireDtype::Bf16 => cluster.costs.round_element,
    }
}

/// Computing of which nothing leaves.
fn whole(cluster: &Cluster, seconds: f64, making: f64) -> Piece {
    let (cpu, due) = if cluster.computing.uses_core { (seconds, 0.0) } else { (making, seconds) };
    Piece { begins: true, cpu, due, ready: None }
}

/// Computing whose chunks leave one after the other.
fn streamed(cluster: &Cluster, place: usize, seconds: f64, pieces: &mut Vec<Piece>) {
    let Computing { first_chunk, uses_core, .. } = cluster.computing;
    let element = cluster.computing.element + rounding(cluster);
    let chunks = cluster.chunks();
    let mut before = 0.0;
    for chunk in 0..chunks {
        // The first is ready at its share, the last at the end.
        let part = if chunks == 1 { 1.0 } else { chunk as f64 / (chunks - 1) as f64 };
        let at = seconds * (first_chunk + (1.0 - first_chunk) * part);
        let (cpu, due) =
            if uses_core { (at - before, 0.0) } else { (element * cluster.elements(chunk) as f64, at) };
        before = at;
        pieces.push(Piece { begins: chunk == 0, cpu, due, ready: Some((place, chunk)) });
    }
}
