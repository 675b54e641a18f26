/* The Arm NEON table with the int8 matrix product (Graviton 3, Grace, AmpereOne and later): neon.c but for gemm. */
#include "target.h"
#if NI_ARM
NI_TARGET("arch=armv8.2-a+dotprod+i8mm")
#define V16_NEON
#include "neon_dot.h"
#include "neon_smmla.h"
#include "neon_unpack.h"
#include "neon_units.h"
#include "neon_table4.h"
#include "neon_codebook.h"
#include "neon_ik.h"
#include "gather_impl.h"

#define NI_VEC(name) name##_neon_i8mm
#include "vec_impl.h"
#include "panel_dots.h"

const ni_own_kernels ni_own_neon_i8mm = {
    .name = "neon_i8mm",
#include "neon_table.h"
};
#endif
