"""The bodies of the kernels; `body` says how they are launched.

One SIMD group works on one row, one patch (or byte) and one key head. Its lanes share the head
width: lane l holds elements l, l + 32, ... of every vector, R of them. M counts the queries that a
patch and key head have: J for each of the G heads that share it.
"""

from __future__ import annotations

_PLACE = """
    uint lane = thread_index_in_simdgroup;
    uint own = thread_position_in_grid.y;
    uint b = thread_position_in_grid.z / K;
    uint kh = thread_position_in_grid.z % K;
    uint N = ids_shape[1];
"""

_QUERIES_OF_PATCH = """
    uint P = runs_shape[1];
    if (own >= P) return;
    uint stop = runs[(b * P + own) * 2 + 1];
    // Query m is vector m / G of the patch, for head m % G of those that share this key head.
    uint rows[J * G];
    float query[J * G][R];
    for (int m = 0; m < J * G; ++m) {
        rows[m] = ((b * P + own) * J + m / G) * K * G + kh * G + m % G;
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            query[m][r] = w < W ? float(q[rows[m] * W + w]) * scale[0] : 0.0f;
        }
    }
"""

# Softmax in one walk: what was summed so far shrinks whenever a larger score turns up.
ENCODER = (
    _PLACE
    + _QUERIES_OF_PATCH
    + """
    float sums[J * G][R];
    float largest[J * G];
    float total[J * G];
    for (int m = 0; m < J * G; ++m) {
        largest[m] = -INFINITY;
        total[m] = 0.0f;
        for (int r = 0; r < R; ++r) sums[m][r] = 0.0f;
    }
    for (uint t = runs[(b * P + own) * 2]; t < stop; ++t) {
        if (ids[b * N + t] != int(own)) continue;
        uint at = ((b * N + t) * K + kh) * W;
        float key[R];
        float value[R];
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            key[r] = w < W ? float(k[at + w]) : 0.0f;
            value[r] = w < W ? float(v[at + w]) : 0.0f;
        }
        for (int m = 0; m < J * G; ++m) {
            float part = 0.0f;
            for (int r = 0; r < R; ++r) part += query[m][r] * key[r];
            float score = simd_sum(part);
            float higher = score > largest[m] ? score : largest[m];
            float shrink = metal::exp(largest[m] - higher);
            float weight = metal::exp(score - higher);
            largest[m] = higher;
            total[m] = total[m] * shrink + weight;
            for (int r = 0; r < R; ++r) sums[m][r] = sums[m][r] * shrink + weight * value[r];
        }
    }
    for (int m = 0; m < J * G; ++m) {
        float share = total[m] > 0.0f ? 1.0f / total[m] : 0.0f;
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            if (w < W) out[rows[m] * W + w] = T(sums[m][r] * share);
        }
        if (lane == 0) level[rows[m]] = total[m] > 0.0f ? largest[m] + metal::log(total[m]) : 0.0f;
    }
"""
)

ENCODER_BACKWARD = (
    _PLACE
    + _QUERIES_OF_PATCH
    + """
    float slope[J * G][R];
    float dquery[J * G][R];
    float share[J * G];
    float base[J * G];
    for (int m = 0; m < J * G; ++m) {
        float part = 0.0f;
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            slope[m][r] = w < W ? float(dout[rows[m] * W + w]) : 0.0f;
            part += w < W ? slope[m][r] * float(out[rows[m] * W + w]) : 0.0f;
            dquery[m][r] = 0.0f;
        }
        share[m] = simd_sum(part);
        base[m] = level[rows[m]];
    }
    for (uint t = runs[(b * P + own) * 2]; t < stop; ++t) {
        if (ids[b * N + t] != int(own)) continue;
        uint at = ((b * N + t) * K + kh) * W;
        float key[R];
        float value[R];
        float dkey[R];
        float dvalue[R];
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            key[r] = w < W ? float(k[at + w]) : 0.0f;
            value[r] = w < W ? float(v[at + w]) : 0.0f;
            dkey[r] = 0.0f;
            dvalue[r] = 0.0f;
        }
        for (int m = 0; m < J * G; ++m) {
            float score = 0.0f;
            float gain = 0.0f;
            for (int r = 0; r < R; ++r) {
                score += query[m][r] * key[r];
                gain += slope[m][r] * value[r];
            }
            float weight = metal::exp(simd_sum(score) - base[m]);
            float dscore = weight * (simd_sum(gain) - share[m]);
            for (int r = 0; r < R; ++r) {
                dquery[m][r] += dscore * key[r];
                dkey[r] += dscore * query[m][r];
                dvalue[r] += weight * slope[m][r];
            }
        }
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            if (w < W) {
                dk[at + w] = T(dkey[r]);
                dv[at + w] = T(dvalue[r]);
            }
        }
    }
    for (int m = 0; m < J * G; ++m) {
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            if (w < W) dq[rows[m] * W + w] = T(dquery[m][r] * scale[0]);
        }
    }
"""
)

