#include "file.h"

#include <cstring>

namespace doge::cpu {
namespace {

constexpr char MAGIC[8] = {'D', 'O', 'G', 'E', '.', 'C', 'P', 'U'};
constexpr uint32_t MOST_PIECES = 1 << 20;

uint64_t head_bytes(uint32_t piece_count) {
    return aligned(sizeof(doge_cpu_header) + uint64_t(piece_count) * sizeof(doge_cpu_piece));
}

uint64_t fnv1a(const void* data, size_t bytes, uint64_t hash) {
    const uint8_t* p = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3;
    return hash;
}

uint64_t checksum(doge_cpu_header header, const doge_cpu_piece* pieces) {
    header.checksum = 0;
    const uint64_t hash = fnv1a(&header, sizeof header, 0xcbf29ce484222325);
    return fnv1a(pieces, header.piece_count * sizeof(doge_cpu_piece), hash);
}

// Reads the table of pieces in its order: by layer, role and first row.
struct Walk {
    const doge_cpu_piece* next;
    const doge_cpu_piece* end;

    // Whether the pieces of a role make up its matrix without a gap; `present` where there are any.
    doge_cpu_status take(const Role& role, int layer, bool& present, const Message& message) {
        int64_t rows = 0;
        for (; next != end && next->role == role.role && next->layer == layer; next++) {
            if (next->first_row != rows || rows % LANES != 0)
                return message.fail(DOGE_CPU_BAD_FILE, "%s of layer %d: row %d where row %lld is expected", role.name,
                                    layer, next->first_row, static_cast<long long>(rows));
            rows += next->rows;
        }
        present = rows > 0;
        if (rows == role.rows || (rows == 0 && role.optional)) return DOGE_CPU_SUCCESS;
        return message.fail(DOGE_CPU_BAD_FILE, "%s of layer %d: %lld rows where %lld are expected", role.name, layer,
                            static_cast<long long>(rows), static_cast<long long>(role.rows));
    }
};

// Everything about pieces but their places.
doge_cpu_status check_pieces(const doge_cpu_config& config, const doge_cpu_piece* pieces, uint32_t count,
                             const Message& message) {
    if (count == 0 || count > MOST_PIECES) return message.fail(DOGE_CPU_BAD_FILE, "%u pieces", count);
    if (const char* problem = config_problem(config)) return message.fail(DOGE_CPU_UNSUPPORTED, "%s", problem);
    Role role;
    for (uint32_t i = 0; i < count; i++) {
        if (const char* problem = piece_problem(config, pieces[i], role))
            return message.fail(DOGE_CPU_BAD_FILE, "piece %u, role %d, layer %d: %s", i, pieces[i].role,
                                pieces[i].layer, problem);
    }
    Walk walk{pieces, pieces + count};
    for (int layer = -1; layer < config.num_hidden_layers; layer++) {
        bool present[64] = {};
        doge_cpu_status status = DOGE_CPU_SUCCESS;
        each_role(config, [&](const Role& r) {
            if (status == DOGE_CPU_SUCCESS && r.of_layer == (layer >= 0))
                status = walk.take(r, layer, present[r.role], message);
        });
        if (status != DOGE_CPU_SUCCESS) return status;
        if (layer < 0 && !present[DOGE_CPU_EMBEDDING] && !present[DOGE_CPU_HEAD])
            return message.fail(DOGE_CPU_BAD_FILE, "neither an embedding nor a head to read embeddings from");
        if (layer >= 0 && present[DOGE_CPU_QUERY_NORM] != present[DOGE_CPU_KEY_NORM])
            return message.fail(DOGE_CPU_BAD_FILE, "layer %d: one of query and key norm is missing", layer);
        if (layer >= 0 && config.score != DOGE_CPU_SCORE_NONE &&
            present[DOGE_CPU_SCORE] == present[DOGE_CPU_SCORE_OF_INPUT])
            return message.fail(DOGE_CPU_BAD_FILE, "layer %d: not one score matrix", layer);
    }
    if (walk.next == walk.end) return DOGE_CPU_SUCCESS;
    return message.fail(DOGE_CPU_BAD_FILE, "piece %lld stands out of order: by layer, role and first row",
                        static_cast<long long>(walk.next - pieces));
}

}  // namespace

doge_cpu_status check_file(const void* bytes, uint64_t size, File& file, const Message& message) {
    if (bytes == nullptr || reinterpret_cast<uintptr_t>(bytes) % ALIGN != 0)
        return message.fail(DOGE_CPU_BAD_ARGUMENT, "the weights must be aligned to %d bytes", ALIGN);
    if (size < sizeof(doge_cpu_header)) return message.fail(DOGE_CPU_BAD_FILE, "too short to be a weight file");
    const auto* header = static_cast<const doge_cpu_header*>(bytes);
    if (std::memcmp(header->magic, MAGIC, sizeof MAGIC) != 0) return message.fail(DOGE_CPU_BAD_FILE, "no weight file");
    if (header->layout != DOGE_CPU_LAYOUT)
        return message.fail(DOGE_CPU_BAD_FILE, "a weight file of layout %u, this library reads %d", header->layout,
                            DOGE_CPU_LAYOUT);
    const uint32_t count = header->piece_count;
    if (header->file_bytes != size || count > MOST_PIECES || head_bytes(count) > size)
        return message.fail(DOGE_CPU_BAD_FILE, "a weight file cut short or with an odd end");
    const auto* pieces = reinterpret_cast<const doge_cpu_piece*>(header + 1);
    if (checksum(*header, pieces) != header->checksum) return message.fail(DOGE_CPU_BAD_FILE, "a damaged weight file");
    if (const doge_cpu_status status = check_pieces(header->config, pieces, count, message)) return status;
    uint64_t end = head_bytes(count);
    Role role;
    for (uint32_t i = 0; i < count; i++) {  // in the order of the table, so that none overlaps another
        const doge_cpu_piece& p = pieces[i];
        find_role(header->config, p.role, role);
        if (p.bytes != piece_bytes(role.form, p) || p.offset % ALIGN != 0 || p.offset < end || p.offset > size ||
            p.bytes > size - p.offset)
            return message.fail(DOGE_CPU_BAD_FILE, "piece %u does not lie where it should", i);
        end = p.offset + p.bytes;
    }
    file = {static_cast<const uint8_t*>(bytes), header, pieces, count};
    return DOGE_CPU_SUCCESS;
}

}  // namespace doge::cpu

