//! Operations of the plan as launches of the catalogue's kernels.

use petaflop_device::device::{Device, DeviceError, View};
use petaflop_plan::ops::{BufferId, Op};

use super::{Asked, DeviceModel};
use crate::pass::score_scale;

impl<D: Device> DeviceModel<D> {
    /// Adds an operation's launches to the stream.
    pub(super) fn record(
        &self,
        stream: &mut D::Stream,
        op: &Op,
        asked: &Asked,
    ) -> Result<(), DeviceError> {
        let (lists, rows) = (&self.lists, self.plan.rows as u32);
        let list = |buffer| self.device.whole(buffer);
        let on = |id| self.view(id);
        match *op {
            Op::Embed { table, out } => {
                let dims =
                    [("rows", rows), ("n", self.width(out)), ("table_rows", self.shape.vocab)];
                let buffers =
                    [("tokens", list(&lists.tokens)), ("table", on(table)), ("y", on(out))];
                self.launch(stream, "embedding_f32", &dims, &[], &buffers)
            }
            Op::RmsNorm { x, gain, out, inverse_rms } => {
                let eps = [("eps", self.shape.norm_eps as f32)];
                let buffers =
                    [("x", on(x)), ("gain", on(gain)), ("y", on(out)), ("rstd", on(inverse_rms))];
                self.launch(stream, "rms_norm", &self.norm(x, gain), &eps, &buffers)
            }
            Op::Linear { x, weight, bias, residual, out } => {
                let dims = self.product(rows, self.width(out), self.width(x));
                let mut buffers = vec![("x", on(x)), ("w", on(weight)), ("y", on(out))];
                buffers.extend(bias.map(|bias| ("bias", on(bias))));
                let kernel = match (bias, residual) {
                    (Some(_), _) => "linear_f32_bias",
                    (None, Some(residual)) if residual == out => "linear_f32_add",
                    (None, _) => "linear_f32",
                };
                self.launch(stream, kernel, &dims, &[], &buffers)?;
                match residual {
                    Some(residual) if kernel != "linear_f32_add" => self.add(stream, residual, out),
                    _ => Ok(()),
                }
            }
            Op::LinearSwiGlu { x, gate, up, kept, out } => {
                let dims = self.product(rows, self.width(out), self.width(x));
                let Some(kept) = kept else {
                    let buffers =
                        [("x", on(x)), ("gate", on(gate)), ("up", on(up)), ("h", on(out))];
                    return self.launch(stream, "linear_swiglu_f32", &dims, &[], &buffers);
                };
                for (weight, product) in [(gate, kept.0), (up, kept.1)] {
                    let buffers = [("x", on(x)), ("w", on(weight)), ("y", on(product))];
                    self.launch(stream, "linear_f32", &dims, &[], &buffers)?;
                }
                self.elements(stream, "swiglu", [("gate", kept.0), ("up", kept.1), ("h", out)])
            }
            Op::Add { x, to } => self.add(stream, x, to),
            Op::SwiGlu { gate, up, out } => {
                self.elements(stream, "swiglu", [("gate", gate), ("up", up), ("h", out)])
            }
            Op::Scale { x, factor } => {
                let count = [("count", self.words(x) as u32)];
                self.launch(stream, "scale", &count, &[("factor", factor)], &[("x", on(x))])
            }
            Op::Rope { x, heads, cos, sin, inverse } => {
                let half = self.shape.head_dim / 2;
                let dims = [
                    ("rows", rows * heads),
                    ("n", half),
                    ("heads", heads),
                    ("positions_known", self.words(cos) as u32 / half),
                ];
                let sign = [("sign", if inverse { -1.0 } else { 1.0 })];
                let positions = ("positions", list(&lists.positions));
                let buffers = [positions, ("x", on(x)), ("cos", on(cos)), ("sin", on(sin))];
                self.launch(stream, "rope", &dims, &sign, &buffers)
            }
            Op::Attention { q, k, v, out, log_sum_exp } => {
                let buffers = [
                    ("q", on(q)),
                    ("k", on(k)),
                    ("v", on(v)),
                    ("out", on(out)),
                    ("lse", on(log_sum_exp)),
                ];
                self.attention(stream, "attention_forward", &buffers)
            }
            Op::CrossEntropy { logits, losses } => {
                let dims = [("rows", rows), ("n", self.width(logits))];
                let buffers = [
                    ("columns", list(&lists.columns)),
                    ("x", on(logits)),
                    ("goal", list(&lists.goal)),
                    ("nll", on(losses)),
                ];
                match asked.backward {
                    Some(factor) => {
                        let factor = [("factor", factor)];
                        self.launch(stream, "cross_entropy", &dims, &factor, &buffers)
                    }
                    None => self.launch(stream, "cross_entropy_loss", &dims, &[], &buffers),
                }
            }
            ref backward => self.record_backward(stream, backward, asked),
        }
    }

