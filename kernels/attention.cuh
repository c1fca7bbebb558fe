// attention.cuh - what the forward and the backward pass of attention share: who works on what, tiles
// in shared memory, their products on tensor cores, and the draws of dropout as such products have them.
//
// A block has four warps and OWNs 64 or 128 rows of one side: queries, or keys. A warp has 16 or 32
// of these, and keeps their results in registers from the first to the last line. The other side
// streams by, 64 rows at a time, through two stages of shared memory: one is read while the next lands.
#pragma once
#include "prelude.cuh"

constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr int STREAM = 64;

// How many blocks shall share a multiprocessor: a thread has the more registers the fewer they are. f16 is
// for Turing, which has shared memory for one or two.
template <class T> constexpr int blocks_for(int D, int OWN) {
    return D * OWN <= 64 * 64 && !Same<T, f16>::yes ? 3 : 2;
}
#define KERNEL_FOR(blocks) __global__ void __launch_bounds__(THREADS, blocks)

DEVICE int lane_of() { return threadIdx.x % 32; }
DEVICE int warp_of() { return threadIdx.x / 32; }

// ---- who works on what
//
// There are W * heads blocks. Block b works for head b % heads on item b / heads of `work` [W, 2]: a
// sequence, and the first row that it owns there. The host lists exactly the work there is, the longest
// sequences first so that none is left over at the end; sequence -1 fills a list up to the length that a
// captured graph has. No array has 2^31 numbers, so an int says where each one is.
//
// The keys of sequence s are rows key_cuts[s] ... key_cuts[s+1] - 1 of the arrays, its queries those of
// query_cuts. Where all tokens ask, the two are the same. Otherwise `rows` [R] says which tokens the
// queries are of, in ascending order: a reach and nothing else wants to know.

struct Sequence {
    int queries, keys;                  // how many it has
    int first_query, first_key;         // and the rows of the arrays where they begin
};
DEVICE Sequence sequence_of(int number, const int* query_cuts, const int* key_cuts) {
    Sequence s;
    s.first_query = query_cuts[number];
    s.first_key = key_cuts[number];
    s.queries = query_cuts[number + 1] - s.first_query;
    s.keys = key_cuts[number + 1] - s.first_key;
    return s;
}

// Where a query stands among the keys of its sequence.
DEVICE int place_of(const int* rows, const Sequence& s, int query) {
    return rows ? rows[s.first_query + query] - s.first_key : query;
}

// How many queries of a sequence stand before a place.
DEVICE int queries_before(const int* rows, const Sequence& s, int place) {
    if (!rows) return min(max(place, 0), s.queries);
    int low = 0, high = s.queries;
    while (low < high) {
        int middle = (low + high) / 2;
        if (place_of(rows, s, middle) < place) low = middle + 1;
        else high = middle;
    }
    return low;
}

DEVICE bool too_far(int query_place, int key, int reach) {
    int distance = query_place - key;
    return max(distance, -distance) > reach;
}

// ---- tiles
//
// A tile has ROWS x D numbers. A head may have fewer, `size` of them: zeros fill the rest, which add
// nothing to any product. Rows lie D + 8 numbers apart, so the eight rows that ldmatrix reads at once
// lie in different banks.

template <int D> DEVICE constexpr int apart() { return D + 8; }

// Two neighbours, of which the second one may be missing. A row of an odd size begins anywhere.
template <class T> DEVICE uint32_t load_pair(const T* p, int column, int size) {
    if (size % 2 == 0) return *(const uint32_t*)(p + column);
    uint32_t second = column + 1 < size ? p[column + 1].bits : 0;
    return p[column].bits | second << 16;
}
template <class T> DEVICE void store_pair(T* p, int column, int size, uint32_t both) {
    if (size % 2 == 0) {
        *(uint32_t*)(p + column) = both;
        return;
    }
    p[column].bits = uint16_t(both);
    if (column + 1 < size) p[column + 1].bits = uint16_t(both >> 16);
}

