/* The walk over row groups that the dots of every vector table share.  What it calls per group is the table's own, and is inlined. */
#ifndef NI_DOT_GROUPS_H
#define NI_DOT_GROUPS_H
#include "../formats/records.h"

/* Defines dot_<name> for a format, group by group. */
#define NI_DOT(name, format, call, ...)                                                     \
    static void dot_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) { \
        const size_t stride = (size_t)(x->k / NI_BLOCK_##format) * sizeof(ni_record_##format); \
        for (int64_t g = 0; g < n_groups; g++, w += stride, y += NI_ROWS)                   \
            call(w, ##__VA_ARGS__, x, y);                                                   \
    }

/* Defines dots_<name> as well, of a call that takes 1 to NI_DOTS tokens and says which row of theirs it stands at. */
#define NI_DOTS_CASE(n, call, ...) \
    case n: for (int64_t g = 0; g < n_groups; g++, w += stride) call(w, ##__VA_ARGS__, x, n, y, g * NI_ROWS); break;
#define NI_DOT_AND_DOTS(name, format, call, ...)                                                                      \
    static void dot_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, float *one) {                         \
        const size_t stride = (size_t)(x->k / NI_BLOCK_##format) * sizeof(ni_record_##format);                       \
        float *const y[1] = {one};                                                                                    \
        for (int64_t g = 0; g < n_groups; g++, w += stride) call(w, ##__VA_ARGS__, x, 1, y, g * NI_ROWS);             \
    }                                                                                                                 \
    static void dots_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, int n_tokens, float *const *y) {     \
        const size_t stride = (size_t)(x->k / NI_BLOCK_##format) * sizeof(ni_record_##format);                       \
        switch (n_tokens) {                                                                                           \
        NI_DOTS_CASE(2, call, ##__VA_ARGS__)                                                                          \
        NI_DOTS_CASE(3, call, ##__VA_ARGS__)                                                                          \
        NI_DOTS_CASE(4, call, ##__VA_ARGS__)                                                                          \
        }                                                                                                             \
    }

/* dot_<name> of floats, 4 groups at a time. */
#define NI_DOT_FLOAT(name, type)                                                            \
    static void dot_##name(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) { \
        const size_t stride = (size_t)x->k * sizeof(ni_record_##name);                      \
        int64_t g = 0;                                                                      \
        for (; g + 4 <= n_groups; g += 4, w += 4 * stride, y += 4 * NI_ROWS)                \
            dot_float(w, stride, 4, type, x, y);                                            \
        for (; g < n_groups; g++, w += stride, y += NI_ROWS)                                \
            dot_float(w, stride, 1, type, x, y);                                            \
    }
#endif
