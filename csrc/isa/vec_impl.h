/* The vector kernels of struct ni_vec_kernels, written once over v16 and compiled once per instruction set.
 *
 * A file isa/<isa>.c sets its target (NI_TARGET) and its form of v16, defines NI_VEC(name) as name##_<isa>, includes this
 * file and initialises its table's .vec with NI_VEC_TABLE.
 * To be compiled with -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math.
 *
 * Inputs are finite floats unless a kernel says more.  Element-wise kernels may work in place (out equal to an input);
 * apart from that, buffers do not overlap.  Any n >= 0 unless kernels.h says otherwise; no alignment is needed.
 */
#ifndef NI_VEC_IMPL_H
#define NI_VEC_IMPL_H
#include "attend_impl.h"
#include "exp_impl.h"
#include "kernels.h"
#include "sample_impl.h"
#include "v16.h"

/* Blocks with amax < NI_QUANT_TINY count as zero: 127 / amax would overflow, and amax / 127 be subnormal. */
#define NI_QUANT_TINY 0x1p-119f

static void NI_VEC(quantize)(const float *x, int64_t n, int8_t *q, float *d, float *m, int16_t *s) {
    for (int64_t b = 0; b < n / 32; b++) {
        v16 x0 = v16_load(x + 32 * b), x1 = v16_load(x + 32 * b + 16);
        float amax = v16_hmax(v16_max(v16_abs(x0), v16_abs(x1)));
        int tiny = amax < NI_QUANT_TINY;
        float scale = (tiny ? 0.0f : amax / 127.0f) + NI_VEC(poison)(x0, x1);
        v16 inverse = v16_set1(tiny ? 0.0f : 127.0f / amax);
        v16i q0 = v16_rint(v16_mul(x0, inverse)), q1 = v16_rint(v16_mul(x1, inverse));
        if (q) {
            v16i_store_i8(q + 32 * b, q0);
            v16i_store_i8(q + 32 * b + 16, q1);
        }
        if (d) d[b] = scale;
        if (!s && !m) continue;
        int64_t s0 = v16i_sum(q0), s1 = v16i_sum(q1);
        if (s) {
            s[2 * b] = (int16_t)s0;
            s[2 * b + 1] = (int16_t)s1;
        }
        if (m) m[b] = scale * (float)(s0 + s1);
    }
}

static float NI_VEC(sum_squares)(const float *x, int64_t n) {
    v16 s = v16_set1(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 a = v16_load(x + i);
        s = v16_fma(a, a, s);
    }
    if (i < n) {
        v16 a = v16_load_n(x + i, n - i);
        s = v16_fma(a, a, s);
    }
    return v16_sum(s);
}

static float NI_VEC(sum)(const float *x, int64_t n) {
    v16 s = v16_set1(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) s = v16_add(s, v16_load(x + i));
    if (i < n) s = v16_add(s, v16_load_n(x + i, n - i));
    return v16_sum(s);
}

/* Runs `expr`, a v16 in terms of LOAD(pointer), over n elements of out. */
#define NI_VEC_MAP(out, n, expr)                                \
    do {                                                        \
        int64_t i_ = 0;                                         \
        for (; i_ + 16 <= (n); i_ += 16) {                      \
            const int64_t n_ = 16;                              \
            v16_store((out) + i_, expr);                        \
            (void)n_;                                           \
        }                                                       \
        if (i_ < (n)) {                                         \
            const int64_t n_ = (n) - i_;                        \
            v16_store_n((out) + i_, expr, n_);                  \
        }                                                       \
    } while (0)
#define LOAD(p) (n_ == 16 ? v16_load((p) + i_) : v16_load_n((p) + i_, n_))

static void NI_VEC(scale_mul)(const float *x, float scale, const float *w, int64_t n, float *y) {
    v16 a = v16_set1(scale);
    if (w)
        NI_VEC_MAP(y, n, v16_mul(v16_mul(LOAD(x), a), LOAD(w)));
    else
        NI_VEC_MAP(y, n, v16_mul(LOAD(x), a));
}

