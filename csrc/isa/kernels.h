/* The tables of kernels, one per instruction set; one of them is chosen, at import (isa.c).
 *
 * Kernels know no plans, threads or nodes.  They cannot fail and do not allocate.  An instruction set brings the kernels that it does
 * better (ni_own_kernels, below); the slots that it leaves empty are filled at the start of the process (complete.c), so that in a table
 * in use every slot but those of `dots` holds a kernel.
 *
 * Bits: all tables give the same bits.  The formulas below fix, for each output, one order of float operations, with
 * fused multiply-adds exactly where fma() is written and nowhere else (-ffp-contract=off); integer sums are exact, so
 * their order is free.  A lane is one row (matmul) or one of 16 fixed partial sums (vector kernels, see v16.h).
 */
#ifndef NI_KERNELS_H
#define NI_KERNELS_H
#include "../formats/formats.h"
#include "kv_layout.h"
#include "recurrence.h"
#include "target.h"

/* Activations of some tokens that a matmul reads.  Quantised in blocks of 32: x ~ d * q, |q| <= 127.
 * For token t: f + t*k, q + t*k, d + t*(k/32), m + t*(k/32), s + t*(k/16).  Parts that no kernel in use needs are NULL. */
typedef struct {
    int64_t k;          /* values per token */
    const float *f;     /* the floats (float weights) */
    const int8_t *q;    /* quants */
    const float *d;     /* scale per 32 */
    const float *m;     /* d * sum of the 32 quants, for formats with a minimum */
    const int16_t *s;   /* sum of quants per 16, for formats with an offset or nested minimums */
    const int32_t *words, *start;   /* in a slab only: what a table made of q for its own gemm */
} ni_act;

/* A slab of one row group, unpacked for the GEMM: n_blocks sub-blocks of `sub` values.
 * q: [n_blocks][sub/4][NI_ROWS][4] bytes; scale, min: [n_blocks][NI_ROWS] floats.
 * Float formats use f: [k][NI_ROWS] floats instead. */
typedef struct {
    uint8_t *q;
    float *scale;       /* nested: sc, a whole number */
    float *min;         /* what is added, value = scale * q + min: m, or -(dmin * mn); nested: [NI_ROWS], its d */
    float *f;           /* nested with minimums: [NI_ROWS] dmin, then [16][NI_ROWS] mn, whole numbers */
} ni_panel;

#define NI_SLAB 256         /* values of K in a panel, unless a table's `slab` allows more; slabs start at multiples of it */
#define NI_LONG_SLAB 512    /* values of K in a panel, at most; with sub-blocks of 32 only */
#define NI_PANEL_SUBS (NI_LONG_SLAB / 32 > NI_SLAB / 16 ? NI_LONG_SLAB / 32 : NI_SLAB / 16)   /* sub-blocks in a panel, at most */
#define NI_SLAB_BYTES (NI_LONG_SLAB / 4 * 5)   /* of memory per token for a slab of activations, at most */

/* Decode: y[16 g + r] for n_groups row groups, one token.  Streams the packed bytes once, in order.
 *
 * Quantised, but for nested scales: per sub-block b of 32 values (NVFP4: 16), in order:
 *   isum = sum q * xq                          (minus offset * s where the format has an offset)
 *   acc  = fma((float)isum, scale_b * d_x, acc)
 *   accm = fma(min_b, m_x, accm)               (formats with a minimum only)
 *   y = acc, or acc + accm for formats with a minimum.
 *   scale_b = d, or d * sc, or what MXFP4 and NVFP4 have for d (formats/table4.h); min_b = m, or -(dmin * mn).
 * Nested (Q6_K, Q3_K): per block of 256, whose sub-blocks of 16 have scales sc, total starts at 0; per 32 values, in order:
 *   isum  = sum sc * (q - offset) * xq         (below 2^24, so the float is exact)
 *   total = fma((float)isum, d_x, total)
 *   then acc = fma(total, d, acc); y = acc.
 * Nested with minimums (Q2_K): the same, and beside it totalm = fma((float)(sum mn * s), d_x, totalm);
 *   then acc = fma(total, d, acc); acc = fma(-totalm, dmin, acc); y = acc.
 * Where quants are indices into a table q is the value there.
 * Float: acc = fma(w, x, acc) for k = 0, 1, 2 ...; y = acc. */
typedef void ni_dot(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y);

/* The same of 2 to NI_DOTS tokens, each with activations of its own, x[t], and rows of its own, y[t]: bytes are read and unpacked once
 * for all of them. */
