// BYOL's loss with its gradient (Grill et al. 2020, eq. 2), and the spread of the representations.
#include "common.cuh"

// A block of 256 threads takes one row of predictions [rows][features] and the row of projections
// that is the same picture's other view. loss[row] = 2 - 2 cos; gradient = that of factor * sum(loss).
template <typename T>
__device__ inline void loss_body(const float* predictions, const float* projections, float* loss, T* gradient, int rows,
                                 int features, float factor) {
    int row = blockIdx.x;
    const float* q = predictions + (long long)row * features;
    const float* z = projections + (long long)((row + rows / 2) % rows) * features;
    float qq = 0, zz = 0, qz = 0;
    for (int i = threadIdx.x; i < features; i += 256) {
        qq += q[i] * q[i];
        zz += z[i] * z[i];
        qz += q[i] * z[i];
    }
    // As the CPU's: a row of zeros stays zeros.
    float q_norm = sqrtf(block_sum(qq) + 1e-12f), z_norm = sqrtf(block_sum(zz) + 1e-12f);
    float cosine = block_sum(qz) / (q_norm * z_norm);
    if (threadIdx.x == 0) loss[row] = 2.0f - 2.0f * cosine;
    for (int i = threadIdx.x; i < features; i += 256)
        narrow(-2.0f * factor * (z[i] / z_norm - cosine * q[i] / q_norm) / q_norm, gradient[(long long)row * features + i]);
}

extern "C" __global__ void loss_f32(const float* predictions, const float* projections, float* loss, float* gradient, int rows,
                                    int features, float factor) {
    loss_body<float>(predictions, projections, loss, gradient, rows, features, factor);
}
extern "C" __global__ void loss_bf16(const float* predictions, const float* projections, float* loss, bf16* gradient, int rows,
                                     int features, float factor) {
    loss_body<bf16>(predictions, projections, loss, gradient, rows, features, factor);
}

// 1 / length of each row; a block of 256 threads a row.
extern "C" __global__ void row_lengths(const float* x, float* inverse, int features) {
    const float* row = x + (long long)blockIdx.x * features;
    float square = 0;
    for (int i = threadIdx.x; i < features; i += 256) square += row[i] * row[i];
    float length = sqrtf(block_sum(square));
    if (threadIdx.x == 0) inverse[blockIdx.x] = 1.0f / (length > 1e-12f ? length : 1e-12f);
}

// Standard deviation of each feature over the rows scaled to length 1. A block has 32 x 8 threads:
// 32 features, 8 rows at a time.
extern "C" __global__ void feature_spread(const float* x, const float* inverse, float* spread, int rows, int features) {
    __shared__ double sums[2][8][32];
    int feature = blockIdx.x * 32 + threadIdx.x;
    double sum = 0, square = 0;
    if (feature < features)
        for (int row = threadIdx.y; row < rows; row += 8) {
            double value = (double)x[(long long)row * features + feature] * inverse[row];
            sum += value;
            square += value * value;
        }
    sums[0][threadIdx.y][threadIdx.x] = sum;
    sums[1][threadIdx.y][threadIdx.x] = square;
    __syncthreads();
    if (threadIdx.y != 0 || feature >= features) return;
    for (int i = 1; i < 8; ++i) {
        sum += sums[0][i][threadIdx.x];
        square += sums[1][i][threadIdx.x];
    }
    double mean = sum / rows, variance = square / rows - mean * mean;
    spread[feature] = variance > 0 ? (float)sqrt(variance) : 0.0f;
}

// report[0] += share * 2 * mean(loss); report[1] += share * sqrt(features) * mean(spread). One block of 256.
extern "C" __global__ void add_report(const float* loss, int rows, const float* spread, int features, float share,
                                      float* report) {
    float sum = 0, spreads = 0;
    for (int i = threadIdx.x; i < rows; i += 256) sum += loss[i];
    for (int i = threadIdx.x; i < features; i += 256) spreads += spread[i];
    sum = block_sum(sum);
    spreads = block_sum(spreads);
    if (threadIdx.x != 0) return;
    report[0] += share * 2.0f * sum / (float)rows;
    report[1] += share * spreads / sqrtf((float)features);
}
