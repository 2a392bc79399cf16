//! Attention's skeletons on a GPU. A group has four rows of 64 lanes. Forward and for the
//! gradient of queries a row is a query of one head and a lane a key of the current tile;
//! for the gradient of keys and values a row is a key and a lane a query. The tile of 64
//! keys, the reductions' tree and the chains are the CPU's.

use super::Writer;

pub(super) const SHARED_FORWARD: [(&str, usize); 5] =
    [("tree", 256), ("near", 64), ("far", 16 * 65), ("p", 256), ("acc", 1024)];
pub(super) const SHARED_QUERIES: [(&str, usize); 4] =
    [("near", 64), ("far", 16 * 65), ("p", 256), ("acc", 1024)];
pub(super) const SHARED_KEYS: [(&str, usize); 6] =
    [("near", 64), ("far", 16 * 65), ("p", 256), ("ds", 256), ("acc", 1024), ("acc2", 1024)];

/// Who this row is, where a row is a query. Rows beyond the last do its work and write
/// nothing, so that all threads meet at every barrier.
const QUERY: &str = "
    let lane = local.x;
    let r = local.y;
    let thread = r * 64u + lane;
    let lanes = r * 64u;
    let share = heads / kv_heads;
    let kv = group.y;
    let b = group.z;
    let all = seq * share;
    let place = min(group.x * 4u + r, all - 1u);
    let alive = group.x * 4u + r < all;
    let position = place / share;
    let head = kv * share + place % share;
    let last = (min(group.x * 4u + 4u, all) - 1u) / share;
    for (var e = lane; e < head_dim; e += 64u) { acc[r * 256u + e] = 0.0f; }";

/// `variable` = the chain over a head's width of `rows[this row]` · `lanes[this lane]`, both
/// staged 16 columns at a time. `row` and `lane_row` are the matrices' rows, the latter of
/// lane `t`, which has one where `there`.
fn chain(
    w: &mut Writer<'_>,
    variable: &str,
    (rows, row): (&str, &str),
    (lanes, lane_row, there): (&str, &str, &str),
) {
    w.line(&format!(
        "var {variable} = 0.0f;
         for (var base = 0u; base < head_dim; base += 16u) {{
         let steps = min(16u, head_dim - base);
         if (lane < steps) {{ near[r * 16u + lane] = {rows}[({row}) * head_dim + base + lane]; }}
         for (var j = thread; j < 1024u; j += 256u) {{
         let t = j / 16u;
         let e = j % 16u;
         var element = 0.0f;
         if ({there} && e < steps) {{ element = {lanes}[({lane_row}) * head_dim + base + e]; }}
         far[e * 65u + t] = element;
         }}
         workgroupBarrier();
         for (var e = 0u; e < steps; e += 1u) {{
         {variable} = fma(near[r * 16u + e], far[e * 65u + lane], {variable});
         }}
         workgroupBarrier();
         }}"
    ));
}

/// Prints a program whose row is `width` wide.
fn program(w: &mut Writer<'_>, which: usize, width: &'static str) {
    let kernel = w.kernel;
    (w.width, w.lanes) = (width, "lanes + ");
    w.names.clear();
    w.line("{");
    w.steps(&kernel.programs[which], true);
    w.line("}");
}

const QUERY_ROW: &str = "(b * seq + position) * heads + head";
const KEY_ROW: &str = "(b * seq + tile + t) * kv_heads + kv";
const KEY_SEEN: &str = "tile + t <= last";

/// `acc` of this row goes on over the tile's keys with the weights in `p`.
const GATHER: &str = "
    for (var e = lane; e < head_dim; e += 64u) {
    var sum = acc[r * 256u + e];
    for (var j = 0u; j < n; j += 1u) {
    sum = fma(p[lanes + j], MATRIX[((b * seq + tile + j) * kv_heads + kv) * head_dim + e], sum);
    }
    acc[r * 256u + e] = sum;
    }
    workgroupBarrier();
    }";

