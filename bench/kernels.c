/* Speed of the bare matmul kernels, on n threads.  Built and run by kernels.py.
 *
 *   kernels ISA THREADS ROUNDS MIB K TOKENS TYPE...
 *
 * Per round and type, one line "TYPE DOT READ CACHED GEMM": bytes per second of `dot` over MIB of packed weights a
 * thread; of the plain read loop, best of 1 to 4 streams a thread, just before it; of `dot` over a block that stays in
 * the caches; and multiply-adds per second of `unpack` + `gemm` with TOKENS tokens.  All threads together. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "../csrc/ops/panels.h"

#if defined(__x86_64__)
#pragma GCC target("avx2")
#include <immintrin.h>
/* Reads n bytes as `streams` runs side by side. */
static long read_all(const uint8_t *p, size_t n, int streams) {
    const size_t run = n / (size_t)streams / 128 * 128;
    __m256i a = _mm256_setzero_si256(), b = a;
    for (size_t i = 0; i < run; i += 128)
        for (int s = 0; s < streams; s++) {
            const __m256i *v = (const __m256i *)(p + (size_t)s * run + i);
            a = _mm256_xor_si256(a, _mm256_xor_si256(_mm256_load_si256(v), _mm256_load_si256(v + 1)));
            b = _mm256_xor_si256(b, _mm256_xor_si256(_mm256_load_si256(v + 2), _mm256_load_si256(v + 3)));
        }
    return _mm256_extract_epi64(_mm256_xor_si256(a, b), 0);
}
#else
static long read_all(const uint8_t *p, size_t n, int streams) {
    const size_t run = n / (size_t)streams / 128 * 128;
    uint64_t a = 0;
    for (size_t i = 0; i < run; i += 128)
        for (int s = 0; s < streams; s++)
            for (int j = 0; j < 16; j++) a ^= ((const uint64_t *)(p + (size_t)s * run + i))[j];
    return (long)a;
}
#endif

enum { READ, DOT, SMALL, GEMM };

typedef struct {
    pthread_t thread;
    uint8_t *w;          /* this thread's own weights */
    size_t bytes;
    float *y;
    ni_panel_memory *panels;
    double seconds;      /* of CPU time, for the last job */
} worker;

static struct {
    int what, type, streams, threads, tokens;
    int64_t k, groups, repeat;
    ni_act act;
    const ni_kernels *isa;
    pthread_barrier_t barrier;
} job;

static volatile long sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void work(worker *me) {
    const double start = now();
    const size_t group = ni_group_bytes(job.type, job.k);
    if (job.what == READ) sink += read_all(me->w, me->bytes, job.streams);
    if (job.what == DOT || job.what == SMALL)
        for (int64_t i = 0; i < job.repeat; i++) job.isa->dot[job.type](me->w, job.groups, &job.act, me->y);
    if (job.what == GEMM)
        for (int64_t g = 0; g < job.groups; g += NI_PANEL_GROUPS) {
            const int64_t n = job.groups - g < NI_PANEL_GROUPS ? job.groups - g : NI_PANEL_GROUPS;
            for (int t = 0; t < job.tokens; t += NI_PANEL_TOKENS) {
                const ni_act own = ni_act_of_token(&job.act, t);
                const int tokens = job.tokens - t < NI_PANEL_TOKENS ? job.tokens - t : NI_PANEL_TOKENS;
                ni_block_times_tokens(job.isa, job.type, me->w + (size_t)g * group, n, &own, tokens, me->panels, NULL);
            }
        }
    me->seconds = now() - start;
}

static void *run_thread(void *arg) {
    for (;;) {
        pthread_barrier_wait(&job.barrier);
        if (job.what < 0) return NULL;
        work(arg);
        pthread_barrier_wait(&job.barrier);
    }
}

