// Small random models through the C interface, every part of it at once, for sanitizers to watch: batches, padding, pieces,
// going back, key selection, both routings, codes and floats, both caches, odd sizes, a screened head, several threads and
// several states at a time. What is computed in pieces must equal what is computed at once, and what several states get
// together what each gets alone.
#include <doge/cpu.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace {

char message[256];
uint32_t seed = 1;

uint32_t bits() { return seed = seed * 1664525u + 1013904223u; }
float uniform() { return float(int32_t(bits())) * 0x1p-31f; }

void check(doge_cpu_status status) {
    if (status == DOGE_CPU_SUCCESS) return;
    std::printf("%s\n", message);
    std::exit(1);
}

struct Bytes {  // exactly as many as asked for, at a multiple of 64
    std::unique_ptr<uint8_t, void (*)(void*)> p;
    explicit Bytes(size_t n) : p(static_cast<uint8_t*>(std::aligned_alloc(64, (n + 63) / 64 * 64)), std::free) {
        std::memset(p.get(), 0, n);
    }
};

struct Shape {
    const char* name;
    int hidden, intermediate, head_dim, heads, kv_heads, score_heads, window, experts, picks, moe, kind, rope, norms;
};
const Shape SHAPES[] = {
    {"dense fp32", 64, 96, 16, 4, 2, 2, 20, 0, 0, 0, 32, 1, 1},  {"odd fp32", 50, 35, 18, 3, 1, 1, 0, 0, 0, 0, 32, 0, 1},
    {"dense int8", 128, 96, 32, 4, 2, 4, 24, 0, 0, 0, 8, 0, 1},  {"dense int4", 256, 128, 64, 2, 1, 1, 0, 0, 0, 0, 4, 2, 0},
    {"routed int8", 64, 48, 32, 2, 1, 1, 0, 30, 6, 1, 8, 0, 1},  {"reference int4", 64, 64, 16, 2, 2, 2, 9, 17, 4, 2, 4, 1, 1},
    {"bf16", 32, 16, 8, 20, 1, 1, 0, 0, 0, 0, 17, 0, 1},
};
constexpr int VOCABULARY = 333, LAYERS = 2, MAX_LENGTH = 700;

struct Model {
    Bytes file{1};
    uint64_t size = 0;

    explicit Model(const Shape& s) {
        doge_cpu_config c{};
        c.vocab_size = VOCABULARY, c.hidden_size = s.hidden, c.intermediate_size = s.intermediate;
        c.num_hidden_layers = LAYERS, c.num_attention_heads = s.heads, c.num_key_value_heads = s.kv_heads;
        c.head_dim = s.head_dim, c.score_heads = s.score_heads, c.keep_window_size = s.window, c.max_length = MAX_LENGTH;
        c.rms_norm_eps = 1e-6f, c.rope_attention_factor = 1, c.rope = s.rope, c.rope_theta = 1e4f, c.rope_factor = 2;
        c.rope_trained_length = 650, c.rope_max_positions = 650, c.moe = s.moe, c.num_experts = s.experts;
        c.num_experts_per_tok = s.picks;
        std::vector<doge_cpu_piece> pieces;
        const auto add = [&](int role, int layer, int rows, int columns, int kind, int first = 0) {
            int block = 0;
            for (int b = 128; (kind == 8 || kind == 4) && b >= 16 && block == 0; b /= 2) block = columns % b == 0 ? b : 0;
            pieces.push_back({role, layer, first, rows, columns, kind, block, 0, 0, 0});
        };
        const int f = DOGE_CPU_FLOAT32, k = s.kind, q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim, h = s.hidden;
        add(DOGE_CPU_EMBEDDING, -1, VOCABULARY, h, k);
        add(DOGE_CPU_HEAD, -1, 32, h, f);
        add(DOGE_CPU_HEAD, -1, VOCABULARY - 32, h, k == 17 ? 17 : f, 32);
        add(DOGE_CPU_FINAL_NORM, -1, 1, h, f);
        add(DOGE_CPU_ROPE, -1, 1, s.head_dim / 2, f);
        if (s.rope == DOGE_CPU_ROPE_LONGROPE) add(DOGE_CPU_ROPE_LONG, -1, 1, s.head_dim / 2, f);
        int keys = 0;
        while ((keys + 1) * (keys + 1) <= s.experts) keys++;
        for (int l = 0; l < LAYERS; l++) {
            add(DOGE_CPU_INPUT_NORM, l, 1, h, f);
            add(DOGE_CPU_QUERY, l, 16, h, 8 * (h % 16 == 0 && k < 16) + f * !(h % 16 == 0 && k < 16));
            add(DOGE_CPU_QUERY, l, q - 16, h, k, 16);
            add(DOGE_CPU_KEY, l, kv, h, k);
            add(DOGE_CPU_VALUE, l, kv, h, k);
            add(DOGE_CPU_QUERY_BIAS, l, 1, q, f);
            if (s.norms != 0) add(DOGE_CPU_QUERY_NORM, l, 1, s.head_dim, f), add(DOGE_CPU_KEY_NORM, l, 1, s.head_dim, f);
            if (l == 0) add(DOGE_CPU_SCORE, l, s.score_heads, kv, k);
            else add(DOGE_CPU_SCORE_OF_INPUT, l, s.score_heads, h, k);
            add(DOGE_CPU_SCORE_BIAS, l, 1, s.score_heads, f);
            add(DOGE_CPU_SCORE_A, l, 1, s.score_heads, f);
            add(DOGE_CPU_OUTPUT, l, h, q, k);
            add(DOGE_CPU_INPUT_RESIDUAL, l, 1, h, f);
            add(DOGE_CPU_POST_NORM, l, 1, h, f);
            add(DOGE_CPU_GATE, l, s.intermediate, h, k);
            add(DOGE_CPU_UP, l, s.intermediate, h, k);
            add(DOGE_CPU_DOWN, l, h, s.intermediate, k);
            add(DOGE_CPU_GATE_BIAS, l, 1, s.intermediate, f);
            if (s.moe == 0) continue;
            add(DOGE_CPU_ROUTER, l, 2 * keys, h, k);
            add(DOGE_CPU_EXPERT_DOWN, l, s.experts, h, k);
            add(DOGE_CPU_EXPERT_UP, l, s.experts, h, k);
        }
        const uint32_t count = uint32_t(pieces.size());
        size = doge_cpu_plan(&c, pieces.data(), count, message, sizeof message);
        if (size == 0) check(DOGE_CPU_BAD_FILE);
        file = Bytes(size);
        check(doge_cpu_write_header(&c, pieces.data(), count, nullptr, file.p.get(), size, message, sizeof message));
        for (const doge_cpu_piece& p : pieces) {
            std::vector<float> values(size_t(p.rows) * size_t(p.columns));
            const float scale = p.rows == 1 ? 0.3f : 1.5f / std::sqrt(float(p.columns));
            for (float& x : values) x = (p.rows == 1 && p.role != DOGE_CPU_SCORE_A ? 1 : 0) + scale * uniform();
            check(doge_cpu_pack(&p, values.data(), nullptr, nullptr, file.p.get() + p.offset, message, sizeof message));
        }
    }
};

