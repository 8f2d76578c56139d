// The weights of a model, where its file has them.
#pragma once
#include <vector>

#include "file.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace doge::cpu {

// A linear layer: parts of a matrix, each of its own kind.
struct Linear {
    std::vector<Matrix> parts;
    const float* bias = nullptr;
    int rows = 0, columns = 0;
    bool codes = false;  // any part needs the inputs in 8 bits

    bool empty() const { return parts.empty(); }
    int groups() const { return padded(rows) / LANES; }
};

// One weight of a matrix, wherever it lies.
float weight_at(const Matrix& matrix, int row, int column);

// Rows to look up: embeddings, experts.
struct Table {
    struct Part {
        const uint8_t* bytes;
        int first_row, rows, kind, block;
        size_t row_bytes;
    };
    std::vector<Part> parts;

    bool empty() const { return parts.empty(); }
    const uint8_t* row(int index, const Part*& part) const {
        size_t i = 0;
        while (index >= parts[i].first_row + parts[i].rows) i++;
        part = &parts[i];
        return parts[i].bytes + size_t(index - parts[i].first_row) * parts[i].row_bytes;
    }
};

struct Layer {
    const float *input_norm, *query_norm, *key_norm, *input_residual, *post_norm, *post_residual, *a, *score_bias;
    Linear query, key, value, score, score_of_input, output, gate, up, down, router;
    Table expert_down, expert_up;
};

struct Weights {
    Table embedding;
    Linear head;
    const float *final_norm = nullptr, *rope = nullptr, *rope_long = nullptr;
    std::vector<Layer> layers;
    std::vector<float> ones;  // in place of residual weights that a model does not have

    void read(const File& file);
    // The embedding of a token, hidden_size floats and zeros behind.
    void embed(const Kernels& kernels, int64_t token, int hidden_size, float* out) const;
};

}  // namespace doge::cpu
