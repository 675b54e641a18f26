/* Copying a block of KV memory: every head by the node that owns its chunk, so that the copy is placed like the original. */
#include "team.h"
#include "isa/kernels.h"
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
#define NI_KV(name) #name,
#include "isa/kv.def"
#undef NI_KV
};

const char *ni_kv_name(int type) { return type < 0 || type >= NI_N_KV_TYPES ? NULL : names[type]; }

typedef struct {
    const ni_kv_layer *layers;
    int n_layers;
    int64_t chunk;
    const uint8_t *from;
    uint8_t *to;
} copy_job;

static void copy(const ni_worker *me, void *arg) {
    copy_job *job = arg;
    int64_t unit = 0;
    for (int l = 0; l < job->n_layers; l++) {
        const ni_kv_layer *layer = &job->layers[l];
        size_t bytes = ni_kv_chunk_bytes((ni_kv_type)layer->type, layer->e, layer->ev);
        for (int64_t g = 0; g < layer->n_heads; g++) {
            if (ni_kv_node(g, job->chunk, layer->n_heads, layer->turn, me->n_nodes) != me->node || unit++ % me->size != me->rank) continue;
            size_t at = (size_t)(layer->offset + g * layer->stride);
            memcpy(job->to + at, job->from + at, bytes);
        }
    }
    ni_team_barrier(me);
    if (me->worker == 0) free(job);
}

int ni_kv_copy_start(ni_team *t, const ni_kv_layer *layers, int n_layers, int64_t j, const uint8_t *from, uint8_t *to, ni_status *st) {
    copy_job *job = malloc(sizeof *job);
    if (!job) return ni_fail(st, NI_ERR_MEMORY, "no memory for a copying job");
    *job = (copy_job){layers, n_layers, j, from, to};
    int e = ni_team_start(t, copy, job, st);
    if (e) free(job);
    return e;
}

void ni_kv_clear(ni_kv_type type, int64_t e, int64_t ev, const float *zeros, uint8_t *chunk, int from) {
    const struct ni_kv_kernels *kv = &ni_k->vec.kv[type];
    uint8_t *values = chunk + NI_CHUNK * ni_kv_bytes(type, e);
    for (int p = from; p < NI_CHUNK; p++) {
        kv->store_key(zeros, ni_padded(e), chunk, p);
        kv->store_value(zeros, ni_padded(ev), values, p);
    }
}
