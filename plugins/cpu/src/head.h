// From the last hidden states to what a call wants: the states themselves, logits, the best candidates.
#pragma once
#include "stack.h"

namespace doge::cpu {

class Head {
   public:
    Head(doge_cpu_state& state, const Piece& piece, const Stack& stack);

    // Every thread calls it, behind Stack::run.
    void run(int id);

   private:
    void hidden(int id);
    void candidates(int id);

    doge_cpu_state& state_;
    const doge_cpu_model& model_;
    const doge_cpu_config& config_;
    const Piece piece_;
    const Stack& stack_;
    Pool& pool_;
    int kept_;   // tokens of each row whose logits are wanted, the last of this piece
    bool last_;  // whether this piece holds the call's last token
    Inputs* inputs_;  // [batch * kept]
    float* scratch_;  // [batch, V] where candidates are wanted and logits are not
};

}  // namespace doge::cpu
