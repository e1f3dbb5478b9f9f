// Multi-resolution hash encoding, forward and the gradient of the table.
//
// A level is one piece of work: its rows stay in cache, and every row is summed over points in their order by one
// thread, so results do not depend on the number of threads.
#include <algorithm>
#include <type_traits>

#include "parallel.h"

namespace {

constexpr int kBlock = 64;           // points whose corners are found together, in vectors
constexpr int64_t kPoints = 1 << 13;  // of one piece of work in the forward pass
constexpr uint32_t kY = 2654435761u, kZ = 805459861u;

struct Level {
    float scale, shift;
    int64_t stride, offset, size, dense;
};

struct Call {
    const float* points;  // [N, 3]
    const float* table;   // [E, F]
    float* grad;          // [E, F], zero at first
    float* out;           // [N, L * F], in the backward pass its gradient
    int64_t n, levels, features, threads;
    const Level* level;
};

struct Corners {
    uint32_t row[8][kBlock];
    float weight[8][kBlock];
};

// Rounded after the product, as PyTorch does: the cell is the same in every backend.
#if defined(__GNUC__) && !defined(__clang__)
__attribute__((optimize("fp-contract=off")))
#endif
void corners(const Level& level, const float* points, int count, Corners& c) {
    uint32_t cell[3][kBlock];
    float part[3][kBlock];
    constexpr float below_one = 1.f - 0x1p-24f;
    for (int a = 0; a < 3; ++a)
        for (int i = 0; i < count; ++i) {
            float u = points[3 * i + a];
            u = u > 0.f ? (u < below_one ? u : below_one) : 0.f;  // NaN counts as 0: an index must come out
            const float p = u * level.scale + level.shift;
            const int32_t low = (int32_t)p;
            cell[a][i] = (uint32_t)low;
            part[a][i] = p - (float)low;
        }
    const uint32_t size = (uint32_t)level.size, stride = (uint32_t)level.stride;
    const bool power = (size & (size - 1)) == 0;
    for (int k = 0; k < 8; ++k) {
        const uint32_t bx = k & 1, by = k >> 1 & 1, bz = k >> 2;
        for (int i = 0; i < count; ++i) {
            const float wx = bx ? part[0][i] : 1.f - part[0][i];
            const float wy = by ? part[1][i] : 1.f - part[1][i];
            const float wz = bz ? part[2][i] : 1.f - part[2][i];
            c.weight[k][i] = wx * wy * wz;
        }
        if (level.dense)
            for (int i = 0; i < count; ++i)
                c.row[k][i] = (cell[0][i] + bx) + ((cell[1][i] + by) + (cell[2][i] + bz) * stride) * stride;
        else
            for (int i = 0; i < count; ++i)
                c.row[k][i] = (cell[0][i] + bx) ^ ((cell[1][i] + by) * kY) ^ ((cell[2][i] + bz) * kZ);
        if (level.dense) {
            for (int i = 0; i < count; ++i)
                if (c.row[k][i] >= size) c.row[k][i] %= size;
            continue;
        }
        if (power)
            for (int i = 0; i < count; ++i) c.row[k][i] &= size - 1;
        else
            for (int i = 0; i < count; ++i) c.row[k][i] %= size;
    }
}

template <int F>
void forward(const Call& call, int64_t l, int64_t begin, int64_t end) {
    const int features = F ? F : (int)call.features;
    const Level& level = call.level[l];
    const float* table = call.table + level.offset * features;
    const int64_t width = call.levels * features;
    Corners c;
    for (int64_t start = begin; start < end; start += kBlock) {
        const int count = (int)std::min<int64_t>(kBlock, end - start);
        corners(level, call.points + 3 * start, count, c);
        for (int i = 0; i < count; ++i) {
            float* out = call.out + (start + i) * width + l * features;
            float sum[F ? F : 64] = {};
            for (int k = 0; k < 8; ++k) {
                const float* row = table + (int64_t)c.row[k][i] * features;
                for (int f = 0; f < features; ++f) sum[f] += c.weight[k][i] * row[f];
            }
            for (int f = 0; f < features; ++f) out[f] = sum[f];
        }
    }
}

template <int F>
void backward(const Call& call, int64_t l) {
    const int features = F ? F : (int)call.features;
    const Level& level = call.level[l];
    float* grad = call.grad + level.offset * features;
    const int64_t width = call.levels * features;
    Corners c;
    for (int64_t start = 0; start < call.n; start += kBlock) {
        const int count = (int)std::min<int64_t>(kBlock, call.n - start);
        corners(level, call.points + 3 * start, count, c);
        for (int i = 0; i < count; ++i) {
            const float* dout = call.out + (start + i) * width + l * features;
            float d[F ? F : 64];
            for (int f = 0; f < features; ++f) d[f] = dout[f];
            for (int k = 0; k < 8; ++k) {
                float* row = grad + (int64_t)c.row[k][i] * features;
                for (int f = 0; f < features; ++f) row[f] += c.weight[k][i] * d[f];
            }
        }
    }
}

template <class Fn>
void by_features(int64_t features, const Fn& fn) {
    switch (features) {
        case 1: return fn(std::integral_constant<int, 1>{});
        case 2: return fn(std::integral_constant<int, 2>{});
        case 4: return fn(std::integral_constant<int, 4>{});
        case 8: return fn(std::integral_constant<int, 8>{});
        default: return fn(std::integral_constant<int, 0>{});
    }
}

}  // namespace

extern "C" int hash_forward(const Call* call) {
    return parallel::status_of([&] {
        const int64_t blocks = (call->n + kPoints - 1) / kPoints;
        by_features(call->features, [&](auto f) {
            parallel::parallel_for(blocks * call->levels, (int)call->threads, [&](int64_t job) {
                const int64_t begin = job % blocks * kPoints;
                forward<decltype(f)::value>(*call, job / blocks, begin, std::min(begin + kPoints, call->n));
            });
        });
    });
}

extern "C" int hash_backward(const Call* call) {
    return parallel::status_of([&] {
        by_features(call->features, [&](auto f) {
            parallel::parallel_for(call->levels, (int)call->threads, [&](int64_t level) {
                backward<decltype(f)::value>(*call, level);
            });
        });
    });
}
