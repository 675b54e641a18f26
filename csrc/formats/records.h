/* Internal to formats/ and isa/: of each format the block as the file has it, and the packed record that it becomes (layouts: formats.h).
 *
 * Blocks hold bytes only, because in the file nothing is aligned.  Records are aligned to 32 bytes, those of MXFP4 to 16.
 */
#ifndef NI_RECORDS_H
#define NI_RECORDS_H
#include "formats.h"
#include "half.h"
#include <string.h>

typedef struct { uint8_t value[4]; } ni_block_f32;
typedef struct { uint8_t value[2]; } ni_block_f16, ni_block_bf16;
typedef struct { uint8_t d[2], q[16]; } ni_block_q4_0;
typedef struct { uint8_t d[2], m[2], q[16]; } ni_block_q4_1;
typedef struct { uint8_t d[2], high[4], q[16]; } ni_block_q5_0;
typedef struct { uint8_t d[2], m[2], high[4], q[16]; } ni_block_q5_1;
typedef struct { uint8_t d[2], q[32]; } ni_block_q8_0;
typedef struct { uint8_t d[2], dmin[2], scales[12], q[128]; } ni_block_q4_k;
typedef struct { uint8_t d[2], dmin[2], scales[12], high[32], q[128]; } ni_block_q5_k;
typedef struct { uint8_t q[128], high[64], sc[16], d[2]; } ni_block_q6_k;
typedef struct { uint8_t scales[16], q[64], d[2], dmin[2]; } ni_block_q2_k;
typedef struct { uint8_t high[32], q[64], scales[12], d[2]; } ni_block_q3_k;
typedef struct { uint8_t q[48], last[4], d[2]; } ni_block_tq1_0;
typedef struct { uint8_t q[64], d[2]; } ni_block_tq2_0;
typedef struct { uint8_t d[2], q[16]; } ni_block_q1_0, ni_block_q2_0;
typedef struct { uint8_t d[2], q[16]; } ni_block_iq4_nl;
typedef struct { uint8_t d[2], high[2], low[4], q[128]; } ni_block_iq4_xs;
typedef struct { uint8_t e, q[16]; } ni_block_mxfp4;
typedef struct { uint8_t sc[4], q[32]; } ni_block_nvfp4;
typedef struct { uint8_t d[2], q[64], signs[32]; } ni_block_iq3_xxs;
typedef struct { uint8_t d[2], q[64], high[8], signs[32], sc[4]; } ni_block_iq3_s;
typedef struct { uint8_t d[2], q[64]; } ni_block_iq2_xxs;
typedef struct { uint8_t d[2], q[64], sc[8]; } ni_block_iq2_xs;
typedef struct { uint8_t d[2], q[32], signs[32], high[8], sc[8]; } ni_block_iq2_s;
typedef struct { uint8_t d[2], q[32], h[16]; } ni_block_iq1_s;
typedef struct { uint8_t q[32], h[16], sc[8]; } ni_block_iq1_m;
typedef struct { uint8_t d[2], extra[2], high[4], low[8], q[128]; } ni_block_iq4_k;
typedef struct { uint8_t d[2], extra[2], high[4], low[8], q[128], fifth[32]; } ni_block_iq5_k;
typedef struct { uint8_t d[2], extra[2], sc[16], q[128], upper[64]; } ni_block_iq6_k;
typedef struct { uint8_t d[2], extra[2], sign[2], sc[8], q[64], third[32]; } ni_block_iq3_k;
typedef struct { uint8_t d[2], extra[2], sc[8], q[64]; } ni_block_iq2_k;
typedef struct { uint8_t d[2], upper[8], q[16]; } ni_block_q6_0;
typedef struct { uint8_t sc[8], q[128]; } ni_block_iq4_ks;
typedef struct { uint8_t sc[8], q[128], fifth[32]; } ni_block_iq5_ks;
typedef struct { uint8_t extra[2], sc[4], q[64], third[32]; } ni_block_iq3_ks;
typedef struct { uint8_t extra[2], sc[4], q[64]; } ni_block_iq2_ks;
typedef struct { uint8_t high[2], low[4], q[64], fifth[16]; } ni_block_iq2_kl;
typedef struct { uint8_t q[128]; } ni_block_iq4_kss;
typedef struct { uint8_t sc[8], q[32], upper[16]; } ni_block_iq1_kt;
typedef struct { uint8_t sc[4], q[64]; } ni_block_iq2_kt;
typedef struct { uint8_t sc[4], q[64], signs[32]; } ni_block_iq3_kt;
typedef struct { uint8_t sc[32], q[64], upper[32]; } ni_block_iq4_kt;

