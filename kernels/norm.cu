// norm.cu - LayerNorm over rows, with what stands in front of it in a layer; RMSNorm; NoNorm.
//
// Forward, for each row of [T, H]:
//
//     h = residual + dropout(x + bias)        xhat = (h - mean) rstd        y = gain xhat + shift
//
// with rstd = 1 / sqrt(mean((h - mean)^2) + eps). RMSNorm has mean = 0. NoNorm (fused.affine) does
// not look at its rows at all: mean = 0, rstd = 1.
//
// Backward. With d = dy gain, what is wanted is dh_k = sum over j of d_j dxhat_j / dh_k. A change of
// h_k moves the mean by 1/H of it, and rstd by -rstd^2 xhat_k / H (the chain rule on its formula). So
//
//     dxhat_j / dh_k = rstd ([j = k] - 1/H - xhat_j xhat_k / H)
//     dh = rstd (d - mean(d) - xhat mean(d xhat))
//
// Without a mean the second term goes, without measures the third too. Then dresidual = dh, and
// dx = dh where dropout left x, times its factor; dgain, dshift, dbias are the columns' sums of
// dy xhat, dy and dx.
//
// What forward keeps. Backward needs xhat. It could be had from
//     y       nothing more is written; but (y - shift) / gain is lost where gain is small
//     xhat    one array written, always
//     h       one array written, or none: without residual, bias and dropout h is x, which is there
// So it is h in the type of storage, and mean and rstd of each row in float: 8 bytes a row. The
// measures and y come from h before it is rounded. A mask of dropout is not kept: Philox gives it again.
//
// Bytes per number, of 16 bits (16,384 tokens of width 768 at 4.3 TB/s):
//     forward     x, residual -> y, h         8       23 us     (x -> y, of a norm alone: 4, 12 us)
//     backward    dy, h -> dx, dresidual      8       23 us     (without dropout the two are one: 6, 18 us)
// and the partial sums of backward: 12 H bytes a block, written and read. That is 2.4 MB with a block
// on each of 132 SMs, which the L2 keeps. Memory limits both kernels. Their instructions, some 33 a
// number, of which Philox has a quarter, take six tenths of that time. (Counted, not yet measured.)
//
// Assumed: H is a multiple of 8 and at most 256 N G; T H < 2^31.
#include "prelude.cuh"

// Flags F: the parts that are there, and another formula than LayerNorm's.
constexpr int SHIFT = 1, RESIDUAL = 2, BIAS = 4, DROPOUT = 8, RMS = 16, AFFINE = 32;

constexpr int PIECE = 256;              // columns that a warp reads at once, 8 a lane

// A row belongs to a team of G warps. Each has N pieces of it, so a lane has 8 N numbers, in registers.
// A team of one warp, for H <= 768, needs no barrier. Wider rows have more warps instead of longer
// lanes: backward also holds three sums for each number, and N = 4 would spill. A team of many warps
// has a barrier of its own. Teams of a block know nothing of each other.
//
//     H up to     256    512    768    1024    2048    4096
//     N, G        1, 1   2, 1   3, 1   2, 2    2, 4    2, 8
template <int N, int G> struct Team {
    int number, member, lane;

    DEVICE Team() {
        int warp = __shfl_sync(ALL, int(threadIdx.x) / 32, 0);      // as all lanes then know: the same
        number = warp / G;
        member = warp % G;
        lane = threadIdx.x % 32;
    }

    // The first of this lane's 8 columns in its i-th piece. It may lie beyond the row.
    DEVICE int column(int i) const {
        return (i * G + member) * PIECE + lane * 8;
    }

    // The sum over the team, in its warps' order, the same in every lane. slot: G floats of shared
    // memory. The team uses it again only after a sum in another slot.
    DEVICE float sum(float x, float* slot) const {
        x = warp_sum(x);
        if (G == 1) return x;
        if (lane == 0) slot[member] = x;
        BARRIER(1 + number, 32 * G);
        x = 0;
        for (int i = 0; i < G; i++) x += slot[i];
        return x;
    }
};

