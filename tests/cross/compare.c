/* Compares every table of kernels that this CPU runs with the scalar table, bit for bit, without Python: for CPUs that
 * are emulated.  Deterministic: the same build flags give the same inputs on every machine.
 *
 * Prints "tables NAMES", then "NAME empty SLOT TYPE ..." for what the tables compiled here leave empty, then per table that the CPU
 * runs and kernel "NAME KERNEL VALUES-COMPARED", then "scalar HASH": a hash of all scalar results, to be compared between machines.
 * Exits with 1 at the first table whose bits differ. */
#include "../../csrc/formats/records.h"
#include "../../csrc/isa/kernels.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_K = 1024, MOST_GROUPS = 6, MOST_TOKENS = 13, MOST_N = 2100 };

static uint64_t state = 1, hash = 0xcbf29ce484222325u;

static uint64_t draw(void) {   /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
static float uniform(float most) { return ((float)(draw() >> 40) * 0x1p-23f - 1.0f) * most; }
static void floats(float *x, int64_t n, float most) { for (int64_t i = 0; i < n; i++) x[i] = uniform(most); }

static void absorb(const void *p, size_t n) {   /* FNV-1a */
    for (size_t i = 0; i < n; i++) hash = (hash ^ ((const uint8_t *)p)[i]) * 0x100000001b3u;
}

static void same(const void *found, const void *wanted, size_t n, size_t size, const char *table, const char *what,
                 const char *part) {
    for (size_t i = 0; i < n; i++)
        if (memcmp((const char *)found + i * size, (const char *)wanted + i * size, size)) {
            printf("%s %s: %s differs first at %zu of %zu\n", table, what, part, i, n);
            exit(1);
        }
}

#define GUARD 12345.0f
static void bounds(float guard, const char *table, const char *what, const char *part) {
    if (guard == GUARD) return;
    printf("%s %s: %s writes too far\n", table, what, part);
    exit(1);
}

/* ---- matmul ---- */

static struct {
    float f[MOST_TOKENS * MOST_K], d[MOST_TOKENS * MOST_K / 32], m[MOST_TOKENS * MOST_K / 32];
    int8_t q[MOST_TOKENS * MOST_K];
    int16_t s[MOST_TOKENS * MOST_K / 16];
} x;

typedef enum { RANDOM, LARGEST, EXTREME_SCALES, N_KINDS } kind;

static void draw_activations(int64_t k, int n_tokens, kind how) {
    const int64_t n = n_tokens * k;
    floats(x.f, n, 2);
    for (int64_t i = 0; i < n; i++) {
        const int sign = draw() & 1 ? 1 : -1;
        x.q[i] = (int8_t)(how == LARGEST ? 127 * (i / k % 3 == 0 ? 1 : i / k % 3 == 1 ? -1 : sign)
                                         : (int)(draw() % 255) - 127);
    }
    for (int64_t b = 0; b < n / 16; b++) {
        int s = 0;
        for (int i = 0; i < 16; i++) s += x.q[16 * b + i];
        x.s[b] = (int16_t)s;
    }
    for (int64_t b = 0; b < n / 32; b++) {
        x.d[b] = 0.05f + uniform(0.049f);
        x.m[b] = x.d[b] * (float)(x.s[2 * b] + x.s[2 * b + 1]);
    }
}

/* Where the half floats of a file block are; MXFP4's scale is a byte, NVFP4's may be any. */
static const struct { int n, at[2]; } scales[NI_N_TYPES] = {
    [NI_Q4_0] = {1, {offsetof(ni_block_q4_0, d)}},
    [NI_Q4_1] = {2, {offsetof(ni_block_q4_1, d), offsetof(ni_block_q4_1, m)}},
    [NI_Q5_0] = {1, {offsetof(ni_block_q5_0, d)}},
    [NI_Q5_1] = {2, {offsetof(ni_block_q5_1, d), offsetof(ni_block_q5_1, m)}},
    [NI_Q8_0] = {1, {offsetof(ni_block_q8_0, d)}},
    [NI_Q4_K] = {2, {offsetof(ni_block_q4_k, d), offsetof(ni_block_q4_k, dmin)}},
    [NI_Q5_K] = {2, {offsetof(ni_block_q5_k, d), offsetof(ni_block_q5_k, dmin)}},
    [NI_Q6_K] = {1, {offsetof(ni_block_q6_k, d)}},
    [NI_Q2_K] = {2, {offsetof(ni_block_q2_k, d), offsetof(ni_block_q2_k, dmin)}},
    [NI_Q3_K] = {1, {offsetof(ni_block_q3_k, d)}},
    [NI_TQ1_0] = {1, {offsetof(ni_block_tq1_0, d)}},
    [NI_TQ2_0] = {1, {offsetof(ni_block_tq2_0, d)}},
    [NI_Q1_0] = {1, {offsetof(ni_block_q1_0, d)}},
    [NI_Q2_0] = {1, {offsetof(ni_block_q2_0, d)}},
    [NI_IQ4_NL] = {1, {offsetof(ni_block_iq4_nl, d)}},
    [NI_IQ4_XS] = {1, {offsetof(ni_block_iq4_xs, d)}},
    [NI_IQ3_XXS] = {1, {offsetof(ni_block_iq3_xxs, d)}},
    [NI_IQ3_S] = {1, {offsetof(ni_block_iq3_s, d)}},
    [NI_IQ2_XXS] = {1, {offsetof(ni_block_iq2_xxs, d)}},
    [NI_IQ2_XS] = {1, {offsetof(ni_block_iq2_xs, d)}},
    [NI_IQ2_S] = {1, {offsetof(ni_block_iq2_s, d)}},
    [NI_IQ1_S] = {1, {offsetof(ni_block_iq1_s, d)}},
    [NI_IQ1_M] = {1, {offsetof(ni_block_iq1_m, sc)}},
    [NI_IQ4_K] = {1, {offsetof(ni_block_iq4_k, d)}},
    [NI_IQ5_K] = {1, {offsetof(ni_block_iq5_k, d)}},
    [NI_IQ6_K] = {1, {offsetof(ni_block_iq6_k, d)}},
    [NI_IQ3_K] = {1, {offsetof(ni_block_iq3_k, d)}},
    [NI_IQ2_K] = {1, {offsetof(ni_block_iq2_k, d)}},
    [NI_Q6_0] = {1, {offsetof(ni_block_q6_0, d)}},
};

/* IQ1_M has the half in four pieces, each in the upper nibble of a second byte. */
static void put_scale(ni_type t, uint8_t *block, int i, uint16_t h) {
    uint8_t *at = block + scales[t].at[i];
    if (t == NI_IQ1_M)
        for (int j = 0; j < 4; j++) at[2 * j + 1] = (uint8_t)((at[2 * j + 1] & 15) | (h >> 4 * j & 15) << 4);
    else memcpy(at, &h, 2);
}

static void draw_group(ni_type t, int64_t k, int rows, kind how, uint8_t *packed) {
    static const uint16_t extreme[] = {0x7bff, 0xfbff, 0x0001, 0x8001, 0x0000, 0x8000, 0xbc00, 0x0200};
    static const uint8_t ends[] = {0x00, 0x77, 0x7f, 0x80, 0xff}, powers[] = {0, 1, 2, 3, 64, 127, 160, 200};
    static uint8_t file[NI_ROWS * MOST_K * 4];
    const ni_format *f = &ni_formats[t];
    const size_t row_bytes = (size_t)(f->head_bytes + k / f->block * f->block_bytes);
    const uint8_t end = ends[draw() % 5];
    const int n_scales = scales[t].n;
    if (t == NI_F32) floats((float *)file, NI_ROWS * k, 2);
    else
        for (size_t i = 0; i < NI_ROWS * row_bytes; i++) file[i] = how == LARGEST ? end : (uint8_t)draw();
    for (size_t i = 0; t == NI_F16 && i < NI_ROWS * row_bytes; i += 2) file[i + 1] &= 0xbf;   /* finite, below 2 */
    for (size_t i = 0; t == NI_BF16 && i < NI_ROWS * row_bytes; i += 2) file[i + 1] &= 0xbf;
    for (size_t b = 0; n_scales && b < NI_ROWS * row_bytes / (size_t)f->block_bytes; b++)
        for (int i = 0; i < n_scales; i++) {
            const uint16_t h = how == EXTREME_SCALES ? extreme[draw() % 8] : ni_f32_to_f16(uniform(0.02f));
            put_scale(t, file + b * (size_t)f->block_bytes, i, h);
        }
    for (size_t b = 0; t == NI_MXFP4 && b < NI_ROWS * row_bytes / sizeof(ni_block_mxfp4); b++)
        file[b * sizeof(ni_block_mxfp4)] = how == EXTREME_SCALES ? powers[draw() % 8] : (uint8_t)(110 + draw() % 16);
    for (int r = 0; f->head_bytes && r < NI_ROWS; r++) {
        const uint16_t h = how == EXTREME_SCALES ? extreme[draw() % 8] : ni_f32_to_f16(uniform(0.02f));
        const float d = ni_f16_to_f32(h);
        memcpy(file + (size_t)r * row_bytes, f->head_bytes == 4 ? (const void *)&d : &h, (size_t)f->head_bytes);
    }
    f->pack(file, row_bytes, rows, k, packed);
}

typedef struct {
    _Alignas(64) uint8_t q[NI_LONG_SLAB * NI_ROWS];
    float scale[NI_LONG_SLAB], min[NI_LONG_SLAB], f[NI_SLAB * NI_ROWS];
} panel;

/* acc of n_tokens, `chunk` tokens a call. */
static void run_gemm(const ni_kernels *table, ni_type t, const uint8_t *group, int64_t k, int n_tokens, int chunk,
                     float *acc, float *accm) {
    static panel out;
    const int64_t most = table->slab[t] > NI_SLAB ? table->slab[t] : NI_SLAB;
    for (int i = 0; i < n_tokens * NI_ROWS; i++) acc[i] = accm[i] = 0;
    for (int64_t k0 = 0; k0 < k; k0 += most) {
        const int64_t nk = k - k0 < most ? k - k0 : most;
        ni_panel p = {out.q, out.scale, out.min, out.f};
        memset(&out, 0xa5, sizeof out);
        table->unpack[t](group, k0, nk, &p);
        for (int i = 0; i < n_tokens; i += chunk) {
            const int64_t b = i * (k / 32);
            const ni_act part = {.k = k, .f = x.f + i * k, .q = x.q + i * k, .d = x.d + b, .m = x.m + b, .s = x.s + i * (k / 16)};
            const int n = n_tokens - i < chunk ? n_tokens - i : chunk;
            static _Alignas(64) uint8_t memory[MOST_TOKENS * NI_SLAB_BYTES];
            ni_act slab;
            table->gather[t](&part, k0, nk, n, memory, &slab);
            table->gemm[t](&p, 0, nk, &slab, n, acc + NI_ROWS * i, accm + NI_ROWS * i);
        }
    }
}

static void check_panels(const ni_kernels *table, ni_type t, const uint8_t *group, int64_t k) {
    static panel a, b;
    for (int64_t k0 = 0; k0 < k; k0 += NI_SLAB) {
        const int64_t nk = k - k0 < NI_SLAB ? k - k0 : NI_SLAB;
        memset(&a, 0xa5, sizeof a), memset(&b, 0xa5, sizeof b);   /* what lies beyond must stay as it is */
        ni_panel pa = {a.q, a.scale, a.min, a.f}, pb = {b.q, b.scale, b.min, b.f};
        table->unpack[t](group, k0, nk, &pa);
        ni_kernels_scalar.unpack[t](group, k0, nk, &pb);
        same(&a, &b, sizeof a, 1, table->name, ni_formats[t].name, "panel");
    }
}

/* Every number of tokens that a kernel takes at once, against a dot for each. */
static void check_dots(const ni_kernels *table, ni_type t, const uint8_t *packed, int n_groups, int64_t k, int n_tokens, float *one) {
    static float many[NI_DOTS][MOST_GROUPS * NI_ROWS + 1];
    ni_act act[NI_DOTS];
    float *rows[NI_DOTS];
    const int n = n_groups * NI_ROWS;
    for (int m = 2; table->dots[t] && m <= NI_DOTS && m <= n_tokens; m++) {
        for (int i = 0; i < m; i++) {
            const int64_t at = (n_tokens - 1 - i) * k;
            act[i] = (ni_act){.k = k, .f = x.f + at, .q = x.q + at, .d = x.d + at / 32, .m = x.m + at / 32, .s = x.s + at / 16};
            rows[i] = many[i], many[i][n] = GUARD;
        }
        table->dots[t](packed, n_groups, act, m, rows);
        for (int i = 0; i < m; i++) {
            table->dot[t](packed, n_groups, &act[i], one);
            same(many[i], one, (size_t)n, 4, table->name, ni_formats[t].name, "dots");
            bounds(many[i][n], table->name, ni_formats[t].name, "dots");
        }
    }
}

static size_t check_matmul(const ni_kernels *table, ni_type t, int64_t k, int n_groups, int n_tokens, kind how) {
    static uint8_t packed[MOST_GROUPS * NI_ROWS * MOST_K * 4] __attribute__((aligned(64)));
    enum { N = MOST_TOKENS * NI_ROWS };
    static float want[N], wantm[N], got[N + 1], gotm[N + 1];
    static float y[MOST_GROUPS * NI_ROWS + 1], want_y[MOST_GROUPS * NI_ROWS];
    const char *name = ni_formats[t].name;
    const size_t bytes = ni_group_bytes(t, k), n = (size_t)(n_tokens * NI_ROWS);
    const int has_min = ni_formats[t].kind == NI_PANEL_MIN;
    draw_activations(k, n_tokens, how);
    for (int g = 0; g < n_groups; g++)
        draw_group(t, k, g == n_groups - 1 ? 1 + (int)(draw() % NI_ROWS) : NI_ROWS, how, packed + (size_t)g * bytes);
    for (int g = 0; g < n_groups; g++) {
        const uint8_t *group = packed + (size_t)g * bytes;
        check_panels(table, t, group, k);
        run_gemm(&ni_kernels_scalar, t, group, k, n_tokens, n_tokens, want, wantm);
        for (int i = 0; i < NI_ROWS; i++) want_y[NI_ROWS * g + i] = has_min ? want[i] + wantm[i] : want[i];
        for (int chunk = n_tokens; chunk > 0; chunk = chunk > 5 ? 5 : chunk - 1) {
            got[n] = gotm[n] = GUARD;
            run_gemm(table, t, group, k, n_tokens, chunk, got, gotm);
            same(got, want, n, 4, table->name, name, "gemm");
            if (has_min) same(gotm, wantm, n, 4, table->name, name, "gemm's minimum");
            bounds(got[n], table->name, name, "gemm"), bounds(gotm[n], table->name, name, "gemm");
        }
        if (table == &ni_kernels_scalar) absorb(want, n * 4), absorb(wantm, n * 4);
    }
    const ni_act act = {.k = k, .f = x.f, .q = x.q, .d = x.d, .m = x.m, .s = x.s};
    y[n_groups * NI_ROWS] = GUARD;
    table->dot[t](packed, n_groups, &act, y);
    same(y, want_y, (size_t)(n_groups * NI_ROWS), 4, table->name, name, "dot");
    bounds(y[n_groups * NI_ROWS], table->name, name, "dot");
    check_dots(table, t, packed, n_groups, k, n_tokens, y);
    return (size_t)n_groups * NI_ROWS * (size_t)(n_tokens + 1);
}

static void check_type(const ni_kernels *table, ni_type t) {
    static const int64_t lengths[5][6] = {{1, 7, 33, 256, 300, 576}, {32, 64, 256, 288, 576, 1024}, {64, 192, 256, 320, 576, 1024},
                                           {128, 256, 384, 512, 896, 1024}, {256, 512, 1024}};
    const int block = ni_formats[t].block, row = block == 1 ? 0 : block == 32 ? 1 : block == 64 ? 2 : block == 128 ? 3 : 4, n = row == 4 ? 3 : 6;
    size_t count = 0;
    for (int i = 0; i < n; i++)
        for (kind how = RANDOM; how < N_KINDS; how++)
            count += check_matmul(table, t, lengths[row][i], 1 + (i + (int)how) % MOST_GROUPS, 1 + 5 * i % MOST_TOKENS,
                                  how);
    for (int i = 1; i <= MOST_TOKENS; i++)
        count += check_matmul(table, t, lengths[row][1], 1 + i % MOST_GROUPS, i, i % 2 ? RANDOM : LARGEST);
    printf("%s %s %zu\n", table->name, ni_formats[t].name, count);
}

/* ---- vector kernels ---- */

static const float edges[] = {
    0.0f, -0.0f, 1.0f, -1.0f, 1e-45f, -1e-45f, 1.1754944e-38f, 1e-30f, -1e-30f, 1e-8f, -0.3465f, 0.3466f, 10.0f, -10.0f,
    87.0f, -87.2f, -87.3f, -87.31f, 88.5f, 88.72f, 88.73f, -88.72f, 90.0f, -104.0f, 1e4f, -1e4f, 1e30f, -1e30f,
    -0x1.62e42ep+6f};   /* its exp(-x) is the last that is finite */

/* Runs `call` with V, OUT as the table's kernels and output, then as the scalar table's; compares n values. */
#define BOTH(what, T, n, ...)                                                        \
    do {                                                                             \
        static T out_[2][MOST_N + 1];                                                \
        for (int i_ = 0; i_ < 2; i_++) {                                             \
            const struct ni_vec_kernels *V = i_ ? &ni_kernels_scalar.vec : &table->vec; \
            T *OUT = out_[i_];                                                       \
            memset(OUT, 0x5a, sizeof out_[i_]);                                      \
            __VA_ARGS__;                                                             \
            (void)V;                                                                 \
        }                                                                            \
        same(out_[0], out_[1], MOST_N + 1, sizeof(T), table->name, what, "a value");  \
        if (table == &ni_kernels_scalar) absorb(out_[1], (size_t)(n) * sizeof(T));    \
        count += (size_t)(n);                                                        \
    } while (0)

static void check_maps(const ni_kernels *table) {
    static const int sizes[] = {0, 1, 2, 15, 16, 17, 31, 33, 48, 100, 2051};
    static float a[MOST_N], b[MOST_N];
    const int n_edges = (int)(sizeof edges / sizeof *edges);
    size_t count = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int n = sizes[i];
        floats(a, MOST_N, 8), floats(b, MOST_N, 2);
        for (int j = 0; j < n_edges; j++) a[(j + 3 * n) % (n > n_edges ? n : MOST_N)] = edges[j];
        BOTH("silu_mul", float, n, V->silu_mul(a, b, n, OUT));
        BOTH("gelu_mul", float, n, V->gelu_mul(a, b, n, OUT));
        BOTH("sigmoid_mul", float, n, V->sigmoid_mul(a, b, n, OUT));
        BOTH("limited_mul", float, n, V->limited_mul(a, b, 7.0f, n, OUT));
        BOTH("clamped_mul", float, n, V->clamped_mul(a, b, 1.702f, 7.0f, n, OUT));
        BOTH("softcap", float, n, V->softcap(a, 30.0f, n, OUT));
        BOTH("softcap", float, n, V->softcap(a, 0.7f, n, OUT));
        BOTH("scale_mul", float, n, V->scale_mul(b, 0.37f, a, n, OUT));
        BOTH("scale_mul", float, n, V->scale_mul(b, 0.37f, NULL, n, OUT));
        BOTH("add", float, n, V->add(a, b, n, OUT));
        BOTH("sum_squares", float, 1, OUT[0] = V->sum_squares(b, n));
        BOTH("sum", float, 1, OUT[0] = V->sum(b, n));
        BOTH("exp", float, n, V->exp(a, 0.37f, n, OUT));
        BOTH("minus", float, n, V->minus(a, 0.37f, n, OUT));
        BOTH("gelu", float, n, V->gelu(a, n, OUT));
        BOTH("relu_squared", float, n, V->relu_squared(a, n, OUT));
        BOTH("xielu", float, n, V->xielu(a, 0.8f, 1.1f, 0.5f, -1e-6f, n, OUT));
        BOTH("to_f16", uint16_t, n, V->to_f16(a, n, OUT));
        for (int e = -26; e < 18; e += 3) {   /* the range of halves, subnormals and overflow */
            for (int j = 0; j < n; j++) a[j] = ldexpf(uniform(1), e);
            BOTH("to_f16", uint16_t, n, V->to_f16(a, n, OUT));
        }
    }
    for (int h = 0; h < 65536; h += 2048) {   /* all halves but NaN, there and back */
        static uint16_t half[2048];
        for (int i = 0; i < 2048; i++) half[i] = (uint16_t)((h + i) % 0x8000 > 0x7c00 ? 0 : h + i);
        BOTH("from_f16", float, 2048, V->from_f16(half, 2048, OUT));
        ni_kernels_scalar.vec.from_f16(half, 2048, a);
        BOTH("to_f16", uint16_t, 2048, V->to_f16(a, 2048, OUT));
        if (h == 0x7800 || h == 0xf800) continue;
        for (int i = 0; i < 2048; i++) a[i] = i < 2047 ? a[i] / 2 + a[i + 1] / 2 : a[i];   /* the ties */
        BOTH("to_f16", uint16_t, 2048, V->to_f16(a, 2048, OUT));
    }
    printf("%s maps %zu\n", table->name, count);
}

