// Products of linearly interpolated grids with channels last, forward and the gradients of the grids.
//
// A group multiplies up to kFactors factors; a factor is a grid over one to three axes. Every table entry is summed over
// points in their order, by one thread, so results do not depend on the number of threads.
#include <algorithm>
#include <utility>

#include "parallel.h"
#include "simd.h"

namespace {

using namespace simd;

constexpr int kFactors = 4;
constexpr int64_t kPoints = 1024;  // of one piece of work in the forward pass

struct Factor {
    int64_t table, grad;  // addresses; rows of the table lie row_stride floats apart, those of the gradient are dense
    int64_t axes, row_stride;
    int64_t axis[3], size[3];
};

struct Group {
    int64_t channels, first, count;  // channels, first output column, factors
    Factor factor[kFactors];
};

struct Call {
    const float* points;  // [N, 3]
    float* out;           // [N, width], in the backward pass its gradient
    int64_t n, width, groups, threads;
    const Group* group;
};

struct Corners {
    float weight[8];
    int64_t row[8];
};

SIMD_INLINE void corners(const Factor& f, const float* u, Corners& c) {
    c.weight[0] = 1.f;
    c.row[0] = 0;
    int count = 1;
    for (int64_t a = 0; a < f.axes; ++a) {
        const int64_t size = f.size[a];
        float x = u[f.axis[a]];
        x = x > 0.f ? (x < 1.f ? x : 1.f) : 0.f;  // NaN counts as 0: an index must come out
        const float p = x * (float)(size - 1);
        const int64_t low = std::min((int64_t)p, size - 2);
        const float t = p - (float)low;
        for (int k = count - 1; k >= 0; --k) {
            const int64_t row = c.row[k] * size + low;
            const float w = c.weight[k];
            c.row[2 * k] = row, c.weight[2 * k] = w * (1.f - t);
            c.row[2 * k + 1] = row + 1, c.weight[2 * k + 1] = w * t;
        }
        count *= 2;
    }
}

SIMD_INLINE vf take(const float* p, int n) { return n == W ? load(p) : load_part(p, n); }
SIMD_INLINE void put(float* p, vf v, int n) { n == W ? store(p, v) : store_part(p, v, n); }

SIMD_INLINE vf value(const Factor& f, const Corners& c, int64_t channel, int n) {
    const float* table = (const float*)f.table + channel;
    vf sum{};
    for (int k = 0; k < 1 << f.axes; ++k) sum = fma(splat(c.weight[k]), take(table + c.row[k] * f.row_stride, n), sum);
    return sum;
}

void forward(const Call& call, const Group& g, int64_t begin, int64_t end) {
    Corners c[kFactors];
    for (int64_t i = begin; i < end; ++i) {
        for (int64_t f = 0; f < g.count; ++f) corners(g.factor[f], call.points + 3 * i, c[f]);
        float* out = call.out + i * call.width + g.first;
        for (int64_t channel = 0; channel < g.channels; channel += W) {
            const int n = (int)std::min<int64_t>(W, g.channels - channel);
            vf product = value(g.factor[0], c[0], channel, n);
            for (int64_t f = 1; f < g.count; ++f) product = product * value(g.factor[f], c[f], channel, n);
            put(out + channel, product, n);
        }
    }
}

void backward(const Call& call, const Group& g, int64_t from, int64_t to) {
    Corners c[kFactors];
    vf v[kFactors], d[kFactors];
    for (int64_t i = 0; i < call.n; ++i) {
        for (int64_t f = 0; f < g.count; ++f) corners(g.factor[f], call.points + 3 * i, c[f]);
        const float* dout = call.out + i * call.width + g.first;
        for (int64_t channel = from; channel < to; channel += W) {
            const int n = (int)std::min<int64_t>(W, to - channel);
            vf before = take(dout + channel, n);
            if (g.count == 1) {
                d[0] = before;
            } else {
                for (int64_t f = 0; f < g.count; ++f) v[f] = value(g.factor[f], c[f], channel, n);
                for (int64_t f = 0; f < g.count; ++f) {
                    d[f] = before;
                    for (int64_t other = f + 1; other < g.count; ++other) d[f] = d[f] * v[other];
                    before = before * v[f];
                }
            }
            for (int64_t f = 0; f < g.count; ++f) {
                const Factor& factor = g.factor[f];
                if (!factor.grad) continue;
                for (int k = 0; k < 1 << factor.axes; ++k) {
                    float* row = (float*)factor.grad + c[f].row[k] * g.channels + channel;
                    put(row, fma(splat(c[f].weight[k]), d[f], take(row, n)), n);
                }
            }
        }
    }
}

}  // namespace

extern "C" int grid_forward(const Call* call) {
    return parallel::status_of([&] {
        const int64_t blocks = (call->n + kPoints - 1) / kPoints;
        parallel::parallel_for(blocks * call->groups, (int)call->threads, [&](int64_t job) {
            const int64_t begin = job % blocks * kPoints;
            forward(*call, call->group[job / blocks], begin, std::min(begin + kPoints, call->n));
        });
    });
}

extern "C" int grid_backward(const Call* call) {
    return parallel::status_of([&] {
        if (call->threads == 1) {
            parallel::parallel_for(call->groups, 1, [&](int64_t g) {
                backward(*call, call->group[g], 0, call->group[g].channels);
            });
            return;
        }
        // Channels do not meet one another: each piece of work takes one vector of them through all points.
        std::vector<std::pair<int64_t, int64_t>> jobs;
        for (int64_t g = 0; g < call->groups; ++g)
            for (int64_t channel = 0; channel < call->group[g].channels; channel += W) jobs.emplace_back(g, channel);
        parallel::parallel_for((int64_t)jobs.size(), (int)call->threads, [&](int64_t job) {
            const auto [g, channel] = jobs[job];
            backward(*call, call->group[g], channel, std::min(channel + W, call->group[g].channels));
        });
    });
}
