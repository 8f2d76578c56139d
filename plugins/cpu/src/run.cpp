// Calls: checks, pieces that fit in memory, and what is wanted of them.
#include <algorithm>
#include <functional>

#include "guard.h"
#include "head.h"
#include "stack.h"

namespace doge::cpu {
namespace {

constexpr int PIECE = 512;  // tokens at once, where tokens do not mix
constexpr int MOST_ROWS = 1 << 16;
constexpr int64_t MOST_MIXED = 1 << 20;  // tokens at once where they mix: times 1024 heads they still are an int

bool mixes(const doge_cpu_config& config) { return config.moe == DOGE_CPU_MOE_REFERENCE; }

// Whether memory for so many tokens and rows at once has addresses: where these have 32 bits, sizes must not wrap. More than
// what `work`, the stack and the head take.
bool has_addresses(const doge_cpu_model& model, int64_t tokens, int64_t rows, int64_t candidates) {
    const doge_cpu_config& c = model.config();
    const uint64_t heads = uint64_t(c.num_attention_heads + c.num_key_value_heads) * uint64_t(padded(c.head_dim));
    const uint64_t by_token = 8 * (uint64_t(c.hidden_size) + uint64_t(c.intermediate_size) + heads + uint64_t(c.score_heads) +
                                   uint64_t(c.num_experts) + 256);
    const uint64_t by_row = 2 * uint64_t(c.vocab_size) + uint64_t(model.pool->size()) * (2 * heads + 4 * uint64_t(candidates)) + 64;
    return (by_token * uint64_t(tokens) + by_row * uint64_t(rows)) < SIZE_MAX / 2 / sizeof(float);
}

doge_cpu_status check(const doge_cpu_state& state, const doge_cpu_call& call, const Message& message) {
    const doge_cpu_config& c = state.model->config();
    if (call.tokens < 1 || call.ids == nullptr) return message.fail(DOGE_CPU_BAD_ARGUMENT, "no tokens");
    if (int64_t(state.length) + call.tokens > state.max_length)
        return message.fail(DOGE_CPU_TOO_LONG, "%d tokens behind %d exceed the maximum length of %d", call.tokens,
                            state.length, state.max_length);
    if (mixes(c) && int64_t(state.batch) * call.tokens > MOST_MIXED)
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "%d rows of %d tokens in one call, a router that mixes them takes %lld",
                            state.batch, call.tokens, static_cast<long long>(MOST_MIXED));
    if (call.logits_to_keep < 0 || call.logits_to_keep > call.tokens)
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "the logits of %d of %d tokens", call.logits_to_keep, call.tokens);
    if (call.num_candidates < 0 || call.num_candidates > c.vocab_size ||
        (call.num_candidates > 0 && (call.candidates == nullptr || call.candidate_logits == nullptr)))
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "%d candidates of %d tokens", call.num_candidates, c.vocab_size);
    if ((call.logits != nullptr || call.num_candidates > 0) && state.model->weights.head.empty())
        return message.fail(DOGE_CPU_UNSUPPORTED, "this model has no head");
    const size_t n = size_t(state.batch) * size_t(call.tokens);
    for (size_t i = 0; i < n; i++) {
        if (call.ids[i] < 0 || call.ids[i] >= c.vocab_size)
            return message.fail(DOGE_CPU_BAD_ARGUMENT, "token %lld is not in the vocabulary of %d",
                                static_cast<long long>(call.ids[i]), c.vocab_size);
        if (call.positions != nullptr && (call.positions[i] < 0 || call.positions[i] >= c.max_length))
            return message.fail(DOGE_CPU_BAD_ARGUMENT, "position %lld is not below the maximum length of %d",
                                static_cast<long long>(call.positions[i]), c.max_length);
    }
    return DOGE_CPU_SUCCESS;
}

