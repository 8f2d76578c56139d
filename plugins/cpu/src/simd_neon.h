// NEON with the dot products of ARMv8.2.
#pragma once
#include <arm_neon.h>
#include <math.h>

#include <cstdint>
#include <cstring>

namespace doge::cpu {
namespace {

constexpr int W = 4;
constexpr int FLOAT_TILE = 6, CODE_TILE = 6;  // tokens whose sums, 24 registers of 32, leave room for weights
typedef float32x4_t V;
typedef int32x4_t VI;
typedef uint32x4_t VM;

inline V v_load(const float* p) { return vld1q_f32(p); }
inline void v_store(float* p, V a) { vst1q_f32(p, a); }
inline V v_splat(float x) { return vdupq_n_f32(x); }
inline V v_add(V a, V b) { return vaddq_f32(a, b); }
inline V v_sub(V a, V b) { return vsubq_f32(a, b); }
inline V v_mul(V a, V b) { return vmulq_f32(a, b); }
inline V v_div(V a, V b) { return vdivq_f32(a, b); }
inline V v_fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline V v_max(V a, V b) { return vmaxq_f32(a, b); }
inline V v_abs(V a) { return vabsq_f32(a); }
inline V v_nearest(V a) { return vrndnq_f32(a); }
inline V v_pow2(V a) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(a), vdupq_n_s32(127)), 23)); }
inline V v_to_float(VI a) { return vcvtq_f32_s32(a); }
inline VI v_to_int(V a) { return vcvtq_s32_f32(a); }
inline VI v_splat_int(int32_t x) { return vdupq_n_s32(x); }
inline VI v_add_int(VI a, VI b) { return vaddq_s32(a, b); }
inline void v_store_int(int32_t* p, VI a) { vst1q_s32(p, a); }
inline VM v_greater(V a, V b) { return vcgtq_f32(a, b); }
inline VM v_equal(V a, V b) { return vceqq_f32(a, b); }
inline VM v_both(VM a, VM b) { return vandq_u32(a, b); }
inline VM v_either(VM a, VM b) { return vorrq_u32(a, b); }
inline V v_select(VM m, V yes, V no) { return vbslq_f32(m, yes, no); }
inline float v_sum(V a) { return vaddvq_f32(a); }
inline float v_largest(V a) { return vmaxvq_f32(a); }
inline int32_t v_sum_int(VI a) { return vaddvq_s32(a); }

}  // namespace
}  // namespace doge::cpu

#include "simd.h"

namespace doge::cpu {
namespace {

#include "plain_conversions.inc"

inline int8x16_t four(const void* p) {  // 4 bytes for each of 4 rows
    int32_t x;
    memcpy(&x, p, sizeof x);
    return vreinterpretq_s8_s32(vdupq_n_s32(x));
}

template <int M>
inline void dots8(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t*, I* acc) {
    const uint8x16_t zero = vdupq_n_u8(128);
    I a[M];
    for (int t = 0; t < M; t++) a[t] = acc[t];
    for (int c = 0; c < chunks; c++) {
        int8x16_t weights[4];
        for (int i = 0; i < 4; i++) weights[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w + c * 64 + i * 16), zero));
        for (int t = 0; t < M; t++) {
            const int8x16_t x = four(q + size_t(t) * stride + size_t(c) * 4);
            for (int i = 0; i < 4; i++) a[t].v[i] = vdotq_s32(a[t].v[i], weights[i], x);
        }
    }
    for (int t = 0; t < M; t++) acc[t] = a[t];
}

template <int M>
inline void dots4(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    const uint8x16_t low = vdupq_n_u8(15);
    I a[M];
    for (int t = 0; t < M; t++) a[t] = add(acc[t], splat_int(-8 * sums[t]));
    for (int c = 0; c < chunks; c++) {
        for (int i = 0; i < 4; i++) {
            const uint8x16_t both = vld1q_u8(w + c * 64 + i * 16);
            const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(both, low));
            const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            for (int t = 0; t < M; t++) {
                const int8_t* x = q + size_t(t) * stride + size_t(c) * 8;
                a[t].v[i] = vdotq_s32(vdotq_s32(a[t].v[i], first, four(x)), second, four(x + 4));
            }
        }
    }
    for (int t = 0; t < M; t++) acc[t] = a[t];
}

template <int M>
inline void dots_values(const uint8_t* v, int chunks, const uint8_t* p, size_t stride, I* acc) {
    I a[M];
    for (int t = 0; t < M; t++) a[t] = acc[t];
    for (int c = 0; c < chunks; c++) {
        for (int i = 0; i < 4; i++) {
            const int8x16_t values = vreinterpretq_s8_u8(vld1q_u8(v + c * 64 + i * 16));
            for (int t = 0; t < M; t++) a[t].v[i] = vdotq_s32(a[t].v[i], values, four(p + size_t(t) * stride + size_t(c) * 4));
        }
    }
    for (int t = 0; t < M; t++) acc[t] = a[t];
}

}  // namespace
}  // namespace doge::cpu
