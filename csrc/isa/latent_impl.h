/* Attention of many queries with one chunk of latent rows (kv_layout.h), over v16.  Included by vec_impl.h.
 *
 * All heads share a kv-head whose values are the first columns of its keys, so both products are small matrix products of one float
 * matrix, read along its columns (scores) or its positions (values).  A lane is a query, in both: a number of the memory is widened once
 * for all queries of a tile and broadcast, and what it meets, queries and probabilities, lies with the queries side by side.  Every sum
 * runs over e, or over the positions, in order, in a lane of its own: its bits do not depend on the tile. */
#ifndef NI_LATENT_IMPL_H
#define NI_LATENT_IMPL_H
#include "attend_impl.h"

/* Vectors of queries whose sums stay in registers, at most. */
#if defined(V16_AVX512)
#define NI_LATENT_NV 2
#else
#define NI_LATENT_NV 1
#endif

#if defined(V16_AVX2) || defined(V16_NEON)
#define NI_LATENT_EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
#else
#define NI_LATENT_EACH(i, n) for (int i = 0; i < (n); i++)
#endif

/* out[r][v] = 0 + sum over i = i0 .. i1 - 1, in order, of w(i, r) * a[i][v], for nr rows and nv vectors of queries; a and out have vectors
 * of `stride` floats.  w is blocks of [16 positions][16 columns]: r is a column, and i a position, or else r is a position. */
V16_FN void NI_VEC(latent_sums)(const int nr, const int nv, const int columns, const float *a, int64_t i0, int64_t i1, const float *w,
                                int64_t stride, float *out) {
    v16 sum[16][NI_LATENT_NV];
    NI_LATENT_EACH(r, nr)
        NI_ATT_EACH(v, nv) sum[r][v] = v16_set1(0.0f);
    a += i0 * stride;
    for (int64_t i = i0; i < i1;) {
        const float *y = w + (columns ? 16 * i : i / 16 * 256 + i % 16);
        const int64_t end = columns || i1 - i < 16 ? i1 : i + 16;
        for (; i < end; i++, a += stride, y += columns ? 16 : 1) {
            v16 x[NI_LATENT_NV];
            NI_ATT_EACH(v, nv) x[v] = v16_load(a + 16 * v);
            NI_LATENT_EACH(r, nr) {
                const v16 number = v16_set1(y[columns ? r : 16 * r]);
                NI_ATT_EACH(v, nv) sum[r][v] = v16_fma(x[v], number, sum[r][v]);
            }
        }
    }
    /* Adding 0 turns a -0 into +0: masked positions, which add +0, then cannot be told from absent ones. */
    NI_LATENT_EACH(r, nr)
        NI_ATT_EACH(v, nv) v16_store(out + r * stride + 16 * v, v16_add(sum[r][v], v16_set1(0.0f)));
}

/* The sums of 16 rows and `stride` queries. */
V16_FN void NI_VEC(latent_sixteen)(const int columns, const float *a, int64_t i0, int64_t i1, const float *w, int64_t stride, float *out) {
#define NI_LATENT_SUMS(r, nr, nv) \
    NI_VEC(latent_sums)(nr, nv, columns, a + at, i0, i1, w + (r) * (columns ? 1 : 16), stride, out + (r) * stride + at)
    int64_t at = 0;
#if defined(V16_AVX512)
    for (; at + 32 <= stride; at += 32) {
        NI_LATENT_SUMS(0, 8, 2);
        NI_LATENT_SUMS(8, 8, 2);
    }
    if (at < stride) NI_LATENT_SUMS(0, 16, 1);
#else
    for (; at < stride; at += 16) {
        NI_LATENT_SUMS(0, 6, 1);
        NI_LATENT_SUMS(6, 5, 1);
        NI_LATENT_SUMS(11, 5, 1);
    }
#endif
#undef NI_LATENT_SUMS
}

/* Columns 16 c .. of positions p .. p + 15 (p is a multiple of 16) as a block of floats.
 * If `fetch`: what lies `positions` positions and `bytes` bytes behind them will be wanted soon. */
V16_FN void NI_VEC(latent_widen)(const ni_kv_type type, const int fetch, const uint8_t *rows, int64_t c, int64_t p, int64_t positions,
                                 int64_t bytes, float *to) {
    const int64_t row = type == NI_KV_q8_0 ? 16 : ni_kv_bytes(type, 16), ahead = positions * row + bytes;
    if (type == NI_KV_q8_0) {
        rows += c / 2 * NI_CHUNK * (2 + 32);
        const uint8_t *q = rows + 2 * NI_CHUNK + (c % 2 * NI_CHUNK + p) * row;
        float d[16];
        v16_store(d, v16_load_f16((const uint16_t *)rows + p));
        if (fetch) NI_ATT_PREFETCH(rows + 2 * p, 2 * positions + bytes);
        for (int i = 0; i < 16; i += 2, q += 2 * row) {
            if (fetch && i % 4 == 0) NI_ATT_PREFETCH(q, ahead);
            const v16p pair = v16p_load_i8((const int8_t *)q);
            v16_store(to + 16 * i, v16_mul(v16_from_i32(v16p_even(pair)), v16_set1(d[i])));
            v16_store(to + 16 * (i + 1), v16_mul(v16_from_i32(v16p_odd(pair)), v16_set1(d[i + 1])));
        }
        return;
    }
    const uint8_t *from = rows + (c * NI_CHUNK + p) * row;
    for (int i = 0; i < 16; i++, from += row) {
        if (fetch && i * row % 64 == 0) NI_ATT_PREFETCH(from, ahead);
        v16_store(to + 16 * i, NI_VEC(att_load)(type, (const void *)from));
    }
}

