// AVX2 and FMA; with AVX-VNNI where the file is compiled for it.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <math.h>

namespace doge::cpu {
namespace {

constexpr int W = 8;
constexpr int FLOAT_TILE = 6, CODE_TILE = 6;  // tokens whose sums fit in 16 registers
typedef __m256 V;
typedef __m256i VI;
typedef __m256 VM;

inline V v_load(const float* p) { return _mm256_loadu_ps(p); }
inline void v_store(float* p, V a) { _mm256_storeu_ps(p, a); }
inline V v_splat(float x) { return _mm256_set1_ps(x); }
inline V v_add(V a, V b) { return _mm256_add_ps(a, b); }
inline V v_sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V v_mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V v_div(V a, V b) { return _mm256_div_ps(a, b); }
inline V v_fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V v_max(V a, V b) { return _mm256_max_ps(a, b); }
inline V v_abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline V v_nearest(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V v_pow2(V a) {
    const __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(n, 23));
}
inline V v_to_float(VI a) { return _mm256_cvtepi32_ps(a); }
inline VI v_to_int(V a) { return _mm256_cvtps_epi32(a); }
inline VI v_splat_int(int32_t x) { return _mm256_set1_epi32(x); }
inline VI v_add_int(VI a, VI b) { return _mm256_add_epi32(a, b); }
inline void v_store_int(int32_t* p, VI a) { _mm256_storeu_si256((__m256i*)p, a); }
inline VM v_greater(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
inline VM v_equal(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
inline VM v_both(VM a, VM b) { return _mm256_and_ps(a, b); }
inline VM v_either(VM a, VM b) { return _mm256_or_ps(a, b); }
inline V v_select(VM m, V yes, V no) { return _mm256_blendv_ps(no, yes, m); }
inline float v_sum(V a) {
    __m128 r = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    r = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(r, _mm_movehdup_ps(r)));
}
inline float v_largest(V a) {
    __m128 r = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    r = _mm_max_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_max_ss(r, _mm_movehdup_ps(r)));
}
inline int32_t v_sum_int(VI a) {
    __m128i r = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    r = _mm_add_epi32(r, _mm_shuffle_epi32(r, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(r, _mm_shuffle_epi32(r, 0xb1)));
}

}  // namespace
}  // namespace doge::cpu

#include "simd.h"

namespace doge::cpu {
namespace {

inline F of_bytes(__m128i bytes) {
    return {{_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
             _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))}};
}
inline void store_codes(int8_t* p, I a) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.v[0], a.v[1]), 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline F load_codes8(const uint8_t* p) {
    return of_bytes(_mm_xor_si128(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi8(-128)));
}
inline F load_codes4(const uint8_t* p) {
    const __m128i bytes = _mm_loadl_epi64((const __m128i*)p), low = _mm_set1_epi8(15);
    const __m128i codes = _mm_unpacklo_epi64(_mm_and_si128(bytes, low), _mm_and_si128(_mm_srli_epi16(bytes, 4), low));
    return of_bytes(_mm_sub_epi8(codes, _mm_set1_epi8(8)));
}
inline F load_bfloat16(const uint8_t* p) {
    F r;
    for (int i = 0; i < 2; i++) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + i * 16)));
        r.v[i] = _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    return r;
}
inline F load_float16(const uint8_t* p) {
    return {{_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
             _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 16)))}};
}

