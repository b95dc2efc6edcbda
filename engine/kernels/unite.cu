// The maps of an image from its tiles': each tile at its place, the maximum where they overlap, 0 where there is
// none; then with the whole image's own map (engine/method/README.md §2).
//
// Bytes per pixel and class: 4 written, 4 read per tile that covers it (1 to 4). Every output pixel looks for its
// tiles, so nothing is read and written twice and no atomics are needed.
#include "layouts.cuh"

constexpr int UNITE_COLUMNS = 64;
constexpr int UNITE_ROWS = 8;  // per thread
constexpr int UNITE_BLOCK_ROWS = THREADS / UNITE_COLUMNS * UNITE_ROWS;

enum Mode { MODE_MAX = 0, MODE_SUM = 1, MODE_MEAN = 2 };  // layouts.MODES
enum Join { JOIN_NONE = 0, JOIN_ONLY = 1, JOIN_MAX = 2, JOIN_MEAN = 3 };  // layouts.JOINS

struct Final {
    int mode;
    float by;
    __device__ Final(const PartItem& part, int k, int mode) : mode(mode), by(part.iterations) {
        if (mode == MODE_SUM) by = divisor(part.peaks[k], 0.0f);
    }
    __device__ float of(float value) const {
        if (mode == MODE_SUM) return normalised(value, by);
        return mode == MODE_MEAN ? value / by : value;
    }
};

// Grid: column blocks, row blocks, classes. packet: PartItem[parts], then, unless join is none, the whole image's.
extern "C" __global__ void __launch_bounds__(THREADS)
    unite(const char* packet, float* out, int height, int width, int parts, int mode, int join, float weight) {
    const PartItem* items = reinterpret_cast<const PartItem*>(packet);
    const int k = blockIdx.z;
    const int x = blockIdx.x * UNITE_COLUMNS + threadIdx.x % UNITE_COLUMNS;
    const int y0 = blockIdx.y * UNITE_BLOCK_ROWS + threadIdx.x / UNITE_COLUMNS * UNITE_ROWS;
    if (x >= width) return;
    float values[UNITE_ROWS] = {};
    for (int p = 0; p < parts; ++p) {
        const PartItem part = items[p];
        if (x < part.x0 || x >= part.x0 + part.width || !packet[part.takes_at + k]) continue;
        const Final last(part, k, mode);
        const float* map = part.maps + static_cast<size_t>(k) * part.stride + (x - part.x0);
#pragma unroll
        for (int r = 0; r < UNITE_ROWS; ++r) {
            const int row = y0 + r - part.y0;
            if (row < 0 || row >= part.height) continue;
            values[r] = fmaxf(values[r], last.of(map[static_cast<size_t>(row) * part.width]));
        }
    }
    out += (static_cast<size_t>(k) * height + y0) * width + x;
    const int rows = min(UNITE_ROWS, height - y0);
    if (join != JOIN_NONE) {  // its box is the image
        const PartItem part = items[parts];
        const Final last(part, k, mode);
        const float* map = part.maps + static_cast<size_t>(k) * part.stride + static_cast<size_t>(y0) * width + x;
#pragma unroll
        for (int r = 0; r < UNITE_ROWS; ++r) {
            if (r >= rows) break;
            const float whole = last.of(map[static_cast<size_t>(r) * width]);
            if (join == JOIN_ONLY) values[r] = whole;
            if (join == JOIN_MAX) values[r] = fmaxf(values[r], whole);
            if (join == JOIN_MEAN) values[r] = values[r] * (1.0f - weight) + weight * whole;
        }
    }
#pragma unroll
    for (int r = 0; r < UNITE_ROWS; ++r) {
        if (r >= rows) break;
        out[static_cast<size_t>(r) * width] = values[r];
    }
}
