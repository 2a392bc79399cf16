//! Every kernel of the catalogue on small, odd shapes: what goes in, what the CPU's instance
//! makes of it, and what plain f64 loops do. For interpreter and devices alike.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part

use super::{values, wide};
use petaflop_kernel::ir::kernel::{Kernel, Launch, Memory};
use petaflop_kernel::*;

/// One launch: the kernel, its sizes and numbers, and which of the case's memory its buffers
/// are, where their names differ.
pub type Step = (&'static str, Launch, Vec<(&'static str, &'static str)>);

/// Launches one after another, and what must be in memory afterwards.
pub struct Case {
    pub name: String,
    pub steps: Vec<Step>,
    pub memory: Memory,
    /// The CPU's result.
    pub cpu: Vec<(&'static str, Vec<f32>)>,
    /// The plain loops'; how far a float chain may be from them, times its rounding error.
    pub naive: Vec<(&'static str, Vec<f64>)>,
    pub tolerance: f64,
}

impl Case {
    /// Runs all launches by `run`.
    pub fn run(&self, mut run: impl FnMut(&Kernel, &Launch, &mut Memory)) -> Memory {
        let mut memory = self.memory.clone();
        for (name, launch, renamed) in &self.steps {
            let kernel = ir::catalogue::kernel(name).expect("it is in the catalogue");
            let mut own = Memory::new();
            let outer = |inner: &'static str| {
                renamed.iter().find(|(from, _)| *from == inner).map_or(inner, |x| x.1)
            };
            for (buffer, ..) in kernel.buffers() {
                own.insert(buffer, memory[outer(buffer)].clone());
            }
            run(&kernel, launch, &mut own);
            for (buffer, words) in own {
                memory.insert(outer(buffer), words);
            }
        }
        memory
    }
}

pub fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&x| f32::from_bits(x)).collect()
}