static void check_quantize(const ni_kernels *table) {
    static float a[MOST_N];
    static const float most[] = {1, 1e-30f, 1e30f, 3e38f, 0x1p-119f, 1e-39f, 0};
    size_t count = 0;
    for (size_t i = 0; i < sizeof most / sizeof *most + 1; i++) {
        const int n = 32 * (1 + 9 * (int)i);
        floats(a, n, i < sizeof most / sizeof *most ? most[i] : 1);
        if (i == sizeof most / sizeof *most)   /* ties: scale 1, values and a half */
            for (int j = 0; j < n; j++) a[j] = j % 32 ? (float)(j % 200 - 100) + 0.5f : 127.0f;
        BOTH("quantize q", int8_t, n, V->quantize(a, n, OUT, NULL, NULL, NULL));
        BOTH("quantize d", float, n / 32, V->quantize(a, n, NULL, OUT, NULL, NULL));
        BOTH("quantize m", float, n / 32, V->quantize(a, n, NULL, NULL, OUT, NULL));
        BOTH("quantize s", int16_t, n / 16, V->quantize(a, n, NULL, NULL, NULL, OUT));
    }
    printf("%s quantize %zu\n", table->name, count);
}

static void check_rope(const ni_kernels *table) {
    static const int sizes[] = {0, 2, 6, 16, 20, 32, 48, 80, 128, 256};
    float c[128], s[128], a[256];
    size_t count = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int n = sizes[i];
        floats(c, 128, 1), floats(s, 128, 1), floats(a, 256, 3);
        BOTH("rope_norm", float, n, memcpy(OUT, a, sizeof a); V->rope_norm(OUT, c, s, n));
        BOTH("rope_neox", float, n, memcpy(OUT, a, sizeof a); V->rope_neox(OUT, c, s, n));
    }
    printf("%s rope %zu\n", table->name, count);
}

