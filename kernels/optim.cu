// optim.cu - what an optimiser does between two steps: measure the gradient, and move the weights.
//
// Every parameter lies in one flat array of n numbers, the arena of engine/optim.py, and so do the
// gradients g, the moments m and v, and the 16-bit copy of the weights that the other kernels read
// (`shadow`). Those that decay come first, up to `edge`. AdamW with learning rate r:
//
//     m += (1 - b1) (g - m)            m' = m / (1 - b1^t)
//     v += (1 - b2) (g^2 - v)          v' = v / (1 - b2^t)            d = m' / (sqrt(v') + eps)
//     w -= r (d + decay w)
//
// LAMB moves a tensor in AdamW's direction u = d + decay w, but in proportion to the tensor's length:
// w -= r |w| / |u| u. StableAdamW divides r by max(1, rms(g / sqrt(v))) over the tensor. Both have to
// know a number about a whole tensor before they move any of it: they walk twice.
//
// Nothing of a step comes from the host but the learning rate, since the arguments of a captured graph
// are fixed. The rest is computed here and waits in the few numbers of `control`, named below. They also
// say whether the gradient was finite. If not, every kernel returns at once: a step that overflowed
// in f16 is as if it had not been, and the next one is scaled by less.
//
// Memory limits all of this; the arithmetic is a tenth of that. Bytes for each parameter, with float32
// gradients and a 16-bit shadow (16-bit gradients take 2 fewer at every reading):
//
//     squares 4       adamw 30: w 8, m 8, v 8, g 4, shadow 2        LAMB 24 + 18       StableAdamW 20 + 18
//
// With 110 M parameters and 4.3 TB/s AdamW takes 0.77 ms, and 0.10 ms go to measuring the gradient; with
// 16-bit gradients 0.72 and 0.05. A thread takes four numbers of each array, so 16 bytes of a float32 array
// and 8 of a 16-bit one. Eight would be 16 bytes of the latter but two times 16 of the former, and a warp's
// 32 threads would then write every second 16 bytes at a time: half of each sector of memory.
#include "prelude.cuh"

// control [10]: what lies where. The host writes RATE before every step, and before the first one STEPS
// (how many there have been), SCALE and zeros; all else is written by `judge`.
constexpr int RATE = 0;                 // the learning rate
constexpr int SCALE = 1;                // the gradients are this many times too large (loss.cu: scale)
constexpr int STEPS = 2;                // that have been taken: t above
constexpr int SKIPPED = 3;              // that have not, since the gradient was not finite
constexpr int GOOD = 4;                 // since the last one that was skipped, or since SCALE was raised
constexpr int HALTED = 5;               // 1: this step is not taken
constexpr int LENGTH = 6;               // of the whole gradient, before it was shortened
constexpr int FACTOR = 7;               // what a gradient is multiplied by: shortens it, and undoes SCALE
constexpr int FIRST = 8;                // 1 - b1^t
constexpr int SECOND = 9;               // 1 - b2^t

constexpr float LARGEST_SCALE = 16777216.f;
constexpr int LAMB = 0, STABLE = 1;     // the two methods that look at a tensor as a whole

// ---- measuring the gradient

