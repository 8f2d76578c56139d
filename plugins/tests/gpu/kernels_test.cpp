// Both operators on the GPU against the reference: every storage type and head size, decode and prefill, selection,
// ragged rows, bounded caches. Exit code 77 without a GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "doge/operators.h"
#include "numbers.h"

namespace {

using doge::testing::Bytes;
using doge::testing::DeviceBytes;

const char* const kNames[] = {"float32", "float16", "bfloat16"};
const double kLimits[] = {1e-5, 2e-3, 1.5e-2};

std::mt19937 generator(1);
int failures = 0;

void report(bool good, const std::string& what, double error) {
    failures += good ? 0 : 1;
    std::printf("%s  %s  error %.2e\n", good ? "ok    " : "FAILED", what.c_str(), error);
}

Bytes normal(doge_dtype dtype, size_t count) {
    std::normal_distribution<double> distribution;
    Bytes bytes(count * doge::size_of(dtype));
    for (size_t i = 0; i < count; ++i) {
        doge::write(dtype, bytes.data(), i, distribution(generator));
    }
    return bytes;
}

Bytes integers(const std::vector<int32_t>& values) {
    Bytes bytes(values.size() * sizeof(int32_t));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
}

// |actual - expected| / |expected|; infinite where something is not finite.
double error_of(doge_dtype dtype, const Bytes& actual, const Bytes& expected) {
    const size_t count = expected.size() / doge::size_of(dtype);
    const std::vector<float> found = doge::read(dtype, actual.data(), 0, count);
    const std::vector<float> wanted = doge::read(dtype, expected.data(), 0, count);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < count; ++i) {
        difference += std::pow(static_cast<double>(found[i]) - wanted[i], 2);
        norm += std::pow(static_cast<double>(wanted[i]), 2);
    }
    return std::isfinite(difference) ? std::sqrt(difference / norm) : INFINITY;
}

struct Sizes {
    std::vector<int32_t> past;
    int new_tokens, heads, kv_heads, score_heads, size, window;
    bool bounded = false;
};

std::string name_of(const Sizes& sizes, doge_dtype dtype) {
    return std::string("attention ") + kNames[dtype] + " S " + std::to_string(sizes.new_tokens) + " heads " +
           std::to_string(sizes.heads) + "/" + std::to_string(sizes.kv_heads) + "/" +
           std::to_string(sizes.score_heads) + " D " + std::to_string(sizes.size) + " w " +
           std::to_string(sizes.window) + (sizes.bounded ? " bounded" : "");
}

// The tensors of a call, in host memory or on the device.
struct Memory {
    Bytes query, key, value, score, past_key, past_value, past_score, slots, lengths, output;

    template <class Place>
    static void point(doge_attention_params& p, Place at, const Memory& m, bool bounded) {
        p.query = at(m.query);
        p.key = at(m.key);
        p.value = at(m.value);
        p.score = static_cast<const float*>(at(m.score));
        p.past_key = p.present_key = at(m.past_key);
        p.past_value = p.present_value = at(m.past_value);
        p.present_score = static_cast<float*>(at(m.past_score));
        p.past_score = p.present_score;
        p.present_slots = bounded ? static_cast<int32_t*>(at(m.slots)) : nullptr;
        p.past_slots = p.present_slots;
        p.past_lengths = static_cast<const int32_t*>(at(m.lengths));
        p.output = at(m.output);
    }
};