static void check_storing(const ni_kernels *table) {
    static float a[NI_CHUNK * 128];
    static uint8_t out[2][NI_CHUNK * 128 * sizeof(float) + 1];
    size_t count = 0;
    for (ni_kv_type t = 0; t < NI_N_KV_TYPES; t++)
        for (int64_t width = 16; width <= 128; width += 16) {
            const size_t bytes = (size_t)(NI_CHUNK * ni_kv_bytes(t, width));
            for (int i = 0; i < NI_CHUNK; i++) floats(a + i * width, width, ldexpf(1, i % 40 - 28));
            for (int i = 0; i < width; i++) a[i] = 0, a[width + i] = i % 16 ? (float)(i % 200 - 100) + 0.5f : 127.0f;
            for (int i = 0; i < width; i++) a[2 * width + i] = 1 + (float)(draw() % 4) * 0x1p-9f;     /* ties of bfloat16 */
            for (int value = 0; value < 2; value++) {
                memset(out, 0x5a, sizeof out);
                for (int which = 0; which < 2; which++) {
                    const struct ni_kv_kernels *kv = which ? &ni_kernels_scalar.vec.kv[t] : &table->vec.kv[t];
                    for (int i = 0; i < NI_CHUNK; i++) (value ? kv->store_value : kv->store_key)(a + i * width, width, out[which], i);
                }
                same(out[0], out[1], bytes + 1, 1, table->name, value ? "store_value" : "store_key", "a byte");
                if (table == &ni_kernels_scalar) absorb(out[1], bytes);
                count += bytes;
            }
        }
    printf("%s storing %zu\n", table->name, count);
}

