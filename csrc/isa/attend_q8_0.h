/* Attention's two products over q8_0 memory (kv_layout.h), in integers: queries, and probabilities times the scales of the
 * values, become 16-bit numbers, finer than anything they meet; pairs of products are added in 32 bits.
 * Included by attend_impl.h.
 *
 * No sum can overflow: at most NI_CHUNK products of at most 32767 * 127.  Memory at masked positions may be anything: there
 * scores are thrown away, and weights are 0. */
#ifndef NI_ATTEND_Q8_0_H
#define NI_ATTEND_Q8_0_H

#define NI_Q16_TINY 0x1p-100f   /* below it 32767 / top might overflow */

typedef struct { float d; v16 inverse; } NI_VEC(q16);

V16_FN NI_VEC(q16) NI_VEC(q16_of)(v16 top) {
    const float most = v16_hmax(top);
    if (most < NI_Q16_TINY) return (NI_VEC(q16)){0.0f, v16_set1(0.0f)};
    return (NI_VEC(q16)){most / 32767.0f, v16_set1(32767.0f / most)};
}

/* Queries [nq][e] -> xq [nq][e], xd [nq][blocks]. */
V16_FN void NI_VEC(q8_queries)(const int nq, const float *q, int64_t e, int16_t *xq, float *xd) {
    for (int j = 0; j < nq; j++)
        for (int64_t x = 0; x < e; x += 32) {
            const int two = e - x >= 32;
            const v16 a = v16_load(q + j * e + x), b = two ? v16_load(q + j * e + x + 16) : v16_set1(0.0f);
            const NI_VEC(q16) s = NI_VEC(q16_of)(v16_max(v16_abs(a), v16_abs(b)));
            v16i_store_i16(xq + j * e + x, v16_rint(v16_mul(a, s.inverse)));
            if (two) v16i_store_i16(xq + j * e + x + 16, v16_rint(v16_mul(b, s.inverse)));
            *xd++ = s.d + NI_VEC(poison)(a, b);
        }
}

/* sum[j][b] += rows 0 .. n-1 of pairs in m + b * block, times the pairs of x[j]. */
V16_FN void NI_VEC(q8_rows)(const int nq, const int nb, const int16_t *x, int64_t x_stride, int64_t n, const int8_t *m,
                            int64_t block, int64_t ahead, v16i sum[NI_ATT_Q][4]) {
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb) sum[j][b] = v16i_zero();
    for (int64_t i = 0; i < n; i++) {
        NI_ATT_EACH(b, nb) {
            NI_ATT_PREFETCH(m + b * block + i * 32, ahead);
            const v16p row = v16p_load_i8(m + b * block + i * 32);
            NI_ATT_EACH(j, nq) {
                sum[j][b] = v16i_madd(sum[j][b], row, x + j * x_stride + 2 * i);
                NI_ATT_KEEP(sum[j][b]);
            }
        }
    }
}

/* Scores of nb blocks of 16 positions; keys: the first of them. */
V16_FN void NI_VEC(q8_scores)(const int nq, const int nb, const int16_t *xq, const float *xd, int64_t e, const uint8_t *keys,
                              float *s) {
    const int64_t block = 16 * ni_kv_bytes(NI_KV_q8_0, e), blocks = (e + 31) / 32;
    v16 score[NI_ATT_Q][4];
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb) score[j][b] = v16_set1(0.0f);
    for (int64_t x = 0; x < e; x += 32, keys += 16 * (2 + 32)) {
        v16i sum[NI_ATT_Q][4];
        NI_VEC(q8_rows)(nq, nb, xq + x, e, (e - x < 32 ? e - x : 32) / 2, (const int8_t *)keys + 16 * 2, block,
                        NI_VEC(att_ahead)(NI_KV_q8_0, e), sum);
        NI_ATT_EACH(b, nb) {
            const v16 kd = v16_load_f16((const uint16_t *)(keys + b * block));
            NI_ATT_EACH(j, nq)
                score[j][b] = v16_fma(v16_from_i32(sum[j][b]), v16_mul(kd, v16_set1(xd[j * blocks + x / 32])), score[j][b]);
        }
    }
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb) v16_store(s + j * NI_CHUNK + 16 * b, score[j][b]);
}

