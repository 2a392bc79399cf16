//! A kernel: recorded programs, what they work on, and the archetype that runs them.

use super::expression::evaluate;
use super::record::{Operand, Rec, Step, record};
use std::collections::BTreeMap;

/// What an operand is kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A float each.
    F32,
    /// Two bfloat16 in a word, the first in the lower half; read only.
    Bf16,
    /// Four signed bytes in a word, the first lowest; read only.
    I8,
    /// A variable of each thread that a skeleton declares.
    Local,
    /// Floats that a skeleton shares within a group.
    Shared,
}

/// Something a program loads or stores.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its name, also of the buffer.
    pub name: &'static str,
    /// How it is kept.
    pub ty: Type,
    /// Where this place's element is.
    pub index: &'static str,
    /// How many elements it has; empty if it is no buffer.
    pub len: &'static str,
    /// Whether a program writes it.
    pub written: bool,
}

/// Which loops surround a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archetype {
    /// One place of `count`; `row` and `i` of rows as wide as `width`, if that is not empty.
    Map {
        /// Places.
        count: &'static str,
        /// Width of a row.
        width: &'static str,
    },
    /// One row of `rows`, `n` wide; 64 threads, which are the virtual lanes.
    Row,
    /// One of `n` columns, and for each of `segments` the rows `first` to `end`.
    Fold {
        /// Segments.
        segments: &'static str,
        /// First row of `segment`.
        first: &'static str,
        /// The row after its last.
        end: &'static str,
        /// The row at place `at` of the segment.
        row: &'static str,
    },
    /// A product `[m, n]` over `depth`, and what is done to it.
    Gemm {
        /// How many products share the left operand.
        products: usize,
        /// Whether neighbours in k are neighbours in memory: left operand, right operand.
        along_k: [bool; 2],
    },
    /// Causal attention, `[attend, shrink, attended]`.
    Attention,
    /// Its gradient with respect to queries, `[attend_backward]`.
    AttentionQueries,
    /// Its gradient with respect to keys and values, `[attend_backward]`.
    AttentionKeys,
}

/// A kernel, ready to be printed or interpreted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name in every printed text.
    pub name: String,
    /// Which loops surround its programs.
    pub archetype: Archetype,
    /// Sizes given at launch (u32), in the order of the parameter block.
    pub dims: Vec<&'static str>,
    /// Numbers given at launch (f32), after them.
    pub numbers: Vec<&'static str>,
    /// Lists of u32: name and length.
    pub lists: Vec<(&'static str, &'static str)>,
    /// What the programs load and store.
    pub fields: Vec<Field>,
    /// The programs.
    pub programs: Vec<Vec<Step>>,
}