void test_attention(const Sizes& sizes, doge_dtype dtype) {
    int32_t longest = 0;
    for (int32_t past : sizes.past) {
        longest = std::max(longest, past);
    }
    doge_attention_params p{};
    p.batch = static_cast<int32_t>(sizes.past.size());
    p.new_tokens = sizes.new_tokens;
    p.capacity = sizes.bounded ? sizes.window : longest + sizes.new_tokens + 5;
    p.num_heads = sizes.heads;
    p.num_kv_heads = sizes.kv_heads;
    p.num_score_heads = sizes.score_heads;
    p.head_size = sizes.size;
    p.keep_window_size = sizes.window;
    p.scale = 1 / std::sqrt(static_cast<float>(sizes.size));
    p.dtype = dtype;
    const size_t tokens = size_t(p.batch) * p.new_tokens;
    const size_t cached = size_t(p.batch) * p.num_kv_heads * p.capacity;

    Memory m;
    m.query = normal(dtype, tokens * p.num_heads * p.head_size);
    m.key = normal(dtype, tokens * p.num_kv_heads * p.head_size);
    m.value = normal(dtype, tokens * p.num_kv_heads * p.head_size);
    m.score = normal(DOGE_FLOAT32, tokens * p.num_score_heads);
    m.past_key = normal(dtype, cached * p.head_size);
    m.past_value = normal(dtype, cached * p.head_size);
    m.past_score = normal(DOGE_FLOAT32, size_t(p.batch) * p.num_score_heads * p.capacity);
    // A row that has read more than fits holds any w of its tokens: here the last.
    std::vector<int32_t> slots(cached);
    for (size_t i = 0; i < cached; ++i) {
        const int32_t slot = static_cast<int32_t>(i % p.capacity);
        const int32_t past = sizes.past[i / (size_t(p.num_kv_heads) * p.capacity)];
        slots[i] = past <= p.capacity ? slot : past - 1 - slot;
    }
    m.slots = integers(slots);
    m.lengths = integers(sizes.past);
    m.output = Bytes(m.query.size(), 0xFF);

    Memory expected = m;
    const auto on_host = [](const Bytes& bytes) -> void* { return const_cast<uint8_t*>(bytes.data()); };
    Memory::point(p, on_host, expected, sizes.bounded);
    const std::string name = name_of(sizes, dtype);
    if (doge_attention_reference(&p) != DOGE_SUCCESS || doge_attention_problem(&p) != nullptr) {
        const char* problem = doge_attention_problem(&p);
        return report(false, name + ": " + (problem ? problem : "refused"), 0);
    }

    std::vector<std::pair<const Bytes*, std::unique_ptr<DeviceBytes>>> places;
    const auto upload = [&](const Bytes& bytes) -> void* {
        places.emplace_back(&bytes, std::make_unique<DeviceBytes>(bytes));
        return places.back().second->as<void>();
    };
    Memory::point(p, upload, m, sizes.bounded);
    DeviceBytes workspace(Bytes(doge_attention_workspace_bytes(&p), 0xFF));
    const int status = doge_attention(&p, workspace.as<void>(), doge_attention_workspace_bytes(&p), nullptr);
    SUCCEED(cudaDeviceSynchronize());
    if (status != DOGE_SUCCESS) {
        return report(false, name + ": " + doge_status_message(status), 0);
    }
    workspace.host();
    for (auto& [bytes, device] : places) {
        const Bytes found = device->host();
        if (bytes == &m.output) {
            const double error = error_of(dtype, found, expected.output);
            report(error <= kLimits[dtype], name, error);
        } else if (!sizes.bounded && bytes == &m.past_key && found != expected.past_key) {
            report(false, name + ": the key cache differs", 1);
        } else if (!sizes.bounded && bytes == &m.past_value && found != expected.past_value) {
            report(false, name + ": the value cache differs", 1);
        } else if (!sizes.bounded && bytes == &m.past_score && found != expected.past_score) {
            report(false, name + ": the score cache differs", 1);
        }
    }
}

