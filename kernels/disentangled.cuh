// disentangled.cuh - what the passes of DeBERTa's attention share: tiles, products with the rows of
// distances and the skew that turns them into scores, and the draws of dropout. attention.cuh has the
// plain kind of all this, and is to be read first.
//
// A score of query i and key j is a sum of up to three products (He et al., 2021),
//
//     score_ij = scale (q_i . k_j  +  q_i . keys_at[b(i-j)]  +  queries_at[b(i-j)] . k_j)
//
// and each of the last two is the same thing seen from one side. So every pass here has an OWN side, 64
// rows a of which a block computes something, and an OTHER side, 64 rows b at a time that stream by. The
// own table meets the own rows, the other table the other rows:
//
//     score_ab = scale (x_a . y_b  +  x_a . own[d]  +  y_b . other[d])        d the row of distance a - b
//
// Where queries are the own side, a - b is the distance i - j; where keys are, it is minus that.
//
// In a tile of 64 x 64 scores a - b takes 127 values. We number them u = a - b + 63, from 0. A row of the
// own side meets 64 of them, and the next row the same but for one: products of sixteen rows (a warp's)
// with a window of 80 table rows hold all that these sixteen rows want. With 4 instead of 64, and 2
// instead of 16, the products of a warp's rows a = 2, 3 are
//
//     u  =  2  3  4  5  6                                  b  =  0  1  2  3
//     a = 2 b3 b2 b1 b0  .                           a = 2       5  4  3  2     (which u)
//     a = 3  . b3 b2 b1 b0                           a = 3       6  5  4  3
//
// so the scores of a row are its products read backwards, from one place further right in each row. The
// products of other rows b = 0, 1 with their window are read down a column, and begin one place further
// left in each row:
//
//     u  =  2  3  4  5  6                                  b  =  0  1  2  3
//     b = 0  . a0 a1 a2 a3                           a = 0       3  2  .  .     (2 and 3 are those of
//     b = 1 a0 a1 a2 a3  .                           a = 1       4  3  .  .      another warp)
//
// Both lie in shared memory as products, rounded to T, in rows of 80 (`own_place`, `other_place`). What is
// dotted nobody reads. On the way back the gradient of a score takes the place of its product, where the
// same thread had found it, and zeros stand at the dots: then the same memory is a matrix of gradients by
// rows and distances, ready to be multiplied by the table, or by the rows.
//
// As the other side moves on by 64 rows, the window moves by 64 distances: its upper half is the lower
// half of before. So half a window is loaded for a tile. Where all distances of a tile lie beyond
// the last change of b at an end, they share a row of the table, and each term is one number for every own
// row and one for every other: such a tile is FAR, and costs hardly more than attention without distances.
#pragma once
#include "prelude.cuh"

enum { KEYS_AT = 1, QUERIES_AT = 2, BOTH = 3 };         // which tables there are
enum { QUERIES = 0, KEYS = 1 };                         // sides
enum { NEAR = -1, LOW_END = 0, HIGH_END = 1 };          // kinds of tiles

constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr int TILE = 64;                                // rows of a tile, of either side
constexpr int SPREAD = 80;                              // distances that 16 rows meet in a tile, and one
constexpr int SKEW = SPREAD + 8;                        // from row to row of products: no bank conflicts

DEVICE int lane_of() { return threadIdx.x % 32; }
DEVICE int warp_of() { return threadIdx.x / 32; }
DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL, x, 2));
}
DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(ALL, x, 1);
    return x + __shfl_xor_sync(ALL, x, 2);
}

// ---- who works on what
//
// An item of `work` [W, 2] is a sequence, and the first of the 64 rows in it that a block owns. Sequence
// -1 fills a list up to the length that a captured graph has. The tokens of sequence s are rows cuts[s] ...
// cuts[s+1] - 1 of all arrays.

struct Item { int begin, length, first; };              // length 0: nothing to do
DEVICE Item item_of(const int* work, const int* cuts, int number) {
    int sequence = work[2 * number];
    if (sequence < 0) return Item{0, 0, 0};
    int begin = cuts[sequence];
    return Item{begin, cuts[sequence + 1] - begin, work[2 * number + 1]};
}

