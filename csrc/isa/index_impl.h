/* Scores of an indexer's heads for the positions of a chunk (kernels.h), over v16.  Included by vec_impl.h.
 *
 * Keys lie as attention's (kv_layout.h): 16 positions side by side, so that a lane is a position, and what a head adds to a score needs
 * no sum over lanes.  All heads meet the same keys: their numbers become floats once, in strips that stay in L1. */
#ifndef NI_INDEX_IMPL_H
#define NI_INDEX_IMPL_H
#include "attend_impl.h"

/* Keys of nb blocks of 16 positions as floats [nb][e][16 positions].  What lies `ahead` bytes behind them will be wanted soon. */
V16_FN void NI_VEC(index_widen)(const ni_kv_type type, int nb, int64_t e, const uint8_t *keys, int64_t ahead, float *to) {
    const int64_t row = ni_kv_bytes(type, 16);
    if (type != NI_KV_q8_0) {
        for (int64_t i = 0; i < nb * e; i++, keys += row, to += 16) {
            if (i * row % 64 == 0) NI_ATT_PREFETCH(keys, ahead);
            v16_store(to, NI_VEC(att_load)(type, keys));
        }
        return;
    }
    for (int b = 0; b < nb; b++)
        for (int64_t x = 0; x < e; x += 32) {
            const v16 d = v16_load_f16((const uint16_t *)keys);
            NI_ATT_PREFETCH(keys, ahead);
            keys += 16 * 2;
            for (int64_t i = x; i < e && i < x + 32; i += 2, keys += 32, to += 32) {
                if (i % 4 == 0) NI_ATT_PREFETCH(keys, ahead);
                const v16p pair = v16p_load_i8((const int8_t *)keys);
                v16_store(to, v16_mul(v16_from_i32(v16p_even(pair)), d));
                v16_store(to + 16, v16_mul(v16_from_i32(v16p_odd(pair)), d));
            }
        }
}

/* Adds what nq heads say of nb blocks of 16 positions. */
V16_FN void NI_VEC(index_heads)(const int nq, const int nb, const float *q, const float *w, int64_t e, const float *keys, float *scores) {
    v16 sum[NI_ATT_Q][4];
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb) sum[j][b] = v16_set1(0.0f);
    for (int64_t i = 0; i < e; i++) {
        NI_ATT_EACH(b, nb) {
            const v16 key = v16_load(keys + ((int64_t)b * e + i) * 16);
            const float *x = q + i;
            NI_ATT_AGAIN(nq, nb, x);
            NI_ATT_EACH(j, nq) sum[j][b] = v16_fma(v16_set1(x[j * e]), key, sum[j][b]);
        }
    }
    NI_ATT_EACH(b, nb) {
        v16 score = v16_load(scores + 16 * b);
        NI_ATT_EACH(j, nq) score = v16_fma(v16_max(sum[j][b], v16_set1(0.0f)), v16_set1(w[j]), score);
        v16_store(scores + 16 * b, score);
    }
}

/* The same for all nb blocks of a strip. */
V16_FN void NI_VEC(index_strip)(const int nq, int nb, const float *q, const float *w, int64_t e, const float *keys, float *scores) {
    const int most = NI_ATT_NB(nq);
    int b = 0;
    for (; b + most <= nb; b += most) NI_VEC(index_heads)(nq, most, q, w, e, keys + b * 16 * e, scores + 16 * b);
    for (; b < nb; b++) NI_VEC(index_heads)(nq, 1, q, w, e, keys + b * 16 * e, scores + 16 * b);
}

V16_FN void NI_VEC(index_any)(const ni_kv_type type, const float *q, const float *w, int n_q, int64_t e, const uint8_t *keys,
                              const uint8_t *next, int blocks, float *scores, float *scratch) {
    const int64_t block = 16 * ni_kv_bytes(type, e);
    for (int b = 0; b < blocks; b += NI_INDEX_BLOCKS) {
        const int nb = blocks - b < NI_INDEX_BLOCKS ? blocks - b : NI_INDEX_BLOCKS;
        const int64_t ahead = b + nb < blocks ? nb * block : (int64_t)((uintptr_t)next - (uintptr_t)(keys + b * block));
        NI_VEC(index_widen)(type, nb, e, keys + b * block, ahead, scratch);
        for (int i = 0; i < nb; i++) v16_store(scores + 16 * (b + i), v16_set1(0.0f));
        /* Tiles of nearly equal size, as in attend_any. */
        int tiles = (n_q + NI_ATT_Q - 1) / NI_ATT_Q, at = 0;
        for (; tiles > 0; tiles--) {
            const int n = (n_q - at + tiles - 1) / tiles;
#define NI_INDEX_CALL(nq) NI_VEC(index_strip)(nq, nb, q + at * e, w + at, e, scratch, scores + 16 * b)
#if defined(V16_AVX2) || defined(V16_NEON)
            switch (n) {
            case 1: NI_INDEX_CALL(1); break;
            case 2: NI_INDEX_CALL(2); break;
            case 3: NI_INDEX_CALL(3); break;
            case 4: NI_INDEX_CALL(4); break;
            case 5: NI_INDEX_CALL(5); break;
            case 6: NI_INDEX_CALL(6); break;
            }
#else
            NI_INDEX_CALL(n);
#endif
#undef NI_INDEX_CALL
            at += n;
        }
    }
}

#define NI_KV(type)                                                                                                               \
    static void NI_VEC(index_##type)(const float *q, const float *w, int n_q, int64_t e, const uint8_t *keys, const uint8_t *next, \
                                     int blocks, float *scores, float *scratch) {                                                 \
        NI_VEC(index_any)(NI_KV_##type, q, w, n_q, e, keys, next, blocks, scores, scratch);                                       \
    }
#include "kv.def"
#undef NI_KV
#endif
