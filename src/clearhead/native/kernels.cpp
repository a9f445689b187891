// One decoder block for a few tokens: what a CPU does between two tokens of a generated text.
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
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
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
typedef int8_t i8_at __attribute__((vector_size(W), aligned(1), may_alias));

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

// Numbers in memory are fp32 (float), bf16 (uint16_t) or whole (int8_t).
INLINE vec load(const float *p) { return *(const vec_at *)p; }
INLINE vec load(const uint16_t *p) { return (vec)(widen(p) << 16); }
INLINE vec load(const int8_t *p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return __builtin_convertvector(__builtin_convertvector(*(const i8_at *)p, ivec), vec);
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

enum Kind { F32, BF16, I8, I4 };

struct Matrix {
    const void *weights;     // row by row; rows of I8 and I4 are padded to whole blocks with zeros
    const _Float16 *scales;  // of I8 and I4: one for each `group` weights of a row
    const float *bias;
    int32_t rows, columns, kind, group;
};

struct Product {
    const Matrix &m;
    const char *x;  // activations, as `pack` leaves them
    float *y;       // [n, rows]
    int n, n_threads;
    bool add, gelu, exact_gelu;
};

constexpr int BLOCK = 128;
constexpr long AHEAD = 6144;  // bytes: what memory sends a core while it waits for the first of them
constexpr long padded(long n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

#if defined(__AVX512BF16__)
constexpr bool takes_bf16(int kind) { return kind == BF16 || kind == I4; }
#else
constexpr bool takes_bf16(int) { return false; }
#endif

// Pads activations to whole blocks with zeros, and rounds them where the machine multiplies bf16.
static void pack(const float *x, int n, const Matrix &m, float *packed) {
    long width = padded(m.columns), rest = width - m.columns;
    for (int token = 0; token < n; token++, x += m.columns) {
        float *whole = packed + token * width;
        uint16_t *half = (uint16_t *)packed + token * width;
        if (takes_bf16(m.kind)) convert(x, half, m.columns), memset(half + m.columns, 0, 2 * rest);
        else memcpy(whole, x, 4 * m.columns), memset(whole + m.columns, 0, 4 * rest);
    }
}

// The sums of R rows of weights with T tokens.
template <int kind, int R, int T> struct Tile {
    vec sums[R][T] = {};
    const char *rows[R], *tokens[T];
    long ahead;  // bytes from a row to the one that a later tile reads in its place

    INLINE_MEMBER void add(int r, vec weights, long k) {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sums[r][t] += weights * load((const float *)tokens[t] + k);
    }

#if defined(__AVX512BF16__)
    INLINE_MEMBER __m512 pairs(__m512 sum, __m512i weights, int t, long k) {
        const __m512i x = _mm512_loadu_si512(tokens[t] + 2 * k);
        return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)x);
    }
#endif

    // Calls `take` for each `step` weights of each row. What remains at a row's end is copied, so
    // that nothing behind the matrix is read.
    template <class Number, int step, class Take> INLINE_MEMBER void each(long columns, Take take) {
        long k = 0;
        for (; k + step <= columns; k += step)
            for (int r = 0; r < R; r++) {
                __builtin_prefetch(rows[r] + ahead + k * sizeof(Number));
                take(r, (const Number *)rows[r] + k, k);
            }
        for (int r = 0; r < R && k < columns; r++) {
            Number last[step] = {};
            memcpy(last, (const Number *)rows[r] + k, (columns - k) * sizeof(Number));
            take(r, last, k);
        }
    }

    // Calls `take` for each block of weights, with a scale for each 32 of them.
    template <class Take> INLINE_MEMBER void blocks(const Matrix &m, long row, Take take) {
        long width = padded(m.columns), groups = width / m.group;
        int shift = m.group == 32 ? 0 : m.group == 64 ? 1 : 2;
        for (long k = 0; k < width; k += 512) {
            float scales[R][16];
            int n = width - k < 512 ? width - k : 512;
            for (int r = 0; r < R; r++) {
                const _Float16 *from = m.scales + (row + r) * groups + (k / 32 >> shift);
#if defined(__AVX512F__)
                const __m512i lane = (__m512i)(ivec){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
                __m256i some = _mm256_maskz_loadu_epi16((1u << (n / 32 >> shift)) - 1, from);
                store(scales[r], (vec)_mm512_permutexvar_ps(
                                     _mm512_srli_epi32(lane, shift), _mm512_cvtph_ps(some)));
#else
                for (int i = 0; i < n / 32; i++) scales[r][i] = (float)from[i >> shift];
#endif
            }
            for (int i = 0; i < n; i += BLOCK)
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) take(r, k + i, scales[r] + i / 32);
        }
    }

    INLINE_MEMBER void run(const Matrix &m, [[maybe_unused]] long row) {
        if constexpr (kind == F32) {
            each<float, W>(m.columns, [&](int r, const float *w, long k) { add(r, load(w), k); });
        } else if constexpr (kind == BF16) {
#if defined(__AVX512BF16__)
            each<uint16_t, 2 * W>(m.columns, [&](int r, const uint16_t *w, long k) {
                const __m512i weights = _mm512_loadu_si512(w);
                for (int t = 0; t < T; t++)
                    sums[r][t] = (vec)pairs((__m512)sums[r][t], weights, t, k);
            });
#else
            each<uint16_t, W>(m.columns, [&](int r, const uint16_t *w, long k) { add(r, load(w), k); });
#endif
        } else if constexpr (kind == I8) {
            blocks(m, row, [&](int r, long k, const float *scale) {
                const int8_t *w = (const int8_t *)rows[r] + k;
                __builtin_prefetch(w + ahead), __builtin_prefetch(w + ahead + 64);
                for (int i = 0; i < BLOCK; i += W) add(r, load(w + i) * scale[i / 32], k + i);
            });
        } else {  // a block of I4 is 32 words; nibble j of word l is weight 32 j + l, plus 8
            blocks(m, row, [&](int r, long k, const float *scale) {
                const uint16_t *w = (const uint16_t *)(rows[r] + k / 2);
                __builtin_prefetch((const char *)w + ahead);
#if defined(__AVX512BF16__)
                // bf16 of -8 to 7, for the lowest nibble of a word; the bit above it changes nothing
                static const uint16_t values[32] = {
                    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                    0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                    0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
                const __m512i table = _mm512_loadu_si512(values);
                __m512i words = _mm512_loadu_si512(w);
                __m512 part[T] = {};
                for (int j = 0; j < 4; j++, words = _mm512_srli_epi16(words, 4)) {
                    const __m512i weights = _mm512_permutexvar_epi16(words, table);
                    for (int t = 0; t < T; t++) {
                        part[t] = pairs(part[t], weights, t, k + 32 * j);
                        if (j % 2 || m.group == 32)
                            sums[r][t] += scale[j] * (vec)part[t], part[t] = __m512{};
                    }
                }
#else
                for (int j = 0; j < 4; j++)
                    for (int l = 0; l < 32; l += W) {
                        ivec nibbles = (ivec)(widen(w + l) >> (4 * j) & 15) - 8;
                        add(r, __builtin_convertvector(nibbles, vec) * scale[j], k + 32 * j + l);
                    }
#endif
            });
        }
    }
};

template <int kind, int R, int T> static void multiply_tile(const Product &p, int row, int token) {
    const Matrix &m = p.m;
    constexpr int bits[] = {32, 16, 8, 4}, at_once = R * T < W ? R * T : W;
    long width = padded(m.columns), row_bytes = (kind < I8 ? m.columns : width) * bits[kind] / 8;
    Tile<kind, R, T> tile;
    tile.ahead = (AHEAD / (R * row_bytes) + 1) * R * row_bytes;
    for (int r = 0; r < R; r++) tile.rows[r] = (const char *)m.weights + (row + r) * row_bytes;
    for (int t = 0; t < T; t++)
        tile.tokens[t] = p.x + (token + t) * width * (takes_bf16(kind) ? 2 : 4);
    tile.run(m, row);
    for (int i = 0; i < R * T; i += at_once) {
        float found[W];
        store(found, sums_of<at_once>(tile.sums[0] + i));
#pragma GCC unroll 16
        for (int j = i; j < i + at_once; j++) {
            long to = row + j / T;
            float *y = p.y + (long)(token + j % T) * m.rows + to;
            *y = found[lane_of(j - i)] + (m.bias ? m.bias[to] : 0.0f) + (p.add ? *y : 0.0f);
        }
    }
}

template <int kind, int R> static void multiply_rows(const Product &p, int row) {
    int token = 0;
    for (; token + 4 <= p.n; token += 4) multiply_tile<kind, R, 4>(p, row, token);
    for (; token + 2 <= p.n; token += 2) multiply_tile<kind, R, 2>(p, row, token);
    if (token < p.n) multiply_tile<kind, R, 1>(p, row, token);
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
    int first = first_row(p, item), row = first, end = first_row(p, item + 1);
    for (; row + 4 <= end; row += 4) multiply_rows<kind, 4>(p, row);
    for (; row < end; row++) multiply_rows<kind, 1>(p, row);
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

// ---- The block ----------------------------------------------------------------------------------

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

struct Block {
    Matrix qkv, out_proj, up, down;
    Norm norm_1, norm_2;
    int32_t n_heads, exact_gelu;
};

struct Cache {
    void *keys, *values;       // [S, H, C, K], of a layer
    const int64_t *slots;      // [B], or null: row b is slot b
    const int64_t *positions;  // [B, T]
    int64_t capacity, slot_stride;
    int32_t bf16, tokens_per_row;
};

struct Attention {
    const Cache &cache;
    const float *qkv;  // [n, 3, H, K]
    float *z;          // [n, H, K]
    float *weights;    // [workers, C]
    int n_heads, head_dim;

    template <class Number> Number *place(void *of, int token, int head, long position) const {
        long row = token / cache.tokens_per_row, slot = cache.slots ? cache.slots[row] : row;
        return (Number *)of + slot * cache.slot_stride +
               (head * cache.capacity + position) * head_dim;
    }
};

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

template <class Number> static void attend(const void *context, int item, int worker) {
    const Attention &a = *(const Attention *)context;
    int token = item / a.n_heads, head = item % a.n_heads, K = a.head_dim;
    long width = (long)a.n_heads * K, count = a.cache.positions[token] + 1;
    const Number *keys = a.place<Number>(a.cache.keys, token, head, 0);
    const Number *values = a.place<Number>(a.cache.values, token, head, 0);
    const float *query = a.qkv + token * 3 * width + head * K;
    float *z = a.z + token * width + head * K, *weights = a.weights + worker * padded(a.cache.capacity);
    float scale = 1.0f / sqrtf((float)K);
    vec highest = all(-INFINITY), total = {};
    lanes(count, [&](long j, int n) {
        vec scores[W] = {};
        for (int i = 0; i < n; i++)
            lanes(K, [&](long k, int some) {
                scores[lane_of(i)] += load(query + k, some) * load(keys + (j + i) * K + k, some);
            });
        vec found = sums_of<W>(scores) * scale;
        store(weights + j, found, n);
        for (int i = n; i < W; i++) found[i] = -INFINITY;
        highest = found > highest ? found : highest;
    });
    for (int i = 1; i < W; i++) highest[0] = highest[i] > highest[0] ? highest[i] : highest[0];
    lanes(count, [&](long j, int n) {
        store(weights + j, exponential(load(weights + j, n) - highest[0]), n);
        total += load(weights + j, n);
    });
    float inverse = 1.0f / sum(total);
    lanes(K, [&](long k, int some) {
        vec parts[4] = {};
        long j = 0;
        for (; j + 4 <= count; j += 4)
            for (int i = 0; i < 4; i++)
                parts[i] += weights[j + i] * load(values + (j + i) * K + k, some);
        for (; j < count; j++) parts[0] += weights[j] * load(values + j * K + k, some);
        store(z + k, (parts[0] + parts[1] + (parts[2] + parts[3])) * inverse, some);
    });
}

template <class Number> static void write_cache(const Attention &a, int n) {
    long width = (long)a.n_heads * a.head_dim;
    for (int token = 0; token < n; token++)
        for (int head = 0; head < a.n_heads; head++) {
            long position = a.cache.positions[token];
            const float *key = a.qkv + (token * 3 + 1) * width + head * a.head_dim;
            convert(key, a.place<Number>(a.cache.keys, token, head, position), a.head_dim);
            convert(key + width, a.place<Number>(a.cache.values, token, head, position), a.head_dim);
        }
}

// ---- What Python calls --------------------------------------------------------------------------

static void read(const void *from, int bf16, float *to, long n) {
    bf16 ? convert((const uint16_t *)from, to, n) : convert((const float *)from, to, n);
}

static void write(const float *from, int bf16, void *to, long n) {
    bf16 ? convert(from, (uint16_t *)to, n) : convert(from, (float *)to, n);
}

// How many floats of memory n tokens need on their way; `widest` is the widest layer's width.
extern "C" int64_t clearhead_scratch(int64_t width, int64_t widest, int64_t capacity, int64_t n,
                                     int64_t n_threads) {
    return n * (3 * width + 2 * padded(widest)) + n_threads * padded(capacity);
}

extern "C" void clearhead_linear(const Matrix *m, const void *x, void *y, int bf16, int n,
                                 float *scratch, int n_threads) {
    float *in = scratch, *packed = in + (long)n * padded(m->columns), *out = packed + n * padded(m->columns);
    read(x, bf16, in, (long)n * m->columns);
    multiply(in, {.m = *m, .y = bf16 ? out : (float *)y, .n = n}, packed, n_threads);
    if (bf16) write(out, bf16, y, (long)n * m->rows);
}

// The residual stream after n_blocks blocks, whose keys and values lie layer_stride bytes apart.
extern "C" void clearhead_blocks(const Block *b, int n_blocks, const Cache *first, int64_t layer_stride,
                                 const void *x, void *y, int bf16, int n, float *scratch,
                                 int n_threads) {
    Cache cache = *first;
    int width = b->qkv.columns, widest = b->up.rows > 3 * width ? b->up.rows : 3 * width;
    float *stream = scratch, *normed = stream + (long)n * width, *z = normed + (long)n * width;
    float *wide = z + (long)n * width;  // queries, keys and values; then the MLP's inner activations
    float *packed = wide + n * padded(widest), *weights = packed + n * padded(widest);
    Attention a{cache, wide, z, weights, b->n_heads, width / b->n_heads};
    read(x, bf16, stream, (long)n * width);
    for (const Block *end = b + n_blocks; b < end; b++) {
        normalise(b->norm_1, stream, normed, n, width);
        multiply(normed, {.m = b->qkv, .y = wide, .n = n}, packed, n_threads);
        cache.bf16 ? write_cache<uint16_t>(a, n) : write_cache<float>(a, n);
        share(cache.bf16 ? attend<uint16_t> : attend<float>, &a, n * b->n_heads, n_threads);
        multiply(z, {.m = b->out_proj, .y = stream, .n = n, .add = true}, packed, n_threads);
        normalise(b->norm_2, stream, normed, n, width);
        Product up{.m = b->up, .y = wide, .n = n, .gelu = true, .exact_gelu = !!b->exact_gelu};
        multiply(normed, up, packed, n_threads);
        multiply(wide, {.m = b->down, .y = stream, .n = n, .add = true}, packed, n_threads);
        cache.keys = (char *)cache.keys + layer_stride;
        cache.values = (char *)cache.values + layer_stride;
    }
    write(stream, bf16, y, (long)n * width);
}

extern "C" int clearhead_runs_here() {
#if defined(__AVX512BF16__)
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}