    fn record_backward(
        &self,
        stream: &mut D::Stream,
        op: &Op,
        asked: &Asked,
    ) -> Result<(), DeviceError> {
        let (lists, rows) = (&self.lists, self.plan.rows as u32);
        let list = |buffer| self.device.whole(buffer);
        let on = |id| self.view(id);
        match *op {
            Op::LinearDx { dy, weight, dx, adds } => {
                let dims = self.product(rows, self.width(dx), self.width(dy));
                let kernel = if adds { "linear_dx_add" } else { "linear_dx" };
                let buffers = [("dy", on(dy)), ("w", on(weight)), ("dx", on(dx))];
                self.launch(stream, kernel, &dims, &[], &buffers)
            }
            Op::LinearDw { dy, x, dweight } => {
                let dims = self.product(self.width(dy), self.width(x), rows);
                let buffers = [("dy", on(dy)), ("x", on(x)), ("dw", on(dweight))];
                self.launch(stream, "linear_dw_add", &dims, &[], &buffers)
            }
            Op::BiasGradient { dy, dbias } => {
                let dims = [("rows", rows), ("n", self.width(dy))];
                let buffers = [("x", on(dy)), ("partials", list(&lists.partials))];
                self.launch(stream, "sum_blocks", &dims, &[], &buffers)?;
                self.sum_partials(stream, dims, dbias)
            }
            Op::RmsNormBackward { x, gain, inverse_rms, dy, dx, adds, dgain } => {
                let dims = self.norm(x, gain);
                let (x, rstd, dy) = (("x", on(x)), ("rstd", on(inverse_rms)), ("dy", on(dy)));
                let kernel = if adds { "rms_norm_backward_add" } else { "rms_norm_backward" };
                let buffers = [x, ("gain", on(gain)), rstd, dy, ("dx", on(dx))];
                self.launch(stream, kernel, &dims, &[], &buffers)?;
                let Some(dgain) = dgain else { return Ok(()) };
                let buffers = [x, rstd, dy, ("partials", list(&lists.partials))];
                self.launch(stream, "rms_norm_gain_grad", &dims, &[], &buffers)?;
                self.sum_partials(stream, dims, dgain)
            }
            Op::SwiGluBackward { gate, up, dout, dgate, dup } => {
                let buffers =
                    [("gate", gate), ("up", up), ("dh", dout), ("dgate", dgate), ("dup", dup)];
                self.elements(stream, "swiglu_backward", buffers)
            }
            Op::AttentionBackward { q, k, v, out, log_sum_exp, dout, dq, dk, dv, delta } => {
                let dims = [("rows", rows * self.shape.heads), ("n", self.shape.head_dim)];
                let buffers = [("x", on(out)), ("y", on(dout)), ("sum", on(delta))];
                self.launch(stream, "dot_rows", &dims, &[], &buffers)?;
                let mut buffers = vec![
                    ("q", on(q)),
                    ("k", on(k)),
                    ("v", on(v)),
                    ("dout", on(dout)),
                    ("lse", on(log_sum_exp)),
                    ("delta", on(delta)),
                    ("dq", on(dq)),
                ];
                self.attention(stream, "attention_dq", &buffers)?;
                buffers.extend([("dk", on(dk)), ("dv", on(dv))]);
                self.attention(stream, "attention_dkv", &buffers)
            }
            Op::EmbedBackward { dx, dtable } => {
                let dims = [
                    ("rows", rows),
                    ("n", self.width(dx)),
                    ("segments", asked.segments),
                    ("table_rows", self.shape.vocab),
                ];
                let buffers = [
                    ("order", list(&lists.order)),
                    ("starts", list(&lists.starts)),
                    ("tokens", list(&lists.segments)),
                    ("dy", on(dx)),
                    ("dw", on(dtable)),
                ];
                self.launch(stream, "sum_segments", &dims, &[], &buffers)
            }
            _ => unreachable!("a training plan has no key/value cache"),
        }
    }

    /// Numbers in one row of a buffer.
    fn width(&self, id: BufferId) -> u32 {
        self.plan.buffer(id).shape[1..].iter().product::<u64>() as u32
    }

    fn product(&self, m: u32, n: u32, depth: u32) -> [(&'static str, u32); 3] {
        [("m", m), ("n", n), ("depth", depth)]
    }

    /// Sizes of a norm over rows as wide as its gain.
    fn norm(&self, x: BufferId, gain: BufferId) -> [(&'static str, u32); 2] {
        let n = self.words(gain) as u32;
        [("rows", self.words(x) as u32 / n), ("n", n)]
    }

    /// `to = what + to`.
    fn add(&self, stream: &mut D::Stream, what: BufferId, to: BufferId) -> Result<(), DeviceError> {
        self.elements(stream, "add", [("x", what), ("y", to)])
    }

    /// A map over buffers of one length.
    fn elements<const N: usize>(
        &self,
        stream: &mut D::Stream,
        kernel: &str,
        buffers: [(&'static str, BufferId); N],
    ) -> Result<(), DeviceError> {
        let count = [("count", self.words(buffers[0].1) as u32)];
        let buffers = buffers.map(|(name, id)| (name, self.view(id)));
        self.launch(stream, kernel, &count, &[], &buffers)
    }

    fn attention(
        &self,
        stream: &mut D::Stream,
        kernel: &str,
        buffers: &[(&str, View<'_, D::Buffer>)],
    ) -> Result<(), DeviceError> {
        let dims = [
            ("batch", self.options.micro_batch),
            ("seq", self.options.sequence),
            ("heads", self.shape.heads),
            ("kv_heads", self.shape.kv_heads),
            ("head_dim", self.shape.head_dim),
        ];
        let scale = [("scale", score_scale(&self.shape))];
        self.launch(stream, kernel, &dims, &scale, buffers)
    }

    /// Adds the sums of blocks of 64 of these rows to `sum`.
    fn sum_partials(
        &self,
        stream: &mut D::Stream,
        [(_, rows), n]: [(&'static str, u32); 2],
        sum: BufferId,
    ) -> Result<(), DeviceError> {
        let dims = [("rows", rows.div_ceil(64)), n];
        let partials = self.device.whole(&self.lists.partials);
        let buffers = [("partials", partials), ("sum", self.view(sum))];
        self.launch(stream, "sum_partials", &dims, &[], &buffers)
    }
}
