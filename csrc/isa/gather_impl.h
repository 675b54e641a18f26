/* Slabs of activations as most tables want them: the values of each token moved together and left as they are.  Included after the
 * file's target. */
#ifndef NI_GATHER_IMPL_H
#define NI_GATHER_IMPL_H
#include <string.h>
#include "kernels.h"

/* Float weights: their gemm reads each token in order, so that floats stay where they are. */
__attribute__((unused)) static void gather_f32(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {
    (void)nk, (void)n_tokens, (void)to;
    *slab = (ni_act){.k = x->k, .f = x->f + k0};
}

__attribute__((unused)) static void gather_quants(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab) {
    const int64_t blocks = n_tokens * (nk / 32);
    int8_t *q = (int8_t *)to;
    float *d = (float *)(to + 32 * blocks), *m = d + blocks;
    int16_t *s = (int16_t *)(m + blocks);
    *slab = (ni_act){.k = nk, .q = q, .d = d, .m = x->m ? m : NULL, .s = x->s ? s : NULL};
    for (int64_t t = 0; t < n_tokens; t++) {
        const int64_t at = t * x->k + k0;
        for (int64_t i = 0; i < nk; i += 32) memcpy(q + t * nk + i, x->q + at + i, 32);
        for (int64_t i = 0; i < nk / 32; i++) d[t * nk / 32 + i] = x->d[at / 32 + i];
        for (int64_t i = 0; x->m && i < nk / 32; i++) m[t * nk / 32 + i] = x->m[at / 32 + i];
        for (int64_t i = 0; x->s && i < nk / 16; i++) s[t * nk / 16 + i] = x->s[at / 16 + i];
    }
}
#endif
