//! The recorder: the instance of the archetypes that leaves a program.
//!
//! A closure runs once and leaves its loop's body. Equal operations on equal values are
//! recorded once a loop; a store forgets what was loaded.

use super::ops::Op;
use crate::val::{Body, Fold, Quant, Random, Row, Val, Word};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A value of a program.
pub type Id = u32;

/// Steps that end in a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gives {
    /// The steps.
    pub steps: Vec<Step>,
    /// The value.
    pub value: Id,
}

/// One step of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// `id` = a constant of these bits; `word`: a u32, not a float.
    Const {
        /// Value.
        id: Id,
        /// Bits.
        bits: u32,
        /// Whether it is a u32.
        word: bool,
    },
    /// `id` = a number given at launch.
    Param {
        /// Value.
        id: Id,
        /// Its name.
        name: &'static str,
    },
    /// `id` = an operation on values.
    Do {
        /// Value.
        id: Id,
        /// Operation: arithmetic, or what the place is.
        op: Op,
        /// Arguments.
        args: Vec<Id>,
    },
    /// `id` = an operand's element.
    Load {
        /// Value.
        id: Id,
        /// Number of the operand.
        from: Operand,
    },
    /// An operand's element becomes `value`.
    Store {
        /// Number of the operand.
        to: Operand,
        /// Value.
        value: Id,
    },
    /// `id` = `op` ([`Op::Sum`] or [`Op::Maximum`]) of what the body gives.
    Reduce {
        /// Value.
        id: Id,
        /// Operation.
        op: Op,
        /// What is reduced.
        body: Gives,
    },
    /// Runs the body at every place of a row.
    Each {
        /// The body.
        body: Vec<Step>,
    },
    /// `id` = the chain of fused multiply-adds of `left` and `right` over k.
    Chain {
        /// Value.
        id: Id,
        /// What is multiplied, of the row,
        left: Gives,
        /// and of the column.
        right: Gives,
    },
}

/// Number of an operand in its kernel's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Operand(pub usize);

/// What distinguishes values: equal keys are one value.
type Key = (Op, Vec<u32>, &'static str);

/// A program being recorded.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Steps of every open loop, outermost first.
    open: Vec<Vec<Step>>,
    /// What each of them knows.
    known: Vec<HashMap<Key, Id>>,
    values: Id,
}

impl Recorder {
    fn next(&mut self) -> Id {
        self.values += 1;
        self.values - 1
    }

    fn value(&mut self, key: Key, step: impl FnOnce(Id) -> Step) -> Id {
        if let Some(&id) = self.known.iter().rev().find_map(|known| known.get(&key)) {
            return id;
        }
        let id = self.next();
        self.step(step(id));
        if let Some(known) = self.known.last_mut() {
            known.insert(key, id);
        }
        id
    }

    fn step(&mut self, step: Step) {
        if let Some(open) = self.open.last_mut() {
            open.push(step);
        }
    }

    fn open(&mut self) {
        self.open.push(vec![]);
        self.known.push(HashMap::new());
    }

    fn close(&mut self) -> Vec<Step> {
        self.known.pop();
        self.open.pop().unwrap_or_default()
    }
}

/// Records what `program` does.
pub fn record(program: impl FnOnce(Rec<'_>)) -> Vec<Step> {
    let recorder = RefCell::new(Recorder::default());
    recorder.borrow_mut().open();
    program(Rec { recorder: &recorder });
    recorder.into_inner().close()
}

/// The recording instance of all archetypes.
#[derive(Clone, Copy, Debug)]
pub struct Rec<'r> {
    recorder: &'r RefCell<Recorder>,
}

/// A recorded value: a float for [`Val`], a u32 for [`Word`].
#[derive(Clone, Copy, Debug)]
pub struct Value<'r> {
    rec: Rec<'r>,
    id: Id,
}

