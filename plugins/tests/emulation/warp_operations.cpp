// What a warp does together: shuffles, votes, reductions, ldmatrix and mma. All lanes of the mask are here when one
// runs.
#include <algorithm>
#include <type_traits>

#include "half.h"
#include "warp.h"

namespace doge::emulation {
namespace {

// shfl.sync d|p, a, b, c, mask: which lane is read, by the words of the PTX ISA.
enum class Shuffle { Up, Down, Butterfly, Index };

template <Shuffle kMode>
void shuffle(Frame& frame, const Instruction& i) {
    const u32 *a = frame.values<u32>(i.operand[2]), *b = frame.values<u32>(i.operand[3]),
              *c = frame.values<u32>(i.operand[4]);
    u32 result[kLanes], read = 0;
    each_lane(frame.lanes, [&](u32 lane_) {
        const int lane = static_cast<int>(lane_);
        const int b_value = static_cast<int>(b[lane] & 31), c_value = static_cast<int>(c[lane] & 31);
        const int segment = static_cast<int>(c[lane] >> 8 & 31);
        const int last = (lane & segment) | (c_value & ~segment & 31), first = lane & segment;
        int from = lane;
        bool in_segment = false;
        if constexpr (kMode == Shuffle::Up) in_segment = (from = lane - b_value) >= last;
        if constexpr (kMode == Shuffle::Down) in_segment = (from = lane + b_value) <= last;
        if constexpr (kMode == Shuffle::Butterfly) in_segment = (from = lane ^ b_value) <= last;
        if constexpr (kMode == Shuffle::Index) in_segment = (from = first | (b_value & ~segment & 31)) <= last;
        if (!in_segment) from = lane;
        if (!(frame.lanes >> from & 1)) frame.fail(i, "shfl reads a lane that is not in the mask");
        result[lane] = a[from];
        read |= static_cast<u32>(in_segment) << lane;
    });
    u32* to = frame.values<u32>(i.operand[0]);
    each_lane(frame.lanes, [&](u32 lane) { to[lane] = result[lane]; });
    u32& predicate = frame.predicate(i.operand[1]);
    predicate = (predicate & ~frame.lanes) | read;
}

void ballot(Frame& frame, const Instruction& i) {
    const u32 votes = frame.predicate(i.operand[1]) & frame.lanes;
    u32* to = frame.values<u32>(i.operand[0]);
    each_lane(frame.lanes, [&](u32 lane) { to[lane] = votes; });
}

enum class Vote { Any, All };
template <Vote kVote>
void vote(Frame& frame, const Instruction& i) {
    const u32 votes = frame.predicate(i.operand[1]) & frame.lanes;
    const bool result = kVote == Vote::Any ? votes != 0 : votes == frame.lanes;
    u32& predicate = frame.predicate(i.operand[0]);
    predicate = (predicate & ~frame.lanes) | (result ? frame.lanes : 0);
}

template <class T, class Combine>
Handler reduction(Combine) {
    return [](Frame& frame, const Instruction& i) {
        const T* values = frame.values<T>(i.operand[1]);
        u32 rest = frame.lanes;
        T total = values[__builtin_ctz(rest)];
        for (rest &= rest - 1; rest != 0; rest &= rest - 1)
            total = static_cast<T>(Combine{}(total, values[__builtin_ctz(rest)]));
        T* to = frame.values<T>(i.operand[0]);
        each_lane(frame.lanes, [&](u32 lane) { to[lane] = total; });
    };
}

void nothing(Frame&, const Instruction&) {}

// ldmatrix .x4: lane 8 m + n gives the address of row n of matrix m; lane 4 g + t receives of each matrix elements 2t
// and 2t + 1 of row g, with .trans of column g.
template <bool kTransposed>
void load_matrices(Frame& frame, const Instruction& i) {
    const u32* addresses = frame.values<u32>(i.operand[4]);
    for (u32 matrix = 0; matrix < 4; ++matrix) {
        u16 rows[8][8];
        for (u32 row = 0; row < 8; ++row) {
            const u32 address = addresses[8 * matrix + row] + static_cast<u32>(i.offset);
            std::memcpy(rows[row], frame.shared(i, address, 16), 16);
        }
        u32* to = frame.values<u32>(i.operand[matrix]);
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const u32 g = lane / 4, t = lane % 4 * 2;
            const u16 low = kTransposed ? rows[t][g] : rows[g][t];
            const u16 high = kTransposed ? rows[t + 1][g] : rows[g][t + 1];
            to[lane] = u32{high} << 16 | low;
        }
    }
}

// mma.m16n8k16 d, a, b, c. By the PTX ISA, with group g = lane / 4 and t = lane % 4:
//   element n of A (n = 0..7): row g, + 8 where n is 2, 3, 6 or 7; column 2t + n % 2, + 8 where n >= 4
//   element n of B (n = 0..3): row 2t + n % 2, + 8 where n >= 2; column g
//   element n of C and D (n = 0..3): row g, + 8 where n >= 2; column 2t + n % 2
template <class Convert>
Handler multiply(Convert) {
    return [](Frame& frame, const Instruction& i) {
        float a[16][16], b[16][8];
        for (u32 lane = 0; lane < kLanes; ++lane) {
            const u32 g = lane / 4, t = lane % 4;
            for (u32 n = 0; n < 8; ++n) {
                const u32 word = frame.values<u32>(i.operand[4 + n / 2])[lane];
                a[g + (n / 2 % 2) * 8][2 * t + n % 2 + n / 4 * 8] = Convert{}(static_cast<u16>(word >> n % 2 * 16));
            }
            for (u32 n = 0; n < 4; ++n) {
                const u32 word = frame.values<u32>(i.operand[8 + n / 2])[lane];
                b[2 * t + n % 2 + n / 2 * 8][g] = Convert{}(static_cast<u16>(word >> n % 2 * 16));
            }
        }
        float products[16][8] = {};
        for (u32 row = 0; row < 16; ++row) {
            for (u32 k = 0; k < 16; ++k) {
                for (u32 column = 0; column < 8; ++column) products[row][column] += a[row][k] * b[k][column];
            }
        }
        for (u32 n = 0; n < 4; ++n) {
            const float* c = frame.values<float>(i.operand[10 + n]);
            float* d = frame.values<float>(i.operand[n]);
            for (u32 lane = 0; lane < kLanes; ++lane) {
                d[lane] = products[lane / 4 + n / 2 * 8][lane % 4 * 2 + n % 2] + c[lane];
            }
        }
    };
}

}  // namespace