// Copies a row of one array, or of two (BOTH), into shared memory: [2][N][PIECE] numbers of a warp. It
// goes on while the threads compute, and holds no registers. Beyond the row's end there are zeros, and
// for a row beyond the last an empty group. A lane reads only what it copied itself: no barrier.
template <bool BOTH, class T, int N, int G>
DEVICE void fetch(T* slot, const T* first, const T* second, int row, int tokens, int width,
                  const Team<N, G>& team) {
    constexpr int TOGETHER = 16 / sizeof(T);
    if (row < tokens) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            int column = team.column(i);
            int bytes = column < width ? 16 : 0;
            int from = row * width + (bytes ? column : 0);
            T* to = slot + i * PIECE + team.lane * 8;
#pragma unroll
            for (int j = 0; j < 8; j += TOGETHER) {
                copy16(to + j, first + from + j, bytes);
                if (BOTH) copy16(to + N * PIECE + j, second + from + j, bytes);
            }
        }
    }
    commit();
}

// The draws of a lane's columns, 8 bytes for each piece. A Philox block is for 16 columns, those of
// two lanes. So of two pieces the even lane computes the block of one and the odd lane that of the
// other, and they trade halves.
template <int N, int G>
DEVICE void draw_row(uint32_t (&bytes)[N][2], const uint32_t* run, unsigned part, unsigned site, int row,
                     const Team<N, G>& team) {
    bool odd = team.lane % 2;
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        bool pair = i + 1 < N;
        uint4 block = draws(run, part, site, row, team.column(pair && odd ? i + 1 : i) / 16);
        uint32_t low = odd ? block.z : block.x, high = odd ? block.w : block.y;
        bytes[i][0] = low;
        bytes[i][1] = high;
        if (pair) {
            uint32_t other_low = __shfl_xor_sync(ALL, odd ? block.x : block.z, 1);
            uint32_t other_high = __shfl_xor_sync(ALL, odd ? block.y : block.w, 1);
            bytes[i][0] = odd ? other_low : low;
            bytes[i][1] = odd ? other_high : high;
            bytes[i + 1][0] = odd ? low : other_low;
            bytes[i + 1][1] = odd ? high : other_high;
        }
    }
}

// Eight columns after dropout: 0 where the draw is below the threshold, elsewhere times scale.
DEVICE void drop8(float (&x)[8], const uint32_t (&bytes)[2], unsigned threshold, float scale) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        bool stays = draw(bytes[j / 4], j % 4) >= threshold;
        x[j] = stays ? x[j] * scale : 0.f;
    }
}

// ---- forward
//
// Blocks of eight warps, so 8 / G rows: each team does one row and is done. The whole row is asked for
// at once, and the draws are computed until it comes. Some 40 warps of an SM do so side by side, with
// 3 KB each at H = 768: four times what must be on its way to hide the memory's latency.
//
// Parts that F does not name are null. h [T, H] and measures [T] (mean, rstd) may be null, where
// nothing will be differentiated; h is not written where it is x.
// shared: 8 (2 N PIECE) numbers T, and 64 bytes.
template <class T, int N, int G, int F> KERNEL(256)
norm_forward(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ bias,
             const T* __restrict__ gain, const T* __restrict__ shift, T* __restrict__ y,
             T* __restrict__ h, float2* __restrict__ measures, int tokens, int width, float eps,
             const uint32_t* __restrict__ run, unsigned part, unsigned site, unsigned threshold,
             float scale) {
    SHARED(shared);
    Team<N, G> team;
    constexpr int SLOT = 2 * N * PIECE;
    constexpr bool CENTRED = !(F & (RMS | AFFINE)), MEASURED = !(F & AFFINE);
    T* slot = (T*)shared + (team.number * G + team.member) * SLOT;
    float* sums = (float*)((T*)shared + 8 * SLOT) + team.number * 2 * G;
    int row = blockIdx.x * (8 / G) + team.number;
    if (row >= tokens) return;
    int start = row * width;

    fetch<(F & RESIDUAL) != 0>(slot, x, residual, row, tokens, width, team);
    uint32_t bytes[N][2];
    if (F & DROPOUT) draw_row(bytes, run, part, site, row, team);
    wait<0>();

    // h, of this lane's columns
    float values[N][8];
#pragma unroll
    for (int i = 0; i < N; i++) {
        int column = team.column(i);
        bool inside = column < width;
        float more[8];
        load8(values[i], slot + i * PIECE + team.lane * 8);
        if ((F & BIAS) && inside) {
            load8(more, bias + column);
#pragma unroll
            for (int j = 0; j < 8; j++) values[i][j] += more[j];
        }
        if (F & DROPOUT) drop8(values[i], bytes[i], threshold, scale);
        if (F & RESIDUAL) {
            load8(more, slot + (N + i) * PIECE + team.lane * 8);
#pragma unroll
            for (int j = 0; j < 8; j++) values[i][j] += more[j];
        }
        if ((F & (BIAS | DROPOUT | RESIDUAL)) && h && inside) store8(h + start + column, values[i]);
    }

    // The measures, and h - mean. Two passes over registers: of rows far from 0 no digits are lost, as
    // they would be if the squares were summed beside the numbers. Beyond the row's end all is 0.
    float mean = 0, rstd = 1, share = 1.f / width;
    if (CENTRED) {
        float total = 0;
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int j = 0; j < 8; j++) total += values[i][j];
        }
        mean = team.sum(total, sums) * share;
    }
    if (MEASURED) {
        float total = 0;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float squares = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) {
                values[i][j] -= mean;
                squares += values[i][j] * values[i][j];
            }
            total += team.column(i) < width ? squares : 0.f;
        }
        rstd = rsqrtf(team.sum(total, sums + G) * share + eps);
        if (measures && team.member == 0 && team.lane == 0) measures[row] = make_float2(mean, rstd);
    }

