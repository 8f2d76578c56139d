// The decoder layers over some new tokens of several sequences, by all threads at once. Matrices are read once for all of
// them; each attends to its own cache. A sequence's numbers are the same bit for bit whatever runs beside it.
#pragma once
#include <algorithm>

#include "state.h"

namespace doge::cpu {

// New tokens of one sequence: [first, first + tokens) of a row of a call, behind `past` of its cache.
struct Row {
    doge_cpu_state* state;
    const doge_cpu_call* call;
    int number;  // of the row, in the state and in the call
    int first, tokens, past;
    int begin;    // number of its first token among those of all rows
    int in_rope;  // and among those that the state's angles were prepared for

    Cache& cache() const { return state->caches[size_t(number)]; }
    std::vector<Selection>& kept() const { return state->kept[size_t(number)]; }
    int end() const { return past + tokens; }
    // Place of its t-th token in what the call has by token.
    size_t in_call(int t) const { return size_t(number) * size_t(call->tokens) + size_t(first + t); }
};

class Stack {
   public:
    Stack(const doge_cpu_model& model, const std::vector<Row>& rows);

    // Every thread calls it; behind it, x holds the hidden states before the final norm.
    void run(int id);

    int count() const { return n_; }
    float* x(int token) const { return x_ + size_t(token) * hidden_; }
    int row_of(int token) const { return row_of_[size_t(token)]; }

   private:
    // One token: every thread prepares its own copy of a linear layer's input, which costs less than to wait for another's.
    // Many: each prepares its share.
    bool single() const { return n_ == 1; }
    LayerInputs& inputs(int id) const { return single() ? work_.threads[size_t(id)].inputs : work_.inputs; }
    template <class Function>
    void tokens(int id, Function function) const {
        const Share share = single() ? Share(1, 0, 1) : Share(n_, id, threads_);
        for (int t = share.first; t < share.last; t++) function(t);
    }
    void wait() const { pool_.barrier(); }
    void wait_if_many() const {
        if (!single()) pool_.barrier();
    }
    const Row& row(int token) const { return rows_[size_t(row_of(token))]; }
    int place_of(int token) const { return row(token).past + token - row(token).begin; }
    bool is_token(int token) const;
    bool selects(const Row& row) const { return row.state->window > 0 && row.end() > row.state->window; }
    // A single token behind many keys shares them out: in as many parts as the pool has threads, however many work on this
    // call, so that sums, and answers, depend neither on who else waits nor on the rows beside it.
    bool shares(const Row& row) const;

    struct Product {
        const Linear* linear;
        float* out;  // of token 0
        size_t stride;
        const float* residual;
    };
    void multiply(int id, const Product* products, int count, const Inputs& inputs) const;
    void gated(int id, const Layer& layer, const Inputs& inputs, float* out, size_t stride) const;

    void embed(int id) const;
    void norm(int id, const float* weight, bool codes) const;
    void project(int id, const Layer& layer) const;
    void remember(int id, int l) const;
    void score(int id, int l, int token) const;
    void select(int id, int l);
    void attend(int id, int l);
    // What a thread attends to at once: some tokens of a row for one key/value head; or part `head` of the keys of a row
    // that shares them.
    struct Item {
        int row, head, first, count;
    };
    void list_items();
    void attend_item(int id, int l, const Item& item) const;
    void attend_part(int l, const Row& row, int part) const;
    void join_parts(int id, int l, const Row& row) const;
    size_t part_of(const Row& row, int part) const {
        return size_t(shared_[size_t(&row - rows_.data())]) * size_t(pool_.size()) + size_t(part);
    }
    Query query(const Row& row, int token, int h, size_t at, float* out) const;
    void attend_pages(int l, const Row& row, int head, Query* queries, int n, size_t at, int begin, int end) const;
    void attend_evenly(int l, const Row& row, int head, float* out) const;
    void output(int id, const Layer& layer) const;
    void feed_forward(int id, const Layer& layer) const;
    void add_experts(int id, const Layer& layer) const;
    void choose_experts(int id, int token) const;
    float expert_weight(int id, const Layer& layer, int token, int i) const;

    const doge_cpu_model& model_;
    const doge_cpu_config& config_;
    const Kernels& kernels_;
    Pool& pool_;
    Work& work_;
    const std::vector<Row>& rows_;
    const int n_, threads_;
    const size_t hidden_;                  // H padded
    const int per_;                        // query heads of a key/value head
    const size_t width_;                   // D padded
    size_t key_at_, value_at_, score_at_, qkv_stride_;
    int keys_of_half_ = 0;
    float* x_;
    std::vector<int> row_of_;              // by token
    std::vector<int> shared_;              // by row: its number among those that share their keys
    std::vector<Item> items_;
    bool any_selects_ = false, any_shares_ = false;
    std::vector<Selection::Kept> worst_;   // [n, score heads] where keys are selected
};

}  // namespace doge::cpu
