// doge_attention: which kernels run, in which order, and the scratch memory they need.
//
//   few new tokens (a step of decoding): one launch of decode_kernel, which also writes the caches. With more than one
//     token and a selection, threshold_kernel runs before it.
//   many (a prompt): threshold_kernel, where tokens may have to choose, and prefill_kernel, which also writes the
//     caches. A bounded cache is written at last by replace_kernel.
//
// Where present caches are other memory than past ones, copy_cache_kernel takes over the prefix.
#include <algorithm>

#include "attention_cache.cuh"
#include "attention_launch.h"
#include "attention_threshold.cuh"

namespace doge {
namespace {

int group_of(const doge_attention_params& p) { return p.num_heads / p.num_kv_heads; }

// Whether any token can see more keys than it keeps.
bool may_select(const doge_attention_params& p) {
    return p.keep_window_size > 0 && (p.past_slots != nullptr || p.keep_window_size < p.capacity);
}

bool is_decode(const doge_attention_params& p) {
    return p.new_tokens == 1 || (p.past_slots == nullptr && p.new_tokens <= kMaxDecodeRows / group_of(p));
}

std::size_t blocks_of_64(std::size_t count) { return (count + 63) / 64; }

template <class T>
int run(const doge_attention_params& p, const AttentionWorkspace& workspace, cudaStream_t stream) {
    const bool decode = is_decode(p);
    const bool selecting = may_select(p) && p.new_tokens > 1;
    int status = DOGE_SUCCESS;
    if (selecting) status = launch_thresholds(p, workspace, stream);
    // Before the new tokens are written, for in a bounded cache they take slots that would be copied over.
    if (status == DOGE_SUCCESS && !in_place(p)) status = launch_copy_cache(p, stream);
    if (status != DOGE_SUCCESS) return status;
    status = decode ? launch_decode<T>(p, workspace, stream) : launch_prefill<T>(p, workspace, selecting, stream);
    if (status == DOGE_SUCCESS && !decode && p.past_slots != nullptr) status = launch_replace(p, workspace, stream);
    return status;
}

}  // namespace

bool in_place(const doge_attention_params& p) {
    return p.present_key == p.past_key && p.present_value == p.past_value && p.present_score == p.past_score &&
           p.present_slots == p.past_slots;
}

int run_attention(const doge_attention_params& p, const AttentionWorkspace& workspace, cudaStream_t stream) {
    switch (p.dtype) {
        case DOGE_FLOAT32:
            return run<float>(p, workspace, stream);
        case DOGE_FLOAT16:
            return run<__half>(p, workspace, stream);
        default:
            return run<__nv_bfloat16>(p, workspace, stream);
    }
}

int decode_tiles(const doge_attention_params& p) {
    const int rows = std::min(std::min(p.new_tokens, kMaxDecodeRows) * group_of(p), kMaxDecodeRows);
    return (rows + kTileRows - 1) / kTileRows;
}

std::size_t decode_parts(const doge_attention_params& p) {
    const std::size_t tiles = static_cast<std::size_t>(p.batch) * p.num_kv_heads * decode_tiles(p);
    return std::min(std::max<std::size_t>(tiles, kMaxDecodeBlocks), tiles * blocks_of_64(p.capacity));
}

AttentionWorkspacePlan::AttentionWorkspacePlan(const doge_attention_params& p) {
    const auto take = [this](std::size_t bytes) { return take_bytes(total, bytes); };
    const std::size_t batch = p.batch, tokens = p.new_tokens;
    const std::size_t tiles = batch * p.num_kv_heads * decode_tiles(p), parts = decode_parts(p);
    const bool chosen_before = p.keep_window_size > 0 && p.new_tokens > 1;
    tickets = take(tiles * sizeof(Ticket));
    sums = take(parts * kTileRows * sizeof(float2));
    outputs = take(parts * kTileRows * p.head_size * sizeof(float));
    thresholds = take(chosen_before ? batch * p.num_score_heads * tokens * sizeof(std::uint64_t) : 0);
    free_slots = take(chosen_before ? batch * p.num_kv_heads * std::min<std::size_t>(tokens, p.capacity) * 4 : 0);
}

AttentionWorkspace AttentionWorkspacePlan::at(void* memory) const {
    char* begin = static_cast<char*>(memory);
    return {reinterpret_cast<Ticket*>(begin + tickets), reinterpret_cast<float2*>(begin + sums),
            reinterpret_cast<float*>(begin + outputs), reinterpret_cast<std::uint64_t*>(begin + thresholds),
            reinterpret_cast<std::int32_t*>(begin + free_slots)};
}

static int device_attribute(cudaDeviceAttr attribute) {
    int device = 0, value = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&value, attribute, device);
    return value;
}
int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
static int shared_of_multiprocessor() { return device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor); }