inline __m256i bytes32(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline __m256i four(const void* p) {  // 4 bytes for each of 8 rows
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm256_set1_epi32(x);
}

#if defined(__AVXVNNI__)

// vpdpbusd waits 5 cycles for its own sum: one token takes both halves of the rows and two sums of each.
template <int M>
inline void dots8(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    constexpr int HALVES = M == 1 ? 2 : 1, CHAINS = M <= 2 ? 2 : 1;
    for (int from = 0; from < 2; from += HALVES) {
        __m256i a[CHAINS][M][HALVES];
        for (int t = 0; t < M; t++)
            for (int h = 0; h < HALVES; h++) {
                a[0][t][h] = _mm256_sub_epi32(acc[t].v[from + h], _mm256_set1_epi32(128 * sums[t]));
                for (int i = 1; i < CHAINS; i++) a[i][t][h] = _mm256_setzero_si256();
            }
        for (int c = 0; c < chunks; c += CHAINS) {
            for (int i = 0; i < CHAINS; i++)
                for (int h = 0; h < HALVES; h++) {
                    const __m256i codes = bytes32(w + (c + i) * 64 + (from + h) * 32);
                    for (int t = 0; t < M; t++)
                        a[i][t][h] = _mm256_dpbusd_avx_epi32(a[i][t][h], codes,
                                                             four(q + size_t(t) * stride + size_t(c + i) * 4));
                }
        }
        for (int t = 0; t < M; t++)
            for (int h = 0; h < HALVES; h++) {
                acc[t].v[from + h] = a[0][t][h];
                for (int i = 1; i < CHAINS; i++) acc[t].v[from + h] = _mm256_add_epi32(acc[t].v[from + h], a[i][t][h]);
            }
    }
}

template <int M>
inline void dots4(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    constexpr int HALVES = M == 1 ? 2 : 1;
    const __m256i low = _mm256_set1_epi8(15);
    for (int from = 0; from < 2; from += HALVES) {
        __m256i a[M][HALVES], b[M][HALVES];  // of the low and of the high halves of the bytes
        for (int t = 0; t < M; t++)
            for (int h = 0; h < HALVES; h++) {
                a[t][h] = _mm256_sub_epi32(acc[t].v[from + h], _mm256_set1_epi32(8 * sums[t]));
                b[t][h] = _mm256_setzero_si256();
            }
        for (int c = 0; c < chunks; c++) {
            for (int h = 0; h < HALVES; h++) {
                const __m256i both = bytes32(w + c * 64 + (from + h) * 32), first = _mm256_and_si256(both, low);
                const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                for (int t = 0; t < M; t++) {
                    const int8_t* x = q + size_t(t) * stride + size_t(c) * 8;
                    a[t][h] = _mm256_dpbusd_avx_epi32(a[t][h], first, four(x));
                    b[t][h] = _mm256_dpbusd_avx_epi32(b[t][h], second, four(x + 4));
                }
            }
        }
        for (int t = 0; t < M; t++)
            for (int h = 0; h < HALVES; h++) acc[t].v[from + h] = _mm256_add_epi32(a[t][h], b[t][h]);
    }
}

template <int M>
inline void dots_values(const uint8_t* v, int chunks, const uint8_t* p, size_t stride, I* acc) {
    for (int half = 0; half < 2; half++) {
        __m256i a[M];
        for (int t = 0; t < M; t++) a[t] = acc[t].v[half];
        for (int c = 0; c < chunks; c++) {
            const __m256i values = bytes32(v + c * 64 + half * 32);
            for (int t = 0; t < M; t++)
                a[t] = _mm256_dpbusd_avx_epi32(a[t], four(p + size_t(t) * stride + size_t(c) * 4), values);
        }
        for (int t = 0; t < M; t++) acc[t].v[half] = a[t];
    }
}

#else

// vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits and saturates. Nothing saturates here:
//   dots8        |code - 128| <= 128 times +-127, twice: 32512. The sign of the weight moves to the activation.
//   dots4        15 * 127, twice: 3810; eight of these are added in 16 bits: 30480
//   dots_values  127 * 127, twice: 32258
inline __m256i add_pairs(__m256i a, __m256i words) {
    return _mm256_add_epi32(a, _mm256_madd_epi16(words, _mm256_set1_epi16(1)));
}

// One token reads memory in order; for several the sums of 8 rows fill the registers.
template <int M>
inline void dots8(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t*, I* acc) {
    constexpr int HALVES = M == 1 ? 2 : 1;
    const __m256i zero = _mm256_set1_epi8(-128);
    for (int from = 0; from < 2; from += HALVES) {
        __m256i a[M][HALVES];
        for (int t = 0; t < M; t++)
            for (int h = 0; h < HALVES; h++) a[t][h] = acc[t].v[from + h];
        for (int c = 0; c < chunks; c++) {
            for (int h = 0; h < HALVES; h++) {
                const __m256i weights = _mm256_xor_si256(bytes32(w + c * 64 + (from + h) * 32), zero);
                const __m256i sizes = _mm256_abs_epi8(weights);
                for (int t = 0; t < M; t++) {
                    const __m256i x = _mm256_sign_epi8(four(q + size_t(t) * stride + size_t(c) * 4), weights);
                    a[t][h] = add_pairs(a[t][h], _mm256_maddubs_epi16(sizes, x));
                }
            }
        }
        for (int t = 0; t < M; t++)
            for (int h = 0; h < HALVES; h++) acc[t].v[from + h] = a[t][h];
    }
}

// CHUNKS chunks, at most 4, of 8 rows: sums in 16 bits.
template <int M, int CHUNKS>
inline void words4(const uint8_t* w, const int8_t* q, size_t stride, __m256i* words) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int c = 0; c < CHUNKS; c++) {
        const __m256i both = bytes32(w + c * 64), first = _mm256_and_si256(both, low);
        const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        for (int t = 0; t < M; t++) {
            const int8_t* x = q + size_t(t) * stride + size_t(c) * 8;
            const __m256i a = _mm256_maddubs_epi16(first, four(x)), b = _mm256_maddubs_epi16(second, four(x + 4));
            words[t] = c == 0 ? a : _mm256_add_epi16(words[t], a);
            words[t] = _mm256_add_epi16(words[t], b);
            asm("" : "+x"(words[t]));  // else GCC does all the products first and spills them
        }
    }
}

