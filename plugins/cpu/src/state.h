// A model, and a batch of sequences of it.
#pragma once
#include <algorithm>
#include <memory>
#include <vector>

#include "cache.h"
#include "rope.h"
#include "screen.h"
#include "selection.h"
#include "work.h"

struct doge_cpu_model {
    doge::cpu::File file;
    doge::cpu::Memory copy;
    const doge::cpu::Kernels* kernels = nullptr;
    doge::cpu::Weights weights;
    doge::cpu::Screen screen;
    // Runs of different states take turns.
    mutable doge::cpu::Mutex turn;
    mutable std::unique_ptr<doge::cpu::Pool> pool;
    mutable doge::cpu::Work work;

    const doge_cpu_config& config() const { return file.header->config; }
};

struct doge_cpu_state {
    static constexpr int LEAST_ROOM = 64, ROOM = 512;

    const doge_cpu_model* model;
    int batch, max_length;
    int window;         // keys that a token keeps; 0: all
    int length = 0;
    int slots = 0;      // places of the caches that are taken: as many, unless keys were dropped
    int settled = 0;    // of these, those that stay when a call fails; -1: none, since it has dropped some of them
    bool bounded = false;
    std::vector<doge::cpu::Cache> caches;                // by row
    std::vector<std::vector<int32_t>> counts;            // by row and token: tokens so far that are no padding; see known()
    std::vector<std::vector<doge::cpu::Selection>> kept;  // by row and layer * score heads + score head
    doge::cpu::Rope rope;

    doge_cpu_state(const doge_cpu_model& m, int batch_size, bool int8, int longest)
        : model(&m), batch(batch_size), max_length(longest), window(std::min(m.config().keep_window_size, longest)), rope(m.config(), m.weights) {
        const doge_cpu_config& c = m.config();
        for (int b = 0; b < batch; b++) {
            caches.emplace_back(c, int8);
            counts.emplace_back();
            kept.emplace_back(size_t(c.num_hidden_layers) * size_t(c.score_heads));
        }
    }

    // Keys beyond the window that a bounded state holds until it drops them, more only while it reads a longer piece. As many
    // as the window, so that behind twice the window memory is what it stays.
    int room(int tokens) const { return std::max(tokens, std::clamp(window, LEAST_ROOM, ROOM)); }

    // Counts of a row: of every token, or of the last one alone once keys were dropped, since there is no going back then.
    size_t known() const { return slots == length ? size_t(length) : 1; }
};