static void NI_VEC(minus)(const float *x, float c, int64_t n, float *y) {
    v16 a = v16_set1(c);
    NI_VEC_MAP(y, n, v16_sub(LOAD(x), a));
}

static void NI_VEC(add)(const float *x, const float *y, int64_t n, float *out) {
    NI_VEC_MAP(out, n, v16_add(LOAD(x), LOAD(y)));
}

static void NI_VEC(exp)(const float *x, float c, int64_t n, float *y) {
    v16 a = v16_set1(c);
    NI_VEC_MAP(y, n, v16_exp(v16_sub(LOAD(x), a)));
}

static void NI_VEC(silu_mul)(const float *g, const float *u, int64_t n, float *out) {
    NI_VEC_MAP(out, n, v16_mul(v16_silu(LOAD(g)), LOAD(u)));
}

static void NI_VEC(gelu_mul)(const float *g, const float *u, int64_t n, float *out) {
    NI_VEC_MAP(out, n, v16_mul(v16_gelu(LOAD(g)), LOAD(u)));
}

static void NI_VEC(gelu)(const float *x, int64_t n, float *y) {
    NI_VEC_MAP(y, n, v16_gelu(LOAD(x)));
}

static void NI_VEC(relu_squared)(const float *x, int64_t n, float *y) {
    const v16 zero = v16_set1(0.0f);
    NI_VEC_MAP(y, n, v16_mul(v16_max(LOAD(x), zero), LOAD(x)));
}

static void NI_VEC(xielu)(const float *x, float ap, float an, float beta, float eps, int64_t n, float *y) {
    const v16 p = v16_set1(ap), m = v16_set1(an), b = v16_set1(beta), e = v16_set1(eps);
    NI_VEC_MAP(y, n, v16_xielu(LOAD(x), p, m, b, e));
}

static void NI_VEC(sigmoid_mul)(const float *g, const float *u, int64_t n, float *out) {
    NI_VEC_MAP(out, n, v16_sigmoid_mul(LOAD(g), LOAD(u)));
}

static void NI_VEC(clamped_mul)(const float *g, const float *u, float alpha, float limit, int64_t n, float *out) {
    const v16 a = v16_set1(-alpha), most = v16_set1(limit), least = v16_set1(-limit);
    NI_VEC_MAP(out, n, v16_clamped_mul(LOAD(g), LOAD(u), a, most, least));
}

static void NI_VEC(limited_mul)(const float *g, const float *u, float limit, int64_t n, float *out) {
    const v16 most = v16_set1(limit), least = v16_set1(-limit);
    NI_VEC_MAP(out, n, v16_mul(v16_min(most, v16_silu(LOAD(g))), v16_max(least, v16_min(most, LOAD(u)))));
}

static void NI_VEC(softplus)(const float *x, int64_t n, float *y) {
    NI_VEC_MAP(y, n, v16_softplus(LOAD(x)));
}

static void NI_VEC(softcap)(const float *x, float c, int64_t n, float *y) {
    v16 cap = v16_set1(c);
    NI_VEC_MAP(y, n, v16_softcap(LOAD(x), cap));
}
#undef LOAD
#undef NI_VEC_MAP

/* (a, b) -> (a cos - b sin, a sin + b cos), no fused operations. */
static void NI_VEC(rope_norm)(float *x, const float *cos, const float *sin, int64_t n_rot) {
    int64_t i = 0;
    for (; i + 16 <= n_rot; i += 16) {
        v16 a = v16_load(x + i), c = v16_load_twice(cos + i / 2), s = v16_load_twice(sin + i / 2);
        v16_store(x + i, v16_addsub(v16_mul(a, c), v16_mul(v16_swap_pairs(a), s)));
    }
    for (; i + 2 <= n_rot; i += 2) {
        float a = x[i], b = x[i + 1], c = cos[i / 2], s = sin[i / 2];
        x[i] = a * c - b * s;
        x[i + 1] = b * c + a * s;
    }
}

