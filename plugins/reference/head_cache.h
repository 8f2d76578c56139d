// The cache of one row of the batch and one key/value head.
#pragma once

#include <vector>

#include "doge/operators.h"

namespace doge {

class HeadCache {
public:
    // Takes over the first `live` slots of the past cache: copies them to the present one, if that is other memory.
    HeadCache(const doge_attention_params& params, int batch, int kv_head, int live);

    // Writes key and value of new token `token` into a slot of the present cache.
    void store(int token, int slot);

    // What the present cache holds in a slot: [D].
    const float* key(int slot) const { return &keys_[slot * params_.head_size]; }
    const float* value(int slot) const { return &values_[slot * params_.head_size]; }

private:
    const doge_attention_params& params_;
    const int batch_;
    const int kv_head_;
    const size_t first_;         // of the head's numbers in a cache
    std::vector<float> keys_;    // [slots, D]
    std::vector<float> values_;  // [slots, D]
};

}  // namespace doge
