// The maps of an image from its tiles': each tile at its place, the maximum where they overlap, 0 where there is
// none; then with the whole image's own map (engine/method/README.md §2).
//
// Bytes per pixel and class: 4 written, 4 read per tile that covers it (1 to 4). Every output pixel looks for its
// tiles, so nothing is read and written twice and no atomics are needed. What bounds it is waiting, not bytes: a
// call is of one image, 3 MB for two classes of 375x500, which is 1 microsecond of a copy and less than a launch
// takes. So what is left is to wait seldom: a block takes all descriptors into shared memory at once, where each
// was fetched from behind the one before, keeps those of the tiles that it meets and that have its class, and
// then has the reads of its rows under way together.
#include "layouts.cuh"

constexpr int UNITE_COLUMNS = 64;
constexpr int UNITE_ROWS = 4;  // per thread: a small image is many blocks too
constexpr int UNITE_BLOCK_ROWS = THREADS / UNITE_COLUMNS * UNITE_ROWS;
constexpr int PARTS_AT_ONCE = 64;  // in shared memory

enum Mode { MODE_MAX = 0, MODE_SUM = 1, MODE_MEAN = 2 };  // layouts.MODES
enum Join { JOIN_NONE = 0, JOIN_ONLY = 1, JOIN_MAX = 2, JOIN_MEAN = 3 };  // layouts.JOINS

// What a tile's map becomes: by is what it is divided by, 0: nothing.
__device__ inline float divisor_of(const PartItem& part, int k, int mode) {
    if (mode == MODE_SUM) return divisor(part.peaks[k], 0.0f);
    return mode == MODE_MEAN ? part.iterations : 0.0f;
}

__device__ inline float last(float value, float by, int mode) {
    if (mode == MODE_SUM) return normalised(value, by);
    return mode == MODE_MEAN ? value / by : value;
}

// A tile's map of one class, and its box in the image.
struct Part {
    const float* map;
    int y0, y1, x0, x1;
    float by;

    __device__ void set(const PartItem& item, int k, int mode) {
        map = item.maps + static_cast<size_t>(k) * item.stride;
        y0 = item.y0;
        x0 = item.x0;
        y1 = y0 + item.height;
        x1 = x0 + item.width;
        by = divisor_of(item, k, mode);
    }
    __device__ float at(int y, int x) const { return __ldg(map + ((y - y0) * (x1 - x0) + x - x0)); }
};

// Grid: column blocks, row blocks, classes. packet: PartItem[parts], then, unless join is none, the whole image's.
extern "C" __global__ void __launch_bounds__(THREADS)
    unite(const char* packet, float* out, int height, int width, int parts, int mode, int join, float weight) {
    __shared__ Part shared[PARTS_AT_ONCE];
    __shared__ Part whole;
    const PartItem* items = reinterpret_cast<const PartItem*>(packet);
    const int k = blockIdx.z, thread = threadIdx.x;
    const int x = blockIdx.x * UNITE_COLUMNS + thread % UNITE_COLUMNS;
    const int y0 = blockIdx.y * UNITE_BLOCK_ROWS + thread / UNITE_COLUMNS * UNITE_ROWS;
    const int rows = x < width ? min(UNITE_ROWS, height - y0) : 0;  // of this thread; may be negative
    if (join != JOIN_NONE && thread == THREADS - 1) whole.set(items[parts], k, mode);
    float values[UNITE_ROWS] = {};
    for (int from = 0; from == 0 || from < parts; from += PARTS_AT_ONCE) {
        const int count = min(parts - from, PARTS_AT_ONCE);
        __syncthreads();  // what was shared before has been used
        if (thread < count) {
            const PartItem item = items[from + thread];
            shared[thread].set(item, k, mode);
            if (!packet[item.takes_at + k]) shared[thread].x1 = shared[thread].x0;  // nowhere
        }
        __syncthreads();
        for (int p = 0; p < count; ++p) {
            const Part& part = shared[p];
            if (x < part.x0 || x >= part.x1) continue;
            float found[UNITE_ROWS] = {};
#pragma unroll
            for (int r = 0; r < UNITE_ROWS; ++r) {
                if (y0 + r >= part.y0 && y0 + r < part.y1) found[r] = part.at(y0 + r, x);
            }
#pragma unroll
            for (int r = 0; r < UNITE_ROWS; ++r) values[r] = fmaxf(values[r], last(found[r], part.by, mode));
        }
    }
    out += (static_cast<size_t>(k) * height + y0) * width + x;
#pragma unroll
    for (int r = 0; r < UNITE_ROWS; ++r) {
        if (r >= rows) break;
        float value = values[r];
        if (join != JOIN_NONE) {  // its box is the image
            const float other = last(whole.at(y0 + r, x), whole.by, mode);
            if (join == JOIN_ONLY) value = other;
            if (join == JOIN_MAX) value = fmaxf(value, other);
            if (join == JOIN_MEAN) value = value * (1.0f - weight) + weight * other;
        }
        out[static_cast<size_t>(r) * width] = value;
    }
}
