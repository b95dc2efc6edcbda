// Views that a network of one size sees in windows (Recipe.windows): cut out of the whole view before it, and their
// responses put together after it. Written for clarity; neither was measured on a GPU.
//
// Bytes per value: cut reads and writes 4 or 2; patch reads 4 for each window that covers the cell (up to 4 of a view,
// mostly 1 or 2, and once more the mirrored view's), and reads and writes 4.
#include "layouts.cuh"

template <typename T>
__device__ void cut_window(const char* packet, T* out, int h, int w) {
    const CutItem item = reinterpret_cast<const CutItem*>(packet)[blockIdx.y];
    const int plane = h * w;
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= CHANNELS * plane) return;
    const int c = i / plane, y = item.y + i % plane / w, x = item.x + i % w;
    const T* whole = static_cast<const T*>(item.whole);
    out[static_cast<size_t>(blockIdx.y) * CHANNELS * plane + i] =
        whole[(static_cast<size_t>(c) * item.height + y) * item.width + x];
}

// Grid: values of a window, windows. packet: CutItem[windows]. out: windows×3×h×w.
extern "C" __global__ void __launch_bounds__(THREADS) cut_float(const char* packet, float* out, int h, int w) {
    cut_window(packet, out, h, w);
}

extern "C" __global__ void __launch_bounds__(THREADS) cut_half(const char* packet, u16* out, int h, int w) {
    cut_window(packet, out, h, w);
}

// Grid: kept values of the whole view, items; no two items of one `low`. response: N×all_classes×h×w. Windows are added
// in the order of the item's list.
extern "C" __global__ void __launch_bounds__(THREADS)
    patch(const char* packet, const float* response, int all_classes, int h, int w) {
    const PatchItem item = reinterpret_cast<const PatchItem*>(packet)[blockIdx.y];
    const int plane = item.height * item.width;
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= item.classes * plane) return;
    const int chosen = reinterpret_cast<const int*>(packet + item.classes_at)[i / plane];
    const int y = i % plane / item.width, x = i % item.width;
    const PatchPart* parts = reinterpret_cast<const PatchPart*>(packet + item.parts_at);
    float value = item.low[i];
    for (int p = 0; p < item.parts; ++p) {
        const PatchPart part = parts[p];
        const int row = y - part.y, column = (part.mirrored ? item.width - 1 - x : x) - part.x;
        if (row < 0 || row >= h || column < 0 || column >= w) continue;
        const float rows = reinterpret_cast<const float*>(packet + part.rows_at)[row];
        const float columns = reinterpret_cast<const float*>(packet + part.columns_at)[column];
        const size_t channel = static_cast<size_t>(part.slot) * all_classes + chosen;
        value += relu(response[(channel * h + row) * w + column]) * (rows * columns);
    }
    item.low[i] = value;
}
