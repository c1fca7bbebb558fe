// elementwise.cu - what touches every number once and by itself: dropout, casts, sums, scaling.
//
// Memory limits all of these, so a thread moves 16 bytes at a time and has two such loads under way, or more.
// To move, for a number of 16 bits:
//
//     dropout    y = x keep scale        4        16,384 x 768 at 4.3 TB/s: 12 us
//     cast       to = from               6        from or to float32
//     add        out = out + x           6        likewise 18 us
//     scale_by   x = x factor            4        likewise 12 us
//
// Addresses are multiples of 16 bytes. Zeros need no kernel: a memset writes them, in a captured graph too.
#include "prelude.cuh"

// ---- dropout
//
// The derivative of x keep scale is keep scale: backward is the same kernel on dy, and as it draws the same
// numbers again, no mask is kept. A draw is a byte, and one Philox block holds those of 16 columns. So
// drawing costs some five instructions a number, and using the draw four.
//
// x, y [rows, width], where y may be x; the width a multiple of 8. What draws less than `threshold` is
// dropped, and scale = 256 / (256 - threshold). A thread has 16 columns, at the end of a row perhaps 8.
// grid (rows * (width / 16 rounded up) / 256, rounded up).
template <class T> KERNEL(256)
dropout(const T* x, T* y, const uint32_t* run, uint32_t part, uint32_t site, uint32_t threshold, float scale,
        int rows, int width) {
    int blocks = (width + 15) / 16, item = blockIdx.x * 256 + threadIdx.x;
    int row = item / blocks, block = item % blocks;
    if (row < rows) {
        size_t at = size_t(row) * width + block * 16;
        float z[2][8];
#pragma unroll
        for (int k = 0; k < 2; k++)
            if (block * 16 + k * 8 < width) load8(z[k], x + at + k * 8);
        uint4 words = draws(run, part, site, row, block);
        uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            if (block * 16 + k * 8 >= width) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                bool keep = draw(word[2 * k + i / 4], i % 4) >= threshold;
                z[k][i] = keep ? z[k][i] * scale : 0.f;
            }
            store8(y + at + k * 8, z[k]);
        }
    }
}

// ---- flat arrays
//
// Of n numbers, any n up to 2^31 - 4096. A block has 4096 in a row, a thread two times eight of them, 2048
// apart. In the last block, if it is not full, the threads take them one by one. (Eight floats are two loads,
// and threads are 32 bytes apart: the first load brings the line into L1, where the second finds it.)
// grid (n / 4096 rounded up).

constexpr int EACH = 4096, APART = EACH / 2;

// to = from, rounded. One of the two types is float.
template <class From, class To> KERNEL(256) cast(const From* __restrict__ from, To* __restrict__ to, int n) {
    int begin = blockIdx.x * EACH, at = begin + threadIdx.x * 8;
    if (n - begin < EACH) {
        for (int i = begin + threadIdx.x; i < n; i += 256) to[i] = narrow<To>(wide(from[i]));
        return;
    }
    float x[2][8];
#pragma unroll
    for (int k = 0; k < 2; k++) load8(x[k], from + at + k * APART);
#pragma unroll
    for (int k = 0; k < 2; k++) store8(to + at + k * APART, x[k]);
}

// out = out + x: what two branches send back to the place where they parted.
template <class T> KERNEL(256) add(T* __restrict__ out, const T* __restrict__ x, int n) {
    int begin = blockIdx.x * EACH, at = begin + threadIdx.x * 8;
    if (n - begin < EACH) {
        for (int i = begin + threadIdx.x; i < n; i += 256) out[i] = narrow<T>(wide(out[i]) + wide(x[i]));
        return;
    }
    float sum[2][8], more[2][8];
#pragma unroll
    for (int k = 0; k < 2; k++) {
        load8(sum[k], out + at + k * APART);
        load8(more[k], x + at + k * APART);
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
#pragma unroll
        for (int i = 0; i < 8; i++) sum[k][i] += more[k][i];
        store8(out + at + k * APART, sum[k]);
    }
}

// x = x * factor[0], which an earlier kernel has computed: to clip gradients, or to undo the scale of a loss.
template <class T> KERNEL(256) scale_by(T* __restrict__ x, const float* __restrict__ factor, int n) {
    int begin = blockIdx.x * EACH, at = begin + threadIdx.x * 8;
    float by = factor[0];
    if (n - begin < EACH) {
        for (int i = begin + threadIdx.x; i < n; i += 256) x[i] = narrow<T>(wide(x[i]) * by);
        return;
    }
    float z[2][8];
#pragma unroll
    for (int k = 0; k < 2; k++) load8(z[k], x + at + k * APART);
#pragma unroll
    for (int k = 0; k < 2; k++) {
#pragma unroll
        for (int i = 0; i < 8; i++) z[k][i] *= by;
        store8(x + at + k * APART, z[k]);
    }
}

// instances, and the registers that each may use:
//     dropout<bf16>       40
//     dropout<f16>        40
//     dropout<float>      40
//     cast<float,bf16>    40
//     cast<float,f16>     48
//     cast<bf16,float>    40
//     cast<f16,float>     40
//     add<bf16>           40
//     add<f16>            48
//     add<float>          48
//     scale_by<bf16>      40
//     scale_by<f16>       40
//     scale_by<float>     40
