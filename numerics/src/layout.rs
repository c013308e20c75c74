//! Where the chunks of an attempt are added up: at the coordinator (the star), or at workers, each of which *owns* a
//! share of the chunks (sharded). Sums are elementwise, so the place does not change a bit of them (**SUM-1**).

/// A worker's session.
type Session = u64;

/// Who adds up which chunk of an attempt. It is fixed for the attempt, except that the coordinator
/// [takes chunks back](OwnChunks).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The workers that add chunks up: chunk `c` is that of `owners[c % owners.len()]`. There are none in the star.
    pub owners: Vec<Session>,
    /// The workers that have a link to every owner. They send their gradients to the owners, and get the sums from them.
    pub linked: Vec<Session>,
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
mod tests {
    use super::*;

    #[test]
    fn chunks_are_dealt_in_turn() {
        let layout = Layout { owners: vec![3, 5], linked: vec![3, 5, 7] };
        assert_eq!((0..4).map(|chunk| layout.owner(chunk)).collect::<Vec<_>>(), [3, 5, 3, 5].map(Some));
        assert_eq!(Layout::default().owner(7), None);
    }

    #[test]
    fn live_1_credits_count_what_the_coordinator_adds_up_and_not_the_numbers_of_chunks() {
        let layout = Layout { owners: vec![1], linked: vec![1] };
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
