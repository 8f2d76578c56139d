// Does the emulator do what the PTX ISA says, and does it see what must not be? On PTX written by hand.
#include "ptx.h"

#include <cstring>
#include <string>
#include <vector>

#include "half.h"
#include "testing.h"

using namespace doge::emulation;

namespace {

// A kernel of one parameter, the address of the results (%rd1). %r1 is the thread; a word a thread is its %r0.
std::string kernel_of(const std::string& body) {
    return R"(.version 9.0
.target sm_89
.visible .entry test(
    .param .u64 test_param_0
)
{
    .reg .pred %p<8>; .reg .b16 %rs<8>; .reg .f32 %f<40>; .reg .b32 %r<40>; .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [test_param_0];
    cvta.to.global.u64 %rd1, %rd0;
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd2, %rd1, %rd2;
    mov.u32 %r0, 0;
)" + body + R"(
    st.global.u32 [%rd2], %r0;
    ret;
}
)";
}

std::vector<u32> run(const std::string& body, u32 threads, std::size_t shared_bytes = 0, Size grid = {1, 1, 1}) {
    Module module(kernel_of(body));
    DeviceBuffer<u32> results(threads);
    u32* address = results.data();
    void* arguments[] = {&address};
    run_grid(module.kernel("test"), grid, {threads, 1, 1}, shared_bytes, arguments);
    return results.host();
}

void one_lane() {
    const struct {
        const char* text;
        u32 expected;
    } cases[] = {
        {"mov.u32 %r0, -7; div.s32 %r0, %r0, 2;", u32(-3)},
        {"mov.u32 %r2, -7; rem.s32 %r0, %r2, 4;", u32(-3)},
        {"mov.u32 %r2, -2; mul.hi.s32 %r0, %r2, 1431655766;", u32(-1)},
        {"mov.u32 %r2, -1; shr.s32 %r0, %r2, 40;", ~0u},
        {"mov.u32 %r2, -1; shr.u32 %r0, %r2, 40;", 0},
        {"mov.u32 %r2, 3; shl.b32 %r0, %r2, 32;", 0},
        {"mov.u32 %r2, 5; mov.u32 %r3, 0xFFFF; bfi.b32 %r0, %r2, %r3, 4, 8;", 0xF05F},
        {"mov.u32 %r2, 0x00010000; bfind.shiftamt.u32 %r0, %r2;", 15},
        {"mov.u32 %r2, 0; bfind.shiftamt.u32 %r0, %r2;", ~0u},
        {"mov.u32 %r2, 3; brev.b32 %r0, %r2;", 0xC0000000},
        {"mov.u32 %r2, 1; clz.b32 %r0, %r2;", 31},
        {"mov.u32 %r2, 255; popc.b32 %r0, %r2;", 8},
        {"mov.u32 %r2, 9; mov.u32 %r3, -1; setp.lt.s32 %p1, %r3, %r2; selp.b32 %r0, 1, 2, %p1;", 1},
        {"mov.u32 %r2, 9; mov.u32 %r3, -1; setp.lt.u32 %p1, %r3, %r2; selp.b32 %r0, 1, 2, %p1;", 2},
        {"mov.f32 %f1, 0f7FC00000; setp.lt.f32 %p1, %f1, 0f3F800000; selp.b32 %r0, 1, 2, %p1;", 2},
        {"mov.f32 %f1, 0f7FC00000; setp.geu.f32 %p1, %f1, 0f3F800000; selp.b32 %r0, 1, 2, %p1;", 1},
        {"mov.f32 %f1, 0f7FC00000; max.f32 %f2, %f1, 0f3F800000; mov.b32 %r0, %f2;", 0x3F800000},
        {"mov.f32 %f1, 0f7FC00000; cvt.sat.f32.f32 %f2, %f1; mov.b32 %r0, %f2;", 0},
        {"mov.f32 %f1, 0f40400000; ex2.approx.ftz.f32 %f2, %f1; mov.b32 %r0, %f2;", 0x41000000},
        {"mov.f32 %f1, 0f3F800001; fma.rm.f32 %f2, %f1, %f1, 0f00000000; mov.b32 %r0, %f2;", 0x3F800002},
        {"mov.f32 %f1, 0fBF800001; mov.f32 %f3, 0f3F800001; fma.rm.f32 %f2, %f1, %f3, 0f00000000; mov.b32 %r0, %f2;",
         0xBF800003},
        // 1 + 2^-24 + 2^-30, and the same below zero: to nearest it would be the next number.
        {"mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f33820000; add.rz.f32 %f3, %f1, %f2; mov.b32 %r0, %f3;", 0x3F800000},
        {"mov.f32 %f1, 0fBF800000; mov.f32 %f2, 0fB3820000; add.rz.f32 %f3, %f1, %f2; mov.b32 %r0, %f3;", 0xBF800000},
        // 1 - 2^-60 is not 1 then, though a double cannot tell.
        {"mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0fA1800000; add.rz.f32 %f3, %f1, %f2; mov.b32 %r0, %f3;", 0x3F7FFFFF},
        {"mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f40000000; cvt.rn.f16x2.f32 %r0, %f2, %f1;", 0x40003C00},
        {"mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f40000000; cvt.rn.bf16x2.f32 %r0, %f2, %f1;", 0x40003F80},
        {"mov.u16 %rs1, 0x4000; cvt.f32.f16 %f1, %rs1; mov.b32 %r0, %f1;", 0x40000000},
        {"mov.u32 %r2, 0x00030002; mov.b32 {%rs1, %rs2}, %r2; mov.b32 %r0, {%rs2, %rs1};", 0x00020003},
        {"mov.u32 %r2, -5; cvt.s64.s32 %rd3, %r2; shr.s64 %rd3, %rd3, 32; cvt.u32.u64 %r0, %rd3;", ~0u},
        {"mov.u32 %r2, -5; mul.wide.s32 %rd3, %r2, 3; { mov.b64 {%r3, %r4}, %rd3; } add.s32 %r0, %r3, %r4;", u32(-16)},
        {"setp.eq.s32 %p1, %r1, 0; @!%p1 bra $other; mov.u32 %r0, 4; $other: @%p1 add.s32 %r0, %r0, 1;", 5},
        {"mov.u32 %r2, 3; st.shared.u32 [%r1+4], %r2; mov.u32 %r3, 4; atom.shared.add.u32 %r4, [%r3], 6; "
         "ld.shared.u32 %r5, [%r3]; mad.lo.s32 %r0, %r5, 10, %r4;",
         93},
        {"mov.u32 %r3, 0; mov.u32 %r4, 7; st.shared.v2.u32 [%r3], {%r4, %r4}; ld.shared.s8 %r0, [%r3+4];", 7},
    };
    for (const auto& [text, expected] : cases) {
        const u32 seen = run(text, 1, 64)[0];
        CHECK(seen == expected, std::string(text) + " gives " + std::to_string(seen));
    }
}

