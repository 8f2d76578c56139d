#include "head_cache.h"

#include <algorithm>
#include <cstring>

#include "numbers.h"

namespace doge {
namespace {

// Copies `count` numbers; the places are counted in numbers.
void copy(doge_dtype dtype, void* to, size_t to_place, const void* from, size_t from_place, size_t count) {
    const size_t size = size_of(dtype);
    std::memmove(static_cast<char*>(to) + to_place * size, static_cast<const char*>(from) + from_place * size,
                 count * size);
}

}  // namespace

HeadCache::HeadCache(const doge_attention_params& params, int batch, int kv_head, int live)
    : params_(params),
      batch_(batch),
      kv_head_(kv_head),
      first_((size_t(batch) * params.num_kv_heads + kv_head) * params.capacity * params.head_size) {
    const size_t count = size_t(live) * params.head_size;
    if (params.present_key != params.past_key) {
        copy(params.dtype, params.present_key, first_, params.past_key, first_, count);
    }
    if (params.present_value != params.past_value) {
        copy(params.dtype, params.present_value, first_, params.past_value, first_, count);
    }
    keys_ = read(params.dtype, params.present_key, first_, count);
    values_ = read(params.dtype, params.present_value, first_, count);
}

void HeadCache::store(int token, int slot) {
    const size_t size = params_.head_size;
    const size_t from = ((size_t(batch_) * params_.new_tokens + token) * params_.num_kv_heads + kv_head_) * size;
    copy(params_.dtype, params_.present_key, first_ + slot * size, params_.key, from, size);
    copy(params_.dtype, params_.present_value, first_ + slot * size, params_.value, from, size);

    const std::vector<float> key = read(params_.dtype, params_.key, from, size);
    const std::vector<float> value = read(params_.dtype, params_.value, from, size);
    keys_.resize(std::max(keys_.size(), (slot + 1) * size));
    values_.resize(keys_.size());
    std::copy(key.begin(), key.end(), keys_.begin() + slot * size);
    std::copy(value.begin(), value.end(), values_.begin() + slot * size);
}

}  // namespace doge
