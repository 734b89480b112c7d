/// Which chunks have begun to come and which are there: two bits each.
#[derive(Debug)]
pub(super) struct ChunkTable {
    begun: Vec<u64>,
    held: Vec<u64>,
    /// All chunks before this one are held.
    front: u32,
    held_count: u32,
}

impl ChunkTable {
    /// The caller has checked the number against a limit.
    pub(super) fn new(chunks: u32) -> Self {
        let words = usize::try_from(chunks.div_ceil(64)).unwrap_or(usize::MAX);
        Self { begun: vec![0; words], held: vec![0; words], front: 0, held_count: 0 }
    }

    pub(super) fn has_begun(&self, chunk: u32) -> bool {
        bit(&self.begun, chunk)
    }

    pub(super) fn is_held(&self, chunk: u32) -> bool {
        bit(&self.held, chunk)
    }

    pub(super) fn begin(&mut self, chunk: u32) {
        set(&mut self.begun, chunk);
    }

    pub(super) fn hold(&mut self, chunk: u32) {
        if !self.is_held(chunk) {
            set(&mut self.held, chunk);
            self.held_count += 1;
        }
        while self.is_held(self.front) {
            self.front += 1;
        }
    }

    /// The first chunk that is not held.
    pub(super) fn front(&self) -> u32 {
        self.front
    }

    pub(super) fn held_count(&self) -> u32 {
        self.held_count
    }
}

fn bit(words: &[u64], chunk: u32) -> bool {
    let word = usize::try_from(chunk / 64).ok().and_then(|at| words.get(at));
    word.is_some_and(|word| word >> (chunk % 64) & 1 == 1)
}

fn set(words: &mut [u64], chunk: u32) {
    if let Some(word) = usize::try_from(chunk / 64).ok().and_then(|at| words.get_mut(at)) {
        *word |= 1 << (chunk % 64);
    }
}