// The whole block copies a tile, of which `rows` rows exist. Heads of full size are copied by 16 bytes
// while we go on; those of another size begin at odd addresses, and are read by pairs.
template <class T, int D, int ROWS>
DEVICE void load_tile(T* tile, const T* from, int stride, int size, int rows) {
    if (size == D) {
        int row = threadIdx.x / (D / 8), column = threadIdx.x % (D / 8) * 8;
        from += row * stride + column;
        tile += row * apart<D>() + column;
#pragma unroll
        for (int i = 0; i < ROWS; i += THREADS / (D / 8)) {
            copy16(tile + i * apart<D>(), from + i * stride, row + i < rows ? 16 : 0);
        }
    } else {
        int row = threadIdx.x / (D / 2), column = threadIdx.x % (D / 2) * 2;
#pragma unroll (D == 32 ? 4 : 1)
        for (int i = row; i < ROWS; i += THREADS / (D / 2)) {
            uint32_t both = 0;
            if (i < rows && column < size) both = load_pair(from + i * stride, column, size);
            *(uint32_t*)(tile + i * apart<D>() + column) = both;
        }
    }
}

// A warp writes its 16 M rows, of which `rows` exist, from registers. They go by way of its own part of
// a tile, since a lane holds pairs of numbers, and 16 bytes are to be written at a time.
template <class T, int D, int M>
DEVICE void store_rows(T* to, int stride, int size, int rows, const float (&c)[M][D / 8][4], T* tile) {
    int g = lane_of() / 4, t = lane_of() % 4 * 2;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            T* at = tile + (m * 16 + g) * apart<D>() + n * 8 + t;
            *(uint32_t*)at = pack<T>(c[m][n][0], c[m][n][1]);
            *(uint32_t*)(at + 8 * apart<D>()) = pack<T>(c[m][n][2], c[m][n][3]);
        }
    }
    __syncwarp();
    if (size == D) {
        for (int i = lane_of(); i < 16 * M * D / 8; i += 32) {
            int row = i / (D / 8), column = i % (D / 8) * 8;
            const T* at = tile + row * apart<D>() + column;
            if (row < rows) store16(to + row * stride + column, load16<uint4>(at));
        }
    } else {
        for (int i = lane_of(); i < 16 * M * D / 2; i += 32) {
            int row = i / (D / 2), column = i % (D / 2) * 2;
            uint32_t both = *(uint32_t*)(tile + row * apart<D>() + column);
            if (row < rows && column < size) store_pair(to + row * stride, column, size, both);
        }
    }
}

// ---- products
//
// Two kinds are enough, since S = Q K' asks for rows of both, and P V for the columns of V. A warp's
// result has 16 M rows and 8 N columns. In the first kind the operand A is given. In the second it is the
// result of a product before: what a lane holds of C is just what it has to hold of A.

template <class T, int M, int N> DEVICE void set_zero(float (&c)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0.f;
    }
}

// Sixteen columns of the first 16 M rows of a tile, as the operand A. own_row is where a lane reads.
template <class T, int D> DEVICE const T* own_row(const T* tile) {
    return tile + lane_of() % 16 * apart<D>() + lane_of() / 16 * 8;
}
template <class T, int D, int M> DEVICE void load_operand(uint32_t (&a)[M][4], const T* row) {
#pragma unroll
    for (int m = 0; m < M; m++) ldmatrix(a[m], row + m * 16 * apart<D>());
}

// c += a b', where b are sixteen columns of the first 8 N rows of a tile. One ldmatrix brings sixteen
// of these rows: operands of two mma for each of the M.
template <class T, int D, int M, int N>
DEVICE void add_product_with_rows(float (&c)[M][N][4], const uint32_t (&a)[M][4], const T* tile) {
    const T* row = tile + (lane_of() % 8 + lane_of() / 16 * 8) * apart<D>() + lane_of() / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        uint32_t b[4];
        ldmatrix(b, row + n * 8 * apart<D>());
        uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma<T>(c[m][n], a[m], first);
            mma<T>(c[m][n + 1], a[m], second);
        }
    }
}

