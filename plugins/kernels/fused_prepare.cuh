// What stands between the projections and attention: norms by head, rotation, scores. A warp makes one head of one
// token, in float32.
#ifndef DOGE_KERNELS_FUSED_PREPARE_CUH
#define DOGE_KERNELS_FUSED_PREPARE_CUH

#include "doge/operators.h"
#include "reduce.cuh"
#include "types.cuh"

namespace doge {

// Normalises, where there is a norm, and rotates a head of `size` numbers by the angles of cos and sin [size / 2];
// to(n) is where number n goes.
template <class T, class To>
__device__ __forceinline__ void prepare_head(To to, const T* from, const float* norm, float epsilon, const float* cos,
                                             const float* sin, int size, int lane) {
    const int half = size / 2;
    float scale = 1.0f;
    if (norm != nullptr) {
        float squares = 0.0f;
        for (int n = lane; n < size; n += 32) {
            const float x = to_float(from[n]);
            squares = fmaf(x, x, squares);
        }
        scale = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(size) + epsilon);
    }
    for (int n = lane; n < half; n += 32) {
        float first = to_float(from[n]), second = to_float(from[half + n]);
        if (norm != nullptr) {
            first = first * scale * norm[n];
            second = second * scale * norm[half + n];
        }
        *to(n) = from_float<T>(first * cos[n] - second * sin[n]);
        *to(half + n) = from_float<T>(second * cos[n] + first * sin[n]);
    }
}

// The heads of one new token.
template <class T>
struct FusedToken {
    const doge_fused_attention_params& fused;
    const std::size_t token;  // of B * S

    __device__ const T* projected(int head) const {
        const int heads = fused.attention.num_heads + 2 * fused.attention.num_kv_heads;
        return static_cast<const T*>(fused.projected) + (token * heads + head) * fused.attention.head_size;
    }
    __device__ const T* value(int kv_head) const {
        return projected(fused.attention.num_heads + fused.attention.num_kv_heads + kv_head);
    }
    template <class To>
    __device__ __forceinline__ void prepare_query(To to, int head, int lane) const {
        prepare(to, projected(head), fused.query_norm, lane);
    }
    __device__ __forceinline__ void prepare_key(T* to, int kv_head, int lane) const {
        const T* from = projected(fused.attention.num_heads + kv_head);
        prepare([&](int n) { return to + n; }, from, fused.key_norm, lane);
    }
    // rate * softplus(<weight, source>), or its exponential: the same in all lanes.
    __device__ __forceinline__ float score(int score_head, int lane) const {
        const int inputs = fused.num_score_inputs;
        const auto* source = reinterpret_cast<const float4*>(fused.score_source + token * inputs);
        const auto* weight =
            reinterpret_cast<const float4*>(fused.score_weight + static_cast<std::size_t>(score_head) * inputs);
        float sum = 0.0f;
#pragma unroll 4
        for (int n = lane; n < inputs / 4; n += 32) {
            const float4 x = source[n], w = weight[n];
            sum = fmaf(x.x, w.x, fmaf(x.y, w.y, fmaf(x.z, w.z, fmaf(x.w, w.w, sum))));
        }
        sum = warp_sum(sum);
        const float step = fused.score_rate[score_head] * (fmaxf(sum, 0.0f) + log1pf(expf(-fabsf(sum))));
        return fused.exponential_score != 0 ? expf(step) : step;
    }

private:
    template <class To>
    __device__ __forceinline__ void prepare(To to, const T* from, const float* norm, int lane) const {
        const int size = fused.attention.head_size;
        prepare_head(to, from, norm, fused.epsilon, fused.cos + token * (size / 2), fused.sin + token * (size / 2),
                     size, lane);
    }
};

}  // namespace doge
#endif