// The fused operator, in place; X is 96, and scores are linear in the standard normal ones.
void test_fused(const Sizes& sizes, bool norm, doge_dtype dtype) {
    constexpr int kInputs = 96;
    doge_fused_attention_params fused{};
    doge_attention_params& p = fused.attention;
    p.batch = static_cast<int32_t>(sizes.past.size());
    p.new_tokens = sizes.new_tokens;
    p.capacity = *std::max_element(sizes.past.begin(), sizes.past.end()) + sizes.new_tokens + 5;
    p.num_heads = sizes.heads;
    p.num_kv_heads = sizes.kv_heads;
    p.num_score_heads = sizes.score_heads;
    p.head_size = sizes.size;
    p.keep_window_size = sizes.window;
    p.scale = 1 / std::sqrt(static_cast<float>(sizes.size));
    p.dtype = dtype;
    fused.num_score_inputs = kInputs;
    fused.epsilon = 1e-6F;
    const size_t tokens = size_t(p.batch) * p.new_tokens, cached = size_t(p.batch) * p.num_kv_heads * p.capacity;
    const Bytes projected = normal(dtype, tokens * (p.num_heads + 2 * p.num_kv_heads) * p.head_size);
    const Bytes source = normal(DOGE_FLOAT32, tokens * kInputs), rate = normal(DOGE_FLOAT32, p.num_score_heads);
    const Bytes weight = normal(DOGE_FLOAT32, size_t(p.num_score_heads) * kInputs);
    const Bytes cos = normal(DOGE_FLOAT32, tokens * p.head_size / 2), sin = normal(DOGE_FLOAT32, cos.size() / 4);
    const Bytes norms = normal(DOGE_FLOAT32, p.head_size), lengths = integers(sizes.past);
    Bytes key = normal(dtype, cached * p.head_size), value = normal(dtype, cached * p.head_size);
    Bytes score = normal(DOGE_FLOAT32, size_t(p.batch) * p.num_score_heads * p.capacity);
    Bytes output(tokens * p.num_heads * p.head_size * doge::size_of(dtype), 0xFF);

    const auto point = [&](auto at) {
        const auto floats = [&](const Bytes& bytes) { return static_cast<float*>(at(bytes)); };
        fused.projected = at(projected);
        fused.score_source = floats(source);
        fused.score_weight = floats(weight);
        fused.score_rate = floats(rate);
        fused.cos = floats(cos);
        fused.sin = floats(sin);
        fused.query_norm = fused.key_norm = norm ? floats(norms) : nullptr;
        p.past_key = p.present_key = at(key);
        p.past_value = p.present_value = at(value);
        p.present_score = floats(score);
        p.past_score = p.present_score;
        p.past_lengths = static_cast<const int32_t*>(at(lengths));
        p.output = at(output);
    };
    std::vector<std::pair<const Bytes*, std::unique_ptr<DeviceBytes>>> places;
    point([&](const Bytes& bytes) -> void* {  // before the reference writes
        places.emplace_back(&bytes, std::make_unique<DeviceBytes>(bytes));
        return places.back().second->as<void>();
    });
    const doge_fused_attention_params on_device = fused;
    point([](const Bytes& bytes) -> void* { return const_cast<uint8_t*>(bytes.data()); });
    const std::string name = "fused " + name_of(sizes, dtype);
    if (doge_fused_attention_reference(&fused) != DOGE_SUCCESS) return report(false, name + ": refused", 0);
    const size_t bytes_needed = doge_fused_attention_workspace_bytes(&on_device);
    DeviceBytes workspace(Bytes(bytes_needed, 0xFF));
    const int status = doge_fused_attention(&on_device, workspace.as<void>(), bytes_needed, nullptr);
    SUCCEED(cudaDeviceSynchronize());
    if (status != DOGE_SUCCESS) return report(false, name + ": " + doge_status_message(status), 0);
    workspace.host();
    for (auto& [bytes, device] : places) {
        const Bytes found = device->host();
        const bool is_score = bytes == &score;
        if (bytes == &value && found != value) report(false, name + ": the value cache differs", 1);
        if (bytes != &output && bytes != &key && !is_score) continue;
        const double error = error_of(is_score ? DOGE_FLOAT32 : dtype, found, *bytes);
        report(error <= kLimits[is_score ? DOGE_FLOAT32 : dtype], name, error);
    }
}

