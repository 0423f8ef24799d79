// What all kernels share: bfloat16, values loaded in packs, sums over a block.
//
// Compiled by NVRTC without any header of CUDA's, and by a C++ compiler for the tests (host.h).
#pragma once

struct bf16 {
    unsigned short bits;
};

__device__ inline float wide(float x) { return x; }

__device__ inline float wide(bf16 x) { return __uint_as_float((unsigned int)x.bits << 16); }

__device__ inline void narrow(float x, float& to) { to = x; }

// Rounds to the nearest, ties to even; a NaN stays one.
__device__ inline void narrow(float x, bf16& to) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
    unsigned int bits = __float_as_uint(x);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to.bits = nan ? 0x7fff : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

// V neighbouring values, loaded and stored at once.
template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
    T at[V];
};

template <typename T, int V>
__device__ inline void load(const T* from, float (&to)[V]) {
    Pack<T, V> pack = *(const Pack<T, V>*)from;
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = wide(pack.at[i]);
}

template <typename T, int V>
__device__ inline void store(const float (&from)[V], T* to) {
    Pack<T, V> pack;
#pragma unroll
    for (int i = 0; i < V; ++i) narrow(from[i], pack.at[i]);
    *(Pack<T, V>*)to = pack;
}

// Sum of one value of each of the 256 threads of a block, in every thread; the order is fixed.
template <typename S>
__device__ inline S block_sum(S value) {
    __shared__ S values[256];
    int thread = threadIdx.x;
    __syncthreads();
    values[thread] = value;
    __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (thread < half) values[thread] += values[thread + half];
        __syncthreads();
    }
    return values[0];
}

// Each kernel over feature maps exists for both kinds of values, in packs of 16 bytes and singly.
#define FOR_VALUES(MAKE) \
    MAKE(float, 4, f32x4) MAKE(float, 1, f32x1) MAKE(bf16, 8, bf16x8) MAKE(bf16, 1, bf16x1)
