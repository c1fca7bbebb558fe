// gelu.cu - the activation between the two matrices of an MLP: y = curve(x + bias), forwards and backwards.
//
//     forward     z = x + bias,  y = curve(z)
//     backward    z = x + bias,  dx = dy curve'(z),  dbias[column] = sum over rows of dx
//
// The curves are those of curves.cuh: GELU in its two forms, and ReLU. The slope is computed again from x:
// to keep the slope instead would be one array more for the forward to write. ReLU's slope can be had from
// y, which has to be kept anyway, so for ReLU no x is kept: its backward is given y in place of x, and no
// bias.
//
// To move, for numbers of 16 bits: 4 bytes a number forwards, 6 backwards, and for dbias 4 bytes for every
// 64 numbers, written and read. At 16,384 x 3,072 and 4.3 TB/s these are 47 us and 70 us. What limits:
// memory, with an eye on the instructions, of which there is time for 27 a number forwards, 41 backwards.
//
// x, y, dy, dx [rows, width], bias [width]. A width is a multiple of 8, an address of 16 bytes. Arrays may
// coincide: y may be x, and dx may be dy.
//
// A block has a strip of 256 columns, and of that 64 rows. A lane owns 8 neighbouring columns all the way
// down, so it loads their bias once and adds up their dbias in registers. A row of the strip, 512 bytes, is
// one load of a warp. The eight warps take the rows two by two, and ask for all that they need of both
// before they wait for any of it. So there is no branch around a load: where the second row is missing, the
// first is loaded twice.
#include "prelude.cuh"
#include "curves.cuh"

constexpr int STRIP = 256, ROWS = 64, WARPS = 8, AT_ONCE = 2;

// How many blocks an SM should hold at once. Unless told, the compiler makes room for more: it saves
// registers by loading late, and a thread then waits for memory twice.
#define BLOCKS(count) __global__ void __launch_bounds__(256, count)

// grid (width / 256 rounded up, rows / 64 rounded up). bias may be null.
template <class T, int FORM> BLOCKS(6) activate(const T* x, const T* bias, T* y, int rows, int width) {
    int column = blockIdx.x * STRIP + threadIdx.x % 32 * 8, warp = threadIdx.x / 32;
    int first = blockIdx.y * ROWS;
    int last = column < width ? min(rows - first, ROWS) : 0;            // a lane beyond the width has no rows
    x += size_t(first) * width + column;
    y += size_t(first) * width + column;
    float shift[8] = {};
    if (bias && column < width) load8(shift, bias + column);
    for (int row = warp * AT_ONCE; row < last; row += WARPS * AT_ONCE) {
        float z[AT_ONCE][8];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) load8(z[k], x + min(row + k, last - 1) * width);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
#pragma unroll
            for (int i = 0; i < 8; i++) z[k][i] = curve<T, FORM>(z[k][i] + shift[i]).y;
            if (row + k < last) store8(y + (row + k) * width, z[k]);
        }
    }
}

// The same grid. Each block leaves the sums of its columns in its row of partial, [rows / 64 rounded up,
// width], for sum_partials to add; partial may be null. shared: 8 KB.
template <class T, int FORM>
BLOCKS(3) activate_grad(const T* x, const T* bias, const T* dy, T* dx, float* partial, int rows, int width) {
    SHARED(shared);
    float* sums = (float*)shared;                                       // [WARPS, STRIP]
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int column = blockIdx.x * STRIP + lane * 8;
    int first = blockIdx.y * ROWS;
    int last = column < width ? min(rows - first, ROWS) : 0;
    x += size_t(first) * width + column;
    dy += size_t(first) * width + column;
    dx += size_t(first) * width + column;
    float shift[8] = {}, sum[8] = {};
    if (bias && column < width) load8(shift, bias + column);
    for (int row = warp * AT_ONCE; row < last; row += WARPS * AT_ONCE) {
        float z[AT_ONCE][8], d[AT_ONCE][8];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            int at = min(row + k, last - 1) * width;
            load8(z[k], x + at);
            load8(d[k], dy + at);
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            float counts = row + k < last ? 1.f : 0.f;                  // a row loaded twice counts once
#pragma unroll
            for (int i = 0; i < 8; i++) {
                d[k][i] *= curve<T, FORM>(z[k][i] + shift[i]).slope;
                sum[i] += counts * d[k][i];
            }
            if (row + k < last) store8(dx + (row + k) * width, d[k]);
        }
    }
    if (!partial) return;
    store8(sums + warp * STRIP + lane * 8, sum);
    __syncthreads();
    // From here on a thread has one column, and adds what the warps found, in their order.
    float total = 0.f;
    for (int w = 0; w < WARPS; w++) total += sums[w * STRIP + threadIdx.x];
    column = blockIdx.x * STRIP + threadIdx.x;
    if (column < width) partial[size_t(blockIdx.y) * width + column] = total;
}

// total [width] = (adding ? total : 0) + the sum over the rows of partial [count, width], in an order that
// depends on count alone. grid (width / 32 rounded up); a lane has a column, the 32 warps share the rows.
// shared: 4 KB.
KERNEL(1024) sum_partials(const float* __restrict__ partial, float* __restrict__ total, int count, int width,
                          int adding) {
    SHARED(shared);
    float* sums = (float*)shared;                                       // [32 warps, 32 columns]
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int column = blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (column < width) {
#pragma unroll 4
        for (int row = warp; row < count; row += 32) sum += partial[size_t(row) * width + column];
    }
    sums[warp * 32 + lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
        sum = adding ? total[column] : 0.f;
        for (int w = 0; w < 32; w++) sum += sums[w * 32 + lane];
        total[column] = sum;
    }
}

// instances, and the registers that each may use:
//     activate<bf16,ERF>           64
//     activate<bf16,TANH>          64
//     activate<bf16,RELU>          64
//     activate<f16,ERF>            64
//     activate<f16,TANH>           64
//     activate<f16,RELU>           64
//     activate<float,ERF>          64
//     activate<float,TANH>         64
//     activate<float,RELU>         64
//     activate_grad<bf16,ERF>      80
//     activate_grad<bf16,TANH>     80
//     activate_grad<bf16,RELU>     80
//     activate_grad<f16,ERF>       80
//     activate_grad<f16,TANH>      80
//     activate_grad<f16,RELU>      80
//     activate_grad<float,ERF>     80
//     activate_grad<float,TANH>    80
//     activate_grad<float,RELU>    80
//     sum_partials                 32