void lanes_together() {
    const auto check = [](const char* text, u32 (*expected)(u32 lane)) {
        under_every_schedule([&](const char* name) {
            const std::vector<u32> seen = run(text, 64);
            for (u32 thread = 0; thread < 64; ++thread) {
                CHECK(seen[thread] == expected(thread % 32), std::string(name) + ": " + text + ": thread " +
                                                                 std::to_string(thread) + " has " +
                                                                 std::to_string(seen[thread]));
            }
        });
    };
    const std::string lane = "and.b32 %r2, %r1, 31; ";
    check((lane + "shfl.sync.idx.b32 %r0, %r2, 7, 31, -1;").c_str(), [](u32) -> u32 { return 7; });
    check((lane + "shfl.sync.up.b32 %r0|%p1, %r2, 1, 0, -1;").c_str(), [](u32 l) -> u32 { return l == 0 ? 0 : l - 1; });
    check((lane + "shfl.sync.down.b32 %r0|%p1, %r2, 3, 0x181F, -1;").c_str(),  // segments of 8
          [](u32 l) -> u32 { return l % 8 + 3 < 8 ? l + 3 : l; });
    check((lane + "shfl.sync.bfly.b32 %r0|%p1, %r2, 5, 31, -1;").c_str(), [](u32 l) -> u32 { return l ^ 5; });
    check((lane + "rem.u32 %r3, %r2, 3; setp.eq.s32 %p1, %r3, 0; vote.sync.ballot.b32 %r0, %p1, -1;").c_str(),
          [](u32) -> u32 { return 0x49249249; });
    check((lane + "redux.sync.add.u32 %r0, %r2, -1;").c_str(), [](u32) -> u32 { return 496; });
    check((lane + "neg.s32 %r2, %r2; redux.sync.max.s32 %r0, %r2, -1;").c_str(), [](u32) -> u32 { return 0; });
    check((lane + "setp.lt.u32 %p1, %r2, 4; @!%p1 bra $rest; shfl.sync.bfly.b32 %r0, %r2, 1, 31, 15; bra $end; "
                  "$rest: shfl.sync.bfly.b32 %r0, %r2, 2, 31, 0xFFFFFFF0; $end:")
              .c_str(),
          [](u32 l) -> u32 { return l < 4 ? l ^ 1 : l ^ 2; });
}

