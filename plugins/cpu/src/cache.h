// Keys, values and scores of the tokens read so far, in pages of PAGE tokens that come as they are needed.
//
// A page holds for each layer and key/value head the keys, the values and (int8) the values' scales, then for each layer and
// score head the scores. The keys' scales lie behind each 16 keys, as in a matrix.
#pragma once
#include <vector>

#include "kernels.h"
#include "memory.h"

namespace doge::cpu {

class Cache {
   public:
    Cache(const doge_cpu_config& config, bool int8);

    // Whether a page has addresses: where these have 32 bits, its size must not wrap.
    static bool fits(const doge_cpu_config& config);
    void reserve(int tokens);  // room for so many
    uint64_t bytes() const { return pages_.size() * page_; }
    bool int8() const { return int8_; }

    // `count` keys of page `page` of one layer and head, from `from` on, a multiple of KEY_BLOCK.
    Keys keys(int page, int layer, int head, int count, int from = 0) const {
        const uint8_t* p = at(page, layer, head);
        const float* scales = reinterpret_cast<const float*>(p + keys_ + values_) + from;
        return {p + keys_ / PAGE * size_t(from), p + keys_ + values_ / PAGE * size_t(from), scales, page * PAGE + from, count,
                int8_, width_};
    }
    float* scores(int page, int layer, int score_head) const {
        return reinterpret_cast<float*>(pages_[size_t(page)].data() + scores_) +
               (size_t(layer) * size_t(score_heads_) + size_t(score_head)) * PAGE;
    }
    float& score(int place, int layer, int score_head) const {
        return scores(place / PAGE, layer, score_head)[place % PAGE];
    }

    // Writes the key and the value, head_dim floats each (the key padded with zeros), of the token at `place`.
    void append(const Kernels& kernels, int place, int layer, int head, const float* key, const float* value) const;

    // Copies the key and the value of one place of a layer and head to an earlier place.
    void move(int from, int to, int layer, int head) const;

    // Calls use(bytes, count) for each stretch of memory that holds the first `tokens` tokens, always in the same order.
    // Values that are codes lie in blocks of KEY_BLOCK, so a page's tokens are rounded up to them.
    template <class Use>
    void stretches(int tokens, Use use) const {
        for (int page = 0; page * PAGE < tokens; page++) {
            const int wanted = tokens - page * PAGE;
            const size_t count = wanted < PAGE ? size_t((wanted + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK) : size_t(PAGE);
            uint8_t* p = page < int(pages_.size()) ? pages_[size_t(page)].data() : nullptr;
            const auto part = [&](size_t offset, size_t bytes) {
                use(p == nullptr ? nullptr : p + offset, bytes / PAGE * count);
            };
            for (size_t begin = 0; begin < scores_; begin += head_) {
                part(begin, keys_);
                part(begin + keys_, values_);
                if (int8_) part(begin + keys_ + values_, PAGE * sizeof(float));
            }
            for (size_t begin = scores_; begin < page_; begin += PAGE * sizeof(float)) part(begin, PAGE * sizeof(float));
        }
    }

   private:
    uint8_t* at(int page, int layer, int head) const {
        return pages_[size_t(page)].data() + (size_t(layer) * size_t(heads_) + size_t(head)) * head_;
    }

    bool int8_;
    int heads_, score_heads_, head_dim_, width_;
    size_t keys_, values_, head_, scores_, page_;  // bytes, and where scores begin
    std::vector<Memory> pages_;
};

}  // namespace doge::cpu