static void NI_VEC(rope_neox)(float *x, const float *cos, const float *sin, int64_t n_rot) {
    int64_t i = 0, half = n_rot / 2;
    for (; i + 16 <= half; i += 16) {
        v16 a = v16_load(x + i), b = v16_load(x + half + i), c = v16_load(cos + i), s = v16_load(sin + i);
        v16_store(x + i, v16_sub(v16_mul(a, c), v16_mul(b, s)));
        v16_store(x + half + i, v16_add(v16_mul(b, c), v16_mul(a, s)));
    }
    for (; i < half; i++) {
        float a = x[i], b = x[half + i], c = cos[i], s = sin[i];
        x[i] = a * c - b * s;
        x[half + i] = b * c + a * s;
    }
}

/* Round to nearest, ties to even; infinities and NaNs pass through. */
static void NI_VEC(to_f16)(const float *x, int64_t n, uint16_t *y) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) v16_store_f16(y + i, v16_load(x + i));
    if (i < n) {
        uint16_t h[16];
        v16_store_f16(h, v16_load_n(x + i, n - i));
        memcpy(y + i, h, (size_t)(n - i) * sizeof *h);
    }
}

/* Exact; infinities and NaNs pass through. */
static void NI_VEC(from_f16)(const uint16_t *x, int64_t n, float *y) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) v16_store(y + i, v16_load_f16(x + i));
    if (i < n) {
        uint16_t h[16] = {0};
        memcpy(h, x + i, (size_t)(n - i) * sizeof *h);
        v16_store_n(y + i, v16_load_f16(h), n - i);
    }
}

#include "latent_impl.h"
#include "recurrence_impl.h"
#include "index_impl.h"
#include "store_impl.h"

#define NI_KV_ENTRY(type)                                                                        \
    {.store_key = NI_VEC(store_key_##type), .store_value = NI_VEC(store_value_##type), .attend = NI_VEC(attend_##type), \
     .attend_latent = NI_VEC(attend_latent_##type), .attend_listed = NI_VEC(attend_listed_##type), .index = NI_VEC(index_##type)}
#define NI_VEC_TABLE                                                                                             \
    {                                                                                                            \
        .quantize = NI_VEC(quantize), .sum_squares = NI_VEC(sum_squares), .sum = NI_VEC(sum),                    \
        .minus = NI_VEC(minus), .scale_mul = NI_VEC(scale_mul),                                                  \
        .add = NI_VEC(add), .exp = NI_VEC(exp),                                                                  \
        .silu_mul = NI_VEC(silu_mul), .gelu_mul = NI_VEC(gelu_mul), .gelu = NI_VEC(gelu),      \
        .relu_squared = NI_VEC(relu_squared), .xielu = NI_VEC(xielu),                                            \
        .sigmoid_mul = NI_VEC(sigmoid_mul), .clamped_mul = NI_VEC(clamped_mul), .limited_mul = NI_VEC(limited_mul), \
        .softcap = NI_VEC(softcap), .rope_norm = NI_VEC(rope_norm), .rope_neox = NI_VEC(rope_neox),              \
        .to_f16 = NI_VEC(to_f16), .from_f16 = NI_VEC(from_f16), .softplus = NI_VEC(softplus),                    \
        .short_conv = NI_VEC(short_conv), .recur = NI_VEC(recur), .scan = NI_VEC(scan), .merge = NI_VEC(merge),    \
        .sample_keys = NI_VEC(sample_keys), .sample_masses = NI_VEC(sample_masses),                              \
        .sample_weigh = NI_VEC(sample_weigh), .sample_collect = NI_VEC(sample_collect),                          \
        .kv = {[NI_KV_f16] = NI_KV_ENTRY(f16), [NI_KV_bf16] = NI_KV_ENTRY(bf16), [NI_KV_q8_0] = NI_KV_ENTRY(q8_0), \
               [NI_KV_f32] = NI_KV_ENTRY(f32)}                                                                   \
    }
#endif