/* n <= 16 rows of 16 floats -> 16 rows of n floats; others of the 16 that are read count as 0, or are not written. */
V16_FN void NI_VEC(latent_turn)(const float *from, int64_t from_stride, int64_t n_from, float *to, int64_t to_stride, int64_t n_to) {
    if (n_from == 16 && n_to == 16) {
        v16_turn(from, from_stride, to, to_stride);
        return;
    }
    for (int64_t i = 0; i < n_to; i++)
        for (int64_t j = 0; j < 16; j++) to[i * to_stride + j] = j < n_from ? from[j * from_stride + i] : 0.0f;
}

/* Scores of 16 queries, [position] `stride` floats apart, -> probabilities, of positions i0 .. i1 - 1.  The same steps as att_softmax, but
 * that a lane is a query and sums run in order. */
V16_FN void NI_VEC(latent_softmax)(float *s, int64_t stride, int i0, int i1, v16 lo, v16 hi, float cap, float *m, float *l) {
    const v16 none = v16_set1(-INFINITY), zero = v16_set1(0.0f);
    v16 top = none, sum = zero;
    for (int i = i0; i < i1; i++) {
        const v16 at = v16_set1((float)i);
        v16 x = v16_load(s + i * stride);
        if (cap > 0) x = v16_softcap(x, v16_set1(cap));
        x = v16_select(v16_less(at, lo), none, v16_select(v16_less(at, hi), x, none));
        v16_store(s + i * stride, x);
        top = v16_max(top, x);
    }
    v16_store(m, top);
    top = v16_select(v16_less(none, top), top, zero);
    for (int i = i0; i < i1; i++) {
        const v16 p = v16_exp_neg(v16_sub(v16_load(s + i * stride), top));     /* exp(-inf) is exactly 0 */
        v16_store(s + i * stride, p);
        sum = v16_add(sum, p);
    }
    v16_store(l, sum);
}

/* 16 columns of one row of a chunk, from 16 c on. */
V16_FN v16 NI_VEC(latent_columns)(const ni_kv_type type, const uint8_t *rows, int64_t c, int64_t p) {
    if (type != NI_KV_q8_0) return NI_VEC(att_load)(type, rows + (c * NI_CHUNK + p) * ni_kv_bytes(type, 16));
    rows += c / 2 * NI_CHUNK * (2 + 32);
    const v16p pair = v16p_load_i8((const int8_t *)rows + 2 * NI_CHUNK + (c % 2 * NI_CHUNK + p / 2 * 2) * 16);
    return v16_mul(v16_from_i32(p % 2 ? v16p_odd(pair) : v16p_even(pair)), v16_set1(ni_f16_to_f32(((const uint16_t *)rows)[p])));
}

/* As latent_widen, but of rows i .. i + 15 of a list of n (kernels.h), of which the last is repeated where there are fewer. */
V16_FN void NI_VEC(latent_pick)(const ni_kv_type type, const int fetch, const uint8_t *const *of, const int32_t *at, int i, int n, int ahead,
                                int64_t c, float *to) {
    const int64_t row = ni_kv_bytes(type, 16);
    for (int k = i; k < i + 16; k++, to += 16) {
        if (fetch && k + 16 < ahead) {
            const int64_t block = type == NI_KV_q8_0 ? c / 2 * NI_CHUNK * (2 + 32) : c * NI_CHUNK * row, p = at[k + 16];
            if (type != NI_KV_q8_0) NI_ATT_PREFETCH(of[k + 16], block + p * row);
            else {
                NI_ATT_PREFETCH(of[k + 16], block + 2 * p);
                NI_ATT_PREFETCH(of[k + 16], block + 2 * NI_CHUNK + (c % 2 * NI_CHUNK + p / 2 * 2) * 16);
            }
        }
        const int found = k < n ? k : n - 1;
        v16_store(to, NI_VEC(latent_columns)(type, of[found], c, at[found]));
    }
}

