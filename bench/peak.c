/* Peak rate of the multiply-adds that the weight types need, on n threads.  Built and run by peak.py.
 *
 *   peak                                  prints the names of the instruction sets that this CPU runs, one a line
 *   peak ISA THREADS MILLISECONDS TYPE... prints "TYPE MIX RATE" for every mix of instructions that serves the type:
 *                                         multiply-adds per second of all threads together
 *
 * A mix is what the integer (or float) inner product of 8 or 16 rows must do per 32 values of K: multiply, and add as
 * narrowly as the range of the quants allows.  Everything is in registers: nothing is loaded, unpacked or scaled, so
 * no kernel can be faster with these instructions.  Rates are per CPU second, as in kernels.c. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    const char *isa, *types, *name;   /* types: each between spaces */
    double macs;                      /* of one round of `run` */
    void (*run)(int64_t rounds, uint8_t bytes[3][64]);
} mix;

#if defined(__x86_64__)
#include <immintrin.h>

/* The compiler must neither know a value nor keep one for later; no instruction. */
#define OPAQUE(v) __asm__ volatile("" : "+v"(v))

/* Defines `name`: `chains` independent sums, over whose chain c `step` goes once per pass; `steps` passes are a round.
 * It sees the weights w, the activations x, ones, the passing value v, and the sums sum[c] and wide[c].  What the
 * bytes are does not matter, but that they are not zero: those would take less power. */
#define MIX(name, isa, vector, chains, steps, step)                                           \
    __attribute__((target(isa), noinline)) static void name(int64_t rounds, uint8_t bytes[3][64]) { \
        vector sum[chains], wide[chains], w, x, ones, v;                                      \
        memcpy(&w, bytes[0], sizeof w), memcpy(&x, bytes[1], sizeof x), memcpy(&ones, bytes[2], sizeof ones); \
        v = x, (void)v;                                                                       \
        _Pragma("GCC unroll 24") for (int c = 0; c < chains; c++) sum[c] = wide[c] = w;       \
        for (int64_t i = 0; i < rounds; i++)                                                  \
            _Pragma("GCC unroll 8") for (int s = 0; s < steps; s++)                           \
                _Pragma("GCC unroll 24") for (int c = 0; c < chains; c++) {                   \
                    OPAQUE(w);                                                                \
                    OPAQUE(x);                                                                \
                    step                                                                      \
                    OPAQUE(sum[c]);                                                           \
                }                                                                             \
        _Pragma("GCC unroll 24") for (int c = 0; c < chains; c++) { OPAQUE(sum[c]); OPAQUE(wide[c]); } \
    }

/* Unsigned quants: a pair of products is at most 2 * 127 * max_q, so 16 bits hold 8 pairs of 4-bit quants and 4 of
 * 5-bit; 4 of 6-bit too, in sums that may wrap because they start with what makes up for the offset of 32. */
#define UNSIGNED(name, pairs, first)                                                          \
    MIX(name, "avx2", __m256i, 6, pairs, {                                                    \
        v = _mm256_maddubs_epi16(w, x);                                                       \
        sum[c] = s ? _mm256_add_epi16(sum[c], v) : first;                                     \
        if (s == pairs - 1) wide[c] = _mm256_add_epi32(wide[c], _mm256_madd_epi16(sum[c], ones)); \
    })
UNSIGNED(avx2_4_bits, 8, v)
UNSIGNED(avx2_5_bits, 4, v)
UNSIGNED(avx2_6_bits, 4, _mm256_add_epi16(ones, v))
/* Signed 8 bits: one pair fills 16 bits; or all in words. */
MIX(avx2_sign, "avx2", __m256i, 10, 1, {
    v = _mm256_madd_epi16(_mm256_maddubs_epi16(w, _mm256_sign_epi8(x, w)), ones);
    sum[c] = _mm256_add_epi32(sum[c], v);
})
MIX(avx2_words, "avx2", __m256i, 12, 1, sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(w, x));)
MIX(avx2_float, "avx2,fma", __m256, 12, 1, sum[c] = _mm256_fmadd_ps(w, x, sum[c]);)
#if __GNUC__ >= 11   /* older ones do not know it */
MIX(avxvnni_bytes, "avx2,avxvnni", __m256i, 12, 1, sum[c] = _mm256_dpbusd_avx_epi32(sum[c], w, x);)
#endif
MIX(avx512_bytes, "avx512f,avx512vnni", __m512i, 24, 1, sum[c] = _mm512_dpbusd_epi32(sum[c], w, x);)
MIX(avx512_float, "avx512f", __m512, 24, 1, sum[c] = _mm512_fmadd_ps(w, x, sum[c]);)