_VECTORS_OF_PATCH = """
    float key[J][R];
    float value[J][R];
    for (int j = 0; j < J; ++j) {
        uint at = (((b * P + patch) * J + j) * K + kh) * W;
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            key[j][r] = w < W ? float(k[at + w]) * scale[0] : 0.0f;
            value[j][r] = w < W ? float(v[at + w]) : 0.0f;
        }
    }
"""

_WEIGHTS_OF_BYTE = """
            float weight[J];
            float largest = -INFINITY;
            for (int j = 0; j < J; ++j) {
                float part = 0.0f;
                for (int r = 0; r < R; ++r) part += query[r] * key[j][r];
                weight[j] = simd_sum(part);
                largest = weight[j] > largest ? weight[j] : largest;
            }
            float total = 0.0f;
            for (int j = 0; j < J; ++j) {
                weight[j] = metal::exp(weight[j] - largest);
                total += weight[j];
            }
            for (int j = 0; j < J; ++j) weight[j] = weight[j] / total;
"""

DECODER = (
    _PLACE
    + """
    uint P = k_shape[1];
    if (own >= N) return;
    int patch = ids[b * N + own];
    // Nothing is read for a byte that is left out, which gives 0.
    bool counts = patch >= 0 && patch < int(P);
    if (!counts) {
        for (int g = 0; g < G; ++g) {
            uint at = ((b * N + own) * K * G + kh * G + g) * W;
            for (uint w = lane; w < W; w += 32) out[at + w] = T(0.0f);
        }
        return;
    }
"""
    + _VECTORS_OF_PATCH
    + """
    for (int g = 0; g < G; ++g) {
        uint at = ((b * N + own) * K * G + kh * G + g) * W;
        float query[R];
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            query[r] = w < W ? float(q[at + w]) : 0.0f;
        }
"""
    + _WEIGHTS_OF_BYTE
    + """
        for (int r = 0; r < R; ++r) {
            float result = 0.0f;
            for (int j = 0; j < J; ++j) result += weight[j] * value[j][r];
            uint w = lane + 32 * r;
            if (w < W) out[at + w] = T(result);
        }
    }
"""
)

# One SIMD group walks over the bytes that read its patch, so nothing is added atomically.
DECODER_BACKWARD = (
    _PLACE
    + """
    uint P = runs_shape[1];
    if (own >= P) return;
    uint patch = own;
    uint stop = runs[(b * P + own) * 2 + 1];
"""
    + _VECTORS_OF_PATCH
    + """
    float dkey[J][R];
    float dvalue[J][R];
    for (int j = 0; j < J; ++j) {
        for (int r = 0; r < R; ++r) {
            dkey[j][r] = 0.0f;
            dvalue[j][r] = 0.0f;
        }
    }
    for (uint t = runs[(b * P + own) * 2]; t < stop; ++t) {
        if (ids[b * N + t] != int(own)) continue;
        for (int g = 0; g < G; ++g) {
            uint at = ((b * N + t) * K * G + kh * G + g) * W;
            float query[R];
            float slope[R];
            for (int r = 0; r < R; ++r) {
                uint w = lane + 32 * r;
                query[r] = w < W ? float(q[at + w]) : 0.0f;
                slope[r] = w < W ? float(dout[at + w]) : 0.0f;
            }
"""
    + _WEIGHTS_OF_BYTE
    + """
            float gain[J];
            float share = 0.0f;
            for (int j = 0; j < J; ++j) {
                float part = 0.0f;
                for (int r = 0; r < R; ++r) part += slope[r] * value[j][r];
                gain[j] = simd_sum(part);
                share += weight[j] * gain[j];
            }
            float dquery[R];
            for (int r = 0; r < R; ++r) dquery[r] = 0.0f;
            for (int j = 0; j < J; ++j) {
                float dscore = weight[j] * (gain[j] - share);
                for (int r = 0; r < R; ++r) {
                    dquery[r] += dscore * key[j][r];
                    dkey[j][r] += dscore * query[r];
                    dvalue[j][r] += weight[j] * slope[r];
                }
            }
            for (int r = 0; r < R; ++r) {
                uint w = lane + 32 * r;
                if (w < W) dq[at + w] = T(dquery[r]);
            }
        }
    }
    for (int j = 0; j < J; ++j) {
        uint at = (((b * P + patch) * J + j) * K + kh) * W;
        for (int r = 0; r < R; ++r) {
            uint w = lane + 32 * r;
            if (w < W) {
                dk[at + w] = T(dkey[j][r] * scale[0]);
                dv[at + w] = T(dvalue[j][r]);
            }
        }
    }
"""
)
