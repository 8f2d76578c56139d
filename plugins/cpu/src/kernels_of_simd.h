// The functions of kernels.h over whatever simd_*.h was included before.
#pragma once
#include "kernels.h"
#include "layout.h"
#include "matrix_kernels.h"
#include "vector_kernels.h"
#include "attention_kernels.h"

namespace doge::cpu {
namespace {

constexpr Kernels table(const char* name) {
    return {name, quantise, rms_norm, multiply, gated, rotate, attend, row_dot, row_add};
}

}  // namespace
}  // namespace doge::cpu