/* attend_latent of n <= NI_LATENT_TILE queries; or, where there is an `of`, attend_listed, which sees its entries lo .. hi - 1. */
V16_FN void NI_VEC(latent_tile)(const ni_kv_type type, const float *q, int n, int64_t e, int64_t ev, const uint8_t *rows,
                                const uint8_t *next, const uint8_t *const *of, const int32_t *at, int ahead, const int *lo, const int *hi,
                                float cap, float *m, float *l, float *acc, float *scratch) {
    const int64_t stride = (n + 15) / 16 * 16;
    float *turned = scratch, *s = turned + stride * e, *wide = s + stride * NI_CHUNK;
    float *out = wide + 16 * (e > NI_CHUNK ? e : NI_CHUNK), ends[4][NI_LATENT_TILE] = {{0}};
    int i0 = NI_CHUNK, i1 = 0;
    for (int j = 0; j < n; j++) {
        i0 = lo[j] < i0 ? lo[j] : i0;
        i1 = hi[j] > i1 ? hi[j] : i1;
        ends[0][j] = (float)lo[j], ends[1][j] = (float)hi[j];
    }
    const int b0 = i0 / 16, b1 = (i1 + 15) / 16;
    for (int64_t j = 0; j < stride; j += 16)
        for (int64_t x = 0; x < e; x += 16)
            NI_VEC(latent_turn)(q + j * e + x, e, n - j < 16 ? n - j : 16, turned + x * stride + j, stride, 16);

    for (int b = b0; b < b1; b++) {
        const int last = b + 1 == b1;
        const int64_t positions = last ? -16 * b : 16, bytes = last ? (int64_t)((uintptr_t)next - (uintptr_t)rows) : 0;
        for (int64_t c = 0; c < e / 16; c++) {
            if (of) NI_VEC(latent_pick)(type, 1, of, at, 16 * b, i1, ahead, c, wide + 256 * c);
            else NI_VEC(latent_widen)(type, 1, rows, c, 16 * b, positions, bytes, wide + 256 * c);
        }
        NI_VEC(latent_sixteen)(0, turned, 0, e, wide, stride, s + 16 * b * stride);
    }
    for (int64_t j = 0; j < stride; j += 16)
        NI_VEC(latent_softmax)(s + j, stride, i0, i1, v16_load(ends[0] + j), v16_load(ends[1] + j), cap, ends[2] + j, ends[3] + j);
    memcpy(m, ends[2], (size_t)n * sizeof *m), memcpy(l, ends[3], (size_t)n * sizeof *l);
    for (int64_t c = 0; c < ev / 16; c++) {
        for (int b = b0; b < b1; b++) {
            if (of) NI_VEC(latent_pick)(type, 0, of, at, 16 * b, i1, 0, c, wide + 256 * b);
            else NI_VEC(latent_widen)(type, 0, rows, c, 16 * b, 0, 0, wide + 256 * b);
        }
        NI_VEC(latent_sixteen)(1, s, i0, i1, wide, stride, out);
        for (int64_t j = 0; j < stride; j += 16)
            NI_VEC(latent_turn)(out + j, stride, 16, acc + j * ev + 16 * c, ev, n - j < 16 ? n - j : 16);
    }
}

#define NI_ATTEND_LATENT(type)                                                                                                \
    static void NI_VEC(attend_latent_##type)(const float *q, int n_q, int64_t e, int64_t ev, const uint8_t *rows,             \
                                             const uint8_t *next, const int *lo, const int *hi, float cap, float *m, float *l, \
                                             float *acc, float *scratch) {                                                    \
        for (int at = 0; at < n_q; at += NI_LATENT_TILE)                                                                      \
            NI_VEC(latent_tile)(NI_KV_##type, q + at * e, n_q - at < NI_LATENT_TILE ? n_q - at : NI_LATENT_TILE, e, ev, rows, \
                                next, NULL, NULL, 0, lo + at, hi + at, cap, m + at, l + at, acc + at * ev, scratch);          \
    }                                                                                                                         \
    static void NI_VEC(attend_listed_##type)(const float *q, int n_q, int64_t e, int64_t ev, const uint8_t *const *of,        \
                                             const int32_t *at, int n, int ahead, float cap, float *m, float *l, float *acc,  \
                                             float *scratch) {                                                                \
        int lo[NI_LATENT_TILE] = {0}, hi[NI_LATENT_TILE];                                                                     \
        for (int j = 0; j < NI_LATENT_TILE; j++) hi[j] = n;                                                                   \
        for (int j = 0; j < n_q; j += NI_LATENT_TILE)                                                                         \
            NI_VEC(latent_tile)(NI_KV_##type, q + j * e, n_q - j < NI_LATENT_TILE ? n_q - j : NI_LATENT_TILE, e, ev, NULL,    \
                                NULL, of, at, ahead, lo, hi, cap, m + j, l + j, acc + j * ev, scratch);                       \
    }
#define NI_KV(type) NI_ATTEND_LATENT(type)
#include "kv.def"
#undef NI_KV
#undef NI_ATTEND_LATENT
#endif
