// PTX as nvcc writes it, read into instructions whose operands are numbers of registers.
//
// A kernel's registers lie in one file, 32 lanes side by side, so that an instruction is one loop over the lanes of a
// warp. Constants and special registers (%tid.x, the address of a parameter) are registers too, set when a warp starts.
#ifndef DOGE_EMULATION_PTX_H
#define DOGE_EMULATION_PTX_H

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace doge::emulation {

using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;

constexpr u32 kLanes = 32;

// What a launch ends with that a GPU would refuse, or that the PTX forbids.
struct KernelError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Frame;  // see warp.h: a warp, and which of its lanes execute
struct Instruction;
using Handler = void (*)(Frame&, const Instruction&);

struct Instruction {
    enum class Kind {
        Plain,       // runs for any lanes
        Branch,      // goes to `target`
        Barrier,     // bar.sync: waits for the block's threads
        Collective,  // waits for the lanes of a mask: operand[mask_at], or all of them
        Visible,     // plain, and others may go first: atomics and fences
        Exit
    };
    Kind kind = Kind::Plain;
    Handler run = nullptr;
    s32 guard = -1;  // number of a predicate; -1: none
    bool guard_negated = false;
    std::array<u32, 14> operand{};  // registers, in the order of the text
    u32 elements = 1;               // of a load or store
    s32 mask_at = -1;               // of a collective; -1: all lanes
    s64 offset = 0;                 // of an address; a count
    u32 target = 0;
    int line = 0;  // in the PTX
};

// A register that is set when a warp starts.
struct Preset {
    enum class Source { Constant, Parameter, ThreadX, ThreadY, ThreadZ, Lane, Block, BlockSize, GridSize };
    Source source;
    u64 value;  // the constant; the parameter's number; 0..2 for x, y, z
    u32 slot;
    char width;  // a letter: see Operation
};

struct Kernel {
    std::string name;
    std::vector<u32> parameter_bytes;
    std::vector<Instruction> code;
    std::vector<Preset> presets;
    u32 slots = 0;       // of 32 lanes of 4 bytes each
    u32 predicates = 0;  // one word each, a bit a lane
};

// The kernels in a PTX file. An instruction that the emulator does not know is an error when its kernel is asked for.
class Module {
  public:
    explicit Module(std::string text);
    bool has(const std::string& name) const { return texts_.count(name) != 0; }
    const Kernel& kernel(const std::string& name);
    std::vector<std::string> names() const;
    const std::string& text() const { return text_; }

  private:
    struct Range {
        std::size_t begin, end;
        int line;
    };
    std::string text_;
    std::map<std::string, Range> texts_;
    std::map<std::string, std::unique_ptr<Kernel>> kernels_;
};

// --- for the files that define instructions ---

// What the operands of an instruction are, a letter each: h, w, l: 16, 32, 64 bits; p: a predicate.
struct Operation {
    Handler run;
    std::string layout;
    Instruction::Kind kind = Instruction::Kind::Plain;
    s32 mask_at = -1;
};

// Where arithmetic.cpp and warp_operations.cpp put theirs, by the whole opcode ("add.s32").
using Operations = std::map<std::string, Operation>;
void add_arithmetic(Operations& operations);
void add_warp_operations(Operations& operations);

// memory_access.cpp: handlers by what memory and registers hold; null where there is none.
struct Access {
    std::string space;    // "global", "shared", "param"
    std::string type;     // "u32"
    char register_width;  // of the data
    char address_width;
    std::string operation = {};  // of an atomic: "add"
};
Handler find_load(const Access& access);
Handler find_store(const Access& access);
Handler find_atomic(const Access& access);
Handler find_async_copy();
Handler find_async_commit();
Handler find_async_wait();
Handler find_fence(bool within_block);

}  // namespace doge::emulation
#endif
