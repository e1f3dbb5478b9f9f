// The factors of both matrices and what is wanted of them. The fields are those of `_Problem` in cpp.py, in this order.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "product.h"

namespace distance {

constexpr int T = 64;  // query rows of a tile
constexpr int U = 64;  // key columns of a tile
constexpr float NEVER = -1e30f;  // score of a key that is not attended to; finite, so that no NaN comes of it
constexpr float FLOOR = -60.0f;  // exponents below are raised to it
// A tile whose decays are all below e^-40 = 4e-18 adds nothing to the student's matrix, even in double precision.
constexpr double GONE = -40.0;

struct Strided {
    const float* data;
    int64_t batch, token, head;
    const float* at(int64_t b, int64_t t, int64_t h) const { return data + b * batch + t * token + h * head; }
};

struct Problem {
    int64_t batch, length, heads, key_heads, groups, width, state;
    int64_t window;  // 0: none
    double scale, softcap;  // softcap 0: none
    Strided q, k, C, B;
    Strided log_a;  // one number per head
    const float* D;  // [heads] or null
    const int64_t* segments;  // [batch, length] or null
    const uint8_t* real;  // [batch, length] or null
    const float* factor;  // [batch, heads], times the gradient; null: one
    double* error;  // [batch, heads], sums of squares
    double* teacher;  // [batch, heads]
    // Gradients of half the squared distance; all null if not wanted.
    float* dC;  // [batch, length, groups, state]
    float* dB;
    float* dlog_a;  // [batch, length, heads]
    float* dD;  // [batch, heads]

    int64_t padded() const { return (length + U - 1) / U * U; }
    int64_t tiles() const { return (length + U - 1) / U; }
    int64_t padded_width() const { return gemm::padded(width); }
    int64_t padded_state() const { return gemm::padded(state); }
};

static_assert(U == T && U % (product::VECTORS * simd::W) == 0 && T % simd::W == 0, "tiles of whole vectors");

// Memory aligned to a cache line; not initialised.
template <class N>
class Buffer {
    struct Free {
        void operator()(N* p) const { std::free(p); }
    };
    std::unique_ptr<N, Free> data_;

public:
    explicit Buffer(int64_t count) {
        const size_t bytes = (static_cast<size_t>(count) * sizeof(N) + 63) / 64 * 64;
        void* p = bytes == 0 ? nullptr : std::aligned_alloc(64, bytes);
        if (p == nullptr && bytes != 0) throw std::bad_alloc();
        data_.reset(static_cast<N*>(p));
    }
    N* get() const { return data_.get(); }
    N& operator[](int64_t i) const { return data_.get()[i]; }
};

}  // namespace distance
