//! Ragged sequences laid end to end: the one place where a batch takes its tensor shape. No padding, no masks.

/// Sequences laid end to end. N is the total number of tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedSequences {
    /// Token ids, N.
    pub ids: Vec<u32>,
    /// Each token's position within its own sequence, N.
    pub positions: Vec<u32>,
    /// Where sequences begin: sequence s is rows `offsets[s]..offsets[s + 1]`. Starts with 0, ends with N.
    pub offsets: Vec<usize>,
}

impl PackedSequences {
    /// Packs sequences in the order given.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S]) -> Self {
        let mut packed = Self { ids: Vec::new(), positions: Vec::new(), offsets: vec![0] };
        for sequence in sequences {
            let sequence = sequence.as_ref();
            packed.ids.extend_from_slice(sequence);
            packed.positions.extend(0..sequence.len() as u32);
            packed.offsets.push(packed.ids.len());
        }
        packed
    }

    /// How many tokens there are in all.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// How many sequences there are.
    pub fn n_sequences(&self) -> usize {
        self.offsets.len() - 1
    }
}