// Which row of a table belongs to a distance i - j: buckets [2 * furthest + 1], from -furthest on. All
// distances up to `below` share a row, and so do all from `above` on; the host counts these.
struct Distances {
    const int* buckets;
    int furthest, below, above;
};
DEVICE int row_of(const Distances& d, int distance) {
    return d.buckets[min(max(distance, -d.furthest), d.furthest) + d.furthest];
}
// The kind of a tile whose first query stands `apart` after its first key. (The same for a tile that the
// end of a sequence cuts, though fewer distances may occur in it.)
DEVICE int kind_of(const Distances& d, int apart) {
    if (apart + TILE - 1 <= d.below) return LOW_END;
    if (apart - TILE + 1 >= d.above) return HIGH_END;
    return NEAR;
}

// ---- tiles
//
// 64 rows of D numbers in shared memory, with nothing between them. The eight rows that ldmatrix reads at
// once shall lie in different banks, so pieces of 16 bytes change places within a line of 128: piece p of
// row r lies where p ^ r would (p ^ r / 2, where two rows share a line).

template <int D> DEVICE unsigned place(unsigned row, unsigned column) {
    unsigned piece = column / 8 ^ row / (64 / D) % (D / 8);
    return row * D + piece * 8 + column % 8;
}

// The whole block copies a tile, of which `rows` rows exist; the others become zeros.
template <class T, int D> DEVICE void load_tile(T* tile, const T* from, int stride, int rows) {
#pragma unroll
    for (int i = 0; i < TILE * D / 8; i += THREADS) {
        int row = (i + threadIdx.x) / (D / 8);
        int column = threadIdx.x % (D / 8) * 8;
        bool exists = row < rows;
        const T* source = from + (exists ? row : 0) * stride + column;
        copy16(tile + place<D>(row, column), source, exists ? 16 : 0);
    }
}

// Half a window: the rows of a table [O, width] for 64 differences a - b from `difference` on.
template <class T, int D>
DEVICE void load_distances(T* half, const T* table, int width, const Distances& d, int side, int difference) {
#pragma unroll
    for (int i = 0; i < TILE * D / 8; i += THREADS) {
        int row = (i + threadIdx.x) / (D / 8);
        int column = threadIdx.x % (D / 8) * 8;
        int distance = side == QUERIES ? difference + row : -(difference + row);
        copy16(half + place<D>(row, column), table + row_of(d, distance) * width + column);
    }
}

// The table's rows of both ends, in turn, to fill eight rows: low, high, low, ...
template <class T, int D> DEVICE void load_ends(T* ends, const T* table, int width, const Distances& d) {
    int row = threadIdx.x / (D / 8), column = threadIdx.x % (D / 8) * 8;
    if (row >= 8) return;
    int distance = row % 2 == LOW_END ? -d.furthest : d.furthest;
    copy16(ends + place<D>(row, column), table + row_of(d, distance) * width + column);
}

// A warp writes its 16 rows of a result, of which `rows` exist: by way of its own 16 rows of products,
// since a lane holds pairs of numbers, and 16 bytes are to be written at a time.
template <class T, int D>
DEVICE void store_rows(T* to, int stride, int rows, const float (&c)[D / 8][4], float first, float second,
                       T* scratch) {
    int g = lane_of() / 4, t = lane_of() % 4 * 2;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        *(uint32_t*)(scratch + g * SKEW + n * 8 + t) = pack<T>(c[n][0] * first, c[n][1] * first);
        *(uint32_t*)(scratch + (g + 8) * SKEW + n * 8 + t) = pack<T>(c[n][2] * second, c[n][3] * second);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * D / 8; i += 32) {
        int row = (i + lane_of()) / (D / 8), column = lane_of() % (D / 8) * 8;
        if (row < rows) store16(to + row * stride + column, load16<uint4>(scratch + row * SKEW + column));
    }
}

// ---- products of a warp: 16 rows, 8 N columns

