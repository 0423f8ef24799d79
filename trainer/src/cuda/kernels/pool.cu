// Max-pool 3x3 at stride 2 and padding 1, global average pool, and the views' way into a map.
// One thread makes one pack of channels of one pixel.
#include "common.cuh"

// Which pack of which pixel a thread makes; past the end where there is none.
__device__ inline long long thread_number() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

// y and, for the way back, which of its nine pixels holds a maximum: the first of them.
template <typename T, int V>
__device__ inline void max_pool_body(const T* x, T* y, unsigned char* index, long long outputs, int height, int width, int channels) {
    long long number = thread_number();
    if (number >= outputs) return;
    int packs = channels / V, out_height = (height + 1) / 2, out_width = (width + 1) / 2;
    int channel = (int)(number % packs) * V;
    long long pixel = number / packs;
    int ox = (int)(pixel % out_width), oy = (int)(pixel / out_width % out_height);
    const T* image = x + pixel / out_width / out_height * height * width * channels + channel;
    float best[V] = {}, value[V];
    int where[V] = {};
    bool any = false;
    for (int k = 0; k < 9; ++k) {
        int iy = 2 * oy - 1 + k / 3, ix = 2 * ox - 1 + k % 3;
        if (iy < 0 || ix < 0 || iy >= height || ix >= width) continue;
        load<T, V>(image + ((long long)iy * width + ix) * channels, value);
#pragma unroll
        for (int i = 0; i < V; ++i)
            // The second part lets a NaN win, so that a diverged run is seen.
            if (!any || value[i] > best[i] || value[i] != value[i]) {
                best[i] = value[i];
                where[i] = k;
            }
        any = true;
    }
    long long to = pixel * channels + channel;
    store<T, V>(best, y + to);
    for (int i = 0; i < V; ++i) index[to + i] = (unsigned char)where[i];
}

// Each pixel of the input gathers from the at most four outputs whose window it is in.
template <typename T, int V>
__device__ inline void max_pool_backward_body(const T* dy, const T* dy2, const unsigned char* index, T* dx, long long inputs,
                                              int height, int width, int channels) {
    long long number = thread_number();
    if (number >= inputs) return;
    int packs = channels / V, out_height = (height + 1) / 2, out_width = (width + 1) / 2;
    int channel = (int)(number % packs) * V;
    long long pixel = number / packs;
    int ix = (int)(pixel % width), iy = (int)(pixel / width % height);
    long long image = pixel / width / height;
    float sum[V] = {}, value[V];
    for (int oy = iy / 2; oy <= (iy + 1) / 2 && oy < out_height; ++oy)
        for (int ox = ix / 2; ox <= (ix + 1) / 2 && ox < out_width; ++ox) {
            int k = (iy - (2 * oy - 1)) * 3 + ix - (2 * ox - 1);
            long long from = ((image * out_height + oy) * out_width + ox) * channels + channel;
            load<T, V>(dy + from, value);
            if (dy2) {
                float other[V];
                load<T, V>(dy2 + from, other);
                for (int i = 0; i < V; ++i) value[i] += other[i];
            }
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += index[from + i] == k ? value[i] : 0.0f;
        }
    store<T, V>(sum, dx + pixel * channels + channel);
}

// Mean over an image's pixels, once in f32 and once as the next layer reads it.
template <typename T, int V>
__device__ inline void average_pool_body(const T* x, float* mean, T* y, long long outputs, int pixels, int channels) {
    long long number = thread_number();
    if (number >= outputs) return;
    int packs = channels / V, channel = (int)(number % packs) * V;
    long long image = number / packs;
    float sum[V] = {}, value[V];
    for (int pixel = 0; pixel < pixels; ++pixel) {
        load<T, V>(x + (image * pixels + pixel) * channels + channel, value);
#pragma unroll
        for (int i = 0; i < V; ++i) sum[i] += value[i];
    }
    for (int i = 0; i < V; ++i) {
        sum[i] /= (float)pixels;
        mean[image * channels + channel + i] = sum[i];
    }
    store<T, V>(sum, y + image * channels + channel);
}

template <typename T, int V>
__device__ inline void average_pool_backward_body(const T* dy, T* dx, long long inputs, int pixels, int channels) {
    long long number = thread_number();
    if (number >= inputs) return;
    int packs = channels / V, channel = (int)(number % packs) * V;
    long long pixel = number / packs;
    float value[V];
    load<T, V>(dy + pixel / pixels * channels + channel, value);
    for (int i = 0; i < V; ++i) value[i] /= (float)pixels;
    store<T, V>(value, dx + pixel * channels + channel);
}

#define MAKE(T, V, NAME)                                                                                                     \
    extern "C" __global__ void max_pool_##NAME(const T* x, T* y, unsigned char* index, long long outputs, int height,        \
                                               int width, int channels) {                                                    \
        max_pool_body<T, V>(x, y, index, outputs, height, width, channels);                                                  \
    }                                                                                                                        \
    extern "C" __global__ void max_pool_backward_##NAME(const T* dy, const T* dy2, const unsigned char* index, T* dx,        \
                                                        long long inputs, int height, int width, int channels) {             \
        max_pool_backward_body<T, V>(dy, dy2, index, dx, inputs, height, width, channels);                                   \
    }                                                                                                                        \
    extern "C" __global__ void average_pool_##NAME(const T* x, float* mean, T* y, long long outputs, int pixels,             \
                                                   int channels) {                                                           \
        average_pool_body<T, V>(x, mean, y, outputs, pixels, channels);                                                      \
    }                                                                                                                        \
    extern "C" __global__ void average_pool_backward_##NAME(const T* dy, T* dx, long long inputs, int pixels,                \
                                                            int channels) {                                                  \
        average_pool_backward_body<T, V>(dy, dx, inputs, pixels, channels);                                                  \
    }
FOR_VALUES(MAKE)
#undef MAKE

// Pixels of 3 values into pixels of one pack, the rest of it zero: tensor cores want whole packs.
template <typename T, int V>
__device__ inline void pack_views_body(const float* views, T* x, long long pixels) {
    long long pixel = thread_number();
    if (pixel >= pixels) return;
    float value[V] = {};
    for (int i = 0; i < 3; ++i) value[i] = views[pixel * 3 + i];
    store<T, V>(value, x + pixel * V);
}

extern "C" __global__ void pack_views_f32x4(const float* views, float* x, long long pixels) {
    pack_views_body<float, 4>(views, x, pixels);
}
extern "C" __global__ void pack_views_bf16x8(const float* views, bf16* x, long long pixels) {
    pack_views_body<bf16, 8>(views, x, pixels);
}