static void check_latent(const ni_kernels *table, size_t *sum) {
    enum { E = 80, MOST_Q = 40 };
    static float q[MOST_Q * E], x[E], scratch[NI_LATENT_SCRATCH(E)];
    static uint8_t rows[NI_CHUNK * E * 4];
    static const int64_t ends[][2] = {{64, 48}, {16, 16}, {80, 32}};
    size_t count = 0;
    for (ni_kv_type t = 0; t < NI_N_KV_TYPES; t++)
        for (int n = 1; n <= MOST_Q; n += n % 16 ? 3 : 1) {
            const int64_t e = ends[n % 3][0], ev = ends[n % 3][1];
            const float cap = n % 2 ? 0.0f : 1.5f;
            int lo[MOST_Q], hi[MOST_Q];
            for (int i = 0; i < NI_CHUNK; i++) {
                floats(x, E, 2);
                ni_kernels_scalar.vec.kv[t].store_value(x, e, rows, i);
            }
            floats(q, MOST_Q * E, n % 4 ? 0.3f : 20.0f);
            for (int j = 0; j < n; j++) {
                lo[j] = j % 5 ? (int)(draw() % NI_CHUNK) : 0;
                hi[j] = j % 7 ? lo[j] + 1 + (int)(draw() % (uint64_t)(NI_CHUNK - lo[j])) : NI_CHUNK;
            }
            if (n > 3) lo[2] = hi[2] = 50;   /* sees nothing */
            BOTH("attend_latent", float, n * (ev + 2),
                 V->kv[t].attend_latent(q, n, e, ev, rows, rows, lo, hi, cap, OUT + n * ev, OUT + n * (ev + 1), OUT, scratch));
        }
    *sum += count;
}

