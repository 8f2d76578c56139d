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
            for (int place = 0; place < state->slots; place++, at += size_t(c.head_dim))
                read_cache(cache, place, layer, head, c.head_dim, keys + at, values + at);
        }
    }
    return DOGE_CPU_SUCCESS;
}

namespace doge::cpu {
namespace {

// How the content of a state begins; the rows follow, each with its counts and its cache.
struct Content {
    int32_t batch, cache_kind, length, slots;
};

Content content_of(const doge_cpu_state& state) {
    return {state.batch, state.caches[0].int8() ? DOGE_CPU_INT8 : DOGE_CPU_FLOAT32, state.length, state.slots};
}

size_t counts_of(const Content& content) { return content.slots == content.length ? size_t(content.length) : 1; }

uint64_t bytes_of(const doge_cpu_state& state, const Content& content) {
    uint64_t bytes = sizeof content;
    for (const Cache& cache : state.caches) {
        bytes += uint64_t(counts_of(content)) * sizeof(int32_t);
        cache.stretches(content.slots, [&](const uint8_t*, size_t count) { bytes += count; });
    }
    return bytes;
}

// Whether a state can hold content that begins so.
bool holds(const doge_cpu_state& state, const Content& content) {
    const Content mine = content_of(state);
    const int window = state.window;
    const bool fits = content.length >= 0 && content.length <= state.max_length && content.slots >= 0;
    if (content.batch != mine.batch || content.cache_kind != mine.cache_kind || !fits) return false;
    return content.slots == content.length ||
           (state.bounded && content.slots >= window && content.slots < content.length && content.slots <= window + state.ROOM);
}

// The counts of a row; empty and false where no tokens count up so.
bool read_counts(const uint8_t* from, const Content& content, std::vector<int32_t>& counts) {
    counts.resize(counts_of(content));
    if (!counts.empty()) std::memcpy(counts.data(), from, counts.size() * sizeof(int32_t));
    if (content.slots != content.length) return counts[0] >= 0 && counts[0] <= content.length;
    for (size_t i = 0; i < counts.size(); i++) {
        const int64_t step = int64_t(counts[i]) - (i == 0 ? 0 : counts[i - 1]);
        if (step != 0 && step != 1) return false;
    }
    return true;
}

}  // namespace
}  // namespace doge::cpu

extern "C" uint64_t doge_cpu_state_saved_bytes(const doge_cpu_state* state) { return bytes_of(*state, content_of(*state)); }

extern "C" doge_cpu_status doge_cpu_state_save(const doge_cpu_state* state, void* out, uint64_t bytes, char* message,
                                               size_t message_bytes) {
    const Message text{message, message_bytes};
    if (state == nullptr || out == nullptr || bytes != doge_cpu_state_saved_bytes(state))
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "no state, or no room of the size of its content");
    const Lock turn(state->model->turn);
    uint8_t* to = static_cast<uint8_t*>(out);
    const auto put = [&](const void* from, size_t count) {
        if (count > 0) std::memcpy(to, from, count);
        to += count;
    };
    const Content content = content_of(*state);
    put(&content, sizeof content);
    for (size_t row = 0; row < state->caches.size(); row++) {
        put(state->counts[row].data(), counts_of(content) * sizeof(int32_t));
        state->caches[row].stretches(state->slots, put);
    }
    return DOGE_CPU_SUCCESS;
}

extern "C" doge_cpu_status doge_cpu_state_load(doge_cpu_state* state, const void* in, uint64_t bytes, char* message,
                                               size_t message_bytes) {
    const Message text{message, message_bytes};
    Content content;
    if (state == nullptr || in == nullptr || bytes < sizeof content)
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "no state, or no content");
    const uint8_t* from = static_cast<const uint8_t*>(in);
    std::memcpy(&content, from, sizeof content);
    from += sizeof content;
    if (!holds(*state, content) || bytes != bytes_of(*state, content))
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "the content is of another kind of state");
    const Lock turn(state->model->turn);
    return guarded(text, [&]() -> doge_cpu_status {
        const uint64_t row_bytes = (bytes - sizeof content) / uint64_t(state->batch);
        std::vector<std::vector<int32_t>> counts(state->caches.size());
        for (size_t row = 0; row < counts.size(); row++) {  // positions follow from them
            if (!read_counts(from + row * row_bytes, content, counts[row]))
                return text.fail(DOGE_CPU_BAD_ARGUMENT, "the content is of no state: its tokens do not count up");
            state->caches[row].reserve(content.slots);
        }
        for (size_t row = 0; row < state->caches.size(); row++) {
            from += counts[row].size() * sizeof(int32_t);
            state->caches[row].stretches(content.slots, [&](uint8_t* to, size_t count) {
                std::memcpy(to, from, count);
                from += count;
            });
            for (Selection& selection : state->kept[row]) selection.clear();
        }
        state->counts = std::move(counts);
        state->length = content.length;
        state->slots = state->settled = content.slots;
        return DOGE_CPU_SUCCESS;
    });
}
