// A GPT-2 on a CPU, from token ids to logits: what a processor does between two tokens of a text.
//
// A token's result depends on that token and its past alone, bit for bit: each output is summed in
// one order, however many tokens are computed at once and whichever thread does it.
//
// The file is compiled once for each instruction set (build.py); the vectors are the compiler's
// own, W floats wide, and only what it can't express is written by hand.

#include <atomic>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#define IN_REGISTER(v) __asm__("" : "+x"(v))  // and not loaded anew by each instruction that reads it
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#define IN_REGISTER(v) __asm__("" : "+w"(v))
#else
#define RELAX() ((void)0)
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
typedef int32_t ivec __attribute__((vector_size(4 * W)));
typedef uint32_t uvec __attribute__((vector_size(4 * W)));
typedef uint16_t u16_at __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef _Float16 f16_at __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef int16_t svec __attribute__((vector_size(4 * W)));
typedef int16_t svec_at __attribute__((vector_size(4 * W), aligned(2), may_alias));
typedef int16_t half_svec __attribute__((vector_size(2 * W), aligned(2), may_alias));
typedef int8_t i8_at __attribute__((vector_size(2 * W), aligned(1), may_alias));

// ---- Threads ------------------------------------------------------------------------------------
// They are kept, and look for work for a moment before they sleep. A thread that comes late is not
// waited for: whoever is there takes the next item, and the caller leaves when the last is done.

typedef void (*Work)(const void *context, int item, int worker);

constexpr unsigned OPEN = 1 << 8, NUMBER = 1 << 9;  // a job's state: number, open, helpers in it
constexpr int MAX_HELPERS = OPEN - 1, SPINS = 4096;

static struct {
    std::atomic<unsigned> state{0};
    std::atomic<int> next{0};
    std::atomic_flag in_use;
    Work work;
    const void *context;
    int count, wanted, helpers = 0;
} pool;

static void take_items(int worker) {
    for (int item; (item = pool.next++) < pool.count;) pool.work(pool.context, item, worker);
}

static void *help(void *argument) {
    int worker = (int)(intptr_t)argument, spins = 0;
    for (unsigned seen = 0, state;;) {
        state = pool.state;
        if (state & OPEN && state / NUMBER != seen) {
            if (!pool.state.compare_exchange_weak(state, state + 1)) continue;
            seen = state / NUMBER, spins = 0;
            if (worker <= pool.wanted) take_items(worker);
            pool.state--;
        } else if (spins++ < SPINS) {
            RELAX();
        } else {
            pool.state.wait(state);
        }
    }
}

static void after_fork() {
    pool.helpers = 0, pool.state = 0;
    pool.in_use.clear();
}

static void share(Work work, const void *context, int count, int n_threads) {
    if (n_threads < 2 || count < 2 || pool.in_use.test_and_set()) {
        for (int item = 0; item < count; item++) work(context, item, 0);
        return;
    }
    [[maybe_unused]] static int once = pthread_atfork(nullptr, nullptr, after_fork);
    pthread_t thread;
    while (pool.helpers < n_threads - 1 && pool.helpers < MAX_HELPERS &&
           !pthread_create(&thread, nullptr, help, (void *)(intptr_t)(pool.helpers + 1))) {
        pthread_detach(thread);
        pool.helpers++;
    }
    pool.work = work, pool.context = context, pool.count = count, pool.wanted = n_threads - 1;
    pool.next = 0;
    pool.state = (pool.state / NUMBER + 1) * NUMBER + OPEN;
    pool.state.notify_all();
    take_items(0);
    pool.state &= ~OPEN;
    while (pool.state % OPEN) RELAX();
    pool.in_use.clear();
}

// ---- Vectors ------------------------------------------------------------------------------------

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

