// How weights lie in a file: the arithmetic that packing, checking and the kernels share.
#pragma once
#include <cstddef>
#include <cstdint>

#include "doge/cpu.h"

namespace doge::cpu {

constexpr int LANES = 16;    // rows of a matrix that lie together, floats of a vector
constexpr int ALIGN = 64;    // bytes, of every piece and of every row of a table
constexpr int MAX_HEAD = 256;

constexpr int padded(int n) { return (n + LANES - 1) / LANES * LANES; }
constexpr size_t aligned(size_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }
constexpr bool is_code(int kind) { return kind == DOGE_CPU_INT4 || kind == DOGE_CPU_INT8; }
constexpr int zero_code(int kind) { return kind == DOGE_CPU_INT4 ? 8 : 128; }
constexpr int float_bytes(int kind) { return kind == DOGE_CPU_FLOAT32 ? 4 : 2; }

// Bytes of the codes of 16 rows of a block; their scales, 64 bytes, follow.
constexpr size_t code_bytes(int kind, int block) { return size_t(block) * LANES * kind / 8; }
constexpr size_t block_bytes(int kind, int block) { return code_bytes(kind, block) + LANES * sizeof(float); }

// Bytes of 16 interleaved rows.
constexpr size_t group_bytes(int kind, int block, int columns) {
    return is_code(kind) ? size_t(columns / block) * block_bytes(kind, block)
                         : size_t(columns) * LANES * float_bytes(kind);
}

// Bytes of one row of a table.
constexpr size_t row_bytes(int kind, int block, int columns) {
    return aligned(is_code(kind) ? size_t(columns) * kind / 8 + size_t(columns / block) * sizeof(float)
                                 : size_t(padded(columns)) * float_bytes(kind));
}

enum class Form { vector, interleaved, rows };

// What a role asks of its pieces.
struct Role {
    int32_t role;
    const char* name;
    Form form;
    bool of_layer;
    bool optional;
    int64_t rows, columns;
};

// The role in a model of this config; null where there is none of that number, or where the model has no use for it.
// `config` must have passed config_problem.
bool find_role(const doge_cpu_config& config, int32_t role, Role& found);
// Calls visit(const Role&) for each role of the model, those of the model first.
template <class Visit>
void each_role(const doge_cpu_config& config, Visit visit) {
    Role role;
    for (int32_t number = 1; number < 64; number++) {
        if (find_role(config, number, role)) visit(role);
    }
}

// What is wrong with sizes and enumerations, or null.
const char* config_problem(const doge_cpu_config& config);

// Bytes of a piece of sensible sizes.
uint64_t piece_bytes(Form form, const doge_cpu_piece& piece);
// Checks role, layer, rows, columns, kind and block of one piece; null where they are right.
const char* piece_problem(const doge_cpu_config& config, const doge_cpu_piece& piece, Role& role);

}  // namespace doge::cpu
