// A loop over threads, and arithmetic without subnormal numbers inside it.
#pragma once
#include <atomic>
#include <cstdint>
#include <system_error>
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
// threads as long as no two calls write to the same place.
template <class F>
void parallel_for(int64_t n, int threads, const F& fn) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
        FlushSubnormals flush;
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) fn(i);
    };
    std::vector<std::thread> others;
    const int64_t wanted = n < threads ? n : threads;
    try {
        for (int64_t i = 1; i < wanted; ++i) others.emplace_back(work);
    } catch (const std::system_error&) {
        // The system gives no more threads; those there are do all the work.
    }
    work();
    for (auto& other : others) other.join();
}

}  // namespace parallel
