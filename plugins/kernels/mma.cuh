// What of the hardware is reached by PTX only: asynchronous copies into shared memory and the tensor cores'
// instructions. Each has a second body for the emulator of tests/emulation.
//
// An mma.sync m16n8k16 multiplies A [16, 16] by B [16, 8]. Its fragments lie in the registers of a warp, two 16-bit
// numbers a word, lane = 4 * g + t (g = 0..7, t = 0..3):
//   A: word 0 is row g, columns 2t, 2t + 1; word 1 row g + 8; words 2, 3 the same of columns 8 + 2t, 9 + 2t
//   B: word 0 is rows 2t, 2t + 1 of column g; word 1 is rows 8 + 2t, 9 + 2t
//   C: floats 0, 1 are row g, columns 2t, 2t + 1; floats 2, 3 the same of row g + 8
#ifndef DOGE_KERNELS_MMA_CUH
#define DOGE_KERNELS_MMA_CUH

#include <type_traits>

#include "types.cuh"

namespace doge {

// Gives x. The compiler cannot know that and will not keep what follows from x, such as addresses, in registers from
// one turn of a loop to the next.
__device__ __forceinline__ int calculated_anew(int x) {
#ifndef DOGE_EMULATED
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// Copies 16 bytes (aligned to 16) from global to shared memory, or writes zeros where !valid (source is not read then).
__device__ __forceinline__ void async_copy_16(void* shared, const void* global, bool valid) {
#ifdef DOGE_EMULATED
    emulation::async_copy(shared, global, 16, valid ? 16 : 0);
#else
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
#endif
}

// The same of 4 bytes.
__device__ __forceinline__ void async_copy_4(void* shared, const void* global, bool valid) {
#ifdef DOGE_EMULATED
    emulation::async_copy(shared, global, 4, valid ? 4 : 0);
#else
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(valid ? 4 : 0)
                 : "memory");
#endif
}

// Closes the group of the copies that this thread has issued since the last group.
__device__ __forceinline__ void async_commit() {
#ifdef DOGE_EMULATED
    emulation::async_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all groups of this thread but the last kLeft have arrived. A barrier must follow before others read them.
template <int kLeft>
__device__ __forceinline__ void async_wait() {
#ifdef DOGE_EMULATED
    emulation::async_wait(kLeft);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

#ifdef DOGE_EMULATED
namespace emulated {

struct LoadMatrixLane {
    const void* row;
    std::uint32_t words[4];
};

template <bool kTransposed>
void load_matrix(std::uint32_t (&words)[4], const void* row) {
    LoadMatrixLane data{row, {}};
    emulation::warp_collective("ldmatrix", 0xFFFFFFFF, data, [](LoadMatrixLane* const* lanes) {
        for (int lane = 0; lane < 32; ++lane) {
            for (int matrix = 0; matrix < 4; ++matrix) {
                std::uint16_t pair[2];
                for (int e = 0; e < 2; ++e) {
                    const int i = kTransposed ? lane % 4 * 2 + e : lane / 4;
                    const int j = kTransposed ? lane / 4 : lane % 4 * 2 + e;
                    memcpy(&pair[e], static_cast<const char*>(lanes[matrix * 8 + i]->row) + 2 * j, 2);
                }
                memcpy(&lanes[lane]->words[matrix], pair, 4);
            }
        }
    });
    memcpy(words, data.words, sizeof words);
}

struct MultiplyLane {
    std::uint32_t a[4], b[2];
    float c[4];
};

template <class T>
float element(std::uint32_t word, int which) {
    T pair[2];
    memcpy(static_cast<void*>(pair), &word, 4);
    return to_float(pair[which]);
}

template <class T>
void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    MultiplyLane data{{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    emulation::warp_collective("mma", 0xFFFFFFFF, data, [](MultiplyLane* const* lanes) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            const int g = lane / 4, t = lane % 4;
            for (int e = 0; e < 2; ++e) {
                for (int word = 0; word < 4; ++word) {
                    left[g + word % 2 * 8][word / 2 * 8 + 2 * t + e] = element<T>(lanes[lane]->a[word], e);
                }
                for (int word = 0; word < 2; ++word)
                    right[word * 8 + 2 * t + e][g] = element<T>(lanes[lane]->b[word], e);
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            for (int e = 0; e < 4; ++e) {
                const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
                float sum = lanes[lane]->c[e];
                for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
                lanes[lane]->c[e] = sum;
            }
        }
    });
    memcpy(c, data.c, sizeof c);
}

}  // namespace emulated
#endif

// Loads four 8 x 8 matrices of 16-bit numbers from shared memory. Lane 8 m + i gives the address of row i of matrix m
// (16 bytes, aligned); lane 4 g + t receives, as word m, columns 2t, 2t + 1 of row g.
__device__ __forceinline__ void load_matrices(std::uint32_t (&words)[4], const void* row) {
#ifdef DOGE_EMULATED
    emulated::load_matrix<false>(words, row);
#else
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
#endif
}

// The same of the transposed matrices: lane 4 g + t receives rows 2t, 2t + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&words)[4], const void* row) {
#ifdef DOGE_EMULATED
    emulated::load_matrix<true>(words, row);
#else
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
#endif
}

// C += A * B, of 16-bit T and in float32.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
#ifdef DOGE_EMULATED
    emulated::multiply<T>(c, a, b0, b1);
#else
    if constexpr (std::is_same_v<T, __half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
            "%2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
            "%1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#endif
}

}  // namespace doge
#endif
