/* Copying a sequence's KV cache: every chunk by the node that owns it, so that the copy is placed like the original. */
#include "team.h"
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
    const uint8_t *from;
    uint8_t *to;
    int64_t n_pos;
} copy_job;

static void copy(const ni_worker *me, void *arg) {
    copy_job *job = arg;
    int64_t used = (job->n_pos + NI_CHUNK - 1) / NI_CHUNK, unit = 0;
    for (int l = 0; l < job->n_layers; l++) {
        const ni_kv_layer *layer = &job->layers[l];
        size_t bytes = ni_kv_chunk_bytes((ni_kv_type)layer->type, layer->e, layer->ev);
        for (int64_t g = 0; g < layer->n_heads; g++)
            for (int64_t j = 0; j < used; j++) {
                if (ni_kv_node(g, j, layer->n_heads, layer->turn, me->n_nodes) != me->node || unit++ % me->size != me->rank) continue;
                size_t at = (size_t)layer->layer_offset + (size_t)(g * layer->n_chunks + j) * bytes;
                memcpy(job->to + at, job->from + at, bytes);
            }
    }
    ni_team_barrier(me);
    if (me->worker == 0) free(job);
}

int ni_kv_copy_start(ni_team *t, const ni_kv_layer *layers, int n_layers, const uint8_t *from, uint8_t *to, int64_t n_pos, ni_status *st) {
    copy_job *job = malloc(sizeof *job);
    if (!job) return ni_fail(st, NI_ERR_MEMORY, "no memory for a copying job");
    *job = (copy_job){layers, n_layers, from, to, n_pos};
    int e = ni_team_start(t, copy, job, st);
    if (e) free(job);
    return e;
}