// Small integers, so that every sum is exact; against the definition of the product, not of the fragments.
void matrices() {
    for (const bool transposed : {false, true}) {
        // Word w of a thread holds numbers 8 thread + 2 w, + 1 of shared memory: row `thread` of matrix thread / 8.
        std::string body = "shl.b32 %r2, %r1, 4; mul.lo.s32 %r3, %r1, 8; ";
        for (int word = 0; word < 4; ++word) {
            body += "mad.lo.s32 %r4, %r3, 65537, " + std::to_string((2 * word + 1) * 65536 + 2 * word) +
                    "; st.shared.u32 [%r2+" + std::to_string(4 * word) + "], %r4; ";
        }
        body += "bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.x4" + std::string(transposed ? ".trans" : "") +
                ".shared.b16 {%r10, %r11, %r12, %r13}, [%r2]; ";
        for (u32 matrix = 0; matrix < 4; ++matrix) {
            const std::vector<u32> seen = run(body + "mov.u32 %r0, %r1" + std::to_string(matrix) + ";", 32, 512);
            for (u32 lane = 0; lane < 32; ++lane) {
                const u32 row = lane / 4, column = lane % 4 * 2;
                const u32 low = 64 * matrix + (transposed ? 8 * column + row : 8 * row + column);
                const u32 high = low + (transposed ? 8 : 1);
                CHECK(seen[lane] == (high << 16 | low), "ldmatrix, matrix " + std::to_string(matrix));
            }
        }
    }
    // A = one at (i, k), B = one at (k, j): D has a one at (i, j) alone. Every place of both once.
    for (u32 i = 0; i < 16; i += 5) {
        for (u32 k = 0; k < 16; k += 3) {
            for (u32 j = 0; j < 8; ++j) {
                // By the ISA's tables: the lane, word and half that hold an element.
                const u32 a_lane = i % 8 * 4 + k % 8 / 2, a_word = i / 8 + k / 8 * 2, a_half = k % 2;
                const u32 b_lane = j * 4 + k % 8 / 2, b_word = k / 8, b_half = k % 2;
                const auto one_at = [](u32 lane, u32 reg, u32 half) {
                    return "setp.eq.s32 %p1, %r1, " + std::to_string(lane) + "; selp.b32 %r" + std::to_string(reg) +
                           ", " + std::to_string(half ? 0x3C000000 : 0x3C00) + ", 0, %p1; ";
                };
                std::string body;
                for (u32 reg = 10; reg < 16; ++reg) body += "mov.u32 %r" + std::to_string(reg) + ", 0; ";
                body += one_at(a_lane, 10 + a_word, a_half) + one_at(b_lane, 14 + b_word, b_half);
                body +=
                    "mov.f32 %f9, 0f40000000; mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1, %f2, %f3, %f4}, "
                    "{%r10, "
                    "%r11, %r12, %r13}, {%r14, %r15}, {%f9, %f9, %f9, %f9}; ";
                body += "mov.b32 %r0, %f" + std::to_string(1 + i / 8 * 2 + j % 2) + ";";
                const std::vector<u32> seen = run(body, 32);
                for (u32 lane = 0; lane < 32; ++lane) {
                    const float expected = lane == i % 8 * 4 + j / 2 ? 3.0f : 2.0f;
                    CHECK(bits_float(seen[lane]) == expected,
                          "mma, element " + std::to_string(i) + ", " + std::to_string(j));
                }
            }
        }
    }
}

void misuse_is_reported() {
    const struct {
        const char *text, *expected;
    } cases[] = {
        {"shfl.sync.idx.b32 %r0, %r1, 0, 31, 65535;", "lacks the calling lane"},
        {"setp.lt.u32 %p1, %r1, 16; @%p1 shfl.sync.idx.b32 %r0, %r1, 20, 31, 65535;", "not in the mask"},
        {"setp.eq.s32 %p1, %r1, 5; @%p1 ret; bar.sync 0;", "1 have exited; 63 wait in a barrier"},
        {"setp.eq.s32 %p1, %r1, 5; @%p1 ret; bar.warp.sync -1;", "31 wait for the lanes ffffffff"},
        {"setp.lt.u32 %p1, %r1, 32; @%p1 bra $one; bar.sync 0; bra $end; $one: bar.sync 0; $end:", "wait in another"},
        {"setp.lt.u32 %p1, %r1, 8; @%p1 bra $one; bar.warp.sync -1; bra $end; $one: bar.sync 0; $end:", "in vain"},
        {"setp.lt.u32 %p1, %r1, 16; selp.b32 %r2, 65535, -1, %p1; bar.warp.sync %r2;", "in vain"},
        {"mov.u32 %r2, 64; ld.shared.u32 %r0, [%r2];", "shared memory at 64 of 64"},
        {"mov.u32 %r2, -4; st.shared.u32 [%r2], %r0;", "shared memory"},
        {"mov.u32 %r2, 2; ld.shared.u32 %r0, [%r2];", "misaligned"},
        {"ld.global.v2.u32 {%r2, %r3}, [%rd2+4];", "misaligned"},
        {"mov.u64 %rd3, 4096; ld.global.u32 %r0, [%rd3];", "memory that is not there"},
        {"st.global.u32 [%rd1+4096], %r0; membar.gl;", "memory that is not there"},
        {"tanh.approx.f32 %f1, %f2;", "does not know tanh.approx.f32"},
        {"add.s32 %r0, %rd1, 1;", "another width"},
    };
    for (const auto& [text, expected] : cases) {
        under_every_schedule([&, text = text, expected = expected](const char* name) {
            std::string message = "no error";
            try {
                run(text, 64, 64);
            } catch (const KernelError& error) {
                message = error.what();
            }
            CHECK(message.find(expected) != std::string::npos,
                  std::string("expected '") + expected + "' under " + name + ", seen: " + message);
        });
    }
    std::string message = "no error";
    try {
        run("", 32, 0, {1, 65536, 1});
    } catch (const KernelError& error) {
        message = error.what();
    }
    CHECK(message.find("a grid of 1, 65536, 1") != std::string::npos, "a grid too large: " + message);
}

