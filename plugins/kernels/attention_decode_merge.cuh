// Stage 4 of decode_kernel: the results of a block's warps become the block's, and those of all splits the output.
#ifndef DOGE_KERNELS_ATTENTION_DECODE_MERGE_CUH
#define DOGE_KERNELS_ATTENTION_DECODE_MERGE_CUH

#include "attention_decode_block.cuh"
#include "attention_tile.cuh"

namespace doge {

__device__ __forceinline__ void add_scaled(float4& sum, float factor, const float4& x) {
    sum.x = fmaf(factor, x.x, sum.x);
    sum.y = fmaf(factor, x.y, sum.y);
    sum.z = fmaf(factor, x.z, sum.z);
    sum.w = fmaf(factor, x.w, sum.w);
}

template <class T, int D>
__device__ __forceinline__ void write_output(const DecodeBlock<T, D>& block, int r, int column, const float4& sum,
                                             float factor) {
    using Word = typename Pair<T>::Word;
    Word* output = reinterpret_cast<Word*>(static_cast<T*>(block.p.output) + block.place_of(r) + column);
    output[0] = Pair<T>::pack(sum.x * factor, sum.y * factor);
    output[1] = Pair<T>::pack(sum.z * factor, sum.w * factor);
}

// Stage 4, within the block: what its keys give, relative to the largest logit, and the sum of their weights.
template <class T, int D>
__device__ __forceinline__ void merge_warps(const DecodeBlock<T, D>& block, OnlineSoftmax& softmax,
                                            const float (&output)[D / 8][4], int split, int splits) {
    using Block = DecodeBlock<T, D>;
    auto& notes = block.notes();
    async_wait<0>();  // of queries that nothing was multiplied by
    softmax.finish();
    float* result = reinterpret_cast<float*>(block.keys());  // [16, D], in this warp's own memory
    __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int r = block.lane / 4 + 8 * h;
        if (r >= block.rows()) continue;
        if (block.lane % 4 == 0) {
            notes.largest[block.warp][r] = softmax.largest[h];
            notes.total[block.warp][r] = softmax.total[h];
        }
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            *reinterpret_cast<float2*>(result + r * D + 8 * n + block.lane % 4 * 2) =
                make_float2(output[n][2 * h], output[n][2 * h + 1]);
        }
    }
    __syncthreads();
    const std::size_t part = block.part_of(split);
    for (int index = static_cast<int>(threadIdx.x); index < block.rows() * D / 4; index += Block::kThreads) {
        const int r = index / (D / 4), column = index % (D / 4) * 4;
        float largest = -INFINITY;
#pragma unroll
        for (int w = 0; w < Block::kWarps; ++w) largest = fmaxf(largest, notes.largest[w][r]);
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < Block::kWarps; ++w) {
            const float factor = notes.largest[w][r] == -INFINITY ? 0.0f : __expf(notes.largest[w][r] - largest);
            const char* of_warp = block.warps() + w * Block::kWarpBytes;
            const float4 x = *reinterpret_cast<const float4*>(of_warp + (r * D + column) * 4);
            add_scaled(sum, factor, x);
            total = fmaf(factor, notes.total[w][r], total);
        }
        if (splits == 1) {
            write_output(block, r, column, sum, total > 0.0f ? 1.0f / total : 0.0f);
        } else {
            *reinterpret_cast<float4*>(block.workspace.outputs + (part * kTileRows + r) * D + column) = sum;
            if (column == 0) block.workspace.sums[part * kTileRows + r] = make_float2(largest, total);
        }
    }
}

// Stage 4, of all splits.
template <class T, int D>
__device__ __forceinline__ void merge_splits(const DecodeBlock<T, D>& block, int splits) {
    using Block = DecodeBlock<T, D>;
    auto* factors = reinterpret_cast<float*>(block.warps());                    // [16, splits]
    auto* sums = reinterpret_cast<float4*>(factors + kTileRows * kMaxSplits);  // [threads]
    const std::size_t first = block.part_of(0);
    for (int r = block.warp; r < block.rows(); r += Block::kWarps) {
        float largest = -INFINITY;
        for (int s = block.lane; s < splits; s += 32) {
            largest = fmaxf(largest, __ldcg(&block.workspace.sums[(first + s) * kTileRows + r]).x);
        }
        largest = warp_max(largest);
        float total = 0.0f;
        for (int s = block.lane; s < splits; s += 32) {
            const float2 sum = __ldcg(&block.workspace.sums[(first + s) * kTileRows + r]);
            const float factor = sum.x == -INFINITY ? 0.0f : __expf(sum.x - largest);
            factors[r * splits + s] = factor;
            total = fmaf(factor, sum.y, total);
        }
        total = warp_sum(total);
        const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
        for (int s = block.lane; s < splits; s += 32) factors[r * splits + s] *= inverse;
    }
    __syncthreads();

    // Four columns of a row a thread; threads to spare share out the splits.
    const int columns = block.rows() * (D / 4), at_once = min(columns, Block::kThreads);
    const int sharers = max(Block::kThreads / columns, 1);
    for (int begin = 0; begin < columns; begin += Block::kThreads) {
        const int index = begin + static_cast<int>(threadIdx.x) % at_once;
        const int sharer = static_cast<int>(threadIdx.x) / at_once;
        const int r = index / (D / 4), column = index % (D / 4) * 4;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (index < columns && sharer < sharers) {
#pragma unroll 8
            for (int s = sharer; s < splits; s += sharers) {
                const float factor = factors[r * splits + s];
                const float4 x = __ldcg(reinterpret_cast<const float4*>(
                    block.workspace.outputs + ((first + s) * kTileRows + r) * D + column));
                add_scaled(sum, factor, x);
            }
        }
        if (sharers > 1) {
            sums[threadIdx.x] = sum;
            __syncthreads();
            for (int other = 1; other < sharers && sharer == 0; ++other) {
                add_scaled(sum, 1.0f, sums[threadIdx.x + other * columns]);
            }
        }
        if (index < columns && sharer == 0) write_output(block, r, column, sum, 1.0f);
    }
}

}  // namespace doge
#endif
