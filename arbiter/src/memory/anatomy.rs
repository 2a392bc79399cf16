//! What a model consists of: attention, inner layers, experts; how many numbers that is, and what a
//! token leaves in the cache.

use serde::Serialize;

use super::Format;

/// A decoder's form, as far as memory and arithmetic go. From a Hugging Face `config.json`:
/// [`Anatomy::from_hf_config`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Anatomy {
    /// `model_type`.
    pub family: String,
    /// Blocks.
    pub layers: u32,
    /// Width of the residual stream.
    pub hidden: u32,
    /// Entries of the vocabulary.
    pub vocab: u32,
    /// Longest sequence that it was made for.
    pub max_positions: u32,
    /// The output projection is the embedding.
    pub tied_embeddings: bool,
    /// How tokens look at each other.
    pub attention: Attention,
    /// Layers that look back only so far.
    pub window: Option<Window>,
    /// Width of the inner layer of the blocks without experts.
    pub inner: u32,
    /// Inner layers of which a token takes a few.
    pub experts: Option<Experts>,
}

/// How tokens look at each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Attention {
    /// Query heads share key/value heads: all are alike in multi-head attention, one is there in
    /// multi-query attention.
    Grouped {
        /// Query heads.
        heads: u32,
        /// Key/value heads.
        kv_heads: u32,
        /// Width of a head.
        head_dim: u32,
        /// Queries, keys and values have biases.
        qkv_bias: bool,
        /// The output has one.
        output_bias: bool,
        /// Queries and keys have a norm of a head's width.
        head_norms: bool,
    },
    /// Multi-head latent attention (DeepSeek-V2, 2024): keys and values are made anew from one
    /// narrow vector a token, which is all that is cached, beside one rotated key for all heads.
    Latent {
        /// Heads.
        heads: u32,
        /// Width that queries come through, if not straight.
        query_rank: Option<u32>,
        /// Width of the cached vector.
        cache_rank: u32,
        /// Width of a head's part without position.
        plain: u32,
        /// Width of its part with position.
        rotated: u32,
        /// Width of a head's value.
        value: u32,
    },
}

/// Layers that look back only so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// How many do.
    pub layers: u32,
    /// How many tokens back.
    pub tokens: u32,
}

/// Inner layers of which a token takes a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Experts {
    /// Blocks that have them.
    pub layers: u32,
    /// In each of those.
    pub count: u32,
    /// Of which a token takes so many.
    pub active: u32,
    /// Inner width of one.
    pub width: u32,
    /// Inner width of those that each token takes, together; 0 for none.
    pub shared_width: u32,
    /// Those have a gate (Qwen2-MoE).
    pub shared_gate: bool,
    /// The router has a bias (DeepSeek-V3).
    pub router_bias: bool,
}

/// What tensors are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// The vocabulary's table.
    Embedding,
    /// The output projection, where it is not that table.
    Head,
    /// Projections of attention.
    Attention,
    /// Inner layers that each token takes, shared experts too.
    Inner,
    /// Experts.
    Expert,
    /// What chooses experts.
    Router,
    /// Gains and biases.
    Vector,
}

impl Part {
    /// Whether low-rank pairs go beside it: projections that every token takes.
    pub const fn is_adapted(self) -> bool {
        matches!(self, Self::Attention | Self::Inner)
    }

    /// Whether QLoRA stores it in 4 bits: linear layers inside the blocks.
    pub const fn is_inside(self) -> bool {
        matches!(self, Self::Attention | Self::Inner | Self::Expert | Self::Router)
    }
}

/// Tensors that are alike: `count` matrices of `rows` × `columns`, of which a token meets `active`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// What they are for.
    pub part: Part,
    /// Outputs.
    pub rows: u64,
    /// Inputs.
    pub columns: u64,
    /// How many.
    pub count: u64,
    /// Of these, how many take part in one token.
    pub active: u64,
}

impl Group {
    /// Numbers in one.
    pub const fn numbers(&self) -> u64 {
        self.rows * self.columns
    }
}

impl Anatomy {
    /// All tensors, those that are alike together.
    pub fn groups(&self) -> Vec<Group> {
        let (hidden, vocab) = (u64::from(self.hidden), u64::from(self.vocab));
        let layers = u64::from(self.layers);
        let mut groups = Vec::new();
        let mut add = |part, rows, columns, count, active| {
            if rows * columns * count > 0 {
                groups.push(Group { part, rows, columns, count, active });
            }
        };
        add(Part::Embedding, vocab, hidden, 1, 1);
        if !self.tied_embeddings {
            add(Part::Head, vocab, hidden, 1, 1);
        }
        for (rows, columns) in self.attention.projections(hidden) {
            add(Part::Attention, rows, columns, layers, layers);
        }
        // Two norms a block and one at the end; gains and biases of attention.
        add(Part::Vector, 1, hidden, 2 * layers + 1, 2 * layers + 1);
        for width in self.attention.vectors(hidden) {
            add(Part::Vector, 1, width, layers, layers);
        }
        let dense = layers - u64::from(self.experts.map_or(0, |experts| experts.layers));
        // Gate, up, down.
        add(Part::Inner, self.inner.into(), hidden, 3 * dense, 3 * dense);
        if let Some(experts) = self.experts {
            let (layers, count) = (u64::from(experts.layers), u64::from(experts.count));
            let active = u64::from(experts.active);
            add(
                Part::Expert,
                experts.width.into(),
                hidden,
                3 * layers * count,
                3 * layers * active,
            );
            add(Part::Inner, experts.shared_width.into(), hidden, 3 * layers, 3 * layers);
            add(Part::Router, count, hidden, layers, layers);
            add(Part::Vector, u64::from(experts.router_bias), count, layers, layers);
            add(Part::Vector, u64::from(experts.shared_gate), hidden, layers, layers);
        }
        groups
    }

