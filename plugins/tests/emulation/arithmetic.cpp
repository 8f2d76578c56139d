// What an instruction does with the registers of one lane: arithmetic, comparisons, conversions, moves.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "half.h"
#include "warp.h"

namespace doge::emulation {
namespace {

template <class T>
constexpr char letter = std::is_same_v<T, bool> ? 'p'
                        : sizeof(T) == 2        ? 'h'
                        : sizeof(T) == 4        ? 'w'
                                                : 'l';

// A register as a source of one lane's instruction.
template <class T>
struct Source {
    const T* values;
    Source(const Frame& frame, u32 number) : values(frame.values<T>(number)) {}
    T operator[](u32 lane) const { return values[lane]; }
};
template <>
struct Source<bool> {
    u32 bits;
    Source(const Frame& frame, u32 number) : bits(frame.predicate(number)) {}
    bool operator[](u32 lane) const { return (bits >> lane & 1) != 0; }
};

template <class D, class Function, class... Sources>
void apply(Frame& frame, u32 to, Sources... sources) {
    if constexpr (std::is_same_v<D, bool>) {
        u32 bits = 0;
        each_lane(frame.lanes, [&](u32 lane) { bits |= u32{Function{}(sources[lane]...)} << lane; });
        frame.predicate(to) = (frame.predicate(to) & ~frame.lanes) | bits;
    } else {
        D* values = frame.values<D>(to);
        each_lane(frame.lanes, [&](u32 lane) { values[lane] = static_cast<D>(Function{}(sources[lane]...)); });
    }
}

template <class D, class Function, class... Sources, std::size_t... kIndex>
Handler handler_of(std::index_sequence<kIndex...>) {
    return [](Frame& frame, const Instruction& i) {
        apply<D, Function>(frame, i.operand[0], Source<Sources>(frame, i.operand[1 + kIndex])...);
    };
}

// d = function(sources...): the handler and the layout of a function of one lane.
template <class D, class... Sources, class Function>
Operation lanewise(Function) {
    return {handler_of<D, Function, Sources...>(std::index_sequence_for<Sources...>{}),
            std::string{letter<D>, letter<Sources>...}};
}

template <class T>
T shifted_left(T x, u32 count) {
    return count < 8 * sizeof(T) ? static_cast<T>(x << count) : T{0};
}
template <class T>
T shifted_right(T x, u32 count) {  // of a signed number the sign fills
    return static_cast<T>(x >> std::min<u32>(count, 8 * sizeof(T) - 1) >>
                          (std::is_unsigned_v<T> && count >= 8 * sizeof(T) ? 1 : 0));
}

template <class T>
T with_field(T field, T into, u32 position, u32 length) {
    position &= 255;
    length &= 255;
    T mask = 0;
    for (u32 bit = position; bit < std::min<u32>(position + length, 8 * sizeof(T)); ++bit) mask |= T{1} << bit;
    return static_cast<T>((into & ~mask) | (shifted_left(field, position) & mask));
}

float rounded_down(float x, float y, float z) {         // x * y + z
    const double product = static_cast<double>(x) * y;  // exact
    const double sum = product + z;
    float result = static_cast<float>(sum);
    // What the sum's own rounding lost: two-sum.
    const double of_z = sum - product, lost = (product - (sum - of_z)) + (z - of_z);
    if (static_cast<double>(result) > sum || (static_cast<double>(result) == sum && lost < 0)) {
        result = std::nextafterf(result, -std::numeric_limits<float>::infinity());
    }
    return result;
}

float rounded_to_zero(float x, float y) {  // x + y
    const double sum = static_cast<double>(x) + y;
    const float result = static_cast<float>(sum);
    // What the sum's own rounding lost: two-sum.
    const double of_y = sum - x, lost = (x - (sum - of_y)) + (y - of_y);
    const double beyond = (static_cast<double>(result) - sum) - lost;  // its sign is that of the difference
    const bool is_larger = result > 0 ? beyond > 0 : beyond < 0;
    return is_larger && std::isfinite(sum) ? std::nextafterf(result, 0.0f) : result;
}

template <class T>
void add_comparisons(Operations& all, const std::string& type) {
    const auto add = [&](const std::string& name, const Operation& operation) {
        all["setp." + name + "." + type] = operation;
    };
    add("eq", lanewise<bool, T, T>([](T a, T b) { return a == b; }));
    add("ne", lanewise<bool, T, T>([](T a, T b) { return a != b; }));
    add("lt", lanewise<bool, T, T>([](T a, T b) { return a < b; }));
    add("le", lanewise<bool, T, T>([](T a, T b) { return a <= b; }));
    add("gt", lanewise<bool, T, T>([](T a, T b) { return a > b; }));
    add("ge", lanewise<bool, T, T>([](T a, T b) { return a >= b; }));
}

template <class T>
void add_integer(Operations& all, const std::string& type) {
    using U = std::make_unsigned_t<T>;
    const auto add = [&](const std::string& name, const Operation& operation) { all[name + "." + type] = operation; };
    add("add", lanewise<T, T, T>([](T a, T b) { return U(a) + U(b); }));
    add("sub", lanewise<T, T, T>([](T a, T b) { return U(a) - U(b); }));
    add("mul.lo", lanewise<T, T, T>([](T a, T b) { return U(a) * U(b); }));
    add("mad.lo", lanewise<T, T, T, T>([](T a, T b, T c) { return U(a) * U(b) + U(c); }));
    add("min", lanewise<T, T, T>([](T a, T b) { return std::min(a, b); }));
    add("max", lanewise<T, T, T>([](T a, T b) { return std::max(a, b); }));
    add("neg", lanewise<T, T>([](T a) { return U(0) - U(a); }));
    // A GPU does not trap where the CPU does.
    add("div", lanewise<T, T, T>([](T a, T b) {
            return b == 0 ? T(-1) : b == T(-1) && std::is_signed_v<T> ? T(U(0) - U(a)) : a / b;
        }));
    add("rem", lanewise<T, T, T>([](T a, T b) {
            return b == 0 ? a : b == T(-1) && std::is_signed_v<T> ? T(0) : a % b;
        }));
    add("shr", lanewise<T, T, u32>([](T a, u32 n) { return shifted_right(a, n); }));
    add_comparisons<T>(all, type);
    if constexpr (sizeof(T) == 4) {
        using Wide = std::conditional_t<std::is_signed_v<T>, s64, u64>;
        add("mul.wide", lanewise<Wide, T, T>([](T a, T b) { return Wide{a} * Wide{b}; }));
        add("mul.hi", lanewise<T, T, T>([](T a, T b) { return Wide{a} * Wide{b} >> 32; }));
        add("mad.wide", lanewise<Wide, T, T, Wide>([](T a, T b, Wide c) {
                return static_cast<u64>(Wide{a} * Wide{b}) + static_cast<u64>(c);
            }));
    }
}

template <class T>
void add_bits(Operations& all, const std::string& type) {
    const auto add = [&](const std::string& name, const Operation& operation) { all[name + "." + type] = operation; };
    add("and", lanewise<T, T, T>([](T a, T b) { return static_cast<T>(a & b); }));
    add("or", lanewise<T, T, T>([](T a, T b) { return static_cast<T>(a | b); }));
    add("xor", lanewise<T, T, T>([](T a, T b) { return static_cast<T>(a ^ b); }));
    add("not", lanewise<T, T>([](T a) { return static_cast<T>(~a); }));
    add("shl", lanewise<T, T, u32>([](T a, u32 n) { return shifted_left(a, n); }));
    add("shr", lanewise<T, T, u32>([](T a, u32 n) { return shifted_right(a, n); }));
    add("setp.eq", lanewise<bool, T, T>([](T a, T b) { return a == b; }));
    add("setp.ne", lanewise<bool, T, T>([](T a, T b) { return a != b; }));
    if constexpr (sizeof(T) >= 4) {
        add("bfi", lanewise<T, T, T, u32, u32>([](T a, T b, u32 at, u32 n) { return with_field(a, b, at, n); }));
    }
    // Named by the width of the register, whatever the type is called.
    const std::string width(1, letter<T>);
    all["mov." + width] = lanewise<T, T>([](T a) { return a; });
    all["selp." + width] = lanewise<T, T, T, bool>([](T a, T b, bool first) { return first ? a : b; });
}

void add_predicates(Operations& all) {
    all["mov.p"] = lanewise<bool, bool>([](bool a) { return a; });
    all["not.pred"] = lanewise<bool, bool>([](bool a) { return !a; });
    all["and.pred"] = lanewise<bool, bool, bool>([](bool a, bool b) { return a && b; });
    all["or.pred"] = lanewise<bool, bool, bool>([](bool a, bool b) { return a || b; });
    all["xor.pred"] = lanewise<bool, bool, bool>([](bool a, bool b) { return a != b; });
}

void add_floats(Operations& all) {
    const auto add = [&](const std::string& name, const Operation& operation) {
        for (const char* middle : {"", ".rn"}) all[name + middle + ".f32"] = operation;
    };
    add("add", lanewise<float, float, float>([](float a, float b) { return a + b; }));
    add("sub", lanewise<float, float, float>([](float a, float b) { return a - b; }));
    add("mul", lanewise<float, float, float>([](float a, float b) { return a * b; }));
    add("fma", lanewise<float, float, float, float>([](float a, float b, float c) { return std::fma(a, b, c); }));
    add("div", lanewise<float, float, float>([](float a, float b) { return a / b; }));
    add("rcp", lanewise<float, float>([](float a) { return 1.0f / a; }));
    add("sqrt", lanewise<float, float>([](float a) { return std::sqrt(a); }));
    add("neg", lanewise<float, float>([](float a) { return -a; }));
    add("abs", lanewise<float, float>([](float a) { return std::fabs(a); }));
    add("min", lanewise<float, float, float>([](float a, float b) { return std::fmin(a, b); }));
    add("max", lanewise<float, float, float>([](float a, float b) { return std::fmax(a, b); }));
    for (const char* name : {"ex2.approx", "ex2.approx.ftz"}) {
        all[std::string(name) + ".f32"] = lanewise<float, float>([](float a) { return std::exp2(a); });
    }
    all["fma.rm.f32"] =
        lanewise<float, float, float, float>([](float a, float b, float c) { return rounded_down(a, b, c); });
    all["add.rz.f32"] = lanewise<float, float, float>([](float a, float b) { return rounded_to_zero(a, b); });
    all["cvt.sat.f32.f32"] = lanewise<float, float>([](float a) { return a > 0.0f ? std::min(a, 1.0f) : 0.0f; });
    const auto compare = [&](const char* name, const char* or_unordered, auto holds, auto holds_not) {
        all[std::string("setp.") + name + ".f32"] = lanewise<bool, float, float>(holds);
        all[std::string("setp.") + or_unordered + ".f32"] = lanewise<bool, float, float>(holds_not);
    };
    // An ordered comparison is false where there is a NaN, an unordered one true: not the opposite of the first.
    compare("eq", "equ", [](float a, float b) { return a == b; }, [](float a, float b) { return !(a < b || a > b); });
    compare("ne", "neu", [](float a, float b) { return a < b || a > b; }, [](float a, float b) { return !(a == b); });
    compare("lt", "ltu", [](float a, float b) { return a < b; }, [](float a, float b) { return !(a >= b); });
    compare("le", "leu", [](float a, float b) { return a <= b; }, [](float a, float b) { return !(a > b); });
    compare("gt", "gtu", [](float a, float b) { return a > b; }, [](float a, float b) { return !(a <= b); });
    compare("ge", "geu", [](float a, float b) { return a >= b; }, [](float a, float b) { return !(a < b); });
    compare(
        "num", "nan", [](float a, float b) { return a == a && b == b; },
        [](float a, float b) { return a != a || b != b; });
}

template <class To, class From>
void add_conversion(Operations& all, const std::string& name) {
    all["cvt." + name] = lanewise<To, From>([](From x) { return static_cast<To>(x); });
}

void add_conversions(Operations& all) {
    add_conversion<u32, u16>(all, "u32.u16");
    add_conversion<s32, s16>(all, "s32.s16");
    add_conversion<u64, u16>(all, "u64.u16");
    add_conversion<u16, u32>(all, "u16.u32");
    add_conversion<u16, u64>(all, "u16.u64");
    add_conversion<u64, u32>(all, "u64.u32");
    add_conversion<s64, s32>(all, "s64.s32");
    add_conversion<u32, u64>(all, "u32.u64");
    add_conversion<float, u32>(all, "rn.f32.u32");
    add_conversion<float, s32>(all, "rn.f32.s32");
    all["cvt.f32.f16"] = lanewise<float, u16>([](u16 x) { return half_to_float(x); });
    all["cvt.rn.f16.f32"] = lanewise<u16, float>([](float x) { return float_to_half(x); });
    all["cvt.rn.bf16.f32"] = lanewise<u16, float>([](float x) { return float_to_bfloat16(x); });
    // The first source goes to the upper half.
    all["cvt.rn.f16x2.f32"] =
        lanewise<u32, float, float>([](float a, float b) { return u32{float_to_half(a)} << 16 | float_to_half(b); });
    all["cvt.rn.bf16x2.f32"] = lanewise<u32, float, float>(
        [](float a, float b) { return u32{float_to_bfloat16(a)} << 16 | float_to_bfloat16(b); });
}

void add_words(Operations& all) {
    all["mov.b32.pack"] = lanewise<u32, u16, u16>([](u16 low, u16 high) { return u32{high} << 16 | low; });
    all["mov.b64.pack"] = lanewise<u64, u32, u32>([](u32 low, u32 high) { return u64{high} << 32 | low; });
    const auto unpack = [](auto half_of, auto whole_of) {
        using Half = decltype(half_of);
        using Whole = decltype(whole_of);
        const Handler run = [](Frame& frame, const Instruction& i) {
            Half *low = frame.values<Half>(i.operand[0]), *high = frame.values<Half>(i.operand[1]);
            const Whole* from = frame.values<Whole>(i.operand[2]);
            each_lane(frame.lanes, [&](u32 lane) {
                const Whole whole = from[lane];
                low[lane] = static_cast<Half>(whole);
                high[lane] = static_cast<Half>(whole >> 8 * sizeof(Half));
            });
        };
        return Operation{run, std::string{letter<Half>, letter<Half>, letter<Whole>}};
    };
    all["mov.b32.unpack"] = unpack(u16{}, u32{});
    all["mov.b64.unpack"] = unpack(u32{}, u64{});
    all["clz.b32"] = lanewise<u32, u32>([](u32 x) { return x == 0 ? 32 : __builtin_clz(x); });
    all["popc.b32"] = lanewise<u32, u32>([](u32 x) { return __builtin_popcount(x); });
    all["popc.b64"] = lanewise<u32, u64>([](u64 x) { return __builtin_popcountll(x); });
    all["bfind.shiftamt.u32"] = lanewise<u32, u32>([](u32 x) { return x == 0 ? -1 : __builtin_clz(x); });
    all["brev.b32"] = lanewise<u32, u32>([](u32 x) {
        u32 reversed = 0;
        for (u32 bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1) << (31 - bit);
        return reversed;
    });
    for (const char* name : {"cvta.to.global.u64", "cvta.global.u64"})
        all[name] = lanewise<u64, u64>([](u64 x) { return x; });
}

}  // namespace

void add_arithmetic(Operations& all) {
    add_comparisons<u16>(all, "u16");
    add_comparisons<s16>(all, "s16");
    add_integer<u32>(all, "u32");
    add_integer<s32>(all, "s32");
    add_integer<u64>(all, "u64");
    add_integer<s64>(all, "s64");
    add_bits<u16>(all, "b16");
    add_bits<u32>(all, "b32");
    add_bits<u64>(all, "b64");
    add_predicates(all);
    add_floats(all);
    add_conversions(all);
    add_words(all);
}

}  // namespace doge::emulation