enum { NI_DOTS = 4 };
typedef void ni_dots(const uint8_t *w, int64_t n_groups, const ni_act *x, int n_tokens, float *const *y);

/* Unpacks k0 .. k0 + nk of one row group into a panel.  k0 is a multiple of NI_SLAB; nk at most NI_SLAB, or NI_LONG_SLAB with sub-blocks
 * of 32.  A type has one form of panel, whatever the table. */
typedef void ni_unpack(const uint8_t *group, int64_t k0, int64_t nk, ni_panel *p);

/* Moves values k0 .. k0 + nk of x together, the tokens one after the other, in the form that this table's gemm of the same type
 * reads: a slab, whose k says how far apart its tokens lie.  It serves many row groups.  `to`: n_tokens * NI_SLAB_BYTES, 64-byte
 * aligned; the slab may point there and into x. */
typedef void ni_gather(const ni_act *x, int64_t k0, int64_t nk, int n_tokens, uint8_t *to, ni_act *slab);

/* Prefill: multiplies the panel with tokens t = 0 .. n_tokens-1 of the slab x, values k0 .. k0 + nk of it (k0 is 0 for all callers), and
 * continues their sums acc[t][NI_ROWS] (and accm[t][NI_ROWS] for formats with a minimum), by the formulas of ni_dot.  The caller
 * clears the sums before the first slab and adds accm to acc after the last. */
typedef void ni_gemm(const ni_panel *p, int64_t k0, int64_t nk, const ni_act *x, int n_tokens, float *acc, float *accm);