// c += p b, where b are the first 8 N rows of a tile, and p is rounded to T.
template <class T, int D, int M, int N>
DEVICE void add_product_with_columns(float (&c)[M][D / 8][4], const float (&p)[M][N][4], const T* tile) {
    const T* row = own_row<T, D>(tile);
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            a[m][0] = pack<T>(p[m][k][0], p[m][k][1]);
            a[m][1] = pack<T>(p[m][k][2], p[m][k][3]);
            a[m][2] = pack<T>(p[m][k + 1][0], p[m][k + 1][1]);
            a[m][3] = pack<T>(p[m][k + 1][2], p[m][k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_transposed(b, row + k * 8 * apart<D>() + n * 8);
            uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma<T>(c[m][n], a[m], first);
                mma<T>(c[m][n + 1], a[m], second);
            }
        }
    }
}

// A row of a result lies in the four lanes of a quad.
DEVICE float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL, x, 2));
}
DEVICE float quad_sum(float x) {
    x += __shfl_xor_sync(ALL, x, 1);
    return x + __shfl_xor_sync(ALL, x, 2);
}

// ---- dropout
//
// The draws of sixteen keys, from a multiple of 16 on, are one block of Philox, numbered (key / 16,
// query row * heads + head). A block costs some sixty instructions, so none is computed twice: every
// lane computes another one, and lays its 16 bytes down as one row of an 8 x 8 matrix of 16-bit numbers.
// ldmatrix then deals them to the lanes as it would deal an operand: where queries are the rows of a
// result straight, and where keys are, transposed. Four matrices are 32 blocks, or 512 draws.
//
// Four draws in a word are compared with the threshold at once. Of a byte w let l be the lower seven bits,
// and h the highest. Up to a threshold t of 128, w >= t if h or l + (128 - t) >= 128; above, if h and
// l + (256 - t) >= 128. No sum exceeds 255, so none reaches the byte beside it.

struct Dropout {
    uint2 key;
    uint32_t part, site;
    uint32_t added, low;                // in each byte: 128 - t or 256 - t; ones for t up to 128
    char* scratch;                      // 512 bytes for each warp
};
DEVICE Dropout dropout_of(const uint32_t* run, uint32_t part, uint32_t site, uint32_t threshold,
                          char* scratch) {
    Dropout d;
    d.key = threshold ? make_uint2(run[0], run[1]) : make_uint2(0, 0);
    d.part = part;
    d.site = site;
    d.added = ((threshold <= 128 ? 128 : 256) - threshold) * 0x01010101u;
    d.low = threshold <= 128 ? 0xffffffffu : 0;
    d.scratch = scratch + 512 * warp_of();
    return d;
}

// Put this lane's 16 bytes down; -> where it reads.
DEVICE const char* exchange(const Dropout& d, uint4 mine) {
    char* row = d.scratch + lane_of() * 16;
    __syncwarp();
    store16(row, mine);
    __syncwarp();
    return row;
}

// The highest bit of each byte: is it to be kept?
DEVICE uint32_t compare(const Dropout& d, uint32_t four) {
    uint32_t sums = (four & 0x7f7f7f7f) + d.added;
    return (sums & four) | (d.low & (sums | four));
}

