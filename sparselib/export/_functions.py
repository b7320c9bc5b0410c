"""The C functions that a written network calls."""

# those of sparse layers are written out for the types of their indices
FUNCTIONS: dict[str, str] = {
    "copy": """\
static void copy(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i];
}
""",
    "sparse_linear": """\
static void sparse_linear(const float *w, const POINTER *crow, const COLUMN *col, const float *x,
                          float *y, int rows, int columns, int samples)
{
    for (int s = 0; s < samples; s++)
        for (int o = 0; o < rows; o++) {
            float sum = 0.0f;
            for (int j = (int)crow[o]; j < (int)crow[o + 1]; j++)
                sum += w[j] * x[s * columns + (int)col[j]];
            y[s * rows + o] = sum;
        }
}
""",
    "sparse_convolution": """\
static void sparse_convolution(const float *w, const POINTER *crow, const COLUMN *col,
                               const float *x, float *y, int filters, int taps, int before,
                               int dilation, int across, int down, int length, int out)
{
    for (int o = 0; o < filters; o++) {
        for (int t = 0; t < out; t++)
            y[o * out + t] = 0.0f;
        for (int j = (int)crow[o]; j < (int)crow[o + 1]; j++) {
            int tap = (int)col[j] % taps;
            int from = tap / across * down + tap % across * dilation - before;
            const float *row = x + (int)col[j] / taps * length;
            for (int t = from < 0 ? -from : 0; t < out && t + from < length; t++)
                y[o * out + t] += w[j] * row[t + from];
        }
    }
}
""",
    "linear": """\
static void linear(const float *w, const float *b, const float *x, float *y, int rows,
                   int columns, int samples)
{
    for (int s = 0; s < samples; s++)
        for (int o = 0; o < rows; o++) {
            float sum = b ? b[o] : 0.0f;
            for (int i = 0; i < columns; i++)
                sum += w[o * columns + i] * x[s * columns + i];
            y[s * rows + o] = sum;
        }
}
""",
    "convolution": """\
static void convolution(const float *w, const float *b, const float *x, float *y, int filters,
                        int channels, int taps, int group, int stride, int before, int dilation,
                        int length, int out)
{
    for (int o = 0; o < filters; o++)
        for (int t = 0; t < out; t++) {
            float sum = b ? b[o] : 0.0f;
            for (int c = 0; c < channels; c++)
                for (int k = 0; k < taps; k++) {
                    int i = t * stride + k * dilation - before;
                    if (i >= 0 && i < length)
                        sum += w[(o * channels + c) * taps + k]
                               * x[(o / group * channels + c) * length + i];
                }
            y[o * out + t] = sum;
        }
}
""",
    "affine": """\
static void affine(const float *scale, const float *shift, const float *x, float *y,
                   int channels, int length)
{
    for (int c = 0; c < channels; c++)
        for (int t = 0; t < length; t++)
            y[c * length + t] = x[c * length + t] * scale[c] + shift[c];
}
""",
    "add": """\
static void add(const float *x, const float *z, float *y, int n, int repeats)
{
    for (int i = 0; i < n; i++)
        for (int r = 0; r < repeats; r++)
            y[i * repeats + r] = x[i * repeats + r] + z[i];
}
""",
    "rectify": """\
static void rectify(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = x[i] < 0.0f ? 0.0f : x[i];
}
""",
    "sigmoid": """\
static void sigmoid(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = 1.0f / (1.0f + expf(-x[i]));
}
""",
    "hyperbolic_tangent": """\
static void hyperbolic_tangent(const float *x, float *y, int n)
{
    for (int i = 0; i < n; i++)
        y[i] = tanhf(x[i]);
}
""",
    "pad": """\
/* the point of a signal that stands at a place outside of it, or -1 for a zero */
static int within(int i, int length, int mode)
{
    if (i >= 0 && i < length)
        return i;
    if (mode == 1)
        return i < 0 ? 0 : length - 1;
    if (mode == 2)
        return i < 0 ? -i : 2 * (length - 1) - i;
    if (mode == 3)
        return i < 0 ? i + length : i - length;
    return -1;
}

static void pad(const float *x, float *y, int count, int height, int width, int above,
                int before, int rows, int columns, int mode)
{
    for (int n = 0; n < count; n++)
        for (int r = 0; r < rows; r++)
            for (int t = 0; t < columns; t++) {
                int i = within(r - above, height, mode);
                int j = within(t - before, width, mode);
                y[(n * rows + r) * columns + t] =
                    i < 0 || j < 0 ? 0.0f : x[(n * height + i) * width + j];
            }
}
""",
    "slice": """\
static void slice(const float *x, float *y, int count, int length, int start, int out)
{
    for (int n = 0; n < count; n++)
        for (int t = 0; t < out; t++)
            y[n * out + t] = x[n * length + start + t];
}
""",
    "pool_mean": """\
static void pool_mean(const float *x, float *y, int rows, int length, int out)
{
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < out; t++) {
            int first = t * length / out;
            int end = ((t + 1) * length + out - 1) / out;
            float sum = 0.0f;
            for (int i = first; i < end; i++)
                sum += x[r * length + i];
            y[r * out + t] = sum / (float)(end - first);
        }
}
""",
    "pool_largest": """\
static void pool_largest(const float *x, float *y, int rows, int length, int kernel, int stride,
                         int before, int out)
{
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < out; t++) {
            int first = t * stride - before;
            int end = first + kernel < length ? first + kernel : length;
            int i = first < 0 ? 0 : first;
            float largest = x[r * length + i];
            for (; i < end; i++)
                if (x[r * length + i] > largest)
                    largest = x[r * length + i];
            y[r * out + t] = largest;
        }
}
""",
    "permute": """\
static void permute(const float *x, float *y, int a, int b, int c, int d, int e, int f, int p,
                    int q, int r, int s, int t, int u)
{
    for (int h = 0; h < a; h++)
        for (int i = 0; i < b; i++)
            for (int j = 0; j < c; j++)
                for (int k = 0; k < d; k++)
                    for (int l = 0; l < e; l++)
                        for (int m = 0; m < f; m++)
                            *y++ = x[h * p + i * q + j * r + k * s + l * t + m * u];
}
""",
}
