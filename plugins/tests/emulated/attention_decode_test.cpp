// One new token, or a few, over a cache: decode_kernel executed on the CPU, against the reference.
#include "attention_case.h"

using namespace doge::emulation;

namespace {

constexpr doge_dtype kTypes[] = {DOGE_FLOAT32, DOGE_FLOAT16, DOGE_BFLOAT16};
const char* name_of(doge_dtype dtype) {
    return dtype == DOGE_FLOAT32 ? "fp32" : dtype == DOGE_FLOAT16 ? "fp16" : "bf16";
}

void every_type_and_head_size() {
    for (doge_dtype dtype : kTypes) {
        for (int size : head_sizes(dtype)) {
            AttentionCase c;
            c.name = std::string("decode ") + name_of(dtype) + " D=" + std::to_string(size);
            c.dtype = dtype;
            c.head_size = size;
            c.capacity = 330;
            c.past_lengths = {301, 0, 17};
            c.num_heads = 4;
            c.num_kv_heads = 2;
            c.num_score_heads = 2;
            check_attention(c);
            c.name += " w=100";
            c.keep_window_size = 100;
            check_attention(c);
        }
    }
}

void groups_and_score_heads() {
    for (int group : {1, 2, 3, 5, 8, 16}) {
        for (int kind : {0, 1, 2}) {
            AttentionCase c;
            c.num_kv_heads = group == 16 ? 1 : 2;
            c.num_heads = c.num_kv_heads * group;
            c.num_score_heads = kind == 0 ? 1 : kind == 1 ? c.num_kv_heads : c.num_heads;
            c.name = "decode group " + std::to_string(group) + " Hs=" + std::to_string(c.num_score_heads);
            c.capacity = 300;
            c.past_lengths = {270};
            check_attention(c);
            c.name += " w=37";
            c.keep_window_size = 37;
            check_attention(c);
        }
    }
}

void windows() {
    for (int window : {1, 2, 150, 199, 200, 201, 256}) {
        AttentionCase c;
        c.name = "decode w=" + std::to_string(window);
        c.capacity = 256;
        c.keep_window_size = window;
        c.past_lengths = {199, 200, 255, 5};
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
        {"some padding", [](int place, Random& r) { return place % 3 == 0 ? DOGE_NEG : r.normal(); }},
        {"mostly padding", [](int place, Random& r) { return place % 16 != 0 ? DOGE_NEG : r.normal(); }},
        {"huge", [](int place, Random&) { return place % 7 == 0 ? 1e30f : -1e30f; }},
        {"huge and padding", [](int place, Random&) { return place == 3 ? 1e30f : DOGE_NEG; }},
        {"of every size", [](int, Random& r) { return std::ldexp(r.normal(), r.below(60) - 50); }},
        {"rising", [](int place, Random&) { return 0.01f * static_cast<float>(place); }},
        {"falling", [](int place, Random&) { return -0.01f * static_cast<float>(place); }},
    };
    for (const Kind& kind : kinds) {
        for (int window : {0, 40}) {
            AttentionCase c;
            c.name = std::string("decode scores ") + kind.name + " w=" + std::to_string(window);
            c.dtype = DOGE_FLOAT32;
            c.score = kind.score;
            c.keep_window_size = window;
            c.capacity = 200;
            c.past_lengths = {170, 41, 3};
            check_attention(c);
        }
    }
}

void several_tokens() {
    for (int tokens : {2, 5, 8}) {
        for (int window : {0, 64}) {
            AttentionCase c;
            c.name = "decode S=" + std::to_string(tokens) + " w=" + std::to_string(window);
            c.new_tokens = tokens;
            c.num_heads = 6;
            c.num_kv_heads = 2;
            c.num_score_heads = 6;
            c.capacity = 200;
            c.keep_window_size = window;
            c.past_lengths = {150, 0, 62, 197};
            c.new_lengths = {tokens, 1, tokens, 2};
            check_attention(c);
        }
    }
}

void separate_caches_and_padding_rows() {
    for (bool bounded : {false, true}) {
        AttentionCase c;
        c.name = bounded ? "decode separate, bounded" : "decode separate";
        c.in_place = false;
        c.bounded = bounded;
        c.num_heads = 4;
        c.num_kv_heads = c.num_score_heads = 2;
        c.capacity = 70;
        c.keep_window_size = bounded ? 70 : 30;
        c.past_lengths = {69, 0, 33, 50};
        c.new_lengths = {1, 1, 0, 1};
        check_attention(c);
    }
}

void bounded_cache() {
    for (int past : {0, 5, 149, 150, 151, 400}) {
        for (int kind = 0; kind < 4; ++kind) {
            AttentionCase c;
            c.name = "decode bounded P=" + std::to_string(past) + " scores " + std::to_string(kind);
            c.bounded = true;
            c.num_heads = 4;
            c.num_kv_heads = c.num_score_heads = 2;
            c.capacity = c.keep_window_size = 150;
            c.past_lengths = {past, 160};
            if (kind == 1) c.score = [](int, Random&) { return 1.0f; };
            if (kind == 2) c.score = [](int, Random& r) { return static_cast<float>(r.below(3)); };
            if (kind == 3) c.score = [](int place, Random&) { return 0.01f * static_cast<float>(place); };
            check_attention(c);
        }
    }
}

void every_schedule() {
    under_every_schedule([](const char* schedule) {
        for (int kind = 0; kind < 3; ++kind) {
            AttentionCase c;
            c.name = "decode splits, kind " + std::to_string(kind);
            c.num_heads = 2;
            c.num_kv_heads = c.num_score_heads = 1;
            c.head_size = 128;
            c.capacity = kind == 2 ? 600 : 700;
            c.keep_window_size = kind == 0 ? 0 : kind == 1 ? 300 : 600;
            c.bounded = kind == 2;
            c.past_lengths = {650};
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
    several_tokens();
    separate_caches_and_padding_rows();
    bounded_cache();
    every_schedule();
    return failures();
}
