/* The Arm NEON table, with the dot product of Armv8.2 (Graviton 2, Ampere Altra and later). */
#include "target.h"
#if NI_ARM
NI_TARGET("arch=armv8.2-a+dotprod")
#define V16_NEON
#include "neon_dot.h"
#include "neon_sdot.h"
#include "neon_unpack.h"
#include "neon_units.h"
#include "neon_table4.h"
#include "neon_codebook.h"
#include "neon_ik.h"
#include "gather_impl.h"

#define NI_VEC(name) name##_neon
#include "vec_impl.h"
#include "panel_dots.h"

const ni_own_kernels ni_own_neon = {
    .name = "neon",
#include "neon_table.h"
};
#endif
