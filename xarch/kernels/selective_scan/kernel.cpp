// Selective scan of Mamba-1 on the CPU, float32. See README.md and compiled.py.
#include "backward.h"
#include "forward.h"

extern "C" {

int64_t selective_scan_lanes() { return simd::W; }
int64_t selective_scan_chunk() { return scan::CHUNK; }

// `kept` gets the state before each chunk, [B * G * blocks][chunks][N][lanes], or is null.
int selective_scan_forward(const scan::Problem* p, const scan::Sequence* out, float* last, float* kept) {
    return parallel::status_of([=] { scan::forward(*p, *out, last, kept); });
}

// Writes all gradients; those by A, D and bias per sequence of the batch.
int selective_scan_backward(const scan::Problem* p, const scan::Gradients* grad, const float* kept) {
    return parallel::status_of([=] { scan::backward(*p, *grad, kept); });
}
}
