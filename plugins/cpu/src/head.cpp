#include "head.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace doge::cpu {
namespace {

constexpr int MOST_SCREENED = 256;  // candidates; more of them leave too many rows

// NaN counts as lowest, so that any numbers have an order.
float orderly(float logit) { return logit == logit ? logit : -INFINITY; }

bool better(const Candidate& a, const Candidate& b) {
    const float x = orderly(a.logit), y = orderly(b.logit);
    return x > y || (x == y && a.id < b.id);
}

// Keeps the `count` best in a heap, the worst of them on top.
void keep(std::vector<Candidate>& heap, int count, Candidate candidate) {
    if (int(heap.size()) < count) {
        heap.push_back(candidate);
        std::push_heap(heap.begin(), heap.end(), better);
    } else if (better(candidate, heap.front())) {
        std::pop_heap(heap.begin(), heap.end(), better);
        heap.back() = candidate;
        std::push_heap(heap.begin(), heap.end(), better);
    }
}

}  // namespace

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
    const int wanted = call.logits == nullptr ? 0 : call.logits_to_keep == 0 ? call.tokens : call.logits_to_keep;
    candidates_ = end == call.tokens ? call.num_candidates : 0;
    kept_ = std::clamp(wanted - (call.tokens - end), candidates_ > 0 ? 1 : 0, piece.tokens);
    screened_ = candidates_ > 0 && candidates_ <= MOST_SCREENED && call.logits == nullptr && model_.screen.ready();
    if (kept_ > 0) inputs_->need(*model_.kernels, state.batch * kept_, config_.hidden_size);
    const size_t vocabulary = size_t(padded(config_.vocab_size));
    if (call.logits == nullptr && kept_ > 0)
        scratch_ = model_.work.logits.need(vocabulary * size_t(screened_ ? 2 : state.batch));
    if (screened_) model_.work.screen_inputs.resize(size_t(state.batch));
    if (screened_) {
        for (ScreenInput& input : model_.work.screen_inputs) input.need(*model_.kernels, config_.hidden_size);
    }
    for (ThreadWork& w : model_.work.threads) {
        w.all.reserve(size_t(candidates_));
        w.best.resize(size_t(state.batch));
        // Those of threads that this call leaves alone are read, too, where all are joined.
        for (auto& row : w.best) row.clear(), row.reserve(size_t(candidates_));
    }
}

// The final norm of the tokens that are wanted.
void Head::hidden(int id) {
    const doge_cpu_call& call = *piece_.call;
    float* row = model_.work.threads[size_t(id)].normed.data();
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
        if (screened_) model_.work.screen_inputs[size_t(b)].prepare(*model_.kernels, row, config_.hidden_size);
    }
    pool_.barrier();
}

void Head::run(int id) {
    if (kept_ == 0 && piece_.call->hidden == nullptr) return;
    hidden(id);
    if (kept_ == 0) return;
    for (int row = 0; row < state_.batch; row++) {
        if (screened_) screen(id, row);
        else compute(id, row);
    }
    if (candidates_ == 0) return;
    pool_.barrier();
    merge(id);
}

// Where the logits of this piece's kept tokens of a row go: behind those of earlier pieces.
float* Head::logits_of(int row) const {
    const doge_cpu_call& call = *piece_.call;
    const size_t vocabulary = size_t(config_.vocab_size);
    if (call.logits == nullptr) return scratch_ + size_t(row) * vocabulary;
    const int wanted = call.logits_to_keep == 0 ? call.tokens : call.logits_to_keep;
    const int place = wanted - (call.tokens - (piece_.first + piece_.tokens)) - kept_;
    return call.logits + (size_t(row) * size_t(wanted) + size_t(place)) * vocabulary;
}

// Calls function(part, its first row, first group, last group) for groups [first, last) of the head.
template <class Function>
void Head::each_part(int first, int last, Function function) const {
    int begin = 0, row = 0;
    for (const Matrix& part : model_.weights.head.parts) {
        const int size = padded(part.rows) / LANES, from = std::max(first - begin, 0), to = std::min(last - begin, size);
        if (from < to) function(part, row, from, to);
        begin += size;
        row += part.rows;
    }
}

