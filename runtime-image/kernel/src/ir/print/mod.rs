//! Printers. What a kernel does is written once, in words that WGSL has and that a
//! prelude teaches C++ ([`c`]): a family's printer adds the signature and nothing else.
//!
//! The loops around a program are here too: archetypes in this file, the skeletons of the
//! matrix product and of attention beside it, as text with holes for the recorded
//! prologues and epilogues.

mod attention;
pub mod c;
mod gemm;
pub mod wgsl;

use super::kernel::{Archetype, Kernel, Type};
use super::ops::Op;
use super::record::{Gives, Id, Operand, Step};
use std::collections::HashMap;

/// A text in the making: one line after another, indented by its braces.
struct Writer<'k> {
    kernel: &'k Kernel,
    /// What stands for a value.
    names: HashMap<Id, String>,
    text: String,
    indent: usize,
    /// Width of the row that is being printed.
    width: &'static str,
    /// Place of this row's lanes in `tree`.
    lanes: &'static str,
}

/// The statements of a kernel, the same for every family.
fn statements(kernel: &Kernel) -> String {
    let mut w = Writer {
        kernel,
        names: HashMap::new(),
        text: String::new(),
        indent: 1,
        width: "n",
        lanes: "",
    };
    let program = &kernel.programs[0];
    match kernel.archetype {
        Archetype::Map { count, width } => {
            w.line("let place = (group.y * groups.x + group.x) * 256u + local.x;");
            w.line(&format!("if (place >= {count}) {{ return; }}"));
            if width.is_empty() {
                w.line("let i = place;");
            } else {
                w.line(&format!("let row = place / {width};"));
                w.line(&format!("let i = place % {width};"));
            }
            w.steps(program, false);
        }
        Archetype::Row => {
            w.line("let lane = local.x;");
            w.line("let row = group.y * groups.x + group.x;");
            w.line("if (row >= rows) { return; }");
            w.steps(program, true);
        }
        Archetype::Fold { first, end, row, .. } => {
            w.line("let i = group.x * 64u + local.x;");
            w.line("let segment = group.y;");
            w.line("if (i >= n) { return; }");
            w.line(&format!("let first = {};", unsigned(first)));
            w.line(&format!("let end = {};", unsigned(end)));
            w.fold(program, row);
        }
        Archetype::Gemm { products, along_k } => gemm::print(&mut w, products, along_k),
        Archetype::Attention => attention::forward(&mut w),
        Archetype::AttentionQueries => attention::queries(&mut w),
        Archetype::AttentionKeys => attention::keys(&mut w),
    }
    w.text
}

/// Arrays that threads of a group share: name and length.
fn shared(kernel: &Kernel) -> Vec<(&'static str, usize)> {
    match kernel.archetype {
        Archetype::Map { .. } | Archetype::Fold { .. } => vec![],
        Archetype::Row => {
            let reduces = kernel.programs[0].iter().any(|s| matches!(s, Step::Reduce { .. }));
            if reduces { vec![("tree", 64)] } else { vec![] }
        }
        Archetype::Gemm { products, .. } => gemm::shared(products),
        Archetype::Attention => attention::SHARED_FORWARD.into(),
        Archetype::AttentionQueries => attention::SHARED_QUERIES.into(),
        Archetype::AttentionKeys => attention::SHARED_KEYS.into(),
    }
}

/// A size as an unsigned expression in both families (a bare number is signed).
fn unsigned(text: &str) -> String {
    if text.chars().all(|c| c.is_ascii_digit()) { format!("{text}u") } else { text.into() }
}

/// The text of a float constant.
fn float(bits: u32) -> String {
    let x = f32::from_bits(bits);
    if x == f32::INFINITY {
        "infinity".into()
    } else if x.is_sign_negative() {
        format!("(-{:?}f)", -x)
    } else {
        format!("{x:?}f")
    }
}

