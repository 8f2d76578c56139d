// DynamicMaskAttention as operators.h defines it, one row of the batch after the other.
#include <algorithm>
#include <cmath>
#include <vector>

#include "head_cache.h"
#include "numbers.h"
#include "ranking.h"
#include "sizes.h"

namespace doge {
namespace {

struct Lengths {
    int past;  // tokens read so far: the place of the first new one
    int real;  // new tokens that are no padding
    int live;  // slots of the cache in use
};

Lengths lengths_of(const doge_attention_params& p, int batch) {
    const int past = p.past_lengths[batch];
    const int real = p.new_lengths == nullptr ? p.new_tokens : p.new_lengths[batch];
    return {past, real, std::min(past, p.capacity)};
}

size_t output_place(const doge_attention_params& p, int batch, int token, int head) {
    return ((size_t(batch) * p.new_tokens + token) * p.num_heads + head) * p.head_size;
}

// The scores of one row and score head, of which `live` are taken over from the past cache: [C].
float* take_over_scores(const doge_attention_params& p, int batch, int score_head, int live) {
    const size_t first = (size_t(batch) * p.num_score_heads + score_head) * p.capacity;
    std::copy_n(p.past_score + first, p.past_score == p.present_score ? 0 : live, p.present_score + first);
    return p.present_score + first;
}

float new_score(const doge_attention_params& p, int batch, int token, int score_head) {
    return p.score[(size_t(batch) * p.new_tokens + token) * p.num_score_heads + score_head];
}

// softmax over the slots of (scale <q, k> + score), times their values; sums in double.
void attend(const doge_attention_params& p, int batch, int token, int head, const HeadCache& cache, const float* scores,
            const std::vector<int>& slots) {
    const int size = p.head_size;
    const size_t place = output_place(p, batch, token, head);
    const std::vector<float> query = read(p.dtype, p.query, place, size);

    std::vector<double> logits(slots.size());
    for (size_t n = 0; n < slots.size(); ++n) {
        const float* key = cache.key(slots[n]);
        double product = 0;
        for (int d = 0; d < size; ++d) {
            product += static_cast<double>(query[d]) * key[d];
        }
        logits[n] = p.scale * product + scores[slots[n]];
    }
    const double largest = *std::max_element(logits.begin(), logits.end());

    double total = 0;
    std::vector<double> output(size);
    for (size_t n = 0; n < slots.size(); ++n) {
        const double weight = std::exp(logits[n] - largest);
        const float* value = cache.value(slots[n]);
        total += weight;
        for (int d = 0; d < size; ++d) {
            output[d] += weight * value[d];
        }
    }
    for (int d = 0; d < size; ++d) {
        write(p.dtype, p.output, place + d, output[d] / total);
    }
}

// The output of new tokens that are padding, or have no key in the cache: any finite number would do.
void write_zeros(const doge_attention_params& p, int batch, int token) {
    const size_t place = output_place(p, batch, token, 0);
    for (int n = 0; n < p.num_heads * p.head_size; ++n) {
        write(p.dtype, p.output, place + n, 0);
    }
}

// Slot j holds token j.
void unbounded(const doge_attention_params& p, int batch) {
    const Lengths lengths = lengths_of(p, batch);
    const int stored = std::clamp(p.capacity - lengths.past, 0, lengths.real);

    std::vector<HeadCache> caches;
    for (int kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
        HeadCache& cache = caches.emplace_back(p, batch, kv_head, lengths.live);
        for (int token = 0; token < stored; ++token) {
            cache.store(token, lengths.past + token);
        }
    }
    for (int score_head = 0; score_head < p.num_score_heads; ++score_head) {
        float* scores = take_over_scores(p, batch, score_head, lengths.live);
        for (int token = 0; token < stored; ++token) {
            scores[lengths.past + token] = new_score(p, batch, token, score_head);
        }
        const int group = p.num_heads / p.num_score_heads;
        for (int token = 0; token < stored; ++token) {
            const int visible = lengths.past + token + 1;
            const int kept = p.keep_window_size == 0 ? visible : p.keep_window_size;
            const std::vector<int> slots = best(scores, visible, kept);
            for (int head = score_head * group; head < (score_head + 1) * group; ++head) {
                const HeadCache& cache = caches[head * p.num_kv_heads / p.num_heads];
                attend(p, batch, token, head, cache, scores, slots);
            }
        }
    }
    for (int token = stored; token < p.new_tokens; ++token) {
        write_zeros(p, batch, token);
    }
}

// The slot that the next key would take from the worst of those in use.
int worst_slot(const float* scores, const int32_t* places, int used) {
    int worst = 0;
    for (int slot = 1; slot < used; ++slot) {
        if (ranks_before(scores[worst], places[worst], scores[slot], places[slot])) {
            worst = slot;
        }
    }
    return worst;
}

// The w best keys in any order, token after token: scores never change, so a key that has left never returns.
void bounded(const doge_attention_params& p, int batch) {
    const Lengths lengths = lengths_of(p, batch);
    const int group = p.num_heads / p.num_kv_heads;
    for (int kv_head = 0; kv_head < p.num_kv_heads; ++kv_head) {
        HeadCache cache(p, batch, kv_head, lengths.live);
        float* scores = take_over_scores(p, batch, kv_head, lengths.live);
        const size_t first = (size_t(batch) * p.num_kv_heads + kv_head) * p.capacity;
        int32_t* places = p.present_slots + first;
        std::copy_n(p.past_slots + first, p.past_slots == p.present_slots ? 0 : lengths.live, places);

        std::vector<int> slots = best(scores, lengths.live, lengths.live);
        for (int token = 0; token < lengths.real; ++token) {
            const int place = lengths.past + token;
            const float score = new_score(p, batch, token, kv_head);
            const int used = static_cast<int>(slots.size());
            const bool is_free = used < p.capacity;
            const int slot = is_free ? used : worst_slot(scores, places, used);
            if (is_free) {
                slots.push_back(slot);
            }
            if (is_free || ranks_before(score, place, scores[slot], places[slot])) {
                cache.store(token, slot);
                scores[slot] = score;
                places[slot] = place;
            }
            for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
                attend(p, batch, token, head, cache, scores, slots);
            }
        }
    }
    for (int token = lengths.real; token < p.new_tokens; ++token) {
        write_zeros(p, batch, token);
    }
}

}  // namespace
}  // namespace doge

int doge_attention_reference(const doge_attention_params* params) {
    if (doge::attention_malformed(*params) != nullptr) {
        return DOGE_BAD_SHAPE;
    }
    for (int batch = 0; batch < params->batch; ++batch) {
        params->past_slots == nullptr ? doge::unbounded(*params, batch) : doge::bounded(*params, batch);
    }
    return DOGE_SUCCESS;
}
