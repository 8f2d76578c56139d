// What decode and prefill of CDMoE share: the activation of an expert.
#ifndef DOGE_KERNELS_CDMOE_EXPERTS_CUH
#define DOGE_KERNELS_CDMOE_EXPERTS_CUH

#include "cdmoe_plan.h"
#include "reduce.cuh"
#include "vector.cuh"

namespace doge::cdmoe {

__device__ __forceinline__ float silu(float x) { return x / (1.0f + expf(-x)); }

// What an expert's row of up_embed is multiplied by; product = <down_embed[e], hidden>.
__device__ __forceinline__ float activation(float product, float weight, bool weights_inside) {
    return weights_inside ? silu(product * weight) : silu(product) * weight;
}

// Row e of a table [E, H] of 16-byte vectors.
__device__ __forceinline__ const uint4* row(const void* table, int expert, int vectors) {
    return static_cast<const uint4*>(table) + static_cast<std::size_t>(expert) * vectors;
}

}  // namespace doge::cdmoe
#endif