impl Writer<'_> {
    /// Adds lines; braces at their ends and starts indent.
    fn line(&mut self, text: &str) {
        for line in text.trim_matches('\n').lines().map(str::trim) {
            if line.starts_with('}') {
                self.indent = self.indent.saturating_sub(1);
            }
            if !line.is_empty() {
                self.text.extend(std::iter::repeat_n("    ", self.indent));
            }
            self.text.push_str(line);
            self.text.push('\n');
            if line.ends_with('{') {
                self.indent += 1;
            }
        }
    }

    fn name(&self, id: Id) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| format!("v{id}"))
    }

    /// The element of an operand at this place.
    fn element(&self, operand: Operand) -> String {
        let field = &self.kernel.fields[operand.0];
        let (name, index) = (field.name, field.index);
        match field.ty {
            Type::Local => name.into(),
            Type::F32 | Type::Shared => format!("{name}[{index}]"),
            Type::Bf16 => format!("bf16_of({name}[({index}) / 2u], {index})"),
            Type::I8 => format!("byte_of({name}[({index}) / 4u], {index})"),
        }
    }

    /// Prints steps. `row`: outside of a row's loops, where all lanes do the same.
    fn steps(&mut self, steps: &[Step], row: bool) {
        for step in steps {
            match step {
                Step::Const { id, bits, word } => {
                    let text = if *word { format!("{bits}u") } else { float(*bits) };
                    self.names.insert(*id, text);
                }
                Step::Param { id, name } => {
                    self.names.insert(*id, (*name).into());
                }
                Step::Do { id, op: Op::Width, .. } => {
                    let text = format!("f32({})", self.width);
                    self.names.insert(*id, text);
                }
                Step::Do { id, op, args } => {
                    let mut text = op.operation().text.to_owned();
                    for (i, arg) in args.iter().enumerate() {
                        text = text.replace(&format!("${i}"), &self.name(*arg));
                    }
                    let line = format!("let {} = {text};", self.name(*id));
                    self.line(&line);
                }
                Step::Load { id, from } => {
                    let line = format!("let {} = {};", self.name(*id), self.element(*from));
                    self.line(&line);
                    // Another lane may run ahead and write what this one still reads.
                    if row && self.is_overwritten(*from) {
                        self.line("workgroupBarrier();");
                    }
                }
                Step::Store { to, value } => {
                    let line = format!("{} = {};", self.element(*to), self.name(*value));
                    if row && self.kernel.fields[to.0].ty == Type::F32 {
                        self.line(&format!("if (lane == 0u) {{ {line} }}"));
                    } else {
                        self.line(&line);
                    }
                }
                Step::Each { body } => {
                    self.lanes_loop();
                    self.steps(body, false);
                    self.line("}");
                }
                Step::Reduce { id, op, body } => self.reduce(*id, *op, body),
                Step::Chain { .. } => {}
            }
        }
    }

    /// Whether a row's program writes the buffer that it loads a row's number from.
    fn is_overwritten(&self, operand: Operand) -> bool {
        let field = &self.kernel.fields[operand.0];
        let same = |other: &super::kernel::Field| other.name == field.name && other.written;
        field.ty == Type::F32 && self.kernel.fields.iter().any(same)
    }

    fn lanes_loop(&mut self) {
        let width = self.width;
        self.line(&format!("for (var i = lane; i < {width}; i += 64u) {{"));
    }

    /// A row's reduction: each lane its elements in order, then the tree of 64 lanes.
    fn reduce(&mut self, id: Id, op: Op, body: &Gives) {
        let v = self.name(id);
        let join = |a: &str, b: &str| match op {
            Op::Sum => format!("{a} + {b}"),
            _ => Op::Max.operation().text.replace("$0", a).replace("$1", b),
        };
        let start = if op == Op::Sum { "0.0f" } else { "-infinity" };
        self.line(&format!("var {v} = {start};"));
        self.lanes_loop();
        self.steps(&body.steps, false);
        let value = self.name(body.value);
        self.line(&format!("{v} = {};\n}}", join(&value, &v)));
        let lanes = self.lanes;
        let (low, high) = (format!("tree[{lanes}lane]"), format!("tree[{lanes}lane + half]"));
        self.line(&format!(
            "{low} = {v};
             workgroupBarrier();
             for (var half = 32u; half > 0u; half = half / 2u) {{
             if (lane < half) {{ {low} = {}; }}
             workgroupBarrier();
             }}
             {v} = tree[{lanes}0u];
             workgroupBarrier();",
            join(&low, &high)
        ));
    }

    /// A column's sum down the rows of a segment, and what follows it.
    fn fold(&mut self, steps: &[Step], row: &str) {
        for step in steps {
            let Step::Reduce { id, body, .. } = step else {
                self.steps(std::slice::from_ref(step), false);
                continue;
            };
            let v = self.name(*id);
            self.line(&format!(
                "var {v} = 0.0f;
                 for (var at = first; at < end; at += 1u) {{
                 let row = {row};"
            ));
            self.steps(&body.steps, false);
            let value = self.name(body.value);
            self.line(&format!("{v} = {v} + {value};\n}}"));
        }
    }
}
