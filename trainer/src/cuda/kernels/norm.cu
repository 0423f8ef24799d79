// Batch norm with the addition and the ReLU that follow it, over channels-last maps.
//
// Ioffe and Szegedy 2015. A batch holds `views` views one after the other, of `rows` pixels each;
// each view has its own statistics. A block has TX x TY threads: TX packs of channels side by side,
// TY pixels; blockIdx is (tile of channels, split of the pixels, view).
#include "common.cuh"

// Where a thread of a sweep starts: its first channel, its first pixel, the step between its pixels.
struct Place {
    int channel;
    long long first, step, end;
    bool idle;
};

template <int V>
__device__ inline Place place(long long rows, int channels) {
    Place at;
    at.channel = (int)(blockIdx.x * blockDim.x + threadIdx.x) * V;
    at.first = (long long)blockIdx.z * rows + blockIdx.y * blockDim.y + threadIdx.y;
    at.step = (long long)gridDim.y * blockDim.y;
    at.end = (long long)(blockIdx.z + 1) * rows;
    at.idle = at.channel >= channels;
    return at;
}

// Adds up `a` and `b` over the block's pixels and writes them to partial[view][split][2][channels].
template <int V>
__device__ inline void write_partial(float (&a)[V], float (&b)[V], const Place& at, int channels, float* partial) {
    __shared__ float shared[2 * V * 256];
    int width = blockDim.x, thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        shared[(2 * i) * 256 + thread] = a[i];
        shared[(2 * i + 1) * 256 + thread] = b[i];
    }
    __syncthreads();
    for (unsigned int half = blockDim.y / 2; half > 0; half /= 2) {
        if (threadIdx.y < half)
            for (int i = 0; i < 2 * V; ++i) shared[i * 256 + thread] += shared[i * 256 + thread + half * width];
        __syncthreads();
    }
    if (threadIdx.y != 0 || at.idle) return;
    float* to = partial + ((long long)blockIdx.z * gridDim.y + blockIdx.y) * 2 * channels + at.channel;
    for (int i = 0; i < V; ++i) {
        to[i] = shared[(2 * i) * 256 + thread];
        to[channels + i] = shared[(2 * i + 1) * 256 + thread];
    }
}

// Sums of z - pivot and of its square; the pivot is a view's first pixel, so that a mean far from
// zero costs no accuracy. Block (·, 0, view) writes the pivots behind the partial sums.
template <typename T, int V>
__device__ inline void moments_body(const T* z, float* partial, float* pivots, long long rows, int channels) {
    Place at = place<V>(rows, channels);
    float sum[V] = {}, square[V] = {}, pivot[V] = {}, value[V];
    if (!at.idle) {
        load<T, V>(z + (long long)blockIdx.z * rows * channels + at.channel, pivot);
        if (blockIdx.y == 0 && threadIdx.y == 0)
            for (int i = 0; i < V; ++i) pivots[(int)blockIdx.z * channels + at.channel + i] = pivot[i];
        for (long long row = at.first; row < at.end; row += at.step) {
            load<T, V>(z + row * channels + at.channel, value);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                float d = value[i] - pivot[i];
                sum[i] += d;
                square[i] += d * d;
            }
        }
    }
    write_partial<V>(sum, square, at, channels, partial);
}

// Adds up the splits' two sums of a channel in fixed order: a block is 8 channels by 32 lanes.
__device__ inline void sum_splits(const float* partial, int splits, int channels, int view, int channel, double& a, double& b) {
    __shared__ double sums[2][32][8];
    int lane = threadIdx.y, column = threadIdx.x;
    double x = 0, y = 0;
    if (channel < channels)
        for (int split = lane; split < splits; split += 32) {
            const float* from = partial + ((long long)view * splits + split) * 2 * channels + channel;
            x += from[0];
            y += from[channels];
        }
    __syncthreads();
    sums[0][lane][column] = x;
    sums[1][lane][column] = y;
    __syncthreads();
    for (int half = 16; half > 0; half /= 2) {
        if (lane < half) {
            sums[0][lane][column] += sums[0][lane + half][column];
            sums[1][lane][column] += sums[1][lane + half][column];
        }
        __syncthreads();
    }
    a = sums[0][0][column];
    b = sums[1][0][column];
}