#pragma unroll
    for (int i = 0; i < N; i++) {
        int column = team.column(i);
        if (column >= width) continue;
        float factor[8], more[8];
        load8(factor, gain + column);
        if (F & SHIFT) load8(more, shift + column);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            values[i][j] *= rstd * factor[j];
            if (F & SHIFT) values[i][j] += more[j];
        }
        store8(y + start + column, values[i]);
    }
}

// ---- backward
//
// As many blocks as run at once, one an SM (two if N = 1), of up to 384 threads (512 if N = 2): fewer,
// by whole teams, where shared memory is small. A team goes from row to row with a stride of all
// teams, and a lane adds up dgain, dshift and dbias of its columns in registers. At its end a block
// adds its teams' sums and writes them to partials; norm_gradients adds those of all blocks. No sum
// depends on who comes first: the bits are the same in every run on the same number of blocks.
//
// While a team computes a row its next ones, DEPTH - 1 or DEPTH, are on their way into shared memory:
// 12 warps of an SM, 3 KB for each row at H = 768. So 36 KB are, at least.

// One of the three sums, over the teams of the block, in their order, to out [H]. pool: N PIECE floats
// a warp. The barriers are for it: nobody still reads what was there, and everybody has read this.
template <int N, int G>
DEVICE void add_teams(const float (&mine)[N][8], float* pool, float* out, int width, const Team<N, G>& team) {
    constexpr int COLUMNS = N * G * PIECE;
    int teams = blockDim.x / 32 / G;
#pragma unroll
    for (int i = 0; i < N; i++) store8(pool + team.number * COLUMNS + team.column(i), mine[i]);
    __syncthreads();
#pragma unroll 1
    for (int column = threadIdx.x * 4; column < width; column += blockDim.x * 4) {
        float4 total = load16<float4>(pool + column);
        for (int other = 1; other < teams; other++) {
            float4 more = load16<float4>(pool + other * COLUMNS + column);
            total.x += more.x;
            total.y += more.y;
            total.z += more.z;
            total.w += more.w;
        }
        store16(out + column, total);
    }
    __syncthreads();
}

