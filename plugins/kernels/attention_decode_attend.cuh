// Stage 3 of decode_kernel: a warp goes through tiles of 16 keys of its own with an online softmax, without any barrier
// of the block. While it multiplies by keys, its next values are arriving, and the other way round.
#ifndef DOGE_KERNELS_ATTENTION_DECODE_ATTEND_CUH
#define DOGE_KERNELS_ATTENTION_DECODE_ATTEND_CUH

#include "attention_decode_block.cuh"
#include "attention_tile.cuh"

namespace doge {

// Stage 3: the first `count` keys of the list; without selection, `count` keys from number `first` on. The queries may
// still be arriving when it is called for the first time.
template <class T, int D>
__device__ __forceinline__ void attend(const DecodeBlock<T, D>& block, int first, int count, bool selecting,
                                       bool is_first, OnlineSoftmax& softmax, float (&output)[D / 8][4]) {
    using Block = DecodeBlock<T, D>;
    const auto& p = block.p;
    auto& notes = block.notes();
    const KeyRows<T, D> cache(p, block.row, block.batch, block.kv_head);
    const auto number_of = [&](int index) { return selecting ? notes.kept[index] : first + index; };
    const auto load_keys = [&](int start) {
        Block::Rows::template load<32, kDecodeKeys>(block.keys(), p.key, block.lane, [&](int i) {
            return start + i < count ? cache.row(p.past_key, p.key, number_of(start + i)) : nullptr;
        });
        for (int n = block.lane; n < block.score_heads * kDecodeKeys; n += 32) {
            const int index = start + n % kDecodeKeys;
            const bool valid = index < count;
            const float* score = valid ? block.scores_of(n / kDecodeKeys).address(number_of(index)) : p.score;
            async_copy_4(&notes.score[block.warp][n / kDecodeKeys][n % kDecodeKeys], score, valid);
        }
        async_commit();
    };
    const auto load_values = [&](int start) {
        Block::Rows::template load<32, kDecodeKeys>(block.values(), p.value, block.lane, [&](int i) {
            return start + i < count ? cache.row(p.past_value, p.value, number_of(start + i)) : nullptr;
        });
        async_commit();
    };

    int start = block.warp * kDecodeKeys;
    load_keys(start);
    load_values(start);
    if (is_first) {
        async_wait<2>();
        __syncthreads();
    }
    for (; start < count; start += Block::kWarps * kDecodeKeys) {
        async_wait<1>();
        __syncwarp();
        float logits[kDecodeKeys / 8][4];
        multiply_keys<T, D, kDecodeKeys>(logits, block.queries(), 0, block.keys());
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = block.lane / 4 + 8 * h;
            const int last = notes.last[r], dropped = notes.dropped;
            const float* scores = notes.score[block.warp][block.score_head_of(r)];
#pragma unroll
            for (int c = 0; c < kDecodeKeys / 4; ++c) {
                const int column = c / 2 * 8 + block.lane % 4 * 2 + c % 2;
                float& logit = logits[c / 2][2 * h + c % 2];
                const bool exists = start + column < count;
                const int number = exists ? number_of(start + column) : 0;
                bool seen = exists && number <= last && number != dropped;
                if (selecting) seen = seen && order_key(scores[column], number) >= notes.threshold[r];
                logit = seen ? fmaf(p.scale, logit, scores[column]) : -INFINITY;
            }
        }
        __syncwarp();
        load_keys(start + Block::kWarps * kDecodeKeys);
        softmax.add(logits, output);
        async_wait<1>();
        __syncwarp();
        multiply_values<T, D, kDecodeKeys>(output, logits, block.values());
        __syncwarp();
        load_values(start + Block::kWarps * kDecodeKeys);
    }
    async_wait<0>();
}

}  // namespace doge
#endif
