// What sizes make sense to anybody, apart from what the kernels happen to cover: the reference takes every size that
// makes sense, doge_*_problem tells of either.
//
// A function returns NULL where nothing is wrong, else one line: what is seen and what is expected. The line stays
// valid until the same thread asks again. Pointers are not followed; only whether slots are given tells bounded from
// unbounded.
#pragma once

#include "doge/operators.h"

namespace doge {

const char* attention_malformed(const doge_attention_params& params);
const char* attention_uncovered(const doge_attention_params& params);

const char* fused_attention_malformed(const doge_fused_attention_params& params);
const char* fused_attention_uncovered(const doge_fused_attention_params& params);

const char* cdmoe_malformed(const doge_cdmoe_params& params);
const char* cdmoe_uncovered(const doge_cdmoe_params& params);

// What the kernels cover.
constexpr int32_t kHeadSizes[] = {64, 80, 96, 128, 256};
constexpr int32_t kMaxGroup = 16;              // Hq / Hkv
constexpr int32_t kMaxCapacity = 131072;       // C and w
constexpr int32_t kScoreInputsStep = 4;        // X: rows are read 16 bytes at a time
constexpr int32_t kMaxExperts = 16384;         // E
constexpr int32_t kMaxExpertsPerToken = 64;    // k
constexpr int32_t kHiddenSizeStep = 8;         // of CDMoE's H: rows are read 16 bytes at a time
constexpr int32_t kMaxHiddenSize = 16384;      // of CDMoE's H: a row lies in shared memory

}  // namespace doge