// Numbers in memory are fp32 (float), bf16 (uint16_t) or fp16.
INLINE vec load(const float *p) { return *(const vec_at *)p; }
INLINE vec load(const uint16_t *p) { return (vec)(widen(p) << 16); }
INLINE vec load(const _Float16 *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    return __builtin_convertvector(*(const f16_at *)p, vec);
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

// Products of 2 W whole numbers, two of them added in each lane.
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

// ---- Products -----------------------------------------------------------------------------------

enum Kind { F32, BF16, I8, I4, I16 };

struct Matrix {
    const void *weights;     // row by row; rows of I8 and I4 are padded to whole blocks with zeros
    const _Float16 *scales;  // of I8 and I4: one for each `group` weights of a row; then 16 unused
    const float *bias;
    int32_t rows, columns, kind, group;
};

struct Product {
    const Matrix &m;
    float *y;  // [n, rows]
    int n;
    bool add = false, gelu = false, exact_gelu = false;
    const char *x = nullptr;  // activations, as `pack` leaves them
    int n_threads = 1;
};

constexpr int BLOCK = 128, CHUNK = 512;
constexpr long AHEAD = 4096;          // bytes: what memory sends a core while it waits for the first
constexpr long NEAR = 192 * 1024;     // bytes of activations that stay in a core's cache
constexpr long padded(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

#if defined(__AVX512BF16__)
constexpr bool HAS_BF16 = true;
#else
constexpr bool HAS_BF16 = false;
#endif

// What several tokens meet weights as: those of few bits are widened once for all of them.
constexpr int widened(int kind) { return kind >= I8 ? I16 : kind == BF16 && !HAS_BF16 ? F32 : kind; }

constexpr long row_bytes(int kind, long columns) {
    constexpr int bits[] = {32, 16, 8, 4, 16};
    return (kind < I8 ? columns : padded(columns)) * bits[kind] / 8;
}

// A block of I4 is 32 words; nibble j of word l is weight 32 j + l, plus 8.
template <int kind> INLINE void unpack(const char *from, svec *to) {
    constexpr int STEPS = 16 / W;
    for (int i = 0; i < STEPS; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
            if constexpr (kind == I4)  // as two's complement, shifted up and down again
                to[j * STEPS + i] = (((const svec_at *)from)[i] ^ (int16_t)0x8888) << (12 - 4 * j) >> 12;
            else to[j * STEPS + i] = load((const int8_t *)from + 2 * W * (j * STEPS + i));
}

template <int kind> INLINE void widen_row(const char *from, char *to, long columns, long ahead) {
    if constexpr (kind == BF16) return convert((const uint16_t *)from, (float *)to, columns);
    constexpr long bytes = row_bytes(kind, BLOCK);
    for (long k = 0; k < padded(columns); k += BLOCK, from += bytes, to += 2 * BLOCK) {
        svec weights[64 / W];
        for (long i = 0; i < bytes; i += 64) __builtin_prefetch(from + ahead + i);
        unpack<kind>(from, weights);
        for (int i = 0; i < 64 / W; i++) ((svec_at *)to)[i] = weights[i];
    }
}

// Rounds a block of n activations to 16 bits, as fractions of the largest; returns the scale. What
// is not finite makes that NaN, and the products too.
static float round_block(const float *x, long n, int16_t *to) {
    vec highest = {}, unsound = {};
    lanes(n, [&](long i, int count) {
        vec v = load(x + i, count), size = v < 0 ? -v : v;
        highest = size > highest ? size : highest, unsound += v * 0.0f;
    });
    for (int i = 1; i < W; i++) highest[0] = highest[i] > highest[0] ? highest[i] : highest[0];
    float most = highest[0] > 1e-30f ? highest[0] : 0.0f, inverse = most ? 32767 / most : 0.0f;
    for (long i = 0; i < BLOCK; i += W) {
        vec v = i < n ? load(x + i, n - i < W ? n - i : W) : vec{};
        *(half_svec *)(to + i) = __builtin_convertvector((ivec)(v * inverse + 12582912.0f), half_svec);
    }
    return most / 32767 + sum(unsound);
}

// Lays n tokens' activations out in blocks, padded with zeros: rounded to bf16 where the machine
// multiplies it, and to 16 bits for whole weights; then the scales of the groups follow a token's.
static void pack(const float *x, int n, const Matrix &m, float *packed) {
    long width = padded(m.columns), rest = width - m.columns;
    for (int token = 0; token < n; token++, x += m.columns, packed += width) {
        uint16_t *half = (uint16_t *)packed;
        float *scales = packed + width / 2;
        if (m.kind >= I8)
            for (long k = 0; k < width; k += BLOCK) {
                long count = m.columns - k < BLOCK ? m.columns - k : BLOCK;
                float scale = round_block(x + k, count, (int16_t *)half + k);
                for (int i = 0; i < BLOCK; i += m.group) *scales++ = scale;
            }
        else if (m.kind == BF16 && HAS_BF16)
            convert(x, half, m.columns), memset(half + m.columns, 0, 2 * rest);
        else memcpy(packed, x, 4 * m.columns), memset(packed + m.columns, 0, 4 * rest);
    }
}

// The sums of R rows of weights with T tokens.
template <int kind, int R, int T> struct Tile {
    static constexpr int AT_ONCE = T == 1 ? 1 : R;  // rows; one alone is read as memory lies
    const Matrix &m;
    const char *rows[R], *tokens[T];
    long row, ahead;  // ahead: bytes to what a later tile reads
    vec sums[R][T] = {};

    INLINE_MEMBER void add(int r, vec weights, long k) {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[r][t] += weights * load((const float *)tokens[t] + k);
    }

    // Calls `take` for each `step` weights of each row. What remains at a row's end is copied, so
    // that nothing behind the matrix is read.
    template <class Number, int step, class Take> INLINE_MEMBER void each(Take take) {
        long k = 0;
        for (; k + step <= m.columns; k += step)
            for (int r = 0; r < R; r++) {
                if (T == 1) __builtin_prefetch(rows[r] + ahead + k * sizeof(Number));
                take(r, (const Number *)rows[r] + k, k);
            }
        for (int r = 0; r < R && k < m.columns; r++) {
            Number last[step] = {};
            memcpy(last, (const Number *)rows[r] + k, (m.columns - k) * sizeof(Number));
            take(r, last, k);
        }
    }

    // Adds the products of whole weights from k on, a block, with their groups' factors.
    INLINE_MEMBER void add_block(int first, long k, const float (*factors)[T][CHUNK / 32], int shift) {
        constexpr int STEPS = 16 / W;
        svec unpacked[64 / W];
        if constexpr (kind != I16) {
            const char *from = rows[first] + k * (kind == I8 ? 2 : 1) / 2;
            unpack<kind>(from, unpacked);
            __builtin_prefetch(from + ahead);
            if (kind == I8) __builtin_prefetch(from + ahead + 64);
        }
        ivec whole[AT_ONCE][T] = {};
#pragma GCC unroll 16
        for (int step = 0; step < 64 / W; step++) {
            long at = 2 * (k + 2 * W * step);
#pragma GCC unroll 4
            for (int r = 0; r < AT_ONCE; r++) {
                svec weights = kind == I16 ? *(const svec_at *)(rows[first + r] + at) : unpacked[step];
                if (T > 1) IN_REGISTER(weights);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++)
                    whole[r][t] += pairs(weights, *(const svec_at *)(tokens[t] + at));
            }
            int slices = (step + 1) / STEPS;
            if ((step + 1) % STEPS || slices & ((1 << shift) - 1)) continue;
#pragma GCC unroll 16
            for (int i = 0; i < AT_ONCE * T; i++) {
                ivec &sum = whole[i / T][i % T];
                float factor = factors[i / T][i % T][(slices >> shift) - 1];
                sums[first + i / T][i % T] += factor * __builtin_convertvector(sum, vec);
                sum = ivec{};
            }
        }
    }

    INLINE_MEMBER void run_whole() {
        long width = padded(m.columns), groups = width / m.group;
        int shift = m.group == 32 ? 0 : m.group == 64 ? 1 : 2;
#pragma GCC unroll 1
        for (int first = 0; first < R; first += AT_ONCE)
            for (long k = 0; k < width; k += CHUNK) {
                float factors[AT_ONCE][T][CHUNK / 32];
                long count = width - k < CHUNK ? width - k : CHUNK, group = k / 32 >> shift;
                for (int r = 0; r < AT_ONCE; r++)
                    for (long i = 0; i < count / 32 >> shift; i += W) {
                        vec scales = load(m.scales + (row + first + r) * groups + group + i);
                        for (int t = 0; t < T; t++)
                            store(factors[r][t] + i,
                                  scales * load((const float *)(tokens[t] + 2 * width) + group + i));
                    }
                for (long i = 0; i < count; i += BLOCK)
                    add_block(first, k + i,
                              (const float (*)[T][CHUNK / 32])(factors[0][0] + (i / 32 >> shift)), shift);
            }
    }

    INLINE_MEMBER void run() {
        if constexpr (kind == F32) {
            each<float, W>([&](int r, const float *w, long k) { add(r, load(w), k); });
        } else if constexpr (kind == BF16) {
#if defined(__AVX512BF16__)
            each<uint16_t, 2 * W>([&](int r, const uint16_t *w, long k) {
                for (int t = 0; t < T; t++)
                    sums[r][t] = (vec)_mm512_dpbf16_ps((__m512)sums[r][t],
                                                       (__m512bh)_mm512_loadu_si512(w),
                                                       (__m512bh)_mm512_loadu_si512(tokens[t] + 2 * k));
            });
#else
            each<uint16_t, W>([&](int r, const uint16_t *w, long k) { add(r, load(w), k); });
#endif
        } else {
            run_whole();
        }
    }
};

template <int kind, int R, int T>
static void multiply_tile(const Product &p, const char *weights, long ahead, int row, int token) {
    constexpr int even = R * T & -(R * T), at_once = even < W ? even : W;
    Tile<kind, R, T> tile{.m = p.m, .row = row, .ahead = ahead};
    for (int r = 0; r < R; r++) tile.rows[r] = weights + r * row_bytes(kind, p.m.columns);
    for (int t = 0; t < T; t++) tile.tokens[t] = p.x + (token + t) * padded(p.m.columns) * 4;
    tile.run();
    for (int i = 0; i < R * T; i += at_once) {
        float found[W];
        store(found, sums_of<at_once>(tile.sums[0] + i));
#pragma GCC unroll 16
        for (int j = i; j < i + at_once; j++) {
            long to = row + j / T;
            float *y = p.y + (long)(token + j % T) * p.m.rows + to;
            *y = found[lane_of(j - i)] + (p.m.bias ? p.m.bias[to] : 0.0f) + (p.add ? *y : 0.0f);
        }
    }
}

// Computes R rows for the tokens up to `end`.
template <int kind, int R> static void multiply_rows(const Product &p, int row, int token, int end) {
    constexpr int wide = widened(kind), MOST = W != 8 ? 4 : wide == I16 ? 2 : 3;
    long columns = p.m.columns, bytes = row_bytes(kind, columns);
    const char *weights = (const char *)p.m.weights + row * bytes;
    long ahead = (AHEAD / (R * bytes) + 1) * R * bytes;
    if (end - token == 1) return multiply_tile<kind, R, 1>(p, weights, ahead, row, token);
    if constexpr (wide != kind) {
        long width = row_bytes(wide, columns);
        char *room = (char *)__builtin_alloca_with_align(R * width, 8 * 64);
        for (int r = 0; r < R; r++)
            widen_row<kind>(weights + r * bytes, room + r * width, columns, ahead);
        weights = room;
    }
    for (; token + MOST <= end; token += MOST) multiply_tile<wide, R, MOST>(p, weights, 0, row, token);
    if (end - token >= 2) multiply_tile<wide, R, 2>(p, weights, 0, row, token), token += 2;
    if (token < end) multiply_tile<wide, R, 1>(p, weights, 0, row, token);
}

// Rows are given out in pieces of a quarter, then an eighth of a thread's part, and so on: threads
// read on without a break, and end together.
constexpr int SIZES = 4, PARTS = 1 << (SIZES - 1);

static int first_row(const Product &p, int item) {
    int turn = item / p.n_threads < SIZES ? item / p.n_threads : SIZES - 1;
    int size = turn < SIZES - 1 ? PARTS >> (turn + 1) : 1;
    long part = p.n_threads * (PARTS - (PARTS >> turn)) + (item - turn * p.n_threads) * size;
    long row = p.m.rows * part / (PARTS * p.n_threads);
    return item < SIZES * p.n_threads ? row / 16 * 16 : p.m.rows;
}

template <int kind> static void multiply_chunk(const void *context, int item, int) {
    const Product &p = *(const Product *)context;
    int first = first_row(p, item), end = first_row(p, item + 1);
    int some = NEAR / (padded(p.m.columns) * (p.m.kind >= I8 ? 2 : 4)) / 12 * 12, most = some > 12 ? some : 12;
    for (int token = 0; token < p.n; token += most) {
        int last = token + most < p.n ? token + most : p.n, row = first;
        for (; row + 4 <= end; row += 4) multiply_rows<kind, 4>(p, row, token, last);
        for (; row < end; row++) multiply_rows<kind, 1>(p, row, token, last);
    }
    for (int t = 0; t < p.n && p.gelu; t++)
        gelu(p.y + (long)t * p.m.rows + first, end - first, p.exact_gelu);
}

// Writes x Wᵀ + b, or adds it to what y holds, by all threads.
static void multiply(const float *x, Product p, float *packed, int n_threads) {
    const Work work[] = {multiply_chunk<F32>, multiply_chunk<BF16>, multiply_chunk<I8>,
                         multiply_chunk<I4>};
    pack(x, p.n, p.m, packed);
    p.x = (const char *)packed;
    p.n_threads = n_threads;
    share(work[p.m.kind], &p, SIZES * n_threads, n_threads);
}

// ---- The model ----------------------------------------------------------------------------------

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

struct Block {
    Matrix qkv, out_proj, up, down;
    Norm norm_1, norm_2;
};

struct Model {
    Matrix tokens, positions, head;
    Norm norm;
    const Block *blocks;
    int32_t n_blocks, n_heads, exact_gelu;
};

struct Cache {
    void *keys, *values;   // [L, S, H, C, K]
    const int64_t *slots;  // [B], or null: row b is slot b
    int64_t *lengths;      // [S]
    int64_t capacity, slot_stride, layer_stride;
    int32_t bf16, tokens_per_row;
};

struct Attention {
    const Cache &cache;
    const float *qkv;  // [n, 3, H, K]
    float *z;          // [n, H, K]
    float *weights;    // [workers, TOGETHER, C]
    long layer;
    int n_heads, head_dim;

    long slot(int row) const { return cache.slots ? cache.slots[row] : row; }
    long position(int token) const {
        return cache.lengths[slot(token / cache.tokens_per_row)] + token % cache.tokens_per_row;
    }
    template <class Number> Number *place(void *of, int token, int head, long at) const {
        return (Number *)of + layer * cache.layer_stride +
               slot(token / cache.tokens_per_row) * cache.slot_stride +
               (head * cache.capacity + at) * head_dim;
    }
};

constexpr int TOGETHER = 4;  // tokens of a text that read keys and values together

static void normalise(const Norm &norm, const float *x, float *y, int n, int width) {
    for (int token = 0; token < n; token++, x += width, y += width) {
        vec total = {}, squares = {};
        lanes(width, [&](long i, int count) { total += load(x + i, count); });
        float mean = sum(total) / width;
        lanes(width, [&](long i, int count) {
            store(y + i, load(x + i, count) - mean, count);
            vec centred = load(y + i, count);
            squares += centred * centred;
        });
        float scale = 1.0f / sqrtf(sum(squares) / width + norm.epsilon);
        lanes(width, [&](long i, int count) {
            vec scaled = load(y + i, count) * scale * load(norm.weight + i, count);
            store(y + i, norm.bias ? scaled + load(norm.bias + i, count) : scaled, count);
        });
    }
}

// Lets T tokens that follow each other attend, by one head.
template <class Number, int T> static void attend(const Attention &a, int token, int head, float *weights) {
    const int K = a.head_dim;
    const long width = (long)a.n_heads * K, first = a.position(token) + 1, most = first + T - 1;
    const long stride = padded(a.cache.capacity);
    const Number *keys = a.place<Number>(a.cache.keys, token, head, 0);
    const Number *values = a.place<Number>(a.cache.values, token, head, 0);
    const float *query = a.qkv + token * 3 * width + head * K, scale = 1.0f / sqrtf((float)K);
    float inverse[T];
    lanes(most, [&](long j, int n) {
        vec scores[T][W] = {};
        for (int i = 0; i < n; i++) {
            vec found[T] = {};
            lanes(K, [&](long k, int some) {
                vec key = load(keys + (j + i) * K + k, some);
#pragma GCC unroll 4
                for (int t = 0; t < T; t++) found[t] += load(query + 3 * width * t + k, some) * key;
            });
            for (int t = 0; t < T; t++) scores[t][lane_of(i)] = found[t];
        }
        for (int t = 0; t < T; t++) store(weights + t * stride + j, sums_of<W>(scores[t]) * scale, n);
    });
    for (int t = 0; t < T; t++) {
        float *own = weights + t * stride;
        vec highest = all(-INFINITY), total = {};
        lanes(first + t, [&](long j, int n) {
            vec found = load(own + j, n);
            for (int i = n; i < W; i++) found[i] = -INFINITY;
            highest = found > highest ? found : highest;
        });
        for (int i = 1; i < W; i++) highest[0] = highest[i] > highest[0] ? highest[i] : highest[0];
        lanes(first + t, [&](long j, int n) {
            store(own + j, exponential(load(own + j, n) - highest[0]), n);
            total += load(own + j, n);
        });
        inverse[t] = 1.0f / sum(total);
        for (long j = first + t; j < most; j++) own[j] = 0;
    }
    lanes(K, [&](long k, int some) {
        vec parts[2][T] = {};  // of even and of odd positions
        auto take = [&](long j, int part) {
            vec value = load(values + j * K + k, some);
#pragma GCC unroll 4
            for (int t = 0; t < T; t++) parts[part][t] += weights[t * stride + j] * value;
        };
        long j = 0;
        for (; j + 2 <= most; j += 2) take(j, 0), take(j + 1, 1);
        if (j < most) take(j, 0);
        for (int t = 0; t < T; t++)
            store(a.z + (token + t) * width + head * K + k, (parts[0][t] + parts[1][t]) * inverse[t], some);
    });
}

template <class Number> static void attend_some(const void *context, int item, int worker) {
    const Attention &a = *(const Attention *)context;
    int per_row = a.cache.tokens_per_row, groups = (per_row + TOGETHER - 1) / TOGETHER;
    int head = item % a.n_heads, group = item / a.n_heads % groups, row = item / a.n_heads / groups;
    int token = row * per_row + group * TOGETHER, end = (row + 1) * per_row;
    float *weights = a.weights + worker * TOGETHER * padded(a.cache.capacity);
    if (token + TOGETHER <= end) return attend<Number, TOGETHER>(a, token, head, weights);
    for (; token < end; token++) attend<Number, 1>(a, token, head, weights);
}

template <class Number> static void write_cache(const Attention &a, int n) {
    long width = (long)a.n_heads * a.head_dim;
    for (int token = 0; token < n; token++)
        for (int head = 0; head < a.n_heads; head++) {
            long position = a.position(token);
            const float *key = a.qkv + (token * 3 + 1) * width + head * a.head_dim;
            convert(key, a.place<Number>(a.cache.keys, token, head, position), a.head_dim);
            convert(key + width, a.place<Number>(a.cache.values, token, head, position), a.head_dim);
        }
}

// Adds a matrix's row to x.
static void add_row(const Matrix &m, long row, float *x) {
    const char *from = (const char *)m.weights + row * row_bytes(m.kind, m.columns);
    if (m.kind < I8)
        return lanes(m.columns, [&](long i, int n) {
            vec found = m.kind == F32 ? load((const float *)from + i, n) : load((const uint16_t *)from + i, n);
            store(x + i, load(x + i, n) + found, n);
        });
    const _Float16 *scales = m.scales + row * padded(m.columns) / m.group;
    for (long k = 0; k < m.columns; k += BLOCK, from += row_bytes(m.kind, BLOCK)) {
        int16_t values[BLOCK];
        m.kind == I8 ? unpack<I8>(from, (svec *)values) : unpack<I4>(from, (svec *)values);
        for (long i = 0; i < BLOCK && k + i < m.columns; i++)
            x[k + i] += values[i] * (float)scales[(k + i) / m.group];
    }
}

// ---- What Python calls --------------------------------------------------------------------------

// How many floats of memory n tokens need on their way.
extern "C" int64_t clearhead_scratch(const Model *model, int64_t capacity, int64_t n, int64_t n_threads) {
    int64_t width = model->tokens.columns, widest = padded(4 * width);
    return n * (3 * width + 2 * widest) + n_threads * TOGETHER * padded(capacity);
}

enum Refusal { NONE, NO_ROOM, UNKNOWN_TOKEN };

// Reads n_rows texts' next tokens, and writes the logits of what follows: all of them, [n, V], or
// each text's last, [B, V].
extern "C" int clearhead_read(const Model *model, const Cache *cache, const int64_t *ids, int n_rows,
                              float *logits, int all_logits, float *scratch, int n_threads) {
    const int per_row = cache->tokens_per_row, n = n_rows * per_row, width = model->tokens.columns;
    float *stream = scratch, *normed = stream + (long)n * width, *z = normed + (long)n * width;
    float *wide = z + (long)n * width;  // queries, keys and values; then the MLP's inner activations
    float *packed = wide + n * padded(4 * width), *weights = packed + n * padded(4 * width);
    Attention a{*cache, wide, z, weights, 0, model->n_heads, width / model->n_heads};
    for (int row = 0; row < n_rows; row++)
        if (cache->lengths[a.slot(row)] + per_row > cache->capacity) return NO_ROOM;
    for (int token = 0; token < n; token++)
        if (ids[token] < 0 || ids[token] >= model->tokens.rows) return UNKNOWN_TOKEN;
    memset(stream, 0, sizeof(float) * n * width);
    for (int token = 0; token < n; token++) {
        add_row(model->tokens, ids[token], stream + (long)token * width);
        add_row(model->positions, a.position(token), stream + (long)token * width);
    }
    int items = n_rows * ((per_row + TOGETHER - 1) / TOGETHER) * model->n_heads;
    for (; a.layer < model->n_blocks; a.layer++) {
        const Block &b = model->blocks[a.layer];
        normalise(b.norm_1, stream, normed, n, width);
        multiply(normed, {.m = b.qkv, .y = wide, .n = n}, packed, n_threads);
        cache->bf16 ? write_cache<uint16_t>(a, n) : write_cache<float>(a, n);
        share(cache->bf16 ? attend_some<uint16_t> : attend_some<float>, &a, items, n_threads);
        multiply(z, {.m = b.out_proj, .y = stream, .n = n, .add = true}, packed, n_threads);
        normalise(b.norm_2, stream, normed, n, width);
        Product up{.m = b.up, .y = wide, .n = n, .gelu = true, .exact_gelu = !!model->exact_gelu};
        multiply(normed, up, packed, n_threads);
        multiply(wide, {.m = b.down, .y = stream, .n = n, .add = true}, packed, n_threads);
    }
    for (int row = 0; row < n_rows && !all_logits; row++)
        memcpy(stream + (long)row * width, stream + (long)((row + 1) * per_row - 1) * width, 4 * width);
    int n_logits = all_logits ? n : n_rows;
    normalise(model->norm, stream, normed, n_logits, width);
    multiply(normed, {.m = model->head, .y = logits, .n = n_logits}, packed, n_threads);
    for (int row = 0; row < n_rows; row++) cache->lengths[a.slot(row)] += per_row;
    return NONE;
}

extern "C" int clearhead_runs_here() {
#if defined(__AVX512BF16__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
#else
    return 1;
#endif
}
