// WebAssembly's SIMD128; with relaxed SIMD where the file is compiled for it.
#pragma once
#include <math.h>
#include <wasm_simd128.h>

#include <cstdint>
#include <cstring>

namespace doge::cpu {
namespace {

constexpr int W = 4;
constexpr int FLOAT_TILE = 2, CODE_TILE = 2;  // an x86 engine has 16 registers for all of this
typedef v128_t V;
typedef v128_t VI;
typedef v128_t VM;

inline V v_load(const float* p) { return wasm_v128_load(p); }
inline void v_store(float* p, V a) { wasm_v128_store(p, a); }
inline V v_splat(float x) { return wasm_f32x4_splat(x); }
inline V v_add(V a, V b) { return wasm_f32x4_add(a, b); }
inline V v_sub(V a, V b) { return wasm_f32x4_sub(a, b); }
inline V v_mul(V a, V b) { return wasm_f32x4_mul(a, b); }
inline V v_div(V a, V b) { return wasm_f32x4_div(a, b); }
#ifdef __wasm_relaxed_simd__
inline V v_fma(V a, V b, V c) { return wasm_f32x4_relaxed_madd(a, b, c); }
#else
inline V v_fma(V a, V b, V c) { return wasm_f32x4_add(wasm_f32x4_mul(a, b), c); }
#endif
inline V v_max(V a, V b) { return wasm_f32x4_pmax(b, a); }
inline V v_abs(V a) { return wasm_f32x4_abs(a); }
inline V v_nearest(V a) { return wasm_f32x4_nearest(a); }
inline VI v_to_int(V a) { return wasm_i32x4_trunc_sat_f32x4(a); }
inline V v_pow2(V a) { return wasm_i32x4_shl(wasm_i32x4_add(v_to_int(a), wasm_i32x4_splat(127)), 23); }
inline V v_to_float(VI a) { return wasm_f32x4_convert_i32x4(a); }
inline VI v_splat_int(int32_t x) { return wasm_i32x4_splat(x); }
inline VI v_add_int(VI a, VI b) { return wasm_i32x4_add(a, b); }
inline void v_store_int(int32_t* p, VI a) { wasm_v128_store(p, a); }
inline VM v_greater(V a, V b) { return wasm_f32x4_gt(a, b); }
inline VM v_equal(V a, V b) { return wasm_f32x4_eq(a, b); }
inline VM v_both(VM a, VM b) { return wasm_v128_and(a, b); }
inline VM v_either(VM a, VM b) { return wasm_v128_or(a, b); }
inline V v_select(VM m, V yes, V no) { return wasm_v128_bitselect(yes, no, m); }
inline float v_sum(V a) {
    a = wasm_f32x4_add(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
    return wasm_f32x4_extract_lane(a, 0) + wasm_f32x4_extract_lane(a, 1);
}
inline float v_largest(V a) {
    a = wasm_f32x4_pmax(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
    const float x = wasm_f32x4_extract_lane(a, 0), y = wasm_f32x4_extract_lane(a, 1);
    return x > y ? x : y;
}
inline int32_t v_sum_int(VI a) {
    a = wasm_i32x4_add(a, wasm_i32x4_shuffle(a, a, 2, 3, 0, 1));
    return wasm_i32x4_extract_lane(a, 0) + wasm_i32x4_extract_lane(a, 1);
}

}  // namespace
}  // namespace doge::cpu

#include "simd.h"

namespace doge::cpu {
namespace {

inline void store_codes(int8_t* p, I a) {  // of -127 to 127
    const v128_t low = wasm_i16x8_narrow_i32x4(a.v[0], a.v[1]), high = wasm_i16x8_narrow_i32x4(a.v[2], a.v[3]);
    wasm_v128_store(p, wasm_i8x16_narrow_i16x8(low, high));
}
inline F floats_of(v128_t low, v128_t high) {  // of 16 bits each
    return {v_to_float(wasm_i32x4_extend_low_i16x8(low)), v_to_float(wasm_i32x4_extend_high_i16x8(low)),
            v_to_float(wasm_i32x4_extend_low_i16x8(high)), v_to_float(wasm_i32x4_extend_high_i16x8(high))};
}
inline F load_codes8(const uint8_t* p) {  // code - 128
    const v128_t codes = wasm_v128_xor(wasm_v128_load(p), wasm_i8x16_splat(-128));
    return floats_of(wasm_i16x8_extend_low_i8x16(codes), wasm_i16x8_extend_high_i8x16(codes));
}
inline F load_codes4(const uint8_t* p) {  // of 8 bytes: code - 8
    const v128_t both = wasm_u16x8_load8x8(p), eight = wasm_i16x8_splat(8);
    const v128_t first = wasm_v128_and(both, wasm_i16x8_splat(15)), second = wasm_u16x8_shr(both, 4);
    return floats_of(wasm_i16x8_sub(first, eight), wasm_i16x8_sub(second, eight));
}
inline F load_bfloat16(const uint8_t* p) {
    F r;
    DOGE_EACH r.v[i] = wasm_i32x4_shl(wasm_u32x4_load16x4(p + i * 8), 16);
    return r;
}
inline F load_float16(const uint8_t* p) {
    F r;
    DOGE_EACH {  // see half.h
        const v128_t half = wasm_u32x4_load16x4(p + i * 8);
        const v128_t magnitude = wasm_i32x4_shl(wasm_v128_and(half, wasm_i32x4_splat(0x7fff)), 13);
        const v128_t sign = wasm_i32x4_shl(wasm_v128_and(half, wasm_i32x4_splat(0x8000)), 16);
        const v128_t number = wasm_f32x4_mul(magnitude, wasm_f32x4_splat(0x1p112f));
        const v128_t special = wasm_v128_or(magnitude, wasm_i32x4_splat(0x70000000));
        const VM is_number = wasm_i32x4_lt(magnitude, wasm_i32x4_splat(0x0f800000));
        r.v[i] = wasm_v128_or(v_select(is_number, number, special), sign);
    }
    return r;
}

#ifdef __wasm_relaxed_simd__

// The relaxed dot product is the same everywhere only if its second operand is 0 to 127. A code is twice its upper seven bits
// and its lowest bit; the activations, signed, are the first operand.
inline v128_t dot7(v128_t signed8, v128_t seven, v128_t acc) {
    return wasm_i32x4_relaxed_dot_i8x16_i7x16_add(signed8, seven, acc);
}

template <int M>
inline void dots8(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    const v128_t one = wasm_i8x16_splat(1);
    constexpr int ROWS = 4 / M;  // fours of them at once
    for (int i = 0; i < 4; i += ROWS) {
        v128_t upper[ROWS][M], lowest[ROWS][M];
        for (int r = 0; r < ROWS; r++)
            for (int t = 0; t < M; t++) upper[r][t] = wasm_i32x4_splat(-64 * sums[t]), lowest[r][t] = acc[t].v[i + r];
        for (int c = 0; c < chunks; c++) {
            v128_t x[M];
            for (int t = 0; t < M; t++) x[t] = wasm_v128_load32_splat(q + size_t(t) * stride + size_t(c) * 4);
            for (int r = 0; r < ROWS; r++) {
                const v128_t codes = wasm_v128_load(w + c * 64 + (i + r) * 16);
                const v128_t high = wasm_u8x16_shr(codes, 1), low = wasm_v128_and(codes, one);
                for (int t = 0; t < M; t++) {
                    upper[r][t] = dot7(x[t], high, upper[r][t]);
                    lowest[r][t] = dot7(x[t], low, lowest[r][t]);
                }
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int t = 0; t < M; t++)
                acc[t].v[i + r] = wasm_i32x4_add(lowest[r][t], wasm_i32x4_add(upper[r][t], upper[r][t]));
    }
}

template <int M>
inline void dots4(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    const v128_t low = wasm_i8x16_splat(15);
    constexpr int ROWS = 4 / M;
    for (int i = 0; i < 4; i += ROWS) {
        v128_t a[ROWS][M];
        for (int r = 0; r < ROWS; r++)
            for (int t = 0; t < M; t++) a[r][t] = wasm_i32x4_add(acc[t].v[i + r], wasm_i32x4_splat(-8 * sums[t]));
        for (int c = 0; c < chunks; c++) {
            v128_t x[M], y[M];
            for (int t = 0; t < M; t++) {
                const int8_t* at = q + size_t(t) * stride + size_t(c) * 8;
                x[t] = wasm_v128_load32_splat(at), y[t] = wasm_v128_load32_splat(at + 4);
            }
            for (int r = 0; r < ROWS; r++) {
                const v128_t both = wasm_v128_load(w + c * 64 + (i + r) * 16);
                const v128_t first = wasm_v128_and(both, low), second = wasm_u8x16_shr(both, 4);
                for (int t = 0; t < M; t++) a[r][t] = dot7(y[t], second, dot7(x[t], first, a[r][t]));
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int t = 0; t < M; t++) acc[t].v[i + r] = a[r][t];
    }
}

template <int M>
inline void dots_values(const uint8_t* v, int chunks, const uint8_t* p, size_t stride, I* acc) {
    for (int c = 0; c < chunks; c++) {
        for (int i = 0; i < 4; i++) {
            const v128_t values = wasm_v128_load(v + c * 64 + i * 16);
            for (int t = 0; t < M; t++)
                acc[t].v[i] = dot7(values, wasm_v128_load32_splat(p + size_t(t) * stride + size_t(c) * 4), acc[t].v[i]);
        }
    }
}

#else

// Products in 16 bits: 4 columns of 2 rows at a time; the two sums of each row are added at the end.
struct Pairs {
    v128_t a, b;  // of rows 0 1 and 2 3 of four
};
inline v128_t joined(Pairs s) {
    return wasm_i32x4_add(wasm_i32x4_shuffle(s.a, s.b, 0, 2, 4, 6), wasm_i32x4_shuffle(s.a, s.b, 1, 3, 5, 7));
}
inline v128_t four(const void* p) { return wasm_i16x8_extend_low_i8x16(wasm_v128_load32_splat(p)); }  // twice 4 numbers
inline Pairs dot(Pairs s, v128_t low, v128_t high, v128_t x) {
    return {wasm_i32x4_add(s.a, wasm_i32x4_dot_i16x8(low, x)), wasm_i32x4_add(s.b, wasm_i32x4_dot_i16x8(high, x))};
}

// 8 codes of 8 bits, as 16 bits.
inline v128_t eight(const uint8_t* p) { return wasm_u16x8_load8x8(p); }

template <int M>
inline void dots8(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    constexpr int ROWS = 4 / M;  // fours of them at once
    for (int i = 0; i < 4; i += ROWS) {
        Pairs s[ROWS][M] = {};
        for (int c = 0; c < chunks; c++) {
            v128_t x[M];
            for (int t = 0; t < M; t++) x[t] = four(q + size_t(t) * stride + size_t(c) * 4);
            for (int r = 0; r < ROWS; r++) {
                const uint8_t* at = w + c * 64 + (i + r) * 16;
                const v128_t low = eight(at), high = eight(at + 8);
                for (int t = 0; t < M; t++) s[r][t] = dot(s[r][t], low, high, x[t]);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int t = 0; t < M; t++)
                acc[t].v[i + r] =
                    wasm_i32x4_add(acc[t].v[i + r], wasm_i32x4_add(joined(s[r][t]), wasm_i32x4_splat(-128 * sums[t])));
    }
}

template <int M>
inline void dots4(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    const v128_t low4 = wasm_i16x8_splat(15);
    constexpr int ROWS = 4 / M;
    for (int i = 0; i < 4; i += ROWS) {
        Pairs s[ROWS][M] = {};
        for (int c = 0; c < chunks; c++) {
            v128_t x[M], y[M];
            for (int t = 0; t < M; t++) {
                const int8_t* at = q + size_t(t) * stride + size_t(c) * 8;
                x[t] = four(at), y[t] = four(at + 4);
            }
            for (int r = 0; r < ROWS; r++) {
                const uint8_t* at = w + c * 64 + (i + r) * 16;
                const v128_t low = eight(at), high = eight(at + 8);
                const v128_t first[] = {wasm_v128_and(low, low4), wasm_v128_and(high, low4)};
                const v128_t second[] = {wasm_u16x8_shr(low, 4), wasm_u16x8_shr(high, 4)};
                for (int t = 0; t < M; t++)
                    s[r][t] = dot(dot(s[r][t], first[0], first[1], x[t]), second[0], second[1], y[t]);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int t = 0; t < M; t++)
                acc[t].v[i + r] =
                    wasm_i32x4_add(acc[t].v[i + r], wasm_i32x4_add(joined(s[r][t]), wasm_i32x4_splat(-8 * sums[t])));
    }
}

template <int M>
inline void dots_values(const uint8_t* v, int chunks, const uint8_t* p, size_t stride, I* acc) {
    for (int i = 0; i < 4; i++) {
        Pairs s[M];
        for (int t = 0; t < M; t++) s[t] = {wasm_i32x4_splat(0), wasm_i32x4_splat(0)};
        for (int c = 0; c < chunks; c++) {
            const v128_t values = wasm_v128_load(v + c * 64 + i * 16);
            const v128_t low = wasm_i16x8_extend_low_i8x16(values), high = wasm_i16x8_extend_high_i8x16(values);
            for (int t = 0; t < M; t++) s[t] = dot(s[t], low, high, four(p + size_t(t) * stride + size_t(c) * 4));
        }
        for (int t = 0; t < M; t++) acc[t].v[i] = wasm_i32x4_add(acc[t].v[i], joined(s[t]));
    }
}

#endif

}  // namespace
}  // namespace doge::cpu
