// doge_fused_attention: which kernels run, and the scratch memory they need.
#include "attention_launch.cuh"
#include "fused_attention.cuh"

namespace doge {
namespace {

template <class T>
int decode_one(const doge_fused_attention_params& fused, const FusedWorkspace& workspace, cudaStream_t stream) {
    const doge_attention_params& p = fused.attention;
    return for_head_size(p.head_size, [&](auto size) {
        using Kernel = DecodeBlock<T, decltype(size)::value>;
        const dim3 grid(decode_splits(p, Kernel::kBlocks, Kernel::kSharedBytes), p.num_kv_heads, p.batch);
        return static_cast<int>(launch(fused_decode_kernel<T, decltype(size)::value>, grid, dim3(Kernel::kThreads),
                                       Kernel::kSharedBytes, stream, fused, workspace));
    });
}

template <class T>
int run(const doge_fused_attention_params& fused, const FusedWorkspace& workspace, cudaStream_t stream) {
    doge_attention_params p = fused.attention;
    if (p.new_tokens == 1) {
        const int status = in_place(p) ? DOGE_SUCCESS : launch_copy_cache(p, stream);
        return status == DOGE_SUCCESS ? decode_one<T>(fused, workspace, stream) : status;
    }
    const int status = launch(fused_prepare_kernel<T>, dim3(p.new_tokens, p.batch), dim3(kPrepareThreads), 0, stream,
                              fused, workspace);
    if (status != DOGE_SUCCESS) return status;
    p.query = workspace.query;
    p.key = workspace.key;
    p.value = workspace.value;
    p.score = workspace.score;
    return run_attention(p, workspace.attention, stream);
}

}  // namespace
}  // namespace doge

size_t doge_fused_attention_workspace_bytes(const doge_fused_attention_params* params) {
    return doge::FusedWorkspacePlan(*params).total;
}

int doge_fused_attention(const doge_fused_attention_params* params, void* workspace, size_t workspace_bytes,
                         void* stream) {
    if (doge_fused_attention_problem(params) != nullptr) return DOGE_BAD_SHAPE;
    const doge::FusedWorkspacePlan plan(*params);
    if (workspace_bytes < plan.total || reinterpret_cast<std::uintptr_t>(workspace) % doge::kAlignment != 0) {
        return DOGE_BAD_WORKSPACE;
    }
    const doge::FusedWorkspace scratch = plan.at(workspace);
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    switch (params->attention.dtype) {
        case DOGE_FLOAT32:
            return doge::run<float>(*params, scratch, cuda_stream);
        case DOGE_FLOAT16:
            return doge::run<__half>(*params, scratch, cuda_stream);
        default:
            return doge::run<__nv_bfloat16>(*params, scratch, cuda_stream);
    }
}