/* Things per second of all threads, each of which does n; by CPU time, because the machine may have other users. */
static double measure(worker *workers, int what, double n) {
    double sum = 0;
    job.what = what;
    pthread_barrier_wait(&job.barrier);
    work(workers);
    pthread_barrier_wait(&job.barrier);
    for (int i = 0; i < job.threads; i++) sum += n / workers[i].seconds;
    return sum;
}

static void *get(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "kernels: no memory for %zu bytes\n", bytes);
        exit(1);
    }
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

int main(int argc, char **argv) {
    if (argc < 8 || ni_isa_select(argv[1])) {
        fprintf(stderr, "usage: kernels ISA THREADS ROUNDS MIB K TOKENS TYPE...; ISA one of %s\n", ni_isa_available());
        return 2;
    }
    const int rounds = atoi(argv[3]);
    const size_t bytes = (size_t)atoi(argv[4]) << 20;
    const int64_t k = atoi(argv[5]);
    job.isa = ni_k;
    job.threads = atoi(argv[2]);
    job.tokens = atoi(argv[6]);
    job.k = k;

    const size_t values = (size_t)job.tokens * (size_t)k;
    float *f = get(values * 4), *d = get(values / 8), *m = get(values / 8);
    int8_t *q = get(values);
    int16_t *s = get(values / 8);
    for (size_t i = 0; i < values; i++) f[i] = (float)(i * 7919 % 201) / 100.0f - 1.0f;
    ni_k->vec.quantize(f, (int64_t)values, q, d, m, s);
    job.act = (ni_act){.k = k, .f = f, .q = q, .d = d, .m = m, .s = s};

    worker *workers = calloc((size_t)job.threads, sizeof *workers);
    pthread_barrier_init(&job.barrier, NULL, (unsigned)job.threads);
    job.what = READ;
    for (int i = 0; i < job.threads; i++) {
        worker *me = workers + i;
        me->bytes = bytes;
        me->w = get(bytes + 4096);
        memset(me->w, 0x2c, bytes);   /* halves of 0.065, quants of all kinds */
        me->y = get(bytes / 8);
        me->panels = get(ni_panel_bytes(job.tokens));
        memset(me->panels, 0, ni_panel_bytes(job.tokens));   /* first touch */
        if (i) pthread_create(&me->thread, NULL, run_thread, me);
    }
    for (int r = 0; r < rounds; r++)
        for (int a = 7; a < argc; a++) {
            job.type = -1;
            for (int t = 0; t < NI_N_TYPES; t++)
                if (!strcmp(argv[a], ni_formats[t].name)) job.type = t;
            if (job.type < 0) {
                fprintf(stderr, "kernels: unknown type %s\n", argv[a]);
                return 2;
            }
            const size_t group = ni_group_bytes(job.type, k);
            double read = 0, t;
            for (job.streams = 1; job.streams <= 4; job.streams++) {
                t = measure(workers, READ, (double)bytes);
                read = t > read ? t : read;
            }
            job.repeat = 1;
            job.groups = (int64_t)(bytes / group);
            const double dot = measure(workers, DOT, (double)job.groups * (double)group);
            job.groups = (int64_t)((256 << 10) / group);
            job.groups = job.groups < 2 ? 2 : job.groups;
            job.repeat = (int64_t)(bytes / 2 / (group * (size_t)job.groups));
            const double small = measure(workers, SMALL, (double)(job.groups * job.repeat) * (double)group);
            job.groups = (int64_t)6e8 / (k * NI_ROWS * job.tokens) + 1;
            job.groups = job.groups < (int64_t)(bytes / group) ? job.groups : (int64_t)(bytes / group);
            const double gemm = measure(workers, GEMM, (double)(job.groups * NI_ROWS * k * job.tokens));
            printf("%s %.4g %.4g %.4g %.4g\n", argv[a], dot, read, small, gemm);
            fflush(stdout);
        }
    job.what = -1;
    pthread_barrier_wait(&job.barrier);
    return 0;
}