// Mean and 1/sigma of each view and channel, the affine map that normalises, and the running
// statistics moved by each view in turn. statistics is [4][views][channels]: scale, shift, mean, 1/sigma.
extern "C" __global__ void norm_moments(const float* partial, const float* pivots, int splits, long long rows, int views,
                                        int channels, const float* gamma, const float* beta, float* running_mean,
                                        float* running_variance, float momentum, float epsilon, float* statistics) {
    int channel = blockIdx.x * 8 + threadIdx.x;
    for (int view = 0; view < views; ++view) {
        double sum, square;
        sum_splits(partial, splits, channels, view, channel, sum, square);
        if (threadIdx.y != 0 || channel >= channels) continue;
        double shift = sum / (double)rows;
        float mean = (float)((double)pivots[view * channels + channel] + shift);
        double spread = square / (double)rows - shift * shift;
        float variance = (float)(spread > 0 ? spread : 0);
        float inverse = 1.0f / sqrtf(variance + epsilon);
        float scale = gamma[channel] * inverse;
        int at = view * channels + channel, all = views * channels;
        statistics[at] = scale;
        statistics[all + at] = beta[channel] - scale * mean;
        statistics[2 * all + at] = mean;
        statistics[3 * all + at] = inverse;
        float unbiased = rows > 1 ? (float)rows / (float)(rows - 1) : 1.0f;
        running_mean[channel] += momentum * (mean - running_mean[channel]);
        running_variance[channel] += momentum * (variance * unbiased - running_variance[channel]);
    }
}

// The affine map of the running statistics: scale and shift, [2][channels].
extern "C" __global__ void norm_running(const float* running_mean, const float* running_variance, const float* gamma,
                                        const float* beta, int channels, float epsilon, float* statistics) {
    int channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    float scale = gamma[channel] / sqrtf(running_variance[channel] + epsilon);
    statistics[channel] = scale;
    statistics[channels + channel] = beta[channel] - scale * running_mean[channel];
}

// y = scale * z + shift (+ residual), then ReLU if asked.
template <typename T, int V>
__device__ inline void apply_body(const T* z, const float* statistics, const T* residual, int relu, T* y, long long rows,
                                  int channels) {
    Place at = place<V>(rows, channels);
    if (at.idle) return;
    int all = gridDim.z * channels, base = blockIdx.z * channels + at.channel;
    float scale[V], shift[V], value[V], other[V];
    for (int i = 0; i < V; ++i) {
        scale[i] = statistics[base + i];
        shift[i] = statistics[all + base + i];
    }
    for (long long row = at.first; row < at.end; row += at.step) {
        long long from = row * channels + at.channel;
        load<T, V>(z + from, value);
        if (residual) load<T, V>(residual + from, other);
#pragma unroll
        for (int i = 0; i < V; ++i) {
            value[i] = scale[i] * value[i] + shift[i];
            if (residual) value[i] += other[i];
            // A NaN must come through, so that a diverged run is seen.
            if (relu && value[i] < 0.0f) value[i] = 0.0f;
        }
        store<T, V>(value, y + from);
    }
}

// What lets a gradient through: everything, where z normalised is above 0, or where y is.
#define MASK_NONE 0
#define MASK_Z 1
#define MASK_Y 2

// The gradient behind the ReLU: (dy + dy2) where the output was above 0.
template <typename T, int V>
__device__ inline void masked(const T* dy, const T* dy2, const T* y, int mask, const float (&z)[V], const float (&scale)[V],
                              const float (&shift)[V], long long from, float (&g)[V]) {
    load<T, V>(dy + from, g);
    float other[V];
    if (dy2) {
        load<T, V>(dy2 + from, other);
        for (int i = 0; i < V; ++i) g[i] += other[i];
    }
    if (mask == MASK_Y) {
        load<T, V>(y + from, other);
        for (int i = 0; i < V; ++i) g[i] = other[i] > 0.0f ? g[i] : 0.0f;
    } else if (mask == MASK_Z) {
        for (int i = 0; i < V; ++i) g[i] = scale[i] * z[i] + shift[i] > 0.0f ? g[i] : 0.0f;
    }
}

// Sums of g and of g * (z - mean).
template <typename T, int V>
__device__ inline void backward_sums_body(const T* dy, const T* dy2, const T* z, const T* y, int mask, const float* statistics,
                                          float* partial, long long rows, int channels) {
    Place at = place<V>(rows, channels);
    float sum[V] = {}, dot[V] = {}, scale[V], shift[V], mean[V], value[V], g[V];
    if (!at.idle) {
        int all = gridDim.z * channels, base = blockIdx.z * channels + at.channel;
        for (int i = 0; i < V; ++i) {
            scale[i] = statistics[base + i];
            shift[i] = statistics[all + base + i];
            mean[i] = statistics[2 * all + base + i];
        }
        for (long long row = at.first; row < at.end; row += at.step) {
            long long from = row * channels + at.channel;
            load<T, V>(z + from, value);
            masked<T, V>(dy, dy2, y, mask, value, scale, shift, from, g);
#pragma unroll
            for (int i = 0; i < V; ++i) {
                sum[i] += g[i];
                dot[i] += g[i] * (value[i] - mean[i]);
            }
        }
    }
    write_partial<V>(sum, dot, at, channels, partial);
}

