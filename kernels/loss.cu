// loss.cu - the losses: each one finds its own gradient while it has the logits at hand.
//
// Softmax cross-entropy of a row of logits z [V] against the label l, weighted by w:
//
//     loss = w (log sum_j exp(z_j) - z_l)            d loss / dz_j = w (p_j - [j = l])
//
// with p_j = exp(z_j) / sum exp(z). Nothing that comes later can change this gradient but by a factor,
// so forward computes it, and there is no backward. `scale` is that factor: one number in memory, the
// loss scale of 16-bit training (it multiplies the gradient, never the loss).
//
// No exponential may overflow: with top = max z all of exp(z - top) are at most 1, and one of them is 1.
// A thread does not know top before it has seen its row, so it keeps the largest number so far and the
// sum relative to that. When a larger one comes, the old sum is multiplied by exp(old top - new top).
// Two such sums meet in the same way, which is how the threads of a block put theirs together.
//
// The logits over a vocabulary are the largest array of a step: 2458 x 30522 numbers of 16 bits are
// 150 MB. So the gradient takes their place, and the row waits in shared memory between the two walks
// over it: one read and one write, 4 bytes a number. At 4.3 TB/s that is 70 us; reading twice would
// take 105 us. A row of 30522 takes 61 KB, and three blocks share a multiprocessor: while one waits for
// memory another computes. Up to 227 KB there is room for one row at least. Longer rows (128100 words
// take 256 KB) are read a second time, the last numbers first: these are still in the L2 cache.
// A bias is read twice for each row, from the caches: as much again as the row itself for a bias of 16 bits,
// twice that in float. Where the product that made the logits can add it, that is better.
// What limits it is memory. Next come the two exponentials of each number: about half of memory's time.
#include "prelude.cuh"

constexpr float LOWEST = -3.4e38f;                  // below every logit, and yet a number

// e^x, for a loss: a rounding of x moves the result as much as this does.
DEVICE float exponential(float x) { return ex2(x * LOG2E); }

// Eight logits from `column` on, with their bias; beyond the last word there is -infinity, whose
// exponential is 0. The memory of a row goes on to a multiple of 8 columns, that of the bias does not.
template <class T, class B>
DEVICE void read_logits(float (&z)[8], const T* row, const B* bias, int column, int words) {
    if (column + 8 <= words) {
        load8(z, row + column);
        if (bias) {
            float b[8];
            load8(b, bias + column);
#pragma unroll
            for (int i = 0; i < 8; i++) z[i] += b[i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            z[i] = -infinity();
            if (column + i < words) z[i] = wide(row[column + i]) + (bias ? wide(bias[column + i]) : 0.f);
        }
    }
}

// The loss over a vocabulary, and its gradient in place of the logits.
//
//     logits [rows, stride]: words of each stride are used; the gradient of the others is 0
//     bias [words] or null; labels, weights, losses, hits [rows]; scale [1]
//     hits: 1 where the label is the largest logit, the first one among equals, else 0
//
// A block of 512 threads does one row, and each thread eight columns at a time. What a thread copies to
// shared memory only it reads again: no barrier is needed there. A row of weight 0 is padding: nothing
// of it is read, its label neither, and its gradient is 0. Without `saving` no gradient is written.
// HELD: the row stays in shared memory, which is 384 bytes and, if so, the row's own.
// stride is a multiple of 8, and bias begins at a multiple of 16 bytes.
template <class T, class B, int HELD>
KERNEL(512) vocabulary_loss(T* logits, const B* __restrict__ bias, const int* __restrict__ labels,
                            const float* __restrict__ weights, const float* __restrict__ scale, float* losses,
                            float* hits, int words, int stride, int saving) {
    SHARED(shared);
    float* scratch = (float*)shared;
    T* held = (T*)(shared + 384);
    T* row = logits + int64_t(blockIdx.x) * stride;
    int step = 8 * blockDim.x, mine = 8 * threadIdx.x;
    int last = mine < stride ? mine + (stride - 1 - mine) / step * step : -1;       // its last eight columns
    float weight = weights[blockIdx.x];

    if (weight == 0) {
        float nothing[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (saving)
            for (int column = mine; column < stride; column += step) store8(row + column, nothing);
        if (threadIdx.x == 0) losses[blockIdx.x] = hits[blockIdx.x] = 0;
        return;
    }
    if (HELD) {
        for (int column = mine; column < words; column += step)
#pragma unroll
            for (int byte = 0; byte < 8 * int(sizeof(T)); byte += 16)
                copy16((char*)(held + column) + byte, (char*)(row + column) + byte);
        commit();
    }
    int label = labels[blockIdx.x];
    float right = 0;
    if (threadIdx.x == 0) right = wide(row[label]) + (bias ? wide(bias[label]) : 0.f);
    if (HELD) wait<0>();
    const T* source = HELD ? held : row;

    // The first walk: the largest logit, where it is, and the sum.
    float top = LOWEST, total = 0;
    int best = words;
    for (int column = mine; column < words; column += step) {
        float z[8];
        read_logits(z, source, bias, column, words);
        float peak = z[0];
#pragma unroll
        for (int i = 1; i < 8; i++) peak = fmaxf(peak, z[i]);
        if (peak > top) {
            total *= exponential(top - peak);
            top = peak;
            best = column;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) total += exponential(z[i] - top);
    }
    float row_top = block_max(top, scratch);
    float row_total = block_sum(total * exponential(top - row_top), scratch + 32);
    if (top == row_top && best < words) {
        float z[8];
        read_logits(z, source, bias, best, words);
        int from = best;
#pragma unroll
        for (int i = 7; i >= 0; i--)
            if (z[i] == top) best = from + i;
    } else {
        best = words;
    }
    int first = int(-block_max(-float(best), scratch + 64));
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = weight * (logf(row_total) + (row_top - right));
        hits[blockIdx.x] = first == label;
    }

    // The second walk: every number becomes its gradient.
    if (!saving) return;
    float most = weight * scale[0], share = most / row_total;
    for (int column = last; column >= 0; column -= step) {
        float z[8];
        read_logits(z, source, bias, column, words);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            z[i] = exponential(z[i] - row_top) * share;
            if (column + i == label) z[i] -= most;
        }
        store8(row + column, z);
    }
}

