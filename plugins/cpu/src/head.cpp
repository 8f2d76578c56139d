#include "head.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace doge::cpu {
namespace {

constexpr int MOST_SCREENED = 256;  // candidates; more of them leave too many rows
constexpr int STRIP = 16384;  // logits that a thread computes at once: 64 KB

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

Head::Head(const doge_cpu_model& model, const std::vector<Row>& rows, const Stack& stack)
    : model_(model),
      config_(model_.config()),
      rows_(rows),
      stack_(stack),
      work_(model_.work),
      pool_(*model_.pool) {
    for (const Row& row : rows_) {
        Wanted w = wanted_of(row);
        if (w.candidates > 0 && w.candidates <= MOST_SCREENED && row.call->logits == nullptr && model_.screen.ready())
            w.screened = screened_++;
        wanted_.push_back(w);
        any_hidden_ |= row.call->hidden != nullptr;
        any_candidates_ |= w.candidates > 0;
    }
    for (const bool screened : {false, true}) {
        for (Wanted& w : wanted_) {
            if ((w.screened >= 0) != screened) continue;
            w.begin = kept_;
            kept_ += w.kept;
        }
        if (!screened) computed_ = kept_;
    }
    if (kept_ > 0) work_.head.need(*model_.kernels, kept_, config_.hidden_size);
    if (computed_ > 0) strip_ = std::clamp(STRIP / computed_ / LANES * LANES, LANES, 256);
    if (model_.screen.ready() && screened_ > 0) {
        work_.bounds.need(size_t(screened_) * 2 * size_t(padded(config_.vocab_size)));
        if (work_.screen_inputs.size() < size_t(screened_)) work_.screen_inputs.resize(size_t(screened_));
        for (int i = 0; i < screened_; i++) work_.screen_inputs[size_t(i)].need(*model_.kernels, config_.hidden_size);
    }
    for (ThreadWork& t : work_.threads) {
        if (computed_ > 0) t.logits.need(size_t(computed_) * size_t(strip_));
        t.best.resize(rows_.size());
        t.least.resize(rows_.size());
        for (size_t r = 0; r < rows_.size(); r++) {
            t.all.reserve(size_t(wanted_[r].candidates));
            // Those of threads that this call leaves alone are read, too, where all are joined.
            t.best[r].clear();
            t.best[r].reserve(size_t(wanted_[r].candidates));
        }
    }
}

Head::Wanted Head::wanted_of(const Row& row) const {
    const doge_cpu_call& call = *row.call;
    const int left = call.tokens - (row.first + row.tokens);  // for later pieces
    const int logits = call.logits == nullptr ? 0 : call.logits_to_keep == 0 ? call.tokens : call.logits_to_keep;
    Wanted w;
    w.candidates = left == 0 ? call.num_candidates : 0;
    w.kept = std::clamp(logits - left, w.candidates > 0 ? 1 : 0, row.tokens);
    if (logits > 0) {  // behind those of earlier pieces
        const size_t place = size_t(row.number) * size_t(logits) + size_t(std::max(logits - left - w.kept, 0));
        w.logits = call.logits + place * size_t(config_.vocab_size);
    }
    return w;
}

// The final norm of the tokens that are wanted.
void Head::hidden(int id) {
    float* out = work_.threads[size_t(id)].normed.data();
    const Share mine(stack_.count(), id, pool_.threads());
    for (int i = mine.first; i < mine.last; i++) {
        const Row& row = rows_[size_t(stack_.row_of(i))];
        const Wanted& w = wanted_[size_t(stack_.row_of(i))];
        const int t = i - row.begin, kept = t - (row.tokens - w.kept);
        if (kept < 0 && row.call->hidden == nullptr) continue;
        model_.kernels->rms_norm(stack_.x(i), model_.weights.final_norm, config_.hidden_size, config_.rms_norm_eps, out);
        const size_t width = size_t(config_.hidden_size) * sizeof(float);
        if (row.call->hidden != nullptr)
            std::memcpy(row.call->hidden + row.in_call(t) * size_t(config_.hidden_size), out, width);
        if (kept < 0) continue;
        std::memcpy(work_.head.x(w.begin + kept), out, width);
        if (model_.weights.head.codes) work_.head.quantise(*model_.kernels, w.begin + kept);
        if (w.screened >= 0) work_.screen_inputs[size_t(w.screened)].prepare(*model_.kernels, out, config_.hidden_size);
    }
    pool_.barrier();
}

void Head::run(int id) {
    if (kept_ == 0 && !any_hidden_) return;
    hidden(id);
    if (computed_ > 0) compute(id);
    if (model_.screen.ready() && screened_ > 0) screen(id);
    if (!any_candidates_) return;
    pool_.barrier();
    merge(id);
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

// This thread's share of the logits, and the best among them.
void Head::compute(int id) {
    const size_t vocabulary = size_t(config_.vocab_size), stride = size_t(strip_);
    const Share mine(model_.weights.head.groups(), id, pool_.threads());
    float* strip = work_.threads[size_t(id)].logits.data();
    for (int group = mine.first, last; group < mine.last; group = last) {
        last = std::min(group + strip_ / LANES, mine.last);
        const int row = group * LANES, rows = std::min(last * LANES, config_.vocab_size) - row;
        each_part(group, last, [&](const Matrix& part, int first_row, int from, int to) {
            const Sink sink{strip + first_row - row, stride, nullptr, nullptr, padded(part.rows)};
            model_.kernels->multiply(part, from, to, work_.head.all(), computed_, sink);
        });
        for (size_t r = 0; r < rows_.size(); r++) {
            const Wanted& w = wanted_[r];
            if (w.screened >= 0 || w.kept == 0) continue;
            const float* logits = strip + size_t(w.begin) * stride;
            for (size_t k = 0; w.logits != nullptr && k < size_t(w.kept); k++)
                std::memcpy(w.logits + k * vocabulary + row, logits + k * stride, size_t(rows) * sizeof(float));
            if (w.candidates > 0) offer(id, r, logits + size_t(w.kept - 1) * stride, row, row + rows);
        }
    }
}

// The logits of tokens [first, last) are looked at for candidates.
void Head::offer(int id, size_t row, const float* logits, int first, int last) const {
    const int count = wanted_[row].candidates;
    std::vector<Candidate>& best = work_.threads[size_t(id)].best[row];
    for (int from = first; from < last; from += 256) {
        const int to = std::min(from + 256, last);
        const bool full = int(best.size()) == count;
        const float* some = logits + (from - first);
        if (full && model_.kernels->largest(some, to - from) <= orderly(best.front().logit)) continue;
        for (int i = from; i < to; i++) keep(best, count, {some[i - from], i});
    }
}

void Head::screen(int id) {
    const int vocabulary = config_.vocab_size;
    const size_t size = size_t(padded(vocabulary));
    const Share mine(model_.weights.head.groups(), id, pool_.threads());
    const auto lower = [&](const Wanted& w) { return work_.bounds.data() + size_t(w.screened) * 2 * size; };
    const auto upper = [&](const Wanted& w) { return lower(w) + size; };
    // A strip of the copy at a time, which then is near for the other rows.
    for (int group = mine.first, last; group < mine.last; group = last) {
        last = std::min(group + 16, mine.last);
        const int from = group * LANES, to = std::min(last * LANES, vocabulary);
        for (size_t r = 0; r < rows_.size(); r++) {
            const Wanted& w = wanted_[r];
            if (w.screened < 0) continue;
            model_.kernels->screen(model_.screen.head(), work_.screen_inputs[size_t(w.screened)].view(), group, last,
                                   lower(w), upper(w));
            offer(id, r, lower(w) + from, from, to);
        }
    }
    pool_.barrier();
    std::vector<float>& least = work_.threads[size_t(id)].least;  // logit that counts, by row
    for (size_t r = 0; r < rows_.size(); r++) {
        // The n-th largest lower bound of all threads.
        if (wanted_[r].screened >= 0) least[r] = join(id, r).front().logit;
    }
    pool_.barrier();  // everyone has read the bounds' best
    for (size_t r = 0; r < rows_.size(); r++) {
        const Wanted& w = wanted_[r];
        if (w.screened < 0) continue;
        std::vector<Candidate>& best = work_.threads[size_t(id)].best[r];
        best.clear();
        for (int g = mine.first; g < mine.last; g++) {
            const int from = g * LANES, to = std::min(from + LANES, vocabulary);
            if (model_.kernels->largest(upper(w) + from, to - from) < least[r]) continue;
            alignas(64) float logits[LANES];
            each_part(g, g + 1, [&](const Matrix& part, int, int part_group, int end) {
                const Sink sink{logits - part_group * LANES, 0, nullptr, nullptr, end * LANES};
                model_.kernels->multiply(part, part_group, end, work_.head.from(w.begin), 1, sink);
            });
            for (int i = from; i < to; i++) keep(best, w.candidates, {logits[i - from], i});
        }
    }
}

// The best of all threads' best of a row, a heap.
const std::vector<Candidate>& Head::join(int id, size_t row) const {
    std::vector<Candidate>& all = work_.threads[size_t(id)].all;
    all.clear();
    for (const ThreadWork& t : work_.threads)
        for (const Candidate& c : t.best[row]) keep(all, wanted_[row].candidates, c);
    return all;
}

// A row by one thread.
void Head::merge(int id) const {
    for (size_t r = size_t(id); r < rows_.size(); r += size_t(pool_.threads())) {
        const size_t count = size_t(wanted_[r].candidates);
        if (count == 0) continue;
        join(id, r);
        std::vector<Candidate>& all = work_.threads[size_t(id)].all;
        std::sort_heap(all.begin(), all.end(), better);
        const doge_cpu_call& call = *rows_[r].call;
        for (size_t i = 0; i < count; i++) {
            call.candidates[size_t(rows_[r].number) * count + i] = all[i].id;
            call.candidate_logits[size_t(rows_[r].number) * count + i] = all[i].logit;
        }
    }
}

}  // namespace doge::cpu