// dz = scale * g + slope * z + shift for each view and channel, [3][views][channels], and the
// gradients of gamma and beta, written or added.
extern "C" __global__ void norm_backward_coefficients(const float* partial, int splits, long long rows, int views, int channels,
                                                      const float* statistics, float* coefficients, float* dgamma, float* dbeta,
                                                      int add) {
    int channel = blockIdx.x * 8 + threadIdx.x, all = views * channels;
    double gamma_gradient = 0, beta_gradient = 0;
    for (int view = 0; view < views; ++view) {
        double sum, dot;
        sum_splits(partial, splits, channels, view, channel, sum, dot);
        if (threadIdx.y != 0 || channel >= channels) continue;
        int at = view * channels + channel;
        double scale = statistics[at], mean = statistics[2 * all + at], inverse = statistics[3 * all + at];
        dot *= inverse;
        double slope = -scale * inverse * dot / (double)rows;
        coefficients[at] = (float)scale;
        coefficients[all + at] = (float)slope;
        coefficients[2 * all + at] = (float)(-scale * sum / (double)rows - slope * mean);
        gamma_gradient += dot;
        beta_gradient += sum;
    }
    if (threadIdx.y != 0 || channel >= channels) return;
    dgamma[channel] = (float)gamma_gradient + (add ? dgamma[channel] : 0.0f);
    dbeta[channel] = (float)beta_gradient + (add ? dbeta[channel] : 0.0f);
}

// dz, and where `skip` is given the gradient behind the ReLU, which is the residual's. dz may be dy.
template <typename T, int V>
__device__ inline void backward_body(const T* dy, const T* dy2, const T* z, const T* y, int mask, const float* statistics,
                                     const float* coefficients, T* dz, T* skip, long long rows, int channels) {
    Place at = place<V>(rows, channels);
    if (at.idle) return;
    int all = gridDim.z * channels, base = blockIdx.z * channels + at.channel;
    float scale[V], shift[V], a[V], b[V], c[V], value[V], g[V];
    for (int i = 0; i < V; ++i) {
        scale[i] = statistics[base + i];
        shift[i] = statistics[all + base + i];
        a[i] = coefficients[base + i];
        b[i] = coefficients[all + base + i];
        c[i] = coefficients[2 * all + base + i];
    }
    for (long long row = at.first; row < at.end; row += at.step) {
        long long from = row * channels + at.channel;
        load<T, V>(z + from, value);
        masked<T, V>(dy, dy2, y, mask, value, scale, shift, from, g);
        if (skip) store<T, V>(g, skip + from);
#pragma unroll
        for (int i = 0; i < V; ++i) value[i] = a[i] * g[i] + b[i] * value[i] + c[i];
        store<T, V>(value, dz + from);
    }
}

#define MAKE(T, V, NAME)                                                                                                    \
    extern "C" __global__ void norm_sums_##NAME(const T* z, float* partial, float* pivots, long long rows, int channels) {  \
        moments_body<T, V>(z, partial, pivots, rows, channels);                                                             \
    }                                                                                                                       \
    extern "C" __global__ void norm_apply_##NAME(const T* z, const float* statistics, const T* residual, int relu, T* y,    \
                                                 long long rows, int channels) {                                            \
        apply_body<T, V>(z, statistics, residual, relu, y, rows, channels);                                                 \
    }                                                                                                                       \
    extern "C" __global__ void norm_backward_sums_##NAME(const T* dy, const T* dy2, const T* z, const T* y, int mask,       \
                                                         const float* statistics, float* partial, long long rows,           \
                                                         int channels) {                                                    \
        backward_sums_body<T, V>(dy, dy2, z, y, mask, statistics, partial, rows, channels);                                 \
    }                                                                                                                       \
    extern "C" __global__ void norm_backward_##NAME(const T* dy, const T* dy2, const T* z, const T* y, int mask,            \
                                                    const float* statistics, const float* coefficients, T* dz, T* skip,     \
                                                    long long rows, int channels) {                                         \
        backward_body<T, V>(dy, dy2, z, y, mask, statistics, coefficients, dz, skip, rows, channels);                       \
    }
FOR_VALUES(MAKE)
#undef MAKE
