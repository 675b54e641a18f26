/* Recurrences over a matrix of state: the delta rule with decay (arXiv:2412.06464), and without a correction what linear
 * attention with decay (arXiv:2307.08621) and Mamba-2 (arXiv:2405.21060) do.
 *
 * A head's state S has a row for each value of its keys and a column for each of its values.  It lies in blocks of 16 columns,
 * [rows][16] floats each, so that columns, which have nothing to do with each other, are lanes and any number of blocks is a piece of
 * work.  For each token t in order, of one column (u = i mod 4, each of the four sums in order of i, added as (0 + 1) + (2 + 3)):
 *   e   = v[t], times beta[t] where there is beta; by the delta rule
 *         beta[t] * (v[t] - sum over i of fma(S[i], kd[t][i], sum_u))
 *   S[i] = fma(k[t][i], e, decay * S[i])     decay: of the token, or of its i-th row
 *   out[t] = sum over i of fma(S[i], q[t][i], sum_u)
 * kd is k times the decay, so that the sum is that over the decayed state.
 */
#ifndef NI_RECURRENCE_H
#define NI_RECURRENCE_H
#include <stdint.h>

enum { NI_STATE_COLUMNS = 16, NI_STATE_ROWS = 4 };     /* rows of a state are a multiple of the latter */

typedef struct {
    int64_t rows, blocks;
    int n_tokens;
    int wide;                   /* decay: 0: [token], 1: [token][rows] */
    int delta;                  /* 1: by the delta rule, with beta */
    const float *q, *k, *kd;    /* [token][rows]; kd is read for the delta rule alone */
    const float *decay;
    const float *beta;          /* [token], or NULL */
    const float *v;             /* 16 * blocks values of each token, tokens v_stride apart */
    float *out;                 /* the same, out_stride apart */
    int64_t v_stride, out_stride;
} ni_recurrence;

/* Selective scan (Mamba, arXiv:2312.00752): columns are channels, of which each row forgets at its own pace; all of them read the same b
 * and c.  Blocks, rows and sums are as above.  For each token t in order, of one channel, with d = log(1 + exp(dt[t])):
 *   S[i] = fma(b[t][i], d * x[t], exp(d * a[i]) * S[i])
 *   out[t] = fma(skip, x[t], sum over i of fma(S[i], c[t][i], sum_u))
 */
typedef struct {
    int64_t rows, channels;     /* the last block of channels may be less than full */
    int n_tokens;
    const float *a;             /* [channels / 16][rows][16]; in a block that is not full, any numbers for those that are not there */
    const float *skip;          /* [channels] */
    const float *b, *c;         /* [token][rows] */
    const float *x, *dt;        /* `channels` values of each token, tokens x_stride and dt_stride apart */
    float *out;                 /* the same, out_stride apart */
    int64_t x_stride, dt_stride, out_stride;
} ni_scan;
#endif
