/* Kernels of recurrent layers over v16: recurrence.h and kernels.h have the formulas.  Included by vec_impl.h. */
#ifndef NI_RECURRENCE_IMPL_H
#define NI_RECURRENCE_IMPL_H
#include "exp_impl.h"
#include "recurrence.h"

static void NI_VEC(short_conv)(const float *const *x, int taps, const float *w, int64_t stride, const float *bias, int silu, int64_t n,
                               float *y) {
    for (int64_t i = 0; i < n; i += 16) {
        const int64_t m = n - i < 16 ? n - i : 16;
        v16 sum = !bias ? v16_set1(0.0f) : m == 16 ? v16_load(bias + i) : v16_load_n(bias + i, m);
        for (int j = 0; j < taps; j++) {
            const float *wj = w + j * stride + i, *xj = x[j] + i;
            sum = m == 16 ? v16_fma(v16_load(wj), v16_load(xj), sum) : v16_fma(v16_load_n(wj, m), v16_load_n(xj, m), sum);
        }
        if (silu) sum = v16_silu(sum);
        if (m == 16) v16_store(y + i, sum);
        else v16_store_n(y + i, sum, m);
    }
}

/* Blocks that are advanced at a time: each has four sums in registers, and what is broadcast serves all of them. */
#if defined(V16_AVX512)
#define NI_RECUR_BLOCKS 2
#else
#define NI_RECUR_BLOCKS 1
#endif

V16_FN void NI_VEC(recur_blocks)(const float *from, float *to, const ni_recurrence *r, int64_t column, const int nb, const int delta,
                                 const int wide) {
    const int64_t rows = r->rows, size = rows * NI_STATE_COLUMNS;
    for (int t = 0; t < r->n_tokens; t++, from = to) {
        const float *q = r->q + t * rows, *k = r->k + t * rows, *decay = r->decay + (wide ? t * rows : t);
        v16 e[NI_RECUR_BLOCKS], sum[NI_RECUR_BLOCKS][NI_STATE_ROWS];
#pragma GCC unroll 4
        for (int b = 0; b < nb; b++) e[b] = v16_load(r->v + t * r->v_stride + column + 16 * b);
        if (delta) {
            const float *kd = r->kd + t * rows;
#pragma GCC unroll 16
            for (int b = 0; b < nb * NI_STATE_ROWS; b++) sum[b / NI_STATE_ROWS][b % NI_STATE_ROWS] = v16_set1(0.0f);
            for (int64_t i = 0; i < rows; i += NI_STATE_ROWS)
#pragma GCC unroll 4
                for (int u = 0; u < NI_STATE_ROWS; u++) {
                    const v16 x = v16_set1(kd[i + u]);
#pragma GCC unroll 4
                    for (int b = 0; b < nb; b++) sum[b][u] = v16_fma(v16_load(from + b * size + (i + u) * 16), x, sum[b][u]);
                }
            const v16 beta = v16_set1(r->beta[t]);
#pragma GCC unroll 4
            for (int b = 0; b < nb; b++)
                e[b] = v16_mul(beta, v16_sub(e[b], v16_add(v16_add(sum[b][0], sum[b][1]), v16_add(sum[b][2], sum[b][3]))));
        } else if (r->beta) {
#pragma GCC unroll 4
            for (int b = 0; b < nb; b++) e[b] = v16_mul(v16_set1(r->beta[t]), e[b]);
        }
#pragma GCC unroll 16
        for (int b = 0; b < nb * NI_STATE_ROWS; b++) sum[b / NI_STATE_ROWS][b % NI_STATE_ROWS] = v16_set1(0.0f);
        v16 keep = v16_set1(decay[0]);
        for (int64_t i = 0; i < rows; i += NI_STATE_ROWS)
#pragma GCC unroll 4
            for (int u = 0; u < NI_STATE_ROWS; u++) {
                const v16 x = v16_set1(k[i + u]), y = v16_set1(q[i + u]);
                if (wide) keep = v16_set1(decay[i + u]);
#pragma GCC unroll 4
                for (int b = 0; b < nb; b++) {
                    const int64_t at = b * size + (i + u) * 16;
                    const v16 s = v16_fma(x, e[b], v16_mul(keep, v16_load(from + at)));
                    v16_store(to + at, s);
                    sum[b][u] = v16_fma(s, y, sum[b][u]);
                }
            }
#pragma GCC unroll 4
        for (int b = 0; b < nb; b++)
            v16_store(r->out + t * r->out_stride + column + 16 * b,
                      v16_add(v16_add(sum[b][0], sum[b][1]), v16_add(sum[b][2], sum[b][3])));
    }
}

