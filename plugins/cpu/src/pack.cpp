// Puts the weights of one piece where the kernels want them; see "weight files" in doge/cpu.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "guard.h"
#include "half.h"
#include "layout.h"
#include "message.h"

namespace doge::cpu {
namespace {

void store_float(uint8_t* to, int kind, float x) {
    const uint16_t half = kind == DOGE_CPU_FLOAT16 ? to_float16(x) : to_bfloat16(x);
    if (kind == DOGE_CPU_FLOAT32) std::memcpy(to, &x, sizeof x);
    else std::memcpy(to, &half, sizeof half);
}

// Rounds one block to the nearest codes and returns its scale.
float quantise(const float* weights, int block, int kind, uint8_t* codes) {
    const int zero = zero_code(kind), top = zero - 1;
    float largest = 0;
    for (int k = 0; k < block; k++) largest = std::max(largest, std::fabs(weights[k]));
    const float scale = largest / float(top);
    for (int k = 0; k < block; k++) {
        const float code = scale > 0 ? std::nearbyint(weights[k] / scale) : 0;
        codes[k] = uint8_t(zero + int(std::clamp(code, float(-top), float(top))));
    }
    return scale;
}

// Where the code at column k of the row `lane` lies among the codes of 16 rows of a block, and by how much it is shifted.
struct Place {
    size_t byte;
    int shift;
};

Place interleaved_place(int kind, int lane, int k) {
    if (kind == DOGE_CPU_INT8) return {size_t(k / 4) * ALIGN + size_t(lane) * 4 + size_t(k % 4), 0};
    return {size_t(k / 8) * ALIGN + size_t(lane) * 4 + size_t(k % 4), k % 8 < 4 ? 0 : 4};
}

Place row_place(int kind, int k) {
    if (kind == DOGE_CPU_INT8) return {size_t(k), 0};
    return {size_t(k / 16) * 8 + size_t(k % 8), k % 16 < 8 ? 0 : 4};
}

void pack_codes(const doge_cpu_piece& p, Form form, int row, const uint8_t* codes, const float* scales, uint8_t* out) {
    const int blocks = p.columns / p.block;
    const size_t size = block_bytes(p.kind, p.block);
    uint8_t* group = out + size_t(row / LANES) * group_bytes(p.kind, p.block, p.columns);
    uint8_t* table = out + size_t(row) * row_bytes(p.kind, p.block, p.columns);
    for (int k = 0; k < p.columns; k++) {
        Place place;
        uint8_t* to;
        if (form == Form::interleaved) {
            place = interleaved_place(p.kind, row % LANES, k % p.block);
            to = group + size_t(k / p.block) * size + place.byte;
        } else {
            place = row_place(p.kind, k);
            to = table + place.byte;
        }
        *to = uint8_t(*to | codes[k] << place.shift);
    }
    for (int b = 0; b < blocks; b++) {
        uint8_t* to = form == Form::interleaved
                          ? group + size_t(b + 1) * size - ALIGN + size_t(row % LANES) * sizeof(float)
                          : table + size_t(p.columns) * size_t(p.kind) / 8 + size_t(b) * sizeof(float);
        std::memcpy(to, scales + b, sizeof(float));
    }
}

void pack_floats(const doge_cpu_piece& p, Form form, int row, const float* values, uint8_t* out) {
    const size_t width = size_t(float_bytes(p.kind));
    for (int k = 0; k < p.columns; k++) {
        const size_t place = form == Form::interleaved
                                 ? size_t(row / LANES) * group_bytes(p.kind, 0, p.columns) +
                                       (size_t(k) * LANES + size_t(row % LANES)) * width
                                 : size_t(row) * row_bytes(p.kind, 0, p.columns) + size_t(k) * width;
        store_float(out + place, p.kind, values[k]);
    }
}

// Rows that only fill up the last 16 stand for zeros: their codes are the zero code, whatever their scales.
void pad_codes(const doge_cpu_piece& p, uint8_t* out) {
    const std::unique_ptr<uint8_t[]> codes(new uint8_t[size_t(p.columns)]);
    const std::unique_ptr<float[]> scales(new float[size_t(p.columns / p.block)]());
    std::memset(codes.get(), zero_code(p.kind), size_t(p.columns));
    for (int row = p.rows; row < padded(p.rows); row++)
        pack_codes(p, Form::interleaved, row, codes.get(), scales.get(), out);
}

}  // namespace

// The form is told by the piece's planned size: callers of doge_cpu_pack have no config at hand.
static bool form_of(const doge_cpu_piece& p, Form& form) {
    doge_cpu_config any{};
    any.num_hidden_layers = any.num_attention_heads = any.num_key_value_heads = any.score_heads = any.head_dim = 2;
    any.moe = DOGE_CPU_MOE_PER_TOKEN, any.num_experts = 4, any.rope = DOGE_CPU_ROPE_LONGROPE;
    Role role;
    if (!find_role(any, p.role, role)) return false;
    form = role.form;
    return true;
}

static doge_cpu_status pack(const doge_cpu_piece& p, const float* values, const uint8_t* codes, const float* scales,
                            uint8_t* out, const Message& message) {
    Form form;
    const bool known = p.kind == DOGE_CPU_INT4 || p.kind == DOGE_CPU_INT8 || p.kind == DOGE_CPU_FLOAT16 ||
                       p.kind == DOGE_CPU_BFLOAT16 || p.kind == DOGE_CPU_FLOAT32;
    if (!known || !form_of(p, form) || p.rows < 1 || p.columns < 1 ||
        (form == Form::vector && (p.rows != 1 || p.kind != DOGE_CPU_FLOAT32)) ||
        (is_code(p.kind) && (p.block < 16 || p.block > 128 || p.block % 16 != 0 || p.columns % p.block != 0)) ||
        piece_bytes(form, p) != p.bytes)
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "the piece of role %d was not planned", p.role);
    if (values == nullptr && (!is_code(p.kind) || codes == nullptr || scales == nullptr))
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "the piece of role %d comes without weights", p.role);
    std::memset(out, 0, p.bytes);
    const size_t width = size_t(p.columns);
    if (!is_code(p.kind)) {
        for (int row = 0; row < p.rows; row++) pack_floats(p, form, row, values + size_t(row) * width, out);
        return DOGE_CPU_SUCCESS;
    }
    const size_t blocks = width / size_t(p.block);
    const std::unique_ptr<uint8_t[]> rounded(new uint8_t[width]);
    const std::unique_ptr<float[]> fitted(new float[blocks]);
    for (int row = 0; row < p.rows; row++) {
        const uint8_t* c = codes == nullptr ? rounded.get() : codes + size_t(row) * width;
        const float* s = codes == nullptr ? fitted.get() : scales + size_t(row) * blocks;
        if (codes == nullptr) {
            for (size_t b = 0; b < blocks; b++) {
                const size_t at = b * size_t(p.block);
                fitted[b] = quantise(values + size_t(row) * width + at, p.block, p.kind, rounded.get() + at);
            }
        } else if (p.kind == DOGE_CPU_INT4 && std::any_of(c, c + width, [](uint8_t code) { return code > 15; })) {
            return message.fail(DOGE_CPU_BAD_ARGUMENT, "a 4-bit code of the piece of role %d is above 15", p.role);
        }
        pack_codes(p, form, row, c, s, out);
    }
    if (form == Form::interleaved) pad_codes(p, out);
    return DOGE_CPU_SUCCESS;
}

}  // namespace doge::cpu

extern "C" doge_cpu_status doge_cpu_pack(const doge_cpu_piece* piece, const float* values, const uint8_t* codes,
                                         const float* scales, void* out, char* message, size_t message_bytes) {
    const doge::cpu::Message text{message, message_bytes};
    if (piece == nullptr || out == nullptr) return text.fail(DOGE_CPU_BAD_ARGUMENT, "no piece, or nowhere to put it");
    return doge::cpu::guarded(
        text, [&] { return doge::cpu::pack(*piece, values, codes, scales, static_cast<uint8_t*>(out), text); });
}
