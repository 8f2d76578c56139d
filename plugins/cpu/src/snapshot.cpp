// Keys and values of a state's cache as plain numbers, for tests and for whoever looks for a wrong layer.
#include "snapshot.h"

#include <cstring>
#include <utility>
#include <vector>

#include "guard.h"
#include "message.h"
#include "state.h"

namespace doge::cpu {
namespace {

float number(const uint8_t* bytes) {
    float x;
    std::memcpy(&x, bytes, sizeof x);
    return x;
}

}  // namespace

void read_cache(const Cache& cache, int place, int layer, int head, int head_dim, float* key, float* value) {
    const Keys page = cache.keys(place / PAGE, layer, head, PAGE);
    const int slot = place % PAGE;
    const size_t width = size_t(page.width), lane = size_t(slot % LANES), group = size_t(slot / LANES);
    if (!page.int8) {
        const float* keys = reinterpret_cast<const float*>(page.keys) + group * width * LANES + lane;
        for (int d = 0; d < head_dim; d++) key[d] = keys[size_t(d) * LANES];
        std::memcpy(value, reinterpret_cast<const float*>(page.values) + size_t(slot) * width, size_t(head_dim) * sizeof(float));
        return;
    }
    const uint8_t* keys = page.keys + group * (width + sizeof(float)) * LANES;
    const float scale = number(keys + width * LANES + lane * sizeof(float));
    for (int d = 0; d < head_dim; d++)
        key[d] = scale * float(int(keys[size_t(d / 4) * ALIGN + lane * 4 + size_t(d % 4)]) - 128);
    const uint8_t* values = page.values + size_t(slot / KEY_BLOCK) * width * KEY_BLOCK +
                            size_t(slot % KEY_BLOCK / 4) * ALIGN + size_t(slot % 4);
    for (int d = 0; d < head_dim; d++)
        value[d] = page.value_scales[slot] *
                   float(int8_t(values[size_t(d / LANES) * KEY_BLOCK * LANES + size_t(d % LANES) * 4]));
}

}  // namespace doge::cpu

using namespace doge::cpu;

extern "C" doge_cpu_status doge_cpu_state_copy(const doge_cpu_state* state, int32_t layer, float* keys, float* values,
                                               char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (state == nullptr || keys == nullptr || values == nullptr)
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "no state, or no place to copy to");
    const doge_cpu_config& c = state->model->config();
    if (layer < 0 || layer >= c.num_hidden_layers)
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "layer %d of %d", layer, c.num_hidden_layers);
    const Lock turn(state->model->turn);
    size_t at = 0;
    for (const Cache& cache : state->caches) {
        for (int head = 0; head < c.num_key_value_heads; head++) {
            for (int place = 0; place < state->length; place++, at += size_t(c.head_dim))
                read_cache(cache, place, layer, head, c.head_dim, keys + at, values + at);
        }
    }
    return DOGE_CPU_SUCCESS;
}

namespace doge::cpu {
namespace {

bool can_have(const doge_cpu_state* state, int32_t length) {
    return state != nullptr && length >= 0 && length <= state->max_length;
}

}  // namespace
}  // namespace doge::cpu

extern "C" uint64_t doge_cpu_state_saved_bytes(const doge_cpu_state* state, int32_t length) {
    if (!can_have(state, length)) return 0;
    uint64_t bytes = 0;
    for (const Cache& cache : state->caches) {
        bytes += uint64_t(length) * sizeof(int32_t);
        cache.stretches(length, [&](const uint8_t*, size_t count) { bytes += count; });
    }
    return bytes;
}

extern "C" doge_cpu_status doge_cpu_state_save(const doge_cpu_state* state, void* out, uint64_t bytes, char* message,
                                               size_t message_bytes) {
    const Message text{message, message_bytes};
    if (state == nullptr || out == nullptr || bytes != doge_cpu_state_saved_bytes(state, state->length))
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "no state, or no room of the size of its content");
    const Lock turn(state->model->turn);
    uint8_t* to = static_cast<uint8_t*>(out);
    const auto put = [&](const void* from, size_t count) {
        if (count > 0) std::memcpy(to, from, count);
        to += count;
    };
    for (size_t row = 0; row < state->caches.size(); row++) {
        put(state->counts[row].data(), size_t(state->length) * sizeof(int32_t));
        state->caches[row].stretches(state->length, put);
    }
    return DOGE_CPU_SUCCESS;
}

extern "C" doge_cpu_status doge_cpu_state_load(doge_cpu_state* state, int32_t length, const void* in, uint64_t bytes,
                                               char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (!can_have(state, length) || in == nullptr || bytes != doge_cpu_state_saved_bytes(state, length))
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "the content of a state has another size than %d tokens of this one", length);
    const Lock turn(state->model->turn);
    return guarded(text, [&]() -> doge_cpu_status {
        const uint64_t each = bytes / uint64_t(state->batch);
        const uint8_t* from = static_cast<const uint8_t*>(in);
        std::vector<std::vector<int32_t>> counts;
        for (int row = 0; row < state->batch; row++) {
            std::vector<int32_t>& count = counts.emplace_back(size_t(length));
            if (length > 0) std::memcpy(count.data(), from + uint64_t(row) * each, size_t(length) * sizeof(int32_t));
            for (int32_t place = 0, before = 0; place < length; before = count[size_t(place++)]) {
                const int32_t now = count[size_t(place)];  // positions follow from it
                if (now != before && (before == INT32_MAX || now != before + 1))
                    return text.fail(DOGE_CPU_BAD_ARGUMENT, "the content is of no state: its tokens do not count up");
            }
            state->caches[size_t(row)].reserve(length);
        }
        for (size_t row = 0; row < state->caches.size(); row++) {
            from += size_t(length) * sizeof(int32_t);
            state->caches[row].stretches(length, [&](uint8_t* to, size_t count) {
                std::memcpy(to, from, count);
                from += count;
            });
            for (Selection& selection : state->kept[row]) selection.clear();
        }
        state->counts = std::move(counts);
        state->length = length;
        return DOGE_CPU_SUCCESS;
    });
}