/* What an indexer's attention needs: a list of rows of two chunks, and scores. */
static void check_listed(const ni_kernels *table, size_t *sum) {
    enum { E = 80, MOST_Q = 40, MOST_ROWS = 40 };
    static float q[MOST_Q * E], x[E], scratch[NI_LATENT_SCRATCH(E)];
    static uint8_t rows[2][NI_CHUNK * E * 4], keys[NI_CHUNK * E * 4];
    static const int64_t ends[][2] = {{64, 48}, {16, 16}, {80, 32}};
    size_t count = 0;
    for (ni_kv_type t = 0; t < NI_N_KV_TYPES; t++)
        for (int n = 1; n <= MOST_Q; n += n % 16 ? 3 : 1) {
            const int64_t e = ends[n % 3][0], ev = ends[n % 3][1];
            const int listed = 1 + n % MOST_ROWS, blocks = 1 + n % 16;
            const uint8_t *of[MOST_ROWS];
            int32_t at[MOST_ROWS];
            for (int i = 0; i < 3 * NI_CHUNK; i++) {
                floats(x, E, 2);
                if (i < 2 * NI_CHUNK) ni_kernels_scalar.vec.kv[t].store_value(x, e, rows[i / NI_CHUNK], i % NI_CHUNK);
                else ni_kernels_scalar.vec.kv[t].store_key(x, e, keys, i % NI_CHUNK);
            }
            floats(q, MOST_Q * E, n % 4 ? 0.3f : 20.0f), floats(x, MOST_Q, 1);
            for (int i = 0; i < listed; i++) of[i] = rows[draw() % 2], at[i] = (int32_t)(draw() % NI_CHUNK);
            BOTH("attend_listed", float, n * (ev + 2),
                 V->kv[t].attend_listed(q, n, e, ev, of, at, listed, listed, n % 2 ? 0.0f : 1.5f, OUT + n * ev, OUT + n * (ev + 1), OUT,
                                        scratch));
            BOTH("index", float, 16 * blocks, V->kv[t].index(q, x, n, e, keys, keys, blocks, OUT, scratch));
        }
    *sum += count;
}

