// The intrinsics of simd_avx512.h, one number at a time: what they do, after Intel's guide. Compiled with
// -DDOGE_AVX512_EMULATED='"avx512_emulated.h"' the file for AVX-512 runs on any processor.
#pragma once
#include <math.h>

#include <cstdint>
#include <cstring>

#include "half.h"

namespace doge_emulated {

template <class T, int N>
struct Vector {
    T v[N];
};

}  // namespace doge_emulated

typedef doge_emulated::Vector<float, 16> __m512;
typedef doge_emulated::Vector<int32_t, 16> __m512i;
typedef doge_emulated::Vector<uint8_t, 16> __m128i;
typedef doge_emulated::Vector<uint16_t, 16> __m256i;
typedef uint16_t __mmask16;
enum { _CMP_EQ_OQ, _CMP_GT_OQ };

#define DOGE_FLOATS(name, expression)                                   \
    static inline __m512 name(__m512 a, __m512 b) {                     \
        for (int i = 0; i < 16; i++) {                                  \
            const float x = a.v[i], y = b.v[i];                         \
            a.v[i] = expression;                                        \
        }                                                               \
        return a;                                                       \
    }
DOGE_FLOATS(_mm512_add_ps, x + y)
DOGE_FLOATS(_mm512_sub_ps, x - y)
DOGE_FLOATS(_mm512_mul_ps, x* y)
DOGE_FLOATS(_mm512_div_ps, x / y)
DOGE_FLOATS(_mm512_max_ps, x > y ? x : y)
#define DOGE_INTS(name, expression)                                                \
    static inline __m512i name(__m512i a, __m512i b) {                             \
        for (int i = 0; i < 16; i++) {                                             \
            const uint32_t x = uint32_t(a.v[i]), y = uint32_t(b.v[i]);             \
            a.v[i] = int32_t(expression);                                          \
        }                                                                          \
        return a;                                                                  \
    }
DOGE_INTS(_mm512_add_epi32, x + y)
DOGE_INTS(_mm512_sub_epi32, x - y)
DOGE_INTS(_mm512_and_si512, x& y)

static inline __m512 _mm512_loadu_ps(const void* p) {
    __m512 r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline void _mm512_storeu_ps(void* p, __m512 a) { memcpy(p, &a, sizeof a); }
static inline __m512i _mm512_loadu_si512(const void* p) {
    __m512i r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline void _mm512_storeu_si512(void* p, __m512i a) { memcpy(p, &a, sizeof a); }
static inline __m128i _mm_loadu_si128(const __m128i* p) {
    __m128i r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline void _mm_storeu_si128(__m128i* p, __m128i a) { memcpy(p, &a, sizeof a); }
static inline __m256i _mm256_loadu_si256(const __m256i* p) {
    __m256i r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline __m512 _mm512_set1_ps(float x) {
    __m512 r;
    for (float& e : r.v) e = x;
    return r;
}
static inline __m512i _mm512_set1_epi32(int32_t x) {
    __m512i r;
    for (int32_t& e : r.v) e = x;
    return r;
}
static inline __m512i _mm512_set1_epi8(char x) { return _mm512_set1_epi32(int32_t(uint8_t(x) * 0x01010101u)); }
static inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    for (int i = 0; i < 16; i++) c.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
static inline __m512 _mm512_abs_ps(__m512 a) {
    for (float& e : a.v) e = fabsf(e);
    return a;
}
static inline __m512 _mm512_roundscale_ps(__m512 a, int) {
    for (float& e : a.v) e = nearbyintf(e);
    return a;
}
static inline __m512i _mm512_cvtps_epi32(__m512 a) {
    __m512i r;
    for (int i = 0; i < 16; i++) r.v[i] = int32_t(nearbyintf(a.v[i]));
    return r;
}
static inline __m512 _mm512_cvtepi32_ps(__m512i a) {
    __m512 r;
    for (int i = 0; i < 16; i++) r.v[i] = float(a.v[i]);
    return r;
}
static inline __m512i _mm512_slli_epi32(__m512i a, unsigned n) {
    for (int32_t& e : a.v) e = int32_t(uint32_t(e) << n);
    return a;
}
static inline __m512i _mm512_srli_epi16(__m512i a, unsigned n) {
    for (int32_t& e : a.v) {
        const uint32_t x = uint32_t(e);
        e = int32_t((x & 0xffff) >> n | (x >> 16 >> n) << 16);
    }
    return a;
}
static inline __m512 _mm512_castsi512_ps(__m512i a) {
    __m512 r;
    memcpy(&r, &a, sizeof r);
    return r;
}
static inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
    unsigned r = 0;
    for (int i = 0; i < 16; i++) r |= unsigned(how == _CMP_EQ_OQ ? a.v[i] == b.v[i] : a.v[i] > b.v[i]) << i;
    return __mmask16(r);
}
static inline __m512 _mm512_mask_blend_ps(__mmask16 m, __m512 a, __m512 b) {
    for (int i = 0; i < 16; i++) a.v[i] = m >> i & 1 ? b.v[i] : a.v[i];
    return a;
}
static inline float _mm512_reduce_add_ps(__m512 a) {
    float r = 0;
    for (float e : a.v) r += e;
    return r;
}
static inline float _mm512_reduce_max_ps(__m512 a) {
    float r = a.v[0];
    for (float e : a.v) r = e > r ? e : r;
    return r;
}
static inline int32_t _mm512_reduce_add_epi32(__m512i a) {
    uint32_t r = 0;
    for (int32_t e : a.v) r += uint32_t(e);
    return int32_t(r);
}
static inline __m128i _mm512_cvtsepi32_epi8(__m512i a) {
    __m128i r;
    for (int i = 0; i < 16; i++) r.v[i] = uint8_t(int8_t(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]));
    return r;
}
static inline __m512i _mm512_cvtepu8_epi32(__m128i a) {
    __m512i r;
    for (int i = 0; i < 16; i++) r.v[i] = a.v[i];
    return r;
}
static inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
    __m512i r;
    for (int i = 0; i < 16; i++) r.v[i] = a.v[i];
    return r;
}
static inline __m512 _mm512_cvtph_ps(__m256i a) {
    __m512 r;
    for (int i = 0; i < 16; i++) r.v[i] = doge::cpu::from_float16(a.v[i]);
    return r;
}
// Unsigned bytes of a times signed bytes of b, four to a sum.
static inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    for (int i = 0; i < 16; i++) {
        uint8_t x[4];
        int8_t y[4];
        memcpy(x, &a.v[i], 4);
        memcpy(y, &b.v[i], 4);
        for (int k = 0; k < 4; k++) sum.v[i] += int32_t(x[k]) * int32_t(y[k]);
    }
    return sum;
}