/// Keys of the tile that this row sees.
const SEEN: &str = "
    for (var tile = 0u; tile <= last; tile += 64u) {
    let n = min(position + 1u - min(position + 1u, tile), 64u);";

pub(super) fn forward(w: &mut Writer<'_>) {
    w.line(QUERY);
    w.line("var m = -infinity;\nvar z = 0.0f;\nvar by = 0.0f;");
    w.line(SEEN);
    chain(w, "s", ("q", QUERY_ROW), ("k", KEY_ROW, KEY_SEEN));
    program(w, 0, "n");
    program(w, 1, "head_dim");
    w.line("p[thread] = s;\nworkgroupBarrier();");
    w.line(&GATHER.replace("MATRIX", "v"));
    w.line("if (alive) {");
    program(w, 2, "head_dim");
    w.line("}");
}

pub(super) fn queries(w: &mut Writer<'_>) {
    w.line(QUERY);
    w.line(SEEN);
    chain(w, "s", ("q", QUERY_ROW), ("k", KEY_ROW, KEY_SEEN));
    chain(w, "dp", ("dout", QUERY_ROW), ("v", KEY_ROW, KEY_SEEN));
    program(w, 0, "n");
    w.line("p[thread] = dp;\nworkgroupBarrier();");
    w.line(&GATHER.replace("MATRIX", "k"));
    w.line(&format!(
        "if (alive) {{
         for (var e = lane; e < head_dim; e += 64u) {{
         dq[({QUERY_ROW}) * head_dim + e] = acc[r * 256u + e];
         }}
         }}"
    ));
}

pub(super) fn keys(w: &mut Writer<'_>) {
    w.line(
        "let lane = local.x;
         let r = local.y;
         let thread = r * 64u + lane;
         let lanes = r * 64u;
         let share = heads / kv_heads;
         let kv = group.y;
         let b = group.z;
         let first = group.x * 4u;
         let key = min(first + r, seq - 1u);
         let alive = first + r < seq;
         for (var e = lane; e < head_dim; e += 64u) {
         acc[r * 256u + e] = 0.0f;
         acc2[r * 256u + e] = 0.0f;
         }
         for (var head = kv * share; head < (kv + 1u) * share; head += 1u) {
         for (var tile = first; tile < seq; tile += 64u) {
         let position = min(tile + lane, seq - 1u);
         let n = min(64u, seq - tile);",
    );
    let (near, far) = ("(b * seq + key) * kv_heads + kv", "(b * seq + tile + t) * heads + head");
    chain(w, "s", ("k", near), ("q", far, "tile + t < seq"));
    chain(w, "dp", ("v", near), ("dout", far, "tile + t < seq"));
    w.line("if (tile + lane < seq && position >= key) {");
    program(w, 0, "64u");
    w.line(
        "} else {
         s = 0.0f;
         dp = 0.0f;
         }
         p[thread] = s;
         ds[thread] = dp;
         workgroupBarrier();
         for (var e = lane; e < head_dim; e += 64u) {
         var dv_sum = acc[r * 256u + e];
         var dk_sum = acc2[r * 256u + e];
         for (var j = 0u; j < n; j += 1u) {
         let query = ((b * seq + tile + j) * heads + head) * head_dim + e;
         dv_sum = fma(p[lanes + j], dout[query], dv_sum);
         dk_sum = fma(ds[lanes + j], q[query], dk_sum);
         }
         acc[r * 256u + e] = dv_sum;
         acc2[r * 256u + e] = dk_sum;
         }
         workgroupBarrier();
         }
         }
         if (alive) {
         for (var e = lane; e < head_dim; e += 64u) {
         let at = ((b * seq + key) * kv_heads + kv) * head_dim + e;
         dv[at] = acc[r * 256u + e];
         dk[at] = acc2[r * 256u + e];
         }
         }",
    );
}
