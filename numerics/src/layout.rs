//! Where the chunks of an attempt are added up: at the coordinator (the star), or at workers, each of which *owns* a
//! share of the chunks (sharded). Sums are elementwise, so the place does not change a bit of them (**SUM-1**).
//!
//! Several workers of one machine share its network connection. So in a sharded attempt one of them, the *combiner* of a
//! chunk, adds up what the machine contributes to the chunk before it leaves for the owner, and passes the chunk's sum on to
//! the others. Then a machine sends and receives as much as a single worker does.
//!
//! [`OwnChunks`] is the order in which the coordinator gives credits for the chunks that it adds up itself.

use crate::tree::{Node, Tree};

/// A worker's session.
type Session = u64;

/// Workers of one machine that combine their contributions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// All of them.
    pub workers: Vec<Session>,
    /// Those that combine: they have links to all others.
    pub combiners: Vec<Session>,
    /// The nodes that together are what they were given. Their sums leave the machine.
    pub nodes: Vec<Node>,
}

impl Machine {
    /// The workers of a machine, of which the owners combine.
    #[must_use]
    pub fn new(workers: Vec<Session>, owners: &[Session], nodes: Vec<Node>) -> Self {
        let combiners = workers.iter().copied().filter(|worker| owners.contains(worker)).collect();
        Self { workers, combiners, nodes }
    }

    /// The fewest nodes that are the same leaves as these.
    #[must_use]
    pub fn combined(tree: Tree, nodes: impl IntoIterator<Item = Node>) -> Vec<Node> {
        let mut leaves: Vec<_> = nodes.into_iter().map(|node| tree.leaves(node)).collect();
        leaves.sort_unstable_by_key(|leaves| leaves.start);
        let mut runs: Vec<std::ops::Range<u32>> = Vec::new();
        for leaves in leaves {
            match runs.last_mut().filter(|run| leaves.start <= run.end) {
                Some(run) => run.end = run.end.max(leaves.end),
                None => runs.push(leaves),
            }
        }
        runs.into_iter().flat_map(|run| tree.cover(run)).collect()
    }
}

/// Who adds up which chunk of an attempt. It is fixed for the attempt, except that the coordinator
/// [takes chunks back](OwnChunks).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The workers that add chunks up: chunk `c` is that of `owners[c % owners.len()]`. There are none in the star.
    pub owners: Vec<Session>,
    /// The workers that have a link to every owner. They send their gradients to the owners, and get the sums from them.
    pub linked: Vec<Session>,
    /// The machines on which several of these workers combine their contributions.
    pub machines: Vec<Machine>,
}

impl Layout {
    /// Whether workers own the chunks.
    #[must_use]
    pub fn is_sharded(&self) -> bool {
        !self.owners.is_empty()
    }

    /// The worker that adds this chunk up; `None` if it is the coordinator.
    #[must_use]
    pub fn owner(&self, chunk: u32) -> Option<Session> {
        self.owners.get(chunk as usize % self.owners.len().max(1)).copied()
    }

    /// Whether a worker sends to owners and gets sums from them.
    #[must_use]
    pub fn is_linked(&self, session: Session) -> bool {
        self.linked.contains(&session)
    }

