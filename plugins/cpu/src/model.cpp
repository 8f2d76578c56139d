#include "model.h"

#include <cstring>

#include "half.h"

namespace doge::cpu {
namespace {

class Reader {
   public:
    explicit Reader(const File& file) : file_(file), next_(0) {}

    // The pieces of a role and layer; the table is in order, so that reading in order finds each at once.
    template <class Visit>
    void each(int role, int layer, Visit visit) {
        uint32_t i = next_;
        while (i < file_.piece_count && before(file_.pieces[i], role, layer)) i++;
        for (; i < file_.piece_count && file_.pieces[i].role == role && file_.pieces[i].layer == layer; i++)
            visit(file_.pieces[i]);
    }
    void begin_layer(int layer) {
        while (next_ < file_.piece_count && file_.pieces[next_].layer < layer) next_++;
    }

    const float* vector(int role, int layer) {
        const float* found = nullptr;
        each(role, layer, [&](const doge_cpu_piece& p) { found = reinterpret_cast<const float*>(file_.at(p)); });
        return found;
    }
    Linear linear(int role, int layer, int bias = 0) {
        Linear linear;
        each(role, layer, [&](const doge_cpu_piece& p) {
            linear.parts.push_back(
                {file_.at(p), p.rows, p.columns, p.kind, p.block, group_bytes(p.kind, p.block, p.columns)});
            linear.rows = p.first_row + p.rows;
            linear.columns = p.columns;
            linear.codes = linear.codes || is_code(p.kind);
        });
        if (bias != 0) linear.bias = vector(bias, layer);
        return linear;
    }
    Table table(int role, int layer) {
        Table table;
        each(role, layer, [&](const doge_cpu_piece& p) {
            table.parts.push_back(
                {file_.at(p), p.first_row, p.rows, p.kind, p.block, row_bytes(p.kind, p.block, p.columns)});
        });
        return table;
    }

   private:
    static bool before(const doge_cpu_piece& p, int role, int layer) {
        return p.layer < layer || (p.layer == layer && p.role < role);
    }

    const File& file_;
    uint32_t next_;
};

}  // namespace

float weight_at(const Matrix& m, int row, int column) {
    const uint8_t* group = m.bytes + size_t(row / LANES) * m.group;
    const int lane = row % LANES;
    if (is_code(m.kind)) {
        const uint8_t* block = group + size_t(column / m.block) * block_bytes(m.kind, m.block);
        const int k = column % m.block;
        float scale;
        std::memcpy(&scale, block + code_bytes(m.kind, m.block) + size_t(lane) * 4, sizeof scale);
        if (m.kind == DOGE_CPU_INT8) return scale * float(int(block[k / 4 * 64 + lane * 4 + k % 4]) - 128);
        const uint8_t both = block[k / 8 * 64 + lane * 4 + k % 4];
        return scale * float(int(k % 8 < 4 ? both & 15 : both >> 4) - 8);
    }
    const uint8_t* place = group + (size_t(column) * LANES + size_t(lane)) * size_t(float_bytes(m.kind));
    if (m.kind == DOGE_CPU_FLOAT32) {
        float x;
        std::memcpy(&x, place, sizeof x);
        return x;
    }
    uint16_t x;
    std::memcpy(&x, place, sizeof x);
    return m.kind == DOGE_CPU_FLOAT16 ? from_float16(x) : from_bfloat16(x);
}

void Weights::read(const File& file) {
    const doge_cpu_config& c = file.header->config;
    Reader reader(file);
    ones.assign(size_t(padded(c.hidden_size)), 1.0f);
    embedding = reader.table(DOGE_CPU_EMBEDDING, -1);
    head = reader.linear(DOGE_CPU_HEAD, -1);
    final_norm = reader.vector(DOGE_CPU_FINAL_NORM, -1);
    rope = reader.vector(DOGE_CPU_ROPE, -1);
    rope_long = reader.vector(DOGE_CPU_ROPE_LONG, -1);
    layers.resize(size_t(c.num_hidden_layers));
    for (int l = 0; l < c.num_hidden_layers; l++) {
        Layer& y = layers[size_t(l)];
        reader.begin_layer(l);
        const auto or_ones = [&](const float* found) { return found == nullptr ? ones.data() : found; };
        y.input_norm = reader.vector(DOGE_CPU_INPUT_NORM, l);
        y.query = reader.linear(DOGE_CPU_QUERY, l, DOGE_CPU_QUERY_BIAS);
        y.key = reader.linear(DOGE_CPU_KEY, l, DOGE_CPU_KEY_BIAS);
        y.value = reader.linear(DOGE_CPU_VALUE, l, DOGE_CPU_VALUE_BIAS);
        y.query_norm = reader.vector(DOGE_CPU_QUERY_NORM, l);
        y.key_norm = reader.vector(DOGE_CPU_KEY_NORM, l);
        y.score = reader.linear(DOGE_CPU_SCORE, l, DOGE_CPU_SCORE_BIAS);
        y.score_of_input = reader.linear(DOGE_CPU_SCORE_OF_INPUT, l, DOGE_CPU_SCORE_BIAS);
        y.a = reader.vector(DOGE_CPU_SCORE_A, l);
        y.output = reader.linear(DOGE_CPU_OUTPUT, l, DOGE_CPU_OUTPUT_BIAS);
        y.input_residual = or_ones(reader.vector(DOGE_CPU_INPUT_RESIDUAL, l));
        y.post_norm = reader.vector(DOGE_CPU_POST_NORM, l);
        y.gate = reader.linear(DOGE_CPU_GATE, l, DOGE_CPU_GATE_BIAS);
        y.up = reader.linear(DOGE_CPU_UP, l, DOGE_CPU_UP_BIAS);
        y.down = reader.linear(DOGE_CPU_DOWN, l, DOGE_CPU_DOWN_BIAS);
        y.post_residual = or_ones(reader.vector(DOGE_CPU_POST_RESIDUAL, l));
        y.router = reader.linear(DOGE_CPU_ROUTER, l, DOGE_CPU_ROUTER_BIAS);
        y.expert_down = reader.table(DOGE_CPU_EXPERT_DOWN, l);
        y.expert_up = reader.table(DOGE_CPU_EXPERT_UP, l);
    }
}

void Weights::embed(const Kernels& kernels, int64_t token, int hidden_size, float* out) const {
    std::memset(out, 0, size_t(padded(hidden_size)) * sizeof(float));
    if (!embedding.empty()) {
        const Table::Part* part;
        const uint8_t* row = embedding.row(int(token), part);
        kernels.row_add(row, part->kind, part->block, 0, padded(hidden_size), hidden_size, 1.0f, out);
        return;
    }
    int row = int(token);
    size_t i = 0;
    for (; row >= head.parts[i].rows; i++) row -= head.parts[i].rows;
    for (int k = 0; k < hidden_size; k++) out[k] = weight_at(head.parts[i], row, k);
}

}  // namespace doge::cpu
