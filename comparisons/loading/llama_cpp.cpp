// All logits of a GGUF in llama.cpp, on one thread with the KV cache in f32:
//   llama_cpp MODEL.gguf OUT ID,ID,...     OUT gets [T, V] as f32
#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

int main(int count, char ** arguments) {
    if (count != 4) {
        std::fprintf(stderr, "usage: llama_cpp MODEL OUT ID,ID,...\n");
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model * model = llama_model_load_from_file(arguments[1], llama_model_default_params());
    if (model == nullptr) {
        std::fprintf(stderr, "%s does not load\n", arguments[1]);
        return 1;
    }
    std::vector<llama_token> ids;
    std::stringstream list(arguments[3]);
    for (std::string id; std::getline(list, id, ',');) {
        ids.push_back(std::atoi(id.c_str()));
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    llama_context * context = llama_init_from_model(model, params);
    llama_batch batch = llama_batch_init(static_cast<int>(ids.size()), 0, 1);
    batch.n_tokens = static_cast<int>(ids.size());
    for (size_t i = 0; i < ids.size(); i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = static_cast<llama_pos>(i);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    if (context == nullptr || llama_decode(context, batch) != 0) {
        std::fprintf(stderr, "%s does not run\n", arguments[1]);
        return 1;
    }
    const int vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::FILE * out = std::fopen(arguments[2], "wb");
    for (size_t i = 0; i < ids.size(); i++) {
        std::fwrite(llama_get_logits_ith(context, static_cast<int>(i)), sizeof(float), vocab, out);
    }
    std::fclose(out);
    return 0;
}
