// VPDPBUSD of 8 sums by AVX2's exact 16-bit products: compiled with -D__AVXVNNI__ -include avxvnni_emulated.h the file for
// AVX-VNNI runs on a processor that has AVX2 alone.
#pragma once
#include <immintrin.h>

static inline __m256i doge_emulated_dpbusd(__m256i sum, __m256i a, __m256i b) {
    __m256i halves[2];
    for (int i = 0; i < 2; i++) {  // 16 bytes of each: 4 sums
        const __m128i x = i == 0 ? _mm256_castsi256_si128(a) : _mm256_extracti128_si256(a, 1);
        const __m128i y = i == 0 ? _mm256_castsi256_si128(b) : _mm256_extracti128_si256(b, 1);
        halves[i] = _mm256_madd_epi16(_mm256_cvtepu8_epi16(x), _mm256_cvtepi8_epi16(y));  // sums of 2
    }
    const __m256i pairs = _mm256_hadd_epi32(halves[0], halves[1]);  // rows 0 1 4 5 2 3 6 7
    return _mm256_add_epi32(sum, _mm256_permute4x64_epi64(pairs, 0xd8));
}
#define _mm256_dpbusd_avx_epi32 doge_emulated_dpbusd
