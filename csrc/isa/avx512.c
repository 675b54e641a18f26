/* The AVX-512 table: F, BW, VL, DQ and VNNI, as Intel's servers have them since 2019 and AMD's since 2022.
 *
 * Measured on Zen 4, where a 512-bit operation takes two 256-bit pipes for a cycle: it saves an instruction, but no arithmetic. */
#include "target.h"
#if NI_X86
NI_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi2")
#define V16_AVX512
#include "avx512_dot.h"
#include "avx512_dots.h"
#include "avx512_gemm.h"
#include "avx512_unpack.h"
#include "avx512_units.h"
#include "avx512_table4.h"
#include "avx512_codebook.h"
#include "avx512_ik.h"
#include "gather_impl.h"

#define NI_VEC(name) name##_avx512
#include "vec_impl.h"
#include "panel_dots.h"

const ni_own_kernels ni_own_avx512 = {
    .name = "avx512",
    /* dot, unpack, gather, gemm, few, slab.  Types whose panels are alike share the last two kernels.
     * few of types with dots, of those of 1 to 3 bits, and of ik_llama.cpp's: measured on Zen 5; of those with tables of 16: estimated. */
    .types = {
        [NI_F32]  = {dot_f32,  unpack_f32,  gather_f32,  gemm_f32,  3},
        [NI_F16]  = {dot_f16,  unpack_f16,  gather_f32,  gemm_f32,  6},
        [NI_BF16] = {dot_bf16, unpack_bf16, gather_f32,  gemm_f32,  4},
        [NI_Q4_0] = {dot_q4_0, unpack_q4_0, gather_q4_0, gemm_q4_0, 12, NI_LONG_SLAB},
        [NI_Q4_1] = {dot_q4_1, unpack_q4_1, gather_min,  gemm_min,  12, NI_LONG_SLAB},
        [NI_Q5_0] = {dot_q5_0, unpack_q5_0, gather_q5_0, gemm_q5_0, 8, NI_LONG_SLAB},
        [NI_Q5_1] = {dot_q5_1, unpack_q5_1, gather_min,  gemm_min,  12, NI_LONG_SLAB},
        [NI_Q8_0] = {dot_q8_0, unpack_q8_0, gather_q8_0, gemm_q8_0, 16, NI_LONG_SLAB},
        [NI_Q4_K] = {dot_q4_k, unpack_q4_k, gather_min,  gemm_min,  12, NI_LONG_SLAB},
        [NI_Q5_K] = {dot_q5_k, unpack_q5_k, gather_min,  gemm_min,  12, NI_LONG_SLAB},
        [NI_Q6_K] = {dot_q6_k, unpack_q6_k, gather_q6_k, gemm_q6_k, 12},
        [NI_Q2_K] = {dot_q2_k, unpack_q2_k, gather_q2_k, gemm_q2_k, 10},
        [NI_Q3_K] = {dot_q3_k, unpack_q3_k, gather_q3_k, gemm_q3_k, 8},
        [NI_TQ1_0] = {NULL, unpack_tq1_0, gather_offset1, gemm_offset1, 0, NI_LONG_SLAB},
        [NI_TQ2_0] = {dot_tq2_0, unpack_tq2_0, gather_offset1, gemm_offset1, 10, NI_LONG_SLAB},
        [NI_Q1_0] = {dot_q1_0, unpack_q1_0, gather_offset1, gemm_offset1, 10, NI_LONG_SLAB},
        [NI_Q2_0] = {dot_q2_0, unpack_q2_0, gather_offset1, gemm_offset1, 10, NI_LONG_SLAB},
        [NI_IQ4_NL] = {dot_iq4_nl, unpack_iq4_nl, gather_q8_0, gemm_q8_0, 5, NI_LONG_SLAB},
        [NI_IQ4_XS] = {dot_iq4_xs, unpack_iq4_xs, gather_q8_0, gemm_q8_0, 4, NI_LONG_SLAB},
        [NI_MXFP4] = {dot_mxfp4, unpack_mxfp4, gather_mxfp4, gemm_mxfp4, 5, NI_LONG_SLAB},
        [NI_NVFP4] = {dot_nvfp4, unpack_nvfp4, gather_nvfp4, gemm_nvfp4, 4},
        [NI_IQ3_XXS] = {dot_iq3_xxs, unpack_iq3_xxs, gather_seven, gemm_seven, 1, NI_LONG_SLAB},
        [NI_IQ3_S]   = {dot_iq3_s,   unpack_iq3_s,   gather_q5_0,  gemm_q5_0,  1, NI_LONG_SLAB},
        [NI_IQ2_XXS] = {dot_iq2_xxs, unpack_iq2_xxs, gather_seven, gemm_seven, 1, NI_LONG_SLAB},
        [NI_IQ2_XS]  = {dot_iq2_xs,  unpack_iq2_xs,  gather_seven_nested, gemm_q6_k, 1},
        [NI_IQ2_S]   = {dot_iq2_s,   unpack_iq2_s,   gather_seven_nested, gemm_q6_k, 1},
        [NI_IQ1_S]   = {dot_iq1_s,   unpack_iq1_s,   gather_q5_0,  gemm_q5_0,  1, NI_LONG_SLAB},
        [NI_IQ1_M]   = {dot_iq1_m,   unpack_iq1_m,   gather_q6_k,  gemm_q6_k,  1},
        [NI_IQ4_K]   = {dot_iq4_k, unpack_iq4_k, gather_offset128, gemm_nvfp4, 2},
        [NI_IQ5_K]   = {dot_iq5_k, unpack_iq5_k, gather_offset128, gemm_nvfp4, 1},
        [NI_IQ6_K]   = {dot_iq6_k, unpack_iq6_k, gather_offset128, gemm_nvfp4, 1},
        [NI_IQ3_K]   = {dot_iq3_k, unpack_iq3_k, gather_offset128, gemm_nvfp4, 2},
        [NI_IQ2_K]   = {dot_iq2_k, unpack_iq2_k, gather_offset128, gemm_nvfp4, 2},
        [NI_Q6_0]    = {dot_q6_0, unpack_q6_0, gather_q8_0, gemm_q8_0, 4, NI_LONG_SLAB},
        [NI_IQ4_KS]  = {dot_iq4_ks, unpack_iq4_ks, gather_q8_0, gemm_q8_0, 3, NI_LONG_SLAB},
        [NI_IQ5_KS]  = {dot_iq5_ks, unpack_iq5_ks, gather_q8_0, gemm_q8_0, 2, NI_LONG_SLAB},
        [NI_IQ3_KS]  = {dot_iq3_ks, unpack_iq3_ks, gather_q8_0, gemm_q8_0, 2, NI_LONG_SLAB},
        [NI_IQ2_KS]  = {dot_iq2_ks, unpack_iq2_ks, gather_q8_0, gemm_q8_0, 3, NI_LONG_SLAB},
        [NI_IQ2_KL]  = {dot_iq2_kl, unpack_iq2_kl, gather_q8_0, gemm_q8_0, 2, NI_LONG_SLAB},
        [NI_IQ4_KSS] = {dot_iq4_kss, unpack_iq4_kss, gather_q8_0, gemm_q8_0, 2, NI_LONG_SLAB},
        [NI_IQ1_KT]  = {dot_iq1_kt, unpack_iq1_kt, gather_q8_0, gemm_q8_0, 1, NI_LONG_SLAB},
        [NI_IQ2_KT]  = {dot_iq2_kt, unpack_iq2_kt, gather_q8_0, gemm_q8_0, 1, NI_LONG_SLAB},
        [NI_IQ3_KT]  = {dot_iq3_kt, unpack_iq3_kt, gather_q8_0, gemm_q8_0, 1, NI_LONG_SLAB},
        [NI_IQ4_KT]  = {dot_iq4_kt, unpack_iq4_kt, gather_q8_0, gemm_q8_0, 1, NI_LONG_SLAB},
    },
    .dots = {
        [NI_Q4_0] = dots_q4_0, [NI_Q4_1] = dots_q4_1, [NI_Q5_0] = dots_q5_0, [NI_Q5_1] = dots_q5_1, [NI_Q8_0] = dots_q8_0,
        [NI_Q4_K] = dots_q4_k, [NI_Q5_K] = dots_q5_k, [NI_Q6_K] = dots_q6_k,
    },
    .panel_dots = NI_VEC(panel_dots),
    .vec = NI_VEC_TABLE,
};
#endif