impl<'r> Rec<'r> {
    fn value(self, key: Key, step: impl FnOnce(Id) -> Step) -> Value<'r> {
        Value { rec: self, id: self.recorder.borrow_mut().value(key, step) }
    }

    fn op(self, op: Op, args: &[Value<'r>]) -> Value<'r> {
        let args: Vec<Id> = args.iter().map(|v| v.id).collect();
        self.value((op, args.clone(), ""), |id| Step::Do { id, op, args })
    }

    fn constant(self, bits: u32, word: bool) -> Value<'r> {
        self.value((Op::Const, vec![bits, word.into()], ""), |id| Step::Const { id, bits, word })
    }

    /// A number given at launch, of the kernel's numbers or dimensions.
    pub fn param(self, name: &'static str) -> Value<'r> {
        self.value((Op::Param, vec![], name), |id| Step::Param { id, name })
    }

    fn gives(self, f: impl FnOnce() -> Value<'r>) -> Gives {
        self.recorder.borrow_mut().open();
        let value = f().id;
        Gives { steps: self.recorder.borrow_mut().close(), value }
    }

    fn reduce(self, op: Op, f: impl FnOnce() -> Value<'r>) -> Value<'r> {
        let body = self.gives(f);
        let mut recorder = self.recorder.borrow_mut();
        let id = recorder.next();
        recorder.step(Step::Reduce { id, op, body });
        Value { rec: self, id }
    }

    /// A contraction: Σ over k of `left · right`, for skeletons of products.
    pub fn chain(
        self,
        left: impl FnOnce() -> Value<'r>,
        right: impl FnOnce() -> Value<'r>,
    ) -> Value<'r> {
        let (left, right) = (self.gives(left), self.gives(right));
        let mut recorder = self.recorder.borrow_mut();
        let id = recorder.next();
        recorder.step(Step::Chain { id, left, right });
        Value { rec: self, id }
    }
}

macro_rules! operators {
    ($($trait:ident $method:ident),*) => {$(
        impl<'r> $trait for Value<'r> {
            type Output = Value<'r>;
            fn $method(self, other: Value<'r>) -> Value<'r> {
                self.rec.op(Op::$trait, &[self, other])
            }
        }
    )*};
}
operators!(Add add, Sub sub, Mul mul, Div div);

impl<'r> Neg for Value<'r> {
    type Output = Value<'r>;
    fn neg(self) -> Value<'r> {
        self.rec.op(Op::Neg, &[self])
    }
}

impl Val for Value<'_> {
    fn lit(self, x: f32) -> Self {
        self.rec.constant(x.to_bits(), false)
    }
    fn fma(self, a: Self, b: Self) -> Self {
        self.rec.op(Op::Fma, &[self, a, b])
    }
    fn max(self, other: Self) -> Self {
        self.rec.op(Op::Max, &[self, other])
    }
    fn min(self, other: Self) -> Self {
        self.rec.op(Op::Min, &[self, other])
    }
    fn sqrt(self) -> Self {
        self.rec.op(Op::Sqrt, &[self])
    }
    fn round(self) -> Self {
        self.rec.op(Op::Round, &[self])
    }
    fn ldexp(self, n: Self) -> Self {
        self.rec.op(Op::Ldexp, &[self, n])
    }
    fn exponent(self) -> Self {
        self.rec.op(Op::Exponent, &[self])
    }
    fn if_lt(self, limit: Self, then: Self, other: Self) -> Self {
        self.rec.op(Op::IfLt, &[self, limit, then, other])
    }
    fn if_eq(self, to: Self, then: Self, other: Self) -> Self {
        self.rec.op(Op::IfEq, &[self, to, then, other])
    }
}

impl Word for Value<'_> {
    fn word(self, x: u32) -> Self {
        self.rec.constant(x, true)
    }
    fn plus(self, other: Self) -> Self {
        self.rec.op(Op::Plus, &[self, other])
    }
    fn xor(self, other: Self) -> Self {
        self.rec.op(Op::Xor, &[self, other])
    }
    fn rotl(self, bits: u32) -> Self {
        self.rec.op(Op::Rotl, &[self, self.word(bits)])
    }
}

impl<'r> Body for Rec<'r> {
    type V = Value<'r>;
    type S = Value<'r>;
    type In = Operand;
    type Out = Operand;
    type At = ();

    fn num(self, x: f32) -> Value<'r> {
        self.constant(x.to_bits(), false)
    }
    fn splat(self, s: Value<'r>) -> Value<'r> {
        s
    }
    fn load(self, from: Operand, (): ()) -> Value<'r> {
        self.value((Op::Load, vec![from.0 as u32], ""), |id| Step::Load { id, from })
    }
    fn store(self, to: Operand, (): (), v: Value<'r>) {
        let mut recorder = self.recorder.borrow_mut();
        recorder.step(Step::Store { to, value: v.id });
        for known in &mut recorder.known {
            known.retain(|(op, ..), _| *op != Op::Load);
        }
    }
}

impl<'r> Row for Rec<'r> {
    fn width(self) -> Value<'r> {
        self.op(Op::Width, &[])
    }
    fn get(self, x: Operand) -> Value<'r> {
        self.load(x, ())
    }
    fn put(self, y: Operand, s: Value<'r>) {
        self.store(y, (), s);
    }
    fn index(self, (): ()) -> Value<'r> {
        self.op(Op::Index, &[])
    }
    fn sum(self, f: impl Fn(()) -> Value<'r>) -> Value<'r> {
        self.reduce(Op::Sum, || f(()))
    }
    fn max(self, f: impl Fn(()) -> Value<'r>) -> Value<'r> {
        self.reduce(Op::Maximum, || f(()))
    }
    fn each(self, f: impl Fn(())) {
        self.recorder.borrow_mut().open();
        f(());
        let mut recorder = self.recorder.borrow_mut();
        let body = recorder.close();
        recorder.step(Step::Each { body });
    }
}

impl<'r> Fold for Rec<'r> {
    fn of_row(self, x: Operand, (): ()) -> Value<'r> {
        self.load(x, ())
    }
    fn sum(self, f: impl Fn(()) -> Value<'r>) -> Value<'r> {
        self.reduce(Op::Sum, || f(()))
    }
    fn result(self) {}
}

impl<'r> Quant for Rec<'r> {
    /// The bytes and the scales.
    type Q8 = (Operand, Operand);
    fn q8_0(self, (bytes, scales): (Operand, Operand), (): ()) -> (Value<'r>, Value<'r>) {
        (self.load(bytes, ()), self.load(scales, ()))
    }
}

impl<'r> Random for Rec<'r> {
    type W = Value<'r>;
    fn counter(self, (): ()) -> Value<'r> {
        self.op(Op::Counter, &[])
    }
    fn unit(self, w: Value<'r>) -> Value<'r> {
        self.op(Op::Unit, &[w])
    }
}