// Positions of all new tokens, [B, S], and in `counts` how many tokens of each row are no padding.
std::vector<int32_t> positions_of(doge_cpu_state& state, const doge_cpu_call& call) {
    std::vector<int32_t> positions(size_t(state.batch) * size_t(call.tokens));
    for (int b = 0; b < state.batch; b++) {
        std::vector<int32_t>& counts = state.counts[size_t(b)];
        counts.resize(state.known());
        int32_t count = counts.empty() ? 0 : counts.back();
        for (int t = 0; t < call.tokens; t++) {
            const size_t i = size_t(b) * size_t(call.tokens) + size_t(t);
            if (call.mask == nullptr || call.mask[i] != 0) count++;
            counts.push_back(count);
            positions[i] = call.positions == nullptr ? std::max(count - 1, 0) : int32_t(call.positions[i]);
        }
    }
    return positions;
}

// A state with its call, and the positions of all its new tokens, [B, S].
struct Sequence {
    doge_cpu_state* state;
    const doge_cpu_call* call;
    std::vector<int32_t> positions;
    int32_t longest;  // of these positions
};

// The next tokens of every row that has some left; no more than `step` of each.
void next_piece(std::vector<Sequence>& sequences, int first, int step, std::vector<Row>& rows, std::vector<int32_t>& here) {
    rows.clear();
    int begin = 0;
    for (Sequence& s : sequences) {
        const int tokens = std::min(step, s.call->tokens - first);
        if (tokens <= 0) continue;
        here.clear();
        for (int b = 0; b < s.state->batch; b++) {
            const auto from = s.positions.begin() + int64_t(b) * s.call->tokens + first;
            rows.push_back({s.state, s.call, b, first, tokens, s.state->slots, begin, int(here.size())});
            here.insert(here.end(), from, from + tokens);
            begin += tokens;
        }
        s.state->rope.prepare(here.data(), int(here.size()), s.longest);
    }
}

static_assert(PIECE <= doge_cpu_state::ROOM);

// Keeps the count of the last token alone.
void forget_counts(doge_cpu_state& state) {
    for (auto& row : state.counts) row.erase(row.begin(), row.end() - 1);
}

// Drops all keys but the best of the window, for each layer and head its own, which stay in their order. Where memory runs
// out meanwhile, the state is lost.
void compact(doge_cpu_state& state) {
    const doge_cpu_config& c = state.model->config();
    const int window = state.window;
    state.settled = -1;
    for (int b = 0; b < state.batch; b++) {
        const Cache& cache = state.caches[size_t(b)];
        for (int i = 0; i < c.num_hidden_layers * c.score_heads; i++) {
            const int l = i / c.score_heads, s = i % c.score_heads;
            Selection& kept = state.kept[size_t(b)][size_t(i)];
            if (kept.length() > state.slots) kept.clear();  // of a call that failed
            while (kept.length() < state.slots) kept.push(cache.score(kept.length(), l, s), window);
            const std::vector<int> places = kept.places();
            kept.clear();
            for (int to = 0; to < window; to++) {
                const int from = places[size_t(to)];
                if (from == to) continue;
                cache.score(to, l, s) = cache.score(from, l, s);
                for (int h = 0; h < c.num_key_value_heads; h++) {
                    if (h * c.score_heads / c.num_key_value_heads == s) cache.move(from, to, l, h);
                }
            }
        }
    }
    state.slots = window;
}

// Makes room for the next tokens of a call.
void make_room(doge_cpu_state& state, int tokens) {
    const int window = state.window;
    if (state.bounded && state.slots > window && state.slots + tokens > window + state.room(tokens)) compact(state);
}

// Makes room for the first tokens of a call, and notes what stays when it fails.
void settle(doge_cpu_state& state, int tokens) {
    const bool was_whole = state.slots == state.length;
    make_room(state, tokens);
    if (was_whole && state.slots != state.length) forget_counts(state);
    state.settled = state.slots;
}

