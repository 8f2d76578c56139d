// The launches of attention_launch.h for one storage type and every head size.
#ifndef DOGE_KERNELS_ATTENTION_LAUNCH_CUH
#define DOGE_KERNELS_ATTENTION_LAUNCH_CUH

#include <cuda_runtime.h>

#include <type_traits>
#include <utility>

#include "attention_decode.cuh"
#include "attention_launch.h"
#include "attention_prefill.cuh"

namespace doge {

// The head sizes to compile for; a build for tests may have fewer, as each takes seconds for each type.
#ifndef DOGE_HEAD_SIZES
#define DOGE_HEAD_SIZES 64, 80, 96, 128, 256
#endif

template <class Run, int... kSizes>
int for_head_size_of(std::integer_sequence<int, kSizes...>, int head_size, Run run) {
    int status = DOGE_BAD_SHAPE;
    ((head_size == kSizes && (status = run(std::integral_constant<int, kSizes>{}), true)) || ...);
    return status;
}

// Calls run(std::integral_constant<int, D>) for the head size.
template <class Run>
int for_head_size(int head_size, Run run) {
    return for_head_size_of(std::integer_sequence<int, DOGE_HEAD_SIZES>{}, head_size, run);
}

template <class T>
int launch_decode(const doge_attention_params& p, const AttentionWorkspace& workspace, cudaStream_t stream) {
    return for_head_size(p.head_size, [&](auto size) {
        using Kernel = DecodeBlock<T, decltype(size)::value>;
        const int splits = decode_splits(p, Kernel::kBlocks, Kernel::kSharedBytes);
        const dim3 grid(splits, p.num_kv_heads * decode_tiles(p), p.batch);
        return static_cast<int>(launch(decode_kernel<T, decltype(size)::value>, grid, dim3(Kernel::kThreads),
                                       Kernel::kSharedBytes, stream, p, workspace));
    });
}

template <class T>
int launch_prefill(const doge_attention_params& p, const AttentionWorkspace& workspace, bool selecting,
                   cudaStream_t stream) {
    return for_head_size(p.head_size, [&](auto size) {
        using Kernel = Prefill<T, decltype(size)::value>;
        const dim3 grid(p.num_heads, (p.new_tokens + Kernel::kTokens - 1) / Kernel::kTokens, p.batch);
        const bool folded = grid.x * grid.y * grid.z <= 2u * multiprocessors();
        return static_cast<int>(launch(prefill_kernel<T, decltype(size)::value>, grid, dim3(Kernel::kThreads),
                                       Kernel::kSharedBytes, stream, p, workspace, selecting, folded));
    });
}

}  // namespace doge
#endif
