// Many new tokens: threshold_kernel, prefill_kernel and replace_kernel executed on the CPU, against the reference.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "attention_case.h"

using namespace doge::emulation;

namespace {

constexpr doge_dtype kTypes[] = {DOGE_FLOAT32, DOGE_FLOAT16, DOGE_BFLOAT16};
const char* name_of(doge_dtype dtype) {
    return dtype == DOGE_FLOAT32 ? "fp32" : dtype == DOGE_FLOAT16 ? "fp16" : "bf16";
}

AttentionCase prompt(const std::string& name) {
    AttentionCase c;
    c.name = "prefill " + name;
    c.new_tokens = 100;
    c.capacity = 160;
    c.past_lengths = {0};
    return c;
}

void every_type_and_head_size() {
    for (doge_dtype dtype : kTypes) {
        for (int size : head_sizes(dtype)) {
            AttentionCase c = prompt(std::string(name_of(dtype)) + " D=" + std::to_string(size));
            c.dtype = dtype;
            c.head_size = size;
            c.new_tokens = 70;
            c.past_lengths = {83};
            check_attention(c);
            c.name += " w=50";
            c.keep_window_size = 50;
            check_attention(c);
        }
    }
}

void groups_and_score_heads() {
    for (int group : {1, 2, 4, 16}) {
        for (int kind : {0, 1, 2}) {
            AttentionCase c = prompt("group " + std::to_string(group) + " kind " + std::to_string(kind));
            c.new_tokens = 66;
            c.capacity = 66;
            c.num_kv_heads = group == 16 ? 1 : 2;
            c.num_heads = c.num_kv_heads * group;
            c.num_score_heads = kind == 0 ? 1 : kind == 1 ? c.num_kv_heads : c.num_heads;
            c.keep_window_size = 20;
            check_attention(c);
        }
    }
}

// Windows about the sizes at which something changes: tiles of 64 keys, of 128 tokens, the sight of the first token.
void windows() {
    for (int window : {0, 1, 2, 64, 127, 128, 129, 200, 290, 299, 300}) {
        AttentionCase c = prompt("w=" + std::to_string(window));
        c.keep_window_size = window;
        c.new_tokens = 200;
        c.capacity = 300;
        c.past_lengths = {100, 0, 7};
        check_attention(c);
    }
}

void unusual_scores() {
    struct Kind {
        const char* name;
        std::function<float(int, Random&)> score;
    };
    const Kind kinds[] = {
        {"all equal", [](int, Random&) { return 1.0f; }},
        {"many ties", [](int, Random& r) { return static_cast<float>(r.below(4)); }},
        {"both zeros", [](int, Random& r) { return r.below(2) ? 0.0f : -0.0f; }},
        {"padding on the left", [](int place, Random& r) { return place < 70 ? DOGE_NEG : r.normal(); }},
        {"padding here and there", [](int place, Random& r) { return place % 3 == 0 ? DOGE_NEG : r.normal(); }},
        {"nothing but padding", [](int, Random&) { return DOGE_NEG; }},
        {"huge", [](int place, Random&) { return place % 7 == 0 ? 1e30f : -1e30f; }},
        {"huge and padding", [](int place, Random&) { return place == 3 ? 1e30f : DOGE_NEG; }},
        {"rising", [](int place, Random&) { return 0.01f * static_cast<float>(place); }},
        {"falling", [](int place, Random&) { return -0.01f * static_cast<float>(place); }},
    };
    for (const Kind& kind : kinds) {
        for (int window : {0, 30}) {
            AttentionCase c = prompt(std::string("scores ") + kind.name + " w=" + std::to_string(window));
            c.dtype = DOGE_FLOAT32;
            c.score = kind.score;
            c.keep_window_size = window;
            c.past_lengths = {45, 0};
            check_attention(c);
        }
    }
}

void ragged_rows() {
    for (bool in_place : {true, false}) {
        for (int window : {0, 40}) {
            AttentionCase c =
                prompt(std::string("ragged ") + (in_place ? "in place" : "separate") + " w=" + std::to_string(window));
            c.in_place = in_place;
            c.num_heads = 4;
            c.num_kv_heads = 2;
            c.num_score_heads = 4;
            c.keep_window_size = window;
            c.capacity = 130;
            c.past_lengths = {30, 0, 50, 120, 0};
            c.new_lengths = {100, 65, 1, 10, 0};
            check_attention(c);
        }
    }
}

void capacity_exceeded() {
    AttentionCase c = prompt("beyond the capacity");
    c.past_lengths = {100};
    c.capacity = 160;
    check_attention(c);
    c.name += " w=30";
    c.keep_window_size = 30;
    check_attention(c);
}

void bounded_cache() {
    for (bool in_place : {true, false}) {
        for (int tokens : {2, 90}) {
            for (int kind = 0; kind < 4; ++kind) {
                AttentionCase c = prompt("bounded S=" + std::to_string(tokens) +
                                         (in_place ? " in place" : " separate") + " scores " + std::to_string(kind));
                c.in_place = in_place;
                c.bounded = true;
                c.new_tokens = tokens;
                c.num_heads = 4;
                c.num_kv_heads = c.num_score_heads = 2;
                c.capacity = c.keep_window_size = 60;
                c.past_lengths = {0, 40, 60, 200, 59};
                c.new_lengths = {tokens, tokens, tokens, tokens, 1};
                if (kind == 1) c.score = [](int, Random&) { return 1.0f; };
                if (kind == 2) c.score = [](int, Random& r) { return static_cast<float>(r.below(3)); };
                if (kind == 3) c.score = [](int place, Random&) { return 0.01f * static_cast<float>(place); };
                check_attention(c);
            }
        }
    }
}

// TensorRT may try a plugin on memory of any content. What slots that contradict each other give is anything, but it is
// finite, comes in finite time, and nothing beyond the tensors is touched (DeviceBuffer faults there).
void slots_that_contradict_each_other() {
    constexpr int kTokens = 200, kCapacity = 300, kSize = 64;
    const std::function<int(int)> places[] = {
        [](int) { return 0; },  // below the new tokens, which find no slot that is free
        [](int) { return INT32_MAX; },
        [](int slot) { return -slot; },
        [](int slot) { return slot / 2; },
        [](int slot) { return 1000 + slot % 7; },
    };
    for (std::size_t kind = 0; kind < std::size(places); ++kind) {
        for (int equal : {0, 200, kCapacity}) {
            for (int past : {kCapacity - 3, 400}) {
                const std::string name = "prefill contradicting slots " + std::to_string(kind) + ", " +
                                         std::to_string(equal) + " equal scores, past " + std::to_string(past);
                Random random(1);
                const auto numbers = [&](int rows) {
                    std::vector<float> values(static_cast<std::size_t>(rows) * kSize);
                    for (float& x : values) x = random.normal();
                    return values;
                };
                DeviceBuffer<float> query(numbers(kTokens)), key(numbers(kTokens)), value(numbers(kTokens));
                DeviceBuffer<float> past_key(numbers(kCapacity)), past_value(numbers(kCapacity));
                DeviceBuffer<float> score(std::vector<float>(kTokens, 1.0f)), past_score(kCapacity);
                DeviceBuffer<float> output(query.size());
                DeviceBuffer<std::int32_t> slots(kCapacity), lengths(std::vector<std::int32_t>{past});
                for (int slot = 0; slot < kCapacity; ++slot) {
                    slots[slot] = places[kind](slot);
                    past_score[slot] = slot < equal ? 0.0f : 2.0f + static_cast<float>(slot);
                }
                doge_attention_params p{};
                p.batch = p.num_heads = p.num_kv_heads = p.num_score_heads = 1;
                p.new_tokens = kTokens;
                p.capacity = p.keep_window_size = kCapacity;
                p.head_size = kSize;
                p.scale = 0.125f;
                p.query = query.data();
                p.key = key.data();
                p.value = value.data();
                p.score = score.data();
                p.past_key = p.present_key = past_key.data();
                p.past_value = p.present_value = past_value.data();
                p.past_score = p.present_score = past_score.data();
                p.past_slots = p.present_slots = slots.data();
                p.past_lengths = lengths.data();
                p.output = output.data();
                DeviceBuffer<char> workspace(doge_attention_workspace_bytes(&p), 256);
                const int status = doge_attention(&p, workspace.data(), workspace.size(), nullptr);
                CHECK(status == DOGE_SUCCESS, name + ": status " + std::to_string(status));
                const std::vector<float> given = output.host();
                CHECK(std::all_of(given.begin(), given.end(), [](float x) { return std::isfinite(x); }),
                      name + ": the output is not finite");
            }
        }
    }
}

void every_schedule() {
    under_every_schedule([](const char* schedule) {
        for (int kind = 0; kind < 3; ++kind) {
            AttentionCase c = prompt("kind " + std::to_string(kind));
            c.bounded = kind == 2;
            c.new_tokens = 140;
            c.capacity = kind == 2 ? 50 : 220;
            c.keep_window_size = kind == 0 ? 0 : 50;
            c.past_lengths = {70};
            check_attention(c, schedule);
        }
    });
    set_schedule({});
}

}  // namespace

int main() {
    every_type_and_head_size();
    groups_and_score_heads();
    windows();
    unusual_scores();
    ragged_rows();
    capacity_exceeded();
    bounded_cache();
    slots_that_contradict_each_other();
    every_schedule();
    return failures();
}