fn words(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn launch(dims: &[(&'static str, usize)], numbers: &[(&'static str, f32)]) -> Launch {
    Launch { dims: dims.iter().map(|d| (d.0, d.1 as u32)).collect(), numbers: numbers.into() }
}

/// A case of one launch whose buffers bear the kernel's names.
fn one<const I: usize>(
    kernel: &'static str,
    launch: Launch,
    memory: [(&'static str, Vec<u32>); I],
    cpu: Vec<(&'static str, Vec<f32>)>,
    naive: Vec<(&'static str, Vec<f64>)>,
    tolerance: f64,
) -> Case {
    let name = format!("{kernel} {:?}", launch.dims);
    let steps = vec![(kernel, launch, vec![])];
    Case { name, steps, memory: memory.into(), cpu, naive, tolerance }
}

fn zeros(n: usize) -> Vec<u32> {
    vec![0; n]
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let cpu = Cpu::new(None, 2).expect("the best variant");
    let mut all = vec![];
    for (t, n) in [(1, 1), (3, 17), (2, 64), (5, 65), (70, 130), (3, 1030)] {
        all.extend(rows(&cpu, t, n));
        all.extend(columns(&cpu, t, n));
        all.extend(loss(&cpu, t, n));
    }
    for n in [1, 255, 257, 1030] {
        all.extend(maps(&cpu, n));
    }
    for (t, heads, half) in [(1, 1, 1), (5, 3, 17), (3, 2, 64)] {
        all.extend([false, true].map(|back| rope_case(&cpu, t, heads, half, back)));
    }
    for (t, n) in [(1, 32), (9, 96)] {
        all.extend(tables(&cpu, t, n));
    }
    for (t, k, n) in [(1, 32, 1), (3, 96, 17), (65, 32, 70), (17, 288, 130)] {
        all.extend(products(&cpu, t, k, n));
    }
    all.extend(plain_products(&cpu, 7, 33, 65));
    for dims in [
        [1, 1, 1, 1, 1],
        [2, 3, 2, 1, 3],
        [1, 17, 6, 2, 8],
        [2, 65, 2, 2, 17],
        [1, 130, 4, 1, 80],
        [1, 70, 2, 1, 130],
    ] {
        all.extend(attention(&cpu, dims));
    }
    all
}

fn rows(cpu: &Cpu, t: usize, n: usize) -> Vec<Case> {
    let (x, gain, dy, dx0) = (values(t * n, 1), values(n, 2), values(t * n, 3), values(t * n, 4));
    let (mut y, mut rstd) = (vec![0.0; t * n], vec![0.0; t]);
    rms_norm(cpu, &x, &gain, &mut y, &mut rstd, 1e-2);
    let (mut dx, mut added) = (vec![0.0; t * n], dx0.clone());
    rms_norm_backward(cpu, &x, &gain, &rstd, &dy, &mut dx, false, None);
    rms_norm_backward(cpu, &x, &gain, &rstd, &dy, &mut added, true, None);
    let (x64, g64, dy64) = (wide(&x), wide(&gain), wide(&dy));
    let (mut y64, mut rstd64, mut dx64, mut squares) = (vec![], vec![], vec![], vec![]);
    for (row, dy) in x64.chunks(n).zip(dy64.chunks(n)) {
        let sum: f64 = row.iter().map(|x| x * x).sum();
        let s = 1.0 / (sum / n as f64 + f64::from(1e-2f32)).sqrt();
        let dot: f64 = (0..n).map(|i| g64[i] * dy[i] * row[i]).sum::<f64>() / n as f64;
        y64.extend((0..n).map(|i| row[i] * s * g64[i]));
        dx64.extend((0..n).map(|i| s * (g64[i] * dy[i] - row[i] * s * s * dot)));
        rstd64.push(s);
        squares.push(sum);
    }
    let added64 = dx64.iter().zip(&dx0).map(|(a, &b)| a + f64::from(b)).collect();
    let dims = [("rows", t), ("n", n)];
    let backward = |kernel, before: &[f32], cpu, naive| {
        let memory = [
            ("x", words(&x)),
            ("gain", words(&gain)),
            ("rstd", words(&rstd)),
            ("dy", words(&dy)),
            ("dx", words(before)),
        ];
        one(kernel, launch(&dims, &[]), memory, vec![("dx", cpu)], vec![("dx", naive)], 4e-6)
    };
    vec![
        one(
            "rms_norm",
            launch(&dims, &[("eps", 1e-2)]),
            [("x", words(&x)), ("gain", words(&gain)), ("y", zeros(t * n)), ("rstd", zeros(t))],
            vec![("y", y), ("rstd", rstd.clone())],
            vec![("y", y64), ("rstd", rstd64)],
            2e-6,
        ),
        backward("rms_norm_backward", &vec![9.0; t * n], dx, dx64),
        backward("rms_norm_backward_add", &dx0, added, added64),
        one(
            "sum_squares",
            launch(&dims, &[]),
            [("x", words(&x)), ("sum", zeros(t))],
            vec![("sum", x.chunks(n).map(|x| sum_squares(cpu, x) as f32).collect())],
            vec![("sum", squares)],
            1e-6,
        ),
    ]
}

fn columns(cpu: &Cpu, t: usize, n: usize) -> Vec<Case> {
    let (x, dy, rstd, before) = (values(t * n, 1), values(t * n, 3), values(t, 4), values(n, 5));
    let (mut sum, mut dgain, mut dx) = (before.clone(), before.clone(), vec![0.0; t * n]);
    column_sum(cpu, &x, &mut sum);
    let (gain, keep) = (vec![1.0; n], Some(&mut dgain[..]));
    rms_norm_backward(cpu, &x, &gain, &rstd, &dy, &mut dx, false, keep);
    let (mut sum64, mut dgain64) = (wide(&before), wide(&before));
    for (r, i) in (0..t).flat_map(|r| (0..n).map(move |i| (r, i))) {
        let at = r * n + i;
        sum64[i] += f64::from(x[at]);
        dgain64[i] += f64::from(x[at]) * f64::from(dy[at]) * f64::from(rstd[r]);
    }
    let blocks = t.div_ceil(64);
    let case = |kernel: &'static str, cpu, naive| Case {
        name: format!("{kernel}, sum_partials {t}×{n}"),
        steps: vec![
            (kernel, launch(&[("rows", t), ("n", n)], &[]), vec![]),
            ("sum_partials", launch(&[("rows", blocks), ("n", n)], &[]), vec![]),
        ],
        memory: [
            ("x", words(&x)),
            ("rstd", words(&rstd)),
            ("dy", words(&dy)),
            ("partials", zeros(blocks * n)),
            ("sum", words(&before)),
        ]
        .into(),
        cpu: vec![("sum", cpu)],
        naive: vec![("sum", naive)],
        tolerance: 1e-5,
    };
    vec![case("sum_blocks", sum, sum64), case("rms_norm_gain_grad", dgain, dgain64)]
}

fn loss(cpu: &Cpu, t: usize, v: usize) -> Vec<Case> {
    let x: Vec<f32> = values(t * v, 1).iter().map(|x| x * 30.0).collect();
    let targets: Vec<u32> =
        (0..t).map(|r| if r % 3 == 2 { IGNORE } else { (r * 7 % v) as u32 }).collect();
    let (mut dx, mut nll) = (x.clone(), vec![0.0; t]);
    cross_entropy(cpu, &mut dx, &targets, &mut nll, 0.25);
    let (mut dx64, mut nll64) = (vec![], vec![]);
    for (row, &target) in wide(&x).chunks(v).zip(&targets) {
        let m = row.iter().copied().fold(f64::MIN, f64::max);
        let z: f64 = row.iter().map(|x| (x - m).exp()).sum();
        let known = target != IGNORE;
        nll64.push(if known { m + z.ln() - row[target as usize] } else { 0.0 });
        dx64.extend(row.iter().enumerate().map(|(i, x)| {
            let hit = f64::from(u8::from(i == target as usize));
            if known { 0.25 * ((x - m).exp() / z - hit) } else { 0.0 }
        }));
    }
    let goal: Vec<f32> =
        targets.iter().map(|&y| if y == IGNORE { -1.0 } else { y as f32 }).collect();
    let columns: Vec<u32> = targets.iter().map(|&y| if y == IGNORE { 0 } else { y }).collect();
    let memory = || {
        [("x", words(&x)), ("goal", words(&goal)), ("columns", columns.clone()), ("nll", zeros(t))]
    };
    let dims = [("rows", t), ("n", v)];
    vec![
        one(
            "cross_entropy_loss",
            launch(&dims, &[]),
            memory(),
            vec![("nll", nll.clone())],
            vec![("nll", nll64.clone())],
            1e-6,
        ),
        one(
            "cross_entropy",
            launch(&dims, &[("factor", 0.25)]),
            memory(),
            vec![("nll", nll), ("x", dx)],
            vec![("nll", nll64), ("x", dx64)],
            1e-6,
        ),
    ]
}

fn maps(cpu: &Cpu, n: usize) -> Vec<Case> {
    let gate: Vec<f32> = values(n, 1).iter().map(|x| x * 20.0).collect();
    let (up, dh, m) = (values(n, 2), values(n, 3), values(n, 5));
    let v: Vec<f32> = values(n, 4).iter().map(|x| x.abs()).collect();
    let [mut h, mut dgate, mut dup] = [(); 3].map(|()| vec![0.0; n]);
    swiglu(cpu, &gate, &up, &mut h);
    swiglu_backward(cpu, &gate, &up, &dh, &mut dgate, &mut dup);
    let (g64, u64s, d64) = (wide(&gate), wide(&up), wide(&dh));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let h64 = (0..n).map(|i| g64[i] * sigmoid(g64[i]) * u64s[i]).collect();
    let dgate64 = (0..n)
        .map(|i| {
            let s = sigmoid(g64[i]);
            d64[i] * u64s[i] * s * (1.0 + g64[i] * (1.0 - s))
        })
        .collect();
    let dup64 = (0..n).map(|i| d64[i] * g64[i] * sigmoid(g64[i])).collect();
    let (mut sum, mut scaled) = (up.clone(), gate.clone());
    add(cpu, &gate, &mut sum);
    scale(cpu, &mut scaled, 0.3);
    let c = AdamW {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        bias1: 1.0 - 0.9f32.powi(3),
        bias2: 1.0 - 0.95f32.powi(3),
        grad_scale: 0.5,
    };
    let (mut p1, mut m1, mut v1) = (up.clone(), m.clone(), v.clone());
    adamw(cpu, &mut p1, &dh, &mut m1, &mut v1, &c);
    let (mut p64, mut m64, mut v64) = (vec![], vec![], vec![]);
    let w = f64::from;
    for i in 0..n {
        let g = d64[i] * w(c.grad_scale);
        m64.push(w(c.beta1) * w(m[i]) + (1.0 - w(c.beta1)) * g);
        v64.push(w(c.beta2) * w(v[i]) + (1.0 - w(c.beta2)) * g * g);
        let step = m64[i] / w(c.bias1) / ((v64[i] / w(c.bias2)).sqrt() + w(c.eps));
        p64.push(w(up[i]) - w(c.lr) * (step + w(c.weight_decay) * w(up[i])));
    }
    let mut dropped = vec![0.0; n];
    dropout(cpu, &up, &mut dropped, [7, 9], 0.75);
    let dropped64 = (0..n)
        .map(|i| {
            let word = val::threefry([Plain(7), Plain(9)], [Plain(i as u32), Plain(0)])[0].0;
            if f64::from(word >> 8) < 0.75 * 16_777_216.0 { w(up[i]) / 0.75 } else { 0.0 }
        })
        .collect();
    let count = [("count", n)];
    vec![
        one(
            "swiglu",
            launch(&count, &[]),
            [("gate", words(&gate)), ("up", words(&up)), ("h", zeros(n))],
            vec![("h", h)],
            vec![("h", h64)],
            1e-6,
        ),
        one(
            "swiglu_backward",
            launch(&count, &[]),
            [
                ("gate", words(&gate)),
                ("up", words(&up)),
                ("dh", words(&dh)),
                ("dgate", zeros(n)),
                ("dup", zeros(n)),
            ],
            vec![("dgate", dgate), ("dup", dup)],
            vec![("dgate", dgate64), ("dup", dup64)],
            2e-6,
        ),
        one(
            "add",
            launch(&count, &[]),
            [("x", words(&gate)), ("y", words(&up))],
            vec![("y", sum)],
            vec![("y", (0..n).map(|i| g64[i] + u64s[i]).collect())],
            1e-7,
        ),
        one(
            "scale",
            launch(&count, &[("factor", 0.3)]),
            [("x", words(&gate))],
            vec![("x", scaled)],
            vec![("x", g64.iter().map(|x| x * w(0.3f32)).collect())],
            1e-7,
        ),
        one(
            "adamw",
            launch(
                &count,
                &[
                    ("lr", c.lr),
                    ("beta1", c.beta1),
                    ("beta2", c.beta2),
                    ("eps", c.eps),
                    ("weight_decay", c.weight_decay),
                    ("bias1", c.bias1),
                    ("bias2", c.bias2),
                    ("grad_scale", c.grad_scale),
                ],
            ),
            [("p", words(&up)), ("g", words(&dh)), ("m", words(&m)), ("v", words(&v))],
            vec![("p", p1), ("m", m1), ("v", v1)],
            vec![("p", p64), ("m", m64), ("v", v64)],
            1e-6,
        ),
        one(
            "dropout",
            launch(&[("count", n), ("seed0", 7), ("seed1", 9)], &[("keep", 0.75)]),
            [("x", words(&up)), ("y", zeros(n))],
            vec![("y", dropped)],
            vec![("y", dropped64)],
            1e-6,
        ),
    ]
}

/// One word, for the generator's own check.
#[derive(Clone, Copy)]
pub struct Plain(pub u32);

impl val::Word for Plain {
    fn word(self, x: u32) -> Plain {
        Plain(x)
    }
    fn plus(self, o: Plain) -> Plain {
        Plain(self.0.wrapping_add(o.0))
    }
    fn xor(self, o: Plain) -> Plain {
        Plain(self.0 ^ o.0)
    }
    fn rotl(self, bits: u32) -> Plain {
        Plain(self.0.rotate_left(bits))
    }
}

fn rope_case(cpu: &Cpu, t: usize, heads: usize, half: usize, back: bool) -> Case {
    let angles: Vec<f32> = values(9 * half, 1).iter().map(|x| x * 3.0).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    let x = values(t * heads * 2 * half, 2);
    let positions: Vec<u32> = [0u32, 8, 3, 3, 7][..t].into();
    let mut y = x.clone();
    rope(cpu, &mut y, &cos, &sin, &positions, heads, back);
    let mut want = wide(&x);
    let sign = if back { -1.0 } else { 1.0 };
    for (r, row) in want.chunks_mut(2 * half).enumerate() {
        for i in 0..half {
            let at = positions[r / heads] as usize * half + i;
            let (c, s) = (f64::from(cos[at]), sign * f64::from(sin[at]));
            let (a, b) = (row[i], row[half + i]);
            (row[i], row[half + i]) = (a * c - b * s, b * c + a * s);
        }
    }
    one(
        "rope",
        launch(
            &[("rows", t * heads), ("n", half), ("heads", heads), ("positions_known", 9)],
            &[("sign", sign as f32)],
        ),
        [("positions", positions), ("x", words(&x)), ("cos", words(&cos)), ("sin", words(&sin))],
        vec![("x", y)],
        vec![("x", want)],
        5e-7,
    )
}

/// A weight in each type it may have: kernels' suffix, buffers, CPU's form, values.
struct Kept {
    suffix: &'static str,
    words: Vec<u32>,
    scales: Vec<u32>,
    bits: Vec<u16>,
    blocks: Vec<u8>,
    values: Vec<f32>,
}

impl Kept {
    fn weight(&self) -> Weight<'_> {
        match self.suffix {
            "bf16" => Weight::Bf16(&self.bits),
            "q8_0" => Weight::Q8_0(&self.blocks),
            _ => Weight::F32(&self.values),
        }
    }
}

fn kept(n: usize, seed: u64) -> Vec<Kept> {
    let w = values(n, seed);
    let bits: Vec<u16> = w.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
    let mut blocks = vec![0u8; n / BLOCK_VALUES * Q8_0_BYTES];
    quantize_q8_0(&w, &mut blocks);
    let (bytes, scales) = q8_0_for_devices(&blocks);
    let mut exact = vec![0.0; n];
    dequantize(Weight::Q8_0(&blocks), &mut exact);
    let halves = bits.chunks(2).map(|b| u32::from(b[0]) | u32::from(*b.get(1).unwrap_or(&0)) << 16);
    let plain = |suffix, words, values| Kept {
        suffix,
        words,
        scales: vec![],
        bits: vec![],
        blocks: vec![],
        values,
    };
    let short = bits.iter().map(|&b| f32::from_bits(u32::from(b) << 16)).collect();
    let halves = halves.collect();
    vec![
        plain("f32", words(&w), w),
        Kept { bits, ..plain("bf16", halves, short) },
        Kept { scales: words(&scales), blocks, ..plain("q8_0", bytes, exact) },
    ]
}

fn tables(cpu: &Cpu, t: usize, n: usize) -> Vec<Case> {
    let count = 20;
    let tokens: Vec<u32> = values(t, 2).iter().map(|x| ((x + 1.0) * 9.9) as u32).collect();
    let dims = [("rows", t), ("n", n), ("table_rows", count)];
    let mut all = vec![];
    for table in kept(count * n, 1) {
        let mut y = vec![0.0; t * n];
        embedding(cpu, &tokens, table.weight(), &mut y, n);
        let want: Vec<f64> = tokens
            .iter()
            .flat_map(|&token| wide(&table.values[token as usize * n..][..n]))
            .collect();
        let kernel = match table.suffix {
            "bf16" => "embedding_bf16",
            "q8_0" => "embedding_q8_0",
            _ => "embedding_f32",
        };
        let memory = [
            ("tokens", tokens.clone()),
            ("table", table.words),
            ("scales", table.scales),
            ("y", zeros(t * n)),
        ];
        all.push(one(kernel, launch(&dims, &[]), memory, vec![("y", y)], vec![("y", want)], 1e-7));
    }
    let (dy, before) = (values(t * n, 3), values(count * n, 4));
    let (mut dw, mut dw64) = (before.clone(), wide(&before));
    embedding_backward(cpu, &tokens, &dy, &mut dw, n);
    for (r, &token) in tokens.iter().enumerate() {
        (0..n).for_each(|i| dw64[token as usize * n + i] += f64::from(dy[r * n + i]));
    }
    let mut order: Vec<u32> = (0..t as u32).collect();
    order.sort_by_key(|&r| tokens[r as usize]);
    let (mut starts, mut segments) = (vec![], vec![]);
    for (at, &r) in order.iter().enumerate() {
        if segments.last() != Some(&tokens[r as usize]) {
            starts.push(at as u32);
            segments.push(tokens[r as usize]);
        }
    }
    starts.push(t as u32);
    all.push(one(
        "sum_segments",
        launch(&[("rows", t), ("n", n), ("segments", segments.len()), ("table_rows", count)], &[]),
        [
            ("order", order),
            ("starts", starts),
            ("tokens", segments),
            ("dy", words(&dy)),
            ("dw", words(&before)),
        ],
        vec![("dw", dw)],
        vec![("dw", dw64)],
        1e-6,
    ));
    let slots: Vec<u32> = (0..t as u32).map(|i| (i * 7 + 3) % count as u32).collect();
    let mut table = before.clone();
    scatter_rows(&dy, &slots, &mut table);
    all.push(one(
        "scatter_rows",
        launch(&dims, &[]),
        [("slots", slots), ("x", words(&dy)), ("table", words(&before))],
        vec![("table", table.clone())],
        vec![("table", wide(&table))],
        0.0,
    ));
    all
}

/// Σ over k of a(i, k) · b(k, j).
fn product64(
    (m, n, k): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
        c[i * n + j] = (0..k).map(|p| f64::from(a(i, p)) * f64::from(b(p, j))).sum();
    }
    c
}

fn products(cpu: &Cpu, t: usize, k: usize, n: usize) -> Vec<Case> {
    let (x, bias, y0) = (values(t * k, 1), values(n, 3), values(t * n, 4));
    let dims = Dims { t, k, n };
    let sizes = [("m", t), ("n", n), ("depth", k)];
    let tolerance = 1.2e-7 * (k as f64 + 4.0);
    let mut all = vec![];
    for (i, (gate, up)) in kept(n * k, 2).into_iter().zip(kept(n * k, 5)).enumerate() {
        let plain = product64((t, n, k), |r, p| x[r * k + p], |p, c| gate.values[c * k + p]);
        let other = product64((t, n, k), |r, p| x[r * k + p], |p, c| up.values[c * k + p]);
        let kernels = [
            ["linear_f32", "linear_f32_bias", "linear_f32_add", "linear_swiglu_f32"],
            ["linear_bf16", "linear_bf16_bias", "linear_bf16_add", "linear_swiglu_bf16"],
            ["linear_q8_0", "linear_q8_0_bias", "linear_q8_0_add", "linear_swiglu_q8_0"],
        ][i];
        for (kernel, (with_bias, add)) in
            kernels.into_iter().zip([(false, false), (true, false), (false, true)])
        {
            let mut y = y0.clone();
            let epilogue = Epilogue { bias: with_bias.then_some(&bias[..]), add };
            linear(cpu, &x, gate.weight(), &mut y, dims, epilogue);
            let want = (0..t * n)
                .map(|at| {
                    let bias = if with_bias { f64::from(bias[at % n]) } else { 0.0 };
                    plain[at] + bias + if add { f64::from(y0[at]) } else { 0.0 }
                })
                .collect();
            let memory = [
                ("x", words(&x)),
                ("w", gate.words.clone()),
                ("scales", gate.scales.clone()),
                ("bias", words(&bias)),
                ("y", words(&y0)),
            ];
            let (cpu, naive) = (vec![("y", y)], vec![("y", want)]);
            all.push(one(kernel, launch(&sizes, &[]), memory, cpu, naive, tolerance));
        }
        let mut h = vec![0.0; t * n];
        linear_swiglu(cpu, &x, gate.weight(), up.weight(), &mut h, None, dims);
        let want = plain.iter().zip(&other).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let memory = [
            ("x", words(&x)),
            ("gate", gate.words),
            ("gate_scales", gate.scales),
            ("up", up.words),
            ("up_scales", up.scales),
            ("h", zeros(t * n)),
        ];
        let (cpu, naive) = (vec![("h", h)], vec![("h", want)]);
        all.push(one(kernels[3], launch(&sizes, &[]), memory, cpu, naive, 10.0 * tolerance));
    }
    all
}

/// The two gradients of a linear layer `x[t, k] · w[n, k]ᵀ`.
fn plain_products(cpu: &Cpu, t: usize, k: usize, n: usize) -> Vec<Case> {
    let (dy, w, x) = (values(t * n, 1), values(n * k, 2), values(t * k, 3));
    let dims = Dims { t, k, n };
    let (dx0, dw0) = (values(t * k, 4), values(n * k, 5));
    let dx64 = product64((t, k, n), |r, p| dy[r * n + p], |p, c| w[p * k + c]);
    let dw64 = product64((n, k, t), |r, p| dy[p * n + r], |p, c| x[p * k + c]);
    let plus = |a: &[f64], b: &[f32]| a.iter().zip(b).map(|(a, &b)| a + f64::from(b)).collect();
    let mut all = vec![];
    for add in [false, true] {
        let (mut dx, mut dw) = (dx0.clone(), dw0.clone());
        linear_dx(cpu, &dy, Weight::F32(&w), &mut dx, dims, add);
        linear_dw(cpu, &dy, &x, &mut dw, dims, add);
        let (dx64, dw64) =
            if add { (plus(&dx64, &dx0), plus(&dw64, &dw0)) } else { (dx64.clone(), dw64.clone()) };
        all.push(one(
            if add { "linear_dx_add" } else { "linear_dx" },
            launch(&[("m", t), ("n", k), ("depth", n)], &[]),
            [("dy", words(&dy)), ("w", words(&w)), ("dx", words(&dx0))],
            vec![("dx", dx)],
            vec![("dx", dx64)],
            1.2e-7 * (n as f64 + 4.0),
        ));
        all.push(one(
            if add { "linear_dw_add" } else { "linear_dw" },
            launch(&[("m", n), ("n", k), ("depth", t)], &[]),
            [("dy", words(&dy)), ("x", words(&x)), ("dw", words(&dw0))],
            vec![("dw", dw)],
            vec![("dw", dw64)],
            1.2e-7 * (t as f64 + 4.0),
        ));
    }
    all
}

fn attention(cpu: &Cpu, [batch, seq, heads, kv_heads, head_dim]: [usize; 5]) -> Vec<Case> {
    let dims = AttentionDims { batch, seq, heads, kv_heads, head_dim };
    let t = batch * seq;
    let [q, k, v] =
        [(heads, 1), (kv_heads, 2), (kv_heads, 3)].map(|(h, s)| values(t * h * head_dim, s));
    let q: Vec<f32> = q.iter().map(|x| x * 4.0).collect();
    let dout = values(q.len(), 4);
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; t * heads]);
    attention_forward(cpu, &q, &k, &v, &mut out, &mut lse, dims, 0.5);
    let [mut dq, mut dk, mut dv] = [q.len(), k.len(), v.len()].map(|n| vec![0.0; n]);
    let mut delta = vec![0.0; lse.len()];
    attention_backward(
        cpu, &q, &k, &v, &out, &lse, &dout, &mut dq, &mut dk, &mut dv, &mut delta, dims, 0.5,
    );
    let naive = attention64([&q, &k, &v, &dout].map(|x| wide(x)), dims, 0.5);
    let [out64, lse64, dq64, dk64, dv64] = naive;
    let sizes = [
        ("batch", batch),
        ("seq", seq),
        ("heads", heads),
        ("kv_heads", kv_heads),
        ("head_dim", head_dim),
    ];
    let with_scale = launch(&sizes, &[("scale", 0.5)]);
    let rows = launch(&[("rows", t * heads), ("n", head_dim)], &[]);
    vec![
        one(
            "attention_forward",
            with_scale.clone(),
            [
                ("q", words(&q)),
                ("k", words(&k)),
                ("v", words(&v)),
                ("out", zeros(q.len())),
                ("lse", zeros(lse.len())),
            ],
            vec![("out", out.clone()), ("lse", lse.clone())],
            vec![("out", out64), ("lse", lse64)],
            1e-5,
        ),
        Case {
            name: format!("attention's backward {sizes:?}"),
            steps: vec![
                ("dot_rows", rows, vec![("x", "out"), ("y", "dout"), ("sum", "delta")]),
                ("attention_dq", with_scale.clone(), vec![]),
                ("attention_dkv", with_scale, vec![]),
            ],
            memory: [
                ("q", words(&q)),
                ("k", words(&k)),
                ("v", words(&v)),
                ("out", words(&out)),
                ("dout", words(&dout)),
                ("lse", words(&lse)),
                ("delta", zeros(delta.len())),
                ("dq", zeros(q.len())),
                ("dk", zeros(k.len())),
                ("dv", zeros(v.len())),
            ]
            .into(),
            cpu: vec![("delta", delta), ("dq", dq), ("dk", dk), ("dv", dv)],
            naive: vec![("dq", dq64), ("dk", dk64), ("dv", dv64)],
            tolerance: 4e-5,
        },
    ]
}

