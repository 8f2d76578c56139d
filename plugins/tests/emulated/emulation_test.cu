// Do wrong kernels show? Right ones are right under every schedule, and those that lack a barrier, a fence or a wait
// are caught.
#include <set>

#include "../../kernels/launch.cuh"
#include "../../kernels/mma.cuh"
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

// Another block may read the flag and not what was written before it, unless there is a fence between.
__global__ void message(int* data, int* flag, int* seen, bool without_fence) {
    if (blockIdx.x == 0) {
        data[threadIdx.x] = 1;
        if (!without_fence) __threadfence();
        atomicAdd(flag, 1);
    } else if (atomicAdd(flag, 0) == static_cast<int>(blockDim.x)) {
        seen[threadIdx.x] = __ldcg(&data[threadIdx.x]);
    }
}

// A copy that is waited for, or not.
__global__ void staged_copy(const int* from, int* to, bool without_wait) {
    int* stage = doge::dynamic_shared<int>();
    doge::async_copy_16(stage + 4 * threadIdx.x, from + 4 * threadIdx.x, true);
    doge::async_commit();
    if (!without_wait) doge::async_wait<0>();
    __syncthreads();
    to[threadIdx.x] = stage[threadIdx.x];
}

void blocks_and_copies() {
    std::set<int> last_blocks;
    under_every_schedule([&](const char* name) {
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
    CHECK(last_blocks.size() >= 3, "the blocks end in the same order under every schedule");
    int early = 0, unseen = 0;
    for (bool without : {false, true}) {
        under_every_schedule([&](const char* name) {
            DeviceBuffer<int> partial(4 * 64), sum(1), data(64), flag(1), seen(64);
            DeviceBuffer<unsigned> ticket(1);
            ticket[0] = 0;
            for (int repeat = 0; repeat < 100; ++repeat) {
                partial.poison();
                doge::launch(early_ticket, 4, 64, sizeof(int), nullptr, partial.data(), ticket.data(), sum.data(),
                             without);
                early += sum[0] != 4 * 64;
                if (!without) CHECK(sum[0] == 4 * 64, std::string("early_ticket, ") + name);

                for (int i = 0; i < 64; ++i) data[i] = 0, seen[i] = 1;
                flag[0] = 0;
                doge::launch(message, 2, 64, 0, nullptr, data.data(), flag.data(), seen.data(), without);
                for (int i = 0; i < 64; ++i) {
                    unseen += seen[i] != 1;
                    if (!without) CHECK(seen[i] == 1, std::string("message, ") + name);
                }
            }
        });
    }
    CHECK(early > 0, "a ticket taken too early was harmless under every schedule");
    CHECK(unseen > 0, "a forgotten fence was harmless under every schedule");
}

}  // namespace

int main() {
    races_show();
    blocks_and_copies();
    return failures();
}
