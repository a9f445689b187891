#pragma once

#include <atomic>
#include <pthread.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

// Threads that are kept. They look for work for a moment before they sleep. One that comes late is not
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
