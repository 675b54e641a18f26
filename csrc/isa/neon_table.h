/* The slots of a NEON table; NI_VEC names its vector kernels.  `few` stays 0: no Arm machine has timed it. */
#define NI_NEON_TABLE(table_name)                                                                                 \
    {                                                                                                            \
        .name = table_name,                                                                                      \
        .dot = {[NI_F32] = dot_f32, [NI_F16] = dot_f16, [NI_BF16] = dot_bf16,                                    \
                [NI_Q4_0] = dot_q4_0, [NI_Q4_1] = dot_q4_1, [NI_Q5_0] = dot_q5_0, [NI_Q5_1] = dot_q5_1,          \
                [NI_Q8_0] = dot_q8_0, [NI_Q4_K] = dot_q4_k, [NI_Q5_K] = dot_q5_k, [NI_Q6_K] = dot_q6_k},         \
        .unpack = {[NI_F32] = unpack_f32, [NI_F16] = unpack_f16, [NI_BF16] = unpack_bf16,                        \
                   [NI_Q4_0] = unpack_q4_0, [NI_Q4_1] = unpack_q4_1, [NI_Q5_0] = unpack_q5_0,                    \
                   [NI_Q5_1] = unpack_q5_1, [NI_Q8_0] = unpack_q8_0, [NI_Q4_K] = unpack_q4_k,                    \
                   [NI_Q5_K] = unpack_q5_k, [NI_Q6_K] = unpack_q6_k},                                            \
        .gemm = {[NI_F32] = gemm_f32, [NI_F16] = gemm_f32, [NI_BF16] = gemm_f32,                                 \
                 [NI_Q4_0] = gemm_q4_0, [NI_Q4_1] = gemm_min, [NI_Q5_0] = gemm_q5_0, [NI_Q5_1] = gemm_min,       \
                 [NI_Q8_0] = gemm_q8_0, [NI_Q4_K] = gemm_min, [NI_Q5_K] = gemm_min, [NI_Q6_K] = gemm_q6_k},      \
        .gather = NI_GATHERS,                                                                                        \
        .vec = NI_VEC_TABLE,                                                                                     \
    }