typedef uint8_t ni_vector[4 * NI_ROWS];   /* byte 4r + b belongs to row r */

typedef struct { float value[NI_ROWS]; } ni_record_f32;
typedef struct { uint16_t value[NI_ROWS]; } ni_record_f16, ni_record_bf16;
typedef struct { uint16_t d[NI_ROWS]; ni_vector q[4]; } ni_record_q4_0;
typedef struct { uint16_t d[NI_ROWS], m[NI_ROWS]; ni_vector q[4]; } ni_record_q4_1;
typedef struct { uint16_t d[NI_ROWS]; ni_vector high, q[4]; } ni_record_q5_0;
typedef struct { uint16_t d[NI_ROWS], m[NI_ROWS]; ni_vector high, q[4]; } ni_record_q5_1;
typedef struct { uint16_t d[NI_ROWS]; ni_vector q[8]; } ni_record_q8_0;
typedef struct { uint8_t sc[NI_ROWS], mn[NI_ROWS]; } ni_scale_pair;
typedef struct { uint16_t d[NI_ROWS], dmin[NI_ROWS]; ni_scale_pair s[8]; ni_vector q[32]; } ni_record_q4_k;
typedef struct { uint16_t d[NI_ROWS], dmin[NI_ROWS]; ni_scale_pair s[8]; ni_vector high[8], q[32]; } ni_record_q5_k;
typedef struct { uint16_t d[NI_ROWS]; int8_t sc[16][NI_ROWS]; ni_vector v[16][3]; } ni_record_q6_k;
typedef struct { uint16_t d[NI_ROWS], dmin[NI_ROWS], s[8][NI_ROWS]; ni_vector q[8][2]; } ni_record_q2_k;
typedef struct { uint16_t d[NI_ROWS]; ni_vector low[2], upper, v[8][3]; } ni_record_q3_k;
typedef struct { uint16_t d[NI_ROWS]; ni_vector q[13]; } ni_record_tq1_0;
typedef struct { uint16_t d[NI_ROWS]; ni_vector q[8][2]; } ni_record_tq2_0;
typedef struct { uint16_t d[NI_ROWS]; ni_vector q[4]; } ni_record_q1_0;
typedef struct { uint16_t d[NI_ROWS]; ni_vector q[2][2]; } ni_record_q2_0;
typedef struct { uint16_t d[NI_ROWS]; ni_vector q[4]; } ni_record_iq4_nl;
typedef struct { uint16_t d[NI_ROWS]; struct { int8_t sc[NI_ROWS]; ni_vector q[4]; } s[8]; } ni_record_iq4_xs;
typedef struct { uint8_t e[NI_ROWS]; ni_vector q[4]; } ni_record_mxfp4;
typedef struct { uint8_t sc[4][NI_ROWS]; ni_vector q[4][2]; } ni_record_nvfp4;
typedef struct { ni_vector q[2], signs; } ni_part_iq3;   /* codebook.h */
typedef struct { ni_vector q[1], signs; } ni_part_iq2;
typedef struct { ni_vector q; uint16_t h[NI_ROWS]; } ni_part_iq1;
typedef struct { uint16_t d[NI_ROWS]; ni_part_iq3 part[8]; } ni_record_iq3_xxs;
typedef struct { uint16_t d[NI_ROWS]; ni_vector sc, high[2]; ni_part_iq3 part[8]; } ni_record_iq3_s;
typedef struct { uint16_t d[NI_ROWS]; ni_part_iq2 part[8]; } ni_record_iq2_xxs;
typedef struct { uint16_t d[NI_ROWS]; ni_vector sc[2]; ni_part_iq2 part[8]; } ni_record_iq2_xs;
typedef struct { uint16_t d[NI_ROWS]; ni_vector sc[2], high[2]; ni_part_iq2 part[8]; } ni_record_iq2_s;
typedef struct { uint16_t d[NI_ROWS]; ni_part_iq1 part[8]; } ni_record_iq1_s;
typedef struct { uint16_t d[NI_ROWS], sc[3][NI_ROWS]; ni_part_iq1 part[8]; } ni_record_iq1_m;
typedef struct { ni_vector d_extra, high, low[2], q[32]; } ni_record_iq4_k;   /* d_extra: d, then extra, of each row */
typedef struct { ni_vector d_extra, high, low[2], q[32], fifth[8]; } ni_record_iq5_k;
typedef struct { ni_vector d_extra, sc[4], q[32], upper[16]; } ni_record_iq6_k;
typedef struct { uint16_t d[NI_ROWS]; ni_vector extra_sign, sc[2], q[16], third[8]; } ni_record_iq3_k;
typedef struct { ni_vector d_extra, sc[2], q[16]; } ni_record_iq2_k;
typedef struct { uint16_t d[NI_ROWS]; ni_vector upper[2], q[4]; } ni_record_q6_0;
typedef struct { float d[NI_ROWS]; ni_vector sc[2], q[32]; } ni_record_iq4_ks;
typedef struct { float d[NI_ROWS]; ni_vector sc[2], q[32], fifth[8]; } ni_record_iq5_ks;
typedef struct { uint16_t d[NI_ROWS], extra[NI_ROWS]; ni_vector sc, q[16], third[8]; } ni_record_iq3_ks;
typedef struct { uint16_t d[NI_ROWS], extra[NI_ROWS]; ni_vector sc, q[16]; } ni_record_iq2_ks;
typedef struct { uint16_t d[NI_ROWS], high[NI_ROWS]; ni_vector low, q[16], fifth[4]; } ni_record_iq2_kl;
typedef struct { float d[NI_ROWS]; ni_vector q[32]; } ni_record_iq4_kss;
typedef struct { float d[NI_ROWS]; ni_vector sc[2], q[8], upper[4]; } ni_record_iq1_kt;
typedef struct { float d[NI_ROWS]; ni_vector sc, q[16]; } ni_record_iq2_kt;
typedef struct { float d[NI_ROWS]; ni_vector sc, q[16], signs[8]; } ni_record_iq3_kt;
typedef struct { float d[NI_ROWS]; ni_vector sc[8], q[16], upper[8]; } ni_record_iq4_kt;