template <int N> DEVICE void set_zero(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.f;
}

// c0 and c1, neighbours, += a times the two operands that one ldmatrix has brought.
template <class T>
DEVICE void multiply(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
    mma<T>(c0, a, first);
    mma<T>(c1, a, second);
}

// Sixteen rows of a tile, from `row` on, as the operand A.
template <class T, int D> DEVICE void load_rows(uint32_t (&a)[D / 16][4], const T* tile, unsigned row) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        ldmatrix(a[k], tile + place<D>(row + lane_of() % 16, k * 16 + lane_of() / 16 * 8));
    }
}

// c += a b', b the 8 N rows of a tile from `row` on.
template <class T, int D, int N>
DEVICE void add_product_with_rows(float (&c)[N][4], const uint32_t (&a)[D / 16][4], const T* tile,
                                  unsigned row) {
    row += lane_of() % 8 + lane_of() / 16 * 8;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            ldmatrix(b, tile + place<D>(row + n * 8, k * 16 + lane_of() / 8 % 2 * 8));
            multiply<T>(c[n], c[n + 1], a[k], b);
        }
    }
}

// c += a b, b sixteen rows of a tile from `row` on.
template <class T, int D>
DEVICE void add_product_with_columns(float (&c)[D / 8][4], const uint32_t (&a)[4], const T* tile,
                                     unsigned row) {
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
        uint32_t b[4];
        ldmatrix_transposed(b, tile + place<D>(row + lane_of() % 16, n * 8 + lane_of() / 16 * 8));
        multiply<T>(c[n], c[n + 1], a, b);
    }
}

// c += p b, b the 64 rows of a tile: what a lane holds of the result p is what it has to hold of A.
template <class T, int D>
DEVICE void add_product_with_tile(float (&c)[D / 8][4], const float (&p)[TILE / 8][4], const T* tile) {
#pragma unroll
    for (int k = 0; k < TILE / 8; k += 2) {
        const uint32_t a[4] = {pack<T>(p[k][0], p[k][1]), pack<T>(p[k][2], p[k][3]),
                               pack<T>(p[k + 1][0], p[k + 1][1]), pack<T>(p[k + 1][2], p[k + 1][3])};
        add_product_with_columns<T, D>(c, a, tile, k * 8);
    }
}

// ---- products with distances

// Where the product of own row a, or of other row b, with the distance of a and b lies.
DEVICE int own_place(int a, int b) { return a * SKEW + a % 16 + 63 - b; }
DEVICE int other_place(int a, int b) { return b * SKEW + 15 - b % 16 + a; }

// And for the four numbers c[n][0..3] of a lane, in memory that begins at its c[0][0]: plain constants.
DEVICE constexpr int own_step(int n, int e) { return e / 2 * 8 * (SKEW + 1) - n * 8 - e % 2; }
DEVICE constexpr int other_step(int n, int e) {
    return (n * 8 + e % 2) * SKEW - (n % 2 * 8 + e % 2) + e / 2 * 8;
}

// The rows of 127 distances: those below u = 64, and the others, wherever they lie.
template <class T> struct Window {
    T *low, *high;
    DEVICE const T* half(unsigned u) const { return u < TILE ? low : high; }
};

// A warp's sixteen rows meet 80 distances, from number `first` on: -> products, the warp's rows of them.
// CLEAN: with zeros where row r meets distances that the tile does not have, before and after 64 others.
template <class T, int D, bool OWN, bool CLEAN>
DEVICE void meet_distances(T* products, const uint32_t (&rows)[D / 16][4], const Window<T>& window,
                           unsigned first) {
    int g = lane_of() / 4, t = lane_of() % 4 * 2;
#pragma unroll
    for (int k = 0; k < SPREAD; k += 16) {
        float c[2][4];
        set_zero(c);
        add_product_with_rows<T, D>(c, rows, window.half(first + k), (first + k) % TILE);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            if (CLEAN && (k == 0 || k == 64)) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int row = g + e / 2 * 8, column = k + n * 8 + t + e % 2;
                    int begin = OWN ? row : 15 - row;
                    if (column < begin || column >= begin + TILE) c[n][e] = 0.f;
                }
            }
            T* at = products + g * SKEW + k + n * 8 + t;
            *(uint32_t*)at = pack<T>(c[n][0], c[n][1]);
            *(uint32_t*)(at + 8 * SKEW) = pack<T>(c[n][2], c[n][3]);
        }
    }
}

