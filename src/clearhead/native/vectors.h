// Vectors of W floats, as wide as the instruction set has them: the compiler's own, and only what it
// can't express is written by hand.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

// IN_REGISTER: what is loaded once is not loaded anew by each instruction that reads it, and sums are
// added in the order that is written: the compiler would reorder those of whole numbers, and spill them.
#if defined(__x86_64__)
#include <immintrin.h>
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define IN_REGISTER(v) ((void)0)
#endif

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif
#define INLINE static inline INLINE_MEMBER
#define INLINE_MEMBER __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * W)));
typedef float vec_at __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef float quad __attribute__((vector_size(16)));
typedef float quad_at __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
typedef uint16_t u16_at __attribute__((vector_size(2 * W), aligned(2), may_alias));
struct Half {  // fp16, for which not every compiler has a type
    uint16_t bits;
};
typedef int16_t svec __attribute__((vector_size(4 * W)));
typedef int16_t svec_at __attribute__((vector_size(4 * W), aligned(2), may_alias));
typedef uint16_t usvec __attribute__((vector_size(4 * W)));
typedef uint16_t usvec_at __attribute__((vector_size(4 * W), aligned(2), may_alias));
typedef int16_t half_svec __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef int8_t i8_at __attribute__((vector_size(2 * W), aligned(1), may_alias));

INLINE vec all(float x) { return x - (vec){0}; }

INLINE uvec widen(const uint16_t *p) {
#if defined(__AVX512F__)
    return (uvec)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (uvec)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    return __builtin_convertvector(*(const u16_at *)p, uvec);
#endif
}

// Numbers in memory are fp32 (float), bf16 (uint16_t) or fp16 (Half).
INLINE vec load(const float *p) { return *(const vec_at *)p; }
INLINE vec load(const uint16_t *p) { return (vec)(widen(p) << 16); }
INLINE vec load(const Half *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    return (vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#endif
}

// 2 W whole numbers.
INLINE svec load(const int8_t *p) {
#if defined(__AVX512F__)
    return (svec)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (svec)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
#else
    return __builtin_convertvector(*(const i8_at *)p, svec);
#endif
}

// Products of 2 W whole numbers, two of them added in each lane: neighbours, with AVX.
INLINE ivec pairs(svec a, svec b) {
#if defined(__AVX512F__)
    return (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const half_svec *x = (const half_svec *)&a, *y = (const half_svec *)&b;
    return __builtin_convertvector(x[0], ivec) * __builtin_convertvector(y[0], ivec) +
           __builtin_convertvector(x[1], ivec) * __builtin_convertvector(y[1], ivec);
#endif
}

// Products of 4 W whole numbers of a byte, a's without sign; two of them, below 2^15, are added in each
// lane.
INLINE svec byte_pairs(svec a, svec b) {
#if defined(__AVX512F__)
    return (svec)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (svec)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#else
    return (a & 0xff) * (b << 8 >> 8) + (svec)((usvec)a >> 8) * (b >> 8);
#endif
}

INLINE void store(float *p, vec v) { *(vec_at *)p = v; }
INLINE void store(uint16_t *p, vec v) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
    uvec bits = (uvec)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    uvec nan = (uvec)((bits & 0x7fffffff) > 0x7f800000);
    *(u16_at *)p = __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), u16_at);
#endif
}

// The first n numbers; the other lanes are 0, or are not stored.
template <class Number> INLINE vec load(const Number *p, int n) {
    if (n == W) return load(p);
    Number some[W] = {};
    memcpy(some, p, sizeof(Number) * n);
    return load(some);
}

template <class Number> INLINE void store(Number *p, vec v, int n) {
    if (n == W) return store(p, v);
    Number some[W];
    store(some, v);
    memcpy(p, some, sizeof(Number) * n);
}

// Calls `take` with each vector's first index, and with how many lanes it has.
template <class Take> INLINE void lanes(long n, Take take) {
    long i = 0;
    for (; i + W <= n; i += W) take(i, W);
    if (i < n) take(i, (int)(n - i));
}

template <class From, class To> INLINE void convert(const From *from, To *to, long n) {
    lanes(n, [&](long i, int count) { store(to + i, load(from + i, count), count); });
}

template <int... lane> struct Lanes {};
#if W == 16
constexpr Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15> ALL;
#elif W == 8
constexpr Lanes<0, 1, 2, 3, 4, 5, 6, 7> ALL;
#else
constexpr Lanes<0, 1, 2, 3> ALL;
#endif

// Adds the halves of each run of 2·half lanes of both; a's sums go to the runs' first halves.
template <int half, int... lane> INLINE vec fold(vec a, vec b, Lanes<lane...>) {
    return __builtin_shufflevector(a, b, (lane & half ? W + lane - half : lane)...) +
           __builtin_shufflevector(a, b, (lane & half ? W + lane : lane + half)...);
}

// The sums of the lanes of n vectors (n a power of two), each added as it would be alone: halves,
// then quarters, … of the lanes. That of vector i comes to lane_of(i).
template <int n, int half = W / 2> INLINE vec sums_of(vec *v) {
    constexpr int left = n > 1 ? n / 2 : 1;
    for (int i = 0; i < left; i++) v[i] = fold<half>(v[i * n / left], v[(i + 1) * n / left - 1], ALL);
    if constexpr (half > 1) return sums_of<left, half / 2>(v);
    return v[0];
}

INLINE float sum(vec v) { return sums_of<1>(&v)[0]; }

// The bits of i, reversed.
constexpr int lane_of(int i) {
    int lane = 0;
    for (int bit = 1, to = W / 2; to; bit *= 2, to /= 2) lane |= i & bit ? to : 0;
    return lane;
}

// e^x = 2^n e^r with |r| ≤ ln 2 / 2, and e^r by Taylor's polynomial: within 2 ulp.
INLINE vec exponential(vec x) {
    x = x < -87.0f ? all(-87.0f) : x > 88.0f ? all(88.0f) : x;
    const vec magic = all(12582912.0f);  // 1.5 · 2^23: adding it rounds to a whole number
    vec n = x * 1.44269504f + magic - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec e = all(1.0f / 5040);
    e = e * r + 1.0f / 720, e = e * r + 1.0f / 120, e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6, e = e * r + 0.5f, e = e * r + 1.0f, e = e * r + 1.0f;
    return e * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}

static void gelu(float *x, long n, bool exactly) {
    if (exactly)
        for (long i = 0; i < n; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.70710678f));
    else
        lanes(n, [&](long i, int count) {
            vec v = load(x + i, count), u = 1.59576912f * (v + 0.044715f * v * v * v);
            store(x + i, v / (1.0f + exponential(-u)), count);
        });
}
