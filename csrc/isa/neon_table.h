/* What both NEON tables bring; the includer says the table's name and what NI_VEC is. */
    /* dot, unpack, gather, gemm.  Types whose panels are alike share the last two.  few stays 0: no Arm machine has timed it. */
    .types = {
        [NI_F32]  = {dot_f32,  unpack_f32,  gather_f32,    gemm_f32},
        [NI_F16]  = {dot_f16,  unpack_f16,  gather_f32,    gemm_f32},
        [NI_BF16] = {dot_bf16, unpack_bf16, gather_f32,    gemm_f32},
        [NI_Q4_0] = {dot_q4_0, unpack_q4_0, gather_quants, gemm_q4_0},
        [NI_Q4_1] = {dot_q4_1, unpack_q4_1, gather_quants, gemm_min},
        [NI_Q5_0] = {dot_q5_0, unpack_q5_0, gather_quants, gemm_q5_0},
        [NI_Q5_1] = {dot_q5_1, unpack_q5_1, gather_quants, gemm_min},
        [NI_Q8_0] = {dot_q8_0, unpack_q8_0, gather_quants, gemm_q8_0},
        [NI_Q4_K] = {dot_q4_k, unpack_q4_k, gather_quants, gemm_min},
        [NI_Q5_K] = {dot_q5_k, unpack_q5_k, gather_quants, gemm_min},
        [NI_Q6_K] = {dot_q6_k, unpack_q6_k, gather_quants, gemm_q6_k},
    },
    .panel_dots = NI_VEC(panel_dots),
    .vec = NI_VEC_TABLE,
