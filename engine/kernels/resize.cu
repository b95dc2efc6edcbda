// A tile's picture at a network size, as Pillow makes it, bit for bit: bicubic (a = -0.5), widened when
// shrinking; rows first, then columns; 8-bit fixed-point weights, the intermediate rounded to uint8.
//
// Once per tile and size, kept over mirror and iterations: not in the inner loop, hence two plain passes.
// Bytes: rows read 3 H W and write 3 H w; columns read 3 H w and write 3 h w (taps come from the cache).
#include "layouts.cuh"

constexpr int PRECISION_BITS = 32 - 8 - 2;

__device__ inline double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

// Grid: target pixels, axes. One thread: the weights of one output pixel, in double as Pillow's precompute_coeffs.
extern "C" __global__ void __launch_bounds__(THREADS) resample_weights(const Axis* axes) {
    const Axis axis = axes[blockIdx.y];
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= axis.target) return;
    const double scale = static_cast<double>(axis.source) / axis.target;
    const double widened = scale < 1.0 ? 1.0 : scale;
    const double support = 2.0 * widened, shrink = 1.0 / widened;
    const double centre = (i + 0.5) * scale;
    const int first = max(static_cast<int>(centre - support + 0.5), 0);
    const int count = min(static_cast<int>(centre + support + 0.5), axis.source) - first;
    double sum = 0.0;
    for (int t = 0; t < count; ++t) sum += bicubic((t + first - centre + 0.5) * shrink);
    axis.table[i] = first;
    axis.table[axis.target + i] = count;
    for (int t = 0; t < count; ++t) {
        double weight = bicubic((t + first - centre + 0.5) * shrink);
        if (sum != 0.0) weight /= sum;
        weight *= 1 << PRECISION_BITS;
        axis.table[(2 + t) * axis.target + i] = static_cast<int>(weight + (weight < 0 ? -0.5 : 0.5));
    }
}

__device__ inline u8 rounded(int sum) { return static_cast<u8>(min(max(sum >> PRECISION_BITS, 0), 255)); }

// Grid: pixels of the intermediate, items. One thread: the three channels of one pixel.
extern "C" __global__ void __launch_bounds__(THREADS) resize_rows(const ResizeItem* items, int reversed) {
    const ResizeItem item = items[blockIdx.y];
    if (blockIdx.x == 0 && threadIdx.x < 3) {  // resize_columns adds to them
        reinterpret_cast<Picture*>(item.picture)->sums[threadIdx.x] = 0;
    }
    const int plane = item.tile_height * item.width;
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= plane) return;
    const int y = i / item.width, x = i % item.width;
    const int first = item.across[x], count = item.across[item.width + x];
    const int* weights = item.across + 2 * item.width + x;
    const u8* pixel = item.tile + (static_cast<size_t>(y) * item.image_width + first) * 3;
    int sum[3] = {1 << (PRECISION_BITS - 1), 1 << (PRECISION_BITS - 1), 1 << (PRECISION_BITS - 1)};
    for (int t = 0; t < count; ++t) {
        const int weight = weights[t * item.width];
        for (int c = 0; c < 3; ++c) sum[c] += pixel[3 * t + c] * weight;
    }
    for (int c = 0; c < 3; ++c) {
        item.rows[static_cast<size_t>(reversed ? 2 - c : c) * plane + i] = rounded(sum[c]);
    }
}

constexpr int COLUMN_ROUNDS = 8;  // pixels per thread, so that one sum per block and channel is few atomics

// Grid: pixels of the picture, items, channels.
extern "C" __global__ void __launch_bounds__(THREADS) resize_columns(const ResizeItem* items) {
    __shared__ u32 scratch[THREADS / WARP];
    const ResizeItem item = items[blockIdx.y];
    const int plane = item.height * item.width;
    const int start = blockIdx.x * THREADS * COLUMN_ROUNDS;
    if (start >= plane) return;
    const u8* rows = item.rows + static_cast<size_t>(blockIdx.z) * item.tile_height * item.width;
    u8* out = item.picture + PLANES_AT + static_cast<size_t>(blockIdx.z) * plane;
    u32 total = 0;
    for (int round = 0; round < COLUMN_ROUNDS; ++round) {
        const int i = start + round * THREADS + threadIdx.x;
        if (i >= plane) break;
        const int y = i / item.width, x = i % item.width;
        const int first = item.down[y], count = item.down[item.height + y];
        const int* weights = item.down + 2 * item.height + y;
        int sum = 1 << (PRECISION_BITS - 1);
        for (int t = 0; t < count; ++t) sum += rows[(first + t) * item.width + x] * weights[t * item.height];
        const u8 value = rounded(sum);
        out[i] = value;
        total += value;
    }
    total = block_reduce<Sum>(total, 0u, scratch);
    if (threadIdx.x == 0) {  // integers: any order gives the same
        atomicAdd(&reinterpret_cast<Picture*>(item.picture)->sums[blockIdx.z], static_cast<u64>(total));
    }
}

// Grid: items / THREADS. What erased pixels become: the mean of the normalised picture (method.md §3 step 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    mean_colours(const ResizeItem* items, int count, const Normalisation* normalisation) {
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) return;
    Picture* picture = reinterpret_cast<Picture*>(items[i].picture);
    const double pixels = static_cast<double>(items[i].height) * items[i].width;
    for (int c = 0; c < 3; ++c) {
        const double mean = static_cast<double>(picture->sums[c]) / pixels;
        const Normalisation& n = *normalisation;
        picture->fill[c] = static_cast<float>((mean * n.scale - n.mean[c]) / n.std[c]);
    }
}