// The same for a few classes, where rows are short and many: a warp does one row. Any number of classes.
//
//     logits, dlogits [rows, classes], dlogits null where no gradient is wanted
//
// Rows are read three times, but from the cache: 4 bytes a number here too. Eight rows a block.
template <class T>
KERNEL(256) cross_entropy(const T* __restrict__ logits, const int* __restrict__ labels,
                          const float* __restrict__ weights, const float* __restrict__ scale, T* dlogits,
                          float* losses, float* hits, int rows, int classes) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T* z = logits + int64_t(row) * classes;
    T* dz = dlogits + int64_t(row) * classes;
    float weight = weights[row];
    if (weight == 0) {
        if (dlogits)
            for (int c = lane; c < classes; c += 32) dz[c] = narrow<T>(0);
        if (lane == 0) losses[row] = hits[row] = 0;
        return;
    }
    int label = labels[row], best = classes;
    float top = LOWEST, total = 0;
    for (int c = lane; c < classes; c += 32) {
        float x = wide(z[c]);
        if (x > top) {
            top = x;
            best = c;
        }
    }
    float row_top = warp_max(top);
    int first = int(-warp_max(top == row_top ? -float(best) : -float(classes)));
    for (int c = lane; c < classes; c += 32) total += exponential(wide(z[c]) - row_top);
    total = warp_sum(total);
    if (lane == 0) {
        losses[row] = weight * (logf(total) + (row_top - wide(z[label])));
        hits[row] = first == label;
    }
    if (!dlogits) return;
    float most = weight * scale[0], share = most / total;
    for (int c = lane; c < classes; c += 32) {
        float x = exponential(wide(z[c]) - row_top) * share;
        if (c == label) x -= most;
        dz[c] = narrow<T>(x);
    }
}

