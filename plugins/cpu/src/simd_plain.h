// Plain C++, one number at a time: what every other instruction set is tested against.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <math.h>

namespace doge::cpu {
namespace {

constexpr int W = 1;
constexpr int FLOAT_TILE = 4, CODE_TILE = 4;
typedef float V;
typedef int32_t VI;
typedef bool VM;

inline V v_load(const float* p) { return *p; }
inline void v_store(float* p, V a) { *p = a; }
inline V v_splat(float x) { return x; }
inline V v_add(V a, V b) { return a + b; }
inline V v_sub(V a, V b) { return a - b; }
inline V v_mul(V a, V b) { return a * b; }
inline V v_div(V a, V b) { return a / b; }
inline V v_fma(V a, V b, V c) { return a * b + c; }
inline V v_max(V a, V b) { return a > b ? a : b; }
inline V v_abs(V a) { return ::fabsf(a); }
inline V v_nearest(V a) { return ::nearbyintf(a); }
inline V v_pow2(V a) {
    const uint32_t bits = uint32_t(int32_t(a) + 127) << 23;
    float r;
    memcpy(&r, &bits, sizeof r);
    return r;
}
inline V v_to_float(VI a) { return float(a); }
inline VI v_to_int(V a) { return VI(a); }
inline VI v_splat_int(int32_t x) { return x; }
inline VI v_add_int(VI a, VI b) { return a + b; }
inline void v_store_int(int32_t* p, VI a) { *p = a; }
inline VM v_greater(V a, V b) { return a > b; }
inline VM v_equal(V a, V b) { return a == b; }
inline VM v_both(VM a, VM b) { return a && b; }
inline VM v_either(VM a, VM b) { return a || b; }
inline V v_select(VM m, V yes, V no) { return m ? yes : no; }
inline float v_sum(V a) { return a; }
inline float v_largest(V a) { return a; }
inline int32_t v_sum_int(VI a) { return a; }

}  // namespace
}  // namespace doge::cpu

#include "simd.h"

namespace doge::cpu {
namespace {

#include "plain_conversions.inc"

// Products of bytes. Each adds to acc[t], t < M, for each of 16 rows the sum over `chunks` chunks of 64 bytes.
//   dots8        16 rows x 4 columns, (code - 128) times codes of token t
//   dots4        16 rows x 8 columns, (code - 8) times codes of token t
//   dots_values  16 dimensions x 4 keys, int8 times weights 0 to 127
// `sums` are those of the tokens' codes over these columns.
template <int M>
inline void dots8(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t*, I* acc) {
    for (int c = 0; c < chunks; c++)
        for (int t = 0; t < M; t++)
            for (int r = 0; r < 16; r++)
                for (int k = 0; k < 4; k++)
                    acc[t].v[r] += (int(w[c * 64 + r * 4 + k]) - 128) * int(q[size_t(t) * stride + size_t(c * 4 + k)]);
}

template <int M>
inline void dots4(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t*, I* acc) {
    for (int c = 0; c < chunks; c++)
        for (int t = 0; t < M; t++)
            for (int r = 0; r < 16; r++)
                for (int k = 0; k < 8; k++) {
                    const int byte = w[c * 64 + r * 4 + k % 4], code = k < 4 ? byte & 15 : byte >> 4;
                    acc[t].v[r] += (code - 8) * int(q[size_t(t) * stride + size_t(c * 8 + k)]);
                }
}

template <int M>
inline void dots_values(const uint8_t* v, int chunks, const uint8_t* p, size_t stride, I* acc) {
    for (int c = 0; c < chunks; c++)
        for (int t = 0; t < M; t++)
            for (int r = 0; r < 16; r++)
                for (int k = 0; k < 4; k++)
                    acc[t].v[r] += int(int8_t(v[c * 64 + r * 4 + k])) * int(p[size_t(t) * stride + size_t(c * 4 + k)]);
}

}  // namespace
}  // namespace doge::cpu
