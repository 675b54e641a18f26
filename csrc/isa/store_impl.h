/* Storing one position of keys and values in a chunk of KV memory.  Included by vec_impl.h. */
#ifndef NI_STORE_IMPL_H
#define NI_STORE_IMPL_H
#include "kv_layout.h"

V16_FN void NI_VEC(store_16)(const ni_kv_type type, uint16_t *p, v16 x) {
    if (type == NI_KV_bf16) v16_store_bf16(p, x);
    else v16_store_f16(p, x);
}

V16_FN void NI_VEC(store_key_16)(const ni_kv_type type, const float *key, int64_t e, uint16_t *keys, int pos) {
    keys += pos / 16 * 16 * e + pos % 16;
    for (int64_t x = 0; x < e; x += 16) {
        uint16_t h[16];
        NI_VEC(store_16)(type, h, v16_load(key + x));
        for (int i = 0; i < 16; i++) keys[(x + i) * 16] = h[i];
    }
}

V16_FN void NI_VEC(store_value_16)(const ni_kv_type type, const float *value, int64_t ev, uint16_t *values, int pos) {
    for (int64_t x = 0; x < ev; x += 16) NI_VEC(store_16)(type, values + x * NI_CHUNK + 16 * pos, v16_load(value + x));
}

#define NI_STORE_16(type)                                                                              \
    static void NI_VEC(store_key_##type)(const float *key, int64_t e, uint8_t *keys, int pos) {        \
        NI_VEC(store_key_16)(NI_KV_##type, key, e, (uint16_t *)keys, pos);                             \
    }                                                                                                  \
    static void NI_VEC(store_value_##type)(const float *value, int64_t ev, uint8_t *values, int pos) { \
        NI_VEC(store_value_16)(NI_KV_##type, value, ev, (uint16_t *)values, pos);                      \
    }
NI_STORE_16(f16)
NI_STORE_16(bf16)
#undef NI_STORE_16

static void NI_VEC(store_key_f32)(const float *key, int64_t e, uint8_t *keys, int pos) {
    float *to = (float *)keys + pos / 16 * 16 * e + pos % 16;
    for (int64_t x = 0; x < e; x++) to[16 * x] = key[x];
}

static void NI_VEC(store_value_f32)(const float *value, int64_t ev, uint8_t *values, int pos) {
    for (int64_t x = 0; x < ev; x += 16) v16_store((float *)values + x * NI_CHUNK + 16 * pos, v16_load(value + x));
}

/* Quantises the n = 32 or 16 values of a block; the half is d. */
V16_FN void NI_VEC(quantize_block)(const float *x, int64_t n, int8_t q[32], uint16_t *d) {
    float block[32] = {0}, scale;
    memcpy(block, x, (size_t)n * sizeof *x);
    NI_VEC(quantize)(block, 32, q, &scale, NULL, NULL);
    NI_VEC(to_f16)(&scale, 1, d);
}

static void NI_VEC(store_key_q8_0)(const float *key, int64_t e, uint8_t *keys, int pos) {
    keys += pos / 16 * 16 * ni_kv_bytes(NI_KV_q8_0, e);
    for (int64_t x = 0; x < e; x += 32, keys += 16 * (2 + 32)) {
        const int64_t n = e - x < 32 ? e - x : 32;
        int8_t q[32];
        NI_VEC(quantize_block)(key + x, n, q, (uint16_t *)keys + pos % 16);
        for (int i = 0; i < n; i++) keys[16 * 2 + i / 2 * 32 + pos % 16 * 2 + i % 2] = (uint8_t)q[i];
    }
}

static void NI_VEC(store_value_q8_0)(const float *value, int64_t ev, uint8_t *values, int pos) {
    for (int64_t x = 0; x < ev; x += 32, values += NI_CHUNK * (2 + 32)) {
        const int64_t n = ev - x < 32 ? ev - x : 32;
        int8_t q[32];
        NI_VEC(quantize_block)(value + x, n, q, (uint16_t *)values + pos);
        for (int i = 0; i < n; i++) values[NI_CHUNK * 2 + i / 16 * 16 * NI_CHUNK + pos / 2 * 32 + i % 16 * 2 + pos % 2] = (uint8_t)q[i];
    }
}
#endif
