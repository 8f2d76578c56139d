// One call: checks, pieces that fit in memory, and what is wanted of them.
#include <algorithm>
#include <cstring>

#include "guard.h"
#include "head.h"
#include "stack.h"

namespace doge::cpu {
namespace {

constexpr int PIECE = 512;  // tokens at once, where tokens do not mix
constexpr int64_t MOST_MIXED = 1 << 20;  // tokens at once where they mix: times 1024 heads they still are an int

bool mixes(const doge_cpu_config& config) { return config.moe == DOGE_CPU_MOE_REFERENCE; }

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
        counts.resize(size_t(state.length));
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

doge_cpu_status run(doge_cpu_state& state, const doge_cpu_call& call, const Message& message) {
    if (const doge_cpu_status status = check(state, call, message)) return status;
    const doge_cpu_model& model = *state.model;
    const Lock turn(model.turn);
    model.pool->settle();
    for (Cache& cache : state.caches) cache.reserve(state.length + call.tokens);
    const std::vector<int32_t> positions = positions_of(state, call);
    const int32_t longest = *std::max_element(positions.begin(), positions.end());
    // A router that mixes a call's tokens needs all of them at once.
    const int step = mixes(model.config()) ? call.tokens : std::max(1, PIECE / state.batch);
    std::vector<int32_t> here;
    for (int first = 0; first < call.tokens; first += step) {
        const Piece piece{&call, first, std::min(step, call.tokens - first), state.length + first};
        here.clear();
        for (int b = 0; b < state.batch; b++) {
            const auto row = positions.begin() + int64_t(b) * call.tokens + first;
            here.insert(here.end(), row, row + piece.tokens);
        }
        state.rope.prepare(here.data(), int(here.size()), longest);
        Stack stack(state, piece);
        Head head(state, piece, stack);
        auto work = [&](int id) {
            stack.run(id);
            head.run(id);
        };
        model.pool->run(work);
    }
    state.length += call.tokens;
    return DOGE_CPU_SUCCESS;
}

}  // namespace
}  // namespace doge::cpu

using namespace doge::cpu;

extern "C" doge_cpu_status doge_cpu_run(doge_cpu_state* state, const doge_cpu_call* call, char* message,
                                        size_t message_bytes) {
    const Message text{message, message_bytes};
    if (state == nullptr || call == nullptr) return text.fail(DOGE_CPU_BAD_ARGUMENT, "no state or no call");
    const doge_cpu_status status = guarded(text, [&] { return run(*state, *call, text); });
    if (status != DOGE_CPU_SUCCESS) {
        for (auto& row : state->counts) row.resize(std::min(row.size(), size_t(state->length)));
    }
    return status;
}
