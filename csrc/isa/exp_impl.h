/* exp, tanh and what is built on them, over v16. Same bits in every table.
 *
 * exp(x) = 2^n e^r with n = rint(x / ln 2), |r| <= ln(2)/2, and e^r ~ 1 + r (1 + r s(r)), s of degree 4. The
 * coefficients of s are our own minimax fit of the relative error (Lawson's iteration; coefficients rounded to float
 * one by one, from the lowest, the rest refitted): 3.2e-9, a twentieth of an ulp. Measured: exp 0.9 ulp, silu 2.0 ulp,
 * tanh 3.4 ulp.
 */
#ifndef NI_EXP_IMPL_H
#define NI_EXP_IMPL_H
#include "v16.h"

#define NI_EXP_LOW (-87.3f)           /* below: exactly 0; from here on the result is a normal float */
#define NI_EXP_HIGH 0x1.62e42ep+6f    /* above: infinity; the largest float below ln(FLT_MAX) */

/* Splits x: returns q with e^r ~ 1 + r q, and r, and a float t whose low bits are n (for v16_shift_exponent). */
V16_FN v16 v16_exp_parts(v16 x, v16 *r, v16 *t) {
    v16 magic = v16_set1(0x1.8p23f);                            /* adding it rounds to an integer */
    *t = v16_fma(x, v16_set1(0x1.715476p0f), magic);            /* 1 / ln 2 */
    v16 n = v16_sub(*t, magic);
    *r = v16_fma(n, v16_set1(-0x1.62e43p-1f), x);               /* ln 2 = 0x1.62e43p-1 - 0x1.05c61p-29; this is exact */
    *r = v16_fma(n, v16_set1(0x1.05c61p-29f), *r);
    v16 s = v16_fma(v16_set1(0x1.6a4ecep-10f), *r, v16_set1(0x1.12399cp-7f));
    s = v16_fma(s, *r, v16_set1(0x1.5558bp-5f));
    s = v16_fma(s, *r, v16_set1(0x1.555492p-3f));
    s = v16_fma(s, *r, v16_set1(0x1.fffffcp-2f));
    return v16_fma(s, *r, v16_set1(1.0f));
}

/* exp(x) for x <= 0, -inf included; exp(0) = 1.  The exponent of 1 + r q is shifted by whole numbers: no rounding. */
V16_FN v16 v16_exp_neg(v16 x) {
    v16 r, t, q = v16_exp_parts(x, &r, &t);
    v16 y = v16_shift_exponent(v16_fma(q, r, v16_set1(1.0f)), t);
    return v16_select(v16_less(x, v16_set1(NI_EXP_LOW)), v16_set1(0.0f), y);
}

/* exp(x) for any x.  Same bits as v16_exp_neg where both are defined. */
V16_FN v16 v16_exp(v16 x) {
    return v16_select(v16_less(v16_set1(NI_EXP_HIGH), x), v16_set1(INFINITY), v16_exp_neg(x));
}

/* tanh(x) = u / (u + 2), u = exp(2 |x|) - 1 = 2^n r q + (2^n - 1): no cancellation for small x.  Odd; tanh(0) = 0.
 * From |x| = 10 on the quotient rounds to 1. */
V16_FN v16 v16_tanh(v16 x) {
    v16 r, t, a = v16_min(v16_set1(10.0f), v16_abs(x)), one = v16_set1(1.0f);
    v16 q = v16_exp_parts(v16_add(a, a), &r, &t);
    v16 p = v16_shift_exponent(one, t);
    v16 u = v16_fma(v16_mul(r, q), p, v16_sub(p, one));
    return v16_copysign(v16_div(u, v16_add(u, v16_set1(2.0f))), x);
}

/* exp(x) - 1 for x <= 0 = 2^n r q + (2^n - 1): no cancellation for small x.  From -20 on it rounds to -1. */
V16_FN v16 v16_expm1_neg(v16 x) {
    v16 r, t, one = v16_set1(1.0f), q = v16_exp_parts(v16_max(v16_set1(-20.0f), x), &r, &t);
    v16 p = v16_shift_exponent(one, t);
    return v16_fma(v16_mul(r, q), p, v16_sub(p, one));
}