/* A half of a file block. */
static inline uint16_t ni_load_u16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return h;
}

static inline uint32_t ni_load_u32(const uint8_t *p) {
    uint32_t u;
    memcpy(&u, p, 4);
    return u;
}

static inline float ni_load_f16(const uint8_t *p) { return ni_f16_to_f32(ni_load_u16(p)); }

/* Values per block of each format: NI_BLOCK_q4_0 = 32. */
enum {
#define NI_FORMAT(NAME, name, ggml_type, block, ...) NI_BLOCK_##name = block,
#include "formats.def"
#undef NI_FORMAT
};

/* Values that share a scale, of each format: 32 of q4_0. */
enum {
#define NI_FORMAT(NAME, name, ggml_type, block, kind, sub, ...) NI_SUB_##name = sub,
#include "formats.def"
#undef NI_FORMAT
};

/* Bytes that a row of the file begins with. */
enum {
#define NI_FORMAT(NAME, name, ggml_type, block, kind, sub, offset, max_q, head) NI_HEAD_##name = head,
#include "formats.def"
#undef NI_FORMAT
};

/* The three functions of each format; formats.h says what they do. */
#define NI_FORMAT(NAME, name, ...)                                                                          \
    void ni_decode_##name(const uint8_t *blocks, int64_t n_blocks, float *out);                             \
    void ni_pack_##name(const uint8_t *src, size_t row_bytes, int rows, int64_t k, uint8_t *dst);           \
    void ni_unpack_row_##name(const uint8_t *group, int r, int64_t k, float *out);
#include "formats.def"
#undef NI_FORMAT
#endif
