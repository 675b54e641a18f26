/* Weight formats: what a GGUF block means, and how rows are packed for the kernels.
 *
 * Packed layout, the same for every ISA.  NI_ROWS (16) consecutive rows of a matrix form a row group; a group is a
 * sequence of records, one per block of K values (32, or 256 for the K-quants; 1 for the float types), and a record
 * holds the block of all 16 rows side by side:
 *
 *   float types        [16 values]                                              per k
 *   quantised types    [scales, 16 lanes each] [quants, in vectors of 64 bytes]
 *
 * In a vector of 64 bytes, bytes 4r .. 4r+3 belong to row r (r = 0..15) and hold four consecutive k ("a k-group"), so
 * that one 4-byte broadcast of activations meets 8 or 16 rows and no horizontal sum is ever needed.  `kg` below counts
 * k-groups within the block: kg = k / 4.  f16x16 means 16 little-endian half floats, one per row; u8x16 likewise.
 *
 *   Q4_0  32   d f16x16 | 4 vectors: vector j: low nibbles kg j, high nibbles kg j+4           value = d * (q - 8)
 *   Q4_1  32   d f16x16, m f16x16 | 4 vectors as Q4_0                                          value = d * q + m
 *   Q5_0  32   d f16x16 | 1 vector of fifth bits | 4 vectors as Q4_0                           value = d * (q - 16)
 *              fifth bits: byte (r, b) bit g is the fifth bit of value k = 4g + b, g = 0..7
 *   Q5_1  32   d f16x16, m f16x16 | 1 vector of fifth bits as Q5_0 | 4 vectors as Q4_0         value = d * q + m
 *   Q8_0  32   d f16x16 | 8 vectors: vector j: signed bytes of kg j                            value = d * q
 *   Q4_K  256  d f16x16, dmin f16x16 | 8 x (sc u8x16, mn u8x16), sub-block s of 32 values
 *              | 32 vectors: vector 8c + i (c = 0..3, i = 0..7): low nibbles: kg i of sub-block 2c, high: of 2c+1
 *              value = (d * sc) * q - (dmin * mn)
 *   Q5_K  256  d, dmin, (sc, mn) as Q4_K | 8 vectors of fifth bits: vector i, bit s of byte (r, b): fifth bit of
 *              value k = 4i + b of sub-block s | 32 vectors as Q4_K                            value as Q4_K
 *   Q6_K  256  d f16x16 | 16 x sc i8x16, sub-block s of 16 values
 *              | 16 x 3 vectors, sub-block s: bits 0-5 of vector j = 0..2 are kg j; kg 3 is in the upper two bits of the
 *              three, its bits 4-5 in vector 0, 2-3 in vector 1, 0-1 in vector 2               value = (d * sc) * (q - 32)
 *   Q2_K  256  d, dmin f16x16 | 8 x s u16x16, unit u of 32 values: bits 0-3 sc, 4-7 mn of its first 16; 8-11, 12-15 of its last
 *              | 8 x 2 vectors, a unit of 2 bits                                              value = (d * sc) * q - (dmin * mn)
 *   Q3_K  256  d f16x16 | 3 vectors of scales | 8 x 3 vectors, a unit of 3 bits               value = (d * (sc - 32)) * (q - 4)
 *              scales: line c = 0..3 has 64 bytes, byte (u % 2, r, e): sub-block 2u + e of 16 values, u = 2c, 2c + 1; vector c / 2 has
 *              line c's bits 0-3 in nibble c % 2, vector 2 its bits 4-5 in bits 2c, 2c + 1
 *   TQ1_0 256  d f16x16 | 13 vectors: byte = five base-3 digits of 256ths, rounded up, the first the highest: digit n of vector i is
 *              kg 8n + i (i < 8), kg 32 + 4n + i (i < 12), kg 60 + n (i = 12, of four digits)   value = d * (q - 1)
 *   TQ2_0 256  d f16x16 | 8 x 2 vectors, a unit of 2 bits                                     value = d * (q - 1)
 *   Q1_0  128  d f16x16 | 4 vectors, unit u of 32 values: bit g of byte (r, b): value 4g + b  value = d * (2q - 1)
 *   Q2_0  64   d f16x16 | 2 x 2 vectors, a unit of 2 bits                                     value = d * (q - 1)
 *   IQ4_NL 32  d f16x16 | 4 vectors as Q4_0                                                    value = d * iq4[q]
 *   IQ4_XS 256 d f16x16 | 8 x (sc i8x16 | 4 vectors as Q4_0), sub-block of 32 values           value = (d * sc) * iq4[q]
 *   MXFP4 32   e u8x16 | 4 vectors as Q4_0                                                     value = 2^(e - 128) * fp4[q]
 *   NVFP4 64   4 x sc u8x16, sub-block s of 16 values | 8 vectors: vector 2s + i (i = 0, 1): low nibbles: kg i of sub-block s,
 *              high: kg i + 2                                                                  value = ue4m3(sc) / 2 * fp4[q]
 *   IQ3_XXS  256  d f16x16 | 8 x part (codebook.h): 2 vectors of places, 1 of signs; uppermost nibble of a sign dword: sc
 *              value = (d * (2 sc + 1) / 4) * (q - 64)
 *   IQ3_S    256  d f16x16 | 1 vector of dwords, nibble s: sc of part s | 2 vectors of the places' ninth bits: those of word h of
 *              pair p (0..3) of part s in vector s / 4, half h of the dword, bit 4 (s % 4) + p | 8 x part as IQ3_XXS
 *              value = (d * (2 sc + 1)) * (q - 16)
 *   IQ2_XXS  256  d f16x16 | 8 x part: 1 vector of places, 1 of signs; bits 14 15 30 31 of a sign dword: sc
 *              value = (d * (2 sc + 1) / 8) * (q - 64)
 *   IQ2_XS   256  d f16x16 | 2 vectors of nibbles: sc of sub-block s of 16 values in vector s / 8, nibble s % 8 | 8 x part as
 *              IQ2_XXS, but bits 14 + p, 30 + p of a sign dword: ninth bits of the places of pair p    value as IQ2_XXS
 *   IQ2_S    256  d, sc as IQ2_XS | 2 vectors of the places' ninth and tenth bits: those of word h of pair p (0, 1) of part s
 *              in vector s / 4, half h of the dword, bits 4 (s % 4) + 2 p .. | 8 x part as IQ2_XXS     value as IQ2_XXS
 *   IQ1_S    256  d f16x16 | 8 x part: 1 vector of places, 1 x u16x16 as in the file: bits 3l .. 3l + 2: the upper bits of the
 *              place of word l, bits 12-14: sc, bit 15: sign of the shift     value = (d * (2 sc + 1) / 8) * (q - 16)
 *   IQ1_M    256  d f16x16 | 3 x u16x16, bit s of word e: bit e of sc of sub-block s of 16 values | 8 x part: 1 vector of places,
 *              1 x u16x16: nibble l: the upper three bits of the place of word l, then the sign of its shift
 *              value = (d * (2 sc + 1) / 8) * (q - 32)
 *   IQ4_K  256  dwords of the file's block: d and extra | high (2 bits of each sub-block) | 2 x low (4 bits) | 32 vectors: vector 4i + j:
 *              low nibbles kg j of sub-block 2i of 16 values, high of 2i + 1     value = (d * ((low | high << 4) - 32)) * iq4[q]
 *   IQ5_K  256  d, extra, high, low as IQ4_K | 32 vectors, 8c + i: low nibbles kg 16c + i, high 16c + i + 8 | 8 vectors of fifth bits:
 *              bit 2c of vector i: of kg 16c + i, bit 2c + 1: of 16c + i + 8     value = (d * ((low | high << 4) - 32)) * iq5[q]
 *   IQ6_K  256  d, extra | 4 x sc (i8 of sub-block 4i + b) | 32 vectors as IQ5_K | 16 vectors of upper bits: of chunk c in vectors
 *              8 (c / 2) + i, bits 4 (c % 2) + .. two of kg 16c + i, then two of kg 16c + i + 8      value = (d * sc) * iq6[q]
 *   IQ3_K  256  d f16x16 | extra and signs | 2 x sc, 4 bits | 16 vectors, 8h + i: bits 2p: kg 32h + 8p + i | 8 vectors of third bits:
 *              bit 4h + p of vector i: of kg 32h + 8p + i                        value = (d * (+-(2 sc + 1))) * iq3[q]
 *   IQ2_K  256  d, extra | 2 x sc, 4 bits | 16 vectors as IQ3_K                   value = (d * (sc - 8)) * iq2[q]
 *   Q6_0   32  d f16x16 | 2 vectors of upper bits: of vector i, bits 0-1 kg i, 2-3 kg i + 4, 4-5 kg i + 2, 6-7 kg i + 6 | 4 vectors as
 *              Q4_0                                                               value = d * (q - 32)
 *   IQ4_KS 256  d f32x16 (of the row) | 2 x sc (byte of sub-block 4i + b of 32 values) | 32 vectors as Q4_0, 4 for each sub-block
 *              value = (d * ((sc & 254) - 127)) * iq4[q], 4 more if sc is odd
 *   IQ5_KS 256  d, sc as IQ4_KS | q and fifth bits as IQ5_K                       value = (d * ((sc & 254) - 127)) * iq5[q], 2 more if odd
 *   IQ3_KS 256  d f16x16 (of the row) | extra u16x16 | sc, 4 bits, sub-block s of 32 values in byte s % 4, nibble s / 4 | q and third
 *              bits as IQ3_K      value = (d * ((sc | extra bit s << 4) - 16)) * iq3[q], 4 more if extra bit 8 + s
 *   IQ2_KS 256  d f16x16 (of the row) | extra u16x16 | sc, 4 bits | 16 vectors as IQ3_K
 *              value = (d * ((sc | extra bit 8 + s << 4) - 16)) * iq2[q], 5 more if extra bit s
 *   IQ2_KL 256  d f16x16 (of the row) | high u16x16 | low as sc of IQ3_KS | 16 vectors: places of pairs of values, nibble s % 2 of vector
 *              4 (s / 2) + i: pairs 4i .. 4i + 3 of sub-block s | 4 vectors of fifth bits, bit s
 *              value = (d * ((low | high << 4) - 32)) * one of a pair (ik.c)
 *
 *   IQ4_KSS 256 d f32x16 (of the row) | 32 vectors, 4 for each sub-block of 32 values: words of the file, which hold nibbles as Q4_0 and sc
 *              (ik.c)                                                            value as IQ4_KS
 *   IQ1_KT 256  d f32x16 (of the row) | 2 x sc (byte of sub-block 4i + b of 32 values) | 8 vectors of places of groups of 8 values, byte b of
 *              vector s: group b of sub-block s | 4 vectors of upper bits, nibble s / 4 of byte b of vector s % 4   value = (d * iq4[sc & 15]) * q
 *   IQ2_KT 256  d f32x16 (of the row) | sc, 4 bits, as IQ3_KS | 16 vectors of places of 16 bits: of groups 2j, 2j + 1 of sub-block s in vector
 *              2s + j                                                            value = (d * 1.05 * iq4[sc]) * q
 *   IQ3_KT 256  d, sc, places as IQ2_KT | 8 vectors of signs: of kg i of sub-block s, bit s of vector i   value = (d * 1.01 * sc) * q
 *   IQ4_KT 256  d f32x16 (of the row) | 8 x sc | 16 vectors of places of groups of 4 values, byte b of vector 2s + j: group 4j + b of sub-block
 *              s | 8 vectors of upper bits, nibble s / 4 of vector 2 (s % 4) + j      value = (d * ((sc >> 1 & 127) - 64)) * q
 *              q of IQ1_KT to IQ4_KT: steps of a generator (trellis.c)
 *
 *   A unit has 32 values, kg 0-3 and 4-7, which are two sub-blocks of Q2_K and Q3_K.
 *   2 bits: vector j = 0, 1: bits 0-1 kg 2j, 2-3 kg 2j + 4, 4-5 kg 2j + 1, 6-7 kg 2j + 5.
 *   3 bits: vector j = 0..2: bits 0-2 kg j, 3-5 kg j + 4; bits 6-7 of vectors 0 and 1 are bits 0-1 of kg 3 and 7, whose bits 2 are bits
 *   6 and 7 of vector 2.
 *   So what is not in its place can be multiplied where it is: the sum of a sub-block comes out 4 or 8 times as large.
 *
 * iq4 and fp4 are tables of 16 whole numbers (table4.h); iq2, iq3, iq5 and iq6 have one for each place too (ik.c), and sub-blocks of
 * IQ2_K to IQ6_K whose bit in extra is set add 1 to 5 to it.
 *
 * The dwords of the GGUF blocks are only interleaved over the rows, with these exceptions: the fifth bits of Q5_0 and Q5_1 and the quants
 * of Q1_0 and Q2_0 are transposed, the 6-bit scales of Q4_K, Q5_K and IQ4_XS become bytes, NVFP4's scale 0x7f, which stands for 0, becomes
 * 0, the bits of Q2_K, Q3_K, Q6_K and TQ2_0 are arranged anew, in the order of k and for the fewest instructions, and so are places, signs
 * and scales of IQ1, IQ2 and IQ3, within 32 or 64 bits of a row.  Rows missing from the last group are zero bytes.  records.h has the same
 * layouts as C structs.
 */