int decode_splits(const doge_attention_params& p, int blocks, int shared_bytes) {
    const int resident = std::clamp(shared_of_multiprocessor() / (shared_bytes + 1024), 1, blocks);
    const int at_once = std::min(multiprocessors() * resident, kMaxDecodeBlocks);
    const int tiles = p.batch * p.num_kv_heads * decode_tiles(p);
    const int most = std::min<int>(kMaxSplits, static_cast<int>(blocks_of_64(p.capacity)));
    const auto busy = [&](int splits) {  // the part of the GPU that works, over all rounds of blocks
        const int rounds = (tiles * splits + at_once - 1) / at_once;
        return static_cast<float>(tiles * splits) / static_cast<float>(rounds * at_once);
    };
    int splits = std::clamp(at_once / tiles, 1, most);
    // More rounds of smaller blocks, where one round would leave much of the GPU idle.
    const int limit = std::min({most, 4 * splits + 4, kMaxDecodeBlocks / tiles});
    for (int more = splits + 1; more <= limit; ++more) {
        if (busy(more) > busy(splits) + 0.1f) splits = more;
    }
    return splits;
}

int launch_thresholds(const doge_attention_params& p, const AttentionWorkspace& workspace, cudaStream_t stream) {
    const dim3 grid((p.new_tokens + kThresholdTokens - 1) / kThresholdTokens, p.num_score_heads, p.batch);
    return launch(threshold_kernel, grid, dim3(kThresholdThreads), sizeof(ThresholdShared), stream, p,
                  workspace.thresholds);
}

int launch_copy_cache(const doge_attention_params& p, cudaStream_t stream) {
    // 64 keys a block, as far as that gives no more blocks than a GPU needs.
    const unsigned blocks = static_cast<unsigned>(std::min<std::size_t>(blocks_of_64(p.capacity), 64));
    const dim3 grid(blocks, std::max(p.num_kv_heads, p.num_score_heads), p.batch);
    return launch(copy_cache_kernel, grid, dim3(kCacheThreads), 0, stream, p, static_cast<int>(number_bytes(p.dtype)));
}

int launch_replace(const doge_attention_params& p, const AttentionWorkspace& workspace, cudaStream_t stream) {
    const dim3 grid(p.num_kv_heads, p.batch);
    const std::size_t shared_bytes = sizeof(int) * (kCacheThreads / 32 + 2 * kCacheThreads);
    return launch(replace_kernel, grid, dim3(kCacheThreads), shared_bytes, stream, p,
                  static_cast<int>(number_bytes(p.dtype)), workspace.thresholds, workspace.free_slots);
}

}  // namespace doge

size_t doge_attention_workspace_bytes(const doge_attention_params* params) {
    return doge::AttentionWorkspacePlan(*params).total;
}

int doge_attention(const doge_attention_params* params, void* workspace, size_t workspace_bytes, void* stream) {
    if (doge_attention_problem(params) != nullptr) return DOGE_BAD_SHAPE;
    const doge::AttentionWorkspacePlan plan(*params);
    if (workspace_bytes < plan.total || reinterpret_cast<std::uintptr_t>(workspace) % doge::kAlignment != 0) {
        return DOGE_BAD_WORKSPACE;
    }
    return doge::run_attention(*params, plan.at(workspace), static_cast<cudaStream_t>(stream));
}
