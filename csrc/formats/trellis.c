/* The trellis types of ik_llama.cpp, IQ1_KT to IQ4_KT: what is stored is where a generator starts, whose steps are the values.
 *
 * It starts at a place, plus NI_TRELLIS_FIRST.  A step multiplies by NI_TRELLIS; its value is the sum of the lowest six bits of each of the
 * four bytes, less 126: -126 to 126, about normally distributed.  A place stands for a group of 8 values, of IQ4_KT 4.
 *
 * ik_llama.cpp decodes a row with its scale d, but its products, on CPUs and GPUs alike, multiply with 1.05 d (IQ2_KT) and 1.01 d (IQ3_KT).
 * What a model answers comes from the products, so here it is decoded with these. */
#include "ik.h"
#include "table4.h"

/* n values. */
static void steps(uint32_t place, int n, int8_t *q) {
    for (int i = 0; i < n; i++) {
        place *= NI_TRELLIS;
        const uint32_t six = place & 0x3f3f3f3f;
        q[i] = (int8_t)((int)((six & 255) + (six >> 8 & 255) + (six >> 16 & 255) + (six >> 24)) - 126);
    }
}

/* Nibble i of n bytes, the lower ones first. */
static int nibble_of(const uint8_t *bytes, int n, int i) { return bytes[i % n] >> 4 * (i / n) & 15; }

/* Twelve of a place's bits lie side by side, the thirteenth beside the scale. */
void ni_read_iq1_kt(float d, const ni_block_iq1_kt *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++) {
        scale[s] = d * (float)ni_iq4[in->sc[s] & 15];
        for (int g = 4 * s; g < 4 * s + 4; g++, q += 8) {
            const int place = in->q[g] | nibble_of(in->upper, 16, g) << 8 | (in->sc[s] >> (4 + g % 4) & 1) << 12;
            steps(NI_TRELLIS_FIRST + (uint32_t)place, 8, q);
        }
    }
}

void ni_read_iq2_kt(float d, const ni_block_iq2_kt *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++) {
        scale[s] = d * NI_MORE_IQ2_KT * (float)ni_iq4[nibble_of(in->sc, 4, s)];
        for (int g = 4 * s; g < 4 * s + 4; g++, q += 8) steps(NI_TRELLIS_FIRST + (uint32_t)ni_load_u16(in->q + 2 * g), 8, q);
    }
}

/* Values without their signs, which are stored: of value j of sub-block s, bit s of byte j. */
void ni_read_iq3_kt(float d, const ni_block_iq3_kt *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++, q += 32) {
        scale[s] = d * NI_MORE_IQ3_KT * (float)nibble_of(in->sc, 4, s);
        for (int g = 0; g < 4; g++) steps(NI_TRELLIS_FIRST + (uint32_t)ni_load_u16(in->q + 8 * s + 2 * g), 8, q + 8 * g);
        for (int j = 0; j < 32; j++) {
            const int value = q[j] < 0 ? -q[j] : q[j];
            q[j] = (int8_t)(in->signs[j] >> s & 1 ? -value : value);
        }
    }
}

/* Of a sub-block's dword, bit 0 adds 32768 to its places, bits 1-7 are the scale, bits 8 + 3g .. the upper three of the place of group g. */
void ni_read_iq4_kt(float d, const ni_block_iq4_kt *in, float *scale, int8_t *q) {
    for (int s = 0; s < 8; s++) {
        const uint32_t sc = ni_load_u32(in->sc + 4 * s);
        scale[s] = d * (float)((int)(sc >> 1 & 127) - 64);
        for (int g = 0; g < 8; g++, q += 4) {
            const uint32_t low = (uint32_t)(in->q[8 * s + g] | nibble_of(in->upper, 32, 8 * s + g) << 8);
            steps(NI_TRELLIS_FIRST + (low | (sc >> (8 + 3 * g) & 7) << 12 | (sc & 1) << 15), 4, q);
        }
    }
}
