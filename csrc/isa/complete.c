/* Fills the slots that an instruction set leaves empty (kernels.h says with what).  Once per table, so that no caller asks for NULL. */
#include "kernels.h"

/* The type of `own` whose gather and gemm serve t: t's own, or those of another type with the same panels, of which the one with the
 * smallest quants, for narrow quants may have faster kernels.  NI_N_TYPES: none. */
static int gemm_for(const ni_own_kernels *own, int t) {
    const ni_format *wanted = &ni_formats[t];
    int best = NI_N_TYPES;
    if (own->types[t].gemm) return t;
    for (int i = 0; i < NI_N_TYPES; i++) {
        const ni_format *f = &ni_formats[i];
        if (!own->types[i].gemm || f->kind != wanted->kind || f->sub != wanted->sub || f->offset != wanted->offset) continue;
        if (f->max_q < wanted->max_q || (best < NI_N_TYPES && f->max_q >= ni_formats[best].max_q)) continue;
        best = i;
    }
    return best;
}

void ni_complete(ni_kernels *table, const ni_own_kernels *own) {
    table->name = own->name;
    table->vec = own->vec;
    for (int t = 0; t < NI_N_TYPES; t++) {
        const struct ni_own_type *mine = &own->types[t], *scalar = &ni_own_scalar.types[t];
        const int from = gemm_for(own, t);
        const struct ni_own_type *pair = from < NI_N_TYPES ? &own->types[from] : scalar;
        table->dot[t] = mine->dot ? mine->dot : own->panel_dots[t];
        table->dots[t] = own->dots[t];
        table->few[t] = mine->dot ? mine->few : 0;
        table->unpack[t] = mine->unpack ? mine->unpack : scalar->unpack;
        table->gather[t] = pair->gather, table->gemm[t] = pair->gemm, table->slab[t] = pair->slab;
    }
}

void ni_dot_by_panels(const ni_kernels *table, ni_type type, const uint8_t *w, int64_t n_groups, const ni_act *x, float *y) {
    _Alignas(64) uint8_t q[NI_LONG_SLAB * NI_ROWS], memory[NI_SLAB_BYTES];
    float scale[NI_PANEL_SUBS * NI_ROWS], min[NI_PANEL_SUBS * NI_ROWS], f[NI_SLAB * NI_ROWS];
    ni_panel panel = {q, scale, min, f};
    const int64_t slab = table->slab[type] > NI_SLAB ? table->slab[type] : NI_SLAB;
    const size_t group_bytes = ni_group_bytes(type, x->k);
    for (int64_t g = 0; g < n_groups; g++, w += group_bytes, y += NI_ROWS) {
        float acc[NI_ROWS] = {0}, accm[NI_ROWS] = {0};
        for (int64_t k0 = 0; k0 < x->k; k0 += slab) {
            const int64_t nk = x->k - k0 < slab ? x->k - k0 : slab;
            ni_act part;
            table->gather[type](x, k0, nk, 1, memory, &part);
            table->unpack[type](w, k0, nk, &panel);
            table->gemm[type](&panel, 0, nk, &part, 1, acc, accm);
        }
        for (int r = 0; r < NI_ROWS; r++) y[r] = ni_formats[type].kind == NI_PANEL_MIN ? acc[r] + accm[r] : acc[r];
    }
}
