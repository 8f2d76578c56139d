// From the last hidden states to what a call wants: the states themselves, logits, the best candidates. The head's weights
// are read once for all rows.
#pragma once
#include "screen.h"
#include "stack.h"

namespace doge::cpu {

class Head {
   public:
    Head(const doge_cpu_model& model, const std::vector<Row>& rows, const Stack& stack);

    // Every thread calls it, behind Stack::run.
    void run(int id);

   private:
    // What is wanted of a row of this piece.
    struct Wanted {
        int kept = 0;        // tokens whose logits are, the last of the piece
        int begin = 0;       // number of their first among those of all rows
        int candidates = 0;
        int screened = -1;   // number among the rows that are screened
        float* logits = nullptr;  // where those of the first kept token go
    };
    Wanted wanted_of(const Row& row) const;
    void hidden(int id);
    void compute(int id);
    void screen(int id);
    template <class Function>
    void each_part(int first, int last, Function function) const;
    void offer(int id, size_t row, const float* logits, int first, int last) const;
    const std::vector<Candidate>& join(int id, size_t row) const;
    void merge(int id) const;

    const doge_cpu_model& model_;
    const doge_cpu_config& config_;
    const std::vector<Row>& rows_;
    const Stack& stack_;
    Work& work_;
    Pool& pool_;
    std::vector<Wanted> wanted_;  // by row
    int kept_ = 0;       // tokens of all rows; first come those whose logits are computed,
    int computed_ = 0;   // so many
    int screened_ = 0;   // rows
    int strip_ = 0;      // rows of the head that a thread computes at once, for `computed_` tokens
    bool any_hidden_ = false, any_candidates_ = false;
};

}  // namespace doge::cpu
