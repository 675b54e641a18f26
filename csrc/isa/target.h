/* Which tables are compiled here, and for what.  Tests define NI_SIMDE: every table, for a CPU that has none of its
 * instructions, with an emulation that gcc's -include brings in (tests/cross/simde_x86.h, simde_arm.h). */
#ifndef NI_TARGET_H
#define NI_TARGET_H

#if defined(__x86_64__) || defined(NI_SIMDE)
#define NI_X86 1
#endif
#if defined(__aarch64__) || defined(NI_SIMDE)
#define NI_ARM 1
#endif

/* Stands before every include that holds code of a table. */
#if defined(NI_SIMDE)
#define NI_TARGET(features)
#else
#define NI_TARGET(features) NI_PRAGMA(GCC target(features))
#define NI_PRAGMA(text) _Pragma(#text)
#endif
#endif