/* log(1 + u) for 0 <= u <= 1: 2 atanh(z), z = u / (2 + u) <= 1/3, by its series to z^17: what is left out is 2e-10 of it. */
V16_FN v16 v16_log1p_unit(v16 u) {
    const v16 z = v16_div(u, v16_add(v16_set1(2.0f), u)), zz = v16_mul(z, z);
    v16 s = v16_set1(1.0f / 17);
    s = v16_fma(s, zz, v16_set1(1.0f / 15));
    s = v16_fma(s, zz, v16_set1(1.0f / 13));
    s = v16_fma(s, zz, v16_set1(1.0f / 11));
    s = v16_fma(s, zz, v16_set1(1.0f / 9));
    s = v16_fma(s, zz, v16_set1(1.0f / 7));
    s = v16_fma(s, zz, v16_set1(1.0f / 5));
    s = v16_fma(s, zz, v16_set1(1.0f / 3));
    const v16 twice = v16_add(z, z);
    return v16_fma(v16_mul(twice, zz), s, twice);
}

/* log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)) */
V16_FN v16 v16_softplus(v16 x) {
    const v16 e = v16_exp_neg(v16_sub(v16_set1(-0.0f), v16_abs(x)));
    return v16_add(v16_max(v16_set1(0.0f), x), v16_log1p_unit(e));
}

/* xIELU (arXiv:2411.13010): x (ap x + beta) for x > 0; an (exp(min(x, eps)) - 1 - x) + beta x for others. */
V16_FN v16 v16_xielu(v16 x, v16 ap, v16 an, v16 beta, v16 eps) {
    v16 plus = v16_mul(x, v16_fma(ap, x, beta));
    v16 minus = v16_fma(an, v16_sub(v16_expm1_neg(v16_min(x, eps)), x), v16_mul(beta, x));
    return v16_select(v16_less(v16_set1(0.0f), x), plus, minus);
}

/* One value; the same bits as the lanes of v16_exp_neg. */
V16_FN float v16_exp_neg1(float x) {
    float y[16];
    v16_store(y, v16_exp_neg(v16_set1(x)));
    return y[0];
}

/* g / (1 + exp(-g)) */
V16_FN v16 v16_silu(v16 g) {
    v16 e = v16_exp(v16_sub(v16_set1(-0.0f), g));
    return v16_div(g, v16_add(v16_set1(1.0f), e));
}

/* u / (1 + exp(-g)) */
V16_FN v16 v16_sigmoid_mul(v16 g, v16 u) {
    return v16_div(u, v16_add(v16_set1(1.0f), v16_exp(v16_sub(v16_set1(-0.0f), g))));
}

/* a / (1 + exp(-alpha a)) (b + 1), a = min(g, most), b = u from least to most; minus = -alpha.  The bounds come first in min and max:
 * so NaN stays. */
V16_FN v16 v16_clamped_mul(v16 g, v16 u, v16 minus, v16 most, v16 least) {
    const v16 one = v16_set1(1.0f), a = v16_min(most, g), b = v16_max(least, v16_min(most, u));
    return v16_mul(v16_div(a, v16_add(one, v16_exp(v16_mul(a, minus)))), v16_add(b, one));
}

/* 0.5 g (1 + tanh z) = g / (1 + exp(-2 z)), z = sqrt(2/pi) (g + 0.044715 g^3): the second form keeps its relative
 * precision where tanh z nears -1.  -2 z = g (a + b g^2). */
V16_FN v16 v16_gelu(v16 g) {
    v16 z = v16_fma(v16_mul(g, g), v16_set1(-0.0713548162726f), v16_set1(-1.59576912161f));
    return v16_div(g, v16_add(v16_set1(1.0f), v16_exp(v16_mul(g, z))));
}

/* c tanh(x / c) */
V16_FN v16 v16_softcap(v16 x, v16 c) { return v16_mul(c, v16_tanh(v16_div(x, c))); }

/* 0, or NaN if a number is NaN or infinite.  It is added to scales, which come from a maximum: a maximum drops NaN, and a broken file
 * would then give numbers that look like an answer. */
V16_FN float NI_VEC(poison)(v16 a, v16 b) { return v16_sum(v16_add(v16_sub(a, a), v16_sub(b, b))); }
#endif