V16_FN void NI_VEC(recur_kind)(const float *from, float *to, const ni_recurrence *r, const int delta, const int wide) {
    const int64_t size = r->rows * NI_STATE_COLUMNS;
    int64_t b = 0;
    for (; b + NI_RECUR_BLOCKS <= r->blocks; b += NI_RECUR_BLOCKS)
        NI_VEC(recur_blocks)(from + b * size, to + b * size, r, b * NI_STATE_COLUMNS, NI_RECUR_BLOCKS, delta, wide);
    for (; b < r->blocks; b++) NI_VEC(recur_blocks)(from + b * size, to + b * size, r, b * NI_STATE_COLUMNS, 1, delta, wide);
}

static void NI_VEC(recur)(const float *from, float *to, const ni_recurrence *r) {
    if (r->delta) {
        if (r->wide) NI_VEC(recur_kind)(from, to, r, 1, 1);
        else NI_VEC(recur_kind)(from, to, r, 1, 0);
    } else if (r->wide) NI_VEC(recur_kind)(from, to, r, 0, 1);
    else NI_VEC(recur_kind)(from, to, r, 0, 0);
}

/* n < 16 channels where the block is not full. */
V16_FN void NI_VEC(scan_block)(const float *from, float *to, const ni_scan *r, int64_t channel, const int full) {
    const float *a = r->a + channel * r->rows;
    const int64_t n = r->channels - channel;
    const v16 skip = full ? v16_load(r->skip + channel) : v16_load_n(r->skip + channel, n);
    for (int t = 0; t < r->n_tokens; t++, from = to) {
        const float *xt = r->x + t * r->x_stride + channel, *dt = r->dt + t * r->dt_stride + channel;
        const float *b = r->b + t * r->rows, *c = r->c + t * r->rows;
        const v16 x = full ? v16_load(xt) : v16_load_n(xt, n), d = v16_softplus(full ? v16_load(dt) : v16_load_n(dt, n)), e = v16_mul(d, x);
        v16 sum[NI_STATE_ROWS];
#pragma GCC unroll 4
        for (int u = 0; u < NI_STATE_ROWS; u++) sum[u] = v16_set1(0.0f);
        for (int64_t i = 0; i < r->rows; i += NI_STATE_ROWS)
#pragma GCC unroll 4
            for (int u = 0; u < NI_STATE_ROWS; u++) {
                const int64_t at = (i + u) * 16;
                const v16 kept = v16_mul(v16_exp(v16_mul(d, v16_load(a + at))), v16_load(from + at));
                const v16 s = v16_fma(v16_set1(b[i + u]), e, kept);
                v16_store(to + at, s);
                sum[u] = v16_fma(s, v16_set1(c[i + u]), sum[u]);
            }
        const v16 y = v16_fma(skip, x, v16_add(v16_add(sum[0], sum[1]), v16_add(sum[2], sum[3])));
        float *out = r->out + t * r->out_stride + channel;
        if (full) v16_store(out, y);
        else v16_store_n(out, y, n);
    }
}

static void NI_VEC(scan)(const float *from, float *to, const ni_scan *r) {
    int64_t channel = 0;
    for (; channel + NI_STATE_COLUMNS <= r->channels; channel += NI_STATE_COLUMNS)
        NI_VEC(scan_block)(from + channel * r->rows, to + channel * r->rows, r, channel, 1);
    if (channel < r->channels) NI_VEC(scan_block)(from + channel * r->rows, to + channel * r->rows, r, channel, 0);
}
#endif