// Yes or no, one logit each. With s = 1 / (1 + exp(-z)), the probability of yes, and a label y in [0, 1]
//
//     loss = -w (y log s + (1 - y) log(1 - s)) = w (log(1 + exp(z)) - y z)        dz = w (s - y)
//
// and with e = exp(-|z|), which is at most 1, log(1 + exp(z)) = max(z, 0) + log(1 + e). A thread does
// one; all arrays [count]. A hit: z > 0 where y > 1/2, and only there.
template <class T>
KERNEL(256) binary_loss(const T* __restrict__ logits, const float* __restrict__ labels,
                        const float* __restrict__ weights, const float* __restrict__ scale, T* dlogits,
                        float* losses, float* hits, int count) {
    int i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    float weight = weights[i];
    if (weight == 0) {
        losses[i] = hits[i] = 0;
        if (dlogits) dlogits[i] = narrow<T>(0);
        return;
    }
    float z = wide(logits[i]), label = labels[i];
    float e = exponential(-fabsf(z));
    losses[i] = weight * ((fmaxf(z, 0) - label * z) + log1pf(e));
    hits[i] = (z > 0) == (label > 0.5f);
    if (dlogits) {
        float yes = (z > 0 ? 1.f : e) / (1 + e);
        dlogits[i] = narrow<T>((yes - label) * (weight * scale[0]));
    }
}

// What the rows of a loss come to: sums = {loss, hits}. One block, so the order is always the same.
KERNEL(512) totals(const float* __restrict__ losses, const float* __restrict__ hits, float* sums, int rows) {
    SHARED(shared);
    float* scratch = (float*)shared;
    float loss = 0, hit = 0;
    for (int row = threadIdx.x; row < rows; row += 512) {
        loss += losses[row];
        hit += hits[row];
    }
    loss = block_sum(loss, scratch);
    hit = block_sum(hit, scratch + 32);
    if (threadIdx.x == 0) {
        sums[0] = loss;
        sums[1] = hit;
    }
}

// The gradient of a bias: the sum of each column of x [rows, stride], `columns` of each stride.
//
// Adding atomically would give other bits in every run, so there are two stages. Here a block adds up
// 256 columns of one slab of rows: every warp takes each eighth row and every lane eight columns, then
// the eight warps' sums are added in order. 2 bytes a number are read: that is what limits it.
//     grid (columns / 256, slabs); partials [slabs, columns]; 8 KB of shared memory
template <class T>
KERNEL(256) column_partials(const T* __restrict__ x, float* partials, int rows, int columns, int stride) {
    SHARED(shared);
    float* sums = (float*)shared;                                       // [8, 256]
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, corner = blockIdx.x * 256;
    int slab = (rows + gridDim.y - 1) / gridDim.y;
    int begin = blockIdx.y * slab, end = min(begin + slab, rows);
    int column = corner + 8 * lane;
    float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (column < columns) {
        const T* from = x + column;
#pragma unroll 4
        for (int row = begin + warp; row < end; row += 8) {
            float eight[8];
            load8(eight, from + int64_t(row) * stride);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] += eight[i];
        }
    }
    store8(sums + warp * 256 + 8 * lane, sum);
    __syncthreads();
    column = corner + threadIdx.x;
    if (column >= columns) return;
    float all = 0;
    for (int i = 0; i < 8; i++) all += sums[i * 256 + threadIdx.x];
    partials[int64_t(blockIdx.y) * columns + column] = all;
}

// The second stage: a thread adds up one column over the slabs, to what is there if `adding`.
KERNEL(256) column_totals(const float* __restrict__ partials, float* sums, int slabs, int columns,
                           int adding) {
    int column = blockIdx.x * 256 + threadIdx.x;
    if (column >= columns) return;
    float sum = 0;
    for (int slab = 0; slab < slabs; slab++) sum += partials[int64_t(slab) * columns + column];
    sums[column] = adding ? sums[column] + sum : sum;
}

// instances, and the registers that each may use:
//     vocabulary_loss<bf16,float,1>   40
//     vocabulary_loss<bf16,bf16,1>    40
//     vocabulary_loss<bf16,bf16,0>    40
//     vocabulary_loss<f16,f16,1>      40
//     vocabulary_loss<f16,f16,0>      40
//     vocabulary_loss<float,float,1>  40
//     vocabulary_loss<float,float,0>  40
//     cross_entropy<bf16>             40
//     cross_entropy<f16>              40
//     cross_entropy<float>            64
//     binary_loss<bf16>               32
//     binary_loss<f16>                32
//     binary_loss<float>              32
//     totals                          48
//     column_partials<bf16>           64
//     column_partials<f16>            64
//     column_partials<float>          64
//     column_totals                   40