// h is x if F has none of residual, bias, dropout. dx [T, H]; dresidual [T, H] is written where it
// differs from dx: with residual and dropout both. partials [blocks, 3, H]: dgain, dshift, dbias, the
// last two where F has them. shared, for each warp: (2 DEPTH + 1) N PIECE numbers T, and 8 DEPTH bytes.
template <class T, int N, int G, int F> __global__ void __launch_bounds__(N == 2 ? 512 : 384, N == 1 ? 2 : 1)
norm_backward(const T* __restrict__ dy, const T* __restrict__ h, const float2* __restrict__ measures,
              const T* __restrict__ gain, T* __restrict__ dx, T* __restrict__ dresidual,
              float* __restrict__ partials, int tokens, int width, const uint32_t* __restrict__ run,
              unsigned part, unsigned site, unsigned threshold, float scale) {
    SHARED(shared);
    Team<N, G> team;
    constexpr int DEPTH = N == 1 ? 4 : N == 2 ? 3 : 2, SLOT = 2 * N * PIECE, MINE = DEPTH * SLOT + N * PIECE;
    constexpr bool CENTRED = !(F & (RMS | AFFINE)), MEASURED = !(F & AFFINE);
    int warps = blockDim.x / 32, teams = warps / G;
    T* ring = (T*)shared + (team.number * G + team.member) * MINE;
    T* factors = ring + DEPTH * SLOT;
    float* sums = (float*)((T*)shared + warps * MINE) + team.number * 2 * DEPTH * G;
    int stride = gridDim.x * teams;
    int row = blockIdx.x * teams + team.number;
    float share = 1.f / width;

    fetch<false>(factors, gain, gain, 0, 1, width, team);
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        fetch<true>(ring + i * SLOT, dy, h, row + i * stride, tokens, width, team);
    }
    float2 next = make_float2(0.f, 1.f);
    if (MEASURED && row < tokens) next = measures[row];
    float dgain[N][8] = {}, dshift[N][8] = {}, dbias[N][8] = {};

    for (int turn = 0; row < tokens; row += stride) {
        float rstd = next.y, middle = next.x * rstd;        // xhat = h rstd - middle
        if (MEASURED && row + stride < tokens) next = measures[row + stride];
        wait<DEPTH - 1>();
        T* slot = ring + turn * SLOT + team.lane * 8;

        // The sums along the row, and those along the columns. Beyond the row's end dy is 0.
        float plain = 0, along = 0;                         // of d; of d xhat
#pragma unroll
        for (int i = 0; i < N; i++) {
            float given[8], factor[8], xhat[8];
            load8(given, slot + i * PIECE);
            load8(xhat, slot + (N + i) * PIECE);
            load8(factor, factors + i * PIECE + team.lane * 8);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                xhat[j] = xhat[j] * rstd - middle;
                float d = given[j] * factor[j];
                plain += d;
                along += d * xhat[j];
                dgain[i][j] += given[j] * xhat[j];
                if (F & SHIFT) dshift[i][j] += given[j];
            }
        }
        plain = CENTRED ? team.sum(plain, sums + turn * 2 * G) * share * rstd : 0.f;
        along = MEASURED ? team.sum(along, sums + turn * 2 * G + G) * share * rstd : 0.f;

        // dh, dx. The row is read again: held since the sums, it would take 48 registers at N = 3.
        __syncwarp();
        uint32_t bytes[N][2];
        if (F & DROPOUT) draw_row(bytes, run, part, site, row, team);
#pragma unroll
        for (int i = 0; i < N; i++) {
            int column = team.column(i);
            float given[8], factor[8], dh[8];
            load8(given, slot + i * PIECE);
            load8(dh, slot + (N + i) * PIECE);
            load8(factor, factors + i * PIECE + team.lane * 8);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float xhat = dh[j] * rstd - middle;
                dh[j] = given[j] * factor[j] * rstd - plain - xhat * along;
            }
            int at = row * width + column;
            if (F & DROPOUT) {
                if ((F & RESIDUAL) && column < width) store8(dresidual + at, dh);
                drop8(dh, bytes[i], threshold, scale);
            }
            if (column < width) store8(dx + at, dh);
            if (F & BIAS) {
#pragma unroll
                for (int j = 0; j < 8; j++) dbias[i][j] += dh[j];
            }
        }
        __syncwarp();                                       // it is read; another may come here
        fetch<true>(ring + turn * SLOT, dy, h, row + DEPTH * stride, tokens, width, team);
        turn = turn + 1 == DEPTH ? 0 : turn + 1;
    }

    wait<0>();                                              // a team without rows has its gain on the way
    __syncthreads();                                        // the ring becomes the pool
    float* out = partials + blockIdx.x * 3 * width;
    add_teams(dgain, (float*)shared, out, width, team);
    if (F & SHIFT) add_teams(dshift, (float*)shared, out + width, width, team);
    if (F & BIAS) add_teams(dbias, (float*)shared, out + 2 * width, width, team);
}

// ---- the parameters' gradients, of the partials [rows, 3, H]
//
// A block has 32 of the 3 H columns: 8 threads read 128 bytes of a row, and 32 such strips go down
// the rows with a stride of 32. Then one thread a column adds the strips. With add the sums go on top
// of what is there (a step of many batches). A destination that is null is not wanted.
// shared: 4096 bytes.
KERNEL(256) norm_gradients(const float* __restrict__ partials, float* __restrict__ dgain,
                           float* __restrict__ dshift, float* __restrict__ dbias, int rows, int width,
                           int add) {
    SHARED(shared);
    float* sums = (float*)shared;                       // [32 strips, 32 columns]
    int strip = threadIdx.x / 8, place = threadIdx.x % 8 * 4;
    int column = blockIdx.x * 32 + place;
    float4 total = make_float4(0.f, 0.f, 0.f, 0.f);
    if (column < 3 * width) {
#pragma unroll 8
        for (int row = strip; row < rows; row += 32) {
            float4 more = load16<float4>(partials + row * 3 * width + column);
            total.x += more.x;
            total.y += more.y;
            total.z += more.z;
            total.w += more.w;
        }
    }
    store16(sums + strip * 32 + place, total);
    __syncthreads();

    column = blockIdx.x * 32 + threadIdx.x;
    if (threadIdx.x >= 32 || column >= 3 * width) return;
    float sum = 0;
#pragma unroll
    for (int other = 0; other < 32; other++) sum += sums[other * 32 + threadIdx.x];
    float* out = column < width ? dgain : column < 2 * width ? dshift : dbias;
    if (!out) return;
    column %= width;
    out[column] = add ? out[column] + sum : sum;
}