#define FLOATS " F32 F16 BF16 "
#define QUANTS " Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K "
static const mix mixes[] = {
    {"avx512", QUANTS, "vpdpbusd", 24 * 64, avx512_bytes},
    {"avx512", FLOATS, "vfmadd", 24 * 16, avx512_float},
#if __GNUC__ >= 11
    {"avxvnni", QUANTS, "vpdpbusd", 12 * 32, avxvnni_bytes},
    {"avxvnni", FLOATS, "vfmadd", 12 * 8, avx2_float},
#endif
    {"avx2", " Q4_0 Q4_1 Q4_K ", "8*vpmaddubsw+7*vpaddw+vpmaddwd+vpaddd", 6 * 8 * 32, avx2_4_bits},
    {"avx2", " Q5_0 Q5_1 Q5_K ", "4*vpmaddubsw+3*vpaddw+vpmaddwd+vpaddd", 6 * 4 * 32, avx2_5_bits},
    {"avx2", " Q6_K ", "4*vpmaddubsw+4*vpaddw+vpmaddwd+vpaddd", 6 * 4 * 32, avx2_6_bits},
    {"avx2", " Q8_0 ", "vpsignb+vpmaddubsw+vpmaddwd+vpaddd", 10 * 32, avx2_sign},
    {"avx2", " Q8_0 ", "vpmaddwd+vpaddd", 12 * 16, avx2_words},
    {"avx2", FLOATS, "vfmadd", 12 * 8, avx2_float},
};
enum { N_MIXES = sizeof mixes / sizeof *mixes };

static int runs(const char *isa) {
    if (!strcmp(isa, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
#if __GNUC__ >= 11
    if (!strcmp(isa, "avxvnni")) return __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("fma");
#endif
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#else
enum { N_MIXES = 0 };
static const mix mixes[1];
static int runs(const char *isa) { return isa != isa; }
#endif

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
    pthread_t thread;
    double rate;
} worker;

static struct {
    const mix *what;
    double seconds;
    pthread_barrier_t barrier;
} job;

/* The best of three runs: the first may still raise the clock. */
static void *measure(void *arg) {
    worker *me = arg;
    uint8_t bytes[3][64];
    memset(bytes, 2, sizeof bytes);
    int64_t rounds = 1000;
    double start, taken = 0;
    for (; taken < job.seconds / 4; rounds *= 2) {
        start = now();
        job.what->run(rounds, bytes);
        taken = now() - start;
    }
    rounds = (int64_t)((double)(rounds / 2) * job.seconds / taken) + 1;
    for (int i = 0; i < 3; i++) {
        pthread_barrier_wait(&job.barrier);
        start = now();
        job.what->run(rounds, bytes);
        const double rate = job.what->macs * (double)rounds / (now() - start);
        me->rate = rate > me->rate ? rate : me->rate;
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc == 1) {
        for (int i = 0; i < N_MIXES; i++)
            if (runs(mixes[i].isa) && (!i || strcmp(mixes[i].isa, mixes[i - 1].isa))) puts(mixes[i].isa);
        return 0;
    }
    if (argc < 5) return fprintf(stderr, "usage: peak [ISA THREADS MILLISECONDS TYPE...]\n"), 2;
    const int threads = atoi(argv[2]);
    worker *workers = calloc((size_t)threads, sizeof *workers);
    job.seconds = atof(argv[3]) / 3e3;
    pthread_barrier_init(&job.barrier, NULL, (unsigned)threads);
    for (int a = 4; a < argc; a++) {
        char type[16];
        snprintf(type, sizeof type, " %s ", argv[a]);
        int found = 0;
        for (int i = 0; i < N_MIXES; i++) {
            if (strcmp(mixes[i].isa, argv[1]) || !strstr(mixes[i].types, type) || !runs(argv[1])) continue;
            double sum = 0;
            job.what = mixes + i;
            for (int t = 0; t < threads; t++) workers[t].rate = 0;
            for (int t = 1; t < threads; t++) pthread_create(&workers[t].thread, NULL, measure, workers + t);
            measure(workers);
            for (int t = 1; t < threads; t++) pthread_join(workers[t].thread, NULL);
            for (int t = 0; t < threads; t++) sum += workers[t].rate;
            printf("%s %s %.4g\n", argv[a], mixes[i].name, sum);
            found = 1;
        }
        if (!found) return fprintf(stderr, "peak: this CPU runs no mix of %s for %s\n", argv[1], argv[a]), 2;
    }
    return 0;
}
