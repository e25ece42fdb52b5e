// TV-L1, the kernels. Arrays are dense, [n][y][x] with n the pair or frame; u is float2, p and c float4 (pixel.cuh).
// Without __CUDACC__ every kernel is a plain function of the same name that loops over what would be threads: that is
// how the tests run this file, tiles, halos and barriers included.
#include "pixel.cuh"

#define TILE_W 64                  // pixels of a block's tile, halo included
#define TILE_H 32
#define THREADS_Y 8                // a block is TILE_W x THREADS_Y threads
#define ROWS (TILE_H / THREADS_Y)  // pixels a thread

#ifdef __CUDACC__
#define KERNEL extern "C" __global__ void
#define TILED_KERNEL extern "C" __global__ void __launch_bounds__(TILE_W * THREADS_Y, 2)
#define EACH_PIXEL(width, height, count) \
    const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, n = blockIdx.z; \
    if (x < (width) && y < (height) && n < (count))
#define EACH_TILE(across, down, count) const int tile_x = blockIdx.x, tile_y = blockIdx.y, n = blockIdx.z;
#define THREADS(body) { const int tx = threadIdx.x, ty = threadIdx.y; body } __syncthreads();
#define SHARED __shared__
#define OWN(type, name) type name[ROWS]
#define MY(name) name[row]
#define UNROLL _Pragma("unroll")
#else
#define KERNEL extern "C" void
#define TILED_KERNEL extern "C" void
#define EACH_PIXEL(width, height, count) \
    for (int n = 0; n < (count); ++n) for (int y = 0; y < (height); ++y) for (int x = 0; x < (width); ++x)
#define EACH_TILE(across, down, count) \
    for (int n = 0; n < (count); ++n) for (int tile_y = 0; tile_y < (down); ++tile_y) \
        for (int tile_x = 0; tile_x < (across); ++tile_x)
#define THREADS(body) for (int ty = 0; ty < THREADS_Y; ++ty) for (int tx = 0; tx < TILE_W; ++tx) { body }
#define SHARED static
#define OWN(type, name) static type name[THREADS_Y][TILE_W][ROWS]
#define MY(name) name[ty][tx][row]
#define UNROLL
#endif

#define AT(x, y, width, height, n) (((long long)(n) * (height) + (y)) * (width) + (x))

KERNEL downscale(const float *fine, float *coarse, int fine_w, int fine_h, int width, int height, double scale,
                 int count)
{
    EACH_PIXEL(width, height, count) {
        int x0, x1, y0, y1;
        float wx, wy;
        linear(x, scale, fine_w, &x0, &x1, &wx);
        linear(y, scale, fine_h, &y0, &y1, &wy);
        const float *image = fine + AT(0, 0, fine_w, fine_h, n);
        const float *upper = image + (long long)y0 * fine_w, *lower = image + (long long)y1 * fine_w;
        coarse[AT(x, y, width, height, n)] = lerp2(upper[x0], upper[x1], lower[x0], lower[x1], wx, wy);
    }
}

KERNEL upscale(const float2 *coarse, float2 *fine, int coarse_w, int coarse_h, int width, int height,
               double scale_x, double scale_y, float factor, int count)
{
    EACH_PIXEL(width, height, count) {
        int x0, x1, y0, y1;
        float wx, wy;
        linear(x, scale_x, coarse_w, &x0, &x1, &wx);
        linear(y, scale_y, coarse_h, &y0, &y1, &wy);
        const float2 *flow = coarse + AT(0, 0, coarse_w, coarse_h, n);
        const float2 *upper = flow + (long long)y0 * coarse_w, *lower = flow + (long long)y1 * coarse_w;
        fine[AT(x, y, width, height, n)] = make_float2(
            lerp2(upper[x0].x, upper[x1].x, lower[x0].x, lower[x1].x, wx, wy) * factor,
            lerp2(upper[x0].y, upper[x1].y, lower[x0].y, lower[x1].y, wx, wy) * factor);
    }
}

