// Which keys a token keeps: the w visible ones of highest score, of equal scores those of lower place.
//
// Scores never change and the visible keys only become more, so a key that has left the best w never returns: a heap of the
// w best, its worst on top, is all there is to know. The worst says which keys are kept.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

namespace doge::cpu {

class Selection {
   public:
    struct Kept {
        float score;
        int place;
    };

    int length() const { return length_; }
    void clear() {
        heap_.clear();
        length_ = 0;
    }
    void reserve(int window) { heap_.reserve(size_t(window)); }
    // Adds the next key. NaN counts as lowest, so that any scores have an order.
    void push(float score, int window) {
        const Kept key{score == score ? score : -INFINITY, length_++};
        if (int(heap_.size()) < window) {
            heap_.push_back(key);
            std::push_heap(heap_.begin(), heap_.end(), better);
        } else if (better(key, heap_.front())) {
            std::pop_heap(heap_.begin(), heap_.end(), better);
            heap_.back() = key;
            std::push_heap(heap_.begin(), heap_.end(), better);
        }
    }
    Kept worst() const { return heap_.front(); }
    // Places of the keys that are kept, in ascending order.
    std::vector<int> places() const {
        std::vector<int> found;
        for (const Kept& key : heap_) found.push_back(key.place);
        // As a heap, since std::sort is ten times the code, which a WebAssembly module feels.
        std::make_heap(found.begin(), found.end());
        std::sort_heap(found.begin(), found.end());
        return found;
    }

   private:
    static bool better(const Kept& a, const Kept& b) {
        return a.score > b.score || (a.score == b.score && a.place < b.place);
    }

    std::vector<Kept> heap_;
    int length_ = 0;
};

}  // namespace doge::cpu
