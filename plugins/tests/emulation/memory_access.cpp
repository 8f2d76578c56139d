// Loads, stores, atomics, fences and asynchronous copies.
#include <algorithm>
#include <type_traits>

#include "warp.h"

namespace doge::emulation {
namespace {

enum class Space { Global, Shared, Parameter };

template <char kWidth>
using Register = std::conditional_t<kWidth == 'h', u16, std::conditional_t<kWidth == 'w', u32, u64>>;

template <Space kSpace, class Address>
char* memory_at(const Frame& frame, const Instruction& i, u32 lane, u32 bytes) {
    const u64 address = static_cast<u64>(frame.values<Address>(i.operand[0])[lane]) + static_cast<u64>(i.offset);
    if constexpr (kSpace == Space::Shared) {
        return frame.shared(i, sizeof(Address) == 4 ? static_cast<u32>(address) : address, bytes);
    } else {
        return frame.global(i, address, bytes);
    }
}

template <Space kSpace, class Address, class Memory, class Data>
void load(Frame& frame, const Instruction& i) {
    const StoreBuffer& stores = frame.warp.block->stores;
    const bool buffered = kSpace == Space::Global && !stores.empty();
    for (u32 rest = frame.lanes; rest != 0; rest &= rest - 1) {
        const auto lane = static_cast<u32>(__builtin_ctz(rest));
        const char* from = memory_at<kSpace, Address>(frame, i, lane, sizeof(Memory) * i.elements);
        Memory values[4];
        if (buffered) {
            stores.load(reinterpret_cast<u64>(from), values, sizeof(Memory) * i.elements);
        } else {
            std::memcpy(values, from, sizeof(Memory) * i.elements);
        }
        for (u32 n = 0; n < i.elements; ++n) frame.values<Data>(i.operand[1 + n])[lane] = static_cast<Data>(values[n]);
    }
}

template <Space kSpace, class Address, class Memory, class Data>
void store(Frame& frame, const Instruction& i) {
    Block& block = *frame.warp.block;
    for (u32 rest = frame.lanes; rest != 0; rest &= rest - 1) {
        const auto lane = static_cast<u32>(__builtin_ctz(rest));
        char* to = memory_at<kSpace, Address>(frame, i, lane, sizeof(Memory) * i.elements);
        Memory values[4];
        for (u32 n = 0; n < i.elements; ++n)
            values[n] = static_cast<Memory>(frame.values<Data>(i.operand[1 + n])[lane]);
        if (kSpace == Space::Global && block.keeps_stores) {
            block.stores.store(reinterpret_cast<u64>(to), values, sizeof(Memory) * i.elements, frame.warp.index);
        } else {
            std::memcpy(to, values, sizeof(Memory) * i.elements);
        }
    }
}

template <Space kSpace, class Address, class T, class Combine>
void atomic(Frame& frame, const Instruction& i) {
    for (u32 rest = frame.lanes; rest != 0; rest &= rest - 1) {
        const auto lane = static_cast<u32>(__builtin_ctz(rest));
        char* at = memory_at<kSpace, Address>(frame, i, lane, sizeof(T));
        if (kSpace == Space::Global) {
            StoreBuffer& stores = frame.warp.block->stores;
            stores.flush_at(reinterpret_cast<u64>(at));
            frame.warp.block->unfenced |= !stores.empty();
        }
        T before;
        std::memcpy(&before, at, sizeof before);
        const T after = Combine{}(before, frame.values<T>(i.operand[2])[lane], frame.values<T>(i.operand[3])[lane]);
        std::memcpy(at, &after, sizeof after);
        frame.values<T>(i.operand[1])[lane] = before;
    }
}

// A handler for the address's space and width.
template <template <Space, class> class Make>
Handler for_space(const Access& access) {
    const bool narrow = access.address_width == 'w';
    if (access.space == "shared")
        return narrow ? Make<Space::Shared, u32>::of(access) : Make<Space::Shared, u64>::of(access);
    if (narrow) return nullptr;
    if (access.space == "global") return Make<Space::Global, u64>::of(access);
    if (access.space == "param") return Make<Space::Parameter, u64>::of(access);
    return nullptr;
}

template <Space kSpace, class Address>
struct MakeLoad {
    template <class Memory>
    static Handler into(const Access& access) {
        switch (access.register_width) {
            case 'h':
                if constexpr (sizeof(Memory) <= 2) return load<kSpace, Address, Memory, u16>;
                break;
            case 'w':
                if constexpr (sizeof(Memory) <= 4) return load<kSpace, Address, Memory, u32>;
                break;
            case 'l':
                return load<kSpace, Address, Memory, u64>;
        }
        return nullptr;
    }
    static Handler of(const Access& access) {
        const std::string& type = access.type;
        const std::string bits = type.substr(1);
        if (type == "s8") return into<std::int8_t>(access);
        if (type == "s16") return into<s16>(access);
        if (type == "s32") return into<s32>(access);
        if (bits == "8") return into<std::uint8_t>(access);
        if (bits == "16") return into<u16>(access);
        if (bits == "32") return into<u32>(access);
        if (bits == "64") return into<u64>(access);
        return nullptr;
    }
};

template <Space kSpace, class Address>
struct MakeStore {
    template <class Memory>
    static Handler from(const Access& access) {
        switch (access.register_width) {
            case 'h':
                if constexpr (sizeof(Memory) <= 2) return store<kSpace, Address, Memory, u16>;
                break;
            case 'w':
                if constexpr (sizeof(Memory) <= 4) return store<kSpace, Address, Memory, u32>;
                break;
            case 'l':
                return store<kSpace, Address, Memory, u64>;
        }
        return nullptr;
    }
    static Handler of(const Access& access) {
        const std::string bits = access.type.substr(1);
        if (bits == "8") return from<std::uint8_t>(access);
        if (bits == "16") return from<u16>(access);
        if (bits == "32") return from<u32>(access);
        if (bits == "64") return from<u64>(access);
        return nullptr;
    }
};

template <class T>
struct Add {
    T operator()(T old, T value, T) const { return static_cast<T>(old + value); }
};
template <class T>
struct Minimum {
    T operator()(T old, T value, T) const { return std::min(old, value); }
};
template <class T>
struct Maximum {
    T operator()(T old, T value, T) const { return std::max(old, value); }
};
template <class T>
struct Exchange {
    T operator()(T, T value, T) const { return value; }
};
template <class T>
struct Compare {
    T operator()(T old, T expected, T value) const { return old == expected ? value : old; }
};

template <class T>
struct Increment {
    T operator()(T old, T most, T) const { return old >= most ? T{0} : static_cast<T>(old + 1); }
};

template <Space kSpace, class Address>
struct MakeAtomic {
    template <class T>
    static Handler typed(const std::string& operation) {
        if (operation == "add") return atomic<kSpace, Address, T, Add<T>>;
        if (operation == "min") return atomic<kSpace, Address, T, Minimum<T>>;
        if (operation == "max") return atomic<kSpace, Address, T, Maximum<T>>;
        if (operation == "exch") return atomic<kSpace, Address, T, Exchange<T>>;
        if (operation == "inc") return atomic<kSpace, Address, T, Increment<T>>;
        if (operation == "cas") return atomic<kSpace, Address, T, Compare<T>>;
        return nullptr;
    }
    static Handler of(const Access& access) {
        if (access.type == "s32") return typed<s32>(access.operation);
        if (access.type == "u32" || access.type == "b32") return typed<u32>(access.operation);
        if (access.type == "u64" || access.type == "b64") return typed<u64>(access.operation);
        return nullptr;
    }
};

// cp.async: the bytes arrive only when the thread waits for their group, so that a forgotten wait is seen. In random order
// odd lanes read them at once, so that a source is seen which is written too late.
void async_copy(Frame& frame, const Instruction& i) {
    const u32 bytes = i.elements;
    for (u32 rest = frame.lanes; rest != 0; rest &= rest - 1) {
        const auto lane = static_cast<u32>(__builtin_ctz(rest));
        const u32 source_bytes = std::min(frame.values<u32>(i.operand[2])[lane], bytes);
        char* shared = frame.shared(i, frame.values<u32>(i.operand[0])[lane], bytes);
        const char* global = frame.global(i, frame.values<u64>(i.operand[1])[lane], bytes);
        AsyncCopy copy{shared, global, bytes, source_bytes, frame.warp.block->keeps_stores && lane % 2 == 1, {}};
        if (copy.is_early && source_bytes > 0) {
            frame.warp.block->stores.load(reinterpret_cast<u64>(global), copy.early, source_bytes);
        }
        frame.warp.async_groups[lane].back().push_back(copy);
    }
}

void async_commit(Frame& frame, const Instruction&) {
    for (u32 rest = frame.lanes; rest != 0; rest &= rest - 1)
        frame.warp.async_groups[__builtin_ctz(rest)].emplace_back();
}

void async_wait(Frame& frame, const Instruction& i) {
    for (u32 rest = frame.lanes; rest != 0; rest &= rest - 1) {
        auto& groups = frame.warp.async_groups[__builtin_ctz(rest)];
        while (groups.size() > static_cast<std::size_t>(i.offset) + 1) {
            for (const AsyncCopy& copy : groups.front()) {
                if (copy.is_early) {
                    std::memcpy(copy.shared, copy.early, copy.source_bytes);
                } else if (copy.source_bytes > 0) {
                    frame.warp.block->stores.load(reinterpret_cast<u64>(copy.global), copy.shared, copy.source_bytes);
                }
                std::memset(copy.shared + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
            }
            groups.erase(groups.begin());
        }
    }
}

void fence(Frame& frame, const Instruction&) { frame.warp.block->stores.flush(frame.warp.index); }
void fence_within_block(Frame&, const Instruction&) {}  // the block sees its own stores at once

}  // namespace

Handler find_load(const Access& access) { return for_space<MakeLoad>(access); }
Handler find_store(const Access& access) { return access.space == "param" ? nullptr : for_space<MakeStore>(access); }
Handler find_atomic(const Access& access) { return for_space<MakeAtomic>(access); }
Handler find_async_copy() { return async_copy; }
Handler find_async_commit() { return async_commit; }
Handler find_async_wait() { return async_wait; }
Handler find_fence(bool within_block) { return within_block ? fence_within_block : fence; }

}  // namespace doge::emulation
