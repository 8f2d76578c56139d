// dim3, float4 and their like, with CUDA's alignment.
#ifndef DOGE_EMULATION_VECTOR_TYPES_H
#define DOGE_EMULATION_VECTOR_TYPES_H

#define DOGE_VECTOR_TYPES(scalar, name, bytes)                                        \
    struct name##1 { scalar x; };                                                     \
    struct alignas(2 * bytes) name##2 { scalar x, y; };                               \
    struct name##3 { scalar x, y, z; };                                               \
    struct alignas(4 * bytes <= 16 ? 4 * bytes : 16) name##4 { scalar x, y, z, w; };  \
    inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }              \
    inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
    inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

DOGE_VECTOR_TYPES(unsigned char, uchar, 1)
DOGE_VECTOR_TYPES(short, short, 2)
DOGE_VECTOR_TYPES(unsigned short, ushort, 2)
DOGE_VECTOR_TYPES(int, int, 4)
DOGE_VECTOR_TYPES(unsigned int, uint, 4)
DOGE_VECTOR_TYPES(float, float, 4)
DOGE_VECTOR_TYPES(long long, longlong, 8)
DOGE_VECTOR_TYPES(unsigned long long, ulonglong, 8)
DOGE_VECTOR_TYPES(double, double, 8)
#undef DOGE_VECTOR_TYPES

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#endif