    /// Numbers in all tensors; tied embeddings count once.
    pub fn parameters(&self) -> u64 {
        self.groups().iter().map(|group| group.numbers() * group.count).fold(0, u64::saturating_add)
    }

    /// Numbers that take part in one token.
    pub fn active_parameters(&self) -> u64 {
        self.groups().iter().map(|group| group.numbers() * group.active).sum()
    }

    /// Bytes of all tensors, matrices in this format.
    pub fn bytes(&self, format: Format) -> u64 {
        self.bytes_by(|_| format)
    }

    /// Bytes of all tensors, each part's matrices in a format of its own.
    pub(super) fn bytes_by(&self, format: impl Fn(Part) -> Format) -> u64 {
        let one = |group: &Group| match group.part {
            Part::Vector => group.numbers() * format(Part::Inner).vector(),
            part => format(part).bytes(group.numbers()),
        };
        self.groups()
            .iter()
            .map(|group| one(group).saturating_mul(group.count))
            .fold(0, u64::saturating_add)
    }

    /// Bytes that one token leaves in the cache, all layers together, windows aside.
    pub fn cache_per_token(&self, format: Format) -> u64 {
        u64::from(self.layers).saturating_mul(self.attention.cached(format))
    }

    /// Bytes that a sequence of this many tokens has in the cache.
    pub fn cache(&self, tokens: u64, format: Format) -> u64 {
        let (windowed, reach) =
            self.window.map_or((0, 0), |window| (window.layers, u64::from(window.tokens)));
        let whole = u64::from(self.layers - windowed).saturating_mul(tokens);
        let short = u64::from(windowed).saturating_mul(tokens.min(reach));
        self.attention.cached(format).saturating_mul(whole.saturating_add(short))
    }
}

impl Attention {
    /// Query heads.
    pub const fn heads(&self) -> u64 {
        match *self {
            Self::Grouped { heads, .. } | Self::Latent { heads, .. } => heads as u64,
        }
    }

    /// Matrices of one layer: outputs × inputs.
    fn projections(&self, hidden: u64) -> Vec<(u64, u64)> {
        let heads = self.heads();
        match *self {
            Self::Grouped { kv_heads, head_dim, .. } => {
                let (q, kv) =
                    (heads * u64::from(head_dim), u64::from(kv_heads) * u64::from(head_dim));
                vec![(q, hidden), (kv, hidden), (kv, hidden), (hidden, q)]
            }
            Self::Latent { query_rank, cache_rank, plain, rotated, value, .. } => {
                let [cache, plain, rotated, value] =
                    [cache_rank, plain, rotated, value].map(u64::from);
                let q = heads * (plain + rotated);
                let queries = match query_rank.map(u64::from) {
                    Some(rank) => vec![(rank, hidden), (q, rank)],
                    None => vec![(q, hidden)],
                };
                let rest = [
                    (cache + rotated, hidden),
                    (heads * (plain + value), cache),
                    (hidden, heads * value),
                ];
                queries.into_iter().chain(rest).collect()
            }
        }
    }

    /// Widths of gains and biases of one layer.
    fn vectors(&self, hidden: u64) -> Vec<u64> {
        match *self {
            Self::Grouped { heads, kv_heads, head_dim, qkv_bias, output_bias, head_norms } => {
                let head = u64::from(head_dim);
                let mut widths = Vec::new();
                if qkv_bias {
                    let kv = u64::from(kv_heads) * head;
                    widths.extend([u64::from(heads) * head, kv, kv]);
                }
                if output_bias {
                    widths.push(hidden);
                }
                if head_norms {
                    widths.extend([head, head]);
                }
                widths
            }
            Self::Latent { query_rank, cache_rank, .. } => {
                query_rank.into_iter().chain([cache_rank]).map(u64::from).collect()
            }
        }
    }

    /// Bytes that one token leaves in one layer's cache.
    fn cached(&self, format: Format) -> u64 {
        match *self {
            Self::Grouped { kv_heads, head_dim, .. } => {
                2 * format.bytes(u64::from(kv_heads) * u64::from(head_dim))
            }
            Self::Latent { cache_rank, rotated, .. } => {
                format.bytes(u64::from(cache_rank) + u64::from(rotated))
            }
        }
    }

    /// Widths of queries, of keys and of values, as they are multiplied.
    pub(super) fn widths(&self) -> (u64, u64, u64) {
        let heads = self.heads();
        match *self {
            Self::Grouped { kv_heads, head_dim, .. } => {
                let kv = u64::from(kv_heads) * u64::from(head_dim);
                (heads * u64::from(head_dim), kv, kv)
            }
            Self::Latent { plain, rotated, value, .. } => {
                let q = heads * (u64::from(plain) + u64::from(rotated));
                (q, q, heads * u64::from(value))
            }
        }
    }

    /// Width of what the heads say together, before the output projection.
    pub(super) fn said(&self) -> u64 {
        match *self {
            Self::Grouped { .. } => self.widths().0,
            Self::Latent { .. } => self.widths().2,
        }
    }

    /// Width of the narrow vectors between projections.
    pub(super) fn latents(&self) -> u64 {
        match *self {
            Self::Grouped { .. } => 0,
            Self::Latent { query_rank, cache_rank, rotated, .. } => {
                u64::from(query_rank.unwrap_or(0)) + u64::from(cache_rank) + u64::from(rotated)
            }
        }
    }
}
