// TV-L1, the arithmetic of one pixel: one source for NVRTC, nvcc and a plain C++ compiler (the tests' way to run it).
// The steps and their order of operations are those of cpu_iterate.py, cpu_image.py and cpu_median.py.
#ifdef __CUDACC__
#define PIXEL __device__ __forceinline__
#else
#include <math.h>
#define PIXEL static inline
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
static inline float2 make_float2(float x, float y) { float2 v = {x, y}; return v; }
static inline float4 make_float4(float x, float y, float z, float w) { float4 v = {x, y, z, w}; return v; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
#endif

// Primal step: u1, u2; p = (p11, p12, p21, p22); left11, left21: p11, p21 of x - 1; up12, up22: p12, p22 of y - 1;
// c = (gx, gy, -1/|g|^2, constant part of rho).
PIXEL float2 primal(float2 u, float4 p, float left11, float left21, float up12, float up22, float4 c,
                    float theta, float limit)
{
    float rho = fmaf(c.y, u.y, fmaf(c.x, u.x, c.w));
    float step = fminf(fmaxf(rho * c.z, -limit), limit);
    float div1 = (p.x - left11) + (p.y - up12);
    float div2 = (p.z - left21) + (p.w - up22);
    return make_float2(fmaf(theta, div1, fmaf(step, c.x, u.x)), fmaf(theta, div2, fmaf(step, c.y, u.y)));
}

// Dual step: right, down: u of x + 1 and y + 1, or u itself at the last column and row.
PIXEL float4 dual(float2 u, float2 right, float2 down, float4 p, float taut)
{
    float x1 = right.x - u.x, y1 = down.x - u.x, x2 = right.y - u.y, y2 = down.y - u.y;
    float s1 = 1.0f / fmaf(taut, sqrtf(fmaf(x1, x1, y1 * y1)), 1.0f);
    float s2 = 1.0f / fmaf(taut, sqrtf(fmaf(x2, x2, y2 * y2)), 1.0f);
    return make_float4(fmaf(taut, x1, p.x) * s1, fmaf(taut, y1, p.y) * s1,
                       fmaf(taut, x2, p.z) * s2, fmaf(taut, y2, p.w) * s2);
}

// Taps of a bilinear resize along one axis: first and second tap, and the weight of the second.
PIXEL void linear(int at, double scale, int size, int *first, int *second, float *weight)
{
    double position = (at + 0.5) * scale - 0.5, whole = floor(position);
    int index = (int)whole;
    *weight = index < 0 || index >= size - 1 ? 0.0f : (float)(position - whole);
    *first = min(max(index, 0), size - 1);
    *second = min(*first + 1, size - 1);
}

PIXEL float lerp2(float a, float b, float c, float d, float wx, float wy)
{
    float left = fmaf(c - a, wy, a), right = fmaf(d - b, wy, b);
    return fmaf(right - left, wx, left);
}

// Weights of the bicubic taps at -1, 0, 1, 2 (a = -0.75).
PIXEL void cubic(float t, float *w)
{
    float t1 = 1.0f - t;
    w[0] = -0.75f * t * t1 * t1;
    w[1] = fmaf(fmaf(1.25f, t, -2.25f), t * t, 1.0f);
    w[2] = fmaf(fmaf(1.25f, t1, -2.25f), t1 * t1, 1.0f);
    w[3] = 1.0f - w[0] - w[1] - w[2];
}

// [I, dI/dx, dI/dy] at (px, py), bicubic, zero outside. image: (height, width) of [I, dI/dx, dI/dy, 0].
PIXEL float4 bicubic(const float4 *image, int width, int height, float px, float py)
{
    float wx[4], wy[4];
    px = fminf(fmaxf(px, -3.0f), (float)(width + 1));
    py = fminf(fmaxf(py, -3.0f), (float)(height + 1));
    float fx = floorf(px), fy = floorf(py);
    cubic(px - fx, wx);
    cubic(py - fy, wy);
    float4 column[4];
    for (int i = 0; i < 4; ++i) {
        int x = (int)fx + i - 1;
        column[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (int j = 0; j < 4; ++j) {
            int y = (int)fy + j - 1;
            if (x >= 0 && x < width && y >= 0 && y < height) {
                float4 tap = image[(long long)y * width + x];
                column[i].x = fmaf(tap.x, wy[j], column[i].x);
                column[i].y = fmaf(tap.y, wy[j], column[i].y);
                column[i].z = fmaf(tap.z, wy[j], column[i].z);
            }
        }
        column[i].x *= wx[i]; column[i].y *= wx[i]; column[i].z *= wx[i];
    }
    return make_float4((column[0].x + column[2].x) + (column[1].x + column[3].x),
                       (column[0].y + column[2].y) + (column[1].y + column[3].y),
                       (column[0].z + column[2].z) + (column[1].z + column[3].z), 0.0f);
}

// Coefficients of the data term from the warped image and its gradient, the first image and u.
PIXEL float4 coefficients(float4 warped, float first, float2 u)
{
    float square = fmaf(warped.y, warped.y, warped.z * warped.z);
    float rho = warped.x - warped.y * u.x - warped.z * u.y - first;
    return make_float4(warped.y, warped.z, square > 1.1920929e-7f ? -1.0f / square : 0.0f, rho);
}

PIXEL void order(float &a, float &b)
{
    float low = fminf(a, b);
    b = fmaxf(a, b);
    a = low;
}

PIXEL void sort5(float *v)
{
    order(v[0], v[1]); order(v[3], v[4]); order(v[2], v[4]); order(v[2], v[3]); order(v[1], v[4]);
    order(v[0], v[3]); order(v[0], v[2]); order(v[1], v[3]); order(v[1], v[2]);
}

PIXEL void sort3(float *v)
{
    order(v[0], v[1]); order(v[1], v[2]); order(v[0], v[1]);
}

PIXEL void merge(float &a, float &b, float &c, float &d)     // runs (a, b) and (c, d) into one
{
    order(a, c); order(b, d); order(b, c);
}

// Median of 5 x 5 values v[column][row]; the network of cpu_median._median25.
PIXEL float median25(float v[5][5])
{
    float r[5][5];
    for (int column = 0; column < 5; ++column)
        sort5(v[column]);
    for (int rank = 0; rank < 5; ++rank) {
        for (int column = 0; column < 5; ++column)
            r[rank][column] = v[column][rank];
        sort5(r[rank]);
    }
    float a0 = r[0][3], a1 = r[0][4], b0 = r[1][2], b1 = r[1][3], b2 = r[1][4], c0 = r[2][1], c1 = r[2][2];
    float c2 = r[2][3], d0 = r[3][0], d1 = r[3][1], d2 = r[3][2], e0 = r[4][0], e1 = r[4][1];
    merge(a0, a1, e0, e1);
    merge(b0, b2, d0, d2);
    order(b1, d1); order(b1, b2); order(d0, d1);                    // now b0 b1 b2 d0 d1 d2 ascend
    merge(a0, e0, c0, c2);
    order(a1, c1); order(c1, e1);
    order(a1, e0); order(c1, c0); order(e1, c2);                    // now a0 a1 e0 c1 c0 e1 c2 ascend
    float best = fminf(c2, fmaxf(a0, d2));                          // the 7th of both runs
    best = fminf(best, fmaxf(a1, d1));
    best = fminf(best, fmaxf(e0, d0));
    best = fminf(best, fmaxf(c1, b2));
    best = fminf(best, fmaxf(c0, b1));
    return fminf(best, fmaxf(e1, b0));
}

PIXEL float median9(float v[3][3])
{
    float low[3], middle[3], high[3], result[3];
    for (int column = 0; column < 3; ++column) {
        sort3(v[column]);
        low[column] = v[column][0]; middle[column] = v[column][1]; high[column] = v[column][2];
    }
    sort3(low); sort3(middle); sort3(high);
    result[0] = low[2]; result[1] = middle[1]; result[2] = high[0];
    sort3(result);
    return result[1];
}
