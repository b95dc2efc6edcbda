// The centre of mass (y, x) of every (tile, class)'s normalised map, truncated; an all-zero map has the middle of
// the image (engine/method/README.md §2). One launch; once per image.
//
// Bytes per pixel and class: 4 read. One block per map: its sums are in float64 and in an order that only the map's
// size decides, so that centres, and with them the tiles, never depend on the batch.
#include "layouts.cuh"

constexpr int CENTRE_THREADS = 1024;  // one block has the map for itself: as many loads in flight as it can

// Grid: 1, items, classes.
extern "C" __global__ void __launch_bounds__(CENTRE_THREADS) centre_of_mass(const char* packet) {
    __shared__ double scratch[CENTRE_THREADS / WARP];
    const TileItem item = reinterpret_cast<const TileItem*>(packet)[blockIdx.y];
    const int k = blockIdx.z;
    if (!item.locate || k >= item.classes) return;
    const float floor = item.floor_at < 0 ? 0.0f : reinterpret_cast<const float*>(packet + item.floor_at)[k];
    const float by = divisor(__int_as_float(static_cast<int>(item.result[1 + k])), floor);
    const float* map = item.total + static_cast<size_t>(k) * item.stride;
    const int pixels = item.height * item.width;
    constexpr int N = Pack<float>::SIZE;
    double weight = 0.0, down = 0.0, across = 0.0;
    for (int i = threadIdx.x * N; i < pixels; i += CENTRE_THREADS * N) {
        const Pack<float> pack = *reinterpret_cast<const Pack<float>*>(map + i);
        int y = i / item.width, x = i % item.width;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if (i + j >= pixels) break;  // what follows the last pixel is not the map's
            const double value = normalised(pack.at[j], by);
            weight += value;
            down += value * y;
            across += value * x;
            if (++x == item.width) {
                x = 0;
                ++y;
            }
        }
    }
    weight = block_reduce<Sum>(weight, 0.0, scratch);
    down = block_reduce<Sum>(down, 0.0, scratch);
    across = block_reduce<Sum>(across, 0.0, scratch);
    if (threadIdx.x != 0) return;
    int* centre = reinterpret_cast<int*>(item.result) + 1 + item.classes + 2 * k;
    centre[0] = weight > 0.0 ? static_cast<int>(down / weight) : item.height / 2;
    centre[1] = weight > 0.0 ? static_cast<int>(across / weight) : item.width / 2;
}
