/* The AVX-VNNI table: AVX2 with vpdpbusd on ymm registers (Intel's client CPUs since 2021 and servers since 2023, AMD's
 * since 2024).  Only what multiplies quants differs from the AVX2 table. */
#include "target.h"
#if NI_X86 && __GNUC__ >= 11   /* older ones do not know it */
NI_TARGET("avxvnni,avx2,fma,f16c,bmi2")
#define V16_AVX2
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"   /* the AVX2 kernels that are not taken over */
#include "avx2_dot.h"
#include "avx2_gemm.h"
#include "avx2_unpack.h"
#include "avx2_units.h"
#include "avx2_table4.h"
#include "avx2_codebook_gemm.h"
#pragma GCC diagnostic pop
#include "avxvnni_dot.h"
#include "avxvnni_gemm.h"
#include "avxvnni_units.h"
#include "avxvnni_table4.h"
#define CB_VNNI
#include "avx2_codebook.h"
#include "avx2_ik.h"
#include "gather_impl.h"

#define NI_VEC(name) name##_avxvnni
#include "vec_impl.h"
#include "panel_dots.h"

const ni_own_kernels ni_own_avxvnni = {
    .name = "avxvnni",
    /* dot, unpack, gather, gemm, few.  Types whose panels are alike share the last two kernels. */
    /* few: measured on Zen 4, where vpdpbusd has another encoding; of the types of 1 to 3 bits, and of ik_llama.cpp's, on Zen 5; of those with
     * tables of 16 estimated. */
    .types = {
        [NI_F32]  = {dot_f32,       unpack_f32,  gather_f32,    gemm_f32,       2},
        [NI_F16]  = {dot_f16,       unpack_f16,  gather_f32,    gemm_f32,       12},
        [NI_BF16] = {dot_bf16,      unpack_bf16, gather_f32,    gemm_f32,       8},
        [NI_Q4_0] = {dot_vnni_q4_0, unpack_q4_0, gather_quants, gemm_vnni_q4_0, 5},
        [NI_Q4_1] = {dot_vnni_q4_1, unpack_q4_1, gather_quants, gemm_vnni_min,  6},
        [NI_Q5_0] = {dot_vnni_q5_0, unpack_q5_0, gather_quants, gemm_vnni_q5_0, 2},
        [NI_Q5_1] = {dot_vnni_q5_1, unpack_q5_1, gather_quants, gemm_vnni_min,  2},
        [NI_Q8_0] = {dot_vnni_q8_0, unpack_q8_0, gather_quants, gemm_vnni_q8_0, 4},
        [NI_Q4_K] = {dot_vnni_q4_k, unpack_q4_k, gather_quants, gemm_vnni_min,  6},
        [NI_Q5_K] = {dot_vnni_q5_k, unpack_q5_k, gather_quants, gemm_vnni_min,  2},
        [NI_Q6_K] = {dot_q6_k,      unpack_q6_k, gather_quants, gemm_q6_k,      3},
        [NI_Q2_K] = {dot_vnni_q2_k, unpack_q2_k, gather_quants, gemm_vnni_q2_k, 12},
        [NI_Q3_K] = {dot_vnni_q3_k, unpack_q3_k, gather_quants, gemm_vnni_q3_k, 8},
        [NI_TQ1_0] = {NULL, unpack_tq1_0, gather_quants, gemm_vnni_offset1},
        [NI_TQ2_0] = {dot_vnni_tq2_0, unpack_tq2_0, gather_quants, gemm_vnni_offset1, 7},
        [NI_Q1_0] = {dot_vnni_q1_0, unpack_q1_0, gather_quants, gemm_vnni_offset1, 6},
        [NI_Q2_0] = {dot_vnni_q2_0, unpack_q2_0, gather_quants, gemm_vnni_offset1, 6},
        [NI_IQ4_NL] = {dot_vnni_iq4_nl, unpack_iq4_nl, gather_quants, gemm_vnni_q8_0, 4},
        [NI_IQ4_XS] = {dot_vnni_iq4_xs, unpack_iq4_xs, gather_quants, gemm_vnni_q8_0, 4},
        [NI_MXFP4] = {dot_vnni_mxfp4, unpack_mxfp4, gather_quants, gemm_vnni_mxfp4, 3},
        [NI_NVFP4] = {dot_vnni_nvfp4, unpack_nvfp4, gather_quants, gemm_nvfp4, 3},
        [NI_IQ3_XXS] = {dot_iq3_xxs, unpack_iq3_xxs, gather_quants, gemm_vnni_seven,   1},
        [NI_IQ3_S]   = {dot_iq3_s,   unpack_iq3_s,   gather_quants, gemm_vnni_q5_0,    1},
        [NI_IQ2_XXS] = {dot_iq2_xxs, unpack_iq2_xxs, gather_quants, gemm_vnni_seven,   1},
        [NI_IQ2_XS]  = {dot_iq2_xs,  unpack_iq2_xs,  gather_quants, gemm_seven_nested, 1},
        [NI_IQ2_S]   = {dot_iq2_s,   unpack_iq2_s,   gather_quants, gemm_seven_nested, 1},
        [NI_IQ1_S]   = {dot_iq1_s,   unpack_iq1_s,   gather_quants, gemm_vnni_q5_0,    1},
        [NI_IQ1_M]   = {dot_iq1_m,   unpack_iq1_m,   gather_quants, gemm_q6_k,         1},
        [NI_IQ4_K]   = {dot_iq4_k, unpack_iq4_k, gather_quants, gemm_offset128, 3},
        [NI_IQ5_K]   = {dot_iq5_k, unpack_iq5_k, gather_quants, gemm_offset128, 1},
        [NI_IQ6_K]   = {dot_iq6_k, unpack_iq6_k, gather_quants, gemm_offset128, 1},
        [NI_IQ3_K]   = {dot_iq3_k, unpack_iq3_k, gather_quants, gemm_offset128, 2},
        [NI_IQ2_K]   = {dot_iq2_k, unpack_iq2_k, gather_quants, gemm_offset128, 4},
        [NI_Q6_0]    = {dot_q6_0, unpack_q6_0, gather_quants, gemm_vnni_q8_0, 2},
        [NI_IQ4_KS]  = {dot_iq4_ks, unpack_iq4_ks, gather_quants, gemm_vnni_q8_0, 2},
        [NI_IQ5_KS]  = {dot_iq5_ks, unpack_iq5_ks, gather_quants, gemm_vnni_q8_0, 2},
        [NI_IQ3_KS]  = {dot_iq3_ks, unpack_iq3_ks, gather_quants, gemm_vnni_q8_0, 1},
        [NI_IQ2_KS]  = {dot_iq2_ks, unpack_iq2_ks, gather_quants, gemm_vnni_q8_0, 2},
        [NI_IQ2_KL]  = {dot_iq2_kl, unpack_iq2_kl, gather_quants, gemm_vnni_q8_0, 1},
        [NI_IQ4_KSS] = {dot_iq4_kss, unpack_iq4_kss, gather_quants, gemm_vnni_q8_0, 1},
        [NI_IQ1_KT]  = {dot_iq1_kt, unpack_iq1_kt, gather_quants, gemm_vnni_q8_0, 1},
        [NI_IQ2_KT]  = {dot_iq2_kt, unpack_iq2_kt, gather_quants, gemm_vnni_q8_0, 1},
        [NI_IQ3_KT]  = {dot_iq3_kt, unpack_iq3_kt, gather_quants, gemm_vnni_q8_0, 1},
        [NI_IQ4_KT]  = {dot_iq4_kt, unpack_iq4_kt, gather_quants, gemm_vnni_q8_0, 1},
    },
    .panel_dots = NI_VEC(panel_dots),
    .vec = NI_VEC_TABLE,
};
#endif
