// 16 numbers at a time, from an instruction set's own vectors.
//
// Included by each isa_*.cpp behind its simd_*.h, which defines in an anonymous namespace:
//   V, VI, VM   vectors of W floats, of W int32, and the outcome of a comparison
//   v_*         the operations used below
//   dots8, dots4, dots_values: products of bytes, see there
// All of it has internal linkage: the linker must not take a function compiled for one processor for another's. For the
// same reason no template of the standard library is used here.
#pragma once

namespace doge::cpu {
namespace {

constexpr int COUNT = 16 / W;

struct F {
    V v[COUNT];
};
struct I {
    VI v[COUNT];
};
struct Mask {
    VM v[COUNT];
};

#define DOGE_EACH for (int i = 0; i < COUNT; i++)

inline F load(const float* p) { F r; DOGE_EACH r.v[i] = v_load(p + i * W); return r; }
inline void store(float* p, F a) { DOGE_EACH v_store(p + i * W, a.v[i]); }
inline F splat(float x) { F r; DOGE_EACH r.v[i] = v_splat(x); return r; }
inline F add(F a, F b) { DOGE_EACH a.v[i] = v_add(a.v[i], b.v[i]); return a; }
inline F sub(F a, F b) { DOGE_EACH a.v[i] = v_sub(a.v[i], b.v[i]); return a; }
inline F mul(F a, F b) { DOGE_EACH a.v[i] = v_mul(a.v[i], b.v[i]); return a; }
inline F div(F a, F b) { DOGE_EACH a.v[i] = v_div(a.v[i], b.v[i]); return a; }
inline F fma(F a, F b, F c) { DOGE_EACH c.v[i] = v_fma(a.v[i], b.v[i], c.v[i]); return c; }  // a * b + c
// b where either is NaN; NEON alone gives NaN then
inline F max(F a, F b) { DOGE_EACH a.v[i] = v_max(a.v[i], b.v[i]); return a; }
inline F abs(F a) { DOGE_EACH a.v[i] = v_abs(a.v[i]); return a; }
inline F nearest(F a) { DOGE_EACH a.v[i] = v_nearest(a.v[i]); return a; }
inline F pow2(F a) { DOGE_EACH a.v[i] = v_pow2(a.v[i]); return a; }  // of whole numbers from -126 to 127
inline F to_float(I a) { F r; DOGE_EACH r.v[i] = v_to_float(a.v[i]); return r; }
inline I to_int(F a) { I r; DOGE_EACH r.v[i] = v_to_int(a.v[i]); return r; }  // of whole numbers
inline I splat_int(int32_t x) { I r; DOGE_EACH r.v[i] = v_splat_int(x); return r; }
inline I add(I a, I b) { DOGE_EACH a.v[i] = v_add_int(a.v[i], b.v[i]); return a; }
inline void store(int32_t* p, I a) { DOGE_EACH v_store_int(p + i * W, a.v[i]); }
inline Mask greater(F a, F b) { Mask r; DOGE_EACH r.v[i] = v_greater(a.v[i], b.v[i]); return r; }
inline Mask equal(F a, F b) { Mask r; DOGE_EACH r.v[i] = v_equal(a.v[i], b.v[i]); return r; }
inline Mask both(Mask a, Mask b) { DOGE_EACH a.v[i] = v_both(a.v[i], b.v[i]); return a; }
inline Mask either(Mask a, Mask b) { DOGE_EACH a.v[i] = v_either(a.v[i], b.v[i]); return a; }
inline F select(Mask m, F yes, F no) { DOGE_EACH yes.v[i] = v_select(m.v[i], yes.v[i], no.v[i]); return yes; }

inline float sum(F a) {
    V r = a.v[0];
    for (int i = 1; i < COUNT; i++) r = v_add(r, a.v[i]);
    return v_sum(r);
}
inline float largest(F a) {
    V r = a.v[0];
    for (int i = 1; i < COUNT; i++) r = v_max(r, a.v[i]);
    return v_largest(r);
}
inline int32_t sum(I a) {
    VI r = a.v[0];
    for (int i = 1; i < COUNT; i++) r = v_add_int(r, a.v[i]);
    return v_sum_int(r);
}

inline F lanes() {
    static const float from_zero[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load(from_zero);
}

// exp, to 2 units in the last place; 0 below -87 and of NaN, exp(88) above 88, for pow2 knows no more
inline F exp(F x) {
    const F low = splat(-87.0f), high = splat(88.0f);
    const F inside = select(greater(x, high), high, max(x, low));
    const F t = mul(inside, splat(1.44269504f)), n = nearest(t), f = sub(t, n);
    F p = splat(1.5403530e-4f);
    p = fma(p, f, splat(1.3333558e-3f));
    p = fma(p, f, splat(9.6181291e-3f));
    p = fma(p, f, splat(5.5504109e-2f));
    p = fma(p, f, splat(2.4022651e-1f));
    p = fma(p, f, splat(6.9314718e-1f));
    p = fma(p, f, splat(1.0f));
    return select(greater(x, low), mul(p, pow2(n)), splat(0.0f));
}

inline F silu(F x) { return div(x, add(splat(1.0f), exp(sub(splat(0.0f), x)))); }

}  // namespace
}  // namespace doge::cpu
