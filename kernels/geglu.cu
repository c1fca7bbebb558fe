// geglu.cu - a gate for an activation: y = curve(a) b. The first half of x's columns is a, the second b.
//
//     forward     y = curve(a) b
//     backward    da = dy b curve'(a),     db = dy curve(a)
//
// The backward computes value and slope again from x, which is all that is kept; both come from the same
// exponential and the same reciprocal (curves.cuh), so this is cheaper than to write and read them.
//
// To move, for a number of y, of 16 bits: 6 bytes forwards (a, b; y) and 10 backwards (a, b, dy; da, db). At
// 16,384 x 1,152 and 4.3 TB/s these are 26 us and 44 us. What limits: memory.
//
// x, dx [rows, 2 width], y, dy [rows, width]. The width is a multiple of 8, an address of 16 bytes, and
// rows * width / 8 an int. dx may be x, which nobody needs any more.
//
// A thread has eight neighbouring numbers of y, and with them eight of a and eight of b. Then it is done:
// blocks are many and short, and eight of them on an SM keep 64 KB under way.
#include "prelude.cuh"
#include "curves.cuh"

// grid (rows * width / 8 / 256, rounded up).
template <class T, int FORM>
KERNEL(256) geglu(const T* __restrict__ x, T* __restrict__ y, int rows, int width) {
    int eights = width / 8, item = blockIdx.x * 256 + threadIdx.x;
    int row = item / eights, column = item % eights * 8;
    if (row < rows) {
        const T* from = x + size_t(row) * 2 * width + column;
        float a[8], b[8];
        load8(a, from);
        load8(b, from + width);
#pragma unroll
        for (int i = 0; i < 8; i++) b[i] *= curve<T, FORM>(a[i]).y;
        store8(y + size_t(row) * width + column, b);
    }
}

// The same grid.
template <class T, int FORM> KERNEL(256) geglu_grad(const T* x, const T* dy, T* dx, int rows, int width) {
    int eights = width / 8, item = blockIdx.x * 256 + threadIdx.x;
    int row = item / eights, column = item % eights * 8;
    if (row < rows) {
        size_t at = size_t(row) * 2 * width + column;
        float a[8], b[8], d[8];
        load8(a, x + at);
        load8(b, x + at + width);
        load8(d, dy + size_t(row) * width + column);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            Point p = curve<T, FORM>(a[i]);
            a[i] = d[i] * b[i] * p.slope;
            b[i] = d[i] * p.y;
        }
        store8(dx + at, a);
        store8(dx + at + width, b);
    }
}

// instances, and the registers that each may use:
//     geglu<bf16,ERF>          40
//     geglu<bf16,TANH>         40
//     geglu<f16,ERF>           48
//     geglu<f16,TANH>          48
//     geglu<float,ERF>         48
//     geglu<float,TANH>        48
//     geglu_grad<bf16,ERF>     48
//     geglu_grad<bf16,TANH>    48
//     geglu_grad<f16,ERF>      56
//     geglu_grad<f16,TANH>     56
//     geglu_grad<float,ERF>    56
//     geglu_grad<float,TANH>   56