typedef std::vector<float> Logits;  // [B, S, V]

void run(doge_cpu_state* state, int batch, int total, int first, int n, const std::vector<int64_t>& ids,
         const std::vector<int64_t>& mask, Logits& out, int hidden_size) {
    std::vector<int64_t> some(size_t(batch) * size_t(n)), masked(some.size()), best(size_t(batch) * 5);
    std::vector<float> logits(some.size() * VOCABULARY), hidden(some.size() * size_t(hidden_size)), values(best.size());
    for (int b = 0; b < batch; b++)
        for (int t = 0; t < n; t++) {
            some[size_t(b * n + t)] = ids[size_t(b * total + first + t)];
            masked[size_t(b * n + t)] = mask[size_t(b * total + first + t)];
        }
    doge_cpu_call call{};
    call.tokens = n, call.ids = some.data(), call.mask = masked.data(), call.logits = logits.data();
    call.hidden = hidden.data(), call.num_candidates = 5, call.candidates = best.data();
    call.candidate_logits = values.data();
    check(doge_cpu_run(state, &call, message, sizeof message));
    for (int b = 0; b < batch; b++)
        std::memcpy(&out[size_t(b * total + first) * VOCABULARY], &logits[size_t(b * n) * VOCABULARY], size_t(n) * VOCABULARY * 4);
    const int length = doge_cpu_state_length(state);
    check(doge_cpu_state_rewind(state, length - 1, message, sizeof message));
    std::vector<int64_t> last(static_cast<size_t>(batch));  // once more without logits: by the screen where there is one
    for (int b = 0; b < batch; b++) last[size_t(b)] = some[size_t(b * n + n - 1)];
    call.tokens = 1, call.ids = last.data(), call.mask = nullptr, call.logits = nullptr, call.hidden = nullptr;
    check(doge_cpu_run(state, &call, message, sizeof message));
}

