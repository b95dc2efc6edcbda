// The present classes of a batch's response, to the tiles' low maps: ReLU, the mirrored view un-mirrored and added
// (both commute with upsampling: one upsampling then serves the pair). Two addends, so their order does not matter.
//
// Bytes per kept value: 4 or 8 read, 4 written (or 4 read and written when the pair came in two batches).
#include "layouts.cuh"

// Grid: kept values, items. response: N×all_classes×h×w.
extern "C" __global__ void __launch_bounds__(THREADS)
    gather(const char* packet, const float* response, int all_classes, int h, int w) {
    const GatherItem item = reinterpret_cast<const GatherItem*>(packet)[blockIdx.y];
    const int plane = h * w;
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= item.classes * plane) return;
    const int chosen = reinterpret_cast<const int*>(packet + item.classes_at)[i / plane];
    const int at = i % plane, x = at % w;
    float value = item.add ? item.low[i] : 0.0f;
    if (item.plain >= 0) {
        const size_t channel = static_cast<size_t>(item.plain) * all_classes + chosen;
        value += relu(response[channel * plane + at]);
    }
    if (item.mirrored >= 0) {
        const size_t channel = static_cast<size_t>(item.mirrored) * all_classes + chosen;
        value += relu(response[channel * plane + at - x + w - 1 - x]);
    }
    item.low[i] = value;
}
