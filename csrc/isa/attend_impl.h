/* Attention of some queries with one chunk of keys and values, over v16. Included by vec_impl.h.
 *
 * Both halves are small matrix products whose sums stay in registers: a tile of up to NI_ATT_Q queries meets 16 nb
 * positions (scores: one float per lane is one position, keys lie 16 positions side by side) or 16 nb columns
 * (values). A key or value vector is converted to floats once per tile; queries and probabilities are broadcast.
 * Every sum runs over e, or over the positions, in order, in a lane of its own: its bits depend neither on the tile
 * nor on nb.
 *
 * Positions that no query of the tile sees are not read among the values; keys are read in whole blocks of 16
 * positions, and what lies at masked positions there is thrown away, so it may be anything. A value row that one query
 * of a tile sees and another does not is multiplied by exactly 0 for the other: such rows must be finite.
 */
#ifndef NI_ATTEND_IMPL_H
#define NI_ATTEND_IMPL_H
#include "exp_impl.h"
#include "kernels.h"

#define NI_ATT_Q 6      /* queries per tile: 12 sums of 8 lanes fill AVX2's 16 registers */
#define NI_ATT_AHEAD (128 << 10)    /* bytes, at most: what a prefetch may bring into L2 before it is used */

/* Blocks of 16 that a tile of nq queries takes at a time: enough sums in flight to hide the latency of the fma.
 * Where sums are arrays in memory there is nothing to gain from that, nor from unrolling for each nq. */
#if defined(V16_AVX512)
#define NI_ATT_NB(nq) 4
#elif defined(V16_AVX2) || defined(V16_NEON)    /* NEON: 24 sums of 4 lanes, of 32 registers */
#define NI_ATT_NB(nq) ((nq) == 1 ? 4 : (nq) <= 3 ? 2 : 1)
#else
#define NI_ATT_NB(nq) 1
#endif
/* Of AVX2's 16 registers 12 sums leave 4, too few for 3 broadcast values and a key vector of 2. A pointer that the compiler
 * cannot see through makes it broadcast the values again for the second block; else it would spill. */
#if defined(V16_AVX2) && !defined(V16_AVX512)
#define NI_ATT_AGAIN(nq, nb, p) do { if ((nq) == 3 && (nb) > 1) __asm__ volatile("" : "+r"(p)); } while (0)
/* The compiler would compute all products of a row before it adds them, and spill the sums. */
#define NI_ATT_KEEP(a) __asm__("" : "+x"((a).lo), "+x"((a).hi))
#else
#define NI_ATT_AGAIN(nq, nb, p) ((void)0)
#define NI_ATT_KEEP(a) ((void)0)
#endif
#if defined(V16_AVX2) || defined(V16_NEON)
#define NI_ATT_EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)
#else
#define NI_ATT_EACH(i, n) for (int i = 0; i < (n); i++)
#endif

/* While one half of a chunk is read, the other half, or the next chunk's keys, are on their way: these are the bytes from what is read
 * to what is asked for.  Where several blocks are read at once, no fixed shorter distance would suit them all.
 * Of keys: values follow them. */
V16_FN int64_t NI_VEC(att_ahead)(const ni_kv_type type, int64_t e) {
    const int64_t half = NI_CHUNK * ni_kv_bytes(type, e);
    return half < NI_ATT_AHEAD ? half : NI_ATT_AHEAD;
}

/* Of values that begin `at` bytes behind the first: the next keys' place is as far behind the values' end. */
V16_FN int64_t NI_VEC(att_ahead_of_values)(const ni_kv_type type, int64_t ev, const uint8_t *values, const uint8_t *next, int64_t at) {
    const int64_t half = NI_CHUNK * ni_kv_bytes(type, ev), ahead = half < NI_ATT_AHEAD ? half : NI_ATT_AHEAD;
    return at + ahead < half ? ahead : (int64_t)((uintptr_t)next - (uintptr_t)values) - half + ahead;
}
#define NI_ATT_PREFETCH(p, ahead) __builtin_prefetch((const char *)((uintptr_t)(p) + (uintptr_t)(ahead)), 0, 2)

/* Bytes of 16 numbers, which lie side by side. */
V16_FN int64_t NI_VEC(att_row)(const ni_kv_type type) { return type == NI_KV_f32 ? 64 : 32; }

#if defined(V16_AVX512)
#include "avx512_attend.h"
#endif

V16_FN v16 NI_VEC(att_load)(const ni_kv_type type, const uint8_t *p) {
    if (type == NI_KV_f32) return v16_load((const float *)p);
    return type == NI_KV_bf16 ? v16_load_bf16((const uint16_t *)p) : v16_load_f16((const uint16_t *)p);
}

