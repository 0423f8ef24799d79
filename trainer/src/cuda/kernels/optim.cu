// LARS (You et al. 2017) with BYOL's exclusions, the target's moving average, casts: sweeps over flat vectors.
//
// A vector is cut into chunks that never cross an array's end; a block of 256 threads takes one.
#include "common.cuh"

// A chunk: where it starts, how long it is, whose array it is part of.
struct Chunk {
    unsigned int start, length, array, unused;
};

// An array: its first chunk and how many there are, and whether LARS adapts and decays it.
struct Array {
    unsigned int first, count, adapted, unused;
};

// Adds gradients of convolutions, as the convolution gives them, to those in f32 (or replaces them).
template <typename T>
__device__ inline void gather_body(const T* from, float* to, const Chunk* chunks, int add) {
    Chunk chunk = chunks[blockIdx.x];
    for (unsigned int i = chunk.start + threadIdx.x; i < chunk.start + chunk.length; i += 256)
        to[i] = wide(from[i]) + (add ? to[i] : 0.0f);
}
extern "C" __global__ void gather_f32(const float* from, float* to, const Chunk* chunks, int add) {
    gather_body<float>(from, to, chunks, add);
}
extern "C" __global__ void gather_bf16(const bf16* from, float* to, const Chunk* chunks, int add) {
    gather_body<bf16>(from, to, chunks, add);
}

// Squared norms of each chunk of w and of g + decay * w, [2][chunks].
extern "C" __global__ void lars_norms(const float* w, const float* g, const Chunk* chunks, float decay, float* norms) {
    Chunk chunk = chunks[blockIdx.x];
    float ww = 0, gg = 0;
    for (unsigned int i = chunk.start + threadIdx.x; i < chunk.start + chunk.length; i += 256) {
        float decayed = g[i] + decay * w[i];
        ww += w[i] * w[i];
        gg += decayed * decayed;
    }
    ww = block_sum(ww);
    gg = block_sum(gg);
    if (threadIdx.x != 0) return;
    norms[blockIdx.x] = ww;
    norms[gridDim.x + blockIdx.x] = gg;
}

// eta * ||w|| / ||g + decay * w|| of each array, 1 where either is 0 or the array is not adapted.
// A block of 256 threads takes one array.
extern "C" __global__ void lars_trust(const float* norms, const Array* arrays, int chunks, float trust, float* scale) {
    Array array = arrays[blockIdx.x];
    double ww = 0, gg = 0;
    for (unsigned int i = array.first + threadIdx.x; i < array.first + array.count; i += 256) {
        ww += norms[i];
        gg += norms[chunks + i];
    }
    ww = block_sum(ww);
    gg = block_sum(gg);
    if (threadIdx.x == 0) scale[blockIdx.x] = array.adapted && ww > 0 && gg > 0 ? (float)(trust * sqrt(ww / gg)) : 1.0f;
}

// v = momentum * v + scale * (g + decay * w); w -= rate * v; and w as the layers read it, if that differs.
extern "C" __global__ void lars_update(float* w, const float* g, float* v, bf16* narrowed, const Chunk* chunks,
                                       const Array* arrays, const float* scale, float momentum, float decay, float rate) {
    Chunk chunk = chunks[blockIdx.x];
    float factor = scale[chunk.array];
    if (!arrays[chunk.array].adapted) decay = 0.0f;
    for (unsigned int i = chunk.start + threadIdx.x; i < chunk.start + chunk.length; i += 256) {
        float weight = w[i];
        float velocity = momentum * v[i] + factor * (g[i] + decay * weight);
        weight -= rate * velocity;
        v[i] = velocity;
        w[i] = weight;
        if (narrowed) narrow(weight, narrowed[i]);
    }
}

// target += (1 - tau) * (online - target).
extern "C" __global__ void moving_average(float* target, const float* online, bf16* narrowed, long long count, float share) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    float value = target[i] + share * (online[i] - target[i]);
    target[i] = value;
    if (narrowed) narrow(value, narrowed[i]);
}

extern "C" __global__ void cast_bf16(const float* from, bf16* to, long long count) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) narrow(from[i], to[i]);
}
