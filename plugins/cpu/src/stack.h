// The decoder layers over some new tokens, by all threads at once.
#pragma once
#include <algorithm>

#include "state.h"

namespace doge::cpu {

// Tokens [first, first + tokens) of each row of a call, n = batch * tokens in all, row after row.
struct Piece {
    const doge_cpu_call* call;
    int first, tokens;  // within the call
    int past;           // tokens before, of the cache
};

class Stack {
   public:
    Stack(doge_cpu_state& state, const Piece& piece);

    // Every thread calls it; behind it, x holds the hidden states before the final norm.
    void run(int id);

    int count() const { return n_; }
    float* x(int token) const { return x_ + size_t(token) * hidden_; }

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
    int row_of(int token) const { return token / piece_.tokens; }
    int place_of(int token) const { return piece_.past + token % piece_.tokens; }
    bool is_token(int token) const;
    bool selects() const {
        return config_.keep_window_size > 0 && piece_.past + piece_.tokens > config_.keep_window_size;
    }

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
    void attend_part(int l, int part, int parts) const;
    void attend_shared(int id, int l) const;
    void attend_item(int id, int l, int row, int head, int first, int count) const;
    Query query(int row, int token, int h, size_t at, float* out) const;
    void attend_pages(int l, int row, int head, Query* queries, int n, size_t at, int begin, int end) const;
    void attend_evenly(int l, int row, int head, float* out) const;
    void output(int id, const Layer& layer) const;
    void feed_forward(int id, const Layer& layer) const;
    void add_experts(int id, const Layer& layer) const;
    void choose_experts(int id, int token) const;
    float expert_weight(int id, const Layer& layer, int token, int i) const;

    doge_cpu_state& state_;
    const doge_cpu_model& model_;
    const doge_cpu_config& config_;
    const Kernels& kernels_;
    Pool& pool_;
    Work& work_;
    const Piece piece_;
    const int n_, threads_;
    const size_t hidden_;                  // H padded
    const int per_;                        // query heads of a key/value head
    const size_t width_;                   // D padded
    size_t key_at_, value_at_, score_at_, qkv_stride_;
    int keys_of_half_ = 0;
    float* x_;
    std::vector<Selection::Kept> worst_;   // [n, score heads] where keys are selected
};

}  // namespace doge::cpu