/// Output, log-sum-exp, and the three gradients, from a full matrix of probabilities.
fn attention64([q, k, v, dout]: [Vec<f64>; 4], a: AttentionDims, scale: f64) -> [Vec<f64>; 5] {
    let d = a.head_dim;
    let (mut out, mut lse, mut dq) = (vec![0.0; q.len()], vec![], vec![0.0; q.len()]);
    let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
    for (t, h) in (0..a.batch * a.seq).flat_map(|t| (0..a.heads).map(move |h| (t, h))) {
        let first = t / a.seq * a.seq;
        let query = (t * a.heads + h) * d;
        let row = |j: usize| (j * a.kv_heads + h / (a.heads / a.kv_heads)) * d;
        let along = |x: &[f64], x0: usize, y: &[f64], y0: usize| -> f64 {
            (0..d).map(|e| x[x0 + e] * y[y0 + e]).sum()
        };
        let s: Vec<f64> = (first..=t).map(|j| scale * along(&q, query, &k, row(j))).collect();
        let m = s.iter().copied().fold(f64::MIN, f64::max);
        let z: f64 = s.iter().map(|s| (s - m).exp()).sum();
        let p: Vec<f64> = s.iter().map(|s| (s - m).exp() / z).collect();
        let dp: Vec<f64> = (first..=t).map(|j| along(&dout, query, &v, row(j))).collect();
        let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
        for (j, (p, dp)) in (first..=t).zip(p.iter().zip(&dp)) {
            let ds = p * (dp - delta) * scale;
            for e in 0..d {
                out[query + e] += p * v[row(j) + e];
                dq[query + e] += ds * k[row(j) + e];
                dk[row(j) + e] += ds * q[query + e];
                dv[row(j) + e] += p * dout[query + e];
            }
        }
        lse.push(m + z.ln());
    }
    [out, lse, dq, dk, dv]
}
