// From the last hidden states to what a call wants: the states themselves, logits, the best candidates.
#pragma once
#include "screen.h"
#include "stack.h"

namespace doge::cpu {

class Head {
   public:
    Head(doge_cpu_state& state, const Piece& piece, const Stack& stack);

    // Every thread calls it, behind Stack::run.
    void run(int id);

   private:
    void hidden(int id);
    float* logits_of(int row) const;
    void compute(int id, int row);
    void screen(int id, int row);
    template <class Function>
    void each_part(int first, int last, Function function) const;
    void offer(int id, int row, const float* logits, int first, int last) const;
    void merge(int id) const;

    doge_cpu_state& state_;
    const doge_cpu_model& model_;
    const doge_cpu_config& config_;
    const Piece piece_;
    const Stack& stack_;
    Pool& pool_;
    int kept_;   // tokens of each row whose logits are wanted, the last of this piece
    int candidates_;  // how many are wanted of this piece
    bool screened_;
    Inputs* inputs_;  // [batch * kept]
    float* scratch_;  // [batch, V] where candidates are wanted and logits are not; [2, V padded] bounds where screened
};

}  // namespace doge::cpu
