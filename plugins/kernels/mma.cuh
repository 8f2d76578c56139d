// What of the hardware is reached by PTX only: asynchronous copies into shared memory and the tensor cores'
// instructions.
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
    asm volatile("" : "+r"(x));
    return x;
}

// Copies 16 bytes (aligned to 16) from global to shared memory, or writes zeros where !valid (source is not read then).
__device__ __forceinline__ void async_copy_16(void* shared, const void* global, bool valid) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// The same of 4 bytes.
__device__ __forceinline__ void async_copy_4(void* shared, const void* global, bool valid) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(global), "r"(valid ? 4 : 0)
                 : "memory");
}

// Closes the group of the copies that this thread has issued since the last group.
__device__ __forceinline__ void async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until all groups of this thread but the last kLeft have arrived. A barrier must follow before others read them.
template <int kLeft>
__device__ __forceinline__ void async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit numbers from shared memory. Lane 8 m + i gives the address of row i of matrix m
// (16 bytes, aligned); lane 4 g + t receives, as word m, columns 2t, 2t + 1 of row g.
__device__ __forceinline__ void load_matrices(std::uint32_t (&words)[4], const void* row) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// The same of the transposed matrices: lane 4 g + t receives rows 2t, 2t + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&words)[4], const void* row) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(address)
                 : "memory");
}

// C += A * B, of 16-bit T and in float32.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                             std::uint32_t b1) {
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
}

}  // namespace doge
#endif
