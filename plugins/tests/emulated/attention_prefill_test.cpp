// Many new tokens: threshold_kernel, prefill_kernel and replace_kernel executed on the CPU, against the reference.
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
        for (int size : {64, 80, 96, 128, 256}) {
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
    every_schedule();
    return failures();
}
