// Codes rows with ggml's own reference code and says what the codes stand for.
//
//     quantize TYPE ROWS COLS [weighted] < floats > bytes
//     quantize TYPE ROWS COLS decode     < bytes  > floats
//
// `weighted`: COLS floats of importance come before the rows. Everything is raw and little-endian.

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml.h"

static enum ggml_type type_named(const char *name) {
    for (int id = 0; id < GGML_TYPE_COUNT; ++id) {
        const char *known = ggml_type_name((enum ggml_type) id);
        if (known && !strcmp(known, name)) {
            return (enum ggml_type) id;
        }
    }
    fprintf(stderr, "no type %s\n", name);
    exit(1);
}

static void *read_bytes(size_t size) {
    void *data = malloc(size);
    if (!data || fread(data, 1, size, stdin) != size) {
        fprintf(stderr, "the input is too short\n");
        exit(1);
    }
    return data;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        return 1;
    }
    enum ggml_type type = type_named(argv[1]);
    int64_t rows = atoll(argv[2]), cols = atoll(argv[3]);
    size_t coded = rows * ggml_row_size(type, cols);
    if (argc > 4 && !strcmp(argv[4], "decode")) {
        float *out = malloc(rows * cols * sizeof(float));
        ggml_get_type_traits(type)->to_float(read_bytes(coded), out, rows * cols);
        fwrite(out, sizeof(float), rows * cols, stdout);
        return 0;
    }
    float *importance = argc > 4 ? read_bytes(cols * sizeof(float)) : NULL;
    float *weights = read_bytes(rows * cols * sizeof(float));
    void *out = calloc(1, coded);
    ggml_quantize_init(type);
    ggml_quantize_chunk(type, weights, out, 0, rows, cols, importance);
    fwrite(out, 1, coded, stdout);
    return 0;
}