void test_cdmoe(int tokens, int hidden, int keys, int heads, int picks, bool inside, doge_dtype dtype) {
    doge_cdmoe_params p{};
    p.tokens = tokens;
    p.hidden_size = hidden;
    p.num_experts = keys * keys;
    p.num_keys = keys;
    p.num_routing_heads = heads;
    p.num_experts_per_tok = picks;
    p.weights_inside = inside;
    p.dtype = dtype;
    const Bytes states = normal(dtype, size_t(tokens) * hidden);
    const size_t scores = size_t(tokens) * heads * keys;
    const Bytes x = normal(DOGE_FLOAT32, scores), y = normal(DOGE_FLOAT32, scores);
    const size_t table = size_t(p.num_experts) * hidden;
    const Bytes down = normal(dtype, table), up = normal(dtype, table);
    Bytes expected(states.size(), 0xFF);
    p.hidden = states.data();
    p.scores_x = reinterpret_cast<const float*>(x.data());
    p.scores_y = reinterpret_cast<const float*>(y.data());
    p.down_embed = down.data();
    p.up_embed = up.data();
    p.output = expected.data();
    const std::string name = std::string("cdmoe ") + kNames[dtype] + " tokens " + std::to_string(tokens) + " H " +
                             std::to_string(hidden) + " K " + std::to_string(keys) + " k " + std::to_string(picks);
    if (doge_cdmoe_reference(&p) != DOGE_SUCCESS) {
        return report(false, name + ": refused", 0);
    }
    const DeviceBytes d_states(states), d_x(x), d_y(y), d_down(down), d_up(up), d_output(Bytes(states.size(), 0xFF));
    p.hidden = d_states.as<void>();
    p.scores_x = d_x.as<float>();
    p.scores_y = d_y.as<float>();
    p.down_embed = d_down.as<void>();
    p.up_embed = d_up.as<void>();
    p.output = d_output.as<void>();
    DeviceBytes workspace(Bytes(doge_cdmoe_workspace_bytes(&p), 0xFF));
    const int status = doge_cdmoe(&p, workspace.as<void>(), doge_cdmoe_workspace_bytes(&p), nullptr);
    SUCCEED(cudaDeviceSynchronize());
    if (status != DOGE_SUCCESS) {
        return report(false, name + ": " + doge_status_message(status), 0);
    }
    workspace.host();
    const double error = error_of(dtype, d_output.host(), expected);
    report(error <= kLimits[dtype], name, error);
}

void test_all(doge_dtype dtype) {
    for (int size : {64, 80, 96, 128, 256}) {
        test_attention({{70, 3, 0}, 1, 8, 2, 2, size, 0}, dtype);
        test_attention({{0, 9}, 37, 4, 2, 4, size, 0}, dtype);
    }
    for (int size : {64, 128}) {
        test_fused({{290, 40, 0}, 1, 8, 2, 2, size, 33}, true, dtype);
        test_fused({{290, 40, 0}, 1, 8, 2, 8, size, 0}, false, dtype);
        test_fused({{20, 0}, 30, 6, 3, 1, size, 33}, true, dtype);
    }
    test_attention({{290, 40}, 1, 8, 2, 2, 64, 33}, dtype);
    test_attention({{290, 40}, 1, 16, 1, 1, 64, 33}, dtype);
    test_attention({{20, 0}, 90, 4, 4, 4, 64, 33}, dtype);
    test_attention({{20, 0}, 90, 4, 2, 1, 64, 1}, dtype);
    test_attention({{20, 64, 90}, 1, 4, 2, 2, 64, 64, true}, dtype);
    test_attention({{20, 64, 90}, 19, 4, 2, 2, 64, 64, true}, dtype);
    for (int tokens : {1, 3, 40}) {
        test_cdmoe(tokens, 64, 8, 1, 8, false, dtype);
        test_cdmoe(tokens, 256, 16, 2, 16, true, dtype);
    }
}

}  // namespace

int main() {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        std::printf("skipped: no GPU\n");
        return 77;
    }
    try {
        for (doge_dtype dtype : {DOGE_FLOAT32, DOGE_FLOAT16, DOGE_BFLOAT16}) {
            test_all(dtype);
        }
    } catch (const std::exception& error) {
        std::printf("FAILED  %s\n", error.what());
        return 1;
    }
    std::printf(failures == 0 ? "ok\n" : "%d failed\n", failures);
    return failures == 0 ? 0 : 1;
}