// Steps of several states at once, of different lengths and kinds of cache, beside prompts; true if all of them get what
// they get alone.
bool together(const doge_cpu_model* model, const Shape& s, const std::vector<int64_t>& ids) {
    const int starts[] = {1, 40, 230, 7, 0}, count = 5, news = 13;
    std::vector<Logits> found[2];
    for (const bool alone : {false, true}) {
        std::vector<doge_cpu_state*> states(size_t(count), nullptr);
        std::vector<Logits>& all = found[alone];
        for (int i = 0; i < count; i++) {
            check(doge_cpu_state_create(model, 1, i % 2 == 0 ? 8 : 32, 0, &states[size_t(i)], message, sizeof message));
            doge_cpu_call call{};
            call.tokens = starts[i], call.ids = ids.data();
            if (starts[i] > 0) check(doge_cpu_run(states[size_t(i)], &call, message, sizeof message));
        }
        for (int round = 0; round < 3; round++) {
            std::vector<doge_cpu_call> calls(size_t(count), doge_cpu_call{});
            std::vector<int64_t> best(size_t(count) * 5);
            std::vector<float> values(best.size()), hidden(size_t(news) * size_t(s.hidden));
            for (int i = 0; i < count; i++) {
                doge_cpu_call& call = calls[size_t(i)];
                call.tokens = i == count - 1 ? news : 1;  // the last one reads a prompt in pieces
                all.emplace_back(size_t(call.tokens) * VOCABULARY);
                call.ids = ids.data() + starts[i] + round * call.tokens;
                call.num_candidates = i + 1, call.candidates = &best[size_t(i) * 5], call.candidate_logits = &values[size_t(i) * 5];
                if (i == count - 1) call.hidden = hidden.data();
            }
            // One is left to the screen, where there is one.
            for (size_t i = 1; i < size_t(count); i++) calls[i].logits = all[all.size() - size_t(count) + i].data();
            if (alone)
                for (size_t i = 0; i < size_t(count); i++) check(doge_cpu_run(states[i], &calls[i], message, sizeof message));
            else
                check(doge_cpu_run_together(states.data(), calls.data(), count, message, sizeof message));
            all.emplace_back(values);
            all.emplace_back(hidden);
            all.emplace_back(best.begin(), best.end());
            // Refused, and without a trace: a state twice.
            doge_cpu_state* twice[] = {states[0], states[0]};
            if (doge_cpu_run_together(twice, calls.data(), 2, nullptr, 0) != DOGE_CPU_BAD_ARGUMENT) return false;
        }
        for (doge_cpu_state* state : states) doge_cpu_state_destroy(state);
    }
    return found[0] == found[1];
}

double difference(const Logits& a, const Logits& b, const std::vector<int64_t>& mask) {
    double most = 0;
    for (size_t i = 0; i < a.size(); i++)
        if (mask[i / VOCABULARY] != 0 && !(std::fabs(a[i] - b[i]) <= most)) most = std::fabs(a[i] - b[i]);
    return most;
}

int test(const Shape& s, int threads, const char* set) {
    const Model file(s);
    doge_cpu_model* model;
    check(doge_cpu_open(file.file.p.get(), file.size, threads, set, threads == 3 ? DOGE_CPU_SCREEN : DOGE_CPU_COPY, &model,
                        message, sizeof message));
    const int batch = 3, total = s.moe == 2 ? 60 : 280;
    std::vector<int64_t> ids(size_t(batch) * size_t(total)), mask(ids.size(), 1);
    for (int64_t& id : ids) id = int64_t(bits() >> 8) % VOCABULARY;
    for (int t = 0; t < 9; t++) mask[size_t(total + t)] = 0;  // the second row begins with padding
    double worst = 0;
    const int pieces[] = {total - 30, 1, 1, 13, 1, 14};
    for (int cache : {32, 8}) {
        Logits whole(ids.size() * VOCABULARY), parts(whole.size());
        doge_cpu_state* state;
        check(doge_cpu_state_create(model, batch, cache, 0, &state, message, sizeof message));
        run(state, batch, total, 0, total, ids, mask, whole, s.hidden);
        check(doge_cpu_state_rewind(state, 0, message, sizeof message));
        int at = 0;
        for (int n : pieces) run(state, batch, total, at, n, ids, mask, parts, s.hidden), at += n;
        doge_cpu_state_destroy(state);
        if (cache == 32 && s.kind >= 16 && s.moe != 2) worst = difference(whole, parts, mask);
        // Single sequences by two callers at once.
        Logits first(size_t(total) * VOCABULARY), second(first.size());
        const auto alone = [&](Logits& out) {
            doge_cpu_state* own;
            char text[100];
            if (doge_cpu_state_create(model, 1, cache, 0, &own, text, sizeof text) != DOGE_CPU_SUCCESS) std::exit(1);
            int from = 0;
            for (int n : pieces) run(own, 1, total, from, n, ids, mask, out, s.hidden), from += n;
            doge_cpu_state_destroy(own);
        };
        std::thread other(alone, std::ref(second));
        alone(first);
        other.join();
        if (first != second) worst = 1e9;
    }
    if (s.moe != 2) {  // by two callers at once
        bool same = false;
        std::thread other([&] { same = together(model, s, ids); });
        if (!together(model, s, ids)) worst = 1e9;
        other.join();
        if (!same) worst = 1e9;
    }
    doge_cpu_close(model);
    const bool good = worst < 1e-3;
    std::printf("%-15s %d threads %-10s pieces differ by %.1e%s\n", s.name, threads, set, worst, good ? "" : " FAILED");
    return !good;
}

}  // namespace

int main() {
    int failures = 0;
    const std::string sets = doge_cpu_usable_instruction_sets();
    for (size_t from = 0; from < sets.size();) {
        const size_t end = std::min(sets.find(' ', from), sets.size());
        for (const Shape& s : SHAPES)
            for (int threads : {1, 3}) failures += test(s, threads, sets.substr(from, end - from).c_str());
        from = end + 1;
    }
    return failures != 0;
}
