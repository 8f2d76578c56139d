// Keys and values of a state's cache as plain numbers, for tests and for whoever looks for a wrong layer.
#include "snapshot.h"

#include <cstring>

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
