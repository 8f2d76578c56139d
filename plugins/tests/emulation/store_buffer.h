// Stores to global memory that other blocks do not see yet.
//
// A GPU promises nothing about when another block sees a store, unless a fence comes in between. Here it sees it at the
// fence of the warp that stored, or when the block has ended: the latest possible time, so that a forgotten fence
// shows.
#ifndef DOGE_EMULATION_STORE_BUFFER_H
#define DOGE_EMULATION_STORE_BUFFER_H

#include <cstdint>
#include <cstring>
#include <unordered_map>

namespace doge::emulation {

class StoreBuffer {
  public:
    void store(std::uint64_t address, const void* from, std::uint32_t bytes, std::uint32_t warp) {
        if (address < first_) first_ = address;
        if (address + bytes > end_) end_ = address + bytes;
        for (std::uint32_t n = 0; n < bytes; ++n) {
            Line& line = lines_[(address + n) / kLine];
            const auto at = (address + n) % kLine;
            line.bytes[at] = static_cast<const char*>(from)[n];
            line.there |= std::uint64_t{1} << at;
            line.warp = warp;
        }
    }

    // What the block itself sees.
    void load(std::uint64_t address, void* to, std::uint32_t bytes) const {
        std::memcpy(to, reinterpret_cast<const void*>(address), bytes);
        if (address >= end_ || address + bytes <= first_) return;
        for (std::uint32_t n = 0; n < bytes; ++n) {
            const auto found = lines_.find((address + n) / kLine);
            if (found == lines_.end()) continue;
            const auto at = (address + n) % kLine;
            if (found->second.there >> at & 1) static_cast<char*>(to)[n] = found->second.bytes[at];
        }
    }

    bool empty() const { return lines_.empty(); }

    // Makes stores of a warp seen by all.
    void flush(std::uint32_t warp) {
        for (auto line = lines_.begin(); line != lines_.end();) {
            line = line->second.warp == warp ? write(line) : std::next(line);
        }
        forget_if_empty();
    }
    // Of one address, whoever stored.
    void flush_at(std::uint64_t address) {
        const auto found = lines_.find(address / kLine);
        if (found != lines_.end()) write(found);
        forget_if_empty();
    }
    void flush_all() {
        for (auto line = lines_.begin(); line != lines_.end();) line = write(line);
        forget_if_empty();
    }

  private:
    static constexpr std::uint64_t kLine = 64;
    struct Line {
        char bytes[kLine];
        std::uint64_t there = 0;
        std::uint32_t warp = 0;  // the last to store
    };
    using Lines = std::unordered_map<std::uint64_t, Line>;

    Lines::iterator write(Lines::iterator line) {
        char* memory = reinterpret_cast<char*>(line->first * kLine);
        for (std::uint64_t at = 0; at < kLine; ++at) {
            if (line->second.there >> at & 1) memory[at] = line->second.bytes[at];
        }
        return lines_.erase(line);
    }
    void forget_if_empty() {
        if (!lines_.empty()) return;
        first_ = ~std::uint64_t{0};
        end_ = 0;
    }

    Lines lines_;
    std::uint64_t first_ = ~std::uint64_t{0}, end_ = 0;
};

}  // namespace doge::emulation
#endif