static void check_attention(const ni_kernels *table) {
    enum { E = 80, MOST_Q = 14 };
    static float q[MOST_Q * E], x[E], scratch[MOST_Q * (NI_CHUNK + E)];
    static uint8_t keys[NI_CHUNK * E * sizeof(float)], values[NI_CHUNK * E * sizeof(float)];
    static const int64_t ends[][2] = {{64, 64}, {16, 48}, {80, 80}};
    size_t count = 0;
    for (ni_kv_type t = 0; t < NI_N_KV_TYPES; t++)
        for (int n = 1; n <= MOST_Q; n++) {
            const int64_t e = ends[n % 3][0], ev = ends[n % 3][1];
            const float cap = n % 2 ? 0.0f : 1.5f;
            int lo[MOST_Q], hi[MOST_Q];
            for (int i = 0; i < NI_CHUNK; i++) {
                floats(x, E, 2);
                ni_kernels_scalar.vec.kv[t].store_key(x, e, keys, i);
                floats(x, E, 2);
                ni_kernels_scalar.vec.kv[t].store_value(x, ev, values, i);
            }
            floats(q, MOST_Q * E, n % 4 ? 0.3f : 20.0f);
            for (int j = 0; j < n; j++) {
                lo[j] = j % 5 ? (int)(draw() % NI_CHUNK) : 0;
                hi[j] = j % 7 ? lo[j] + 1 + (int)(draw() % (uint64_t)(NI_CHUNK - lo[j])) : NI_CHUNK;
            }
            if (n > 3) lo[2] = hi[2] = 50;   /* sees nothing */
            BOTH("attend", float, n * (ev + 2),
                 V->kv[t].attend(q, n, e, ev, keys, values, keys, lo, hi, cap, OUT + n * ev, OUT + n * (ev + 1), OUT, scratch));
            floats(scratch, ev, 2);   /* what attend leaves there is its own affair */
            BOTH("merge", float, ev + 2, for (int j = 0; j < ev; j++) OUT[j] = q[j]; OUT[ev] = (float)n; OUT[ev + 1] = 2;
                 V->merge(OUT + ev, OUT + ev + 1, OUT, 3.0f, 1.5f, scratch, ev - n));
        }
    check_latent(table, &count);
    check_listed(table, &count);
    /* The least factor that is not 0, alone. */
    floats(scratch, 16, 0);
    BOTH("merge", float, 18, for (int j = 0; j < 16; j++) OUT[j] = q[j]; OUT[16] = -87.3f; OUT[17] = 2;
         V->merge(OUT + 16, OUT + 17, OUT, 0.0f, 0.0f, scratch, 16));
    printf("%s attention %zu\n", table->name, count);
}