// instances, and the registers that each may use:
//     norm_forward<bf16,1,1,0>       64
//     norm_forward<bf16,1,1,1>       64
//     norm_forward<bf16,1,1,7>       64
//     norm_forward<bf16,1,1,15>      64
//     norm_forward<bf16,1,1,39>      64
//     norm_backward<bf16,1,1,0>      80
//     norm_backward<bf16,1,1,1>      80
//     norm_backward<bf16,1,1,7>      80
//     norm_backward<bf16,1,1,15>     80
//     norm_backward<bf16,1,1,39>     80
//     norm_forward<bf16,2,1,1>       64
//     norm_forward<bf16,2,1,7>       64
//     norm_forward<bf16,2,1,15>      64
//     norm_forward<bf16,2,1,35>      64
//     norm_forward<bf16,2,1,39>      64
//     norm_backward<bf16,2,1,1>      128
//     norm_backward<bf16,2,1,7>      128
//     norm_backward<bf16,2,1,15>     128
//     norm_backward<bf16,2,1,35>     128
//     norm_backward<bf16,2,1,39>     128
//     norm_forward<bf16,3,1,0>       64
//     norm_forward<bf16,3,1,1>       64
//     norm_forward<bf16,3,1,7>       64
//     norm_forward<bf16,3,1,15>      64
//     norm_backward<bf16,3,1,0>      168
//     norm_backward<bf16,3,1,1>      168
//     norm_backward<bf16,3,1,7>      168
//     norm_backward<bf16,3,1,15>     168
//     norm_forward<bf16,2,2,0>       64
//     norm_forward<bf16,2,2,1>       64
//     norm_forward<bf16,2,2,7>       64
//     norm_forward<bf16,2,2,15>      64
//     norm_backward<bf16,2,2,0>      128
//     norm_backward<bf16,2,2,1>      128
//     norm_backward<bf16,2,2,7>      128
//     norm_backward<bf16,2,2,15>     128
//     norm_forward<bf16,2,4,1>       64
//     norm_forward<bf16,2,4,7>       64
//     norm_forward<bf16,2,4,15>      64
//     norm_backward<bf16,2,4,1>      128
//     norm_backward<bf16,2,4,7>      128
//     norm_backward<bf16,2,4,15>     128
//     norm_forward<bf16,2,8,1>       64
//     norm_forward<bf16,2,8,7>       64
//     norm_forward<bf16,2,8,15>      64
//     norm_backward<bf16,2,8,1>      128
//     norm_backward<bf16,2,8,7>      128
//     norm_backward<bf16,2,8,15>     128
//     norm_forward<f16,1,1,15>       64
//     norm_backward<f16,1,1,15>      80
//     norm_forward<f16,3,1,1>        64
//     norm_forward<f16,3,1,7>        64
//     norm_forward<f16,3,1,15>       64
//     norm_backward<f16,3,1,1>       168
//     norm_backward<f16,3,1,7>       168
//     norm_backward<f16,3,1,15>      168
//     norm_forward<float,1,1,1>      64
//     norm_forward<float,1,1,10>     64
//     norm_forward<float,1,1,12>     64
//     norm_forward<float,1,1,15>     64
//     norm_forward<float,1,1,26>     64
//     norm_forward<float,1,1,47>     64
//     norm_backward<float,1,1,1>     80
//     norm_backward<float,1,1,10>    80
//     norm_backward<float,1,1,12>    80
//     norm_backward<float,1,1,15>    80
//     norm_backward<float,1,1,26>    80
//     norm_backward<float,1,1,47>    80
//     norm_forward<float,2,2,26>     64
//     norm_backward<float,2,2,26>    128
//     norm_gradients                 64
