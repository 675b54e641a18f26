/* A dot of every type through panels, for those of which a table has none.  Included by a table's file, after NI_VEC is defined. */
#ifndef NI_PANEL_DOTS_H
#define NI_PANEL_DOTS_H
#include "kernels.h"

#define NI_FORMAT(NAME, name, ...)                                                                          \
    static void NI_VEC(panel_dot_##name)(const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) {   \
        ni_dot_by_panels(&NI_VEC(ni_kernels), NI_##NAME, w, n_groups, x, y);                                \
    }
#include "../formats/formats.def"
#undef NI_FORMAT

static ni_dot *const NI_VEC(panel_dots)[NI_N_TYPES] = {
#define NI_FORMAT(NAME, name, ...) NI_VEC(panel_dot_##name),
#include "../formats/formats.def"
#undef NI_FORMAT
};
#endif
