/* NEON with the dot product and the int8 matrix product for a CPU that is not an Arm but has a fused multiply-add: SIMDe's
 * emulation, and what Debian 12's version of it (0.7.4) lacks.  Brought in by gcc's -include, in front of a file of
 * csrc/isa. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_INLINE   /* the kernels are unrolled: with every function inlined they take gcc a minute */
#include <simde/arm/neon.h>

#define SHIM static __attribute__((noinline, unused))
#define VALUES(type, a) (simde_##type##_to_private(a).values)
SHIM float32x4_t shim_vdivq_f32(float32x4_t a, float32x4_t b) {
    simde_float32x4_private r;
    for (int i = 0; i < 4; i++) r.values[i] = VALUES(float32x4, a)[i] / VALUES(float32x4, b)[i];
    return simde_float32x4_from_private(r);
}
SHIM float32x4_t shim_vfmsq_f32(float32x4_t a, float32x4_t b, float32x4_t c) {
    simde_float32x4_private r;
    for (int i = 0; i < 4; i++)
        r.values[i] = __builtin_fmaf(-VALUES(float32x4, b)[i], VALUES(float32x4, c)[i], VALUES(float32x4, a)[i]);
    return simde_float32x4_from_private(r);
}
SHIM int32x4_t shim_vcvtnq_s32_f32(float32x4_t a) {   /* ties to even */
    simde_int32x4_private r;
    for (int i = 0; i < 4; i++) r.values[i] = (int32_t)__builtin_rintf(VALUES(float32x4, a)[i]);
    return simde_int32x4_from_private(r);
}
SHIM uint8x16_t shim_vsliq_n_u8(uint8x16_t a, uint8x16_t b, int n) {
    simde_uint8x16_private r;
    for (int i = 0; i < 16; i++)
        r.values[i] = (uint8_t)((VALUES(uint8x16, a)[i] & ((1 << n) - 1)) | VALUES(uint8x16, b)[i] << n);
    return simde_uint8x16_from_private(r);
}
/* Two rows of 8 values times two. */
SHIM int32x4_t shim_vmmlaq_s32(int32x4_t s, int8x16_t a, int8x16_t b) {
    simde_int32x4_private r = simde_int32x4_to_private(s);
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 8; k++)
            r.values[i] += VALUES(int8x16, a)[8 * (i / 2) + k] * VALUES(int8x16, b)[8 * (i % 2) + k];
    return simde_int32x4_from_private(r);
}
#undef vdivq_f32
#undef vfmsq_f32
#undef vcvtnq_s32_f32
#undef vsliq_n_u8
#undef vmmlaq_s32
#define vdivq_f32 shim_vdivq_f32
#define vfmsq_f32 shim_vfmsq_f32
#define vcvtnq_s32_f32 shim_vcvtnq_s32_f32
#define vsliq_n_u8 shim_vsliq_n_u8
#define vmmlaq_s32 shim_vmmlaq_s32
