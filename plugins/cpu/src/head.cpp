#include "head.h"

#include <algorithm>
#include <cstring>

namespace doge::cpu {

Head::Head(doge_cpu_state& state, const Piece& piece, const Stack& stack)
    : state_(state),
      model_(*state.model),
      config_(model_.config()),
      piece_(piece),
      stack_(stack),
      pool_(*model_.pool),
      inputs_(&model_.work.head),
      scratch_(nullptr) {
    const doge_cpu_call& call = *piece.call;
    const int end = piece.first + piece.tokens;
    last_ = end == call.tokens;
    const int wanted = call.logits == nullptr ? 0 : call.logits_to_keep == 0 ? call.tokens : call.logits_to_keep;
    kept_ = std::clamp(wanted - (call.tokens - end), 0, piece.tokens);
    if (kept_ == 0 && last_ && call.num_candidates > 0) kept_ = 1;
    if (kept_ > 0) inputs_->need(*model_.kernels, state.batch * kept_, config_.hidden_size);
    if (call.logits == nullptr && kept_ > 0)
        scratch_ = model_.work.logits.need(size_t(state.batch) * size_t(config_.vocab_size));
}

// The final norm of the tokens that are wanted.
void Head::hidden(int id) {
    const doge_cpu_call& call = *piece_.call;
    float* row = model_.work.threads[size_t(id)].normed.need(size_t(padded(config_.hidden_size)));
    const Share mine(state_.batch * piece_.tokens, id, pool_.threads());
    for (int i = mine.first; i < mine.last; i++) {
        const int b = i / piece_.tokens, t = i % piece_.tokens, kept = t - (piece_.tokens - kept_);
        if (kept < 0 && call.hidden == nullptr) continue;
        model_.kernels->rms_norm(stack_.x(i), model_.weights.final_norm, config_.hidden_size, config_.rms_norm_eps, row);
        const size_t width = size_t(config_.hidden_size) * sizeof(float);
        if (call.hidden != nullptr) {
            const size_t at = size_t(b) * size_t(call.tokens) + size_t(piece_.first + t);
            std::memcpy(call.hidden + at * size_t(config_.hidden_size), row, width);
        }
        if (kept < 0) continue;
        const int place = b * kept_ + kept;
        std::memcpy(inputs_->x(place), row, width);
        if (model_.weights.head.codes) inputs_->quantise(*model_.kernels, place);
    }
    pool_.barrier();
}

void Head::run(int id) {
    const doge_cpu_call& call = *piece_.call;
    if (kept_ == 0 && call.hidden == nullptr) return;
    hidden(id);
    if (kept_ == 0) return;
    // The piece's tokens come before those of later pieces in each row of the caller's logits.
    const size_t vocabulary = size_t(config_.vocab_size);
    const int wanted = call.logits == nullptr ? 1 : call.logits_to_keep == 0 ? call.tokens : call.logits_to_keep;
    const int place = call.logits == nullptr ? 0 : wanted - (call.tokens - (piece_.first + piece_.tokens)) - kept_;
    const Share mine(model_.weights.head.groups(), id, pool_.threads());
    for (int b = 0; b < state_.batch; b++) {
        float* out = scratch_ != nullptr ? scratch_ + size_t(b) * vocabulary
                                         : call.logits + (size_t(b) * size_t(wanted) + size_t(place)) * vocabulary;
        int begin = 0, row = 0;
        for (const Matrix& part : model_.weights.head.parts) {
            const int size = padded(part.rows) / LANES;
            const int first = std::max(mine.first - begin, 0), last = std::min(mine.last - begin, size);
            const Sink sink{out + row, vocabulary, nullptr, nullptr, part.rows};
            if (first < last) model_.kernels->multiply(part, first, last, inputs_->from(b * kept_), kept_, sink);
            begin += size;
            row += part.rows;
        }
    }
    if (last_ && call.num_candidates > 0) {
        pool_.barrier();
        candidates(id);
    }
}

void Head::candidates(int id) {
    const doge_cpu_call& call = *piece_.call;
    const int vocabulary = config_.vocab_size, count = call.num_candidates;
    const int wanted = call.logits_to_keep == 0 ? call.tokens : call.logits_to_keep;
    std::vector<int32_t>& order = model_.work.threads[size_t(id)].order;
    for (int b = id; b < state_.batch; b += pool_.threads()) {
        const float* logits = scratch_ != nullptr ? scratch_ + size_t(b) * size_t(vocabulary)
                                                  : call.logits + (size_t(b + 1) * size_t(wanted) - 1) * size_t(vocabulary);
        const auto better = [logits](int32_t i, int32_t j) { return logits[i] > logits[j] || (logits[i] == logits[j] && i < j); };
        // A heap of the best so far, the worst of them on top.
        order.clear();
        for (int32_t i = 0; i < vocabulary; i++) {
            if (int(order.size()) < count) {
                order.push_back(i);
                std::push_heap(order.begin(), order.end(), better);
            } else if (better(i, order.front())) {
                std::pop_heap(order.begin(), order.end(), better);
                order.back() = i;
                std::push_heap(order.begin(), order.end(), better);
            }
        }
        std::sort_heap(order.begin(), order.end(), better);
        for (int i = 0; i < count; i++) {
            call.candidates[size_t(b) * size_t(count) + size_t(i)] = order[size_t(i)];
            call.candidate_logits[size_t(b) * size_t(count) + size_t(i)] = logits[order[size_t(i)]];
        }
    }
}

}  // namespace doge::cpu
