// Descriptors: one struct per item of a call. device/layouts.py has the same as NumPy dtypes; a test compares
// every offset. Arrays of changing length follow the descriptors in the same upload ("packet"); `*_at` are byte
// offsets into it.
#pragma once

#include "common.cuh"

constexpr int CHANNELS = 3;

// Head of a picture; 3×h×w uint8 planes follow at PLANES_AT, in the network's channel order.
struct Picture {
    i64 sums[3];     // of each normalised plane, in units of Normalisation.unit
    float fill[3];   // mean of the normalised plane
    float unused;
};
constexpr int PLANES_AT = 64;

// One axis of a resize: `source` pixels to `target`.
struct Axis {
    int* table;  // written: first[target], count[target], weights[taps][target]
    int source;
    int target;
    int taps;
    int unused;
};

struct ResizeItem {
    const u8* tile;  // its first pixel in the image
    u8* middle;      // scratch: 3×middle_height×middle_pitch, resized along one axis
    u8* picture;
    const int* first;  // tables of the axes, in the order of the passes
    const int* second;
    int image_width;
    int middle_height;
    int middle_width;
    int middle_pitch;  // bytes from row to row: middle_width, rounded up to 8
    int height;        // of the network's input
    int width;
    int columns_first;
    int unused;
};

// How a byte becomes the network's input, per channel in the network's order.
struct Normalisation {
    float values[3][256];
    u16 halves[3][256];
    // the values once more, in units of `unit`, so that their sum is exact in any order: first + step * byte + rest
    int rest[3][256];  // 0 of byte 0
    i64 first[3];
    i64 step[3];
    double unit;
};

// One step of a mask's nearest-neighbour resize, from the larger index to the smaller.
struct MaskStep {
    float down;  // source / target rows, in float32 as reference.nearest_index
    float across;
    int last_row;  // source rows - 1
    int last_column;
};

struct EraseSlot {
    const u8* picture;
    const u8* erased;  // 0: nothing
    int tile_width;
    int mirrored;
    int mask_mirrored;
    int steps_at;  // MaskStep[steps], from the network's size to the tile's
    int steps;
    int unused;
};

struct GatherItem {
    float* low;
    int classes_at;  // int[classes]
    int classes;
    int plain;  // slot, -1: none
    int mirrored;
    int add;
    int unused;
};

// A window of a view as the network sees it: normalised, mirrored, erased (Recipe.windows).
struct CutItem {
    const void* whole;  // 3×height×width
    int height;
    int width;
    int y;  // first pixel of the window
    int x;
};

// Windows of one view, and of its mirror image, to its low map.
struct PatchItem {
    float* low;
    int classes_at;  // int[classes]
    int classes;
    int height;  // of the low map
    int width;
    int parts_at;  // PatchPart[parts]
    int parts;
};

struct PatchPart {
    int slot;
    int mirrored;
    int y;  // first cell, in the mirror image where it is of that
    int x;
    int rows_at;  // float[h], float[w]: what each of its cells counts for
    int columns_at;
};

struct LowMap {
    const float* data;
    int height;
    int width;
};

// One tile's iteration. Maps are planes of `stride` floats (the pixels, rounded up to 4).
constexpr int ADDS = 1, COMPETES = 2;
struct TileItem {
    float* total;        // summed views; `accumulated` itself in the first iteration
    float* accumulated;  // 0: only the peak is wanted (and the centres)
    u8* erased;
    u32* result;  // newly erased; float peak[classes]; int centre[classes][2]
    u32* ranks;   // RankState[classes] where the peak is a quantile, else 0
    int height;
    int width;
    int stride;
    int classes;
    int lows_at;  // LowMap[lows]
    int lows;
    int floor_at;  // float[classes]; -1: none
    int rank;      // the quantile's place among the sorted pixels
    int first;
    int join;  // ADDS: to the maps before, else their maximum; COMPETES: only where no class was higher before
    int locate;
    float threshold;
};

// Where the search for one class's quantile stands: the value's leading bits, and how many of the pixels that
// share them are below it. The histogram is of the next bits.
constexpr int RANK_BINS = 2048;
struct RankState {
    u32 prefix;
    u32 below;
    u32 histogram[RANK_BINS];
};

struct PartItem {
    const float* maps;
    float* peaks;  // maximum of each plane, for a sum; else 0
    int y0;
    int x0;
    int height;
    int width;
    int stride;
    int takes_at;  // u8[classes]
    float iterations;
    int unused;
};
