// Tokens a second of a model of random weights, by the C interface alone: no Python, no onnxruntime.
//
//   speed SIZE PRECISION [THREADS [INSTRUCTION_SET [ROUNDS [ROWS]]]]
//
// SIZE 20M, 60M, 160M, 320M or 20M-MoE; PRECISION fp32, bf16, int8 or int4; an instruction set of "" is the best. Prints the
// median and the best of the rounds for reading a prompt of 512 tokens, and for writing behind 16 tokens and behind 1536; of
// the latter also by the processor time of the calling thread, which other work on the machine disturbs less.
//
// Then the bytes of weights that a token reads, and the share that decoding has of what threads reach that only read as many
// bytes, in turns with it: of memory, or of a cache that holds them.
//
// With ROWS: tokens a second in all of one sequence, of a batch of so many (one state), and of so many states together, in
// turns, behind 16 tokens and behind 256 and more that differ by row; then the ratios to one sequence.
// DOGE_SCREEN=1 screens a float head, DOGE_COPY=1 copies the weights.
#include <doge/cpu.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Size {
    const char* name;
    int hidden, intermediate, layers, heads, kv_heads, experts, picks;
};
const Size SIZES[] = {{"20M", 256, 512, 8, 2, 1, 0, 0},
                      {"60M", 512, 1024, 16, 4, 2, 0, 0},
                      {"160M", 768, 1536, 24, 6, 3, 0, 0},
                      {"320M", 1024, 2048, 32, 8, 4, 0, 0},
                      {"20M-MoE", 256, 512, 8, 2, 1, 1024, 16}};

char message[256];

void check(doge_cpu_status status) {
    if (status != DOGE_CPU_SUCCESS) {
        std::fprintf(stderr, "%s\n", message);
        std::exit(1);
    }
}

uint64_t seed = 1;
float uniform() {  // -1 to 1
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return float(int32_t(seed >> 32)) * 0x1p-31f;
}

struct File {
    std::vector<doge_cpu_piece> pieces;
    uint8_t* bytes = nullptr;
    uint64_t size = 0;
    uint64_t read = 0;  // bytes of the matrices that every token reads

    void add(int role, int layer, int rows, int columns, int kind) {
        const bool code = kind == DOGE_CPU_INT4 || kind == DOGE_CPU_INT8;
        pieces.push_back({role, layer, 0, rows, columns, kind, code ? 128 : 0, 0, 0, 0});
    }
};