static void check_recurrence(const ni_kernels *table) {
    enum { ROWS = 24, MOST_BLOCKS = 6, TOKENS = 5 };
    static float state_[MOST_BLOCKS * ROWS * 16], q[TOKENS * ROWS], k[TOKENS * ROWS], kd[TOKENS * ROWS], decay[TOKENS * ROWS], beta[TOKENS],
        v[TOKENS * MOST_BLOCKS * 16], dt[TOKENS * MOST_BLOCKS * 16], a[MOST_BLOCKS * ROWS * 16], skip[MOST_BLOCKS * 16];
    size_t count = 0;
    for (int i = 0; i < 8 * MOST_BLOCKS; i++) {
        const int64_t blocks = 1 + i % MOST_BLOCKS, columns = 16 * blocks;
        floats(state_, blocks * ROWS * 16, 2), floats(q, TOKENS * ROWS, 1), floats(k, TOKENS * ROWS, 1), floats(kd, TOKENS * ROWS, 1);
        floats(decay, TOKENS * ROWS, 1), floats(beta, TOKENS, 1), floats(v, TOKENS * columns, 2);
        ni_recurrence r = {.rows = ROWS, .blocks = blocks, .n_tokens = i % 3 ? TOKENS : 1, .wide = i / MOST_BLOCKS % 2, .q = q, .k = k, .kd = kd,
                           .decay = decay, .beta = i / MOST_BLOCKS % 4 ? beta : NULL, .delta = i / MOST_BLOCKS % 4 > 1, .v = v, .v_stride = columns, .out_stride = columns};
        static float to[MOST_BLOCKS * ROWS * 16], out[TOKENS * MOST_BLOCKS * 16];
        BOTH("recur out", float, r.n_tokens * columns, r.out = OUT; V->recur(state_, to, &r));
        BOTH("recur state", float, ROWS * 16, r.out = out; V->recur(state_, to, &r);
             memcpy(OUT, to + (blocks - 1) * ROWS * 16, ROWS * 16 * sizeof *to));
    }
    for (int i = 0; i < 2 * MOST_BLOCKS; i++) {
        const int64_t channels = 16 * (1 + i / 2) - i % 2 * 5;
        floats(state_, MOST_BLOCKS * ROWS * 16, 2), floats(a, MOST_BLOCKS * ROWS * 16, 2), floats(v, TOKENS * MOST_BLOCKS * 16, 2);
        floats(q, TOKENS * ROWS, 1), floats(k, TOKENS * ROWS, 1), floats(dt, TOKENS * MOST_BLOCKS * 16, 4), floats(skip, MOST_BLOCKS * 16, 1);
        ni_scan r = {.rows = ROWS, .channels = channels, .n_tokens = i % 3 ? TOKENS : 1, .a = a, .skip = skip, .b = q, .c = k, .x = v, .dt = dt,
                     .x_stride = channels, .dt_stride = channels, .out_stride = channels};
        static float to[MOST_BLOCKS * ROWS * 16], out[TOKENS * MOST_BLOCKS * 16];
        BOTH("scan out", float, r.n_tokens * channels, r.out = OUT; V->scan(state_, to, &r));
        BOTH("scan state", float, ROWS * 16, r.out = out; V->scan(state_, to, &r);
             memcpy(OUT, to + i / 2 * ROWS * 16, ROWS * 16 * sizeof *to));
    }
    for (int n = 1; n < 200; n += 13) {
        const float *x[4] = {v, v + n, q, k};
        floats(v, 480, 3), floats(q, TOKENS * ROWS, 2), floats(state_, 4 * 200, 1);
        const int m = n < TOKENS * ROWS ? n : TOKENS * ROWS;
        for (int how = 0; how < 4; how++)
            BOTH("short_conv", float, m, V->short_conv(x, 2 + how % 3, state_, 200, how % 2 ? state_ + 7 : NULL, how / 2, m, OUT));
        floats(state_, n, 30);
        BOTH("softplus", float, n, V->softplus(state_, n, OUT));
    }
    printf("%s recurrence %zu\n", table->name, count);
}

