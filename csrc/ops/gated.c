/* a = act(gate) * up, the middle of a gated feed-forward network (arXiv:2002.05202), or what else a gate does.
 * t: gate, up? (without, `up` is the second half of gate's rows), a.  f: alpha (NI_CLAMPED, NI_SITU), limit.
 * i: NI_SILU, NI_GELU (tanh form), NI_SIGMOID, NI_CLAMPED: a / (1 + exp(-alpha a)) (b + 1), a and b being gate and up within limits,
 *    NI_LIMITED: SiLU and up within limits, NI_RELU: max(gate, 0) up, NI_PRODUCT: gate up,
 *    NI_SITU: alpha tanh(gate / alpha) sigmoid(gate) b, b being up, or limit tanh(up / limit) where there is a limit,
 *    NI_CAPPED: silu(a) b. */
#include "ops.h"

enum {
    NI_SILU = 0, NI_GELU = 1, NI_SIGMOID = 2, NI_CLAMPED = 3, NI_LIMITED = 4, NI_RELU = 5, NI_PRODUCT = 6, NI_SITU = 7, NI_CAPPED = 8
};

size_t ni_scratch_gated(const ni_ctx *c, const ni_op *op) { return (size_t)ni_width(c, op, 2) * 2 * sizeof(float); }

static void situ(const float *gate, const float *up, float alpha, float limit, int64_t n, float *out, float *b) {
    ni_k->vec.softcap(gate, alpha, n, out);
    ni_k->vec.sigmoid_mul(gate, out, n, out);
    if (limit > 0.0f) ni_k->vec.softcap(up, limit, n, b), up = b;
    ni_k->vec.scale_mul(out, 1.0f, up, n, out);
}

/* silu(min(gate, limit)) times up from -limit to limit; no number stays none. */
static void capped(const float *gate, const float *up, float limit, int64_t n, float *memory, float *out) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = gate[i] > limit ? limit : gate[i];
        memory[i] = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
    }
    ni_k->vec.silu_mul(out, memory, n, out);
}

void ni_op_gated(const ni_ctx *c, const ni_op *op) {
    const int64_t n = ni_width(c, op, 2), stride = ni_width(c, op, 0);
    int64_t row, a, b;
    float *out = (float *)c->scratch;
    ni_slices s = ni_slices_of(c, ni_rows_of(c, op, 0), n);
    while (ni_next_slice(&s, &row, &a, &b)) {
        const float *gate = ni_floats(c, op, 0) + row * stride + a, *up = op->t[1] < 0 ? gate + n : ni_floats(c, op, 1) + row * n + a;
        switch (op->i[0]) {
        case NI_SILU: ni_k->vec.silu_mul(gate, up, b - a, out); break;
        case NI_GELU: ni_k->vec.gelu_mul(gate, up, b - a, out); break;
        case NI_SIGMOID: ni_k->vec.sigmoid_mul(gate, up, b - a, out); break;
        case NI_LIMITED: ni_k->vec.limited_mul(gate, up, op->f[1], b - a, out); break;
        case NI_RELU: for (int64_t i = 0; i < b - a; i++) out[i] = (gate[i] > 0.0f ? gate[i] : 0.0f) * up[i]; break;
        case NI_PRODUCT: ni_k->vec.scale_mul(gate, 1.0f, up, b - a, out); break;
        case NI_SITU: situ(gate, up, op->f[0], op->f[1], b - a, out, out + n); break;
        case NI_CAPPED: capped(gate, up, op->f[1], b - a, out + n, out); break;
        default: ni_k->vec.clamped_mul(gate, up, op->f[0], op->f[1], b - a, out);
        }
        ni_put(c, op, 2, row, a, b - a, out);
    }
}