// For a result whose 16 M rows are queries, and whose 8 N columns are keys from 16 * block on. Byte e of
// kept[m][n] is for c[m][n][e]. row: the number of the first query's, `step` the distance of the next.
// Matrix (m, half, b) has the queries 16 m + 8 half + i. Lane t of a quad wants the keys t, t+1, t+8, t+9.
template <int M, int N>
DEVICE void kept_by_query(uint32_t (&kept)[M][N], const Dropout& d, uint32_t row, uint32_t step,
                          uint32_t block) {
    static_assert(M * N % 4 == 0, "whole exchanges");
    uint32_t found[M][2][N / 2];
#pragma unroll
    for (int i = 0; i < M * N; i += 4) {
        int matrix = i + lane_of() / 8;
        uint32_t query = matrix / (N / 2) * 8 + lane_of() % 8;
        uint4 x = philox(make_uint4(block + matrix % (N / 2), row + query * step, d.part, d.site), d.key);
        uint4 mine = make_uint4((x.x & 0xffff) | x.z << 16, x.x >> 16 | (x.z & 0xffff0000),
                                (x.y & 0xffff) | x.w << 16, x.y >> 16 | (x.w & 0xffff0000));
        uint32_t four[4];
        ldmatrix(four, exchange(d, mine));
#pragma unroll
        for (int j = 0; j < 4; j++) found[(i + j) / N][(i + j) / (N / 2) % 2][(i + j) % (N / 2)] = four[j];
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int b = 0; b < N / 2; b++) {
            uint32_t upper = compare(d, found[m][0][b]), lower = compare(d, found[m][1][b]);
            kept[m][2 * b] = (upper & 0xffff) | lower << 16;
            kept[m][2 * b + 1] = upper >> 16 | (lower & 0xffff0000);
        }
    }
}

// For a result whose 16 M rows are keys from 16 * block on, and whose 8 N columns are queries. A lane has
// the keys g and g+8 of the queries t and t+1, so bytes 0, 2, 1, 3 are for c[m][n][0], [1], [2], [3].
// Bytes i and i + 8 of a block go side by side: these are the 16 bits that the lanes with g = i want.
DEVICE uint32_t interleaved(uint32_t a, uint32_t b) {
    return (a & 0xff) | (b & 0xff) << 8 | (a & 0xff00) << 8 | (b & 0xff00) << 16;
}
template <int M, int N>
DEVICE void kept_by_key(uint32_t (&kept)[M][N], const Dropout& d, uint32_t row, uint32_t step,
                        uint32_t block) {
    static_assert(M * N % 4 == 0, "whole exchanges");
#pragma unroll
    for (int i = 0; i < M * N; i += 4) {
        int matrix = i + lane_of() / 8;
        uint32_t query = matrix % N * 8 + lane_of() % 8;
        uint4 x = philox(make_uint4(block + matrix / N, row + query * step, d.part, d.site), d.key);
        uint4 mine = make_uint4(interleaved(x.x, x.z), interleaved(x.x >> 16, x.z >> 16),
                                interleaved(x.y, x.w), interleaved(x.y >> 16, x.w >> 16));
        uint32_t four[4];
        ldmatrix_transposed(four, exchange(d, mine));
#pragma unroll
        for (int j = 0; j < 4; j++) kept[(i + j) / N][(i + j) % N] = compare(d, four[j]);
    }
}

// Set to zero what is not kept.
template <bool BY_KEY, int M, int N> DEVICE void drop(float (&c)[M][N][4], const uint32_t (&kept)[M][N]) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int byte = BY_KEY ? e % 2 * 2 + e / 2 : e;
                if (!(kept[m][n] & 0x80u << 8 * byte)) c[m][n][e] = 0.f;
            }
        }
    }
}

// ---- without tensor cores
//
// For kernels that are to be plain above all: a lane computes a score by itself, then has every 32nd column.

constexpr int PLAIN = 16;               // the rows that a block owns

template <class T> DEVICE float dot(const T* a, const T* b, int size) {
    float sum = 0.f;
    for (int c = 0; c < size; c++) sum += wide(a[c]) * wide(b[c]);
    return sum;
}
template <class T> DEVICE void add_row(float (&sums)[4], float weight, const T* row, int size) {
#pragma unroll
    for (int c = 0; c < 4; c++) {
        int column = lane_of() + 32 * c;
        if (column < size) sums[c] += weight * wide(row[column]);
    }
}

// One draw alone.
DEVICE uint32_t draw_of(const uint32_t* run, uint32_t part, uint32_t site, uint32_t row, int column) {
    uint4 x = draws(run, part, site, row, column / 16);
    int word = column / 4 % 4;
    return draw(word < 2 ? (word ? x.y : x.x) : word == 2 ? x.z : x.w, column % 4);
}
