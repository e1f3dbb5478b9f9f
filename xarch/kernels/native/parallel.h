// A loop over threads, and arithmetic without subnormal numbers inside it.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <new>
#include <thread>
#include <vector>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace parallel {

// Subnormal operands and results count as zero while one lives: with them x86 runs 50 to 200 times slower.
class FlushSubnormals {
#if defined(__SSE2__)
    unsigned before_ = _mm_getcsr();

public:
    FlushSubnormals() { _mm_setcsr(before_ | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(before_); }
#else
public:
    FlushSubnormals() {}
    ~FlushSubnormals() {}
#endif
    FlushSubnormals(const FlushSubnormals&) = delete;
    FlushSubnormals& operator=(const FlushSubnormals&) = delete;
};

// Calls fn(i) once for every i < n, on at most `threads` threads, in any order. Results do not depend on the number of
// threads as long as no two calls write to the same place. Throws std::bad_alloc if a call threw: memory is all that can
// fail in a kernel, and an exception that left a thread would end the process.
template <class F>
void parallel_for(int64_t n, int threads, const F& fn) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    auto work = [&] {
        FlushSubnormals flush;
        try {
            for (int64_t i; !failed && (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) fn(i);
        } catch (...) {
            failed = true;
        }
    };
    std::vector<std::thread> others;
    const int64_t wanted = n < threads ? n : threads;
    try {
        for (int64_t i = 1; i < wanted; ++i) others.emplace_back(work);
    } catch (const std::exception&) {
        // The system gives no more threads or no memory for them; those there are do all the work.
    }
    work();
    for (auto& other : others) other.join();
    if (failed) throw std::bad_alloc();
}

// What every function called from C returns: 0, or 1 if memory ran out. No exception may leave such a function.
template <class F>
int status_of(const F& fn) noexcept {
    try {
        fn();
        return 0;
    } catch (...) {
        return 1;
    }
}

}  // namespace parallel
