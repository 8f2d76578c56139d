// AVX-512 with VNNI.
#pragma once
#ifdef DOGE_AVX512_EMULATED
#include DOGE_AVX512_EMULATED
#else
#include <immintrin.h>
#endif
#include <math.h>

#include <cstdint>
#include <cstring>

namespace doge::cpu {
namespace {

constexpr int W = 16;
constexpr int FLOAT_TILE = 12, CODE_TILE = 12;  // tokens whose sums fit in 32 registers
typedef __m512 V;
typedef __m512i VI;
typedef __mmask16 VM;

inline V v_load(const float* p) { return _mm512_loadu_ps(p); }
inline void v_store(float* p, V a) { _mm512_storeu_ps(p, a); }
inline V v_splat(float x) { return _mm512_set1_ps(x); }
inline V v_add(V a, V b) { return _mm512_add_ps(a, b); }
inline V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V v_div(V a, V b) { return _mm512_div_ps(a, b); }
inline V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V v_max(V a, V b) { return _mm512_max_ps(a, b); }
inline V v_abs(V a) { return _mm512_abs_ps(a); }
inline V v_nearest(V a) { return _mm512_roundscale_ps(a, 0); }
inline V v_pow2(V a) {
    const __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(n, 23));
}
inline V v_to_float(VI a) { return _mm512_cvtepi32_ps(a); }
inline VI v_to_int(V a) { return _mm512_cvtps_epi32(a); }
inline VI v_splat_int(int32_t x) { return _mm512_set1_epi32(x); }
inline VI v_add_int(VI a, VI b) { return _mm512_add_epi32(a, b); }
inline void v_store_int(int32_t* p, VI a) { _mm512_storeu_si512(p, a); }
inline VM v_greater(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline VM v_equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline VM v_both(VM a, VM b) { return VM(a & b); }
inline VM v_either(VM a, VM b) { return VM(a | b); }
inline V v_select(VM m, V yes, V no) { return _mm512_mask_blend_ps(m, no, yes); }
inline float v_sum(V a) { return _mm512_reduce_add_ps(a); }
inline float v_largest(V a) { return _mm512_reduce_max_ps(a); }
inline int32_t v_sum_int(VI a) { return _mm512_reduce_add_epi32(a); }

}  // namespace
}  // namespace doge::cpu

#include "simd.h"

namespace doge::cpu {
namespace {

inline __m128i bytes16(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
inline void store_codes(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(a.v[0])); }
inline F load_codes8(const uint8_t* p) {
    return {{_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes16(p)), _mm512_set1_epi32(128)))}};
}
inline F load_codes4(const uint8_t* p) {
    uint8_t codes[16];
    for (int i = 0; i < 8; i++) codes[i] = p[i] & 15, codes[i + 8] = p[i] >> 4;
    return {{_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(bytes16(codes)), _mm512_set1_epi32(8)))}};
}
inline F load_bfloat16(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))}};
}
inline F load_float16(const uint8_t* p) { return {{_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}}; }

inline __m512i bytes64(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline __m512i four(const void* p) {  // 4 bytes for each of 16 rows
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}

// vpdpbusd waits 5 cycles for its own sum: few tokens take several sums each.
template <int M>
constexpr int chains() { return M == 1 ? 4 : M <= 4 ? 2 : 1; }

template <int M>
inline void dots8(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    constexpr int C = chains<M>();
    __m512i a[C][M];
    for (int t = 0; t < M; t++) {
        a[0][t] = _mm512_add_epi32(acc[t].v[0], _mm512_set1_epi32(-128 * sums[t]));
        for (int i = 1; i < C; i++) a[i][t] = _mm512_set1_epi32(0);
    }
    for (int c = 0; c < chunks; c += C) {
        for (int i = 0; i < C; i++) {
            const __m512i codes = bytes64(w + (c + i) * 64);
            for (int t = 0; t < M; t++)
                a[i][t] = _mm512_dpbusd_epi32(a[i][t], codes, four(q + size_t(t) * stride + size_t(c + i) * 4));
        }
    }
    for (int t = 0; t < M; t++) {
        acc[t].v[0] = a[0][t];
        for (int i = 1; i < C; i++) acc[t].v[0] = _mm512_add_epi32(acc[t].v[0], a[i][t]);
    }
}

template <int M>
inline void dots4(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i a[M], b[M];
    for (int t = 0; t < M; t++) {
        a[t] = _mm512_add_epi32(acc[t].v[0], _mm512_set1_epi32(-8 * sums[t]));
        b[t] = _mm512_set1_epi32(0);
    }
    for (int c = 0; c < chunks; c++) {
        const __m512i both = bytes64(w + c * 64), first = _mm512_and_si512(both, low);
        const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        for (int t = 0; t < M; t++) {
            const int8_t* x = q + size_t(t) * stride + size_t(c) * 8;
            a[t] = _mm512_dpbusd_epi32(a[t], first, four(x));
            // Two sums for each of 12 tokens, two halves and a constant: 27 of 32 registers.
            b[t] = _mm512_dpbusd_epi32(b[t], second, four(x + 4));
        }
    }
    for (int t = 0; t < M; t++) acc[t].v[0] = _mm512_add_epi32(a[t], b[t]);
}

template <int M>
inline void dots_values(const uint8_t* v, int chunks, const uint8_t* p, size_t stride, I* acc) {
    __m512i a[M];
    for (int t = 0; t < M; t++) a[t] = acc[t].v[0];
    for (int c = 0; c < chunks; c++) {
        const __m512i values = bytes64(v + c * 64);
        for (int t = 0; t < M; t++) a[t] = _mm512_dpbusd_epi32(a[t], four(p + size_t(t) * stride + size_t(c) * 4), values);
    }
    for (int t = 0; t < M; t++) acc[t].v[0] = a[t];
}

}  // namespace
}  // namespace doge::cpu