void add_warp_operations(Operations& all) {
    constexpr auto together = Instruction::Kind::Collective;
    const auto add_shuffle = [&](const char* mode, Handler run) {
        all[std::string("shfl.sync.") + mode + ".b32"] = {run, "wpwwww", together, 5};
    };
    add_shuffle("up", shuffle<Shuffle::Up>);
    add_shuffle("down", shuffle<Shuffle::Down>);
    add_shuffle("bfly", shuffle<Shuffle::Butterfly>);
    add_shuffle("idx", shuffle<Shuffle::Index>);
    all["vote.sync.ballot.b32"] = {ballot, "wpw", together, 2};
    all["vote.sync.any.pred"] = {vote<Vote::Any>, "ppw", together, 2};
    all["vote.sync.all.pred"] = {vote<Vote::All>, "ppw", together, 2};
    all["bar.warp.sync"] = {nothing, "w", together, 0};
    const auto add_reduction = [&](const std::string& name, Handler run) {
        all["redux.sync." + name] = {run, "www", together, 2};
    };
    add_reduction("add.u32", reduction<u32>([](u32 a, u32 b) { return a + b; }));
    add_reduction("add.s32", reduction<u32>([](u32 a, u32 b) { return a + b; }));
    add_reduction("min.u32", reduction<u32>([](u32 a, u32 b) { return std::min(a, b); }));
    add_reduction("min.s32", reduction<s32>([](s32 a, s32 b) { return std::min(a, b); }));
    add_reduction("max.u32", reduction<u32>([](u32 a, u32 b) { return std::max(a, b); }));
    add_reduction("max.s32", reduction<s32>([](s32 a, s32 b) { return std::max(a, b); }));
    add_reduction("and.b32", reduction<u32>([](u32 a, u32 b) { return a & b; }));
    add_reduction("or.b32", reduction<u32>([](u32 a, u32 b) { return a | b; }));
    all["ldmatrix.sync.aligned.m8n8.x4.shared.b16"] = {load_matrices<false>, "wwwww", together, -1};
    all["ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"] = {load_matrices<true>, "wwwww", together, -1};
    const std::string mma = "mma.sync.aligned.m16n8k16.row.col.f32.";
    const Operation half{multiply([](u16 x) { return half_to_float(x); }), std::string(14, 'w'), together, -1};
    const Operation bfloat{multiply([](u16 x) { return bfloat16_to_float(x); }), std::string(14, 'w'), together, -1};
    all[mma + "f16.f16.f32"] = half;
    all[mma + "bf16.bf16.f32"] = bfloat;
}

}  // namespace doge::emulation