File make(const Size& s, int kind) {
    const int d = 128, vocabulary = 32768, keys = 32;
    doge_cpu_config c{};
    c.vocab_size = vocabulary, c.hidden_size = s.hidden, c.intermediate_size = s.intermediate;
    c.num_hidden_layers = s.layers, c.num_attention_heads = s.heads, c.num_key_value_heads = s.kv_heads, c.head_dim = d;
    c.score_heads = s.kv_heads, c.max_length = 2048, c.rms_norm_eps = 1e-6f, c.rope_attention_factor = 1;
    if (s.experts > 0) c.moe = DOGE_CPU_MOE_PER_TOKEN, c.num_experts = s.experts, c.num_experts_per_tok = s.picks;
    File f;
    const int floats = DOGE_CPU_FLOAT32;
    f.add(DOGE_CPU_HEAD, -1, vocabulary, s.hidden, kind);
    f.add(DOGE_CPU_FINAL_NORM, -1, 1, s.hidden, floats);
    f.add(DOGE_CPU_ROPE, -1, 1, d / 2, floats);
    for (int l = 0; l < s.layers; l++) {
        f.add(DOGE_CPU_INPUT_NORM, l, 1, s.hidden, floats);
        f.add(DOGE_CPU_QUERY, l, s.heads * d, s.hidden, kind);
        f.add(DOGE_CPU_KEY, l, s.kv_heads * d, s.hidden, kind);
        f.add(DOGE_CPU_VALUE, l, s.kv_heads * d, s.hidden, kind);
        f.add(DOGE_CPU_QUERY_NORM, l, 1, d, floats);
        f.add(DOGE_CPU_KEY_NORM, l, 1, d, floats);
        f.add(DOGE_CPU_SCORE_OF_INPUT, l, s.kv_heads, s.hidden, kind);
        f.add(DOGE_CPU_SCORE_A, l, 1, s.kv_heads, floats);
        f.add(DOGE_CPU_OUTPUT, l, s.hidden, s.heads * d, kind);
        f.add(DOGE_CPU_INPUT_RESIDUAL, l, 1, s.hidden, floats);
        f.add(DOGE_CPU_POST_NORM, l, 1, s.hidden, floats);
        f.add(DOGE_CPU_GATE, l, s.intermediate, s.hidden, kind);
        f.add(DOGE_CPU_UP, l, s.intermediate, s.hidden, kind);
        f.add(DOGE_CPU_DOWN, l, s.hidden, s.intermediate, kind);
        f.add(DOGE_CPU_POST_RESIDUAL, l, 1, s.hidden, floats);
        if (s.experts > 0) {
            f.add(DOGE_CPU_ROUTER, l, 2 * keys, s.hidden, kind);
            f.add(DOGE_CPU_EXPERT_DOWN, l, s.experts, s.hidden, kind);
            f.add(DOGE_CPU_EXPERT_UP, l, s.experts, s.hidden, kind);
        }
    }
    f.size = doge_cpu_plan(&c, f.pieces.data(), uint32_t(f.pieces.size()), message, sizeof message);
    if (f.size == 0) check(DOGE_CPU_BAD_FILE);
    f.bytes = static_cast<uint8_t*>(std::aligned_alloc(64, (f.size + 63) / 64 * 64));
    std::memset(f.bytes, 0, f.size);
    check(doge_cpu_write_header(&c, f.pieces.data(), uint32_t(f.pieces.size()), nullptr, f.bytes, f.size, message,
                                sizeof message));
    std::vector<float> values;
    for (const doge_cpu_piece& p : f.pieces) {
        values.resize(size_t(p.rows) * size_t(p.columns));
        for (float& x : values) x = p.rows == 1 ? 1 + 0.1f * uniform() : 0.05f * uniform();
        check(doge_cpu_pack(&p, values.data(), nullptr, nullptr, f.bytes + p.offset, message, sizeof message));
        if (p.role < DOGE_CPU_EXPERT_DOWN && p.rows > 1) f.read += p.bytes;
    }
    return f;
}

double wall() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
double processor() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Rates {
    std::vector<double> wall, processor;
    void add(int tokens, double w, double p) {
        wall.push_back(tokens / w);
        processor.push_back(tokens / p);
    }
    static double median(std::vector<double> all) {
        std::sort(all.begin(), all.end());
        return all[all.size() / 2];
    }
    void print(const char* what) const {
        std::printf("  %s %.0f (best %.0f, cpu %.0f)", what, median(wall), *std::max_element(wall.begin(), wall.end()),
                    median(processor));
    }
};

void run(doge_cpu_state* state, const std::vector<int64_t>& ids, size_t from, int n, Rates* rates) {
    int64_t best;
    float logit;
    doge_cpu_call call{};
    call.tokens = n, call.ids = ids.data() + from, call.num_candidates = 1;
    call.candidates = &best, call.candidate_logits = &logit;
    const double w = wall(), p = processor();
    check(doge_cpu_run(state, &call, message, sizeof message));
    if (rates != nullptr) rates->add(n, wall() - w, processor() - p);
}

void write(doge_cpu_state* state, const std::vector<int64_t>& ids, int n, Rates* rates) {
    const double w = wall(), p = processor();
    for (int i = 0; i < n; i++) run(state, ids, size_t(i), 1, nullptr);
    rates->add(n, wall() - w, processor() - p);
}

