// The maps of an image from its tiles': each tile at its place, the maximum where they overlap, 0 where there is
// none; then with the whole image's own map (method.md §2).
//
// Bytes per pixel and class: 4 written, 4 read per tile that covers it (1 to 4). Every output pixel looks for its
// tiles, so nothing is read and written twice and no atomics are needed.
#include "layouts.cuh"

constexpr int UNITE_COLUMNS = 64;
constexpr int UNITE_ROWS = 8;  // per thread
constexpr int UNITE_BLOCK_ROWS = THREADS / UNITE_COLUMNS * UNITE_ROWS;

enum Mode { MODE_MAX = 0, MODE_SUM = 1, MODE_MEAN = 2 };  // layouts.MODES
enum Join { JOIN_NONE = 0, JOIN_ONLY = 1, JOIN_MAX = 2, JOIN_MEAN = 3 };  // layouts.JOINS

__device__ inline float final_value(const PartItem& part, int k, int y, int x, int mode) {
    const size_t at = static_cast<size_t>(y - part.y0) * part.width + (x - part.x0);
    const float value = part.maps[static_cast<size_t>(k) * part.stride + at];
    if (mode == MODE_SUM) return normalised(value, divisor(part.peaks[k], 0.0f));
    if (mode == MODE_MEAN) return value / part.iterations;
    return value;
}

// Grid: column blocks, row blocks, classes. packet: PartItem[parts], then, unless join is none, the whole image's.
extern "C" __global__ void __launch_bounds__(THREADS)
    unite(const char* packet, float* out, int height, int width, int parts, int mode, int join, float weight) {
    const PartItem* items = reinterpret_cast<const PartItem*>(packet);
    const int k = blockIdx.z;
    const int x = blockIdx.x * UNITE_COLUMNS + threadIdx.x % UNITE_COLUMNS;
    const int from = blockIdx.y * UNITE_BLOCK_ROWS + threadIdx.x / UNITE_COLUMNS * UNITE_ROWS;
    if (x >= width) return;
    for (int y = from; y < min(from + UNITE_ROWS, height); ++y) {
        float value = 0.0f;
        for (int p = 0; p < parts; ++p) {
            const PartItem& part = items[p];
            const bool inside = y >= part.y0 && y < part.y0 + part.height && x >= part.x0 && x < part.x0 + part.width;
            if (inside && packet[part.takes_at + k]) value = fmaxf(value, final_value(part, k, y, x, mode));
        }
        if (join != JOIN_NONE) {
            const float whole = final_value(items[parts], k, y, x, mode);
            if (join == JOIN_ONLY) value = whole;
            if (join == JOIN_MAX) value = fmaxf(value, whole);
            if (join == JOIN_MEAN) value = value * (1.0f - weight) + weight * whole;
        }
        out[(static_cast<size_t>(k) * height + y) * width + x] = value;
    }
}