// [I, dI/dx, dI/dy, 0]: central differences, half the one-sided one at the border.
KERNEL interleave(const float *image, float4 *out, int width, int height, int count)
{
    EACH_PIXEL(width, height, count) {
        const float *row = image + AT(0, y, width, height, n);
        const float *up = image + AT(0, max(y - 1, 0), width, height, n);
        const float *down = image + AT(0, min(y + 1, height - 1), width, height, n);
        out[AT(x, y, width, height, n)] = make_float4(
            row[x], 0.5f * (row[min(x + 1, width - 1)] - row[max(x - 1, 0)]), 0.5f * (down[x] - up[x]), 0.0f);
    }
}

// first: plane of the first frames; second: the second frames, interleaved.
KERNEL warp(const float *first, const float4 *second, const float2 *u, float4 *c, int width, int height, int count)
{
    EACH_PIXEL(width, height, count) {
        long long at = AT(x, y, width, height, n);
        float4 warped = bicubic(second + AT(0, 0, width, height, n), width, height,
                                (float)x + u[at].x, (float)y + u[at].y);
        c[at] = coefficients(warped, first[at], u[at]);
    }
}

// Median of size 3 or 5 with replicated border; pairs that are done are copied.
KERNEL median(const float2 *u, float2 *out, const int *active, int width, int height, int size, int count)
{
    EACH_PIXEL(width, height, count) {
        const float2 *flow = u + AT(0, 0, width, height, n);
        float2 value = flow[(long long)y * width + x];
        if (active[n] && size == 5) {
            float v1[5][5], v2[5][5];
            UNROLL
            for (int i = 0; i < 5; ++i) {
                UNROLL
                for (int j = 0; j < 5; ++j) {
                    float2 tap = flow[(long long)min(max(y + j - 2, 0), height - 1) * width
                                      + min(max(x + i - 2, 0), width - 1)];
                    v1[i][j] = tap.x;
                    v2[i][j] = tap.y;
                }
            }
            value = make_float2(median25(v1), median25(v2));
        } else if (active[n]) {
            float v1[3][3], v2[3][3];
            UNROLL
            for (int i = 0; i < 3; ++i) {
                UNROLL
                for (int j = 0; j < 3; ++j) {
                    float2 tap = flow[(long long)min(max(y + j - 1, 0), height - 1) * width
                                      + min(max(x + i - 1, 0), width - 1)];
                    v1[i][j] = tap.x;
                    v2[i][j] = tap.y;
                }
            }
            value = make_float2(median9(v1), median9(v2));
        }
        out[AT(x, y, width, height, n)] = value;
    }
}

// `steps` iterations of a tile in shared memory. An iteration at x reads p of x - 1 and the new u of x + 1, so what is
// right shrinks by one pixel a side and step: blocks write their tile less `steps` pixels a side. Pixels outside the
// image hold zero: p left of and above the image is zero by definition.
TILED_KERNEL iterate(const float2 *u_in, const float4 *p_in, const float4 *c_in, float2 *u_out, float4 *p_out,
                     int width, int height, int steps, float taut, float theta, float limit, int count)
{
    const int inner_w = TILE_W - 2 * steps, inner_h = TILE_H - 2 * steps;
    EACH_TILE((width + inner_w - 1) / inner_w, (height + inner_h - 1) / inner_h, count)
    {
        SHARED float u1[TILE_H][TILE_W], u2[TILE_H][TILE_W];
        SHARED float p11[TILE_H][TILE_W], p12[TILE_H][TILE_W], p21[TILE_H][TILE_W], p22[TILE_H][TILE_W];
        OWN(float2, u);
        OWN(float4, p);
        OWN(float4, c);
        const int left = tile_x * inner_w - steps, top = tile_y * inner_h - steps;
        THREADS(
            UNROLL
            for (int row = 0; row < ROWS; ++row) {
                const int j = ty + row * THREADS_Y;
                const int x = left + tx;
                const int y = top + j;
                MY(u) = make_float2(0.0f, 0.0f);
                MY(p) = MY(c) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (x >= 0 && x < width && y >= 0 && y < height) {
                    const long long at = AT(x, y, width, height, n);
                    MY(u) = u_in[at];
                    MY(p) = p_in[at];
                    MY(c) = c_in[at];
                }
                p11[j][tx] = MY(p).x;
                p12[j][tx] = MY(p).y;
                p21[j][tx] = MY(p).z;
                p22[j][tx] = MY(p).w;
            }
        )
        for (int step = 0; step < steps; ++step) {
            THREADS(
                UNROLL
                for (int row = 0; row < ROWS; ++row) {
                    const int j = ty + row * THREADS_Y;
                    MY(u) = primal(MY(u), MY(p), tx > 0 ? p11[j][tx - 1] : 0.0f, tx > 0 ? p21[j][tx - 1] : 0.0f,
                                   j > 0 ? p12[j - 1][tx] : 0.0f, j > 0 ? p22[j - 1][tx] : 0.0f, MY(c), theta, limit);
                    u1[j][tx] = MY(u).x;
                    u2[j][tx] = MY(u).y;
                }
            )
            THREADS(
                UNROLL
                for (int row = 0; row < ROWS; ++row) {
                    const int j = ty + row * THREADS_Y;
                    const int x = left + tx;
                    const int y = top + j;
                    if (x >= 0 && x < width && y >= 0 && y < height) {
                        const int right = x < width - 1 && tx < TILE_W - 1 ? tx + 1 : tx;
                        const int down = y < height - 1 && j < TILE_H - 1 ? j + 1 : j;
                        MY(p) = dual(MY(u), make_float2(u1[j][right], u2[j][right]),
                                     make_float2(u1[down][tx], u2[down][tx]), MY(p), taut);
                        p11[j][tx] = MY(p).x;
                        p12[j][tx] = MY(p).y;
                        p21[j][tx] = MY(p).z;
                        p22[j][tx] = MY(p).w;
                    }
                }
            )
        }
        THREADS(
            UNROLL
            for (int row = 0; row < ROWS; ++row) {
                const int j = ty + row * THREADS_Y;
                const int x = left + tx;
                const int y = top + j;
                if (tx >= steps && tx < TILE_W - steps && j >= steps && j < TILE_H - steps && x < width && y < height) {
                    const long long at = AT(x, y, width, height, n);
                    u_out[at] = MY(u);
                    p_out[at] = MY(p);
                }
            }
        )
    }
}