// Reads the first `bytes` of a file by so many threads, and does nothing with them; bytes a second.
double reading(const uint8_t* file, uint64_t bytes, int threads) {
    const auto sum = [=](int thread) {
        constexpr uint64_t STREAMS = 4;  // at once, which reached most here
        const uint64_t lines = bytes / 64 / uint64_t(threads) / STREAMS;
        const uint8_t* at = file + uint64_t(thread) * STREAMS * lines * 64;
        uint64_t sums[8] = {};
        for (uint64_t i = 0; i < lines * STREAMS; i++) {
            uint64_t words[8];
            std::memcpy(words, at + (i % STREAMS * lines + i / STREAMS) * 64, 64);
            for (int k = 0; k < 8; k++) sums[k] ^= words[k];
        }
        volatile uint64_t kept = 0;
        for (const uint64_t s : sums) kept = kept ^ s;
    };
    const double w = wall();
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(sum, t);
    sum(0);
    for (std::thread& t : others) t.join();
    return double(bytes) / (wall() - w);
}

// One step of the sequences of each state: their next token, and the best one behind it.
void step(const std::vector<doge_cpu_state*>& states, int batch, const std::vector<int64_t>& ids, int at) {
    std::vector<int64_t> tokens(size_t(batch) * states.size()), best(tokens.size());
    std::vector<float> logits(tokens.size());
    std::vector<doge_cpu_call> calls(states.size());
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = ids[(i * 97 + size_t(at)) % ids.size()];
    for (size_t i = 0; i < states.size(); i++) {
        calls[i].tokens = 1, calls[i].ids = &tokens[i * size_t(batch)], calls[i].num_candidates = 1;
        calls[i].candidates = &best[i * size_t(batch)], calls[i].candidate_logits = &logits[i * size_t(batch)];
    }
    check(doge_cpu_run_together(states.data(), calls.data(), int32_t(states.size()), message, sizeof message));
}