template <int M>
inline void dots4(const uint8_t* w, int chunks, const int8_t* q, size_t stride, const int32_t* sums, I* acc) {
    for (int half = 0; half < 2; half++) {
        __m256i a[M], words[M];
        for (int t = 0; t < M; t++) a[t] = _mm256_sub_epi32(acc[t].v[half], _mm256_set1_epi32(8 * sums[t]));
        int c = 0;
        for (; c + 4 <= chunks; c += 4) {
            words4<M, 4>(w + c * 64 + half * 32, q + size_t(c) * 8, stride, words);
            for (int t = 0; t < M; t++) a[t] = add_pairs(a[t], words[t]);
        }
        for (; c < chunks; c += 2) {  // blocks of 16 columns have 2 chunks
            words4<M, 2>(w + c * 64 + half * 32, q + size_t(c) * 8, stride, words);
            for (int t = 0; t < M; t++) a[t] = add_pairs(a[t], words[t]);
        }
        for (int t = 0; t < M; t++) acc[t].v[half] = a[t];
    }
}

template <int M>
inline void dots_values(const uint8_t* v, int chunks, const uint8_t* p, size_t stride, I* acc) {
    for (int half = 0; half < 2; half++) {
        __m256i a[M];
        for (int t = 0; t < M; t++) a[t] = acc[t].v[half];
        for (int c = 0; c < chunks; c++) {
            const __m256i values = bytes32(v + c * 64 + half * 32);
            for (int t = 0; t < M; t++)
                a[t] = add_pairs(a[t], _mm256_maddubs_epi16(four(p + size_t(t) * stride + size_t(c) * 4), values));
        }
        for (int t = 0; t < M; t++) acc[t].v[half] = a[t];
    }
}

// Many tokens: int8 weights are widened to 16 bits once, which leaves one multiplication where dots8 has three such.
#define DOGE_WIDENS 1
// `chunks` chunks as pairs of columns of 16 rows: [chunks * 2][16 rows][2 columns]
inline void widen(const uint8_t* w, int chunks, int16_t* out) {
    const __m256i zero = _mm256_set1_epi8(-128);
    for (int c = 0; c < chunks; c++) {
        for (int half = 0; half < 2; half++) {
            // Rows 0 1, 4 5, 2 3, 6 7, so that the shuffles below, within 128 bits, leave them in order.
            const __m256i rows = _mm256_permute4x64_epi64(_mm256_xor_si256(bytes32(w + c * 64 + half * 32), zero), 0xd8);
            const __m256 a = _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(rows)));
            const __m256 b = _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(rows, 1)));
            float* to = reinterpret_cast<float*>(out + c * 64 + half * 16);
            _mm256_storeu_ps(to, _mm256_shuffle_ps(a, b, 0x88));
            _mm256_storeu_ps(to + 16, _mm256_shuffle_ps(a, b, 0xdd));
        }
    }
}

template <int M>
inline void dots_wide(const int16_t* w, int pairs, const int16_t* q, size_t stride, I* acc) {
    __m256i a[M], b[M];
    for (int t = 0; t < M; t++) a[t] = acc[t].v[0], b[t] = acc[t].v[1];
    for (int p = 0; p < pairs; p++) {
        const __m256i first = bytes32((const uint8_t*)(w + p * 32)), second = bytes32((const uint8_t*)(w + p * 32 + 16));
        for (int t = 0; t < M; t++) {
            const __m256i x = four(q + size_t(t) * stride + size_t(p) * 2);
            a[t] = _mm256_add_epi32(a[t], _mm256_madd_epi16(first, x));
            b[t] = _mm256_add_epi32(b[t], _mm256_madd_epi16(second, x));
        }
    }
    for (int t = 0; t < M; t++) acc[t].v[0] = a[t], acc[t].v[1] = b[t];
}

#endif

}  // namespace
}  // namespace doge::cpu