// The first stage: partials[block] = the sum of squares of what the block saw. Any number of blocks; that
// number decides the order of adding, so it stays the same. g begins at a multiple of 16 bytes.
template <class G> KERNEL(256) squares(const G* __restrict__ g, float* partials, int n) {
    SHARED(shared);
    int first = blockIdx.x * 256 + threadIdx.x;
    float sum = 0;
#pragma unroll 2
    for (int eight = first; eight < n / 8; eight += gridDim.x * 256) {
        float x[8];
        load8(x, g + 8 * int64_t(eight));
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[i] * x[i];
    }
    if (first < n % 8) {                                    // the last few numbers
        float x = wide(g[n / 8 * 8 + first]);
        sum += x * x;
    }
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// The second stage: one block adds the partial sums and decides what becomes of this step.
//
// A number that is not finite makes the sum not finite: there is no other test. As BERT clips, a gradient
// longer than `limit` is multiplied by limit / length (limit 0: never). log_b1 and log_b2 are logarithms:
// 1 - b^t = -expm1(t log b) has all its digits, where 1 - powf(b, t) would have lost half of them to the
// rounding of b. With `correct` 0 both are 1. After `patience` good steps SCALE doubles, after a bad one
// it is halved; with patience 0 it stays.
KERNEL(1024) judge(const float* __restrict__ partials, float* control, int count, float limit, float log_b1,
                   float log_b2, int correct, int patience) {
    SHARED(shared);
    float sum = 0;
    for (int i = threadIdx.x; i < count; i += 1024) sum += partials[i];
    sum = block_sum(sum, (float*)shared);
    if (threadIdx.x) return;
    float scale = control[SCALE];
    float length = sqrtf(sum) / scale;
    bool finite = length < infinity();
    control[LENGTH] = length;
    control[HALTED] = !finite;
    if (finite) {
        float steps = control[STEPS] + 1;
        float good = control[GOOD] + 1;
        control[STEPS] = steps;
        control[FACTOR] = (limit > 0 && length > limit ? limit / length : 1.f) / scale;
        control[FIRST] = correct ? -expm1f(steps * log_b1) : 1.f;
        control[SECOND] = correct ? -expm1f(steps * log_b2) : 1.f;
        if (patience && good >= patience) {
            control[SCALE] = fminf(2 * scale, LARGEST_SCALE);
            good = 0;
        }
        control[GOOD] = good;
    } else {
        control[SKIPPED] += 1;
        control[GOOD] = 0;
        if (patience) control[SCALE] = fmaxf(scale / 2, 1.f);
    }
}

// ---- walking over the arena
//
// A block does one stretch of the arena, all of it of one tensor: starts [stretches + 1] says from where
// to where, owner [stretches] of which tensor. The host cuts at the tensors' ends, and at multiples of
// 4096. So only a tensor's end can lie inside of four numbers that are read together, and then two
// blocks share those: each takes what is its own, one by one.

struct Stretch { int begin, end, tensor; };

DEVICE Stretch stretch_of(const int* starts, const int* owner) {
    return Stretch{starts[blockIdx.x], starts[blockIdx.x + 1], owner[blockIdx.x]};
}

DEVICE void load4(float (&x)[4], const float* p) {
    float4 v = load16<float4>(p);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
template <class T> DEVICE void load4(float (&x)[4], const T* p) {
    uint2 v = *(const uint2*)p;
    x[0] = first_of<T>(v.x), x[1] = second_of<T>(v.x), x[2] = first_of<T>(v.y), x[3] = second_of<T>(v.y);
}
DEVICE void store4(float* p, const float (&x)[4]) { store16(p, make_float4(x[0], x[1], x[2], x[3])); }
template <class T> DEVICE void store4(T* p, const float (&x)[4]) {
    *(uint2*)p = make_uint2(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]));
}

// Four numbers from `at` on, a multiple of 4. Outside of the stretch 0 is read and nothing is written.
template <class T> DEVICE void take(float (&x)[4], const T* p, int at, const Stretch& s) {
    if (at >= s.begin && at + 4 <= s.end) {
        load4(x, p + at);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = at + i >= s.begin && at + i < s.end ? wide(p[at + i]) : 0.f;
    }
}
template <class T> DEVICE void put(T* p, const float (&x)[4], int at, const Stretch& s) {
    if (at >= s.begin && at + 4 <= s.end) {
        store4(p + at, x);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (at + i >= s.begin && at + i < s.end) p[at + i] = narrow<T>(x[i]);
    }
}

DEVICE int first_at(const Stretch& s) { return s.begin / 4 * 4 + 4 * threadIdx.x; }
DEVICE int next_at(int at) { return at + 4 * blockDim.x; }

// A tensor whose rate is 0 is frozen: its moments are forgotten.
DEVICE void forget(float* m, float* v, const Stretch& s) {
    float nothing[4] = {0, 0, 0, 0};
    for (int at = first_at(s); at < s.end; at = next_at(at)) {
        put(m, nothing, at, s);
        put(v, nothing, at, s);
    }
}

// Both moments move towards the gradient, by the shares 1 - b1 and 1 - b2.
DEVICE void move_moments(float (&m)[4], float (&v)[4], const float (&g)[4], float share1, float share2) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        m[i] = (1 - share1) * m[i] + share1 * g[i];
        v[i] = (1 - share2) * v[i] + share2 * (g[i] * g[i]);
    }
}

