/* The floating-point mode of a thread: it decides over bits, and belongs to whoever runs the thread. */
#include "ni.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
enum { DEFAULT = 0x1f80 };      /* MXCSR: all exceptions masked, nearest, neither FTZ nor DAZ */

uint64_t ni_floats_default(void) {
    uint64_t before = _mm_getcsr();
    _mm_setcsr(DEFAULT);
    return before;
}

void ni_floats_restore(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#elif defined(__aarch64__)
uint64_t ni_floats_default(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr\n\tmsr fpcr, xzr" : "=&r"(before) :: "memory");
    return before;
}

void ni_floats_restore(uint64_t mode) { __asm__ volatile("msr fpcr, %0" :: "r"(mode) : "memory"); }
#else
uint64_t ni_floats_default(void) { return 0; }
void ni_floats_restore(uint64_t mode) { (void)mode; }
#endif
