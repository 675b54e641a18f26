/* Packed records as kernels read them.
 *
 * A kernel of one format uses its struct.  One that serves several formats gets ni_parts: where their parts lie, in bytes from the start
 * of the record (there stands d), 0 for a part that a format lacks.  They are constants for inlined functions, so that they cost nothing. */
#ifndef NI_PARTS_H
#define NI_PARTS_H
#include "../formats/records.h"

typedef struct {
    int min;        /* m, or dmin */
    int s;          /* scales and minimums of sub-blocks: ni_scale_pair[8] */
    int high;       /* vectors of fifth bits */
    int q;          /* vectors of nibbles */
    int bytes;      /* of the whole record */
} ni_parts;

#define NI_AT(name, part) (int)offsetof(ni_record_##name, part)
#define NI_PARTS(name, ...) \
    static const ni_parts parts_##name __attribute__((unused)) = {.q = NI_AT(name, q), .bytes = sizeof(ni_record_##name), __VA_ARGS__};
NI_PARTS(q4_0)
NI_PARTS(q4_1, .min = NI_AT(q4_1, m))
NI_PARTS(q5_0, .high = NI_AT(q5_0, high))
NI_PARTS(q5_1, .min = NI_AT(q5_1, m), .high = NI_AT(q5_1, high))
NI_PARTS(q4_k, .min = NI_AT(q4_k, dmin), .s = NI_AT(q4_k, s))
NI_PARTS(q5_k, .min = NI_AT(q5_k, dmin), .s = NI_AT(q5_k, s), .high = NI_AT(q5_k, high))
#undef NI_PARTS
#undef NI_AT

/* IQ4_XS: asks for sub-block s of two records ahead, where asking helps at all (ni_ahead).  From inside a loop over sub-blocks, 32 bytes
 * more at every eighth, Zen 5's hardware alone reads at two thirds of the speed. */
static inline __attribute__((always_inline, unused)) void fetch_iq4_xs(const ni_record_iq4_xs *in, int s) {
    if (!ni_ahead) return;
    const char *next = (const char *)&in[2].s[s];
    for (int i = 0; i < (int)sizeof in->s[s]; i += 64) __builtin_prefetch(next + i, 0, 3);
}

/* Declares `in`: of a packed group, the record of value k0 and those that follow. */
#define RECORDS(name) const ni_record_##name *in = (const ni_record_##name *)group + k0 / NI_BLOCK_##name
#endif
