//! Runs kernels as the table of operations and the crate's order of accumulation define
//! them, one element after another: what recorder and printers are checked against. It
//! shares no code with the CPU's instance but the bodies.

use super::expression::evaluate;
use super::kernel::{Archetype, Field, Kernel, Launch, Memory, Type, WrongLaunch};
use super::ops::Op;
use super::record::{Gives, Operand, Step};
use std::collections::HashMap;

/// Runs `kernel` on `memory`.
///
/// # Errors
/// [`WrongLaunch`], before anything is written; or an operand's place that is not there.
pub fn interpret(kernel: &Kernel, launch: &Launch, memory: &mut Memory) -> Result<(), WrongLaunch> {
    kernel.check(launch, &|name| memory.get(name).map(Vec::len))?;
    let mut machine = Machine {
        kernel,
        launch,
        memory,
        local: HashMap::new(),
        names: HashMap::new(),
        values: vec![],
    };
    machine.run().map_err(|problem| WrongLaunch { kernel: kernel.name.clone(), problem })
}

type Done<T = ()> = Result<T, String>;

struct Machine<'a> {
    kernel: &'a Kernel,
    launch: &'a Launch,
    memory: &'a mut Memory,
    /// Variables of a skeleton, by name.
    local: HashMap<&'static str, Vec<u32>>,
    /// Places: row, i, k, …
    names: HashMap<&'static str, u64>,
    values: Vec<u32>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Done {
        let kernel = self.kernel;
        let program = kernel.programs.first().ok_or("no program")?;
        match kernel.archetype {
            Archetype::Map { count, width } => {
                let width = if width.is_empty() { u64::MAX } else { self.expression(width)? };
                for place in 0..self.expression(count)? {
                    self.names.insert("row", place / width);
                    self.names.insert("i", place % width);
                    self.steps(program, 0)?;
                }
            }
            Archetype::Row => {
                let n = self.expression("n")?;
                for row in 0..self.expression("rows")? {
                    self.names.insert("row", row);
                    self.steps(program, n)?;
                }
            }
            Archetype::Fold { segments, .. } => {
                for segment in 0..self.expression(segments)? {
                    for i in 0..self.expression("n")? {
                        self.names.extend([("segment", segment), ("i", i)]);
                        self.steps(program, 0)?;
                    }
                }
            }
            Archetype::Gemm { .. } => {
                for row in 0..self.expression("m")? {
                    for col in 0..self.expression("n")? {
                        self.names.extend([("row", row), ("col", col)]);
                        self.steps(program, 0)?;
                    }
                }
            }
            Archetype::Attention => self.heads(Machine::attend)?,
            Archetype::AttentionQueries => self.heads(Machine::queries)?,
            Archetype::AttentionKeys => self.keys()?,
        }
        Ok(())
    }

    fn expression(&self, text: &str) -> Done<u64> {
        let name = |n: &str| {
            let dim = || self.launch.dims.iter().find(|d| d.0 == n).map(|d| u64::from(d.1));
            self.names.get(n).copied().or_else(dim)
        };
        let list = |n: &str, i: u64| {
            self.memory.get(n)?.get(usize::try_from(i).ok()?).map(|&x| u64::from(x))
        };
        evaluate(text, &name, &list)
    }

    fn set(&mut self, id: u32, bits: u32) {
        let id = id as usize;
        if self.values.len() <= id {
            self.values.resize(id + 1, 0);
        }
        self.values[id] = bits;
    }

    /// Runs steps; `n`: width of the row they are in.
    fn steps(&mut self, steps: &'a [Step], n: u64) -> Done {
        for step in steps {
            match step {
                Step::Const { id, bits, .. } => self.set(*id, *bits),
                Step::Param { id, name } => {
                    let number = self.launch.numbers.iter().find(|x| x.0 == *name);
                    let bits = match number {
                        Some(number) => number.1.to_bits(),
                        None => self.expression(name)? as u32,
                    };
                    self.set(*id, bits);
                }
                Step::Do { id, op, args } => {
                    let bits = match (op, op.operation().eval) {
                        (Op::Width, _) => (n as f32).to_bits(),
                        (Op::Index, _) => (self.expression("i")? as f32).to_bits(),
                        (Op::Counter, _) => self.expression("i")? as u32,
                        (_, Some(eval)) => {
                            let args: Vec<u32> =
                                args.iter().map(|&a| self.values[a as usize]).collect();
                            eval(&args)
                        }
                        _ => return Err(format!("{op:?} is no value")),
                    };
                    self.set(*id, bits);
                }
                Step::Load { id, from } => {
                    let bits = self.load(*from)?;
                    self.set(*id, bits);
                }
                Step::Store { to, value } => self.store(*to, self.values[*value as usize])?,
                Step::Each { body } => {
                    for i in 0..n {
                        self.names.insert("i", i);
                        self.steps(body, n)?;
                    }
                }
                Step::Reduce { id, op, body } => {
                    let bits = match self.kernel.archetype {
                        Archetype::Fold { .. } => self.fold(body)?,
                        _ => self.reduce(*op, body, n)?,
                    };
                    self.set(*id, bits);
                }
                Step::Chain { id, left, right } => {
                    let mut acc = 0f32;
                    for k in 0..self.expression("depth")? {
                        self.names.insert("k", k);
                        let (a, b) = (self.gives(left, n)?, self.gives(right, n)?);
                        acc = f32::from_bits(a).mul_add(f32::from_bits(b), acc);
                    }
                    self.set(*id, acc.to_bits());
                }
            }
        }
        Ok(())
    }

    fn gives(&mut self, body: &'a Gives, n: u64) -> Done<u32> {
        self.steps(&body.steps, n)?;
        Ok(self.values[body.value as usize])
    }

    /// A row's reduction: virtual lanes, then their tree.
    fn reduce(&mut self, op: Op, body: &'a Gives, n: u64) -> Done<u32> {
        let (join, identity) = match op {
            Op::Sum => (Op::Add, 0f32),
            _ => (Op::Max, f32::NEG_INFINITY),
        };
        let join = join.operation().eval.ok_or("no operation to join with")?;
        let mut lanes = [identity.to_bits(); 64];
        for i in 0..n {
            self.names.insert("i", i);
            let value = self.gives(body, n)?;
            let lane = &mut lanes[i as usize % 64];
            *lane = join(&[value, *lane]);
        }
        let mut half = 32;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] = join(&[lanes[lane], lanes[lane + half]]);
            }
            half /= 2;
        }
        Ok(lanes[0])
    }

    /// A column's sum down the rows of its segment.
    fn fold(&mut self, body: &'a Gives) -> Done<u32> {
        let Archetype::Fold { first, end, row, .. } = self.kernel.archetype else {
            return Err("no column".into());
        };
        let mut acc = 0f32;
        self.names.insert("first", self.expression(first)?);
        for at in self.names["first"]..self.expression(end)? {
            self.names.insert("at", at);
            self.names.insert("row", self.expression(row)?);
            acc += f32::from_bits(self.gives(body, 0)?);
        }
        Ok(acc.to_bits())
    }

    fn field(&self, operand: Operand) -> &'a Field {
        &self.kernel.fields[operand.0]
    }

    fn load(&self, from: Operand) -> Done<u32> {
        let field = self.field(from);
        let at = self.expression(field.index)? as usize;
        let from = match field.ty {
            Type::Local | Type::Shared => self.local.get(field.name),
            _ => self.memory.get(field.name),
        };
        let (each, bits) = match field.ty {
            Type::Bf16 => (2, 16),
            Type::I8 => (4, 8),
            _ => (1, 32),
        };
        let word = from.and_then(|words| words.get(at / each));
        let word = word.ok_or_else(|| format!("{}[{at}] is not there", field.name))?;
        let part = word >> (at % each * bits);
        Ok(match field.ty {
            Type::Bf16 => part << 16,
            Type::I8 => f32::from(part as u8 as i8).to_bits(),
            _ => part,
        })
    }

    fn store(&mut self, to: Operand, bits: u32) -> Done {
        let field = self.field(to);
        let at = self.expression(field.index)? as usize;
        let to = match field.ty {
            Type::Local | Type::Shared => self.local.get_mut(field.name),
            _ => self.memory.get_mut(field.name),
        };
        let word = to.and_then(|words| words.get_mut(at));
        *word.ok_or_else(|| format!("{}[{at}] is not there", field.name))? = bits;
        Ok(())
    }

    fn at(&self, name: &str, index: u64) -> f32 {
        f32::from_bits(self.memory[name][index as usize])
    }

    fn variable(&mut self, name: &'static str, values: &[f32]) {
        self.local.insert(name, values.iter().map(|x| x.to_bits()).collect());
    }

    fn numbers(&self, name: &str) -> Vec<f32> {
        self.local[name].iter().map(|&x| f32::from_bits(x)).collect()
    }

    /// Σ x[x_at + e] · y[y_at + e] over a head's width, one chain.
    fn along(&self, d: u64, (x, x_at): (&str, u64), (y, y_at): (&str, u64)) -> f32 {
        (0..d).fold(0.0, |acc, e| self.at(x, x_at + e).mul_add(self.at(y, y_at + e), acc))
    }

    /// Runs `f(query, key row of token 0, position, d)` for every query row and head.
    fn heads(&mut self, f: impl Fn(&mut Self, [u64; 4]) -> Done) -> Done {
        let [batch, seq, heads, kv_heads, d] = self.sizes()?;
        for b in 0..batch {
            for position in 0..seq {
                for head in 0..heads {
                    self.names.extend([("b", b), ("position", position), ("head", head), ("r", 0)]);
                    let query = ((b * seq + position) * heads + head) * d;
                    let key = (b * seq * kv_heads + head / (heads / kv_heads)) * d;
                    f(self, [query, key, position, d])?;
                }
            }
        }
        Ok(())
    }

    fn sizes(&self) -> Done<[u64; 5]> {
        let mut sizes = [0; 5];
        for (size, name) in sizes.iter_mut().zip(["batch", "seq", "heads", "kv_heads", "head_dim"])
        {
            *size = self.expression(name)?;
        }
        Ok(sizes)
    }

    fn attend(&mut self, [query, key, position, d]: [u64; 4]) -> Done {
        let [attend, shrink, attended] = &self.kernel.programs[..] else {
            return Err("attention has three programs".into());
        };
        let stride = self.expression("kv_heads")? * d;
        self.variable("acc", &vec![0.0; d as usize]);
        for (name, start) in [("m", f32::NEG_INFINITY), ("z", 0.0), ("by", 0.0)] {
            self.variable(name, &[start]);
        }
        for tile in (0..=position).step_by(64) {
            let n = (position + 1 - tile).min(64);
            let row = |j: u64| key + (tile + j) * stride;
            let s: Vec<f32> = (0..n).map(|j| self.along(d, ("q", query), ("k", row(j)))).collect();
            self.variable("s", &s);
            self.steps(attend, n)?;
            self.steps(shrink, d)?;
            let (p, mut acc) = (self.numbers("s"), self.numbers("acc"));
            for (j, p) in (0..).zip(p) {
                for (e, acc) in (0..).zip(&mut acc) {
                    *acc = p.mul_add(self.at("v", row(j) + e), *acc);
                }
            }
            self.variable("acc", &acc);
        }
        self.steps(attended, d)
    }

    fn queries(&mut self, [query, key, position, d]: [u64; 4]) -> Done {
        let program = &self.kernel.programs[0];
        let stride = self.expression("kv_heads")? * d;
        let mut dq = vec![0f32; d as usize];
        for j in 0..=position {
            let row = key + j * stride;
            self.variable("s", &[self.along(d, ("q", query), ("k", row))]);
            self.variable("dp", &[self.along(d, ("dout", query), ("v", row))]);
            self.steps(program, 1)?;
            let ds = self.numbers("dp")[0];
            for (e, dq) in (0..).zip(&mut dq) {
                *dq = ds.mul_add(self.at("k", row + e), *dq);
            }
        }
        self.write("dq", query, &dq)
    }

    fn keys(&mut self) -> Done {
        let program = &self.kernel.programs[0];
        let [batch, seq, heads, kv_heads, d] = self.sizes()?;
        let share = heads / kv_heads;
        for b in 0..batch {
            for (j, kv) in (0..seq).flat_map(|j| (0..kv_heads).map(move |kv| (j, kv))) {
                let key = ((b * seq + j) * kv_heads + kv) * d;
                let (mut dk, mut dv) = (vec![0f32; d as usize], vec![0f32; d as usize]);
                for head in kv * share..(kv + 1) * share {
                    for position in j..seq {
                        self.names.extend([("b", b), ("position", position), ("head", head)]);
                        let query = ((b * seq + position) * heads + head) * d;
                        self.variable("s", &[self.along(d, ("q", query), ("k", key))]);
                        self.variable("dp", &[self.along(d, ("dout", query), ("v", key))]);
                        self.steps(program, 1)?;
                        let (p, ds) = (self.numbers("s")[0], self.numbers("dp")[0]);
                        for e in 0..d {
                            let (dk, dv) = (&mut dk[e as usize], &mut dv[e as usize]);
                            *dk = ds.mul_add(self.at("q", query + e), *dk);
                            *dv = p.mul_add(self.at("dout", query + e), *dv);
                        }
                    }
                }
                self.write("dk", key, &dk)?;
                self.write("dv", key, &dv)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, name: &'static str, at: u64, values: &[f32]) -> Done {
        let words = self.memory.get_mut(name).ok_or_else(|| format!("no buffer {name}"))?;
        for (word, x) in words[at as usize..].iter_mut().zip(values) {
            *word = x.to_bits();
        }
        Ok(())
    }
}