// The same iteration as two kernels in place, for pairs that stop by epsilon. change: squared change of u a pixel.
KERNEL primal_step(float2 *u, const float4 *p, const float4 *c, float *change, const int *active, int width, int height,
                   float theta, float limit, int count)
{
    EACH_PIXEL(width, height, count) {
        if (active[n]) {
            const long long at = AT(x, y, width, height, n);
            const float4 left = x > 0 ? p[at - 1] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            const float4 up = y > 0 ? p[at - width] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            const float2 before = u[at];
            const float2 after = primal(before, p[at], left.x, left.z, up.y, up.w, c[at], theta, limit);
            const float d1 = after.x - before.x, d2 = after.y - before.y;
            change[at] = fmaf(d1, d1, d2 * d2);
            u[at] = after;
        }
    }
}

KERNEL dual_step(const float2 *u, float4 *p, const int *active, int width, int height, float taut, int count)
{
    EACH_PIXEL(width, height, count) {
        if (active[n]) {
            const long long at = AT(x, y, width, height, n);
            p[at] = dual(u[at], u[x < width - 1 ? at + 1 : at], u[y < height - 1 ? at + width : at], p[at], taut);
        }
    }
}

// Sums of `change` in a fixed order: down every column, then along them; a pair at or below `limit` is done.
KERNEL column_sums(const float *change, float *sums, const int *active, int width, int height, int count)
{
    EACH_PIXEL(width, 1, count) {
        if (active[n]) {
            float sum = 0.0f;
            for (int row = 0; row < height; ++row)
                sum += change[AT(x, row, width, height, n)];
            sums[AT(x, 0, width, 1, n)] = sum;
        }
    }
}

KERNEL stop(const float *sums, int *active, int width, float limit, int pairs, int count)
{
    EACH_PIXEL(pairs, 1, count) {
        if (active[x]) {
            double sum = 0.0;
            for (int column = 0; column < width; ++column)
                sum += sums[(long long)x * width + column];
            active[x] = (float)sum > limit;
        }
    }
}

KERNEL split(const float2 *u, float *flow, int width, int height, int count)
{
    EACH_PIXEL(width, height, count) {
        const long long at = AT(x, y, width, height, n), plane = (long long)width * height;
        float *out = flow + 2 * n * plane + (long long)y * width + x;
        out[0] = u[at].x;
        out[plane] = u[at].y;
    }
}
