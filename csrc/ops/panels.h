/* Many tokens times many row groups, through panels (isa/kernels.h).  For matmul.c and bench/kernels.c.
 *
 * A block of row groups meets a block of tokens slab by slab: the tokens' slab is gathered once, so that it lies in L2 however long a
 * row is, and serves all groups; a group's slab is unpacked once and serves all tokens. */
#ifndef NI_PANELS_H
#define NI_PANELS_H
#include <stdatomic.h>
#include <string.h>
#include "../isa/kernels.h"

enum { NI_PANEL_GROUPS = 32, NI_PANEL_TOKENS = 128 };    /* a block, at most: its sums take half of a small L2 */

/* Behind it lie a block's sums, then its slab of activations. */
typedef struct {
    _Alignas(64) uint8_t q[NI_LONG_SLAB * NI_ROWS];
    float scale[NI_PANEL_SUBS * NI_ROWS], min[NI_PANEL_SUBS * NI_ROWS];
    float f[NI_SLAB * NI_ROWS];
} ni_panel_memory;

/* Of all that is needed for blocks of at most so many tokens. */
static inline size_t ni_panel_bytes(int64_t n_tokens) {
    const size_t t = n_tokens < NI_PANEL_TOKENS ? (size_t)n_tokens : NI_PANEL_TOKENS;
    return sizeof(ni_panel_memory) + t * (2 * NI_PANEL_GROUPS * NI_ROWS * sizeof(float) + NI_SLAB_BYTES);
}

static inline ni_act ni_act_of_token(const ni_act *x, int64_t t) {
    ni_act own = *x;
    if (x->f) own.f += t * x->k;
    if (x->q) own.q += t * x->k, own.d += t * (x->k / 32);
    if (x->m) own.m += t * (x->k / 32);
    if (x->s) own.s += t * (x->k / 16);
    return own;
}

/* A token's values [k0, k1) alone; k0 is a multiple of NI_SLAB. */
static inline void ni_act_from(ni_act *x, int64_t k0, int64_t k1) {
    if (x->f) x->f += k0;
    if (x->q) x->q += k0, x->d += k0 / 32;
    if (x->m) x->m += k0 / 32;
    if (x->s) x->s += k0 / 16;
    x->k = k1 - k0;
}

/* Row groups times 1 to NI_DOTS tokens, more than one only where the table has dots of the type. */
static inline void ni_dots_of(const ni_kernels *k, ni_type type, const uint8_t *packed, int64_t n_groups, const ni_act *x, int n_tokens,
                              float *const *y) {
    if (n_tokens == 1) k->dot[type](packed, n_groups, x, y[0]);
    else k->dots[type](packed, n_groups, x, n_tokens, y);
}

/* Values of K in a panel.  A short panel lies in L1 when it has just been unpacked; a long one saves trips of the sums through memory
 * and the run-up of each tile, and pays from some tokens on. */
static inline int64_t ni_slab_for(const ni_kernels *k, ni_type type, int64_t n_tokens) {
    const int64_t most = k->slab[type] > NI_SLAB ? k->slab[type] : NI_SLAB, slab = n_tokens / 16 * NI_SLAB;
    return slab < NI_SLAB ? NI_SLAB : slab < most ? slab : most;
}

/* Continues acc[n_groups][n_tokens][NI_ROWS], and accm for formats with a minimum, by values [from, to) of K: row groups that lie one
 * after the other, times tokens.  `from` is a multiple of NI_SLAB.  Ends early, with sums of no meaning, once *cancel is set.
 * memory: n_tokens * NI_SLAB_BYTES, 64-byte aligned.
 *
 * A dozen tokens last less than the memory takes to answer, so the slab that comes next is asked for while one is multiplied,
 * in two halves: the multiplications' own loads wait behind a long burst. */
static inline void ni_continue_sums(const ni_kernels *k, ni_type type, const uint8_t *packed, int64_t n_groups, const ni_act *x,
                                    int64_t from, int64_t to, int n_tokens, float *acc, float *accm, ni_panel_memory *mem, uint8_t *memory,
                                    const atomic_int *cancel) {
    ni_panel panel = {mem->q, mem->scale, mem->min, mem->f};
    const int64_t group_bytes = (int64_t)ni_group_bytes(type, x->k), slab = ni_slab_for(k, type, n_tokens);
    const size_t sums = (size_t)n_tokens * NI_ROWS;
    for (int64_t k0 = from; k0 < to; k0 += slab) {
        const int64_t nk = to - k0 < slab ? to - k0 : slab, then = to - k0 - nk < slab ? to - k0 - nk : slab;
        ni_act part;
        k->gather[type](x, k0, nk, n_tokens, memory, &part);
        for (int64_t i = 0; i < n_groups; i++) {
            if (cancel && atomic_load_explicit(cancel, memory_order_relaxed)) return;
            const int last = i + 1 == n_groups;
            const uint8_t *next = last ? packed + ni_group_bytes(type, k0 + nk) : packed + (i + 1) * group_bytes + ni_group_bytes(type, k0);
            const size_t bytes = ni_group_bytes(type, last ? then : nk), half = bytes / 2;
            ni_fetch(next, half);
            k->unpack[type](packed + i * group_bytes, k0, nk, &panel);
            ni_fetch(next + half, bytes - half);
            k->gemm[type](&panel, 0, nk, &part, n_tokens, acc + (size_t)i * sums, accm + (size_t)i * sums);
        }
    }
}

/* Returns acc[n_groups][n_tokens][NI_ROWS], with accm right behind it for formats with a minimum, over all of K.  Ends early as above. */
static inline float *ni_block_times_tokens(const ni_kernels *k, ni_type type, const uint8_t *packed, int64_t n_groups, const ni_act *x,
                                           int n_tokens, ni_panel_memory *mem, const atomic_int *cancel) {
    const size_t all = (size_t)n_groups * (size_t)n_tokens * NI_ROWS;
    float *acc = (float *)(mem + 1), *accm = acc + all;
    memset(acc, 0, (ni_formats[type].kind == NI_PANEL_MIN ? 2 : 1) * all * sizeof *acc);
    ni_continue_sums(k, type, packed, n_groups, x, 0, x->k, n_tokens, acc, accm, mem, (uint8_t *)(accm + all), cancel);
    return acc;
}
#endif