/* s[j * NI_CHUNK + 16 b + l] = q_j . k_(16 b + l) for nq queries and nb blocks of 16 positions. */
V16_FN void NI_VEC(att_scores)(const ni_kv_type type, const int nq, const int nb, const float *q, int64_t e,
                               const uint8_t *k, float *s) {
    const int64_t ahead = NI_VEC(att_ahead)(type, e), row = NI_VEC(att_row)(type);
#if defined(V16_AVX512)
    if (nq <= NI_ATT_FEW) {
        NI_VEC(att_few)(type, nq, nb, q, e, 0, e, k, e * row, ahead, s, NI_CHUNK, 0);
        return;
    }
#endif
    v16 sum[NI_ATT_Q][4];
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb) sum[j][b] = v16_set1(0.0f);
    for (int64_t i = 0; i < e; i++) {
        NI_ATT_EACH(b, nb) {
            NI_ATT_PREFETCH(k + ((int64_t)b * e + i) * row, ahead);
            v16 key = NI_VEC(att_load)(type, k + ((int64_t)b * e + i) * row);
            const float *x = q + i;
            NI_ATT_AGAIN(nq, nb, x);
            NI_ATT_EACH(j, nq) sum[j][b] = v16_fma(v16_set1(x[j * e]), key, sum[j][b]);
        }
    }
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb) v16_store(s + j * NI_CHUNK + 16 * b, sum[j][b]);
}

/* out[j * ev + 16 b + l] = sum over i = i0 .. i1-1 of p[j * NI_CHUNK + i] * v[(b * NI_CHUNK + i) * 16 + l]. */
V16_FN void NI_VEC(att_values)(const ni_kv_type type, const int nq, const int nb, const float *p, int i0, int i1,
                               const uint8_t *v, int64_t ev, int64_t ahead, float *out) {
    const int64_t row = NI_VEC(att_row)(type);
#if defined(V16_AVX512)
    if (nq <= NI_ATT_FEW) {
        NI_VEC(att_few)(type, nq, nb, p, NI_CHUNK, i0, i1, v, NI_CHUNK * row, ahead, out, ev, 1);
        return;
    }
#endif
    v16 sum[NI_ATT_Q][4];
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb) sum[j][b] = v16_set1(0.0f);
    for (int i = i0; i < i1; i++) {
        NI_ATT_EACH(b, nb) {
            NI_ATT_PREFETCH(v + (b * NI_CHUNK + i) * row, ahead);
            v16 value = NI_VEC(att_load)(type, v + (b * NI_CHUNK + i) * row);
            const float *x = p + i;
            NI_ATT_AGAIN(nq, nb, x);
            NI_ATT_EACH(j, nq) sum[j][b] = v16_fma(v16_set1(x[j * NI_CHUNK]), value, sum[j][b]);
        }
    }
    /* Adding 0 turns a -0 into +0: masked positions, which add +0, then cannot be told from absent ones. */
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb)
            v16_store(out + j * ev + 16 * b, v16_add(sum[j][b], v16_set1(0.0f)));
}

#include "attend_q8_0.h"

/* Scores of one query in place -> probabilities; positions outside lo .. hi of the tile's blocks b0 .. b1 become 0. */
V16_FN void NI_VEC(att_softmax)(float *s, int b0, int b1, int lo, int hi, float cap, float *m, float *l) {
    v16 top = v16_set1(-INFINITY), none = top, zero = v16_set1(0.0f), sum = zero;
    for (int b = b0; b < b1; b++) {
        v16 x = v16_load(s + 16 * b);
        if (cap > 0) x = v16_softcap(x, v16_set1(cap));
        x = v16_select(v16_range(lo - 16 * b, hi - 16 * b), x, none);
        v16_store(s + 16 * b, x);
        top = v16_max(top, x);
    }
    *m = v16_hmax(top);
    top = *m == -INFINITY ? zero : v16_set1(*m);
    for (int b = b0; b < b1; b++) {
        v16 p = v16_exp_neg(v16_sub(v16_load(s + 16 * b), top));     /* exp(-inf) is exactly 0 */
        v16_store(s + 16 * b, p);
        sum = v16_add(sum, p);
    }
    *l = v16_sum(sum);
}

V16_FN void NI_VEC(att_tile_scores)(const ni_kv_type type, const int nq, const float *q, int64_t e, const uint8_t *k, int b,
                                    int b1, float *s) {
    const int nb = NI_ATT_NB(nq);
    const int64_t block = e * NI_VEC(att_row)(type);
    for (; b + nb <= b1; b += nb) NI_VEC(att_scores)(type, nq, nb, q, e, k + b * block, s + 16 * b);
    for (; b < b1; b++) NI_VEC(att_scores)(type, nq, 1, q, e, k + b * block, s + 16 * b);
}

V16_FN void NI_VEC(att_tile_values)(const ni_kv_type type, const int nq, const float *p, int i0, int i1, const uint8_t *values,
                                    const uint8_t *next, int64_t ev, float *acc) {
    const int nb = NI_ATT_NB(nq);
    const int64_t block = NI_CHUNK * NI_VEC(att_row)(type);
    int64_t c = 0;
    for (; c + 16 * nb <= ev; c += 16 * nb)
        NI_VEC(att_values)(type, nq, nb, p, i0, i1, values + c / 16 * block, ev,
                           NI_VEC(att_ahead_of_values)(type, ev, values, next, c / 16 * block), acc + c);
    for (; c < ev; c += 16)
        NI_VEC(att_values)(type, nq, 1, p, i0, i1, values + c / 16 * block, ev,
                           NI_VEC(att_ahead_of_values)(type, ev, values, next, c / 16 * block), acc + c);
}

