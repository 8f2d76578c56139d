// What differs by instruction set: a table of functions over plain memory. Everything else is compiled once.
#pragma once
#include <cstddef>
#include <cstdint>

namespace doge::cpu {

constexpr int PAGE = 256;       // keys of a page of the cache
constexpr int KEY_BLOCK = 64;   // keys whose weights share a scale when they meet int8 values
constexpr float SMALLEST = 1e-36f;  // number that is worth codes: 127 / SMALLEST is finite
constexpr float MASKED = -1e30f;  // below every logit, above the score of padding

// Some rows of a matrix, interleaved by 16; see "weight files" in doge/cpu.h.
struct Matrix {
    const uint8_t* bytes;
    int rows, columns, kind, block;
    size_t group;  // bytes of 16 rows
};

// Vectors to multiply with, one a token: float32, and int8 codes in blocks of `block`, the largest of 128, 64, 32, 16 that
// divides the columns (so a matrix's block divides it). Codes, scales and sums of one block of all tokens lie together.
struct Activations {
    float* x;        // [n, stride]
    int8_t* codes;   // [blocks, step, block], -127 to 127
    int16_t* wide;   // the same in 16 bits where Kernels::widen makes them, for MANY tokens and more; else null
    float* scales;   // [blocks, step]
    int32_t* sums;   // [blocks, step], of a block's codes
    size_t stride, step;
    int block;       // 0 where there are no codes
};

// Where products go: out[token * stride + row] = product + bias, or residual * out + product + bias.
struct Sink {
    float* out;
    size_t stride;
    const float* bias;      // null: none
    const float* residual;  // null: overwrite
    int rows;               // rows there is room for; the last 16 are cut
};

// Keys of one page, layer, row and key/value head.
struct Keys {
    const uint8_t* keys;        // 16 keys interleaved, as a matrix of D columns and one block
    const uint8_t* values;      // float32: [PAGE, D]; int8: for each 64 keys and 16 dimensions 16 x [16 dimensions, 4 keys]
    const float* value_scales;  // [PAGE], int8 alone
    int first, count;           // place of the first key, and how many there are
    bool int8;
    int width;                  // D, padded to a multiple of 16
};

// One query, what it may see, and what it has gathered so far. A key is kept if its score is above `least`, or equal to it
// and its place at most `last`.
struct Query {
    float scale;          // of its codes, and their sum; int8 alone
    int32_t sum;
    int limit;            // the first place it does not see
    const float* scores;  // of the page, for this query's score head
    bool selects;         // whether the next two say anything
    float least;
    int last;
    float largest;        // logit so far, MASKED at first
    float total;          // of exp(logit - largest)
    float* out;           // [D, padded] sums of values with these weights
};

constexpr int MOST_QUERIES = 16;  // of one call of attend

constexpr int MANY = 12;  // tokens for which it pays to widen an int8 matrix too

// An int8 copy of a float head, with what bounds its error; see screen.h.
struct ScreenedHead {
    const uint8_t* bytes;  // for each 16 rows and block: codes as in an int8 matrix, 16 scales, 16 errors, 16 norms
    int columns, block;
};

// An input of it: two tokens of codes, of which the second rounds what the first leaves; and by block how long the input
// is, and how long what both leave.
struct ScreenedInput {
    Activations codes;
    const float *norms, *rests;
    float rounding;  // of float32 sums, relative
};

struct Kernels {
    const char* name;
    // codes in 16 bits; null where `multiply` does not want them
    void (*widen)(const int8_t* codes, int n, int16_t* wide);
    // codes, scales and sums of `columns` numbers (a multiple of `block`) of one of `step` tokens
    void (*quantise)(const float* x, int columns, int block, size_t step, int8_t* codes, float* scales, int32_t* sums);
    // y = x / rms(x) * weight over n numbers; all three are padded
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* y);
    // groups [first, last) of 16 rows times n tokens
    void (*multiply)(const Matrix&, int first, int last, const Activations&, int n, const Sink&);
    // silu(gate x + gate_bias) * (up x + sink.bias) of `groups` groups of 16 rows
    void (*gated)(const Matrix& gate, int gate_first, const Matrix& up, int up_first, int groups, const Activations&,
                  int n, const float* gate_bias, const Sink&);
    // y = scale * rope(norm(x)) of one head; norm null: none
    void (*rotate)(const float* x, const float* norm, int head_dim, float eps, const float* cos, const float* sin,
                   float scale, float* y);
    // up to MOST_QUERIES queries over one page; query t is x[t * stride ...] or codes[t * stride ...], padded with zeros
    void (*attend)(const Keys&, Query*, int n, const float* x, const int8_t* codes, size_t stride);
    // for 16 rows of each group [first, last) a number that their logits do not fall below, and one they do not exceed;
    // infinite where nothing is known, never NaN
    void (*screen)(const ScreenedHead&, const ScreenedInput&, int first, int last, float* lower, float* upper);
    // n > 0; x is not padded. NaN is passed over, or is what comes out
    float (*largest)(const float* x, int n);
    // a row of a table, as doge_cpu_pack makes it, times x; and out += weight * row, of columns [first, last)
    float (*row_dot)(const uint8_t* row, int kind, int block, int columns, const float* x);
    void (*row_add)(const uint8_t* row, int kind, int block, int first, int last, int columns, float weight, float* out);
};

// null where the library was compiled without
const Kernels* kernels_plain();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_neondot();
const Kernels* kernels_wasm();
const Kernels* kernels_wasmrelaxed();

}  // namespace doge::cpu
