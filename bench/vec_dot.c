/* Loops for vec_dot.py: seconds of this thread's CPU time for `repeat` products of a matrix with a vector. */
#include <time.h>
#include "../csrc/isa/kernels.h"

typedef void peer_dot(int n, float *s, size_t bs, const void *x, size_t bx, const void *y, size_t by, int nrc);   /* ggml_vec_dot_t */
double time_peer(peer_dot *dot, int k, const uint8_t *w, size_t row_bytes, int rows, const void *x, int repeat, float *y);
double time_own(ni_dot *dot, const uint8_t *w, int64_t n_groups, const ni_act *x, int repeat, float *y);

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double time_peer(peer_dot *dot, int k, const uint8_t *w, size_t row_bytes, int rows, const void *x, int repeat, float *y) {
    const double start = now();
    for (int i = 0; i < repeat; i++)
        for (int r = 0; r < rows; r++) dot(k, y + r, 0, w + (size_t)r * row_bytes, 0, x, 0, 1);
    return now() - start;
}

double time_own(ni_dot *dot, const uint8_t *w, int64_t n_groups, const ni_act *x, int repeat, float *y) {
    const double start = now();
    for (int i = 0; i < repeat; i++) dot(w, n_groups, x, y);
    return now() - start;
}