/* attend for nq <= NI_ATT_Q queries; type and nq are constants in each caller. */
V16_FN void NI_VEC(att_tile)(const ni_kv_type type, const int nq, const float *q, int64_t e, int64_t ev, const uint8_t *k,
                             const uint8_t *v, const uint8_t *next, const int *lo, const int *hi, float cap, float *m, float *l,
                             float *acc, float *s) {
    int i0 = NI_CHUNK, i1 = 0;
    for (int j = 0; j < nq; j++) {
        i0 = lo[j] < i0 ? lo[j] : i0;
        i1 = hi[j] > i1 ? hi[j] : i1;
    }
    const int b0 = i0 / 16, b1 = (i1 + 15) / 16;
    if (type == NI_KV_q8_0) NI_VEC(q8_tile_scores)(nq, q, e, k, b0, b1, s);
    else NI_VEC(att_tile_scores)(type, nq, q, e, k, b0, b1, s);
    for (int j = 0; j < nq; j++) NI_VEC(att_softmax)(s + j * NI_CHUNK, b0, b1, lo[j], hi[j], cap, m + j, l + j);
    if (type == NI_KV_q8_0) NI_VEC(q8_tile_values)(nq, s, b0, b1, lo, hi, i0, i1, v, next, ev, acc);
    else NI_VEC(att_tile_values)(type, nq, s, i0, i1, v, next, ev, acc);
}

/* See kernels.h.  e and ev are multiples of 16.  A query that sees nothing (lo >= hi) gets m = -inf, l = 0, acc = 0,
 * which merge() takes as no part at all.  Key memory of the blocks of 16 positions in use must be readable. */
V16_FN void NI_VEC(attend_any)(const ni_kv_type type, const float *q, int n_q, int64_t e, int64_t ev, const uint8_t *keys,
                               const uint8_t *values, const uint8_t *next, const int *lo, const int *hi, float cap, float *m,
                               float *l, float *acc, float *scratch) {
    /* Tiles of nearly equal size: 8 queries are 4 + 4, not 6 + 2. */
    int left = n_q, tiles = (n_q + NI_ATT_Q - 1) / NI_ATT_Q;
    for (; tiles > 0; tiles--) {
        int n = (left + tiles - 1) / tiles;
#define NI_ATT_CALL(nq) NI_VEC(att_tile)(type, nq, q, e, ev, keys, values, next, lo, hi, cap, m, l, acc, scratch)
#if defined(V16_AVX2) || defined(V16_NEON)
        switch (n) {
        case 1: NI_ATT_CALL(1); break;
        case 2: NI_ATT_CALL(2); break;
        case 3: NI_ATT_CALL(3); break;
        case 4: NI_ATT_CALL(4); break;
        case 5: NI_ATT_CALL(5); break;
        case 6: NI_ATT_CALL(6); break;
        }
#else
        NI_ATT_CALL(n);
#endif
#undef NI_ATT_CALL
        q += n * e, acc += n * ev, lo += n, hi += n, m += n, l += n, left -= n;
    }
}

#define NI_ATTEND(type)                                                                                                      \
    static void NI_VEC(attend_##type)(const float *q, int n_q, int64_t e, int64_t ev, const uint8_t *keys,                    \
                                      const uint8_t *values, const uint8_t *next, const int *lo, const int *hi, float cap,    \
                                      float *m, float *l, float *acc, float *scratch) {                                       \
        NI_VEC(attend_any)(NI_KV_##type, q, n_q, e, ev, keys, values, next, lo, hi, cap, m, l, acc, scratch);                 \
    }
NI_ATTEND(f16)
NI_ATTEND(bf16)
NI_ATTEND(q8_0)
NI_ATTEND(f32)
#undef NI_ATTEND

/* See kernels.h.  A part with m1 = -inf is empty; (m, l, acc) may start as (-inf, 0, 0). */
static void NI_VEC(merge)(float *m, float *l, float *acc, float m1, float l1, const float *acc1, int64_t n) {
    if (m1 == -INFINITY) return;
    float top = *m > m1 ? *m : m1, a = v16_exp_neg1(*m - top), b = v16_exp_neg1(m1 - top);
    *l = __builtin_fmaf(*l, a, l1 * b);
    *m = top;
    v16 va = v16_set1(a), vb = v16_set1(b);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        v16_store(acc + i, v16_fma(v16_load(acc + i), va, v16_mul(v16_load(acc1 + i), vb)));
    if (i < n) {
        v16 y = v16_fma(v16_load_n(acc + i, n - i), va, v16_mul(v16_load_n(acc1 + i, n - i), vb));
        v16_store_n(acc + i, y, n - i);
    }
}
#endif
