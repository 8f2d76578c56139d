// Sixteen bytes of a row: what a lane loads at once.
#ifndef DOGE_KERNELS_VECTOR_CUH
#define DOGE_KERNELS_VECTOR_CUH

#include "types.cuh"

namespace doge {

template <class T>
struct Vector {
    static constexpr int width = 16 / sizeof(T);  // elements
    uint4 words = make_uint4(0, 0, 0, 0);

    // Vector `index` of a row in global memory that nobody writes meanwhile.
    static __device__ __forceinline__ Vector load(const void* row, int index) {
        Vector vector;
        vector.words = __ldg(static_cast<const uint4*>(row) + index);
        return vector;
    }
    __device__ __forceinline__ void unpack(float (&values)[width]) const {
        T elements[width];
        memcpy(static_cast<void*>(elements), &words, sizeof words);
#pragma unroll
        for (int i = 0; i < width; ++i) values[i] = to_float(elements[i]);
    }
};

// Rounds to T and stores where a vector of T fits.
template <class T>
__device__ __forceinline__ void store_vector(T* to, const float (&values)[Vector<T>::width]) {
    typename Pair<T>::Word words[Vector<T>::width / 2];
#pragma unroll
    for (int i = 0; i < Vector<T>::width / 2; ++i) words[i] = Pair<T>::pack(values[2 * i], values[2 * i + 1]);
    uint4 all;
    memcpy(&all, words, sizeof all);
    *reinterpret_cast<uint4*>(to) = all;
}

// sum + <a, b>
template <class T>
__device__ __forceinline__ float add_dot(float sum, const Vector<T>& a, const Vector<T>& b) {
    float of_a[Vector<T>::width], of_b[Vector<T>::width];
    a.unpack(of_a);
    b.unpack(of_b);
#pragma unroll
    for (int i = 0; i < Vector<T>::width; ++i) sum = fmaf(of_a[i], of_b[i], sum);
    return sum;
}

// sums += scale * vector
template <class T>
__device__ __forceinline__ void add_scaled(float (&sums)[Vector<T>::width], float scale, const Vector<T>& vector) {
    float values[Vector<T>::width];
    vector.unpack(values);
#pragma unroll
    for (int i = 0; i < Vector<T>::width; ++i) sums[i] = fmaf(scale, values[i], sums[i]);
}

}  // namespace doge
#endif