typedef struct ni_kernels {
    const char *name;   /* "scalar", "avx2", ... */

    ni_dot *dot[NI_N_TYPES];
    ni_dots *dots[NI_N_TYPES];  /* NULL: a dot for each token */
    ni_unpack *unpack[NI_N_TYPES];
    ni_gather *gather[NI_N_TYPES];
    ni_gemm *gemm[NI_N_TYPES];

    /* Up to how many tokens a dot for each is cheaper than unpack and gemm; 0 counts as 1. */
    int few[NI_N_TYPES];

    /* How long a panel gather and gemm take, a multiple of NI_SLAB up to NI_LONG_SLAB; 0 counts as NI_SLAB. */
    int slab[NI_N_TYPES];

    /* Vector kernels: vec_impl.h */
    struct ni_vec_kernels {
        /* Quantises n values (a multiple of 32): per block amax = max |x|, d = amax / 127, q = rint(x * (127 / amax)) (ties to even;
         * all zero if amax is 0), s = sums of 16, m = d * (float)(sum of 32); of a block with an x that is not finite d and m are NaN.
         * Writes the parts that are not NULL. */
        void (*quantize)(const float *x, int64_t n, int8_t *q, float *d, float *m, int16_t *s);
        /* Sum of squares in 16 partial sums: lane l takes x[l], x[l+16] ...; each fma(x, x, s_l); then a fixed tree. */
        float (*sum_squares)(const float *x, int64_t n);
        /* Sum in the same order: s_l + x. */
        float (*sum)(const float *x, int64_t n);
        /* y = x - c */
        void (*minus)(const float *x, float c, int64_t n, float *y);
        /* y = x * scale * w   (w may be NULL: y = x * scale) */
        void (*scale_mul)(const float *x, float scale, const float *w, int64_t n, float *y);
        void (*add)(const float *x, const float *y, int64_t n, float *out);
        /* y = exp(x - c) */
        void (*exp)(const float *x, float c, int64_t n, float *y);
        /* out = silu(g) * u;  silu(g) = g / (1 + exp(-g)) */
        void (*silu_mul)(const float *g, const float *u, int64_t n, float *out);
        /* out = gelu(g) * u, tanh form: 0.5 g (1 + tanh(sqrt(2/pi) (g + 0.044715 g^3))) */
        void (*gelu_mul)(const float *g, const float *u, int64_t n, float *out);
        /* y = gelu(x) */
        void (*gelu)(const float *x, int64_t n, float *y);
        /* y = max(x, 0)^2 */
        void (*relu_squared)(const float *x, int64_t n, float *y);
        /* y = x (ap x + beta) for x > 0, an (exp(min(x, eps)) - 1 - x) + beta x for others; eps <= 0 */
        void (*xielu)(const float *x, float ap, float an, float beta, float eps, int64_t n, float *y);
        /* out = u / (1 + exp(-g)) */
        void (*sigmoid_mul)(const float *g, const float *u, int64_t n, float *out);
        /* out = a / (1 + exp(-alpha a)) * (b + 1), a = min(g, limit), b = u from -limit to limit */
        void (*clamped_mul)(const float *g, const float *u, float alpha, float limit, int64_t n, float *out);
        /* out = min(silu(g), limit) * b, b = u from -limit to limit */
        void (*limited_mul)(const float *g, const float *u, float limit, int64_t n, float *out);
        /* y = c * tanh(x / c) */
        void (*softcap)(const float *x, float c, int64_t n, float *y);
        /* Rotates one head of n_rot values in place by cos/sin [n_rot/2].  norm: pairs (2i, 2i+1); neox: (i, i + n_rot/2). */
        void (*rope_norm)(float *x, const float *cos, const float *sin, int64_t n_rot);
        void (*rope_neox)(float *x, const float *cos, const float *sin, int64_t n_rot);
        /* Half floats to and from floats, n any. */
        void (*to_f16)(const float *x, int64_t n, uint16_t *y);
        void (*from_f16)(const uint16_t *x, int64_t n, float *y);
        /* y = log(1 + exp(x)) */
        void (*softplus)(const float *x, int64_t n, float *y);
        /* y = sum over taps j = 0, 1 ... of w[j * stride] x[j], by fma in their order, from bias (NULL: 0) on; then silu(y) if asked for. */
        void (*short_conv)(const float *const *x, int taps, const float *w, int64_t stride, const float *bias, int silu, int64_t n,
                           float *y);
        /* Recurrences over a state (recurrence.h). */
        void (*recur)(const float *from, float *to, const ni_recurrence *r);
        void (*scan)(const float *from, float *to, const ni_scan *r);
        /* Folds part (m1, l1, acc1) into (m, l, acc) of n values:
         *   mn = max(m, m1), a = exp(m - mn), b = exp(m1 - mn); l = fma(l, a, l1*b); acc = fma(acc, a, acc1*b); m = mn */
        void (*merge)(float *m, float *l, float *acc, float m1, float l1, const float *acc1, int64_t n);
        /* For the sampler (sample_impl.h), over blocks of 32 of n logits, a multiple of 32: the greatest key of each block, and low and high,
         * which go as far down and up as keys do. */
        void (*sample_keys)(const float *x, int64_t n, int32_t *most, int32_t *low, int32_t *high);
        /* The sum of each block's weights exp((x - max) * inverse_t), x <= max. */
        void (*sample_masses)(const float *x, int64_t n, float max, float inverse_t, double *mass);
        /* w = exp((value - max) * inverse_t) of keys of values <= max. */
        void (*sample_weigh)(const int32_t *key, int64_t n, float max, float inverse_t, float *w);
        /* Lists the logits with a key >= least, in order, and returns their number; most: each block's greatest key.  There is room for n. */
        int64_t (*sample_collect)(const float *x, int64_t n, const int32_t *most, int32_t least, int32_t *id, int32_t *key);
        /* By type of the KV memory; kv_layout.h says how a chunk of one kv-head lies. */
        struct ni_kv_kernels {
            /* Stores position pos of the chunk.  f32: as it is.  f16, bf16: rounded to nearest, ties to even.  q8_0: d and q as quantize gives them,
             * d then rounded to a half. */
            void (*store_key)(const float *key, int64_t e, uint8_t *keys, int pos);
            void (*store_value)(const float *value, int64_t ev, uint8_t *values, int pos);
            /* Attention of n_q queries (q: [n_q][e], already scaled) with one chunk of one kv-head.
             * Query j sees positions lo[j] <= i < hi[j] of the chunk (lo < hi).  Scores s; capped if cap > 0; m = max s;
             * p = exp(s - m); l = sum p (16 lanes, fixed tree); acc = sum p_i v_i.
             *   f16, bf16, f32: s = fma(q[x], k[x], s) for x = 0, 1 ...;  acc[x] = fma(p_i, v_i[x], acc[x]) for i = 0, 1, ...
             *   q8_0, for each block of 32 values (or the last 16) in order:
             *     (xq, xd) = the query's block in 16 bits;  s = fma((float)sum of xq * kq, kd * xd, s)
             *     (wq, wd) = all w_i = p_i * vd_i of the chunk in 16 bits;  acc[x] = (float)sum of wq_i * vq_i[x] * wd
             *   where 16 bits means: top = max |w|, q = rint(w * (32767 / top)), d = top / 32767; all 0 if top < 2^-100.
             * Writes part m[j], l[j], acc[j][ev].  Masked positions count exactly as if they were not there.
             * next: keys that will be read after this chunk, to be fetched meanwhile; `keys` again where there are none.
             * scratch: n_q * (NI_CHUNK + e) floats. */
            void (*attend)(const float *q, int n_q, int64_t e, int64_t ev, const uint8_t *keys, const uint8_t *values,
                           const uint8_t *next, const int *lo, const int *hi, float cap, float *m, float *l, float *acc,
                           float *scratch);
            /* The same with a chunk of latent rows, whose first ev of e columns are the values.
             *   s = fma(q[x], k[x], s) for x = 0, 1 ...;  l = p_i + l and acc[x] = fma(p_i, v_i[x], acc[x]) for i = 0, 1, ...; all
             *   start at +0, s and acc end with + 0; of q8_0 the numbers are the floats d * q.
             * scratch: NI_LATENT_SCRATCH(e) floats. */
            void (*attend_latent)(const float *q, int n_q, int64_t e, int64_t ev, const uint8_t *rows, const uint8_t *next,
                                  const int *lo, const int *hi, float cap, float *m, float *l, float *acc, float *scratch);
            /* The same with n <= NI_CHUNK rows of a list, row at[i] of the chunk of[i], in the order of the list, all of which every query
             * sees: by the same formulas, so that the rows 0, 1, ... of one chunk give the bits of attend_latent.
             * ahead: so many entries the list has, n or more; those after the n-th will be wanted soon. */
            void (*attend_listed)(const float *q, int n_q, int64_t e, int64_t ev, const uint8_t *const *of, const int32_t *at, int n,
                                  int ahead, float cap, float *m, float *l, float *acc, float *scratch);
            /* Scores of positions 0 .. 16 blocks - 1 of a chunk of keys by the n_q heads of an indexer (q: [n_q][e], with weights w):
             *   scores[i] = fma(max(s, 0), w[j], scores[i]) for j = 0, 1, ..., s = fma(q_j[x], k_i[x], s) for x = 0, 1 ...; all start at +0,
             *   of q8_0 the numbers are the floats d * q.
             * next: as of attend.  scratch: NI_INDEX_SCRATCH(e) floats. */
            void (*index)(const float *q, const float *w, int n_q, int64_t e, const uint8_t *keys, const uint8_t *next, int blocks,
                          float *scores, float *scratch);
        } kv[NI_N_KV_TYPES];
    } vec;
} ni_kernels;