    /// The machine on which a worker combines with others.
    #[must_use]
    pub fn machine_of(&self, session: Session) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.workers.contains(&session))
    }

    /// The worker of a machine through which a chunk leaves it and its sum comes: its owner, if that is one of them.
    #[must_use]
    pub fn gateway(&self, machine: &Machine, chunk: u32) -> Option<Session> {
        let owner = self.owner(chunk)?;
        if machine.workers.contains(&owner) {
            return Some(owner);
        }
        let turn = chunk as usize / self.owners.len();
        machine.combiners.get(turn % machine.combiners.len().max(1)).copied()
    }

    /// The worker to which another sends what it computed of a chunk, which may be itself; `None` if it is the coordinator.
    #[must_use]
    pub fn destination(&self, from: Session, chunk: u32) -> Option<Session> {
        match self.machine_of(from) {
            Some(machine) => self.gateway(machine, chunk),
            None => self.owner(chunk),
        }
    }

    /// The nodes of a chunk whose sums a worker makes: the root if it owns the chunk, those of its machine if it is the
    /// chunk's combiner there. `None` if others make them.
    #[must_use]
    pub fn outputs(&self, worker: Session, chunk: u32) -> Option<&[Node]> {
        if self.owner(chunk) == Some(worker) {
            return Some(&[Node::ROOT]);
        }
        let own = self.machine_of(worker).filter(|machine| self.gateway(machine, chunk) == Some(worker));
        own.map(|machine| &machine.nodes[..])
    }

    /// Whether a worker may send another what it computed or combined of a chunk.
    #[must_use]
    pub fn may_send(&self, from: Session, to: Session, chunk: u32) -> bool {
        let next = self.destination(from, chunk);
        next == Some(to) || (next == Some(from) && self.owner(chunk) == Some(to))
    }

    /// The worker from which another gets a chunk's sum; `None` if it makes the sum itself, or gets it from the coordinator.
    #[must_use]
    pub fn source(&self, to: Session, chunk: u32) -> Option<Session> {
        let owner = self.owner(chunk).filter(|owner| *owner != to && self.is_linked(to))?;
        let gateway = self.machine_of(to).and_then(|machine| self.gateway(machine, chunk));
        Some(gateway.filter(|gateway| *gateway != to).unwrap_or(owner))
    }

    /// The workers to which another passes a chunk's sum: none, unless it is the chunk's owner or a combiner of it.
    pub fn receivers(&self, from: Session, chunk: u32) -> impl Iterator<Item = Session> {
        let passes_on = self.outputs(from, chunk).is_some();
        let linked = if passes_on { &self.linked[..] } else { &[] };
        linked.iter().copied().filter(move |to| self.source(*to, chunk) == Some(from))
    }
}

/// The chunks that the coordinator adds up itself, in the order of their credits: all of them in the star, and in a
/// sharded attempt those that it has taken back from their owners.
#[derive(Clone, Debug)]
pub struct OwnChunks {
    order: Vec<u32>,
    /// Each chunk's place in the order.
    places: Vec<Option<usize>>,
    whole: usize,
}

impl OwnChunks {
    /// Those with which an attempt of this layout begins.
    #[must_use]
    pub fn new(chunks: u32, layout: &Layout) -> Self {
        let mut own = Self { order: Vec::new(), places: vec![None; chunks as usize], whole: 0 };
        if !layout.is_sharded() {
            (0..chunks).for_each(|chunk| own.push(chunk));
        }
        own
    }

    /// Takes a chunk that is not whole yet.
    pub fn push(&mut self, chunk: u32) {
        self.places[chunk as usize] = Some(self.order.len());
        self.order.push(chunk);
    }