/* w = p * vd of the blocks b0 .. b1 of 16 positions that the query sees, in 16 bits; the scale. */
V16_FN float NI_VEC(q8_weights)(const float *p, const uint16_t *vd, int b0, int b1, int lo, int hi, int16_t *wq) {
    float w[NI_CHUNK];
    v16 top = v16_set1(0.0f);
    float poison = 0.0f;
    for (int b = b0; b < b1; b++) {
        const v16 x = v16_mul(v16_load(p + 16 * b), v16_load_f16(vd + 16 * b));
        const v16 seen = v16_select(v16_range(lo - 16 * b, hi - 16 * b), x, v16_set1(0.0f));
        top = v16_max(top, seen);
        poison += NI_VEC(poison)(seen, seen);
        v16_store(w + 16 * b, seen);
    }
    const NI_VEC(q16) s = NI_VEC(q16_of)(top);
    for (int b = b0; b < b1; b++) v16i_store_i16(wq + 16 * b, v16_rint(v16_mul(v16_load(w + 16 * b), s.inverse)));
    return s.d + poison;
}

V16_FN void NI_VEC(q8_values)(const int nq, const int nb, const int16_t *wq, const float *wd, int i0, int i1,
                              const uint8_t *q, int64_t ahead, float *out, int64_t ev) {
    v16i sum[NI_ATT_Q][4];
    NI_VEC(q8_rows)(nq, nb, wq + i0, NI_CHUNK, (i1 - i0) / 2, (const int8_t *)q + 16 * i0, 16 * NI_CHUNK, ahead, sum);
    NI_ATT_EACH(j, nq)
        NI_ATT_EACH(b, nb) v16_store(out + j * ev + 16 * b, v16_mul(v16_from_i32(sum[j][b]), v16_set1(wd[j])));
}

V16_FN void NI_VEC(q8_tile_scores)(const int nq, const float *q, int64_t e, const uint8_t *keys, int b0, int b1, float *s) {
    const int nb = NI_ATT_NB(nq);
    const int64_t block = 16 * ni_kv_bytes(NI_KV_q8_0, e);
    float *xd = s + nq * NI_CHUNK;
    int16_t *xq = (int16_t *)(xd + nq * ((e + 31) / 32));
    NI_VEC(q8_queries)(nq, q, e, xq, xd);
    int b = b0;
    for (; b + nb <= b1; b += nb) NI_VEC(q8_scores)(nq, nb, xq, xd, e, keys + b * block, s + 16 * b);
    for (; b < b1; b++) NI_VEC(q8_scores)(nq, 1, xq, xd, e, keys + b * block, s + 16 * b);
}

V16_FN void NI_VEC(q8_tile_values)(const int nq, const float *p, int b0, int b1, const int *lo, const int *hi, int i0, int i1,
                                   const uint8_t *values, const uint8_t *next, int64_t ev, float *acc) {
    const int two = NI_ATT_NB(nq) >= 2 ? 2 : 1;
    int16_t wq[NI_ATT_Q * NI_CHUNK];
    float wd[NI_ATT_Q];
    const uint8_t *first = values;
    for (int64_t x = 0; x < ev; x += 32, values += NI_CHUNK * (2 + 32)) {
        const int64_t ahead = NI_VEC(att_ahead_of_values)(NI_KV_q8_0, ev, first, next, values - first);
        for (int j = 0; j < nq; j++)
            wd[j] = NI_VEC(q8_weights)(p + j * NI_CHUNK, (const uint16_t *)values, b0, b1, lo[j], hi[j], wq + j * NI_CHUNK);
        const uint8_t *rows = values + NI_CHUNK * 2;
        const int half = ev - x < 32;
        /* Pairs start at even positions; the weights beside i0 .. i1 are 0. */
        int c = 0;
        if (!half && two == 2) {
            NI_VEC(q8_values)(nq, two, wq, wd, i0 / 2 * 2, (i1 + 1) / 2 * 2, rows, ahead, acc + x, ev);
            c = 2;
        }
        for (; c < 2 - half; c++)
            NI_VEC(q8_values)(nq, 1, wq, wd, i0 / 2 * 2, (i1 + 1) / 2 * 2, rows + c * 16 * NI_CHUNK, ahead, acc + x + 16 * c,
                              ev);
    }
}
#endif