// This thread's share of a row's logits, and the best among them.
void Head::compute(int id, int row) {
    const size_t vocabulary = size_t(config_.vocab_size);
    const Share mine(model_.weights.head.groups(), id, pool_.threads());
    float* out = logits_of(row);
    each_part(mine.first, mine.last, [&](const Matrix& part, int first_row, int from, int to) {
        const Sink sink{out + first_row, vocabulary, nullptr, nullptr, part.rows};
        model_.kernels->multiply(part, from, to, inputs_->from(row * kept_), kept_, sink);
    });
    if (candidates_ > 0)
        offer(id, row, out + size_t(kept_ - 1) * vocabulary, mine.first * LANES,
              std::min(mine.last * LANES, config_.vocab_size));
}

// Tokens [first, last) are looked at for candidates.
void Head::offer(int id, int row, const float* logits, int first, int last) const {
    std::vector<Candidate>& best = model_.work.threads[size_t(id)].best[size_t(row)];
    for (int from = first; from < last; from += 256) {
        const int to = std::min(from + 256, last);
        const bool full = int(best.size()) == candidates_;
        if (full && model_.kernels->largest(logits + from, to - from) <= orderly(best.front().logit)) continue;
        for (int i = from; i < to; i++) keep(best, candidates_, {logits[i], i});
    }
}

void Head::screen(int id, int row) {
    const int groups = model_.weights.head.groups(), vocabulary = config_.vocab_size;
    const Share mine(groups, id, pool_.threads());
    float *lower = scratch_, *upper = scratch_ + padded(vocabulary);
    std::vector<Candidate>& best = model_.work.threads[size_t(id)].best[size_t(row)];
    model_.kernels->screen(model_.screen.head(), model_.work.screen_inputs[size_t(row)].view(), mine.first, mine.last, lower,
                           upper);
    const int last = std::min(mine.last * LANES, vocabulary);
    offer(id, row, lower, mine.first * LANES, last);
    pool_.barrier();
    // The lowest logit that counts: the n-th largest lower bound of all threads.
    std::vector<Candidate>& all = model_.work.threads[size_t(id)].all;
    all.clear();
    for (const ThreadWork& w : model_.work.threads)
        for (const Candidate& c : w.best[size_t(row)]) keep(all, candidates_, c);
    const float least = all.front().logit;
    pool_.barrier();  // everyone has read the bounds' best
    best.clear();
    for (int g = mine.first; g < mine.last; g++) {
        const int from = g * LANES, to = std::min(from + LANES, vocabulary);
        if (model_.kernels->largest(upper + from, to - from) < least) continue;
        alignas(64) float logits[LANES];
        each_part(g, g + 1, [&](const Matrix& part, int, int part_group, int end) {
            const Sink sink{logits - part_group * LANES, 0, nullptr, nullptr, end * LANES};
            model_.kernels->multiply(part, part_group, end, inputs_->from(row), 1, sink);
        });
        for (int i = from; i < to; i++) keep(best, candidates_, {logits[i - from], i});
    }
}

// The best of all threads' best, a row by one thread.
void Head::merge(int id) const {
    const doge_cpu_call& call = *piece_.call;
    const size_t count = size_t(candidates_);
    std::vector<Candidate>& all = model_.work.threads[size_t(id)].all;
    for (int row = id; row < state_.batch; row += pool_.threads()) {
        all.clear();
        for (const ThreadWork& w : model_.work.threads)
            for (const Candidate& c : w.best[size_t(row)]) keep(all, candidates_, c);
        std::sort_heap(all.begin(), all.end(), better);
        for (size_t i = 0; i < count; i++) {
            call.candidates[size_t(row) * count + i] = all[i].id;
            call.candidate_logits[size_t(row) * count + i] = all[i].logit;
        }
    }
}

}  // namespace doge::cpu