/* "NAME empty SLOT TYPE ...": the types for which the file of a table leaves a slot empty, if any; a line for each slot. */
static void say_empty(const ni_own_kernels *own) {
    static const char *const slots[] = {"dot", "unpack", "gather", "gemm"};
    for (int s = 0; s < 4; s++) {
        printf("%s empty %s", own->name, slots[s]);
        for (int t = 0; t < NI_N_TYPES; t++) {
            const struct ni_own_type *o = &own->types[t];
            if (s == 0 ? o->dot != NULL : s == 1 ? o->unpack != NULL : s == 2 ? o->gather != NULL : o->gemm != NULL) continue;
            printf(" %s", ni_formats[t].name);
        }
        putchar('\n');
    }
}

static const ni_kernels *named(const char *name) { return ni_isa_select(name) ? NULL : ni_k; }

/* Checks the tables that are named, or else all that this CPU runs. */
int main(int argc, char **argv) {
    char names[256], *next;
    snprintf(names, sizeof names, "%s", ni_isa_available());
    printf("tables %s\n", names);
#define NI_ISA(name, has) say_empty(&ni_own_##name);
#include "../../csrc/isa/isa.def"
#undef NI_ISA
    for (char *name = strtok_r(names, ",", &next); name; name = strtok_r(NULL, ",", &next)) {
        const ni_kernels *table = named(name);
        int wanted = argc == 1;
        for (int i = 1; i < argc; i++) wanted |= !strcmp(argv[i], name);
        if (!table) return 2;
        if (!wanted) continue;
        state = 1;
        for (ni_type t = 0; t < NI_N_TYPES; t++) check_type(table, t);
        check_maps(table);
        check_quantize(table);
        check_rope(table);
        check_storing(table);
        check_attention(table);
        check_recurrence(table);
    }
    printf("scalar %016llx\n", (unsigned long long)hash);
    return 0;
}
