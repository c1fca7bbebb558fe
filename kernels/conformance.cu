// conformance.cu - every word of prelude.cuh by itself, on bits that the host gives.
//
// The emulator's answers are kept with the tests. So the first thing to run on a new GPU is this
// file: where an answer differs by a bit, prelude.cuh means something else there than it says.
#include "prelude.cuh"

// Rounding to 16 bits, and back. n a multiple of 8.
template <class T> KERNEL(128) convert(const float* x, T* rounded, float* widened, T* by_eights, int n) {
    int i = blockIdx.x * 128 + threadIdx.x;
    if (i < n) {
        rounded[i] = narrow<T>(x[i]);
        widened[i] = wide(rounded[i]);
    }
    if (8 * i < n) {
        float eight[8];
        load8(eight, x + 8 * i);
        store8(by_eights + 8 * i, eight);
    }
}

// ldmatrix, both ways: a warp reads a tile of 16 x 16 and writes down what each lane holds.
KERNEL(32) matrices_of(const uint16_t* tile, uint32_t* straight, uint32_t* turned) {
    SHARED(shared);
    uint16_t* mine = (uint16_t*)shared;                                 // rows of 24: no conflicts
    int lane = threadIdx.x;
    copy16(mine + lane / 2 * 24 + lane % 2 * 8, tile + lane * 8);
    commit();
    wait<0>();
    __syncwarp();
    uint32_t a[4];
    const uint16_t* row = mine + lane % 16 * 24 + lane / 16 * 8;
    ldmatrix(a, row);
    for (int i = 0; i < 4; i++) straight[lane * 4 + i] = a[i];
    ldmatrix_transposed(a, row);
    for (int i = 0; i < 4; i++) turned[lane * 4 + i] = a[i];
}

// C [16, 8] = A [16, 16] B [16, 8], of small whole numbers: exact in any order of adding.
template <class T> KERNEL(32) product(const float* A, const float* B, float* C) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2;
    uint32_t a[4], b[2];
    float c[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; i++) {
        const float* at = A + (g + i % 2 * 8) * 16 + t + i / 2 * 8;
        a[i] = pack<T>(at[0], at[1]);
    }
    for (int i = 0; i < 2; i++) b[i] = pack<T>(B[(t + i * 8) * 8 + g], B[(t + i * 8 + 1) * 8 + g]);
    mma<T>(c, a, b);
    for (int i = 0; i < 4; i++) C[(g + i / 2 * 8) * 8 + t + i % 2] = c[i];
}

// Asynchronous copies: of 16 bytes, and of none, which leave zeros.
KERNEL(32) copies(const uint32_t* from, uint32_t* to) {
    SHARED(shared);
    int lane = threadIdx.x;
    copy16(shared + lane * 16, from + lane * 4, lane % 3 ? 16 : 0);
    commit();
    copy16(shared + 512 + lane * 16, from + lane * 4);
    commit();
    wait<1>();
    store16(to + lane * 4, load16<uint4>(shared + lane * 16));
    wait<0>();
    store16(to + 128 + lane * 4, load16<uint4>(shared + 512 + lane * 16));
}

// Sums and maxima over a warp and a block, of small whole numbers.
KERNEL(96) sums(const float* x, float* out) {
    SHARED(shared);
    float* scratch = (float*)shared;
    float mine = x[threadIdx.x];
    out[threadIdx.x] = warp_sum(mine);
    out[96 + threadIdx.x] = warp_max(mine);
    out[192 + threadIdx.x] = block_sum(mine, scratch);
    __syncthreads();
    out[288 + threadIdx.x] = block_max(mine, scratch);
}

// Random words. 2^x of whole numbers, which is exact.
KERNEL(32) randoms(const uint32_t* run, uint32_t part, uint32_t site, uint32_t* out, float* powers) {
    uint32_t i = threadIdx.x;
    store16(out + 4 * i, draws(run, part, site, i, i * i));
    out[128 + i] = draw(out[4 * i], i % 4);
    powers[i] = ex2(float(int(i) - 16));
}

// instances, and the registers that each may use:
//     convert<bf16>   40
//     convert<f16>    40
//     matrices_of     32
//     product<bf16>   32
//     product<f16>    40
//     copies          32
//     sums            32
//     randoms         40
