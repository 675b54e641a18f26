/* The one place that brings in the compiler's intrinsics; under NI_SIMDE (target.h) they are there already. */
#ifndef NI_INTRINSICS_H
#define NI_INTRINSICS_H
#include "target.h"
#if !defined(NI_SIMDE)
#if NI_X86
#include <immintrin.h>
#elif NI_ARM
#include <arm_neon.h>
#endif
#endif
#endif
