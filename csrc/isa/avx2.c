/* The AVX2 table (with FMA and F16C). */
#include "target.h"
#if NI_X86
NI_TARGET("avx2,fma,f16c,bmi2")
#define V16_AVX2
#include "avx2_dot.h"
#include "avx2_gemm.h"
#include "avx2_unpack.h"
#include "gather_impl.h"

#define NI_VEC(name) name##_avx2
#include "vec_impl.h"

const ni_kernels ni_kernels_avx2 = {
    .name = "avx2",
    .dot = {[NI_F32] = dot_f32, [NI_F16] = dot_f16, [NI_BF16] = dot_bf16,
            [NI_Q4_0] = dot_q4_0, [NI_Q4_1] = dot_q4_1, [NI_Q5_0] = dot_q5_0, [NI_Q5_1] = dot_q5_1,
            [NI_Q8_0] = dot_q8_0, [NI_Q4_K] = dot_q4_k, [NI_Q5_K] = dot_q5_k, [NI_Q6_K] = dot_q6_k},
    .unpack = {[NI_F32] = unpack_f32, [NI_F16] = unpack_f16, [NI_BF16] = unpack_bf16,
               [NI_Q4_0] = unpack_q4_0, [NI_Q4_1] = unpack_q4_1, [NI_Q5_0] = unpack_q5_0, [NI_Q5_1] = unpack_q5_1,
               [NI_Q8_0] = unpack_q8_0, [NI_Q4_K] = unpack_q4_k, [NI_Q5_K] = unpack_q5_k, [NI_Q6_K] = unpack_q6_k},
    /* Formats with the same kind of panel share their kernel. */
    .gemm = {[NI_F32] = gemm_f32, [NI_F16] = gemm_f32, [NI_BF16] = gemm_f32,
             [NI_Q4_0] = gemm_q4_0, [NI_Q4_1] = gemm_q4_1, [NI_Q5_0] = gemm_q5_0, [NI_Q5_1] = gemm_q5_1,
             [NI_Q8_0] = gemm_q8_0, [NI_Q4_K] = gemm_q4_1, [NI_Q5_K] = gemm_q5_1, [NI_Q6_K] = gemm_q6_k},
    .gather = {[NI_F32] = gather_f32, [NI_F16] = gather_f32, [NI_BF16] = gather_f32,
             [NI_Q4_0] = gather_q4_0, [NI_Q4_1] = gather_quants, [NI_Q5_0] = gather_quants, [NI_Q5_1] = gather_quants,
             [NI_Q8_0] = gather_q8_0, [NI_Q4_K] = gather_quants, [NI_Q5_K] = gather_quants, [NI_Q6_K] = gather_quants},
    .few = {[NI_F32] = 2, [NI_F16] = 12, [NI_BF16] = 8, [NI_Q4_0] = 5, [NI_Q4_1] = 5, [NI_Q5_0] = 2, [NI_Q5_1] = 2,
            [NI_Q8_0] = 9, [NI_Q4_K] = 4, [NI_Q5_K] = 2, [NI_Q6_K] = 4},
    .vec = NI_VEC_TABLE,
};
#endif
