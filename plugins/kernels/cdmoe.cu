// doge_cdmoe: which kernels run, with which grids, on which part of the workspace.
#include "cdmoe_decode.cuh"
#include "cdmoe_plan.h"
#include "cdmoe_prefill.cuh"
#include "doge/operators.h"
#include "launch.cuh"

namespace doge::cdmoe {
namespace {

template <class T>
cudaError_t decode(const doge_cdmoe_params& p, char* workspace, cudaStream_t stream) {
    const DecodePlan plan = plan_decode(p);
    const dim3 grid(p.num_routing_heads * plan.splits, p.tokens);
    return launch(cdmoe_decode<T>, grid, kThreads, decode_shared_bytes(p), stream, p, plan,
                  reinterpret_cast<Ticket*>(workspace), reinterpret_cast<float*>(workspace + kTicketBytes));
}

// The same operator on tokens [first, first + count).
template <class T>
doge_cdmoe_params chunk_of(doge_cdmoe_params p, int first, int count) {
    const auto advance = [first](const void* tensor, std::size_t per_token) {
        return static_cast<const void*>(static_cast<const T*>(tensor) + first * per_token);
    };
    const auto scores = static_cast<std::size_t>(p.score_stride);
    p.tokens = count;
    p.hidden = advance(p.hidden, p.hidden_size);
    p.scores_x += first * scores;
    p.scores_y += first * scores;
    p.output = const_cast<void*>(advance(p.output, p.hidden_size));
    return p;
}

template <class T>
cudaError_t prefill(const doge_cdmoe_params& all, char* workspace, cudaStream_t stream) {
    const PrefillWorkspace layout = prefill_workspace(all);
    const Picks picks{reinterpret_cast<int*>(workspace + layout.experts),
                      reinterpret_cast<float*>(workspace + layout.weights),
                      reinterpret_cast<float*>(workspace + layout.products)};
    const int per_chunk = chunk_tokens(all);
    for (int first = 0; first < all.tokens; first += per_chunk) {
        const auto p = chunk_of<T>(all, first, std::min(per_chunk, all.tokens - first));
        const dim3 token_slices(static_cast<unsigned>(divide_up(p.tokens, kWarps)), slices(p));
        cudaError_t error =
            launch(cdmoe_route, p.tokens * p.num_routing_heads, kThreads, sizeof(Routing), stream, p, picks);
        if (error == cudaSuccess) error = launch(cdmoe_down<T>, token_slices, kThreads, 0, stream, p, picks);
        if (error == cudaSuccess) error = launch(cdmoe_up<T>, token_slices, kThreads, 0, stream, p, picks);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

template <class T>
cudaError_t run(const doge_cdmoe_params& p, char* workspace, cudaStream_t stream) {
    return is_decode(p) ? decode<T>(p, workspace, stream) : prefill<T>(p, workspace, stream);
}

}  // namespace
}  // namespace doge::cdmoe

size_t doge_cdmoe_workspace_bytes(const doge_cdmoe_params* params) { return doge::cdmoe::workspace_bytes(*params); }

int doge_cdmoe(const doge_cdmoe_params* params, void* workspace, size_t workspace_bytes, void* stream) {
    if (doge_cdmoe_problem(params) != nullptr) return DOGE_BAD_SHAPE;
    if (workspace == nullptr || workspace_bytes < doge_cdmoe_workspace_bytes(params) ||
        reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0) {
        return DOGE_BAD_WORKSPACE;
    }
    doge_cdmoe_params p = *params;
    if (p.score_stride == 0) p.score_stride = p.num_routing_heads * p.num_keys;
    auto* scratch = static_cast<char*>(workspace);
    auto* cuda_stream = static_cast<cudaStream_t>(stream);
    switch (params->dtype) {
        case DOGE_FLOAT32: return doge::cdmoe::run<float>(p, scratch, cuda_stream);
        case DOGE_FLOAT16: return doge::cdmoe::run<__half>(p, scratch, cuda_stream);
        case DOGE_BFLOAT16: return doge::cdmoe::run<__nv_bfloat16>(p, scratch, cuda_stream);
    }
    return DOGE_BAD_SHAPE;
}