doge_cpu_status run(doge_cpu_state* const* states, const doge_cpu_call* calls, int count, const Message& message) {
    const doge_cpu_model& model = *states[0]->model;
    if (count > 1 && mixes(model.config()))
        return message.fail(DOGE_CPU_UNSUPPORTED, "a router that mixes a call's tokens takes one state at a time");
    int64_t batch = 0;
    int most = 0;
    for (int i = 0; i < count; i++) {
        char text[256];
        if (states[i]->model != &model)
            return message.fail(DOGE_CPU_BAD_ARGUMENT, "state %d is one of another model than state 0", i);
        if (const doge_cpu_status status = check(*states[i], calls[i], Message{text, sizeof text}))
            return count == 1 ? message.fail(status, "%s", text) : message.fail(status, "state %d: %s", i, text);
        batch += states[i]->batch;
        most = std::max(most, calls[i].tokens);
    }
    if (batch > MOST_ROWS)
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "%lld rows, at most %d are possible", static_cast<long long>(batch), MOST_ROWS);
    // A router that mixes a call's tokens needs all of them at once.
    const int step = mixes(model.config()) ? most : std::max(1, PIECE / int(batch));
    int32_t candidates = 0;
    for (int i = 0; i < count; i++) candidates = std::max(candidates, calls[i].num_candidates);
    if (!has_addresses(model, batch * step, batch, candidates))
        return message.fail(DOGE_CPU_NO_MEMORY, "%lld tokens at once need more memory than there are addresses",
                            static_cast<long long>(batch * step));
    std::vector<doge_cpu_state*> sorted(states, states + count);
    std::make_heap(sorted.begin(), sorted.end(), std::less<>());
    std::sort_heap(sorted.begin(), sorted.end(), std::less<>());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "a state is there twice");
    const Lock turn(model.turn);
    model.pool->settle();
    std::vector<Sequence> sequences;
    for (int i = 0; i < count; i++) {
        const int slots = states[i]->slots + calls[i].tokens;
        const int most_slots = states[i]->window + states[i]->room(std::min(step, calls[i].tokens));
        for (Cache& cache : states[i]->caches) cache.reserve(states[i]->bounded ? std::min(slots, most_slots) : slots);
        settle(*states[i], std::min(step, calls[i].tokens));
        std::vector<int32_t> positions = positions_of(*states[i], calls[i]);
        const int32_t longest = *std::max_element(positions.begin(), positions.end());
        sequences.push_back({states[i], &calls[i], std::move(positions), longest});
    }
    std::vector<Row> rows;
    std::vector<int32_t> here;
    for (int first = 0; first < most; first += step) {
        for (Sequence& s : sequences) {
            if (first > 0 && s.call->tokens > first) make_room(*s.state, std::min(step, s.call->tokens - first));
        }
        next_piece(sequences, first, step, rows, here);
        Stack stack(model, rows);
        Head head(model, rows, stack);
        auto work = [&](int id) {
            stack.run(id);
            head.run(id);
        };
        model.pool->run(work);
        for (Sequence& s : sequences) s.state->slots += std::clamp(s.call->tokens - first, 0, step);
    }
    for (int i = 0; i < count; i++) {
        doge_cpu_state& state = *states[i];
        state.length += calls[i].tokens;
        state.settled = state.slots;
        if (state.slots != state.length) forget_counts(state);
    }
    return DOGE_CPU_SUCCESS;
}

doge_cpu_status run_guarded(doge_cpu_state* const* states, const doge_cpu_call* calls, int count, const Message& message) {
    const doge_cpu_status status = guarded(message, [&] { return run(states, calls, count, message); });
    for (int i = 0; i < count && status != DOGE_CPU_SUCCESS; i++) {
        doge_cpu_state& state = *states[i];
        if (state.settled < 0) state.length = 0;
        state.slots = state.settled = std::max(state.settled, 0);
        for (auto& row : state.counts) row.resize(std::min(row.size(), state.known()));
    }
    return status;
}

}  // namespace
}  // namespace doge::cpu

using namespace doge::cpu;

extern "C" doge_cpu_status doge_cpu_run(doge_cpu_state* state, const doge_cpu_call* call, char* message,
                                        size_t message_bytes) {
    const Message text{message, message_bytes};
    if (state == nullptr || call == nullptr) return text.fail(DOGE_CPU_BAD_ARGUMENT, "no state or no call");
    return run_guarded(&state, call, 1, text);
}

extern "C" doge_cpu_status doge_cpu_run_together(doge_cpu_state* const* states, const doge_cpu_call* calls, int32_t count,
                                                 char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (states == nullptr || calls == nullptr || count < 1 || count > MOST_ROWS ||
        std::find(states, states + count, nullptr) != states + count)
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "no states, one that is missing, or no calls");
    return run_guarded(states, calls, count, text);
}