/* What an instruction set brings of its own: isa/<name>.c. */
typedef struct {
    const char *name;
    /* A line per type with what there is; the rest stays NULL and 0.  gather and gemm come together or not at all. */
    struct ni_own_type {
        ni_dot *dot;
        ni_unpack *unpack;
        ni_gather *gather;
        ni_gemm *gemm;
        int few, slab;
    } types[NI_N_TYPES];
    ni_dots *dots[NI_N_TYPES];      /* where there are any */
    ni_dot *const *panel_dots;      /* for types without a dot: panel_dots.h */
    struct ni_vec_kernels vec;      /* complete */
} ni_own_kernels;

/* Makes the complete table, in which an empty slot is filled with
 *   unpack          the scalar table's;
 *   gather, gemm    those of a type of the same set whose panels have the same kind, sub-blocks and offset, and quants that reach as far;
 *                   if there is none, the scalar table's;
 *   dot             unpack and gemm of the table, one token. */
void ni_complete(ni_kernels *table, const ni_own_kernels *own);

/* y = W x for one token, through panels: what a dot does, and the dot of the types that have none. */
void ni_dot_by_panels(const ni_kernels *table, ni_type type, const uint8_t *w, int64_t n_groups, const ni_act *x, float *y);

/* Complete from the start of the process. */
#define NI_ISA(name, has) extern ni_kernels ni_kernels_##name; extern const ni_own_kernels ni_own_##name;
#include "isa.def"
#undef NI_ISA

/* How far ahead of the bytes in use dots of long records ask for more; 0: not at all, for the hardware does better alone.  Set when the
 * library is loaded, by the CPU (isa.c). */
extern int ni_ahead;

/* Asks for the bytes of a record that lie so far ahead.  Beyond the last row they may be anything: asking does no harm. */
static inline void ni_ask_ahead(const uint8_t *w, int bytes) {
    if (ni_ahead)
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch(w + ni_ahead + i, 0, 3);
}

/* The table in use.  Set once by ni_isa_select(); scalar before that. */
extern const ni_kernels *ni_k;

/* Chooses the best table that this CPU runs, or the one named (NULL: best).  Returns 0, or -1 if the name is unknown or the
 * CPU lacks it. */
int ni_isa_select(const char *name);

/* Names of the tables that this CPU runs, best first, separated by commas. */
const char *ni_isa_available(void);
#endif
