// What a call of the selective scan works on.
//
// Channels are taken W at a time, one per lane, and never across a group of B and C: a "block". Tokens are taken CHUNK at
// a time. Buffers of a chunk are token-major: [token][lane]. State buffers are [state][lane].
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "simd.h"

namespace scan {
using simd::vf;
using simd::W;

constexpr int CHUNK = 64;
constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;

// x[batch][channel][token] with any strides, counted in floats.
struct Sequence {
    float* data;
    int64_t of_batch, of_channel, of_token;

    float* at(int64_t batch, int64_t channel, int64_t token) const {
        return data + batch * of_batch + channel * of_channel + token * of_token;
    }
};

// The same layout as the ctypes structure in compiled.py. Absent tensors have no data.
struct Problem {
    int64_t batch, channels, length, states, groups, softplus, threads;
    Sequence x, dt, z;
    const float *A, *B, *C, *D, *bias, *initial;  // dense [D, N], [B, G, N, L], [B, G, N, L], [D], [D], [B, D, N]
    const uint8_t* reset;                         // [B, L]: the state before this token is dropped

    int64_t per_group() const { return channels / groups; }
    int64_t blocks() const { return (per_group() + W - 1) / W; }
    int64_t chunks() const { return (length + CHUNK - 1) / CHUNK; }
    int chunk_length(int64_t chunk) const {
        int64_t left = length - chunk * CHUNK;
        return int(left < CHUNK ? left : CHUNK);
    }
    // Floats of one block's states before each chunk.
    int64_t kept_per_block() const { return chunks() * states * W; }
};

// A block of channels.
struct Block {
    int64_t batch, group, index, first;
    int lanes;

    Block(const Problem& p, int64_t batch, int64_t group, int64_t index)
        : batch(batch), group(group), index(index), first(group * p.per_group() + index * W) {
        int64_t left = p.per_group() - index * W;
        lanes = int(left < W ? left : W);
    }
    int64_t number(const Problem& p) const { return (batch * p.groups + group) * p.blocks() + index; }
};

// Floats at an address a vector may be loaded from without crossing cache lines.
class Floats {
    float* data_;

public:
    explicit Floats(int64_t count) {
        size_t bytes = ((size_t)count * sizeof(float) + 127) / 64 * 64;
        data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
    }
    ~Floats() { std::free(data_); }
    Floats(const Floats&) = delete;
    Floats& operator=(const Floats&) = delete;
    operator float*() const { return data_; }
};

}  // namespace scan
