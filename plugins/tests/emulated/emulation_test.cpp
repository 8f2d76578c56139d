// Does the emulator see what it must see? Right kernels are right under every schedule, and wrong ones are caught.
#include "../../kernels/launch.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <functional>
#include <set>

#include "testing.h"

using namespace doge::emulation;

namespace {

// The sum of one block's values; without_barrier leaves out the one that publishes the partial sums of the warps.
__global__ void block_sum(const float* values, float* sum, bool without_barrier) {
    float* partial = doge::dynamic_shared<float>();
    float value = values[threadIdx.x];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    if (!without_barrier) __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0;
        for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += partial[warp];
        *sum = total;
    }
}

__global__ void neighbour_in_shared(int* result, bool without_barrier) {
    int* shared = doge::dynamic_shared<int>();
    shared[threadIdx.x] = static_cast<int>(threadIdx.x);
    if (!without_barrier) __syncwarp();
    result[threadIdx.x] = shared[(threadIdx.x + 1) % 32];
}

void races_show() {
    const int threads = 256;
    DeviceBuffer<float> values(threads), sum(1);
    for (int i = 0; i < threads; ++i) values[i] = static_cast<float>(i);
    int wrong_without = 0;
    for (bool without : {false, true}) {
        under_every_schedule([&](const char* name) {
            sum.poison();
            doge::launch(block_sum, 1, threads, 8 * sizeof(float), nullptr, values.data(), sum.data(), without);
            const bool right = sum[0] == threads * (threads - 1) / 2;
            if (without)
                wrong_without += !right;
            else
                CHECK(right, std::string("block_sum, ") + name);
        });
    }
    CHECK(wrong_without > 0, "a reduction that lacks a barrier was right under every schedule");

    DeviceBuffer<int> result(32);
    int wrong = 0;
    for (bool without : {false, true}) {
        under_every_schedule([&](const char* name) {
            doge::launch(neighbour_in_shared, 1, 32, 32 * sizeof(int), nullptr, result.data(), without);
            bool right = true;
            for (int i = 0; i < 32; ++i) right = right && result[i] == (i + 1) % 32;
            if (without)
                wrong += !right;
            else
                CHECK(right, std::string("neighbour_in_shared, ") + name);
        });
    }
    CHECK(wrong > 0, "an exchange that lacks __syncwarp was right under every schedule");
}

// --- misuse must be reported, under every schedule ---

__global__ void lacks_itself() { __shfl_sync(0x0000FFFF, 1, 0); }
__global__ void reads_outside_mask() {
    if (threadIdx.x < 16) __shfl_sync(0x0000FFFF, 1, 20);
}
__global__ void exits_before_barrier() {
    if (threadIdx.x == 5) return;
    __syncthreads();
}
__global__ void exits_before_shuffle() {
    if (threadIdx.x == 5) return;
    __shfl_xor_sync(0xFFFFFFFF, 1, 1);
}
__global__ void two_barriers() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
__global__ void two_collectives() {
    if (threadIdx.x % 2) {
        __shfl_xor_sync(0xFFFFFFFF, 1, 1);
    } else {
        __ballot_sync(0xFFFFFFFF, 1);
    }
}
__global__ void barrier_against_collective() {
    if (threadIdx.x < 8) {
        __syncthreads();
    } else {
        __syncwarp();
    }
}
__global__ void different_masks() { __syncwarp(threadIdx.x < 16 ? 0x0000FFFF : 0xFFFFFFFF); }

void misuse_is_reported() {
    const std::pair<void (*)(), const char*> cases[] = {{lacks_itself, "lacks the calling lane"},
                                                        {reads_outside_mask, "not in the mask"},
                                                        {exits_before_barrier, "exited"},
                                                        {exits_before_shuffle, "exited"},
                                                        {two_barriers, "waits in __syncthreads"},
                                                        {two_collectives, "wait for each other in vain"},
                                                        {barrier_against_collective, "wait for each other in vain"},
                                                        {different_masks, "wait for each other in vain"}};
    for (const auto& [kernel, expected] : cases) {
        under_every_schedule([&, kernel = kernel, expected = expected](const char* name) {
            std::string message = "no error";
            try {
                doge::launch(kernel, 1, 64, 0, nullptr);
            } catch (const KernelError& error) {
                message = error.what();
            }
            CHECK(message.find(expected) != std::string::npos,
                  std::string("expected '") + expected + "' under " + name + ", seen: " + message);
        });
    }
    std::string message = "no error";
    try {
        doge::launch(two_barriers, dim3(1, 65536), 64, 0, nullptr);
    } catch (const KernelError& error) {
        message = error.what();
    }
    CHECK(message.find("grid") != std::string::npos, "a grid too large: " + message);
}

// --- semantics ---

__global__ void collectives(int* results) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    int* mine = results + threadIdx.x * 12;
    mine[0] = __shfl_sync(0xFFFFFFFF, lane * 10, 7);
    mine[1] = __shfl_up_sync(0xFFFFFFFF, lane, 1);
    mine[2] = __shfl_down_sync(0xFFFFFFFF, lane, 3, 8);
    mine[3] = __shfl_xor_sync(0xFFFFFFFF, lane, 5, 16);
    mine[4] = static_cast<int>(__ballot_sync(0xFFFFFFFF, lane % 3 == 0));
    mine[5] = __any_sync(0xFFFFFFFF, lane == 31) + 2 * __all_sync(0xFFFFFFFF, lane < 31);
    mine[6] = __reduce_add_sync(0xFFFFFFFF, lane);
    mine[7] = __reduce_max_sync(0xFFFFFFFF, -lane);
    mine[8] = static_cast<int>(__match_any_sync(0xFFFFFFFF, lane / 16));
    mine[9] = lane < 4 ? __shfl_xor_sync(0xF, lane, 1) : __shfl_xor_sync(0xFFFFFFF0, lane, 2);
    mine[10] = __syncthreads_count(threadIdx.x < 5);
    mine[11] = __syncthreads_or(threadIdx.x == 63) + 2 * __syncthreads_and(threadIdx.x < 63);
}