// How often block 1 sees the flag of block 0, and not what block 0 stored before its fence.
int messages_unseen(const std::string& fence) {
    const std::string body = "setp.ne.s32 %p1, %r1, 0; @%p1 ret; mov.u32 %r2, %ctaid.x; mov.u32 %r3, 7; "
                             "setp.eq.s32 %p2, %r2, 0; @!%p2 bra $reads; st.global.u32 [%rd1+256], %r3; " +
                             fence +
                             "; atom.global.exch.b32 %r4, [%rd1+128], %r3; ret; $reads: "
                             "atom.global.add.u32 %r5, [%rd1+128], 0; ld.global.u32 %r6, [%rd1+256]; "
                             "setp.eq.s32 %p3, %r5, 7; setp.ne.s32 %p4, %r6, 7; and.pred %p3, %p3, %p4; "
                             "selp.b32 %r0, 1, 0, %p3;";
    int unseen = 0;
    for (std::uint64_t seed = 1; seed <= 100; ++seed) {
        set_schedule({Order::Random, seed});
        unseen += static_cast<int>(run(body, 96, 0, {2, 1, 1})[0]);
    }
    return unseen;
}

void fences_reach_as_far_as_they_say() {
    CHECK(messages_unseen("membar.gl") == 0, "a fence of the GPU is not seen by another block");
    CHECK(messages_unseen("membar.cta") > 0, "a fence of the block is seen by another block");
    CHECK(messages_unseen("fence.acq_rel.cta") > 0, "a fence of the block is seen by another block");
}

void halves_round_to_nearest_even() {
    for (unsigned bits = 0; bits < 0x10000; ++bits) {
        const float h = half_to_float(static_cast<std::uint16_t>(bits));
        const float b = bfloat16_to_float(static_cast<std::uint16_t>(bits));
        if (!std::isnan(h)) CHECK(float_to_half(h) == bits, "fp16 round trip of " + std::to_string(bits));
        if (!std::isnan(b)) CHECK(float_to_bfloat16(b) == bits, "bf16 round trip of " + std::to_string(bits));
        // Half way between two neighbours: the even one; a little more: the upper one.
        if ((bits & 0x7FFF) < 0x7BFF) {
            const float next = half_to_float(static_cast<std::uint16_t>(bits + 1));
            const float middle = h + (next - h) / 2;
            CHECK(float_to_half(middle) == bits + (bits & 1), "fp16 middle above " + std::to_string(bits));
            CHECK(float_to_half(std::nextafterf(middle, next)) == bits + 1,
                  "fp16 beyond the middle above " + std::to_string(bits));
            CHECK(float_to_half(std::nextafterf(middle, h)) == bits,
                  "fp16 before the middle above " + std::to_string(bits));
        }
    }
    CHECK(float_to_half(65519.0f) == 0x7BFF && float_to_half(65520.0f) == 0x7C00, "fp16 overflow");
    CHECK(half_to_float(0x3555) == 0.333251953125f && half_to_float(0x0001) == 0x1p-24f, "fp16 values");
    CHECK(std::isnan(half_to_float(float_to_half(NAN))) && std::isnan(bfloat16_to_float(float_to_bfloat16(NAN))),
          "NaN");
    CHECK(float_to_bfloat16(bits_float(0x3F808000)) == 0x3F80 && float_to_bfloat16(bits_float(0x3F818000)) == 0x3F82,
          "bf16 ties");
}

}  // namespace

int main() {
    one_lane();
    lanes_together();
    matrices();
    misuse_is_reported();
    fences_reach_as_far_as_they_say();
    halves_round_to_nearest_even();
    return failures();
}
