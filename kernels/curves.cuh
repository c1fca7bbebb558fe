// curves.cuh - the curves that an activation may follow, each with its slope, for gelu.cu and geglu.cu.
//
// GELU(z) = z Phi(z), where Phi(z) is the share of the normal distribution below z. With a = |z| let
//
//     tail(a) = 1 - Phi(a) = exp(-a^2 / 2) Q(t),     t = 1 / (1 + k a)
//
// The exponential takes along nearly all that happens between 0 and infinity. What is left, Q, falls from
// 1/2 to 0, and as a function of t it is so tame that a short polynomial follows it. Phi(a) is 1 - tail(a),
// and Phi(-a) is tail(a); so
//
//     GELU(z)  = max(z, 0) - a tail(a)               ReLU, less a bump that is the same on both sides
//     GELU'(z) = Phi(z) + z phi(z)                   phi(z) = exp(-a^2 / 2) / sqrt(2 pi)
//              = 1 + (a phi(z) - tail(a))            for z > 0
//              =   - (a phi(z) - tail(a))            for z <= 0
//
// phi costs no exponential of its own. And nothing cancels far below 0, as in z (1 + erf(z / sqrt 2)) / 2 it
// would: there too the error is small beside the result. It grows as a^2 does, since the exponent is rounded,
// but to round z once more would do as much.
//
// Some models were trained with the form "tanh". With r = (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)) it is
//
//     y = z r,     y' = r + z r (1 - r) 2 u',     u = sqrt(2 / pi) (z + 0.044715 z^3)
//
// Both forms take one exponential and one reciprocal, each an instruction of a unit with an eighth of the
// lanes. Instructions in all, for a number stored in 16 bits (a float takes three more in "erf"):
//
//               value   slope   both
//     erf         13      15      18
//     tanh         7      12      13
//
// NaN stays NaN, except that ReLU's slope is 0 there. No finite z is too large for "erf", though an infinite
// one gives NaN; for the slope of "tanh" z^2 has to be finite.
#pragma once
#include "prelude.cuh"

constexpr int ERF = 0, TANH = 1, RELU = 2;

struct Point { float y, slope; };                   // of these, what the caller ignores is not computed

// c[0] + c[1] t + c[2] t^2 + ...
template <int N> DEVICE float polynomial(const float (&c)[N], float t) {
    float sum = c[N - 1];
#pragma unroll
    for (int i = N - 2; i >= 0; i--) sum = sum * t + c[i];
    return sum;
}

// Q, which we fitted to 0 <= a <= 14.2 for the least relative error.
template <class T> DEVICE float scaled_tail(float a) {
    if constexpr (Same<T, float>::yes) {            // error 9e-8, and 4e-7 with all that float rounds
        constexpr float q[9] = {7.2618662e-06f, 0.119486104f, 0.121931713f, 0.0946390136f, 0.142640192f,
                                -0.0766582069f, 0.228792871f, -0.169230462f, 0.0383915418f};
        return polynomial(q, __fdividef(1.f, 1.f + 0.3f * a));
    } else {                                        // error 1.4e-5: 16 bits may round away 17 times as much
        constexpr float q[6] = {0.000187616053f, 0.140171192f, 0.168473388f, 0.0356006985f, 0.253897787f,
                                -0.0983302849f};
        return polynomial(q, __fdividef(1.f, 1.f + 0.36f * a));
    }
}

// A curve at z, for numbers that are stored as T.
template <class T, int FORM> DEVICE Point curve(float z) {
    if constexpr (FORM == RELU) {
        return {z < 0.f ? 0.f : z, z > 0.f ? 1.f : 0.f};
    } else if constexpr (FORM == TANH) {
        constexpr float k = 2.f * 0.7978845608f;                        // 2 sqrt(2 / pi)
        float square = z * z;
        float power = z * (-LOG2E * k + -LOG2E * k * 0.044715f * square);               // exp(-2 u) = 2^power
        float r = __fdividef(1.f, 1.f + ex2(power));
        float two_slope = k + 3.f * k * 0.044715f * square;                             // 2 u'
        return {z * r, r + r * (1.f - r) * z * two_slope};
    } else {
        constexpr float height = 0.3989422804f;                         // 1 / sqrt(2 pi)
        float a = fabsf(z);
        float bell = ex2(-0.5f * LOG2E * (z * z));                      // exp(-a^2 / 2)
        float q = scaled_tail<T>(a);
        float bump = bell * (a * height - q);                           // a phi - tail
        return {fmaxf(z, 0.f) - a * (bell * q), z > 0.f ? 1.f + bump : -bump};
    }
}