    /// All of them, in the order of their credits.
    #[must_use]
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, chunk: u32) -> bool {
        self.places[chunk as usize].is_some()
    }

    /// One of the attempt's chunks has become whole.
    pub fn became_whole(&mut self, chunk: u32) {
        self.whole += usize::from(self.contains(chunk));
    }

    /// Whether a worker has the credit to send a node's chunk to the coordinator: less than a window lies between it and
    /// those that are whole.
    #[must_use]
    pub fn has_credit(&self, chunk: u32, window: usize) -> bool {
        self.places[chunk as usize].is_some_and(|place| place < self.whole + window)
    }

    /// The chunks that workers may have sent by now.
    #[must_use]
    pub fn allowed(&self, window: usize) -> &[u32] {
        &self.order[..self.order.len().min(self.whole + window)]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_dealt_in_turn() {
        let layout = Layout { owners: vec![3, 5], linked: vec![3, 5, 7], ..Layout::default() };
        assert_eq!((0..4).map(|chunk| layout.owner(chunk)).collect::<Vec<_>>(), [3, 5, 3, 5].map(Some));
        assert_eq!(Layout::default().owner(7), None);
    }

    /// Workers 1 to 4 on one machine, of which 4 owns nothing; 5 and 6 on another; 7 alone.
    fn machines() -> Layout {
        let owners = vec![1, 2, 3, 5, 6, 7];
        let machine = |workers: Vec<Session>, node| Machine::new(workers, &owners, vec![Node(node)]);
        let machines = vec![machine(vec![1, 2, 3, 4], 2), machine(vec![5, 6], 6)];
        Layout { linked: (1..=7).collect(), machines, owners }
    }

    #[test]
    fn a_machines_contributions_leave_it_once_and_its_sums_come_once() {
        let layout = machines();
        for chunk in 0..60 {
            let owner = layout.owner(chunk).unwrap();
            let inside = |a, b| layout.machine_of(a).is_some_and(|machine| machine.workers.contains(&b));
            for from in 1..=7 {
                let next = layout.destination(from, chunk).unwrap();
                assert!(next == owner || inside(from, next), "chunk {chunk} of {from} goes to {next}");
                assert!(layout.may_send(from, next, chunk));
                if next != owner {
                    assert_eq!(layout.outputs(next, chunk), layout.machine_of(from).map(|m| &m.nodes[..]));
                    assert!(layout.may_send(next, owner, chunk));
                    assert!(from == next || !layout.may_send(from, owner, chunk));
                    assert_ne!(next, 4, "it has not links to all");
                }
            }
            assert_eq!(layout.outputs(owner, chunk), Some(&[Node::ROOT][..]));
            // The sum reaches everybody once, over as many links between machines as there are other machines.
            let passed: Vec<(Session, Session)> =
                (1..=7).flat_map(|from| layout.receivers(from, chunk).map(move |to| (from, to))).collect();
            let mut reached: Vec<Session> = passed.iter().map(|(_, to)| *to).collect();
            reached.sort_unstable();
            assert!(reached.into_iter().eq((1..=7).filter(|worker| *worker != owner)));
            assert_eq!(passed.iter().filter(|(from, to)| !inside(*from, *to)).count(), 2);
        }
        let turns = (0..60).filter(|chunk| layout.destination(4, *chunk) == Some(1)).count();
        assert!((15..=25).contains(&turns), "combiners take turns: {turns}");
    }

    #[test]
    fn what_a_machine_was_given_is_as_few_nodes_as_can_be() {
        let tree = Tree::new(8).unwrap();
        let combined = |nodes: &[u32]| Machine::combined(tree, nodes.iter().map(|node| Node(*node)));
        assert_eq!(combined(&[10, 4, 11]), [Node(2)]);
        assert_eq!(combined(&[9, 5, 12]), [Node(9), Node(5), Node(12)]);
        assert_eq!(combined(&[4, 8]), [Node(4)]);
        assert_eq!(combined(&[]), []);
    }

    #[test]
    fn live_1_credits_count_what_the_coordinator_adds_up_and_not_the_numbers_of_chunks() {
        let layout = Layout { owners: vec![1], linked: vec![1], ..Layout::default() };
        let mut own = OwnChunks::new(100, &layout);
        assert!(own.allowed(2).is_empty() && !own.has_credit(98, 2));
        [98, 7, 99].into_iter().for_each(|chunk| own.push(chunk));
        assert!(own.has_credit(98, 2) && own.has_credit(7, 2) && !own.has_credit(99, 2));
        // What owners add up grants no credit.
        own.became_whole(50);
        assert_eq!(own.allowed(2), [98, 7]);
        own.became_whole(7);
        assert_eq!(own.allowed(2), [98, 7, 99]);
        assert_eq!(OwnChunks::new(3, &Layout::default()).allowed(8), [0, 1, 2]);
    }
}