void compare_rows(const doge_cpu_model* model, int cache, int rows, int rounds, const std::vector<int64_t>& ids) {
    struct Way {
        const char* name;
        int states, batch;
        std::vector<doge_cpu_state*> made{};
    };
    Way ways[] = {{"one", 1, 1}, {"batch", 1, rows}, {"together", rows, 1}};
    for (const int past : {16, 256}) {
        std::vector<double> rates[3], processors[3];
        for (Way& way : ways) {
            for (int i = 0; i < way.states; i++) {
                doge_cpu_state* state;
                check(doge_cpu_state_create(model, way.batch, cache, 0, &state, message, sizeof message));
                const int length = past < 256 ? past : past + 31 * i;
                std::vector<int64_t> prompt;
                for (int b = 0; b < way.batch; b++) prompt.insert(prompt.end(), ids.begin() + b, ids.begin() + b + length);
                doge_cpu_call call{};
                call.tokens = length, call.ids = prompt.data();
                check(doge_cpu_run(state, &call, message, sizeof message));
                way.made.push_back(state);
            }
        }
        for (int round = 0; round < rounds; round++) {
            for (Way& way : ways) {
                const double w = wall(), p = processor();
                for (int i = 0; i < 48; i++) step(way.made, way.batch, ids, i);
                rates[&way - ways].push_back(48 * way.states * way.batch / (wall() - w));
                processors[&way - ways].push_back(48 * way.states * way.batch / (processor() - p));
                for (doge_cpu_state* state : way.made)
                    check(doge_cpu_state_rewind(state, doge_cpu_state_length(state) - 48, message, sizeof message));
            }
        }
        std::printf("  behind %d%s:", past, past < 256 ? "" : " and more");
        for (int i = 0; i < 3; i++) {
            const double rate = Rates::median(rates[i]), one = Rates::median(rates[0]);
            std::printf("  %s %.0f", ways[i].name, rate);
            if (i > 0) std::printf(" (%.2fx, cpu %.2fx)", rate / one, Rates::median(processors[i]) / Rates::median(processors[0]));
            for (doge_cpu_state* state : ways[i].made) doge_cpu_state_destroy(state);
            ways[i].made.clear();
        }
        std::printf("\n");
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "speed SIZE fp32|bf16|int8|int4 [THREADS [INSTRUCTION_SET [ROUNDS [ROWS]]]]; instruction sets: %s\n",
                     doge_cpu_usable_instruction_sets());
        return 2;
    }
    const Size* size = std::find_if(std::begin(SIZES), std::end(SIZES), [&](const Size& s) { return s.name == std::string(argv[1]); });
    if (size == std::end(SIZES)) return 2;
    const std::string precision = argv[2];
    const int kind = precision == "int8" ? DOGE_CPU_INT8 : precision == "int4" ? DOGE_CPU_INT4
                                                       : precision == "bf16"   ? DOGE_CPU_BFLOAT16
                                                                               : DOGE_CPU_FLOAT32;
    const int threads = argc > 3 ? std::atoi(argv[3]) : 2, rounds = argc > 5 ? std::atoi(argv[5]) : 5;
    const File file = make(*size, kind);
    doge_cpu_model* model;
    const uint32_t flags = std::getenv("DOGE_COPY") != nullptr ? DOGE_CPU_COPY : 0;
    const uint32_t screen = std::getenv("DOGE_SCREEN") != nullptr ? DOGE_CPU_SCREEN : 0;
    const char* set = argc > 4 && argv[4][0] != '\0' ? argv[4] : nullptr;
    check(doge_cpu_open(file.bytes, file.size, threads, set, flags | screen, &model, message, sizeof message));
    doge_cpu_state* state;
    const bool codes = kind == DOGE_CPU_INT8 || kind == DOGE_CPU_INT4;
    check(doge_cpu_state_create(model, 1, codes ? DOGE_CPU_INT8 : DOGE_CPU_FLOAT32, 0, &state, message, sizeof message));
    std::vector<int64_t> ids(2048);
    for (int64_t& id : ids) id = int64_t((uniform() + 1) * 16000) % 32768;
    if (argc > 6) {
        std::printf("%s %s %d threads %s\n", size->name, precision.c_str(), threads, doge_cpu_model_instruction_set(model));
        compare_rows(model, codes ? DOGE_CPU_INT8 : DOGE_CPU_FLOAT32, std::atoi(argv[6]), rounds, ids);
        doge_cpu_state_destroy(state);
        doge_cpu_close(model);
        std::free(file.bytes);
        return 0;
    }
    Rates prefill, decode, late;
    std::vector<double> shares;
    const auto rewind = [&](int n) { check(doge_cpu_state_rewind(state, n, message, sizeof message)); };
    for (int round = 0; round < rounds; round++) {
        rewind(0);
        run(state, ids, 0, 512, &prefill);
        run(state, ids, 512, 1024, nullptr);
        write(state, ids, 32, &late);
        for (int turn = 0; turn < 4; turn++) {
            rewind(16);
            write(state, ids, 24, &decode);
            const double tokens = decode.wall.back();
            std::vector<double> rates;
            for (int i = 0; i < 5; i++) rates.push_back(reading(file.bytes, file.read, threads));
            shares.push_back(tokens * double(file.read) / Rates::median(rates));
        }
    }
    std::printf("%-8s %s %d threads %-11s", size->name, precision.c_str(), threads, doge_cpu_model_instruction_set(model));
    decode.print("decode");
    late.print("at 1536");
    prefill.print("prefill 512");
    std::printf("  %.1f MB a token, %.1f GB/s, %.0f %% of what reading alone reaches\n", double(file.read) * 1e-6,
                double(file.read) * Rates::median(decode.wall) * 1e-9, 100 * Rates::median(shares));
    doge_cpu_state_destroy(state);
    doge_cpu_close(model);
    std::free(file.bytes);
}