/// Sizes and numbers of one launch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launch {
    /// Sizes by name.
    pub dims: Vec<(&'static str, u32)>,
    /// Numbers by name.
    pub numbers: Vec<(&'static str, f32)>,
}

/// Buffers by name, in words.
pub type Memory = BTreeMap<&'static str, Vec<u32>>;

/// A launch that does not fit its kernel; refused before it starts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}: {problem}")]
pub struct WrongLaunch {
    /// The kernel.
    pub kernel: String,
    /// What does not fit.
    pub problem: String,
}

/// Head width that attention's skeletons have room for.
pub const MOST_HEAD: u32 = 256;
/// Query rows of one group in attention.
pub const ATTENTION_ROWS: u32 = 4;
/// Rows and columns of one group's tile in gemm.
pub const TILE: u32 = 64;

impl Kernel {
    /// A kernel of that name without programs.
    pub fn new(name: &str, archetype: Archetype, dims: &[&'static str]) -> Kernel {
        Kernel {
            name: name.into(),
            archetype,
            dims: dims.into(),
            numbers: vec![],
            lists: vec![],
            fields: vec![],
            programs: vec![],
        }
    }

    /// Adds an operand.
    pub fn field(
        &mut self,
        name: &'static str,
        ty: Type,
        index: &'static str,
        len: &'static str,
    ) -> Operand {
        self.fields.push(Field { name, ty, index, len, written: false });
        Operand(self.fields.len() - 1)
    }

    /// Adds floats.
    pub fn f32(&mut self, name: &'static str, index: &'static str, len: &'static str) -> Operand {
        self.field(name, Type::F32, index, len)
    }

    /// Adds a number given at launch.
    pub fn number(&mut self, name: &'static str) -> &'static str {
        self.numbers.push(name);
        name
    }

    /// Records a program.
    pub fn record(&mut self, program: impl FnOnce(Rec<'_>)) {
        fn mark(steps: &[Step], fields: &mut [Field]) {
            for step in steps {
                match step {
                    Step::Store { to, .. } => fields[to.0].written = true,
                    Step::Each { body } => mark(body, fields),
                    Step::Reduce { body, .. } => mark(&body.steps, fields),
                    _ => {}
                }
            }
        }
        let steps = record(program);
        mark(&steps, &mut self.fields);
        self.programs.push(steps);
    }

    /// Names and lengths of its buffers, each once, in the order of the printed bindings:
    /// lists, then operands. Lengths are in elements of the type.
    pub fn buffers(&self) -> Vec<(&'static str, Option<Type>, &'static str)> {
        let mut all: Vec<_> = self.lists.iter().map(|&(name, len)| (name, None, len)).collect();
        for field in self.fields.iter().filter(|f| !f.len.is_empty()) {
            if all.iter().all(|(name, ..)| *name != field.name) {
                all.push((field.name, Some(field.ty), field.len));
            }
        }
        all
    }

    /// Threads of a group.
    pub fn block(&self) -> [u32; 3] {
        match self.archetype {
            Archetype::Map { .. } => [256, 1, 1],
            Archetype::Row | Archetype::Fold { .. } => [64, 1, 1],
            Archetype::Gemm { .. } => [16, 16, 1],
            Archetype::Attention | Archetype::AttentionQueries | Archetype::AttentionKeys => {
                [64, ATTENTION_ROWS, 1]
            }
        }
    }

    /// Groups of a launch. Rows and places fill x up to 65,535 and then y.
    ///
    /// # Errors
    /// A size that the launch does not give.
    pub fn groups(&self, launch: &Launch) -> Result<[u32; 3], WrongLaunch> {
        let size = |text: &str| self.size(text, launch);
        let spread = |n: u64| {
            let y = n.div_ceil(65_535).max(1);
            [n.div_ceil(y), y, 1]
        };
        let rows = u64::from(ATTENTION_ROWS);
        let groups = match self.archetype {
            Archetype::Map { count, .. } => spread(size(count)?.div_ceil(256)),
            Archetype::Row => spread(size("rows")?),
            Archetype::Fold { segments, .. } => [size("n")?.div_ceil(64), size(segments)?, 1],
            Archetype::Gemm { .. } => {
                let tile = u64::from(TILE);
                [size("n")?.div_ceil(tile), size("m")?.div_ceil(tile), 1]
            }
            Archetype::Attention | Archetype::AttentionQueries => {
                let shared = size("seq * (heads / kv_heads)")?;
                [shared.div_ceil(rows), size("kv_heads")?, size("batch")?]
            }
            Archetype::AttentionKeys => {
                [size("seq")?.div_ceil(rows), size("kv_heads")?, size("batch")?]
            }
        };
        if groups.iter().any(|&g| g > 65_535) {
            return Err(self.wrong(format!("{groups:?} groups, of at most 65535 each")));
        }
        Ok(groups.map(|g| g as u32))
    }

    /// A size's value.
    ///
    /// # Errors
    /// A size that the launch does not give.
    pub fn size(&self, text: &str, launch: &Launch) -> Result<u64, WrongLaunch> {
        let name = |n: &str| launch.dims.iter().find(|d| d.0 == n).map(|d| u64::from(d.1));
        evaluate(text, &name, &|_, _| None).map_err(|problem| self.wrong(problem))
    }

    /// Refuses a launch whose sizes, numbers or buffers do not fit. `words` gives the length
    /// of a buffer in words of 32 bits.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(
        &self,
        launch: &Launch,
        words: &dyn Fn(&str) -> Option<usize>,
    ) -> Result<(), WrongLaunch> {
        let given: Vec<&str> = launch.dims.iter().map(|d| d.0).collect();
        if given != self.dims {
            return Err(self.wrong(format!("sizes {given:?}, not {:?}", self.dims)));
        }
        let given: Vec<&str> = launch.numbers.iter().map(|d| d.0).collect();
        if given != self.numbers {
            return Err(self.wrong(format!("numbers {given:?}, not {:?}", self.numbers)));
        }
        for (name, ty, len) in self.buffers() {
            let elements = self.size(len, launch)?;
            if elements > u64::from(u32::MAX) {
                return Err(self.wrong(format!("{name} has {elements} elements, over 2³² − 1")));
            }
            let each = match ty {
                Some(Type::Bf16) => 2,
                Some(Type::I8) => 4,
                _ => 1,
            };
            let want = elements.div_ceil(each);
            match words(name) {
                None => return Err(self.wrong(format!("no buffer {name}"))),
                Some(have) if (have as u64) < want => {
                    let problem = format!("{name} [{len}] has {have} words of {want}");
                    return Err(self.wrong(problem));
                }
                Some(_) => {}
            }
        }
        if self.dims.contains(&"head_dim") {
            let width = self.size("head_dim", launch)?;
            if width == 0 || width > u64::from(MOST_HEAD) {
                return Err(self.wrong(format!("heads {width} wide, of at most {MOST_HEAD}")));
            }
            if self.size("kv_heads", launch)? == 0 || self.size("heads % kv_heads", launch)? != 0 {
                return Err(self.wrong("query heads do not share the key/value heads".into()));
            }
        }
        self.groups(launch).map(drop)
    }

    fn wrong(&self, problem: String) -> WrongLaunch {
        WrongLaunch { kernel: self.name.clone(), problem }
    }

    /// The parameter block's words.
    pub fn parameters(&self, launch: &Launch) -> Vec<u32> {
        let numbers = launch.numbers.iter().map(|n| n.1.to_bits());
        launch.dims.iter().map(|d| d.1).chain(numbers).collect()
    }
}