// They meet the two ends. Whatever the lane: c[0] and c[1] are the products of row g with the low end and
// with the high one, c[2] and c[3] those of row g + 8.
template <class T, int D>
DEVICE void meet_ends(float (&c)[4], const uint32_t (&rows)[D / 16][4], const T* ends) {
    c[0] = c[1] = c[2] = c[3] = 0.f;
#pragma unroll
    for (int k = 0; k < D / 16; k += 2) {
        uint32_t b[4];
        ldmatrix(b, ends + place<D>(lane_of() % 8, k * 16 + lane_of() / 8 * 8));
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
        mma<T>(c, rows[k], first);
        mma<T>(c, rows[k + 1], second);
    }
}

// ---- dropout
//
// The draws of sixteen keys, from a multiple of 16 on, are one block of Philox, numbered (key / 16, query
// row * heads + head). No block is computed twice: each lane computes two of the 64 that its warp needs,
// takes a bit of each draw - is the number kept? - and hands them on.

struct Dropout { const uint32_t* run; uint32_t part, site, threshold; };      // threshold 0: there is none
DEVICE float factor_of(const Dropout& d) { return 256.f / float(256 - int(d.threshold)); }

// Sixteen bits. Four draws at a time, each a byte x of a word: is x >= c? Where the highest bits of x and c
// differ, they say so; otherwise the lower seven do: a bit set above them is still there after x - c.
DEVICE uint32_t kept(uint4 drawn, uint32_t threshold) {
    const uint32_t words[4] = {drawn.x, drawn.y, drawn.z, drawn.w};
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t x = words[i];
        uint32_t lower = (x | 0x80808080u) - (threshold & 127) * 0x01010101u;
        uint32_t yes = (threshold & 128 ? x & lower : x | lower) >> 7 & 0x01010101u;
        bits |= yes * 0x01020408u >> 24 << 4 * i;                   // the four bits side by side
    }
    return bits;
}
DEVICE uint32_t kept(const Dropout& d, uint32_t row, uint32_t block) {
    return kept(draws(d.run, d.part, d.site, row, block), d.threshold);
}

// For 16 x 64 numbers of a warp, which of a lane's are kept. If rows are queries: query q of them draws in
// row `row` + q * step, and `block` is that of the first key.
struct KeptByQuery {
    uint32_t bits[4];
    DEVICE void draw_all(const Dropout& d, uint32_t row, uint32_t step, uint32_t block) {
        uint32_t g = lane_of() / 4, mine = block + lane_of() % 4, both = ALL;
        if (d.threshold) both = kept(d, row + g * step, mine) | kept(d, row + (g + 8) * step, mine) << 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bits[i] = __shfl_sync(ALL, both, lane_of() / 4 * 4 + i) >> lane_of() % 4 * 2;
        }
    }
    DEVICE bool keeps(int n, int e) const { return bits[n / 2] >> (e / 2 * 16 + n % 2 * 8 + e % 2) & 1; }
};
// If rows are keys, sixteen from 16 * block on, and columns are queries.
struct KeptByKey {
    uint32_t bits[4][2];
    DEVICE void draw_all(const Dropout& d, uint32_t row, uint32_t step, uint32_t block) {
        uint32_t lane = lane_of(), both = ALL;
        if (d.threshold) {
            both = kept(d, row + lane * step, block) | kept(d, row + (lane + 32) * step, block) << 16;
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                bits[n][i] = __shfl_sync(ALL, both, n * 8 + lane_of() % 4 * 2 + i) >> lane_of() / 4;
            }
        }
    }
    DEVICE bool keeps(int n, int e) const { return bits[n % 4][e % 2] >> (n / 4 * 16 + e / 2 * 8) & 1; }
};