// m' / (sqrt(v') + eps) + decay w. The corrections c1 and c2 of the moments come in as
// lift = sqrt(c2) / c1 and low = eps sqrt(c2): the same, with one square root and one division.
DEVICE float direction(float w, float m, float v, float lift, float low, float decay) {
    return lift * m / (sqrtf(v) + low) + decay * w;
}

// ---- AdamW

// All of a step in one walk. shares are 1 - b1 and 1 - b2. pulls [tensors] or null: what the rate of each
// tensor is multiplied by. shadow may be null. starts and owner as above; 256 threads, four numbers each
// at a time. All arrays begin at multiples of 16 bytes.
template <class G, class S>
KERNEL(256) adamw(float* w, const G* __restrict__ g, float* m, float* v, S* shadow,
                  const int* __restrict__ starts, const int* __restrict__ owner,
                  const float* __restrict__ pulls, const float* __restrict__ control, int edge, float share1,
                  float share2, float eps, float decay) {
    if (control[HALTED]) return;
    Stretch s = stretch_of(starts, owner);
    float pull = pulls ? pulls[s.tensor] : 1.f;
    if (pull == 0) {
        forget(m, v, s);
        return;
    }
    float rate = control[RATE] * pull;
    float factor = control[FACTOR];
    float root = sqrtf(control[SECOND]);
    float lift = root / control[FIRST];
    float low = eps * root;
    if (s.begin >= edge) decay = 0;
    for (int at = first_at(s); at < s.end; at = next_at(at)) {
        float weight[4], gradient[4], mean[4], square[4];
        take(weight, w, at, s);
        take(gradient, g, at, s);
        take(mean, m, at, s);
        take(square, v, at, s);
#pragma unroll
        for (int i = 0; i < 4; i++) gradient[i] *= factor;
        move_moments(mean, square, gradient, share1, share2);
#pragma unroll
        for (int i = 0; i < 4; i++)
            weight[i] -= rate * direction(weight[i], mean[i], square[i], lift, low, decay);
        put(w, weight, at, s);
        put(m, mean, at, s);
        put(v, square, at, s);
        if (shadow) put(shadow, weight, at, s);
    }
}

// ---- LAMB and StableAdamW

// The first walk: the moments move, and sums [stretches, 2] is written.
//     LAMB      the sums of w^2 and u^2, where w decays; it does without a ratio where not
//     STABLE    the sum of g^2 / max(v, eps^2), and nothing
// StableAdamW puts the corrections into the shares: b (1 - b^(t-1)) / (1 - b^t) instead of b is
// (1 - b) / (1 - b^t) instead of 1 - b, so that its first moments are the gradient itself.
template <class G, int METHOD>
KERNEL(256) measure(const float* __restrict__ w, const G* __restrict__ g, float* m, float* v,
                    const int* __restrict__ starts, const int* __restrict__ owner,
                    const float* __restrict__ pulls, const float* __restrict__ control, float* sums, int edge,
                    float share1, float share2, float eps, float decay) {
    SHARED(shared);
    float* scratch = (float*)shared;
    if (control[HALTED]) return;
    Stretch s = stretch_of(starts, owner);
    if (pulls && pulls[s.tensor] == 0) {
        forget(m, v, s);
        return;
    }
    float factor = control[FACTOR];
    float root = sqrtf(control[SECOND]);
    float lift = root / control[FIRST];
    float low = eps * root;
    bool looking = METHOD == LAMB && s.begin < edge;
    if (METHOD == STABLE) {
        share1 /= control[FIRST];
        share2 /= control[SECOND];
    }
    float one = 0, other = 0;
    for (int at = first_at(s); at < s.end; at = next_at(at)) {
        float gradient[4], mean[4], square[4];
        take(gradient, g, at, s);
        take(mean, m, at, s);
        take(square, v, at, s);
#pragma unroll
        for (int i = 0; i < 4; i++) gradient[i] *= factor;
        move_moments(mean, square, gradient, share1, share2);
        put(m, mean, at, s);
        put(v, square, at, s);
        if (looking) {
            float weight[4];
            take(weight, w, at, s);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float u = direction(weight[i], mean[i], square[i], lift, low, decay);
                one += weight[i] * weight[i];
                other += u * u;
            }
        }
        if (METHOD == STABLE) {
#pragma unroll
            for (int i = 0; i < 4; i++) one += gradient[i] * gradient[i] / fmaxf(square[i], eps * eps);
        }
    }
    one = block_sum(one, scratch);
    other = block_sum(other, scratch + 32);
    if (threadIdx.x == 0) {
        sums[2 * blockIdx.x] = one;
        sums[2 * blockIdx.x + 1] = other;
    }
}

