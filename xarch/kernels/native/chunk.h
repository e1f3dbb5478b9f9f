// What kernels that work in chunks of tokens share: operands with strides, scratch memory, decays of one head, and sums over
// rows of tiles.
//
// Legend: Q tokens of a chunk, P value width, N state size; tiles have their rows padded to whole vectors.
#pragma once
#include <cmath>
#include <vector>

#include "gemm.h"

namespace chunk {

using gemm::padded;
using simd::fma;
using simd::load;
using simd::select;
using simd::store;
using simd::vexp;
using simd::vf;
using simd::vi;
using simd::vmax;
using simd::vmin;
using simd::W;

// Exponents below this are raised to it, as xarch/kernels/precision.py explains.
static constexpr float LOG_FLOOR = -60.0f;

// A float tensor: the last dimension is dense, the others have strides, in floats.
struct Rows {
    const float* at;
    int64_t batch, token, head;
    const float* of(int64_t b, int64_t t, int64_t h) const { return at + b * batch + t * token + h * head; }
};

// Memory of a thread, kept from call to call.
class Scratch {
    std::vector<float> memory_;
    float* next_ = nullptr;

public:
    void reserve(int64_t floats) {
        if ((int64_t)memory_.size() < floats + 16) memory_.assign((size_t)floats + 16, 0.0f);
        next_ = (float*)(((uintptr_t)memory_.data() + 63) / 64 * 64);
    }
    float* take(int64_t floats) {
        float* taken = next_;
        next_ += (floats + 15) / 16 * 16;
        return taken;
    }
};
static thread_local Scratch scratch;

// [P, N] of any width to a tile [N, Pp], rows padded up to whole blocks; and back.
static inline void turn_in(const float* from, int64_t rows, int64_t columns, float* to, float* between) {
    gemm::pack(from, columns, rows, columns, between, padded(rows));
    gemm::transpose(between, padded(columns), to, padded(rows), rows, columns);
}
static inline void turn_out(const float* tile, int64_t rows, int64_t columns, float* to, float* between) {
    gemm::transpose(tile, padded(rows), between, padded(columns), columns, rows);
    gemm::unpack(between, rows, columns, to, columns);
}

// Decays of one head in one chunk.
struct Decay {
    float *S, *rest;         // [Qp]: prefix sums, and what float32 has lost of them
    float *enter, *leave;    // [Qp]: exp(S_t), exp(T - S_s); zero across a change of document
    int32_t* run = nullptr;  // [Qp] or null
    float cross = 0.0f;      // exp(T)

    // The chunk of q tokens from `start` on, of sequence b and head h; documents are those of the whole sequence, or null.
    void read(const Rows& log_a_of, const int64_t* documents, int64_t b, int64_t h, int64_t start, int64_t q) {
        const int64_t all = padded(q);
        double sum = 0.0;
        for (int64_t t = 0; t < all; ++t) {
            if (t < q) {
                const float log_a = *log_a_of.of(b, start + t, h);
                sum += log_a < LOG_FLOOR ? LOG_FLOOR : log_a;
            }
            S[t] = (float)sum;
            rest[t] = (float)(sum - S[t]);
        }
        const vf floor = vf{} + LOG_FLOOR;
        for (int64_t t = 0; t < all; t += W) {
            store(enter + t, vexp(vmax(load(S + t) + load(rest + t), floor)));
            store(leave + t, vexp(vmax(since(all - 1, t), floor)));
        }
        if (run) {
            const int64_t before = documents[start > 0 ? start - 1 : 0];
            const int64_t* now = documents + start;
            for (int64_t t = 0; t < all; ++t) run[t] = t < q ? (int32_t)(now[t] - before) : -1;
            for (int64_t t = 0; t < q; ++t) {
                if (run[t] != 0) enter[t] = 0.0f;
                if (run[t] != run[q - 1]) leave[t] = 0.0f;
            }
        }
        // What reaches the last token reaches the next chunk.
        cross = enter[q - 1];
    }

    // S_t - S_s for the W tokens from s on.
    vf since(int64_t t, int64_t s) const { return ((vf{} + S[t]) - load(S + s)) + ((vf{} + rest[t]) - load(rest + s)); }

    // weight = score o L and, if given, dscore = dscore o L, with L[t, s] = exp(S_t - S_s) for s <= t of one document,
    // else zero; the diagonal of dscore moves to `diagonal`. Columns are written as far beyond the diagonal as a causal
    // product reads.
    void apply(const float* score, float* weight, float* dscore, float* diagonal, int64_t q) const {
        const int64_t all = padded(q);
        const vf floor = vf{} + LOG_FLOOR;
        vi lanes;
        for (int i = 0; i < W; ++i) lanes[i] = i;
        for (int64_t t = 0; t < q; ++t) {
            const float* from = score + t * all;
            float *to = weight + t * all, *dto = dscore ? dscore + t * all : nullptr;
            if (dto) diagonal[t] = dto[t];
            int64_t s = 0;
            for (; s <= t; s += W) {
                vf L = vexp(vmax(vmin(since(t, s), vf{}), floor));
                if (run) {
                    vi other;
                    std::memcpy(&other, run + s, sizeof other);
                    L = select(other == run[t], L, vf{});
                }
                vf w = load(from + s) * L, d{};
                if (dto) d = load(dto + s) * L;
                if (s + W > t) {
                    w = select(lanes <= (int32_t)(t - s), w, vf{});
                    d = select(lanes < (int32_t)(t - s), d, vf{});
                }
                store(to + s, w);
                if (dto) store(dto + s, d);
            }
            for (; s < all && s < t + gemm::MAX_ROWS; s += W) {
                store(to + s, vf{});
                if (dto) store(dto + s, vf{});
            }
        }
    }
};

// to = scale[t] from[t], row by row.
static inline void scaled(const float* from, const float* scale, int64_t q, int64_t stride, float* to) {
    for (int64_t t = 0; t < q; ++t)
        for (int64_t j = 0; j < stride; j += W) store(to + t * stride + j, load(from + t * stride + j) * scale[t]);
}

// to += scale from.
static inline void add(const float* from, float scale, int64_t floats, float* to) {
    for (int64_t j = 0; j < floats; j += W) store(to + j, fma(load(from + j), vf{} + scale, load(to + j)));
}

static inline vf dot(const float* a, const float* b, int64_t floats, vf sum) {
    for (int64_t j = 0; j < floats; j += W) sum = fma(load(a + j), load(b + j), sum);
    return sum;
}

}  // namespace chunk