void collectives_mean_what_they_mean() {
    DeviceBuffer<int> results(64 * 12);
    under_every_schedule([&](const char* name) {
        results.poison();
        doge::launch(collectives, 1, 64, 0, nullptr, results.data());
        for (int thread = 0; thread < 64; ++thread) {
            const int lane = thread % 32;
            const int expected[12] = {70,
                                      lane == 0 ? 0 : lane - 1,
                                      lane % 8 + 3 < 8 ? lane + 3 : lane,
                                      lane ^ 5,
                                      0x49249249,
                                      1,
                                      31 * 16,
                                      0,
                                      static_cast<int>(lane < 16 ? 0x0000FFFFu : 0xFFFF0000u),
                                      lane < 4 ? lane ^ 1 : lane ^ 2,
                                      5,
                                      1};
            for (int i = 0; i < 12; ++i) {
                CHECK(results[thread * 12 + i] == expected[i],
                      std::string(name) + ": collective " + std::to_string(i) + " of thread " + std::to_string(thread));
            }
        }
    });
}

// Each lane gives a row number; each gets the sum of what its two neighbours in the "fragment" hold.
__global__ void generic_collective(int* results) {
    struct Lane {
        int in, out;
    } lane{static_cast<int>(threadIdx.x), 0};
    warp_collective("swap_sum", 0xFFFFFFFF, lane, [](Lane* const* lanes) {
        for (int i = 0; i < 32; ++i) lanes[i]->out = lanes[i]->in + lanes[31 - i]->in;
    });
    results[threadIdx.x] = lane.out;
}

// The last block to take a ticket adds up what all left behind.
__global__ void last_block(int* partial, unsigned* ticket, int* sum, int* last) {
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
        __threadfence();
        if (atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1) {
            *sum = 0;
            for (unsigned block = 0; block < gridDim.x; ++block) *sum += partial[block];
            *last = static_cast<int>(blockIdx.x);
        }
    }
}

// Thread 0 says that its block has come before the others of it have written: seen only where blocks take turns.
__global__ void early_ticket(int* partial, unsigned* ticket, int* sum, bool without_barrier) {
    int* is_last = doge::dynamic_shared<int>();
    partial[blockIdx.x * blockDim.x + threadIdx.x] = 1;
    __threadfence();
    if (!without_barrier) __syncthreads();
    if (threadIdx.x == 0) *is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (*is_last && threadIdx.x == 0) {
        *sum = 0;
        for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) *sum += partial[i];
    }
}

// A copy that is waited for, or not.
__global__ void staged_copy(const int* from, int* to, bool without_wait) {
    int* stage = doge::dynamic_shared<int>();
    async_copy(stage + 4 * threadIdx.x, from + 4 * threadIdx.x, 16, 16);
    async_commit();
    if (!without_wait) async_wait(0);
    __syncthreads();
    to[threadIdx.x] = stage[threadIdx.x];
}

void blocks_and_copies() {
    DeviceBuffer<int> results(32);
    std::set<int> last_blocks;
    under_every_schedule([&](const char* name) {
        doge::launch(generic_collective, 1, 32, 0, nullptr, results.data());
        for (int i = 0; i < 32; ++i) CHECK(results[i] == 31, std::string("generic_collective, ") + name);

        DeviceBuffer<int> partial(17), sum(1), last(1);
        DeviceBuffer<unsigned> ticket(1);
        ticket[0] = 0;
        doge::launch(last_block, 17, 32, 0, nullptr, partial.data(), ticket.data(), sum.data(), last.data());
        CHECK(sum[0] == 17 * 18 / 2 && ticket[0] == 0, std::string("last_block, ") + name);
        last_blocks.insert(last[0]);

        DeviceBuffer<int> from(128), to(32);
        for (int i = 0; i < 128; ++i) from[i] = i;
        for (bool without : {false, true}) {
            doge::launch(staged_copy, 1, 32, 512, nullptr, from.data(), to.data(), without);
            CHECK((to[5] == 5) == !without, std::string("staged_copy, ") + name);
        }
    });
    int early = 0;
    for (bool without : {false, true}) {
        under_every_schedule([&](const char* name) {
            DeviceBuffer<int> partial(4 * 64), sum(1);
            DeviceBuffer<unsigned> ticket(1);
            ticket[0] = 0;
            for (int repeat = 0; repeat < 20; ++repeat) {
                partial.poison();
                doge::launch(early_ticket, 4, 64, sizeof(int), nullptr, partial.data(), ticket.data(), sum.data(),
                             without);
                if (without)
                    early += sum[0] != 4 * 64;
                else
                    CHECK(sum[0] == 4 * 64, std::string("early_ticket, ") + name);
            }
        });
    }
    CHECK(early > 0, "a ticket taken too early was harmless under every schedule");
    CHECK(last_blocks.size() >= 3, "the blocks end in the same order under every schedule");
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
    races_show();
    misuse_is_reported();
    collectives_mean_what_they_mean();
    blocks_and_copies();
    halves_round_to_nearest_even();
    return failures();
}