// ratios [tensors]: what the rate of a tensor is multiplied by. A block adds up the sums of one tensor's
// stretches, from first_of_tensor[tensor] to that of the next.
//     LAMB      |w| / |u|, or 1 where either is 0 or the tensor does not decay
//     STABLE    1 / max(1, rms)
template <int METHOD>
KERNEL(256) ratios_of(const float* __restrict__ sums, const int* __restrict__ starts,
                      const int* __restrict__ first_of_tensor, const float* __restrict__ pulls,
                      const float* __restrict__ control, float* ratios, int edge) {
    SHARED(shared);
    float* scratch = (float*)shared;
    int tensor = blockIdx.x;
    if (control[HALTED] || (pulls && pulls[tensor] == 0)) return;
    int begin = first_of_tensor[tensor], end = first_of_tensor[tensor + 1];
    float one = 0, other = 0;
    for (int i = begin + threadIdx.x; i < end; i += 256) {
        one += sums[2 * i];
        other += sums[2 * i + 1];
    }
    one = block_sum(one, scratch);
    other = block_sum(other, scratch + 32);
    if (threadIdx.x) return;
    float ratio = 1;
    if (METHOD == LAMB && starts[begin] < edge && one > 0 && other > 0) ratio = sqrtf(one) / sqrtf(other);
    if (METHOD == STABLE) ratio = 1 / fmaxf(1.f, sqrtf(one / (starts[end] - starts[begin])));
    ratios[tensor] = ratio;
}

// The second walk: w -= rate * ratio * direction. The direction is computed again from the moments: to
// write it down and read it back would move as many bytes, and take 4 n of memory. For StableAdamW decay
// is the recipe's, divided by the peak rate where there is one.
template <class S, int METHOD>
KERNEL(256) move(float* w, const float* __restrict__ m, const float* __restrict__ v, S* shadow,
                 const int* __restrict__ starts, const int* __restrict__ owner,
                 const float* __restrict__ pulls, const float* __restrict__ control,
                 const float* __restrict__ ratios, int edge, float eps, float decay) {
    if (control[HALTED]) return;
    Stretch s = stretch_of(starts, owner);
    float pull = pulls ? pulls[s.tensor] : 1.f;
    if (pull == 0) return;
    float rate = control[RATE] * pull * ratios[s.tensor];
    float root = METHOD == LAMB ? sqrtf(control[SECOND]) : 1.f;
    float lift = METHOD == LAMB ? root / control[FIRST] : 1.f;
    float low = eps * root;
    if (s.begin >= edge) decay = 0;
    for (int at = first_at(s); at < s.end; at = next_at(at)) {
        float weight[4], mean[4], square[4];
        take(weight, w, at, s);
        take(mean, m, at, s);
        take(square, v, at, s);
#pragma unroll
        for (int i = 0; i < 4; i++)
            weight[i] -= rate * direction(weight[i], mean[i], square[i], lift, low, decay);
        put(w, weight, at, s);
        if (shadow) put(shadow, weight, at, s);
    }
}

// instances, and the registers that each may use:
//     squares<float>      40
//     squares<bf16>       40
//     squares<f16>        40
//     judge               48
//     adamw<float,float>  64
//     adamw<float,bf16>   64
//     adamw<float,f16>    64
//     adamw<bf16,bf16>    64
//     adamw<f16,f16>      64
//     measure<float,0>    64
//     measure<bf16,0>     64
//     measure<f16,0>      64
//     measure<float,1>    64
//     measure<bf16,1>     64
//     measure<f16,1>      64
//     ratios_of<0>        64
//     ratios_of<1>        64
//     move<float,0>       64
//     move<bf16,0>        64
//     move<f16,0>         64
//     move<float,1>       64
//     move<bf16,1>        64
//     move<f16,1>         64
