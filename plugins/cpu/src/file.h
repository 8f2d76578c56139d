// A weight file, checked.
#pragma once
#include "layout.h"
#include "message.h"

namespace doge::cpu {

// A file of which everything but the weights themselves has been checked: header, sizes, and that every piece lies inside
// it, apart from the others and aligned.
struct File {
    const uint8_t* bytes = nullptr;
    const doge_cpu_header* header = nullptr;
    const doge_cpu_piece* pieces = nullptr;
    uint32_t piece_count = 0;

    const uint8_t* at(const doge_cpu_piece& piece) const { return bytes + piece.offset; }
};

doge_cpu_status check_file(const void* bytes, uint64_t size, File& file, const Message& message);

}  // namespace doge::cpu