#ifndef NI_FORMATS_H
#define NI_FORMATS_H
#include <stddef.h>
#include <stdint.h>

#define NI_ROWS 16

typedef enum {
#define NI_FORMAT(NAME, ...) NI_##NAME,
#include "formats.def"
#undef NI_FORMAT
    NI_N_TYPES
} ni_type;

/* How a kernel turns a panel's integer sums into floats. */
typedef enum {
    NI_PANEL_FLOAT,   /* float weights and activations */
    NI_PANEL_OFFSET,  /* unsigned q minus a constant offset: isum - offset * sum(x) */
    NI_PANEL_MIN,     /* unsigned q, plus a minimum: a second accumulator takes min * (d_x * sum(x)) */
    NI_PANEL_SIGNED,  /* signed q */
    NI_PANEL_NESTED,  /* unsigned q minus an offset; whole-number scales of sub-blocks under one float scale per 256 */
    NI_PANEL_NESTED_MIN   /* the same, and whole-number minimums of sub-blocks under another float per 256 */
} ni_panel_kind;

typedef struct {
    const char *name;          /* as GGUF names it: "Q4_K" */
    int ggml_type;             /* number in the file */
    int block;                 /* values per block along K */
    int block_bytes;           /* bytes per block in the file */
    int record_bytes;          /* bytes per packed record: one block of NI_ROWS rows */
    ni_panel_kind kind;
    int sub;                   /* values that share one scale in a panel: 32, 16 where scales are nested and of NVFP4, 0 for float types */
    int offset;                /* for NI_PANEL_OFFSET and NI_PANEL_NESTED */
    int max_q;                 /* largest unsigned quant in a panel: 2, 3, 7, 15, 24, 31, 63, 255; 0 otherwise */
    int head_bytes;            /* what a row of the file begins with, before its blocks: a scale of the row, or nothing */
    /* Decodes n_blocks blocks of the file to floats; bit-equal to gguf.quants.  Where rows have a head: a row, its head and n_blocks. */
    void (*decode)(const uint8_t *blocks, int64_t n_blocks, float *out);
    /* Packs `rows` (1..NI_ROWS) rows of K values, row_bytes apart, into one group of K / block records. */
    void (*pack)(const uint8_t *src, size_t row_bytes, int rows, int64_t k, uint8_t *dst);
    /* Decodes row r (0..NI_ROWS-1) of a packed group: the same floats as decode. */
    void (*unpack_row)(const uint8_t *group, int r, int64_t k, float *out);
} ni_format;

extern const ni_format ni_formats[NI_N_TYPES];

/* Bytes of one packed group of NI_ROWS rows of k values. */
static inline size_t ni_group_bytes(ni_type t, int64_t k) {
    return (size_t)(k / ni_formats[t].block) * (size_t)ni_formats[t].record_bytes;
}

/* Bytes of a packed matrix of n rows of k values. */
static inline size_t ni_packed_bytes(ni_type t, int64_t n, int64_t k) {
    return (size_t)((n + NI_ROWS - 1) / NI_ROWS) * ni_group_bytes(t, k);
}

/* Asks for bytes that are read soon: into the second-level cache, for the first would not hold them until they are used.  Asking for
 * addresses that are not mapped, beyond the last row, does no harm. */
static inline void ni_fetch(const uint8_t *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}
#endif