using namespace doge::cpu;

extern "C" uint64_t doge_cpu_plan(const doge_cpu_config* config, doge_cpu_piece* pieces, uint32_t piece_count,
                                  char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (config == nullptr || pieces == nullptr) {
        text.fail(DOGE_CPU_BAD_ARGUMENT, "no config or no pieces");
        return 0;
    }
    if (check_pieces(*config, pieces, piece_count, text) != DOGE_CPU_SUCCESS) return 0;
    uint64_t end = head_bytes(piece_count);
    Role role;
    for (uint32_t i = 0; i < piece_count; i++) {
        find_role(*config, pieces[i].role, role);
        pieces[i].offset = end;
        pieces[i].bytes = piece_bytes(role.form, pieces[i]);
        end += aligned(pieces[i].bytes);
    }
    return end;
}

extern "C" doge_cpu_status doge_cpu_write_header(const doge_cpu_config* config, const doge_cpu_piece* pieces,
                                                 uint32_t piece_count, const uint8_t source[32], void* file,
                                                 uint64_t file_bytes, char* message, size_t message_bytes) {
    const Message text{message, message_bytes};
    if (config == nullptr || pieces == nullptr || file == nullptr || piece_count > MOST_PIECES ||
        head_bytes(piece_count) > file_bytes)
        return text.fail(DOGE_CPU_BAD_ARGUMENT, "the file has no room for its header");
    doge_cpu_header header{};
    std::memcpy(header.magic, MAGIC, sizeof MAGIC);
    header.layout = DOGE_CPU_LAYOUT;
    header.piece_count = piece_count;
    header.file_bytes = file_bytes;
    if (source != nullptr) std::memcpy(header.source, source, sizeof header.source);
    header.config = *config;
    header.checksum = checksum(header, pieces);
    std::memset(file, 0, head_bytes(piece_count));
    std::memcpy(file, &header, sizeof header);
    std::memcpy(static_cast<uint8_t*>(file) + sizeof header, pieces, piece_count * sizeof(doge_cpu_piece));
    return DOGE_CPU_SUCCESS;
}
